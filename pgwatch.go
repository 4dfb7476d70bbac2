package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// How soon PostgreSQL must respond. A statement may take longer than silenceTimeout;
// then a ping on another connection finds out whether PostgreSQL is there. A frozen
// PostgreSQL cannot be told from a slow one otherwise: its kernel still acknowledges
// packets, so neither keepalives nor TCP's user timeout notice it. The times are in
// ticks and not measured by the clock, so that a pause of the whole machine does not
// look like a frozen PostgreSQL.
const (
	tick           = 50 * time.Millisecond
	silenceTimeout = 4   // ticks without a response that cause a ping
	pingTimeout    = 10  // ticks for a response to the ping
	connectTicks   = 100 // ticks after which the ping is ended, even if it is still connecting
	pingRetry      = 10  // ticks between two pings of a database that does not respond
	pingIdle       = 200 // ticks between two pings without a cause, which keep the connection
)

// errUnresponsive is the error of connections that were closed or refused because
// PostgreSQL does not respond.
var errUnresponsive = errors.New("PostgreSQL does not respond")

// watch pings PostgreSQL when a statement waits for its response. If the ping gets
// none either, it closes all connections, which ends the statements, and refuses new
// ones until a ping gets a response; then it calls recovered. It ends with ctx.
func (d *database) watch(ctx context.Context, pings *sql.DB, log *slog.Logger, recovered func()) {
	ticker := time.NewTicker(d.tick)
	defer ticker.Stop()
	lost := func(err error) {
		if !d.unresponsive.Swap(true) {
			log.Warn("PostgreSQL does not respond, refusing requests", "error", err)
		}
		d.closeConnections(false)
	}
	pinged := d.ticks.Load() - pingIdle
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !d.pingIsDue(d.ticks.Add(1) - pinged) {
			continue
		}
		if d.ping(ctx, pings, ticker.C, lost) && d.unresponsive.Swap(false) {
			log.Info("PostgreSQL responds again")
			recovered()
		}
		pinged = d.ticks.Load()
	}
}

// pingIsDue reports whether to ping, since ticks after the last ping.
func (d *database) pingIsDue(since int64) bool {
	if d.unresponsive.Load() {
		return since >= pingRetry
	}
	return since >= pingIdle || since >= silenceTimeout && d.isSilent()
}

// isSilent reports whether a statement has waited for silenceTimeout for a response.
func (d *database) isSilent() bool { return d.waits(false, silenceTimeout) }

// waits reports whether a connection, of pings or of others, has waited for ticks for
// the next bytes.
func (d *database) waits(ofPings bool, ticks int64) bool {
	now := d.ticks.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if since := c.waitsSince.Load(); since != 0 && now-since >= ticks && c.dialer.ping == ofPings {
			return true
		}
	}
	return false
}

// ping reports whether PostgreSQL responds, be it with an error. It calls lost, as soon
// as the ping has waited for pingTimeout, if other connections are silent too: otherwise
// only the connection of the ping is broken. A ping that connects over a slow network
// takes several responses, so each has its own timeout.
func (d *database) ping(ctx context.Context, pings *sql.DB, ticks <-chan time.Time, lost func(error)) bool {
	response := make(chan error, 1)
	go func() {
		err := pings.PingContext(context.Background())
		if errors.Is(err, driver.ErrBadConn) { // PostgreSQL has closed it since the last ping
			err = pings.PingContext(context.Background())
		}
		response <- err
	}()
	ended := ctx.Done()
	for waited := 0; ; {
		select {
		case err := <-response:
			if err == nil || pq.As(err) != nil {
				return true
			}
			if ctx.Err() == nil && d.isSilent() {
				lost(err)
			}
			return false
		case <-ended:
			ended = nil
		case <-ticks:
			d.ticks.Add(1)
			waited++
		}
		switch {
		case ctx.Err() != nil || waited > connectTicks:
			d.closeConnections(true) // ends the ping
		case d.waits(true, pingTimeout) && d.isSilent():
			lost(errUnresponsive)
		}
	}
}

// closeConnections closes the connection of pings, or all others, also while they are
// being made.
func (d *database) closeConnections(ofPings bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.dialer.ping == ofPings {
			c.closed = true
			c.closeNow()
			delete(d.conns, c)
		}
	}
}

// attempt is one connect of lib/pq, which may make several connections one after the
// other: if PostgreSQL offers no TLS, and for each host. lib/pq leaves the one before
// open, so each closes the one before. None follows one that closeConnections has
// closed: lib/pq would take that for a refusal of TLS.
type attempt struct{ last *deadlineConn }

type attemptKey struct{}

// listenAttempt is the attempt of the connection for notifications. lib/pq makes it
// without a context and reports the outcome as an event, so it passes the gate here.
type listenAttempt struct {
	attempt
	probe bool
}

func (l *listenAttempt) enter(d *database) (err error) {
	if !l.probe { // otherwise it has passed, and tries without TLS or the next host
		l.probe, err = d.gate.enter()
	}
	return err
}

func (l *listenAttempt) leave(d *database, err error) {
	d.gate.leave(l.probe, err)
	l.probe = false
}

// dialer makes the connections of a database. Each of their reads and writes ends
// within timeout. It is a pq.Dialer and a pq.DialerContext.
type dialer struct {
	database *database
	timeout  time.Duration
	ping     bool           // for pings, which go on while PostgreSQL does not respond
	listener *listenAttempt // for notifications, between which it may be silent for long; nil for others
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, connectTimeout)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if d.database.unresponsive.Load() && !d.ping {
		return nil, errUnresponsive
	}
	if d.listener != nil {
		if err := d.listener.enter(d.database); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &deadlineConn{dialer: d, closeNow: cancel}
	c.startWaiting()
	defer c.stopWaiting()
	if err := d.begin(ctx, c); err != nil {
		return nil, err
	}
	made, err := (&net.Dialer{}).DialContext(ctx, network, address)

	d.database.mu.Lock()
	defer d.database.mu.Unlock()
	switch {
	case c.closed && err == nil:
		made.Close()
		return nil, errUnresponsive
	case c.closed:
		return nil, errUnresponsive
	case err != nil:
		delete(d.database.conns, c)
		return nil, err
	}
	c.Conn, c.closeNow = made, func() { made.Close() }
	return c, nil
}

// begin registers a connection before it is made.
func (d dialer) begin(ctx context.Context, c *deadlineConn) error {
	d.database.mu.Lock()
	defer d.database.mu.Unlock()
	current, _ := ctx.Value(attemptKey{}).(*attempt)
	if current == nil && d.listener != nil {
		current = &d.listener.attempt
	}
	if current != nil {
		if last := current.last; last != nil {
			if last.closed && d.listener == nil {
				return errUnresponsive
			}
			last.closeNow()
			delete(d.database.conns, last)
		}
		current.last = c
	}
	d.database.conns[c] = true
	return nil
}

// deadlineConn is a connection that gives each read and write its own deadline, and
// knows since when it waits for a response. lib/pq reads only while it waits, so an idle
// connection has no deadline.
type deadlineConn struct {
	net.Conn
	dialer     dialer
	limit      time.Time    // for all reads and writes while lib/pq connects
	waitsSince atomic.Int64 // the tick since when it waits; 0 if it does not wait
	closeNow   func()
	closed     bool // by closeConnections; protected by the mutex of the database
}

func (c *deadlineConn) startWaiting() { c.waitsSince.Store(c.dialer.database.ticks.Load()) }
func (c *deadlineConn) stopWaiting()  { c.waitsSince.Store(0) }

// deadline returns the deadline of a read or write that begins now.
func (c *deadlineConn) deadline() time.Time {
	at := time.Now().Add(c.dialer.timeout)
	if !c.limit.IsZero() && c.limit.Before(at) {
		return c.limit
	}
	return at
}

func (c *deadlineConn) SetDeadline(t time.Time) error {
	c.limit = t
	return c.Conn.SetDeadline(t)
}

func (c *deadlineConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(c.deadline()); err != nil {
		return 0, err
	}
	if c.dialer.listener == nil {
		c.startWaiting()
		defer c.stopWaiting()
	}
	n, err := c.Conn.Read(b)
	if err != nil {
		c.dialer.database.sequences.lost.Add(1)
	}
	return n, err
}

func (c *deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(c.deadline()); err != nil {
		return 0, err
	}
	c.startWaiting()
	defer c.stopWaiting()
	n, err := c.Conn.Write(b)
	if err != nil {
		c.dialer.database.sequences.lost.Add(1)
	}
	return n, err
}

func (c *deadlineConn) Close() error {
	c.dialer.database.mu.Lock()
	delete(c.dialer.database.conns, c)
	c.dialer.database.mu.Unlock()
	return c.Conn.Close()
}
