//go:build unix

package shell

import (
	"context"
	"os/exec"
	"syscall"
)

// shellCommand returns a command in a process group of its own, for the signals
// of a terminal to leave it alone. When ctx ends the group gets SIGTERM.
func shellCommand(ctx context.Context, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return cmd
}

// shellFailures are exit statuses of a shell that could not run its command: what it
// found cannot be executed, or it found nothing. See POSIX, Shell Command Language, 2.8.2.
var shellFailures = []int{126, 127}

// killGroup ends what is left of a command that was started.
func killGroup(cmd *exec.Cmd) {
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}
