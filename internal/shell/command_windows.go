package shell

import (
	"context"
	"os/exec"
	"syscall"
)

// shellCommand returns a command that Ctrl-C in the terminal does not reach. When ctx
// ends it is killed. The quotes are cmd's, not those of a list of arguments.
func shellCommand(ctx context.Context, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "cmd")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		CmdLine:       `cmd /s /c "` + command + `"`,
		CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP,
	}
	return cmd
}

// shellFailures is empty: cmd has no exit statuses that commands do not have.
var shellFailures []int

// killGroup does nothing: the command was killed, and its processes are not known.
func killGroup(*exec.Cmd) {}
