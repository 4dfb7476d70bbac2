package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// sequencesLock is the key of the advisory lock that servers raise sequences under.
const sequencesLock = 0x71756575_65640003

// sequenceLeap is how far beyond the newest messages the sequence of messages goes
// when it is found behind them: by more than there can be messages that were moved
// since, which have later numbers, and are in no index by number.
const sequenceLeap = 1 << 32

// raiseSequencesSQL raises the sequences of keys and messages above what the tables
// hold: logical replication and some restores leave them where they were. Else a
// new queue would get the key of a deleted one, and its messages would be deleted
// with those of that one, and new messages would come before old ones of their
// group. Sequences that are right, as nearly always, are left alone, and what that
// takes is found by index.
var raiseSequencesSQL = fmt.Sprintf(`
SELECT pg_advisory_xact_lock(%d);

SELECT setval('queued.queues_key_seq', held.key)
FROM (
    SELECT greatest(
        (SELECT max(key) FROM queued.queues),
        (SELECT max(key) FROM queued.deleted_queues),
        (SELECT max(queue_key) FROM queued.messages),
        (SELECT -min(queue_key) FROM queued.messages),
        (SELECT -min(queue_key) FROM queued.groups),
        (SELECT max(queue_key) FROM queued.consumed)
    ) AS key
) held
CROSS JOIN queued.queues_key_seq s
WHERE held.key >= s.last_value + s.is_called::integer;

SELECT setval('queued.messages_seq_seq', held.seq + %d)
FROM (
    SELECT max(seq) AS seq
    FROM (
        SELECT seq
        FROM queued.messages
        ORDER BY id DESC, queue_key DESC
        LIMIT 1000
    ) newest
) held
CROSS JOIN queued.messages_seq_seq s
WHERE held.seq >= s.last_value + s.is_called::integer`, int64(sequencesLock), int64(sequenceLeap))

// errKeyTaken is returned for a new queue whose key another one has, or a deleted
// one had.
var errKeyTaken = errors.New("the sequence of keys was set back")

// raiseSequences is for a server that has met errKeyTaken: somebody has set a
// sequence back, and no connection was lost.
func (s *store) raiseSequences(ctx context.Context) error {
	_, err := s.on("raise_sequences").ExecContext(ctx, raiseSequencesSQL)
	return asUnavailable(err)
}

// standing says which sequences there are, and where they stand.
type standing struct {
	identity   string // of the PostgreSQL cluster, the database and the sequences in it
	keys, seqs int64
}

const selectStandingSQL = `
SELECT c.system_identifier || ' ' || d.oid || ' ' || k.tableoid || ' ' || m.tableoid, k.last_value, m.last_value
FROM pg_control_system() c
JOIN pg_database d ON d.datname = current_database()
CROSS JOIN queued.queues_key_seq k
CROSS JOIN queued.messages_seq_seq m`

func readStanding(ctx context.Context, conn driver.Conn) (v standing, err error) {
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, selectStandingSQL, nil)
	if err != nil {
		return standing{}, err
	}
	defer rows.Close()
	row := make([]driver.Value, 3)
	if err := rows.Next(row); err != nil {
		return standing{}, err
	}
	v.keys, _ = row[1].(int64)
	v.seqs, _ = row[2].(int64)
	v.identity = fmt.Sprintf("%s", row[0])
	return v, nil
}

// sequences are to be looked at on the first connection after one was lost, which
// may lead to another PostgreSQL, before any statement. Those that are the same as at
// the last look and have only grown are right: to compare them with the tables is to
// walk over all index entries of what was deleted and not vacuumed.
type sequences struct {
	lost   atomic.Int64 // connections
	looked atomic.Int64 // how many were lost when the last look began
	mu     sync.Mutex   // held by who looks
	seen   standing     // at the last look; zero: there was none
}

// look raises the sequences if that is needed. The mutex is held.
func (q *sequences) look(ctx context.Context, conn driver.Conn) error {
	now, err := readStanding(ctx, conn)
	if err != nil && !rejected(err) {
		return err
	}
	if err == nil && now.identity == q.seen.identity && now.keys >= q.seen.keys && now.seqs >= q.seen.seqs {
		q.seen = now
		return nil
	}
	if _, err := conn.(driver.ExecerContext).ExecContext(ctx, raiseSequencesSQL, nil); err != nil {
		return err
	}
	q.seen = now // zero if it may not be read
	return nil
}

// lookOn is look for the start, with time.
func (q *sequences) lookOn(ctx context.Context, db *sql.DB) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	return conn.Raw(func(conn any) error { return q.look(ctx, conn.(driver.Conn)) })
}

// check looks at them if need be. Where the schema is missing, or without the
// rights, the next connection looks again. Where the look takes longer than a
// statement may, or waits for that of another server, the connection is used without.
func (q *sequences) check(ctx context.Context, conn driver.Conn) error {
	if q.looked.Load() == q.lost.Load() {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := q.lost.Load()
	if q.looked.Load() == lost {
		return nil
	}
	err := q.look(ctx, conn)
	if err == nil || rejected(err) && !means(err, needsOperator) {
		q.looked.Store(lost)
	}
	if rejected(err) {
		return nil
	}
	return err
}
