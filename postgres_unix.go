//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const immediateShutdown = syscall.SIGQUIT

// postgresAccount returns the user that PostgreSQL runs as: postgres if this process
// runs as root, nil for the user of this process.
func postgresAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, errors.New("PostgreSQL cannot run as root, and there is no user postgres; install PostgreSQL's package, start queued as another user, or set -database-url (QUEUED_DATABASE_URL) to a PostgreSQL server")
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	return &account{name: u.Username, uid: uid, gid: gid}, err
}

// childAttributes puts a child into a process group of its own, so that Ctrl-C does not
// end it before the server has drained.
func childAttributes(runAs *account) *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if runAs != nil {
		attributes.Credential = &syscall.Credential{Uid: uint32(runAs.uid), Gid: uint32(runAs.gid)}
	}
	return attributes
}

// explainAccess adds the likely reason if a program could not be started: the user of
// PostgreSQL cannot enter the data directory, which is the working directory.
func explainAccess(err error) error {
	if errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w; PostgreSQL's user needs access to the data directory and all its parents, or set another -data-dir", err)
	}
	return err
}

// lockFile creates and locks a file. The lock ends with the process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w; %s", err, otherPlace)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another queued; stop it or set another -data-dir", filepath.Dir(path))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// checkPrivate returns an error unless only that user can enter the directory.
func checkPrivate(path string, uid int) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != uid || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is not a directory of user %d alone: the service, or another user, has this data; set another -data-dir, or use -dev", path, uid)
	}
	return nil
}

// reapOrphans removes the ended processes of a PostgreSQL that was killed. Process 1, as
// in a container, adopts them. There must be no other children. A new PostgreSQL starts
// only after the last one has ended, so none stays after the next call.
func reapOrphans() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// stopLeftovers stops a PostgreSQL on the cluster that a killed server left running.
func stopLeftovers(cluster string) error {
	pid := leftover(cluster)
	if pid == 0 {
		return nil
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, immediateShutdown} {
		syscall.Kill(pid, signal)
		for end := time.Now().Add(postgresStop); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if leftover(cluster) != pid {
				return nil
			}
		}
	}
	return fmt.Errorf("PostgreSQL of an earlier run (process %d) did not stop", pid)
}

// leftover returns the id of the process that serves the cluster, or 0 if there is none.
// It is the process in postmaster.pid, if that is a postgres in the directory of the cluster.
func leftover(cluster string) (pid int) {
	b, err := os.ReadFile(filepath.Join(cluster, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !runsPostgres(pid, cluster) {
		return 0
	}
	return pid
}

func runsPostgres(pid int, cluster string) bool {
	if _, err := os.Stat("/proc/self/exe"); err == nil {
		program, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		program = strings.TrimSuffix(program, " (deleted)") // after an upgrade
		folder, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		real, err := filepath.EvalSymlinks(cluster)
		return err == nil && filepath.Base(program) == "postgres" && folder == real
	}
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	program, _, _ := strings.Cut(string(out), " ")
	return err == nil && filepath.Base(program) == "postgres" && strings.Contains(string(out), " -D "+cluster+" ")
}
