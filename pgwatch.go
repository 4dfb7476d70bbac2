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

// How soon PostgreSQL must answer: a statement may take longer than patience, but
// then PostgreSQL is asked on another connection whether it is still there. This
// is counted in ticks, or a pause of the whole machine would look like a silence.
const (
	tick           = 50 * time.Millisecond
	silenceTimeout = 4   // ticks until a statement without an answer is a reason to ask
	pingTimeout    = 10  // ticks for the answer
	connectSilence = 100 // ticks for it if a connection has to be made first
	pingEvery      = 10  // ticks between two tries while there is none
	pingIdle       = 200 // ticks after which to ask without a reason, to keep that connection
)

// errUnresponsive is the error of connections that were cut or not even tried.
var errUnresponsive = errors.New("PostgreSQL does not respond")

// watch cuts all connections when somebody waits and PostgreSQL does not answer,
// keeps everybody from trying new ones until it does, and then calls back. It ends
// with ctx.
func (d *database) watch(ctx context.Context, pulse *sql.DB, log *slog.Logger, back func()) {
	ticker := time.NewTicker(d.tick)
	defer ticker.Stop()
	next := func() (now int64) {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		return d.ticks.Add(1)
	}
	lost := func(err error) {
		if !d.unresponsive.Swap(true) {
			log.Warn("PostgreSQL does not respond, refusing requests", "error", err)
		}
		d.closeConnections(false)
	}
	asked := d.ticks.Load() - pingIdle
	for ctx.Err() == nil {
		since := next() - asked
		silent := d.unresponsive.Load()
		if since < silenceTimeout || silent && since < pingEvery || !silent && since < pingIdle && !d.waitsLong() {
			continue
		}
		if d.ping(ctx, pulse, next, lost) && d.unresponsive.Swap(false) {
			log.Info("PostgreSQL responds again")
			back()
		}
		asked = d.ticks.Load()
	}
}

// waitsLong reports whether somebody waits for an answer for longer than patience.
func (d *database) waitsLong() bool {
	now := d.ticks.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.links {
		if since := c.waitsSince.Load(); since != 0 && now-since >= silenceTimeout && !c.dialer.ping {
			return true
		}
	}
	return false
}

// ping reports whether PostgreSQL answers, be it with an error. It calls lost when
// the answer does not come in time and somebody waits: nobody does if it is only
// to this connection that something happened.
func (d *database) ping(ctx context.Context, pulse *sql.DB, next func() int64, lost func(error)) bool {
	answer := make(chan error, 1)
	go func() {
		err := pulse.PingContext(context.Background())
		if errors.Is(err, driver.ErrBadConn) { // PostgreSQL has ended it since the last time
			err = pulse.PingContext(context.Background())
		}
		answer <- err
	}()
	for ticks := 0; ; ticks++ {
		next()
		select {
		case err := <-answer:
			if err == nil || pq.As(err) != nil {
				return true
			}
			if ctx.Err() == nil && d.waitsLong() {
				lost(err)
			}
			return false
		default:
		}
		switch {
		case ctx.Err() != nil || ticks >= connectSilence:
			d.closeConnections(true) // which ends the ping
		case ticks >= pingTimeout && d.waitsLong():
			lost(errUnresponsive)
		}
	}
}

// closeConnections ends all connections but that of watch, or that one, also while they are
// being made.
func (d *database) closeConnections(pulse bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.links {
		if c.dialer.ping == pulse {
			c.lost = true
			c.closeNow()
			delete(d.links, c)
		}
	}
}

// attempt is a try to connect, on which several connections may be made one after
// the other: lib/pq leaves one alone, open, when PostgreSQL has no TLS to offer, and
// goes on to the next host. Each ends the one before. None follows one that was
// cut, or lib/pq would take that for a refusal of TLS.
type attempt struct{ last *deadlineConn }

type attemptKey struct{}

// listening is the way of the one connection for notifications through the gate:
// lib/pq makes it by itself, and says by an event what came of it.
type listening struct {
	attempt
	probe bool
}

func (l *listening) enter(d *database) (err error) {
	if !l.probe { // else it is in, and connects again without TLS or to the next host
		l.probe, err = d.gate.enter()
	}
	return err
}

func (l *listening) leave(d *database, err error) {
	d.gate.leave(l.probe, err)
	l.probe = false
}

// dialer makes the connections of a database, whose every read and write ends
// within timeout. It is a pq.Dialer and a pq.DialerContext.
type dialer struct {
	database *database
	timeout  time.Duration
	ping     bool       // of watch, who tries also while the database is silent
	listener *listening // of the one connection for notifications, which may say nothing for long
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
	case c.lost && err == nil:
		made.Close()
		return nil, errUnresponsive
	case c.lost:
		return nil, errUnresponsive
	case err != nil:
		delete(d.database.links, c)
		return nil, err
	}
	c.Conn, c.closeNow = made, func() { made.Close() }
	return c, nil
}

// begin registers a connection that is being made.
func (d dialer) begin(ctx context.Context, c *deadlineConn) error {
	d.database.mu.Lock()
	defer d.database.mu.Unlock()
	try, _ := ctx.Value(attemptKey{}).(*attempt)
	if try == nil && d.listener != nil {
		try = &d.listener.attempt
	}
	if try != nil {
		if last := try.last; last != nil {
			if last.lost && d.listener == nil {
				return errUnresponsive
			}
			last.closeNow()
			delete(d.database.links, last)
		}
		try.last = c
	}
	d.database.links[c] = true
	return nil
}

// deadlineConn is a connection. It gives each read and write its own deadline, and knows
// since when it waits. lib/pq reads only while it waits for an answer, so an idle
// connection does not time out.
type deadlineConn struct {
	net.Conn
	dialer     dialer
	limit      time.Time    // for all reads and writes, as lib/pq sets it while it connects
	waitsSince atomic.Int64 // tick; 0: does not wait
	closeNow   func()
	lost       bool // it was cut by the database; guarded by its mutex, as cut is
}

func (c *deadlineConn) startWaiting() { c.waitsSince.Store(c.dialer.database.ticks.Load()) }
func (c *deadlineConn) stopWaiting()  { c.waitsSince.Store(0) }

// deadline is that of a read or write that begins now.
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
	delete(c.dialer.database.links, c)
	c.dialer.database.mu.Unlock()
	return c.Conn.Close()
}
