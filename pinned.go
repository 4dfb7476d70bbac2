package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"
	"time"
)

// pinnedConn is a connection with its prepared statements. One goroutine at a time
// uses it: its owner or, where several share it, the caller of exclusive. It
// connects on first use and again after the connection is lost. It never runs a
// statement twice: if the connection breaks, the outcome of a statement is unknown,
// and only the caller can decide what to do.
type pinnedConn struct {
	sharing     sync.Mutex // held by exclusive
	db          *sql.DB
	metrics     *metrics
	conn        *sql.Conn
	statements  map[string]*sql.Stmt
	usedAt      time.Time
	connectedAt time.Time
	settings    settingsCache
	homes       *homes
	shards      *nodeShards     // of the node, see readInHome; nil for other connections
	generic     bool            // plans of statements do not depend on their arguments; see plan
	functions   map[string]bool // that the connection has created, see createClaimGroups
	begun       bool            // a transaction is open on conn
}

// settingsCache has the topics and queues that a connection has read, all as of one version
// of the settings. A statement that relies on the cache compares this version with the
// current one, and does nothing if they differ.
type settingsCache struct {
	version int64
	resets  int                     // how often the cache was cleared
	topics  map[string]*subscribers // by topic id
	queues  map[string]*subscribers // by queue id: that queue, without filters
	terms   map[string]leaseTerms   // by queue id
}

// Limits of the cache, and of the attempts to run a statement whose cached settings
// are out of date.
const (
	settingsKept     = 10_000 // topics and queues
	settingsAttempts = 100
)

// at prepares the cache for an entry of a version. It clears the cache if that is
// of another version, or full.
func (v *settingsCache) at(version int64) {
	if v.version != version || len(v.topics)+len(v.queues)+len(v.terms) > settingsKept {
		*v = settingsCache{version, v.resets + 1, map[string]*subscribers{}, map[string]*subscribers{}, map[string]leaseTerms{}}
	}
}

// clear forgets everything. It counts as a reset, like that of at: a reader of several
// entries notices that those found before are missing.
func (v *settingsCache) clear() { *v = settingsCache{resets: v.resets + 1} }

// untilCurrent calls run until it does not return errStale. It clears the cache before each
// new attempt, and returns errStale after the last one.
func (s *pinnedConn) untilCurrent(run func() error) error {
	for range settingsAttempts {
		if err := run(); !errors.Is(err, errStale) {
			return err
		}
		s.settings.clear()
	}
	return errStale
}

// idleUnchecked is how long an idle connection is used without a ping. A statement
// on a connection that was lost in the meantime would fail with an unknown outcome.
const idleUnchecked = time.Second

func newPinnedConn(db *sql.DB, m *metrics) *pinnedConn {
	return &pinnedConn{db: db, metrics: m}
}

func newPinnedConns(db *sql.DB, m *metrics, n int) []*pinnedConn {
	all := make([]*pinnedConn, n)
	for i := range all {
		all[i] = newPinnedConn(db, m)
	}
	return all
}

// exclusive calls do while no other goroutine uses the connection.
func (s *pinnedConn) exclusive(do func()) {
	s.sharing.Lock()
	defer s.sharing.Unlock()
	do()
}

// end closes the connection. If another goroutine shares it, the next use connects
// again.
func (s *pinnedConn) end() { s.exclusive(s.close) }

// read runs a statement and returns all its rows, nil if there are none. The
// statement is prepared on first use; name labels its metrics. It is committed
// when the last row has been read.
//
// There is no context: a context that can be cancelled costs a goroutine for each
// statement, cancelling ends the connection, and all statements have a timeout.
func read[T any](s *pinnedConn, name string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	return readPlanned(s, false, name, scan, query, args...)
}

// readPlanned is read for a statement that names shards, or for any other.
func readPlanned[T any](s *pinnedConn, onShards bool, name string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	stmt, err := s.prepare(query)
	if err == nil && s.generic != onShards && strings.Contains(query, "queued.") {
		err = s.plan(onShards)
	}
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
			rows.Close() // close would block on open rows
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

// plan sets how PostgreSQL plans the next statements of a connection to a node of a Citus
// cluster: once, if they name shards. Citus has to plan those that name distributed tables for
// each execution.
func (s *pinnedConn) plan(once bool) error {
	mode := "force_custom_plan"
	if once {
		mode = "force_generic_plan"
	}
	_, err := s.conn.ExecContext(context.Background(), "SET plan_cache_mode = "+mode)
	if err == nil {
		s.generic = once
	}
	return err
}

// transaction runs do between BEGIN and COMMIT, or ROLLBACK if do returns an
// error. The isolation level is READ COMMITTED: each statement sees what was
// committed before it began.
func (s *pinnedConn) transaction(do func() error) (err error) {
	if err := s.command("BEGIN"); err != nil {
		return err
	}
	s.begun = true
	created, generic := len(s.functions), s.generic
	defer func() {
		s.begun = false // after COMMIT, which must not run on another connection
		if err == nil {
			return
		}
		s.generic = generic // PostgreSQL has undone what do has set and created
		if len(s.functions) != created {
			clear(s.functions)
		}
	}()
	if err = do(); err == nil {
		return s.command("COMMIT")
	}
	if s.conn != nil && s.command("ROLLBACK") != nil {
		s.close()
	}
	return err
}

// run runs a statement like read, without results. It is a runner (bulk.go).
func (s *pinnedConn) run(name string, scan func(scanner) error, query string, args ...any) error {
	_, err := read(s, name, func(row scanner) (any, error) { return nil, scan(row) }, query, args...)
	return err
}

// command runs a statement that returns no rows.
func (s *pinnedConn) command(statement string) error {
	_, err := read[any](s, strings.ToLower(statement), nil, statement)
	return err
}

// connect connects if there is no connection, and pings one that has been idle.
func (s *pinnedConn) connect() error {
	if s.begun && s.conn == nil {
		return driver.ErrBadConn
	}
	fresh := time.Since(s.usedAt) < idleUnchecked || s.begun
	s.usedAt = time.Now()
	if s.conn != nil && fresh {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	if s.conn != nil && s.conn.PingContext(ctx) != nil {
		s.close()
	}
	if s.conn == nil {
		conn, err := s.db.Conn(ctx)
		if err != nil {
			return err
		}
		s.conn, s.connectedAt, s.statements, s.generic, s.functions = conn, time.Now(), make(map[string]*sql.Stmt), false, make(map[string]bool)
	}
	return nil
}

// prepare returns a prepared statement.
func (s *pinnedConn) prepare(query string) (*sql.Stmt, error) {
	if err := s.connect(); err != nil {
		return nil, err
	}
	if stmt := s.statements[query]; stmt != nil {
		return stmt, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	stmt, err := s.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.statements[query] = stmt
	return stmt, nil
}

// check closes the connection if err may have left it or its prepared statements
// unusable. It keeps a new connection after an error that needs an operator: the
// next connection would meet the same error.
func (s *pinnedConn) check(err error) {
	isNew := time.Since(s.connectedAt) < idleUnchecked
	if err == nil || rejected(err) && (!retryable(err) || means(err, needsOperator) && isNew) {
		return
	}
	s.close()
}

func (s *pinnedConn) close() {
	if s.conn != nil {
		s.conn.Raw(func(any) error { return driver.ErrBadConn }) // keeps it out of the pool
		s.conn.Close()
	}
	s.conn, s.statements = nil, nil
	s.settings.clear() // the next server may have lost the latest versions in a failover
}
