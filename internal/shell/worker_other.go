//go:build !linux

package shell

import (
	"io"
	"os/exec"
	"time"
)

// children runs commands.
type children struct{}

func (*children) run(cmd *exec.Cmd) error { return cmd.Run() }

// inherit does nothing: this process inherits no others.
func (*children) inherit() (stop func()) { return func() {} }

// pipe is the writing end of a pipe, of which nothing is known here.
type pipe struct{}

func asPipe(io.Writer) *pipe { return nil }

func (*pipe) closed(time.Duration) bool { return false }

func (*pipe) unread() bool { return false }
