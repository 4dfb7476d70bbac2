package main

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
)

// wire is a port that forwards to PostgreSQL and sees every message in both directions
// (PostgreSQL manual, section "Message Formats").
type wire struct {
	address string

	// see is called with each message, one at a time, and reports whether to forward it.
	// conn is the number of the connection.
	see func(conn int, fromClient bool, kind byte, body []byte) bool

	mu    sync.Mutex
	conns int
}

func newWire(t testing.TB, network, address, target string, see func(conn int, fromClient bool, kind byte, body []byte) bool) *wire {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &wire{address: l.Addr().String(), see: see}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", target)
			if err != nil {
				in.Close()
				continue
			}
			w.mu.Lock()
			w.conns++
			conn := w.conns
			w.mu.Unlock()
			go w.pass(conn, true, in, out)
			go w.pass(conn, false, out, in)
		}
	}()
	return w
}

// pass forwards messages until one of the two connections ends.
func (w *wire) pass(conn int, fromClient bool, from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	in, out := bufio.NewReader(from), bufio.NewWriter(to)
	for first := fromClient; ; first = false {
		var header [5]byte
		part := header[:]
		if first { // the first message of a client has no kind
			part = header[1:]
		}
		if _, err := io.ReadFull(in, part); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		w.mu.Lock()
		keep := w.see(conn, fromClient, header[0], body)
		w.mu.Unlock()
		if keep {
			out.Write(part)
			out.Write(body)
		}
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}

// fields splits n zero-terminated strings off a message.
func fields(body []byte, n int) (all []string, rest []byte) {
	for range n {
		for i, c := range body {
			if c == 0 {
				all, body = append(all, string(body[:i])), body[i+1:]
				break
			}
		}
	}
	return all, body
}

// values splits a list of values, each of which follows its length. NULL becomes empty.
func values(list []byte) (all []string) {
	n := int(binary.BigEndian.Uint16(list))
	list = list[2:]
	for range n {
		size := int(int32(binary.BigEndian.Uint32(list)))
		list = list[4:]
		if size < 0 {
			all = append(all, "")
			continue
		}
		all, list = append(all, string(list[:size])), list[size:]
	}
	return all
}
