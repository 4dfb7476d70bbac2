package main

import (
	"context"
	"database/sql"
	"time"
)

// keepConsumedSQL finds rows by id, because a claim in the same transaction has updated them.
// The claim set updated_at, which a release finds them by.
const keepConsumedSQL = `
WITH consumed AS (
    DELETE FROM queued.messages m
    USING unnest($3::uuid[], $4::timestamptz[]) AS a (id, due_at)
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM $2
    RETURNING m.*, a.due_at
), kept AS (
    INSERT INTO queued.consumed_messages (home, queue_key, consumed_at, scheduled_at, seq, expired_at, delivery_attempts, ` + carriedColumnsSQL + `)
    SELECT $1, queue_key, updated_at, due_at, seq, expired_at, delivery_attempts, ` + carriedColumnsSQL + `
    FROM consumed
)
SELECT m.id, ` + pastColumnsSQL + `
FROM consumed m
WHERE m.last_error_at IS NOT NULL
    OR m.dead_at IS NOT NULL
    OR m.sqs IS NOT NULL
    OR m.received_at IS NOT NULL`

// keepConsumed moves messages that the same transaction has claimed to the consumed
// messages.
func (s *pinnedConn) keepConsumed(queueKey int64, messages []message) error {
	var ids idArray
	var dues timeArray
	byID := make(map[string]*message, len(messages))
	for i := range messages {
		m := &messages[i]
		m.consumed, m.ScheduledAt = true, m.dueAt
		byID[m.ID] = m
		ids, dues = append(ids, m.ID), append(dues, m.dueAt.Time)
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := readInHome(s, homeOf(queueKey), "keep_consumed", func(row scanner) (any, error) {
		var id string
		p := &past{} // so that a release can restore it
		err := row.Scan(append([]any{&id}, p.columns()...)...)
		if m := byID[id]; m != nil {
			m.past = p
		}
		return nil, err
	}, keepConsumedSQL, homeOf(queueKey), queueKey, ids, dues)
	return err
}

const selectConsumedSQL = `
WITH page AS MATERIALIZED (
    SELECT queue_key, consumed_at, seq, bytes
    FROM queued.consumed_messages
    WHERE queue_key = (SELECT key FROM queued.queues WHERE id = $2)
        AND home = $1
        AND consumed_at > now() - make_interval(secs => (SELECT consumed_retention_seconds FROM queued.queues WHERE id = $2))
    ORDER BY consumed_at DESC, seq DESC
    LIMIT $4 OFFSET $3
), fitting AS MATERIALIZED (
    SELECT queue_key, consumed_at, seq, bytes, sum(bytes) OVER (ORDER BY consumed_at DESC, seq DESC) AS total
    FROM page
)
SELECT ` + messageColumnsSQL + `, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, $2, '` + stateConsumed + `'
FROM fitting f
CROSS JOIN LATERAL (
    SELECT *, consumed_at AS updated_at, NULL::integer AS max_deliveries
    FROM queued.consumed_messages
    WHERE queue_key = f.queue_key
        AND home = $1
        AND consumed_at = f.consumed_at
        AND seq = f.seq
) m
WHERE f.total <= $5
    OR f.total = f.bytes
ORDER BY f.total`

// consumed returns consumed messages that a queue has kept, the latest first. It has the
// limits of peek.
func (s *store) consumed(ctx context.Context, queueID string, offset, limit int) ([]message, error) {
	q, err := s.queueAtHome(ctx, queueID)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.on("consumed"), scanMessage, selectConsumedSQL, homeOf(q.key), queueID, offset, limit, deliverySize)
}

// removeConsumedSQL deletes messages that were consumed until a time, in batches like those
// of a purge.
const removeConsumedSQL = `
WITH old AS MATERIALIZED (
    SELECT ctid AS tid, consumed_at, seq
    FROM queued.consumed_messages
    WHERE queue_key = $2
        AND home = $1
        AND consumed_at <= $3
        AND (consumed_at, seq) > ($4, $5)
    ORDER BY consumed_at, seq
    LIMIT $6
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.consumed_messages c
    USING old
    WHERE c.ctid = old.tid
        AND c.home = $1
)
SELECT false, consumed_at, seq, count(*) OVER () -- the columns of scanBatch
FROM old
ORDER BY consumed_at DESC, seq DESC
LIMIT 1`

const consumedLeftSQL = `
SELECT EXISTS (
    SELECT
    FROM queued.consumed_messages
    WHERE queue_key = $2
        AND home = $1
        AND consumed_at <= $3
)`

// If a queue no longer keeps consumed messages, all of them are deleted.
const selectKeptLongEnoughSQL = `
SELECT q.key, q.until
FROM (
    SELECT key, coalesce(now() - make_interval(secs => consumed_retention_seconds), now()) AS until
    FROM queued.queues
    WHERE home = $1
) q
WHERE (SELECT min(consumed_at) FROM queued.consumed_messages WHERE queue_key = q.key AND home = $1) <= q.until
ORDER BY q.key`

// removeConsumed deletes consumed messages at the end of the retention that their queue has
// now.
func (c *cleanup) removeConsumed(ctx context.Context, home int64) error {
	type kept struct {
		key   int64
		until time.Time // messages that were consumed until then are deleted
	}
	all, err := collect(ctx, c.on("expired_consumed"), func(row scanner) (k kept, err error) {
		err = row.Scan(&k.key, &k.until)
		return k, err
	}, selectKeptLongEnoughSQL, home)
	if err != nil {
		return err
	}
	for _, k := range all {
		if err := c.removeConsumedUntil(ctx, k.key, k.until); err != nil {
			return err
		}
	}
	return nil
}

// removeConsumedUntil deletes the messages of a queue that were consumed until a time, which
// may be "infinity".
func (c *cleanup) removeConsumedUntil(ctx context.Context, key int64, until any) error {
	return c.untilDone(ctx, homeOf(key), position{}, func(tx *sql.Tx, after position) (position, int, error) {
		return scanBatch(c.metrics.timed("remove_consumed", tx).QueryRowContext(ctx, removeConsumedSQL, homeOf(key), key, until, after.at, after.seq, cleanupBatch))
	}, func(int) {})
}
