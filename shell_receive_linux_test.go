package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// init makes a process of a test inherit orphaned processes, as the first process of a
// container does.
func init() {
	const set = 36 // PR_SET_CHILD_SUBREAPER
	if os.Getenv("QUEUED_TEST_SUBREAPER") != "" {
		if _, _, err := syscall.Syscall(syscall.SYS_PRCTL, set, 1, 0); err != 0 {
			panic(err)
		}
	}
}

func TestReceiveCommandReapsWhatItInherits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	c, _ := newCommands(t) // the test needs only the fifo
	const orphans = 20
	s.publish("t", make([]int, orphans)...)
	command := fmt.Sprintf(`cd %q; (read status <ends; exit 3) & echo $! >pid-$QUEUED_MESSAGE_ID; exit 0`, c.folder)
	cmd := shellProcess(s.url, "receive", "-parallel", "4", "-exec", command, "t")
	cmd.Env = append(cmd.Env, "QUEUED_TEST_SUBREAPER=1")
	r := startCommand(t, cmd)
	eventually(t, "all commands have exited with 0, and are acked", func() bool { return s.unacked() == 0 })
	files, err := filepath.Glob(filepath.Join(c.folder, "pid-*"))
	if err != nil || len(files) != orphans {
		t.Fatalf("%d orphans, %v", len(files), err)
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		var pid int
		if _, scanned := fmt.Sscan(string(text), &pid); err != nil || scanned != nil {
			t.Fatal(err, scanned)
		}
		if parent := parentOf(t, pid); parent != r.cmd.Process.Pid {
			t.Fatalf("the parent of an orphan is %d, want the worker", parent)
		}
		pids = append(pids, pid)
	}
	for range orphans {
		c.end(0)
	}
	for _, pid := range pids {
		eventually(t, "the orphan has ended and is not a zombie", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	s.publish("t", 1) // the worker continues
	eventually(t, "the next message is acked", func() bool { return s.unacked() == 0 })
	c.end(0) // its orphan, which holds the worker's standard error open
	r.cmd.Process.Signal(syscall.SIGTERM)
	if err := r.await(); err != nil || r.output.String() != "" {
		t.Errorf("receive = %v\n%s", err, r.output)
	}
}

func parentOf(t testing.TB, pid int) (parent int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	if _, err := fmt.Sscan(string(text[strings.LastIndexByte(string(text), ')')+1:]), &state, &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

// startReceive starts queued receive as a process that writes into a pipe.
func startReceive(t testing.TB, url string, args ...string) (r *running, output *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close() })
	cmd := shellProcess(url, append([]string{"receive"}, args...)...)
	cmd.Stdout = write
	r = startCommand(t, cmd)
	write.Close()
	return r, read
}

// awaitSIGPIPE waits for a process to exit silently with the status of SIGPIPE.
func (r *running) awaitSIGPIPE() {
	r.t.Helper()
	exit := new(exec.ExitError)
	if err := r.await(); !errors.As(err, &exit) || exit.ExitCode() != 141 || r.output.String() != "" {
		r.t.Errorf("receive = %v, %s, want exit status 141 and nothing else", err, r.output)
	}
}

func TestReceiveCommandAcksWhatWasRead(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	untouched := func() int {
		return s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND NOT in_flight AND scheduled_at <= now()")
	}
	s.publish("t", make([]int, 20)...)
	left := 20
	for n := range 5 { // the reader ends at different times
		r, output := startReceive(t, s.url, "t")
		head := exec.Command("head", "-n", fmt.Sprint(n+1))
		head.Stdin = output
		printed, err := head.Output()
		if err != nil || strings.Count(string(printed), "\n") != n+1 {
			t.Errorf("head = %v, %s", err, printed)
		}
		output.Close()
		r.awaitSIGPIPE()
		left -= n + 1
		checkDiff(t, "stored", left, s.unacked())
		eventually(t, "the other messages are as if never received", func() bool { return untouched() == left })
	}

	// A reader may exit while there is nothing to print.
	s.must(204, "PUT", "/queues/t/purge", "")
	r, output := startReceive(t, s.url, "t")
	s.waiting("t", 1)
	output.Close()
	r.awaitSIGPIPE()

	// If a reader stops reading, other consumers can receive the messages that it has not
	// got.
	s.publish("t", make([]int, 20)...)
	r, output = startReceive(t, s.url, "t")
	lines := bufio.NewReader(output)
	for range 5 { // so that the worker receives several messages at once
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all messages but one are released", func() bool { return s.unacked()-untouched() == 1 })
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, lines, 1); err != nil { // the worker continues
		t.Fatal(err)
	}
	output.Close()
	r.awaitSIGPIPE()
	eventually(t, "the other messages are as if never received", func() bool { return untouched() == s.unacked() })
}

// Without a reader of their output, the commands fail for every message.
func TestReceiveCommandEndsWithTheReaderOfItsCommands(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead","message_max_deliveries":1`)
	s.publish("t", make([]int, 20)...)
	r, output := startReceive(t, s.url, "-exec", "cat", "t")
	if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	output.Close()
	r.awaitSIGPIPE()
	eventually(t, "the other messages have no delivery attempt", func() bool {
		return s.unacked() == s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0")
	})
	checkDiff(t, "dead", 0, len(s.receive("dead", "")))
}
