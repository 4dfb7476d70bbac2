//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testRun is a run of the tests. It keeps all its files in one folder, which is also its
// TMPDIR. A second process, the janitor, notices when the run ends, by Ctrl-C, a timeout
// or kill -9. It ends the processes that the run has started, and removes the folder. If
// the janitor was killed too, the next run does this. The run or its janitor locks the
// file "lock" in the folder while the folder is in use.
type testRun struct {
	dir     string
	janitor *exec.Cmd
	alive   io.Closer // the janitor notices when it is closed
	running *os.File  // adopted processes inherit it, so the janitor notices when all have ended
}

const testRunFolder = "queued-tests-"

// beginTestRun removes the folders of dead runs, creates a folder, and starts the
// janitor.
func beginTestRun() (*testRun, error) {
	removeDeadRuns(os.TempDir())
	dir, err := os.MkdirTemp("", testRunFolder)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return nil, err
	}
	// The file gets its name after it is locked, so that no other run takes this one for
	// dead.
	lock, err := lockFile(filepath.Join(dir, "lock.new"))
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the janitor inherits it, so it stays locked
	if err := os.Rename(lock.Name(), filepath.Join(dir, "lock")); err != nil {
		return nil, err
	}
	ended, running, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ended.Close()
	r := &testRun{dir: dir, janitor: exec.Command(os.Args[0]), running: running}
	r.janitor.Env = append(os.Environ(), "QUEUED_TEST_JANITOR="+dir)
	r.janitor.ExtraFiles = []*os.File{lock, ended}
	r.janitor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Ctrl-C does not reach it
	if r.alive, err = r.janitor.StdinPipe(); err != nil {
		return nil, err
	}
	if err := r.janitor.Start(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(lock, r.janitor.Process.Pid); err != nil {
		return nil, err
	}
	return r, os.Setenv("TMPDIR", dir)
}

// adopt puts a command that is not started yet into the process group of the janitor.
// The janitor ends it if it still runs after the tests.
func (r *testRun) adopt(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: r.janitor.Process.Pid}
	cmd.ExtraFiles = append(cmd.ExtraFiles, r.running)
}

// end removes the folder. PostgreSQL must have been stopped.
func (r *testRun) end() error {
	err := os.RemoveAll(r.dir)
	r.alive.Close()
	return err
}

// runJanitor is the program of the janitor. It waits for the end of the run.
func runJanitor(dir string) {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	syscall.SetNonblock(4, true) // so that a read has a deadline
	io.Copy(io.Discard, os.Stdin)
	if _, err := os.Stat(dir); err == nil { // the run did not end by itself
		// A server, or a worker with its commands, ends at once after a second signal.
		ended := os.NewFile(4, "ended")
		for range 10 {
			syscall.Kill(0, syscall.SIGTERM)
			ended.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := ended.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				break
			}
		}
		removeRun(dir)
	}
	syscall.Kill(0, syscall.SIGKILL)
}

// removeDeadRuns removes the folders of runs that have ended without their janitors.
func removeDeadRuns(temp string) {
	locks, _ := filepath.Glob(filepath.Join(temp, testRunFolder+"*", "lock"))
	for _, path := range locks {
		lock, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // another user's
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			removeRun(filepath.Dir(path))
		}
		lock.Close()
	}
}

// removeRun stops each PostgreSQL whose cluster is in the folder of a run, and
// removes the folder.
func removeRun(dir string) {
	filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "postmaster.pid" {
			err = stopLeftovers(filepath.Dir(path))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// One run is killed together with its janitor, and the next run cleans up after it.
// Another run is killed alone, and its janitor cleans up. Nothing touches it before that.
func TestNothingStaysOfARunThatWasKilled(t *testing.T) {
	t.Parallel()
	temp := filepath.Dir(newDataDir(t))
	begin := func(env string) *running {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "TMPDIR="+temp, env)
		return startCommand(t, cmd)
	}
	hang := func() (r *running, dir string, postgres int) {
		r = begin("QUEUED_TEST_HANG=1")
		eventually(t, "the run hangs", func() bool {
			dir, _, _ = strings.Cut(r.output.String(), "\n")
			postgres = leftover(filepath.Join(dir, "data", "postgres"))
			return postgres != 0
		})
		return r, dir, postgres
	}
	is := func(dir string, postgres int) (folder, process bool) {
		_, err := os.Stat(dir)
		return err == nil, syscall.Kill(postgres, 0) == nil
	}
	removed := func(dir string, postgres int) {
		t.Helper()
		eventually(t, "nothing is left of "+dir, func() bool { folder, process := is(dir, postgres); return !folder && !process })
	}
	lives, livesIn, itsPostgres := hang()
	dies, diesIn, left := hang()
	text, err := os.ReadFile(filepath.Join(diesIn, "lock"))
	var janitor int
	if _, scanned := fmt.Sscan(string(text), &janitor); err != nil || scanned != nil {
		t.Fatal(err, scanned)
	}
	if err := syscall.Kill(janitor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	dies.cmd.Process.Kill()
	dies.await()
	if folder, process := is(diesIn, left); !folder || !process {
		t.Fatal("the killed run left nothing for the next run to remove")
	}
	if err := begin("").await(); err != nil {
		t.Errorf("the next run = %v", err)
	}
	removed(diesIn, left)
	if folder, process := is(livesIn, itsPostgres); !folder || !process {
		t.Errorf("of the living run the folder exists: %v, PostgreSQL runs: %v; want both", folder, process)
	}

	lives.cmd.Process.Kill()
	removed(livesIn, itsPostgres)
}
