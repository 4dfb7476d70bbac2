// Package shell has the commands that use a running server from a shell: they publish and
// receive, show and change topics, queues and messages, and ask whether the server is alive.
package shell

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// ErrOutputClosed is returned by a command whose output has no reader any more. It is
// not printed, because SIGPIPE ends other programs silently.
var ErrOutputClosed = errors.New("the output was closed")

// ignoreBrokenPipes makes a write to a closed pipe return EPIPE instead of ending the
// process by SIGPIPE, until the returned function is called.
func ignoreBrokenPipes() func() {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}
