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
// has the home; the bits above the lowest 48 are the range of that PostgreSQL.
const selectSnapshotSQL = `
SELECT q.key, now(), coalesce(pg_sequence_last_value('queued.messages_seq_seq') & 281474976710655, 0)
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

// moveMessagesSQL is a step that stores the rows of a step removed in the queues with their
// destination_id. A moved message keeps only carriedColumnsSQL and its last error, or the
// new_error. If dies is false, in a redrive, it also keeps max_deliveries. If dies is true,
// the destination is a dead queue, which must not drop messages, and the message remembers
// the queue that it came from, with its delivery attempts there.
const moveMessagesSQL = insertRemovedSQL + `
    FROM removed` + destinationOfRemovedSQL

// The two parts of moveMessagesSQL; the rows are between them.
const (
	insertRemovedSQL = `
    INSERT INTO queued.messages (home, queue_key, max_deliveries, expired_at, scheduled_at, updated_at,
                                 last_error, last_error_at, source_queue_id, source_delivery_attempts, dead_at, ` + carriedColumnsSQL + `)
    SELECT d.home, d.queue_key, CASE WHEN NOT dies THEN max_deliveries END, d.expired_at, d.scheduled_at, now(),
           coalesce(new_error, last_error), CASE WHEN new_error IS NULL THEN last_error_at ELSE now() END,
           CASE WHEN dies THEN s.source_id END, CASE WHEN dies THEN delivery_attempts END,
           CASE WHEN dies THEN now() END, ` + carriedColumnsSQL

	destinationOfRemovedSQL = `
    CROSS JOIN LATERAL (
        SELECT home, key AS queue_key,
               now() + make_interval(secs => message_retention_seconds) AS expired_at,
               now() + make_interval(secs => coalesce(delivery_delay_seconds, 0)) AS scheduled_at
        FROM queued.queues AS queues
        WHERE queues.id = removed.destination_id
    ) d
    LEFT JOIN LATERAL (
        SELECT q.id AS source_id
        FROM queued.queues q
        WHERE q.key = removed.queue_key
    ) s ON true
    ORDER BY CASE WHEN group_id IS NULL THEN removed.scheduled_at END, seq -- messages of a group keep their order
    RETURNING queue_key, group_id, scheduled_at, seq`
)

// wakeMovedSQL are the last steps of statements that move messages. Claims check their
// groups in the new queue, and in the old queue, where other messages may have waited for
// them.
const wakeMovedSQL = `), woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, seq
    FROM moved
    WHERE group_id IS NOT NULL
    UNION ALL
    SELECT queue_key, group_id, now(), NULL
    FROM removed
    WHERE group_id IS NOT NULL
), groups AS (` + wakeGroupsSQL + `
)`

// Where there are several homes, Citus executes a statement with steps on all nodes, so it
// fails if one of them does not respond. There messages move in a transaction of several
// statements, which need only the nodes of their homes: one deletes the messages and returns
// their rows, and those of taken.store have no steps before their INSERT. The rows pass
// through the server, so a batch has at most 8 MiB of messages, or one that is larger.

// taken are messages that a transaction has deleted from a queue, to store them in others.
type taken struct {
	rows         []string // of the table, as text
	destinations []string // the new queue of each; empty for none
	groups       []string // which the messages have
}

const (
	// takenFitsSQL is a condition of a step removed, which deletes the messages of a step due.
	takenFitsSQL = `
        AND due.tid IN (
            SELECT tid
            FROM (
                SELECT tid, bytes, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) AS total
                FROM due
            ) d
            WHERE total <= 8388608
                OR total = bytes
        )`

	// takenRowsSQL is the end of that step.
	takenRowsSQL = `, m AS whole
)`

	// takenColumnsSQL are the columns of taken.
	takenColumnsSQL = `array_agg(whole::text), array_agg(coalesce(destination_id, '')), array_agg(group_id) FILTER (WHERE group_id IS NOT NULL)`

	storeTakenSQL = insertRemovedSQL + `
    FROM (
        SELECT (u.whole::queued.messages).*, u.destination_id, $3::boolean AS dies, NULL::text AS new_error
        FROM unnest($1::text[], $2::text[]) AS u (whole, destination_id)
    ) AS removed` + destinationOfRemovedSQL

	// A row without a due time is a group in the old queue.
	wakeTakenSQL = `
WITH woken AS (
    SELECT queue_key, group_id, coalesce(due_at, now()) AS due_at, nullif(seq, 0) AS seq
    FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::bigint[]) AS u (queue_key, group_id, due_at, seq)
)` + wakeGroupsSQL
)

// columns are the destinations of takenColumnsSQL.
func (t *taken) columns() []any {
	return []any{pq.Array(&t.rows), pq.Array(&t.destinations), pq.Array(&t.groups)}
}

// store stores the messages, as moveMessagesSQL does, and makes claims check their groups. in
// returns the transaction that has deleted the messages of a queue.
func (t *taken) store(ctx context.Context, in func(name string) querier, queueKey int64, dies bool) error {
	var keys, seqs intArray
	var groups quotedArray
	var dues timeArray
	stored, err := collect(ctx, in("move_store"), func(row scanner) (any, error) {
		var key, seq int64
		var group sql.NullString
		var dueAt time.Time
		err := row.Scan(&key, &group, &dueAt, &seq)
		if group.Valid {
			keys, groups, dues, seqs = append(keys, key), append(groups, group.String), append(dues, dueAt), append(seqs, seq)
		}
		return nil, err
	}, storeTakenSQL, quotedArray(t.rows), quotedArray(t.destinations), dies)
	if err != nil {
		return err
	}
	if moving := slices.DeleteFunc(t.destinations, func(id string) bool { return id == "" }); len(stored) < len(moving) {
		return fmt.Errorf("%w: a destination was deleted meanwhile", errUnavailable)
	}
	for _, group := range t.groups {
		keys, groups, dues, seqs = append(keys, queueKey), append(groups, group), append(dues, time.Time{}), append(seqs, 0)
	}
	if len(groups) > 0 {
		_, err = in("move_wake").ExecContext(ctx, wakeTakenSQL, keys, groups, dues, seqs)
	}
	return err
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
