//go:build unix

package shell

import (
	"context"
	"os/exec"
	"syscall"
)

// shellCommand returns a command in a process group of its own, so that signals of
// the terminal do not reach it. When ctx ends the group gets SIGTERM.
func shellCommand(ctx context.Context, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return cmd
}

// shellFailures are the exit statuses of a shell whose command is not executable or
// not found. See POSIX, Shell Command Language, 2.8.2.
var shellFailures = []int{126, 127}

// killGroup kills the remaining processes of a command.
func killGroup(cmd *exec.Cmd) {
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}
