package shell

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// maxError is the maximum length of the error of a nack, in bytes. The server cuts off
// the rest.
const maxError = 2048

// leftoverWait is how long close waits for the end of standard error. Processes that a
// command leaves running may keep it open.
const leftoverWait = 100 * time.Millisecond

// capture copies the standard error of a command and keeps its end.
type capture struct {
	write *os.File      // given to the command; nil if nothing is captured
	ended chan struct{} // closed at the end of standard error

	mu   sync.Mutex
	tail []byte // the last bytes, at most twice maxError
}

// captureErrors sets the standard error of a command. The command gets a pipe, and not a
// writer of os/exec: cmd.Wait would wait for the processes that the command leaves running.
func (w *worker) captureErrors(cmd *exec.Cmd) *capture {
	c := &capture{ended: make(chan struct{})}
	read, write, err := os.Pipe()
	if err != nil { // too many open files
		cmd.Stderr = w.stderr
		return c
	}
	c.write, cmd.Stderr = write, write
	go func() { // ends when the command and the processes that it leaves running have ended
		defer close(c.ended)
		defer read.Close()
		io.Copy(io.MultiWriter(c, w.stderr), read)
		io.Copy(c, read) // if standard error of this process is closed
	}()
	return c
}

// Write keeps the end of the text.
func (c *capture) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, b...)
	if extra := len(c.tail) - maxError; extra > maxError {
		c.tail = append(c.tail[:0], c.tail[extra:]...)
	}
	return len(b), nil
}

// close waits until the text of the command, which has ended, was copied.
func (c *capture) close() {
	if c.write == nil {
		return
	}
	c.write.Close()
	select {
	case <-c.ended:
	case <-time.After(leftoverWait):
	}
}

// describe returns how a command failed, and the end of its standard error, as the error
// of a nack.
func (c *capture) describe(failure error) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	status := failure.Error()
	tail := strings.TrimSpace(strings.ToValidUTF8(string(c.tail), "\uFFFD"))
	if tail == "" {
		return status
	}
	status += ": "
	if extra := len(status) + len(tail) - maxError; extra > 0 {
		for extra < len(tail) && !utf8.RuneStart(tail[extra]) {
			extra++
		}
		tail = tail[min(extra, len(tail)):]
	}
	return status + tail
}
