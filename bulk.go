package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lib/pq"
)

// workBatch is the maximum number of rows that one statement of a bulk operation changes. It
// is a compromise between the cost of a commit, and the time that other statements wait for
// the rows and for the disk.
const workBatch = 500

// snapshot identifies the messages that were in a queue at one moment.
type snapshot struct {
	key int64     // of the queue
	at  time.Time // the clock of PostgreSQL
	seq int64     // later messages have a larger seq
}

// The join reads no messages. It is there because the last seq is that of the PostgreSQL that
// has the home; the bits above the lowest 48 are the range of that PostgreSQL. Where there are
// several homes, another PostgreSQL may have numbered the messages of this one, by its clock.
// The seq of a later message is at most 1000 ticks behind the clock (numberMessageSQL).
const selectSnapshotSQL = `
SELECT q.key, now(), greatest(pg_sequence_last_value('queued.messages_seq_seq') & 281474976710655,
                              CASE WHEN queued.has_homes() THEN ` + ticksSQL + ` - 1001 ELSE 0 END)
FROM queued.queues q
LEFT JOIN (SELECT FROM queued.messages WHERE home = $1 LIMIT 0) AS home ON true
WHERE q.id = $2`

func (s *store) snapshot(ctx context.Context, queueID string) (v snapshot, err error) {
	home, err := s.homeOfQueue(ctx, queueID)
	if err != nil {
		return v, err
	}
	err = s.on("snapshot").QueryRowContext(ctx, selectSnapshotSQL, home, queueID).Scan(&v.key, &v.at, &v.seq)
	if errors.Is(err, sql.ErrNoRows) {
		return v, errQueueNotFound
	}
	return v, asUnavailable(err)
}

// The rows of a batch are locked in the order of messages_due. Rows that another transaction
// has locked are left for a later round. Each batch begins after the last row of the
// previous batch, so that it does not walk over deleted rows.
const purgeBatchSQL = `
WITH due AS MATERIALIZED (
    SELECT ctid AS tid, group_id IS NULL AS ungrouped, scheduled_at, seq
    FROM queued.messages
    WHERE queue_key = $2
        AND home = $1
        AND ((group_id IS NULL), scheduled_at, seq) > ($4, $5, $6)
        AND seq <= $3
    ORDER BY (group_id IS NULL), scheduled_at, seq
    LIMIT $7
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM queued.messages m
    USING due
    WHERE m.ctid = due.tid
        AND m.home = $1
)` + lastOfBatchSQL

// lastOfBatchSQL returns the last position of a step due, and its number of rows.
const lastOfBatchSQL = `
SELECT ungrouped, scheduled_at, seq, count(*) OVER ()
FROM due
ORDER BY ungrouped DESC, scheduled_at DESC, seq DESC
LIMIT 1`

const purgeLeftSQL = `
SELECT EXISTS (
    SELECT
    FROM queued.messages
    WHERE queue_key = $2
        AND home = $1
        AND seq <= $3
)`

// purge deletes the messages that were in the queue when it was called, in any state, and
// then the consumed messages that the queue has kept. It calls purged with the number of
// messages in each batch. Later messages stay. If ctx ends or the process dies, some of the
// messages are deleted and others are not.
func (s *store) purge(ctx context.Context, queueID string, purged func(n int)) error {
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	err = inBatches(ctx, func(after position) (position, error) {
		last, n, err := scanBatch(s.on("purge").QueryRowContext(ctx, purgeBatchSQL, homeOf(v.key), v.key, v.seq, after.ungrouped, after.at, after.seq, workBatch))
		if err == nil {
			purged(n)
		}
		return last, err
	}, func() (left bool, err error) {
		err = s.on("purge_left").QueryRowContext(ctx, purgeLeftSQL, homeOf(v.key), v.key, v.seq).Scan(&left)
		return left, err
	})
	if err != nil {
		return err
	}
	if err := s.recheckGroups(ctx, v.key, ""); err != nil {
		return err
	}
	return inBatches(ctx, func(after position) (position, error) {
		last, _, err := scanBatch(s.on("purge_consumed").QueryRowContext(ctx, removeConsumedSQL, homeOf(v.key), v.key, v.at, after.at, after.seq, workBatch))
		return last, err
	}, func() (left bool, err error) {
		err = s.on("consumed_left").QueryRowContext(ctx, consumedLeftSQL, homeOf(v.key), v.key, v.at).Scan(&left)
		return left, err
	})
}

// carriedColumnsSQL are the columns that a message keeps when it moves.
const carriedColumnsSQL = `id, created_at, bytes, group_id, job_id, trace, attributes, data, sqs`

// Messages move in a transaction of several statements. One deletes them and returns their
// rows, and those of taken.store store them in their new queues. They are not one statement,
// because messages must not be stored before their groups are locked, and because Citus would
// execute a statement with several steps on all nodes, so that it fails if one of them does
// not respond. The rows pass through the server, so a batch has at most 8 MiB of messages, or
// one that is larger.

// taken are messages that a transaction has deleted, to store them in other queues. The
// elements of all slices belong together.
type taken struct {
	rows         []string // of the table, as text
	destinations []string // the new queue; empty for none
	keys         []int64  // of the old queue
	groups       []string // empty for none
	errors       []string // the reason of the move, or empty to keep the last error; may be shorter
}

const (
	// fittingSQL is a step with the first 8 MiB of the messages of a step due, or with the first
	// one if that is larger.
	fittingSQL = `fitting AS MATERIALIZED (
    SELECT *
    FROM (
        SELECT due.*, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) AS total
        FROM due
    ) d
    WHERE total <= 8388608
        OR total = bytes
)`

	// takenColumnsSQL are the columns of taken, but the errors.
	takenColumnsSQL = `array_agg(whole::text), array_agg(coalesce(destination_id, '')), array_agg(queue_key), array_agg(coalesce(group_id, ''))`

	// lockTakenSQL locks the groups in the old and the new queues, in the order of wakeGroupsSQL.
	// Otherwise, a message that waits for its group might get a smaller seq than one that another
	// transaction has committed by then, and that consumers have received.
	lockTakenSQL = `
INSERT INTO queued.groups AS g (home, queue_key, id, ready_at, first_seq, first_lease_end)
SELECT u.queue_key >> 48, u.queue_key, u.group_id, timestamptz 'infinity', 9223372036854775807, timestamptz 'infinity'
FROM (
    SELECT t.queue_key, t.group_id COLLATE "C" AS group_id
    FROM unnest($1::bigint[], $2::text[]) AS t (queue_key, group_id)
    UNION
    SELECT q.key, t.group_id COLLATE "C"
    FROM unnest($3::text[], $2::text[]) AS t (destination_id, group_id)
    JOIN queued.queues q ON q.id = t.destination_id
) u
WHERE u.group_id IS NOT NULL
ORDER BY u.queue_key, u.group_id
ON CONFLICT (queue_key, id) DO UPDATE
SET ready_at = g.ready_at
WHERE false -- the row is locked nevertheless`

	// A moved message keeps only carriedColumnsSQL and its last error, unless there is a new one.
	// If $3 is false, in a redrive, it also keeps max_deliveries. If $3 is true, the destination is
	// a dead queue, which must not drop messages, and the message remembers the queue that it came
	// from, with its delivery attempts there. The rows are in no subquery, because Citus would
	// send the result of one to all nodes.
	storeTakenSQL = `
INSERT INTO queued.messages (home, queue_key, max_deliveries, expired_at, scheduled_at, updated_at,
                             last_error, last_error_at, source_queue_id, source_delivery_attempts, dead_at, ` + carriedColumnsSQL + `)
SELECT d.home, d.queue_key, CASE WHEN NOT $3 THEN max_deliveries END, d.expired_at, d.scheduled_at, now(),
       coalesce(new_error, last_error), CASE WHEN new_error IS NULL THEN last_error_at ELSE now() END,
       CASE WHEN $3 THEN s.source_id END, CASE WHEN $3 THEN delivery_attempts END,
       CASE WHEN $3 THEN now() END, ` + carriedColumnsSQL + `
FROM unnest($1::text[]::queued.messages[]) WITH ORDINALITY AS taken
CROSS JOIN LATERAL (
    SELECT ($2::text[])[ordinality] AS destination_id, ($4::text[])[ordinality] AS new_error
) a
CROSS JOIN LATERAL (
    SELECT home, key AS queue_key,
           now() + make_interval(secs => message_retention_seconds) AS expired_at,
           now() + make_interval(secs => coalesce(delivery_delay_seconds, 0)) AS scheduled_at
    FROM queued.queues AS queues
    WHERE queues.id = a.destination_id
) d
LEFT JOIN LATERAL (
    SELECT q.id AS source_id
    FROM queued.queues q
    WHERE q.key = taken.queue_key
) s ON true
ORDER BY CASE WHEN group_id IS NULL THEN taken.scheduled_at END, seq -- messages of a group keep their order
RETURNING queue_key, group_id, scheduled_at, seq`

	// Claims check the groups in the new queues, and in the old queues, where other messages may
	// have waited for them. A row without a due time is a group in an old queue.
	wakeTakenSQL = `
WITH woken AS (
    SELECT queue_key, group_id COLLATE "C" AS group_id, coalesce(due_at, now()) AS due_at, nullif(seq, 0) AS seq
    FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::bigint[]) AS u (queue_key, group_id, due_at, seq)
)` + wakeGroupsSQL
)

// columns are the destinations of takenColumnsSQL.
func (t *taken) columns() []any {
	return []any{pq.Array(&t.rows), pq.Array(&t.destinations), pq.Array(&t.keys), pq.Array(&t.groups)}
}

// woken are groups that claims have to check.
type woken struct {
	keys, seqs intArray
	groups     quotedArray
	dues       timeArray
}

func (w *woken) add(key int64, group string, dueAt time.Time, seq int64) {
	w.keys, w.groups, w.dues, w.seqs = append(w.keys, key), append(w.groups, group), append(w.dues, dueAt), append(w.seqs, seq)
}

// runner runs a statement of a transaction. name labels its metrics.
type runner func(name string, scan func(scanner) error, query string, args ...any) error

func runIn(ctx context.Context, in func(name string) querier) runner {
	return func(name string, scan func(scanner) error, query string, args ...any) error {
		_, err := collect(ctx, in(name), func(row scanner) (any, error) { return nil, scan(row) }, query, args...)
		return err
	}
}

// store stores the messages in their new queues, and makes claims check their groups. Those
// without a destination are dropped. It runs in the transaction that has deleted them.
func (t *taken) store(run runner, dies bool) error {
	hasGroups := slices.ContainsFunc(t.groups, func(id string) bool { return id != "" })
	if hasGroups {
		if err := run("move_lock", nil, lockTakenSQL, intArray(t.keys), quotedArray(t.groups), quotedArray(t.destinations)); err != nil {
			return err
		}
	}
	var w woken
	n := 0
	err := run("move_store", func(row scanner) error {
		var m struct {
			queueKey, seq int64
			group         sql.NullString
			dueAt         time.Time
		}
		err := row.Scan(&m.queueKey, &m.group, &m.dueAt, &m.seq)
		if n++; m.group.Valid {
			w.add(m.queueKey, m.group.String, m.dueAt, m.seq)
		}
		return err
	}, storeTakenSQL, quotedArray(t.rows), quotedArray(t.destinations), dies, quotedArray(t.errors))
	if err != nil {
		return err
	}
	if moving := slices.DeleteFunc(slices.Clone(t.destinations), func(id string) bool { return id == "" }); n < len(moving) {
		return fmt.Errorf("%w: a destination was deleted meanwhile", errUnavailable)
	}
	if !hasGroups {
		return nil
	}
	for i, group := range t.groups {
		if group != "" {
			w.add(t.keys[i], group, time.Time{}, 0)
		}
	}
	return run("move_wake", func(scanner) error { return nil }, wakeTakenSQL, w.keys, w.groups, w.dues, w.seqs)
}

// position is a position in messages_due, in which messages with a group come before
// messages without one. The zero position is before the first message.
type position struct {
	ungrouped bool
	at        time.Time
	seq       int64
}

// scanBatch reads the last position of a batch and its number of rows.
func scanBatch(row scanner) (last position, n int, err error) {
	err = row.Scan(&last.ungrouped, &last.at, &last.seq, &n)
	return last, n, err
}

// inBatches calls batch until it returns sql.ErrNoRows, each time with the last position of
// the previous batch. It repeats this until left returns false, because rows may have been
// locked by others, or have moved back.
func inBatches(ctx context.Context, batch func(after position) (position, error), left func() (bool, error)) error {
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		var last position
		for {
			var err error
			last, err = batch(last)
			if errors.Is(err, sql.ErrNoRows) {
				break
			}
			if err != nil {
				return asUnavailable(err)
			}
		}
		if more, err := left(); err != nil || !more {
			return asUnavailable(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
