package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"strings"
	"sync"
	"time"
)

// pinnedConn is a connection that one goroutine at a time uses, with its prepared
// statements: its owner, or whoever is alone with it where several share it. It connects when first used and again after it was lost, but
// never runs a statement twice: whether a statement whose connection broke was
// carried out is unknown, and only the caller knows what to do then.
type pinnedConn struct {
	sharing     sync.Mutex // held by alone
	db          *sql.DB
	metrics     *metrics
	conn        *sql.Conn
	statements  map[string]*sql.Stmt
	usedAt      time.Time
	connectedAt time.Time
	settings    settings
	begun       bool // a transaction, which another connection would know nothing of
}

// settings are what a session remembers of topics and queues, all as of one
// version of them. A statement that goes by them says which, and does nothing if
// it is not the present one.
type settings struct {
	version int64
	resets  int                     // how often all was forgotten
	topics  map[string]*subscribers // by topic id
	queues  map[string]*subscribers // by queue id: that one, without filters
	terms   map[string]leaseTerms   // by queue id
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
		*v = settings{version, v.resets + 1, map[string]*subscribers{}, map[string]*subscribers{}, map[string]leaseTerms{}}
	}
}

// idleUnchecked is for how long an idle connection is taken for good. After
// that it is asked: a statement sent on a connection that was lost meanwhile
// would fail, and nobody would know whether it was carried out.
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

// exclusive calls do while nobody else who shares the session uses it.
func (s *pinnedConn) exclusive(do func()) {
	s.sharing.Lock()
	defer s.sharing.Unlock()
	do()
}

// end closes the session for one of those who share it. Another one that uses it
// connects again.
func (s *pinnedConn) end() { s.exclusive(s.close) }

// read runs a statement, which is prepared on first use and whose name is for the
// metrics, and returns all its rows, nil if there are none. Only when the last has
// been read is it committed.
//
// There is no context for the statement: cancelling one costs a goroutine a
// statement and ends the connection, and all are bounded in time anyway.
func read[T any](s *pinnedConn, name string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
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
			rows.Close() // or close would wait for them
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

// transaction runs do between BEGIN and COMMIT, or ROLLBACK if it returns an
// error. Each of its statements sees what was committed before that statement.
func (s *pinnedConn) transaction(do func() error) error {
	if err := s.command("BEGIN"); err != nil {
		return err
	}
	s.begun = true
	defer func() { s.begun = false }() // also COMMIT is for this connection alone
	err := do()
	if err == nil {
		return s.command("COMMIT")
	}
	if s.conn != nil && s.command("ROLLBACK") != nil {
		s.close()
	}
	return err
}

// command runs a statement that returns no rows.
func (s *pinnedConn) command(statement string) error {
	_, err := read[any](s, strings.ToLower(statement), nil, statement)
	return err
}

func (s *pinnedConn) prepare(query string) (*sql.Stmt, error) {
	if s.begun && s.conn == nil {
		return nil, driver.ErrBadConn
	}
	fresh := time.Since(s.usedAt) < idleUnchecked || s.begun
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
		s.conn, s.connectedAt, s.statements = conn, time.Now(), make(map[string]*sql.Stmt)
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
// state that is not known to be good. Whoever reads rows calls it too. Where the
// trouble lasts, the next connection is no better than one that was just made.
func (s *pinnedConn) check(err error) {
	young := time.Since(s.connectedAt) < idleUnchecked
	if err == nil || rejected(err) && (!retryable(err) || means(err, needsOperator) && young) {
		return
	}
	s.close()
}

func (s *pinnedConn) close() {
	if s.conn != nil {
		s.conn.Raw(func(any) error { return driver.ErrBadConn }) // not back into the pool
		s.conn.Close()
	}
	s.conn, s.statements = nil, nil
	s.settings = settings{} // the next connection may lead to a server that lost the last versions
}
