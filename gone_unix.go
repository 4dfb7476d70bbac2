//go:build unix

package main

import (
	"context"
	"net"
	"net/http"
	"syscall"
)

type connKey struct{}

// withConn lets gone find the connection of a request; see http.Server.ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// gone reports whether the client of a request has hung up. net/http learns of
// that from a read in a goroutine of its own, which may not have run yet: this
// asks the socket whether what would be read next is the end.
func gone(r *http.Request) bool {
	if r.Context().Err() != nil {
		return true
	}
	c, ok := r.Context().Value(connKey{}).(syscall.Conn)
	if !ok {
		return false // TLS
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ended = err == nil && n == 0 || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	return ended || err != nil
}
