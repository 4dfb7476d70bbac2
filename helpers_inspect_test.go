package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inspector reads and changes what is behind the API of a server: its database, its
// engine and its admission.
type inspector struct {
	*server
	t   testing.TB
	dsn string
}

// useTokens makes the server require one of these tokens.
func (s *inspector) useTokens(entries map[string]string) {
	s.t.Helper()
	all, err := readTokens(writeTokens(s.t, filepath.Join(s.t.TempDir(), "tokens.json"), entries))
	if err != nil {
		s.t.Fatal(err)
	}
	s.server.tokens.Store(all)
}

// exec changes the database without the server, for example to move rows in time.
func (s *inspector) exec(statement string, args ...any) {
	s.t.Helper()
	if _, err := s.store.db.Exec(statement, args...); err != nil {
		s.t.Fatal(err)
	}
}

// analyze collects statistics of these tables, or of all if there are none. It has no lock timeout:
// that of a server is a second, and the autovacuum keeps its lock of a table for as long.
func (s *inspector) analyze(tables string) {
	s.t.Helper()
	s.exec("SET LOCAL lock_timeout = 0; ANALYZE " + tables)
}

// onNodes runs a statement that returns one row at all nodes of the cluster, if there is one.
func (s *inspector) onNodes(statement string) {
	s.t.Helper()
	if s.store.homes.areSeveral() {
		s.exec("SELECT run_command_on_all_nodes($1)", statement)
	} else {
		s.exec(statement)
	}
}

// count returns the number that a query selects.
func (s *inspector) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.store.db.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// idOf returns the id of the one message in a queue.
func (s *inspector) idOf(queueID string) (id string) {
	s.t.Helper()
	err := s.store.db.QueryRow(`SELECT m.id FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key WHERE q.id = $1`, queueID).Scan(&id)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// homeOf returns the home of a queue.
func (s *inspector) homeOf(queueID string) int64 {
	s.t.Helper()
	return int64(s.count("SELECT home FROM queued.queues WHERE id = $1", queueID))
}

func (s *inspector) messagesIn(queueID string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key WHERE q.id = $1", queueID)
}

// fill puts messages into a queue, {"n":1} and so on. They are due, and no server is
// notified.
func (s *inspector) fill(queueID string, many int) {
	s.t.Helper()
	s.exec(`INSERT INTO queued.messages (home, id, queue_key, data, bytes, created_at, updated_at, scheduled_at, expired_at)
		SELECT home, gen_random_uuid(), key, format('{"n":%s}', n)::json, 6 + length(n::text), now(), now(), now(), now() + interval '1 h'
		FROM queued.queues, generate_series(1, $2) AS n WHERE id = $1`, queueID, many)
}

// fillGroups is like fill, with messages of a hundred groups.
func (s *inspector) fillGroups(queueID string, many int) {
	s.t.Helper()
	s.exec(`INSERT INTO queued.messages (home, id, queue_key, group_id, data, bytes, created_at, updated_at, scheduled_at, expired_at)
		SELECT home, gen_random_uuid(), key, n % 100, '{}', 2, now(), now(), now(), now() + interval '1 h'
		FROM queued.queues, generate_series(1, $2) n WHERE id = $1`, queueID, many)
	s.exec("INSERT INTO queued.groups (home, queue_key, id, ready_at) SELECT DISTINCT home, queue_key, group_id, now() FROM queued.messages WHERE group_id IS NOT NULL")
}

// changeMessages sets columns of the messages with these ids, or of all messages if
// there are no ids. Their groups forget when the first lease ends.
func (s *inspector) changeMessages(set string, ids ...string) {
	s.t.Helper()
	s.exec("UPDATE queued.messages SET "+set+" WHERE cardinality($1::uuid[]) = 0 OR id = ANY($1)", idArray(ids))
	s.exec("UPDATE queued.groups SET first_lease_end = '-infinity'")
}

// shift returns the assignment that changes a time of rows by an interval. Citus accepts it
// only without a time zone.
func shift(column, by string) string {
	return fmt.Sprintf("%[1]s = (%[1]s AT TIME ZONE 'UTC' + interval '%[2]s') AT TIME ZONE 'UTC'", column, by)
}

// schedule makes messages due at a time relative to now, such as "1 h" or "-10 s".
// Their leases and delays end then.
func (s *inspector) schedule(in string, ids ...string) {
	s.t.Helper()
	s.changeMessages("scheduled_at = now() + interval '"+in+"'", ids...)
}

// makeDue ends the leases and delays of the messages with these ids, or of all
// messages.
func (s *inspector) makeDue(ids ...string) {
	s.t.Helper()
	s.schedule("0 s", ids...)
}

// endLeases ends the leases of all messages in flight.
func (s *inspector) endLeases() {
	s.t.Helper()
	s.exec("UPDATE queued.messages SET scheduled_at = now() WHERE in_flight")
	s.changeMessages("bytes = bytes")
}

// expire ends the retention of the messages with these ids, or of all messages.
func (s *inspector) expire(ids ...string) {
	s.t.Helper()
	s.changeMessages("expired_at = now()", ids...)
}

// makeGroupsReady makes the next claim check every group.
func (s *inspector) makeGroupsReady() {
	s.t.Helper()
	s.exec("UPDATE queued.groups SET ready_at = now()")
}

// fillConsumed adds messages that were consumed at this moment.
func (s *inspector) fillConsumed(queueID string, many int) {
	s.t.Helper()
	s.exec(`INSERT INTO queued.consumed_messages (home, queue_key, consumed_at, seq, id, data, bytes, delivery_attempts, expired_at, scheduled_at, created_at)
		SELECT home, key, now(), n, gen_random_uuid(), '{}', 2, 1, now() + interval '1 h', now(), now()
		FROM queued.queues, generate_series(1, $2) AS n WHERE id = $1`, queueID, many)
}

// state returns the rows of all tables, to compare.
func (s *inspector) state() string {
	s.t.Helper()
	var b strings.Builder
	for _, table := range []string{"topics", "queues", "messages", "groups", "ready_groups", "consumed_messages", "deduplications", "job_counts", "move_tasks", "deleted_queues", "settings"} {
		var rows string
		if err := s.store.db.QueryRow("SELECT coalesce(string_agg(v::text, E'\n' ORDER BY v::text), '') FROM queued." + table + " AS v").Scan(&rows); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n%s\n", table, rows)
	}
	return b.String()
}

// passIntervals ends the delivery intervals of all groups.
func (s *inspector) passIntervals() {
	s.t.Helper()
	s.exec("UPDATE queued.groups SET ready_at = least(ready_at, now()), limited_until = now() WHERE limited_until > now()")
}

// mustCleanUp runs the cleanup once, as at the start of a server.
func (s *inspector) mustCleanUp() {
	s.t.Helper()
	s.newCleanup()()
}

// newCleanup returns a function that runs one round of a cleanup.
func (s *inspector) newCleanup() (round func()) {
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce}
	return func() {
		s.t.Helper()
		if err := c.once(context.Background()); err != nil {
			s.t.Fatal(err)
		}
	}
}

// begin runs a statement in a transaction, and leaves the transaction open, at most
// until the end of the test.
func (s *inspector) begin(statement string, args ...any) *sql.Tx {
	s.t.Helper()
	tx, err := s.store.db.Begin()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { tx.Rollback() })
	if _, err := tx.Exec(statement, args...); err != nil {
		s.t.Fatal(err)
	}
	return tx
}

// sendUntilCommit sends a request that waits for a lock of a transaction, commits the transaction
// then, and returns the response.
func (s *testServer) sendUntilCommit(tx *sql.Tx, method, path string) reply {
	s.t.Helper()
	response := make(chan reply, 1)
	go func() {
		v, _ := s.send(context.Background(), method, path, "")
		response <- v
	}()
	s.waitForLocks(1)
	if err := tx.Commit(); err != nil {
		s.t.Fatal(err)
	}
	return <-response
}

// lockTable makes every statement that uses a table wait until free is called.
func (s *inspector) lockTable(table string) (free func()) {
	s.t.Helper()
	tx := s.begin("LOCK TABLE " + table + " IN ACCESS EXCLUSIVE MODE")
	if !s.store.homes.areSeveral() {
		return func() { tx.Rollback() }
	}
	freeShards := testCluster.lockShards(s.t, s.dsn, table)
	return func() {
		freeShards()
		tx.Rollback()
	}
}

// hold makes every statement that inserts, updates or deletes messages run until free
// is called. Unlike a lock, it does not reach the lock timeout. It creates a trigger, so the
// server is one of newPlainTestServer.
func (s *inspector) hold(event string) (free func()) {
	s.t.Helper()
	s.exec(`CREATE TABLE public.held AS SELECT 1 AS one;
		CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			WHILE EXISTS (SELECT FROM public.held) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NULL; END $$;
		CREATE TRIGGER hold BEFORE ` + event + ` ON queued.messages FOR EACH STATEMENT EXECUTE FUNCTION public.hold()`)
	return func() { s.t.Helper(); s.exec("DELETE FROM public.held") }
}

// waitForHeld waits until hold holds n statements.
func (s *inspector) waitForHeld(n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d statements are held", n), func() bool {
		return s.count("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()") == n
	})
}

// waitForLocks waits until n statements of the database wait for a lock.
func (s *inspector) waitForLocks(n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d statements wait for a lock", n), func() bool {
		return s.locksAwaited() == n
	})
}

// locksAwaited returns the number of statements of the database that wait for a lock.
func (s *inspector) locksAwaited() int {
	s.t.Helper()
	const here = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
	if s.store.homes.areSeveral() {
		return s.count("SELECT sum(result::integer) FROM run_command_on_all_nodes($1)", here)
	}
	return s.count(here)
}

// match matches publications with the present queues of their topic.
func (s *inspector) match(topicID string, batch ...*publication) {
	s.t.Helper()
	session := newPinnedConn(s.store.db, s.metrics)
	defer session.close()
	if err := session.readSubscriptions([]string{topicID}); err != nil {
		s.t.Fatal(err)
	}
	to := s.engine.directory.share(topicID, session.settings.topics[topicID])
	for _, p := range batch {
		if err := p.match(context.Background(), to); err != nil {
			s.t.Fatal(err)
		}
	}
}

// waiting waits until this number of receivers wait at the queue, and its dispatchers
// sleep.
func (s *inspector) waiting(queueID string, receivers int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d receivers wait for %s", receivers, queueID), func() bool {
		return s.engine.waiting()[queueID] == receivers && s.engine.asleep(queueID)
	})
}

// asleep reports whether all dispatchers of a queue sleep, so that no claim is running.
func (e *engine) asleep(queueID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.dispatchers[queueID] {
		if !d.sleeping || d.woken {
			return false
		}
	}
	return true
}

// inLine waits until this number of receivers wait at the queue, whether or not its
// dispatchers sleep.
func (s *inspector) inLine(queueID string, receivers int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d receivers are in line for %s", receivers, queueID), func() bool {
		return s.engine.waiting()[queueID] == receivers
	})
}

// watermark returns the low-water mark of a queue's messages without a group, or zero
// if there is none.
func (s *inspector) watermark(queueID string) time.Time {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	return s.engine.watermarksOf(queueID).messages.at
}

// buffered returns the number of buffered bytes of requests and responses.
func (s *inspector) buffered() int64 {
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	return s.admission.buffered
}

// setCapacity waits until no bytes are buffered, and then fills the buffer up to left
// bytes below the limit. The function that it returns waits until other requests have
// no buffered bytes, and empties the buffer.
func (s *inspector) setCapacity(left int64) (restore func()) {
	s.t.Helper()
	set := func(from, to int64) {
		s.t.Helper()
		eventually(s.t, fmt.Sprintf("%d bytes are buffered", from), func() bool { return s.buffered() == from })
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		s.admission.buffered = to
	}
	filled := s.admission.maxBuffered - left
	set(0, filled)
	return func() { s.t.Helper(); set(filled, 0) }
}
