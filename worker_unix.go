//go:build unix

package main

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

// killGroup ends what is left of a command that was started.
func killGroup(cmd *exec.Cmd) {
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}
