//go:build unix

package main

import (
	"net/http"
	"syscall"
	"time"
)

// peerClosed reports whether the client of a request has shut down its side of the
// connection, which clients also do that have closed all of it, and whether the
// connection has failed. net/http learns of that from a read in a goroutine of its
// own, which may not have run yet: this asks the socket what would be read next.
func peerClosed(r *http.Request) (ended, failed bool) {
	ended = r.Context().Err() != nil
	c, ok := r.Context().Value(connKey{}).(syscall.Conn)
	if !ok {
		return ended, false
	}
	if c, ok := c.(*conn); ok && c.ctx.Err() != nil {
		return ended, true
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return ended, true
	}
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ended = ended || err == nil && n == 0
		failed = err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	return ended, failed || err != nil
}

// isReset waits for the client to reset the connection, which its system does with
// what it is sent after the connection was closed there. It reports false if that
// does not come in time: then the client still reads.
func (c *conn) isReset(within time.Duration) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	c.TCPConn.SetReadDeadline(time.Now().Add(within))
	defer c.TCPConn.SetReadDeadline(time.Time{})
	reset := false
	raw.Read(func(fd uintptr) bool { // until the deadline
		code, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		reset = err != nil || code != 0
		return reset
	})
	return reset || c.ctx.Err() != nil
}
