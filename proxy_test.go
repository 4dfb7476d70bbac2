package main

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy is a TCP port that forwards to an address. A test can break its connections.
type proxy struct {
	address string
	to      func() (net.Conn, error)

	mu      sync.Mutex
	delay   time.Duration // of bytes from the address
	refuses bool
	closed  chan struct{}
	frozen  chan struct{} // closed by thaw; nil if bytes pass
	clients map[*net.TCPConn]bool
	came    int // number of connections so far
	ended   int // number of them that their client has ended or shut down
}

func newProxy(t testing.TB, network, address string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{
		address: l.Addr().String(),
		to:      func() (net.Conn, error) { return net.Dial(network, address) },
		clients: make(map[*net.TCPConn]bool),
		closed:  make(chan struct{}),
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(in.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(p.closed)
		p.refuse(true)
		p.reset()
		p.thaw()
		serving.Wait()
	})
	return p
}

func (p *proxy) serve(in *net.TCPConn) {
	defer in.Close()
	p.mu.Lock()
	refuses := p.refuses
	p.came++
	if !refuses {
		p.clients[in] = true
	}
	p.mu.Unlock()
	if refuses {
		in.SetLinger(0)
		return
	}
	defer func() {
		p.mu.Lock()
		delete(p.clients, in)
		p.mu.Unlock()
	}()
	out, err := p.to()
	if err != nil {
		return
	}
	defer out.Close()
	var copying sync.WaitGroup
	copying.Go(func() {
		p.copy(out, in, false)
		out.Close()
	})
	p.copy(in, out, true)
	in.Close()
	copying.Wait()
}

func (p *proxy) copy(to io.Writer, from io.Reader, back bool) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		if err != nil && !back {
			p.ended++
		}
		frozen, delay := p.frozen, p.delay
		p.mu.Unlock()
		if back && delay > 0 {
			select {
			case <-time.After(delay): // which is what the caller of slow wants
			case <-p.closed:
			}
		}
		if frozen != nil {
			<-frozen
		}
		if _, failed := to.Write(b[:n]); failed != nil || err != nil {
			return
		}
	}
}

// freeze stops all bytes until thaw, and also the end of a connection.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen == nil {
		p.frozen = make(chan struct{})
	}
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// open returns the number of open connections.
func (p *proxy) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients)
}

// accepted returns the number of connections so far.
func (p *proxy) accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.came
}

// endedByClient returns the number of connections that their client has ended or shut down.
func (p *proxy) endedByClient() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// slow delays all bytes from the address.
func (p *proxy) slow(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// refuse sets whether new connections are reset.
func (p *proxy) refuse(refuses bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = refuses
}

// reset resets the connections of all clients.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.clients {
		c.SetLinger(0)
		c.Close()
	}
}
