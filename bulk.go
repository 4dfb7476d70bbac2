package main

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// workBatch is how many rows one statement of a large piece of work changes: a
// compromise between the cost of a commit and the time others wait for its rows
// and for the disk.
const workBatch = 500

// snapshot says which messages of a queue were there at one moment.
type snapshot struct {
	key int64     // of the queue
	at  time.Time // the clock of PostgreSQL
	seq int64     // messages that come later have a larger one
}

const selectSnapshotSQL = `
SELECT key, now(), (SELECT last_value FROM queued.messages_seq_seq)
FROM queued.queues
WHERE id = $1`

func (s *store) snapshot(ctx context.Context, queueID string) (v snapshot, err error) {
	err = s.on("snapshot").QueryRowContext(ctx, selectSnapshotSQL, queueID).Scan(&v.key, &v.at, &v.seq)
	if errors.Is(err, sql.ErrNoRows) {
		return v, errQueueNotFound
	}
	return v, asUnavailable(err)
}

// The rows of a batch are locked in the order of messages_due; a row that another
// transaction has locked is left for a later round. Each batch begins after the last
// row of the batch before, so that it does not walk over the rows that one deleted.
const purgeBatchSQL = `
WITH due AS MATERIALIZED (
    SELECT ctid AS tid, group_id IS NULL AS ungrouped, scheduled_at, seq
    FROM queued.messages
    WHERE queue_key = $1
        AND ((group_id IS NULL), scheduled_at, seq) > ($3, $4, $5)
        AND seq <= $2
    ORDER BY (group_id IS NULL), scheduled_at, seq
    LIMIT $6
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM queued.messages m
    USING due
    WHERE m.ctid = due.tid
)` + lastOfBatchSQL

// lastOfBatchSQL returns the last position of a step named due, and its number of rows.
const lastOfBatchSQL = `
SELECT ungrouped, scheduled_at, seq, count(*) OVER ()
FROM due
ORDER BY ungrouped DESC, scheduled_at DESC, seq DESC
LIMIT 1`

const purgeLeftSQL = `
SELECT EXISTS (
    SELECT
    FROM queued.messages
    WHERE queue_key = $1
        AND seq <= $2
)`

// purge deletes the messages that were in the queue when it was called,
// whatever their state, and calls purged with the number of each batch; then
// those that were consumed and kept. Messages that come meanwhile stay. If ctx
// ends or the process dies, part of them is gone.
func (s *store) purge(ctx context.Context, queueID string, purged func(n int)) error {
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	err = inBatches(ctx, func(after position) (position, error) {
		last, n, err := scanBatch(s.on("purge").QueryRowContext(ctx, purgeBatchSQL, v.key, v.seq, after.ungrouped, after.at, after.seq, workBatch))
		if err == nil {
			purged(n)
		}
		return last, err
	}, func() (left bool, err error) {
		err = s.on("purge_left").QueryRowContext(ctx, purgeLeftSQL, v.key, v.seq).Scan(&left)
		return left, err
	})
	if err != nil {
		return err
	}
	if err := recheckGroupsOn(ctx, s.on("refresh_groups"), v.key, ""); err != nil {
		return err
	}
	return inBatches(ctx, func(after position) (position, error) {
		last, _, err := scanBatch(s.on("purge_consumed").QueryRowContext(ctx, removeConsumedSQL, v.key, v.at, after.at, after.seq, workBatch))
		return last, err
	}, func() (left bool, err error) {
		err = s.on("consumed_left").QueryRowContext(ctx, consumedLeftSQL, v.key, v.at).Scan(&left)
		return left, err
	})
}

// carriedColumnsSQL are the columns that a message keeps wherever it goes.
const carriedColumnsSQL = `id, created_at, bytes, group_id, job_id, trace, attributes, data`

// moveMessagesSQL is a step that moves the rows of a step named gone to the queues
// that they name as destination_id. A moved message starts anew except for
// carriedColumnsSQL. keeps_limit says whether it keeps max_deliveries: a redrive does,
// and a move to a dead queue does not, where nothing is to be dropped.
const moveMessagesSQL = `
    INSERT INTO queued.messages (queue_key, max_deliveries, expired_at, scheduled_at, updated_at, ` + carriedColumnsSQL + `)
    SELECT d.queue_key, CASE WHEN keeps_limit THEN max_deliveries END, d.expired_at, d.scheduled_at, now(), ` + carriedColumnsSQL + `
    FROM gone
    CROSS JOIN LATERAL (
        SELECT key AS queue_key,
               now() + make_interval(secs => message_retention_seconds) AS expired_at,
               now() + make_interval(secs => coalesce(delivery_delay_seconds, 0)) AS scheduled_at
        FROM queued.queues
        WHERE queues.id = gone.destination_id
    ) d
    ORDER BY CASE WHEN group_id IS NULL THEN gone.scheduled_at END, seq -- groups in their order
    RETURNING queue_key, group_id, scheduled_at, seq`

// wakeMovedSQL are the last steps of statements that move messages: their groups are
// looked at where they come to, and where they leave those who waited for them.
const wakeMovedSQL = `), woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, seq
    FROM moved
    WHERE group_id IS NOT NULL
    UNION ALL
    SELECT queue_key, group_id, now(), NULL
    FROM gone
    WHERE group_id IS NOT NULL
), groups AS (` + wakeGroupsSQL + `
)`

const redriveBatchSQL = `
WITH source AS MATERIALIZED (
    SELECT delivery_limit
    FROM queued.queues
    WHERE key = $1
), destination AS MATERIALIZED (
    SELECT id
    FROM queued.queues
    WHERE id = $8
), due AS MATERIALIZED (
    SELECT ctid AS tid, group_id IS NULL AS ungrouped, scheduled_at, seq
    FROM queued.messages
    WHERE queue_key = $1
        AND ((group_id IS NULL), scheduled_at, seq) > ($4, $5, $6)
        AND scheduled_at <= $2
        AND seq <= $3
        AND expired_at > now()
        AND delivery_attempts < least((SELECT delivery_limit FROM source), max_deliveries)
        AND EXISTS (SELECT FROM destination)
    ORDER BY (group_id IS NULL), scheduled_at, seq
    LIMIT $7
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM queued.messages m
    USING due, destination
    WHERE m.ctid = due.tid
    RETURNING m.*, true AS keeps_limit, destination.id AS destination_id
), moved AS (` + moveMessagesSQL + wakeMovedSQL + lastOfBatchSQL

const redriveLeftSQL = `
SELECT EXISTS (
    SELECT
    FROM queued.messages m
    JOIN queued.queues q ON q.key = m.queue_key
    WHERE m.queue_key = $1
        AND m.scheduled_at <= $2
        AND m.seq <= $3
        AND m.expired_at > now()
        AND m.delivery_attempts < least(q.delivery_limit, m.max_deliveries)
)`

// redrive moves the messages of the queue that could be received when it was called
// to the destination, and calls moved with the number of each batch. It moves at most
// limit messages, in order: those with a group first. If ctx ends or the process dies,
// part of them has moved, and each is in one queue. To redrive a queue onto itself
// restarts its messages.
func (s *store) redrive(ctx context.Context, queueID, destinationID string, limit int, moved func(n int)) error {
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	return inBatches(ctx, func(after position) (position, error) {
		// Deleted meanwhile, the destination would take nothing and the work not end.
		if _, err := s.queue(ctx, destinationID); err != nil {
			return position{}, err
		}
		last, n, err := scanBatch(s.on("redrive").QueryRowContext(ctx, redriveBatchSQL, v.key, v.at, v.seq, after.ungrouped, after.at, after.seq, min(limit, workBatch), destinationID))
		if err == nil {
			limit -= n
			moved(n)
		}
		return last, err
	}, func() (left bool, err error) {
		if limit == 0 {
			return false, nil
		}
		err = s.on("redrive_left").QueryRowContext(ctx, redriveLeftSQL, v.key, v.at, v.seq).Scan(&left)
		return left, err
	})
}

// position is a place in the order of messages_due, where the messages of a queue
// that have a group come before the others. Zero is before the first.
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

// inBatches calls batch until it returns sql.ErrNoRows, each time with the last
// position of the batch before, and starts over until left says that nothing
// is: rows that others had locked, or that moved back, take another round.
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
