package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// startInSession starts a server without files to reload, in a session of its own.
func startInSession(t *testing.T, session *syscall.SysProcAttr, stdin *os.File) *running {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-listen", "127.0.0.1:0", "-database-url", newTestDatabase(t, "queued"))
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1")
	cmd.SysProcAttr = session
	if stdin != nil {
		cmd.Stdin = stdin
	}
	r := startCommand(t, cmd)
	r.awaitReady()
	return r
}

func TestClosedTerminalDrainsAServerWithoutFiles(t *testing.T) {
	t.Parallel()
	controller, terminal := openTerminal(t)
	r := startInSession(t, &syscall.SysProcAttr{Setsid: true, Setctty: true}, terminal)
	controller.Close() // the kernel sends a SIGHUP
	if err := r.await(); err != nil {
		t.Errorf("after a hang-up the server ended with %v:\n%s", err, r.output)
	}
}

// As "systemctl reload" does.
func TestReloadWithoutFilesAndTerminalChangesNothing(t *testing.T) {
	t.Parallel()
	r := startInSession(t, &syscall.SysProcAttr{Setsid: true}, nil)
	r.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the signal is logged", func() bool { return strings.Contains(r.output.String(), "nothing to reload") })
	r.client().must(200, "GET", "/topics", "")
}
