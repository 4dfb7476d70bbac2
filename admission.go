package main

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// admission limits the number of connections, and the bytes of headers, bodies and
// responses that are buffered. At a limit it evicts the connections whose clients the
// server has waited for the longest. The server hardly ever waits for a well-behaved
// client.
//
// The mutex protects the fields below it, here and in conn.
type admission struct {
	log            *slog.Logger
	maxConnections int
	maxBuffered    int64

	mu       sync.Mutex
	open     int       // connections
	idle     list.List // of *conn: between requests, or in a header, the longest wait first
	moving   list.List // of *conn: in a large header, a body or a response, by their last progress
	buffered int64     // bytes
	evicted  int       // connections since the start
	full     bool      // the limit of connections was reached, and logged
}

// Bounds of admission.
const (
	// extraConnections is the number of connections that are accepted above the limit
	// while none can be evicted. They are for health checks and scrapes, and for refusing
	// other requests with 503.
	extraConnections = 64

	// ownFiles is the number of files and connections of the server itself.
	ownFiles = 64

	// The last eighth of the buffered bytes is for bodies and responses up to smallSize,
	// so that a few clients with large ones leave memory for all others.
	smallSize = 64 << 10

	// When half of the bytes are taken, connections are evicted that have transferred less
	// than progressSize in stallTime.
	stallTime    = time.Second
	progressSize = 64 << 10

	// Headers up to plainHeader do not count. In larger ones, each line counts lineCost
	// besides its text. A header of short lines can count headerCost times its size.
	plainHeader = 512
	lineCost    = 128
	headerCost  = 32

	handshakeSize = 4 << 10 // bytes that a TLS client sends before its first header
)

func newAdmission(log *slog.Logger, maxConnections int, maxBuffered int64) *admission {
	return &admission{log: log, maxConnections: maxConnections, maxBuffered: maxBuffered}
}

// conn is a connection of a client.
type conn struct {
	*net.TCPConn // nil if it was not accepted by the listener: then only its bytes count
	admission    *admission
	extra        bool // accepted above the limit

	// ctx ends when the connection has failed or is closed. It does not end when the client
	// only shuts down its side, because the client may still wait for the response.
	ctx  context.Context
	fail context.CancelFunc

	phase  atomic.Int32 // of type phase; written under the mutex
	header atomic.Int64 // number of bytes read while the connection was waiting

	line   *list.List // idle, moving, or nil
	place  *list.Element
	since  time.Time // when it was put at its place
	moved  int       // number of bytes since then
	held   int64     // number of buffered bytes that it has taken
	closed bool
}

// phase is the state of a connection.
type phase int32

const (
	phaseWaiting phase = iota // for a request, or the rest of its header
	phaseWorking
	phaseTransferring // a body or a response
)

// listener admits connections.
type listener struct {
	net.Listener // of TCP
	admission    *admission
	tls          bool
}

// Accept returns the next admitted connection. It closes connections that are not admitted.
func (l listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.admission.admit(accepted.(*net.TCPConn)); c != nil {
			if l.tls {
				c.header.Store(-handshakeSize)
			}
			return c, nil
		}
		accepted.Close()
	}
}

// admit returns nil if all connections are busy, including the extra ones.
func (a *admission) admit(t *net.TCPConn) *conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open >= a.maxConnections && !a.evictFirst(&a.idle) {
		a.evictFirst(&a.moving)
	}
	c := &conn{TCPConn: t, admission: a, extra: a.open >= a.maxConnections}
	if c.extra && !a.full {
		a.log.Warn("connection limit reached, see -max-connections", "connections", a.open)
	}
	a.full = c.extra || a.full && a.open >= a.maxConnections/2
	if a.open >= a.maxConnections+extraConnections {
		return nil
	}
	c.ctx, c.fail = context.WithCancel(context.Background())
	a.open++
	c.lineUp(&a.idle)
	return c
}

// evictFirst closes the first connection in a line, if there is one.
func (a *admission) evictFirst(line *list.List) bool {
	first := line.Front()
	if first == nil {
		return false
	}
	c := first.Value.(*conn)
	a.evicted++
	c.leave()
	c.TCPConn.Close() // ends the wait for the client
	return true
}

// leave frees the place and the buffered bytes of the connection.
func (c *conn) leave() {
	if !c.closed {
		c.closed = true
		c.admission.open--
		c.lineUp(nil)
		c.hold(-c.held)
	}
}

// lineUp moves the connection to the end of a line, or out of all lines for nil.
func (c *conn) lineUp(line *list.List) {
	if c.line != nil {
		c.line.Remove(c.place)
	}
	c.line, c.moved = line, 0
	if line != nil {
		c.place, c.since = line.PushBack(c), time.Now()
	}
}

func (c *conn) hold(n int64) {
	c.admission.buffered += n
	c.held += n
}

// begin is called at the start of a request. It reports whether the header is admitted.
func (c *conn) begin(header http.Header) bool {
	size := int64(0)
	for name, values := range header {
		for _, v := range values {
			size += int64(len(name) + len(v) + lineCost)
		}
	}
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	c.hold(-c.held) // the estimate of takeHeader
	c.enter(phaseWorking)
	return size <= plainHeader || c.takeLocked(size, false)
}

// move is called when the server begins to wait for the client, or to work again. At the
// end of a request it also frees the buffered bytes of the request.
func (c *conn) move(p phase) {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	if p == phaseWaiting {
		c.hold(-c.held)
		c.header.Store(0)
	}
	c.enter(p)
}

func (c *conn) enter(p phase) {
	c.phase.Store(int32(p))
	switch {
	case c.closed || c.TCPConn == nil:
	case p == phaseWaiting:
		c.lineUp(&c.admission.idle)
	case p == phaseWorking:
		c.lineUp(nil)
	case p == phaseTransferring:
		c.lineUp(&c.admission.moving)
	}
}

// take takes n of the buffered bytes until the end of the request. It returns false, and
// takes none, if there are not enough left. If must, it takes them in any case.
func (c *conn) take(n int64, must bool) bool {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	if c.takeLocked(n, c.held+n <= smallSize) {
		return true
	}
	if must {
		c.hold(n)
	}
	return must
}

func (c *conn) takeLocked(n int64, small bool) bool {
	a := c.admission
	for a.buffered+n > a.maxBuffered/2 {
		first := a.moving.Front()
		if first == nil || time.Since(first.Value.(*conn).since) < stallTime {
			break
		}
		a.evictFirst(&a.moving)
	}
	limit := a.maxBuffered
	if !small {
		limit -= limit / 8
	}
	if c.closed || a.buffered+n > limit {
		return false
	}
	c.hold(n)
	return true
}

// takeHeader takes bytes for the part of a header that has arrived. net/http limits the
// size of a header, but many short lines become megabytes, and a client may never end the
// header.
func (c *conn) takeHeader() bool {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	more := (c.header.Load()-plainHeader)*headerCost - c.held
	if phase(c.phase.Load()) != phaseWaiting || more <= 0 || c.closed {
		return true
	}
	if c.line == &c.admission.idle {
		c.lineUp(&c.admission.moving)
	}
	return c.takeLocked(more, false)
}

func (c *conn) Read(b []byte) (int, error) {
	if c.header.Load() > plainHeader && !c.takeHeader() {
		c.Close()
		return 0, io.EOF
	}
	n, err := c.TCPConn.Read(b)
	if phase(c.phase.Load()) == phaseWaiting {
		c.header.Add(int64(n))
	}
	c.progress(n)
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail()
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.progress(n)
	return n, err
}

// progress counts bytes of a body that the client has sent, or of a response that the
// client has read.
func (c *conn) progress(n int) {
	if phase(c.phase.Load()) != phaseTransferring {
		return
	}
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	if c.moved += n; c.moved >= progressSize && c.line != nil {
		c.lineUp(c.line)
	}
}

func (c *conn) Close() error {
	c.fail()
	c.admission.mu.Lock()
	c.leave()
	c.admission.mu.Unlock()
	return c.TCPConn.Close()
}

type connKey struct{}

// withConn lets requests find their connection; see http.Server.ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// connOf returns the connection of a request.
func (a *admission) connOf(hr *http.Request) *conn {
	if c, ok := hr.Context().Value(connKey{}).(*conn); ok {
		return c
	}
	return &conn{admission: a, ctx: hr.Context()}
}
