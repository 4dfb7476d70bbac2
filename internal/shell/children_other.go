//go:build !linux

package shell

import "os/exec"

// children runs commands.
type children struct{}

func (*children) run(cmd *exec.Cmd) error { return cmd.Run() }

// inherit does nothing: this process inherits no processes.
func (*children) inherit() (stop func()) { return func() {} }
