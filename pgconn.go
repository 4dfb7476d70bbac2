package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// Timeouts of all statements. PostgreSQL cancels a statement after statementTimeout, or
// when it has waited for a lock for lockTimeout; the server itself holds locks for
// moments only. A connection without a response for longer than that is dead.
// networkTimeout ends it: lib/pq waits for a response even if the context of a query is
// done.
const (
	connectTimeout   = 5 * time.Second
	lockTimeout      = time.Second
	statementTimeout = 15 * time.Second
	networkTimeout   = statementTimeout + 5*time.Second
)

// connectionSettings are the run-time parameters that the statements rely on. They
// override the settings of the role, the database and postgresql.conf. One message sets
// them after the connection is made, because poolers like PgBouncer refuse most of them in
// the request to connect; client_encoding and DateStyle are in that request (lib/pq).
//
// default_transaction_read_only stays as it is, because providers set it when a disk is
// full. Only superusers can reset session_replication_role, and with another value than
// origin, deleted topics would leave references behind. So other roles cannot connect if
// it has another value. transaction_timeout came with PostgreSQL 17, and
// restrict_nonsystem_relation_kind, which can forbid views, with minor versions.
//
// The first setting removes the role's timeout, so that this message may take its time.
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
SELECT set_config('restrict_nonsystem_relation_kind', '', false) WHERE current_setting('restrict_nonsystem_relation_kind', true) <> '';
SELECT set_config('session_replication_role', 'origin', false) WHERE current_setting('session_replication_role') <> 'origin';
`+plannerSettings+`SET plan_cache_mode = force_generic_plan;
SELECT set_config('plan_cache_mode', 'force_custom_plan', false) FROM pg_extension WHERE extname = 'citus'`,
	statementTimeout.Milliseconds(), lockTimeout.Milliseconds(), networkTimeout.Milliseconds())

// plannerSettings are part of connectionSettings. A table that was just created or just
// filled has no statistics, and the planner then prefers to sort all due rows for each
// receive. With these settings there is one plan for each statement from the first second
// on; jit is among them because a disabled plan node looks expensive enough to compile.
const plannerSettings = `SET enable_seqscan = off;
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
`

// commitLevels are the values of synchronous_commit, the least durable first.
const commitLevels = "off,local,remote_write,on,remote_apply"

// atLeast returns a statement that raises synchronous_commit to a level, if the role,
// the database or postgresql.conf sets a lower one.
func atLeast(level string) string {
	return fmt.Sprintf(`;
SELECT set_config('synchronous_commit', '%[2]s', false)
FROM (SELECT '{%[1]s}'::text[] AS all) AS levels
WHERE array_position(levels.all, current_setting('synchronous_commit')) < array_position(levels.all, '%[2]s')`, commitLevels, level)
}

// engineSettings are for the engine's connections. Its statements look up a few rows by
// index. If they were prepared while a table is empty, their plans would read all of
// it, and become slow as it grows.
const engineSettings = `;
SET enable_hashjoin = off;
SET enable_mergejoin = off`

// connector makes connections with settings.
type connector struct {
	*pq.Connector
	database *database
	settings string
	stores   bool // the connections insert rows, so they check the sequences first
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

// describe returns the name and the addresses of the database in a connection string of
// readConnection, without secrets.
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

// database makes all connections of a server to PostgreSQL, so that they can be closed
// together when PostgreSQL does not respond: nothing else frees a goroutine that waits
// for a response before networkTimeout.
type database struct {
	dsn         string
	isNode      bool        // of a Citus cluster, besides the one of -database-url
	connections connections // maximum numbers
	commit      string      // minimum synchronous_commit

	tick         time.Duration
	ticks        atomic.Int64 // of watch, from 1
	gate         connectGate
	sequences    sequences
	homes        homes
	unresponsive atomic.Bool // only pings may connect

	mu    sync.Mutex
	conns map[*deadlineConn]bool // open or being made
}

// newDatabase returns the database that a PostgreSQL URL or a string of key=value pairs
// names; environment variables have no effect. It does not connect.
func newDatabase(text string) (*database, error) {
	dsn, _, err := readConnection(text, func(string) string { return "" })
	if err != nil {
		return nil, err
	}
	d := &database{dsn: dsn, commit: "on", tick: tick, connections: defaultConnections, conns: make(map[*deadlineConn]bool)}
	d.ticks.Store(1)
	d.sequences.homes = &d.homes
	return d, nil
}

// at returns the same database of another node of a Citus cluster.
func (d *database) at(host string, port int) (*database, error) {
	node, err := newDatabase(d.dsn + " " + writePairs(setting{name: "hostaddr"}, setting{name: "host", value: host}, setting{name: "port", value: strconv.Itoa(port)}))
	if err != nil {
		return nil, err
	}
	node.isNode, node.connections, node.commit, node.tick = true, d.connections, d.commit, d.tick
	return node, nil
}

// connections are the maximum numbers of connections of a server, by their use.
type connections struct {
	requests int // for topics, queues, stats, purge, redrive, counts and the cleanup
	claimers int // for claims that cannot share a statement with those of other queues
	batchers int // for the workers of batchers, the notifier and the sweeps, which share them if they are few
}

// Bounds of -max-database-connections.
const (
	otherConnections     = 3 // without a statement timeout, for notifications, and for pings
	leastConnections     = 8
	maxServerConnections = 36 // no connection is shared: 20 for ten batchers, 2 for notifier and sweeps, 2 claimers, 9 requests, 3 others
)

var defaultConnections = shareConnections(maxServerConnections)

// shareConnections divides n connections, at least leastConnections, among the uses.
func shareConnections(n int) connections {
	requests := (n + 1) / 4
	engine := n - otherConnections - requests
	claimers := max(engine/10, 1)
	return connections{requests, claimers, engine - claimers}
}

// open returns a pool of up to conns connections. It replaces each after a minute:
// otherwise they would stay with a server that has become a standby.
func (d *database) open(conns int) (*sql.DB, error) {
	return d.openWith(dialer{database: d, timeout: networkTimeout}, connectionSettings, conns, true)
}

// openForEngine returns the pool of the engine.
func (d *database) openForEngine() (*sql.DB, error) {
	settings := connectionSettings + engineSettings
	if d.isNode {
		settings += holdsHomes
	}
	return d.openWith(dialer{database: d, timeout: networkTimeout}, settings, d.connections.claimers+d.connections.batchers, !d.isNode)
}

// openWithoutTimeout returns a pool of one connection for statements that may take up
// to an hour.
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

// openPing returns the pool for the pings of watch.
func (d *database) openPing() (*sql.DB, error) {
	return d.openWith(dialer{database: d, timeout: networkTimeout, ping: true}, connectionSettings, 1, false)
}

// openDB returns a pool for a database without a watch.
func openDB(text string, conns int) (*sql.DB, error) {
	d, err := newDatabase(text)
	if err != nil {
		return nil, err
	}
	return d.open(conns)
}
