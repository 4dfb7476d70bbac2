//go:build unix

package main

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// A connection that is lost while it is set up counts as an outage of the database.
func TestConnectionLostDuringItsSetup(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }) // so that no connection waits to be accepted
	if err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if full = err != nil; !full {
			defer c.Close()
		}
	}
	d := mustDatabase(t, "dbname=q")
	failed := make(chan error)
	go func() {
		_, err := dialer{database: d, timeout: testTimeout}.DialContext(context.Background(), "tcp", l.Addr().String())
		failed <- err
	}()
	eventually(t, "it connects", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.conns) == 1
	})
	d.closeConnections(false)
	if err := <-failed; !errors.Is(asUnavailable(err), errUnavailable) {
		t.Errorf("a connection that is lost during its setup: %v, want errUnavailable", err)
	}
}
