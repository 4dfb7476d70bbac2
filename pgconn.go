package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// Bounds of every conversation with PostgreSQL. PostgreSQL cancels a statement
// after statementTimeout, or when it has waited for lockTimeout for a lock that
// somebody else holds on to; ours are held for moments. A connection that stays
// silent for longer than that is dead, and only networkTimeout gets us out:
// lib/pq waits for the answer even when the context of a query is done.
const (
	connectTimeout   = 5 * time.Second
	lockTimeout      = time.Second
	statementTimeout = 15 * time.Second
	networkTimeout   = statementTimeout + 5*time.Second
)

// connectionSettings are the run-time parameters that the statements rely on, for
// every connection, whatever the role, the database and postgresql.conf say. They
// are set by one message after the connection is made, because poolers like
// PgBouncer refuse most of them in the request to connect; client_encoding and
// DateStyle are in that request (lib/pq). default_transaction_read_only is left
// alone: providers set it when a disk is full. session_replication_role, without
// which deleted topics leave references behind, can only be reset by superusers:
// others cannot connect where it is not origin. transaction_timeout came with
// PostgreSQL 17.
//
// A table that was just created or just filled has no statistics, and the
// planner then prefers to sort all due rows for each receive. With these
// settings there is one plan for each statement from the first second on; jit
// is among them because a disabled plan node looks expensive enough to compile.
//
// The first lets this message take its time, however little the role allows.
var connectionSettings = fmt.Sprintf(`
SET statement_timeout = 0;
SET search_path = pg_catalog;
SET timezone = 'UTC';
SET extra_float_digits = 1;
SET array_nulls = on;
SET default_transaction_isolation = 'read committed';
SET exit_on_error = off;
SET client_min_messages = 'warning';
SET statement_timeout = %d;
SET lock_timeout = %d;
SET idle_in_transaction_session_timeout = %d;
SET idle_session_timeout = 0;
SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('transaction_timeout', true) IS NOT NULL;
SELECT set_config('session_replication_role', 'origin', false) WHERE current_setting('session_replication_role') <> 'origin';
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
SET enable_indexscan = on;
SET enable_indexonlyscan = on;
SET enable_tidscan = on;
SET enable_nestloop = on;
SET enable_material = on;
SET enable_memoize = on;
SET seq_page_cost = 1;
SET random_page_cost = 4;
SET cpu_tuple_cost = 0.01;
SET cpu_index_tuple_cost = 0.005;
SET cpu_operator_cost = 0.0025;
SET effective_cache_size = '4GB';
SET from_collapse_limit = 8;
SET join_collapse_limit = 8;
SET geqo = off;
SET jit = off;
SET plan_cache_mode = force_generic_plan`,
	statementTimeout.Milliseconds(), lockTimeout.Milliseconds(), networkTimeout.Milliseconds())

// commitLevels are the values of synchronous_commit, the least durable first.
const commitLevels = "off,local,remote_write,on,remote_apply"

// atLeast is the setting of synchronous_commit: what the role, the database or
// postgresql.conf says, but no less than a level.
func atLeast(level string) string {
	return fmt.Sprintf(`;
SELECT set_config('synchronous_commit', '%[2]s', false)
FROM (SELECT '{%[1]s}'::text[] AS all) AS levels
WHERE array_position(levels.all, current_setting('synchronous_commit')) < array_position(levels.all, '%[2]s')`, commitLevels, level)
}

// engineSettings are those of the engine's connections. Its statements have a few
// rows in hand and look up others by index. Prepared while a table is empty, they
// would be planned to read all of it, and be as slow as it grows long.
const engineSettings = `;
SET enable_hashjoin = off;
SET enable_mergejoin = off`

// connector makes connections with settings.
type connector struct {
	*pq.Connector
	database *database
	settings string
	stores   bool // they are for what is stored; others need not wait for the sequences
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	probe, err := c.database.gate.enter()
	if err != nil {
		return nil, err
	}
	conn, err := c.connect(ctx)
	c.database.gate.leave(probe, err)
	return conn, err
}

func (c connector) connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(context.WithValue(ctx, attemptKey{}, &attempt{}))
	if err != nil {
		return nil, err
	}
	_, err = conn.(driver.ExecerContext).ExecContext(ctx, c.settings, nil)
	if err == nil && c.stores {
		err = c.database.sequences.check(ctx, conn)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// describe says which database a connection string of readConnection leads to,
// without secrets.
func describe(dsn string) string {
	c, err := pq.NewConfig(dsn)
	if err != nil {
		return "?"
	}
	name := c.Database
	if name == "" {
		name = c.User
	}
	places := make([]string, 0, 1)
	for _, h := range append([]pq.ConfigMultihost{{Host: c.Host, Hostaddr: c.Hostaddr, Port: c.Port}}, c.Multi...) {
		switch {
		case h.Hostaddr.IsValid():
			places = append(places, "at "+netip.AddrPortFrom(h.Hostaddr, h.Port).String())
		case strings.HasPrefix(h.Host, "/") || strings.HasPrefix(h.Host, "@"):
			places = append(places, "in "+h.Host)
		default:
			places = append(places, "at "+net.JoinHostPort(h.Host, fmt.Sprint(h.Port)))
		}
	}
	return name + " " + strings.Join(places, " or ")
}

// database is the way to PostgreSQL. All connections of a server are made here,
// so that they can be cut together when PostgreSQL does not answer any more: who
// waits for the answer to a statement cannot be freed in any other way, and would
// wait for networkTimeout.
type database struct {
	dsn         string
	connections connections // those that are opened at most
	commit      string      // the least synchronous_commit of its connections

	tick         time.Duration // of watch
	ticks        atomic.Int64  // of watch, from 1: a clock that stands while this process does
	gate         connectGate
	sequences    sequences
	unresponsive atomic.Bool // PostgreSQL does not answer, so no connection is tried but that of watch

	mu    sync.Mutex
	links map[*deadlineConn]bool // open or being made
}

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

// newDatabase returns the way to the database that a PostgreSQL URL or a string
// of key=value pairs names, and nothing else. It connects to nothing.
func newDatabase(text string) (*database, error) {
	dsn, _, err := readConnection(text, func(string) string { return "" })
	if err != nil {
		return nil, err
	}
	d := &database{dsn: dsn, commit: "on", tick: tick, connections: defaultConnections, links: make(map[*deadlineConn]bool)}
	d.ticks.Store(1)
	return d, nil
}

// connections is how many connections a server opens at most, for what.
type connections struct {
	requests int // topics, queues, stats, purge, redrive, counts and the cleanup
	claimers int // queues that are claimed from at the same time
	batchers int // the workers of lanes, the notifier and the looks; fewer than those share them
}

// Bounds of -max-database-connections.
const (
	otherConnections     = 3 // one that is patient, the listener for notifications, and that of watch
	leastConnections     = 8
	maxServerConnections = 31 // with which nobody has to share one
)

var defaultConnections = shareConnections(maxServerConnections)

// shareConnections divides up so many connections, at least leastConnections.
func shareConnections(n int) connections {
	requests := (n + 1) / 4
	engine := n - otherConnections - requests
	claimers := max(engine/5, 1)
	return connections{requests, claimers, engine - claimers}
}

// open returns a pool of up to so many connections. Those in use for long are
// replaced now and then, or they would stay with a server that has become a
// standby.
func (d *database) open(conns int) (*sql.DB, error) {
	return d.openWith(dialer{database: d, timeout: networkTimeout}, connectionSettings, conns, true)
}

// openForEngine returns the pool of the engine.
func (d *database) openForEngine() (*sql.DB, error) {
	return d.openWith(dialer{database: d, timeout: networkTimeout}, connectionSettings+engineSettings, d.connections.claimers+d.connections.batchers, true)
}

// openWithoutTimeout returns a pool of one connection for what takes its time, up to an
// hour.
func (d *database) openWithoutTimeout() (*sql.DB, error) {
	return d.openWith(dialer{database: d, timeout: time.Hour}, connectionSettings+"; SET statement_timeout = 0", 1, false)
}

func (d *database) openWith(dialer dialer, settings string, conns int, stores bool) (*sql.DB, error) {
	c, err := pq.NewConnector(d.dsn)
	if err != nil {
		return nil, err
	}
	c.Dialer(dialer)
	db := sql.OpenDB(connector{c, d, settings + atLeast(d.commit), stores})
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(time.Minute)
	db.SetConnMaxLifetime(time.Minute)
	return db, nil
}

// openPing returns the pool that watch asks on.
func (d *database) openPing() (*sql.DB, error) {
	return d.openWith(dialer{database: d, timeout: networkTimeout, ping: true}, connectionSettings, 1, false)
}

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

// openDB returns a pool of connections that nobody watches.
func openDB(text string, conns int) (*sql.DB, error) {
	d, err := newDatabase(text)
	if err != nil {
		return nil, err
	}
	return d.open(conns)
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
