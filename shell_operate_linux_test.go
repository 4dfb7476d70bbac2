package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// openTerminal returns the two ends of a pseudo-terminal.
func openTerminal(t *testing.T) (controller, terminal *os.File) {
	t.Helper()
	controller, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { controller.Close() })
	var number, locked int32
	for request, value := range map[uintptr]*int32{syscall.TIOCSPTLCK: &locked, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, controller.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return controller, terminal
}

func TestCommandsAskOnATerminal(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, v := range []struct {
		typed  string
		status int
		output string // after the question
		left   int
	}{
		{"\n", 1, "queued: not confirmed; nothing was changed\n", 1},
		{"n\n", 1, "queued: not confirmed; nothing was changed\n", 1},
		{"\x04", 2, "\nqueued: The input", 1}, // the end of the input
		{"", 130, "\n", 1},                    // interrupted
		{"y\n", 0, "purged queue q\n", 0},
		{"YES\n", 0, "purged queue q\n", 0},
	} {
		s.exec("DELETE FROM queued.messages")
		s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
		controller, terminal := openTerminal(t)
		cmd := exec.Command(os.Args[0], "purge", "-url", s.url, "q")
		cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1")
		output := newSyncBuffer()
		cmd.Stdin, cmd.Stdout = terminal, output
		r := startCommand(t, cmd)
		question := "Delete 1 message of queue q at " + s.url + "? [y/N] "
		eventually(t, "it asks", func() bool { return r.output.String() == question })
		if v.typed == "" {
			cmd.Process.Signal(os.Interrupt)
		} else if _, err := controller.WriteString(v.typed); err != nil {
			t.Fatal(err)
		}
		<-r.ended
		checkDiff(t, fmt.Sprintf("exit status after %q", v.typed), v.status, cmd.ProcessState.ExitCode())
		printed := strings.TrimPrefix(r.output.String(), question) + output.String()
		if !strings.HasPrefix(printed, v.output) || v.status != 2 && printed != v.output {
			t.Errorf("after %q it prints %q, want %q", v.typed, printed, v.output)
		}
		checkDiff(t, fmt.Sprintf("messages after %q", v.typed), v.left, s.count("SELECT count(*) FROM queued.live_messages"))
	}
}
