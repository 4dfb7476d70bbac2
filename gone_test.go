//go:build unix

package main

import (
	"context"
	"net"
	"net/http"
	"testing"
)

func TestGoneAsksTheSocket(t *testing.T) {
	t.Parallel()
	s := &testServer{t: t}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The context of this request never ends: net/http has noticed nothing.
	r, err := http.NewRequestWithContext(withConn(context.Background(), conn), "GET", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if gone(r) {
		t.Error("a client that waits is gone")
	}
	client.Write([]byte("G")) // the next request
	if gone(r) {
		t.Error("a client that has sent its next request is gone")
	}
	conn.Read(make([]byte, 1))
	client.Close()
	s.eventually("it is gone", func() bool { return gone(r) })
}
