package main

import (
	"context"
	"database/sql/driver"
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

// raiseSequences raises the sequences of keys and messages above what the tables
// hold: logical replication and some restores leave them where they were. Else a
// new queue would get the key of a deleted one, and its messages would be deleted
// with those of that one, and new messages would come before old ones of their
// group. Sequences that are right, as nearly always, are left alone, and what that
// takes is found by index.
var raiseSequences = fmt.Sprintf(`
SELECT pg_advisory_xact_lock(%d);

SELECT setval('queued.queues_key_seq', held.key)
FROM (
    SELECT greatest(
        (SELECT max(key) FROM queued.queues),
        (SELECT max(key) FROM queued.deleted_queues),
        (SELECT max(queue_key) FROM queued.messages),
        (SELECT -min(queue_key) FROM queued.messages),
        (SELECT -min(queue_key) FROM queued.groups),
        (SELECT max(queue_key) FROM queued.consumed),
        (SELECT max(queue_key) FROM queued.tallies)
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

// raiseSequences is for the start.
func (s *store) raiseSequences(ctx context.Context) error {
	_, err := s.on("raise_sequences").ExecContext(ctx, raiseSequences)
	return err
}

// sequences are to be looked at on the first connection after one was lost, which
// may lead to another PostgreSQL, before any statement.
type sequences struct {
	unsure atomic.Bool // a connection was lost
	mu     sync.Mutex  // held by who looks
}

// check looks at them if need be. Where the schema is missing, or without the
// rights, the next connection looks again.
func (q *sequences) check(ctx context.Context, conn driver.Conn) error {
	if !q.unsure.Load() {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.unsure.Swap(false) {
		return nil
	}
	_, err := conn.(driver.ExecerContext).ExecContext(ctx, raiseSequences, nil)
	if err != nil {
		q.unsure.Store(true)
	}
	if means(err, lasting) {
		return nil
	}
	return err
}
