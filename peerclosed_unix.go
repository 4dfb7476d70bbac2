//go:build unix

package main

import (
	"net/http"
	"syscall"
	"time"
)

// peerClosed reports whether the client of a request has shut down its side of the
// connection, and whether the connection has failed. A client that has closed the
// connection looks like one that has shut down its side. net/http notices either by a read
// in a goroutine, which may not have run yet. peerClosed peeks at the socket instead.
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

// isReset waits for a reset of the connection. The client's system replies to data with a
// reset if the client has closed the connection. If no reset arrives in time, the client is
// still reading, and isReset returns false.
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
