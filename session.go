package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Bounds of every conversation with PostgreSQL. PostgreSQL cancels a statement
// after statementTimeout; a connection that stays silent for longer than that
// is dead, and only networkTimeout gets us out: lib/pq waits for the answer
// even when the context of a query is done.
const (
	connectTimeout   = 5 * time.Second
	statementTimeout = 15 * time.Second
	networkTimeout   = statementTimeout + 5*time.Second
)

// connectionSettings are the run-time parameters of every connection.
//
// A table that was just created or just filled has no statistics, and the
// planner then prefers to sort all due rows for each receive. With these
// settings there is one plan for each statement from the first second on; jit
// is among them because a disabled plan node looks expensive enough to compile.
var connectionSettings = [][2]string{
	{"binary_parameters", "no"}, // of lib/pq: our arrays are text
	{"timezone", "UTC"},
	{"statement_timeout", fmt.Sprint(statementTimeout.Milliseconds())},
	{"idle_in_transaction_session_timeout", fmt.Sprint(networkTimeout.Milliseconds())},
	{"enable_seqscan", "off"},
	{"enable_bitmapscan", "off"},
	{"enable_sort", "off"},
	{"jit", "off"},
	{"plan_cache_mode", "force_generic_plan"},
}

// connectionString adds our settings to a PostgreSQL URL or a string of
// key=value pairs. As in libpq, and not as in lib/pq, TLS is used where the
// server offers it unless sslmode says otherwise.
func connectionString(database string) (string, error) {
	defaults := [][2]string{
		{"application_name", "queued"},
		{"connect_timeout", fmt.Sprint(int(connectTimeout.Seconds()))},
	}
	if os.Getenv("PGSSLMODE") == "" {
		defaults = append(defaults, [2]string{"sslmode", "prefer"})
	}
	dsn := database
	if strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://") {
		u, err := url.Parse(database)
		if err != nil {
			// The text of a url.Error holds the URL, and that the password.
			return "", errors.New("not a valid URL")
		}
		q := u.Query()
		for _, s := range defaults {
			if !q.Has(s[0]) {
				q.Set(s[0], s[1])
			}
		}
		for _, s := range connectionSettings {
			q.Set(s[0], s[1])
		}
		u.RawQuery = q.Encode()
		dsn = u.String()
	} else {
		// The last of two equal keys counts.
		var b strings.Builder
		for _, s := range defaults {
			fmt.Fprintf(&b, "%s=%s ", s[0], s[1])
		}
		b.WriteString(database)
		for _, s := range connectionSettings {
			fmt.Fprintf(&b, " %s=%s", s[0], s[1])
		}
		dsn = b.String()
	}
	if _, err := pq.NewConfig(dsn); err != nil {
		return "", errors.New("neither a PostgreSQL URL nor a list of key=value pairs that PostgreSQL knows")
	}
	return dsn, nil
}

// describe says which database a connection string leads to, without secrets.
func describe(database string) string {
	c, err := pq.NewConfig(database)
	if err != nil {
		return "?"
	}
	if strings.HasPrefix(c.Host, "/") || strings.HasPrefix(c.Host, "@") {
		return fmt.Sprintf("%s in %s", c.Database, c.Host)
	}
	return fmt.Sprintf("%s at %s", c.Database, net.JoinHostPort(c.Host, fmt.Sprint(c.Port)))
}

// dialer makes connections whose every read and write ends within timeout. It
// is a pq.Dialer and a pq.DialerContext.
type dialer struct{ timeout time.Duration }

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, connectTimeout)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &deadlineConn{Conn: conn, timeout: d.timeout}, nil
}

// deadlineConn gives each read and write its own deadline. lib/pq reads only
// while it waits for an answer, so an idle connection does not time out.
type deadlineConn struct {
	net.Conn
	timeout time.Duration
}

func (c *deadlineConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// session is a connection that one goroutine at a time owns, with its prepared
// statements. It connects when first used and again after it was lost, but
// never runs a statement twice: whether a statement whose connection broke was
// carried out is unknown, and only the caller knows what to do then.
type session struct {
	db         *sql.DB
	metrics    *metrics
	conn       *sql.Conn
	statements map[string]*sql.Stmt
	usedAt     time.Time
	settings   settings
}

// settings are what a session remembers of topics and queues, all as of one
// version of them. A statement that goes by them says which, and does nothing if
// it is not the present one.
type settings struct {
	version int64
	resets  int                       // how often all was forgotten
	topics  map[string][]subscription // by topic id
	queues  map[string]subscription   // by queue id
	terms   map[string]leaseTerms     // by queue id
}

// Bounds of what is remembered, and of how often a statement is tried with
// settings that turn out to have changed.
const (
	settingsKept     = 10_000 // topics and queues
	settingsAttempts = 100
)

// at makes room for what was read as of a version: what was read before goes if
// it is older, or too much.
func (v *settings) at(version int64) {
	if v.version != version || len(v.topics)+len(v.queues)+len(v.terms) > settingsKept {
		*v = settings{version, v.resets + 1, map[string][]subscription{}, map[string]subscription{}, map[string]leaseTerms{}}
	}
}

// idleUnchecked is for how long an idle connection is taken for good. After
// that it is asked: a statement sent on a connection that was lost meanwhile
// would fail, and nobody would know whether it was carried out.
const idleUnchecked = time.Second

func newSession(db *sql.DB, m *metrics) *session {
	return &session{db: db, metrics: m}
}

// read runs a statement, which is prepared on first use and whose name is for the
// metrics, and returns all its rows, nil if there are none. Only when the last has
// been read is it committed.
//
// There is no context for the statement: cancelling one costs a goroutine a
// statement and ends the connection, and all are bounded in time anyway.
func read[T any](s *session, name string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	stmt, err := s.prepare(query)
	if err != nil {
		s.check(err)
		return nil, err
	}
	start := time.Now()
	rows, err := stmt.Query(args...)
	if err != nil {
		s.check(err)
		return nil, err
	}
	defer rows.Close()
	defer func() { s.metrics.statements.WithLabelValues(name).Observe(time.Since(start).Seconds()) }()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			s.close()
			return nil, err
		}
		all = append(all, v)
	}
	if err := rows.Err(); err != nil {
		s.check(err)
		return nil, err
	}
	return all, nil
}

func (s *session) prepare(query string) (*sql.Stmt, error) {
	fresh := time.Since(s.usedAt) < idleUnchecked
	s.usedAt = time.Now()
	if stmt := s.statements[query]; stmt != nil && fresh {
		return stmt, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	if s.conn != nil && !fresh && s.conn.PingContext(ctx) != nil {
		s.close()
	}
	if s.conn == nil {
		conn, err := s.db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		s.conn, s.statements = conn, make(map[string]*sql.Stmt)
	}
	if stmt := s.statements[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.statements[query] = stmt
	return stmt, nil
}

// check drops the connection if err leaves it, or what is prepared on it, in a
// state that is not known to be good. Whoever reads rows calls it too.
func (s *session) check(err error) {
	if err == nil || rejected(err) && !stale(err) {
		return
	}
	s.close()
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Raw(func(any) error { return driver.ErrBadConn }) // not back into the pool
		s.conn.Close()
	}
	s.conn, s.statements = nil, nil
	s.settings = settings{} // the next connection may lead to a server that lost the last versions
}

// rejected reports whether PostgreSQL refused the statement and so did nothing:
// it answered with an error, and not with one that ends the connection. Those
// lib/pq turns into driver.ErrBadConn, if PostgreSQL speaks English.
func rejected(err error) bool {
	e := pq.As(err)
	if e == nil {
		return false
	}
	switch e.Code.Class() {
	case "08", "58", "XX": // connection, system error, internal error
		return false
	case "57":
		return e.Code == "57014" // query_canceled; the others are shutdowns
	}
	return true
}

// stale reports whether another connection may do better: what this one has
// prepared is out of date since the schema changed (0A000), or gone because a
// pooler gave us another one (26000), or this one leads to a server that is
// read-only (25006), as after a failover.
func stale(err error) bool {
	return pq.As(err, "0A000", "26000", pqerror.ReadOnlySQLTransaction) != nil
}

// temporary reports whether PostgreSQL rejected a statement for a reason that
// has nothing to do with it: the database is read-only (class 25), the statement
// lost against others (40, 55), resources are exhausted (53), it was cancelled (57).
func temporary(err error) bool {
	e := pq.As(err)
	if e == nil {
		return false
	}
	switch e.Code.Class() {
	case "25", "40", "53", "55", "57":
		return true
	}
	return false
}

// atFault reports whether PostgreSQL rejected what a request brought, so that
// the same request will fail again: data it cannot represent (class 22),
// constraints (23), and limits (54).
func atFault(err error) bool {
	e := pq.As(err)
	if e == nil {
		return false
	}
	switch e.Code.Class() {
	case "22", "23", "54":
		return true
	}
	return false
}

// openDB returns a pool of up to so many connections to a database, with our
// settings. Those in use for long are replaced now and then, or they would stay
// with a server that has become a standby.
func openDB(database string, conns int) (*sql.DB, error) {
	dsn, err := connectionString(database)
	if err != nil {
		return nil, err
	}
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	connector.Dialer(dialer{networkTimeout})
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(time.Minute)
	db.SetConnMaxLifetime(time.Minute)
	return db, nil
}

// requestConns is how many connections there are for what is not the engine's:
// topics, queues, stats, purge, redrive and the cleanup.
const requestConns = 8
