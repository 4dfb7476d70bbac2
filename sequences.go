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

// sequencesLock is the key of the advisory lock under which servers raise sequences.
const sequencesLock = 0x71756575_65640003

// sequenceLeap is added to the number of the newest message that an index finds. Messages
// that were moved since have higher numbers, and no index finds them, but there are fewer
// of them than this.
const sequenceLeap = 1 << 32

// raiseSequencesSQL raises the sequences of keys and messages above the values in the
// tables. Logical replication and some restores leave them behind. Then a new queue
// would get the key of a deleted one, whose messages are being deleted, and new
// messages would come before older ones of their group. It finds out by index whether the
// sequences are right, as they nearly always are, and then changes nothing. A key is the
// number of the sequence in its lowest 48 bits, and the home above.
var raiseSequencesSQL = fmt.Sprintf(`
SELECT pg_advisory_xact_lock(%d);

SELECT setval('queued.queues_key_seq', held.key)
FROM (
    SELECT greatest(
        (SELECT max(key & 281474976710655) FROM queued.queues),
        (SELECT max(key & 281474976710655) FROM queued.deleted_queues),
        (SELECT max(queue_key) & 281474976710655 FROM queued.messages),
        (SELECT max(queue_key) & 281474976710655 FROM queued.groups),
        (SELECT max(queue_key) & 281474976710655 FROM queued.consumed_messages),
        (SELECT max(queue_key) & 281474976710655 FROM queued.deduplications)
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

// errKeyTaken is the error of a new queue whose key belongs to another queue, which may be
// deleted.
var errKeyTaken = errors.New("the key sequence is behind the stored keys")

// raiseSequences raises the sequences after errKeyTaken: a sequence was set back while the
// connections stayed open.
func (s *store) raiseSequences(ctx context.Context) error {
	_, err := s.on("raise_sequences").ExecContext(ctx, s.homes.raiseSequencesSQL())
	return asUnavailable(err)
}

// standing identifies the sequences and holds their values.
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

// sequences checks the sequences on the first connection after one was lost, before
// any other statement: the new connection may lead to another PostgreSQL. Sequences
// that are the same as at the last check, and have only grown, are right. For these
// the comparison with the tables is skipped, which may scan many index entries of
// deleted rows.
type sequences struct {
	homes   *homes
	lost    atomic.Int64 // number of lost connections
	checked atomic.Int64 // the same at the start of the last check
	mu      sync.Mutex   // held during a check
	seen    standing     // at the last check; zero if there was none
}

// raise raises the sequences if necessary. The caller holds the mutex.
func (q *sequences) raise(ctx context.Context, conn driver.Conn) error {
	now, err := readStanding(ctx, conn)
	if err != nil && !rejected(err) {
		return err
	}
	if err == nil && now.identity == q.seen.identity && now.keys >= q.seen.keys && now.seqs >= q.seen.seqs {
		q.seen = now
		return nil
	}
	if _, err := conn.(driver.ExecerContext).ExecContext(ctx, q.homes.raiseSequencesSQL(), nil); err != nil {
		return err
	}
	q.seen = now // zero without the privilege to read them
	return nil
}

// raiseOn raises the sequences at the start of the server, with a longer timeout.
func (q *sequences) raiseOn(ctx context.Context, db *sql.DB) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	return conn.Raw(func(conn any) error { return q.raise(ctx, conn.(driver.Conn)) })
}

// check checks the sequences if a connection was lost since the last check. If the
// schema or a privilege is missing, the next connection tries again. If the check
// times out, the connection is used without it.
func (q *sequences) check(ctx context.Context, conn driver.Conn) error {
	if q.checked.Load() == q.lost.Load() {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := q.lost.Load()
	if q.checked.Load() == lost {
		return nil
	}
	err := q.raise(ctx, conn)
	if err == nil || rejected(err) && !means(err, needsOperator) {
		q.checked.Store(lost)
	}
	if rejected(err) {
		return nil
	}
	return err
}
