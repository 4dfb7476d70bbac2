package main

import (
	lists "container/list" // list is an answer
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
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// admission is what the server has for its clients: connections, and bytes in hand,
// which are those of headers, bodies and answers. Both are bounded. Where one of
// them runs short, those make way that the server has waited for the longest: it
// hardly ever waits for a client that does its part.
//
// The mutex guards all fields below it, and those of its connections.
type admission struct {
	log            *slog.Logger
	maxConnections int
	maxInHand      int64

	mu        sync.Mutex
	open      int        // connections
	idle      lists.List // of *conn: between requests, or in a header, the longest first
	moving    lists.List // of *conn: in a header that is large, a body or an answer, by their last progress
	inHand    int64
	evictions int  // connections that made way
	full      bool // and it was said
}

// Bounds of a room.
const (
	// spareConnections are open beyond the bound while there is nobody to make way:
	// for health checks, and to tell others that there is no room.
	spareConnections = 64

	// ownFiles is how many files and connections the server has for itself.
	ownFiles = 64

	// Requests and answers up to smallSize find room in the last eighth of what may
	// be in hand, where larger ones do not.
	smallSize = 64 << 10

	// Once half of what may be in hand is, connections make way that have not moved
	// progressSize in stallTime.
	stallTime    = time.Second
	progressSize = 64 << 10

	// A header takes up to headerCost times its size, if it has many short lines;
	// lineCost is for a line. Headers up to plainHeader are not counted.
	headerCost  = 32
	lineCost    = 128
	plainHeader = 512

	handshakeSize = 4 << 10 // bytes that clients send to begin with TLS
)

// Memory of the process: see memoryLimit.
const (
	baseMemory       = 256 << 20
	connectionMemory = 32 << 10
)

// memoryLimit returns how much memory the process should do with: what it has
// for itself, and what it decodes, claims and stores in the bounds of the engine
// and of its pools; what its connections take when they wait, long polls most of
// all (22 KiB); and the bytes in hand.
func memoryLimit(maxConnections int, maxInHand int64) int64 {
	return baseMemory + int64(maxConnections)*connectionMemory + maxInHand
}

func newAdmission(log *slog.Logger, maxConnections int, maxInHand int64) *admission {
	return &admission{log: log, maxConnections: maxConnections, maxInHand: maxInHand}
}

// phase is what the server does with a connection.
type phase int

const (
	waiting phase = iota // for a request, or the rest of its header
	working
	transferring // a body or an answer
)

// conn is a connection that takes some of the room.
type conn struct {
	*net.TCPConn
	admission *admission
	beyond    bool        // the bound, when it was accepted
	wanted    atomic.Bool // a body, none of which was waited for yet

	// ctx ends when the connection has failed or is closed. A client that has only
	// shut down its side of it still waits for its response.
	ctx  context.Context
	fail context.CancelFunc

	phase  atomic.Int32 // of type phase; written under the mutex
	header atomic.Int64 // bytes of the header so far, and of what came with its end

	line   *lists.List // of the room, nil if it is in none
	place  *lists.Element
	since  time.Time // it is at its place
	moved  int       // bytes since
	held   int64     // bytes in hand
	closed bool
}

// listener lets connections into a room.
type listener struct {
	net.Listener // of TCP
	admission    *admission
	tls          bool // what comes first is no header
}

// Accept returns the next connection that there is room for. net/http goes on
// after an error that passes, and not at once: files that are used up are one.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			l.admission.evictOne()
		}
		if err != nil {
			return nil, err
		}
		if in := l.admission.enter(c.(*net.TCPConn)); in != nil {
			if l.tls {
				in.header.Store(-handshakeSize)
			}
			return in, nil
		}
		c.Close()
	}
}

// enter returns nil if there is no room for a connection, not even a spare one.
func (r *admission) enter(t *net.TCPConn) *conn {
	r.mu.Lock()
	if r.open >= r.maxConnections {
		r.evictIdlest()
	} else if r.open < r.maxConnections/2 {
		r.full = false
	}
	c := &conn{TCPConn: t, admission: r, beyond: r.open >= r.maxConnections}
	open, said := r.open, r.full
	r.full = r.full || c.beyond
	if open < r.maxConnections+spareConnections {
		c.ctx, c.fail = context.WithCancel(context.Background())
		r.open++
		c.lineUp(&r.idle)
	} else {
		c = nil
	}
	r.mu.Unlock()
	if open >= r.maxConnections && !said {
		r.log.Warn("connection limit reached, see -max-connections", "connections", open)
	}
	return c
}

// evictOne closes a connection that the server waits for, if there is one.
func (r *admission) evictOne() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.evictIdlest()
}

func (r *admission) evictIdlest() {
	for _, line := range []*lists.List{&r.idle, &r.moving} {
		if first := line.Front(); first != nil {
			r.evict(first.Value.(*conn))
			return
		}
	}
}

// evictStalled makes room for n bytes, if it can.
func (r *admission) evictStalled(n int64) {
	for r.inHand+n > r.maxInHand/2 {
		first := r.moving.Front()
		if first == nil || time.Since(first.Value.(*conn).since) < stallTime {
			return
		}
		r.evict(first.Value.(*conn))
	}
}

func (r *admission) evict(c *conn) {
	r.evictions++
	c.leave()
	c.TCPConn.Close() // which ends the wait
}

// lineUp puts the connection at the end of a line, of none if it is nil.
func (c *conn) lineUp(line *lists.List) {
	if c.line != nil {
		c.line.Remove(c.place)
	}
	c.line, c.moved = line, 0
	if line != nil {
		c.place, c.since = line.PushBack(c), time.Now()
	}
}

// leave frees the room that the connection takes.
func (c *conn) leave() {
	if !c.closed {
		c.closed = true
		c.admission.open--
		c.lineUp(nil)
		c.release()
	}
}

func (c *conn) release() {
	c.admission.inHand -= c.held
	c.held = 0
}

// begin is the start of work on a request. It reports whether there is room for
// its header.
func (c *conn) begin(header http.Header) bool {
	size := 0
	for name, values := range header {
		for _, v := range values {
			size += len(name) + len(v) + lineCost
		}
	}
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	c.release() // it is known now what the header takes
	roomy := size <= plainHeader || c.takeLocked(int64(size), false)
	c.enter(working)
	return roomy
}

// move is where the server begins to wait for the client, or to work again.
func (c *conn) move(p phase) {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	c.enter(p)
}

// beginBody is where a handler wants the body: from the first read that has to
// wait for it on, the server waits for the client.
func (c *conn) beginBody() { c.wanted.Store(true) }

func (c *conn) endBody() {
	if !c.wanted.Swap(false) { // there was such a read
		c.move(working)
	}
}

// end is the end of a request.
func (c *conn) end() {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	c.release()
	c.header.Store(0)
	c.enter(waiting)
}

func (c *conn) enter(p phase) {
	c.phase.Store(int32(p))
	if c.closed || c.TCPConn == nil {
		return
	}
	switch p {
	case waiting:
		c.lineUp(&c.admission.idle)
	case working:
		c.lineUp(nil)
	case transferring:
		c.lineUp(&c.admission.moving)
	}
}

// take counts bytes that will be in hand until the end of the request. It
// reports whether there is room for them, and else counts nothing.
func (c *conn) take(n int64) bool {
	r := c.admission
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.takeLocked(n, c.held+n <= smallSize)
}

// takeLocked is take, with or without what is kept for small requests and answers.
func (c *conn) takeLocked(n int64, small bool) bool {
	r := c.admission
	r.evictStalled(n)
	most := r.maxInHand
	if !small {
		most -= most / 8
	}
	if c.closed || r.inHand+n > most {
		return false
	}
	c.hold(n)
	return true
}

// add counts bytes that are there whether or not there is room for them.
func (c *conn) add(n int64) {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	if n > 0 && !c.closed {
		c.hold(n)
	}
}

func (c *conn) hold(n int64) {
	c.admission.inHand += n
	c.held += n
}

func (c *conn) Read(b []byte) (int, error) {
	if c.wanted.Load() {
		c.admission.mu.Lock()
		if c.wanted.Swap(false) { // else the body has been read, and this looks for what comes next
			c.enter(transferring)
		}
		c.admission.mu.Unlock()
	}
	if !c.mayRead() {
		c.Close()
		return 0, io.EOF
	}
	n, err := c.TCPConn.Read(b)
	if n > 0 {
		c.arrived(n)
	}
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail()
	}
	return n, err
}

// mayRead reports whether there is room for what has come of a header, if it
// was not all.
func (c *conn) mayRead() bool {
	header := c.header.Load()
	if header <= plainHeader || phase(c.phase.Load()) != waiting {
		return true
	}
	r := c.admission
	r.mu.Lock()
	defer r.mu.Unlock()
	more := (header-plainHeader)*headerCost - c.held
	if phase(c.phase.Load()) != waiting || more <= 0 || c.closed {
		return true
	}
	if c.line == &r.idle {
		c.lineUp(&r.moving)
	}
	return c.takeLocked(more, false)
}

// arrived counts bytes that the client has sent.
func (c *conn) arrived(n int) {
	if phase(c.phase.Load()) == waiting {
		c.header.Add(int64(n))
	}
	c.progress(n)
}

// progress counts bytes that the client has sent of a body, or taken of an answer.
func (c *conn) progress(n int) {
	if phase(c.phase.Load()) != transferring {
		return
	}
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	if c.moved += n; c.moved >= progressSize && c.line != nil {
		c.lineUp(c.line)
	}
}

// Write writes in pieces, to see how it goes.
func (c *conn) Write(b []byte) (written int, err error) {
	for {
		piece := b[written:min(written+progressSize, len(b))]
		n, err := c.TCPConn.Write(piece)
		written += n
		c.progress(n)
		if err != nil || written == len(b) {
			return written, err
		}
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

// connOf returns the connection of a request. One that did not come through the
// listener of the room takes no connection of it, and makes no way.
func (r *admission) connOf(hr *http.Request) *conn {
	if c, ok := hr.Context().Value(connKey{}).(*conn); ok {
		return c
	}
	return &conn{admission: r, ctx: hr.Context()}
}

var (
	connectionsDesc = prometheus.NewDesc("queued_connections", "Open client connections.", nil, nil)
	evictionsDesc   = prometheus.NewDesc("queued_connections_evicted_total", "Connections closed to stay within the limits.", nil, nil)
	inHandDesc      = prometheus.NewDesc("queued_buffered_bytes", "Bytes of requests and responses in memory.", nil, nil)
)

func (r *admission) Describe(descs chan<- *prometheus.Desc) {
	descs <- connectionsDesc
	descs <- evictionsDesc
	descs <- inHandDesc
}

func (r *admission) Collect(all chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.GaugeValue, float64(r.open))
	all <- prometheus.MustNewConstMetric(evictionsDesc, prometheus.CounterValue, float64(r.evictions))
	all <- prometheus.MustNewConstMetric(inHandDesc, prometheus.GaugeValue, float64(r.inHand))
}
