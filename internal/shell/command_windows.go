package shell

import (
	"context"
	"os/exec"
	"syscall"
)

// shellCommand returns a command that Ctrl-C in the terminal leaves alone, and
// that is ended with ctx. Quotes are for cmd to read, and not those of a list of
// arguments.
func shellCommand(ctx context.Context, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "cmd")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		CmdLine:       `cmd /s /c "` + command + `"`,
		CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP,
	}
	return cmd
}

// shellFailures are none: cmd exits with what commands exit with, too.
var shellFailures []int

// killGroup does nothing: the command was killed itself, and what it started is not known.
func killGroup(*exec.Cmd) {}
