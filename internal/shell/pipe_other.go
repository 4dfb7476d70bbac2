//go:build !linux

package shell

import (
	"io"
	"time"
)

// pipe is the writing end of a pipe. Here no output is known to be one.
type pipe struct{}

func asPipe(io.Writer) *pipe { return nil }

func (*pipe) closed(time.Duration) bool { return false }

func (*pipe) unread() bool { return false }
