//go:build unix

package main

import (
	"context"
	"net"
	"net/http"
	"testing"
)

func TestHangUpIsAskedOfTheSocket(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	// The context of this request never ends, as if net/http had not noticed the
	// disconnection.
	r, err := http.NewRequestWithContext(withConn(context.Background(), accepted), "GET", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	is := func(wantEnded, wantFailed bool) bool {
		ended, failed := peerClosed(r)
		return ended == wantEnded && failed == wantFailed
	}
	if !is(false, false) {
		t.Error("a waiting client counts as disconnected")
	}
	client.Write([]byte("G")) // the next request
	if !is(false, false) {
		t.Error("a client that has sent its next request counts as disconnected")
	}
	accepted.Read(make([]byte, 1))
	client.(*net.TCPConn).CloseWrite()
	eventually(t, "the client has shut down its side", func() bool { return is(true, false) })
	client.(*net.TCPConn).SetLinger(0) // so that Close resets the connection
	client.Close()
	c := &conn{TCPConn: accepted.(*net.TCPConn), ctx: context.Background()}
	if !c.isReset(testTimeout) {
		t.Error("a reset connection does not count as reset")
	}
}
