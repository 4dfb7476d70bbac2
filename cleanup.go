package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/lib/pq"
)

// cleanup deletes expired messages, messages of deleted queues, consumed messages at the
// end of their retention, and deduplication ids at the end of their window. It moves
// exhausted messages to their dead queues. It runs on every server. Each batch is a
// transaction under the advisory lock of its home, so servers share the work and never do the
// same at once. If another server has the lock, it does the batch.
type cleanup struct {
	*store
	log *slog.Logger

	// announce wakes the receivers of a queue that messages have moved into.
	announce func(queueID string, dueAt time.Time)

	// expiry returns the earliest expiry of messages with a retention of their own that this
	// server has stored since the last call; nil if it stores none.
	expiry func() time.Time

	round  round    // of the walk through the table
	group  groupKey // the last group of the walk through the groups; zero to begin with the first
	rests  struct{ table, groups rest }
	fronts map[int64]map[frontKey]time.Time // when the oldest message was due at the last pass, by home
	empty  map[int64]intArray               // keys of deleted queues of which the last pass found nothing, by home
}

// frontKey identifies one of the two fronts of a queue: that of its messages without a
// group, or that of its messages with a group.
type frontKey struct {
	queueKey  int64
	ungrouped bool
}

// cleanupLock is the key of the advisory lock of home 0, and that of another home has the home
// in its second byte. A transaction holds the lock: one held by a session would stop the
// cleanup for ever if its process is paused.
const cleanupLock = 0x71756575_65640002

// Bounds of one statement of the cleanup, and of one pass.
const (
	cleanupBatch = 1000 // rows
	walkPages    = 1024 // pages of the table, 8 kB each
	walkBatches  = 8

	walkRest  = 10 * time.Minute // minimum time between the beginnings of two walks through a table
	walkShare = 20               // walks take at most a twentieth of the time
)

// rest is the time at which a walk continues, by the clock of this process; zero for at once.
type rest struct{ until time.Time }

// after makes a walk that began at began and ends now rest, so that it takes no more than
// its share of the time. The rest lasts at least least.
func (r *rest) after(began time.Time, least time.Duration) {
	r.until = time.Now().Add(max((walkShare-1)*time.Since(began), least))
}

// over reports whether the walk may continue.
func (r *rest) over() bool { return !time.Now().Before(r.until) }

// deletedQueueGrace is the time for which the key of a deleted queue is kept, because a
// publish that found the queue before may still store messages.
const (
	deletedQueueGrace = time.Hour
	graceSeconds      = int(deletedQueueGrace / time.Second)
)

// inHomes calls work for each home that queues have, see homes.each.
func (c *cleanup) inHomes(ctx context.Context, work func(ctx context.Context, home int64) error) error {
	all, err := c.homes.inUse(ctx, c.on("homes"))
	if err != nil {
		return err
	}
	return c.homes.each(all, func(home int64) error { return work(ctx, home) })
}

// run calls once after each interval until ctx is done.
func (c *cleanup) run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			err := c.once(ctx)
			if err != nil && ctx.Err() == nil && !errors.Is(err, errUnresponsive) { // errUnresponsive was logged already
				c.log.Warn("cleanup failed", "error", err)
			}
		}
	}
}

// vacuum reclaims the space of deleted messages at each request until ctx is done, on a pool
// without a statement timeout. Autovacuum does the same without a request.
func (c *cleanup) vacuum(ctx context.Context, unlimited *sql.DB, requests <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-requests:
			if _, err := c.metrics.timed("vacuum", unlimited).ExecContext(ctx, "VACUUM queued.messages"); err != nil && ctx.Err() == nil {
				c.log.Warn("vacuum failed", "error", err)
			}
		}
	}
}

// once runs one pass of the cleanup. A pass does all of the work except for the walks, which
// may take several passes. Work that another server has the lock for counts as done.
func (c *cleanup) once(ctx context.Context) error {
	var errs errorList
	homes := func(ctx context.Context) error { return c.inHomes(ctx, c.home) }
	for _, work := range []func(context.Context) error{c.walk, homes, c.forgetDeleted, c.removeIdleGroups} {
		err := work(ctx)
		if errs = errs.with(err); c.homes.isLost(err) {
			break // the other work would fail too
		}
	}
	if len(errs) == 0 {
		c.metrics.cleanedUp.SetToCurrentTime()
	}
	return errs.err()
}

// home does the work of a pass in one home. If its node becomes unavailable, the rest of the
// work is not tried.
func (c *cleanup) home(ctx context.Context, home int64) error {
	var errs errorList
	for _, work := range []func(context.Context, int64) error{c.moveExhausted, c.removeExpired, c.removeConsumed, c.removeDeduplications, c.removeJobCounts, c.removeDeleted, c.recheckChangedGroups} {
		err := work(ctx, home)
		c.homes.fails(home, err)
		errs = errs.with(err)
		ofDeadQueue := errors.Is(err, errNodeUnavailable)
		if errors.Is(asUnavailable(err), errUnavailable) && !rejected(err) && !ofDeadQueue || err != nil && c.homes.unavailable(home) != nil {
			break
		}
	}
	return errs.err()
}

const selectExhaustedSQL = `
SELECT q.key, q.id, coalesce(q.dead_queue_id, ''), coalesce((SELECT d.home FROM queued.queues d WHERE d.id = q.dead_queue_id), q.home)
FROM queued.queues q
WHERE q.home = $1
    AND EXISTS (
        SELECT
        FROM queued.messages m
        WHERE m.queue_key = q.key
            AND m.home = $1
            AND m.last_delivery
            AND m.scheduled_at <= now()
            AND m.delivery_attempts >= least(q.delivery_limit, m.max_deliveries)
    )
ORDER BY q.id`

const takeExhaustedSQL = `
WITH source AS MATERIALIZED (
    SELECT delivery_limit, dead_queue_id
    FROM queued.queues
    WHERE key = $2
), due AS MATERIALIZED (
    SELECT ctid AS tid, bytes
    FROM queued.messages
    WHERE queue_key = $2
        AND home = $1
        AND last_delivery
        AND scheduled_at >= $4 -- and not >, because messages may have the same time
        AND scheduled_at <= now()
        AND expired_at > now()
        AND delivery_attempts >= least((SELECT delivery_limit FROM source), max_deliveries)
    ORDER BY scheduled_at
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), ` + fittingSQL + `, removed AS (
    DELETE FROM queued.messages m
    USING fitting a, source
    WHERE m.ctid = a.tid
        AND m.home = $1
    RETURNING m.queue_key, m.group_id, m.scheduled_at, source.dead_queue_id AS destination_id, m AS whole
)
SELECT bool_and(group_id IS NULL), max(scheduled_at), 0, count(*), ` + takenColumnsSQL + `
FROM removed
HAVING count(*) > 0`

// moveExhaustedBatch moves exhausted messages of a queue that were due then or later.
func (c *cleanup) moveExhaustedBatch(ctx context.Context, tx *sql.Tx, key int64, after time.Time) (last position, n int, err error) {
	in := func(name string) querier { return c.metrics.timed(name, tx) }
	var t taken
	row := in("move_exhausted").QueryRowContext(ctx, takeExhaustedSQL, homeOf(key), key, cleanupBatch, after)
	if err = row.Scan(append([]any{&last.ungrouped, &last.at, &last.seq, &n}, t.columns()...)...); err == nil {
		err = t.store(runIn(ctx, in), true)
	}
	return last, n, err
}

// moveExhausted moves messages whose last delivery ended without an ack to the dead queue.
// Without a dead queue it deletes them. A nack of the last delivery does this itself. Messages
// stay while the node of their dead queue does not respond.
func (c *cleanup) moveExhausted(ctx context.Context, home int64) error {
	type move struct {
		key             int64
		id, deadQueueID string
		deadHome        int64
	}
	moves, err := collect(ctx, c.on("exhausted_queues"), func(row scanner) (m move, err error) {
		err = row.Scan(&m.key, &m.id, &m.deadQueueID, &m.deadHome)
		return m, err
	}, selectExhaustedSQL, home)
	if err != nil {
		return err
	}
	var stay error
	for _, m := range moves {
		if err := c.homes.unavailable(m.deadHome); err != nil {
			stay = fmt.Errorf("dead queue %q: %w", m.deadQueueID, err)
			continue
		}
		grouped := false // some of the messages had a group
		err := c.untilDone(ctx, home, position{}, func(tx *sql.Tx, after position) (last position, n int, err error) {
			last, n, err = c.moveExhaustedBatch(ctx, tx, m.key, after.at)
			grouped = err == nil && !last.ungrouped
			return last, n, err
		}, func(n int) {
			if m.deadQueueID == "" {
				c.metrics.add(messagesDropped, m.id, n)
			} else {
				c.metrics.add(messagesDeadLettered, m.id, n)
				c.announce(m.deadQueueID, time.Time{})
			}
			if grouped {
				c.announce(m.id, time.Time{}) // other messages of their groups may have waited for them
			}
		})
		if err != nil {
			return err
		}
	}
	return stay
}

// Messages expire roughly in the order in which they become due, so expired messages are at
// the front of a queue. The search begins at the last front: otherwise it would walk over
// all deleted rows that PostgreSQL cannot remove yet.
const selectFrontsSQL = `
SELECT q.key, k.ungrouped, q.id, coalesce(oldest.scheduled_at, f.front), coalesce(oldest.expired_at <= now(), false)
FROM queued.queues q
CROSS JOIN (VALUES (true), (false)) AS k (ungrouped)
LEFT JOIN unnest($2::bigint[], $3::boolean[], $4::timestamptz[]) AS f (key, ungrouped, front) ON f.key = q.key AND f.ungrouped = k.ungrouped
LEFT JOIN LATERAL (
    SELECT scheduled_at, expired_at
    FROM queued.messages
    WHERE queue_key = q.key
        AND home = $1
        AND (group_id IS NULL) = k.ungrouped
        AND scheduled_at >= coalesce(f.front, '-infinity')
    ORDER BY scheduled_at, seq
    LIMIT 1
) oldest ON true
WHERE q.home = $1`

// The statement locks only the rows that it deletes. Claims skip locked rows, so other
// messages would be delivered late and out of order.
const removeExpiredSQL = `
WITH oldest AS MATERIALIZED (
    SELECT ctid AS tid
    FROM queued.messages
    WHERE queue_key = $2
        AND home = $1
        AND (group_id IS NULL) = $4
        AND (scheduled_at, seq) > ($5, $6)
    ORDER BY scheduled_at, seq
    LIMIT $3
), due AS MATERIALIZED (
    SELECT m.tid, $4::boolean AS ungrouped, m.scheduled_at, m.seq
    FROM oldest
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, scheduled_at, seq
        FROM queued.messages
        WHERE queue_key = $2
            AND home = $1
            AND ctid = oldest.tid
            AND expired_at <= now()
        FOR UPDATE SKIP LOCKED
    ) m
), removed AS (
    DELETE FROM queued.messages m
    USING due
    WHERE m.ctid = due.tid
        AND m.home = $1
)` + lastOfBatchSQL

// removeExpired deletes expired messages at the front of their queues, where claims have to
// walk over them. The walk finds the others.
func (c *cleanup) removeExpired(ctx context.Context, home int64) error {
	type front struct {
		frontKey
		id      string
		at      time.Time
		expired bool
	}
	var keys intArray
	var ungrouped pq.BoolArray
	var times timeArray
	for key, at := range c.fronts[home] {
		keys, ungrouped, times = append(keys, key.queueKey), append(ungrouped, key.ungrouped), append(times, at)
	}
	fronts, err := collect(ctx, c.on("fronts"), func(row scanner) (f front, err error) {
		var at sql.NullTime // null if the queue never had messages
		err = row.Scan(&f.queueKey, &f.ungrouped, &f.id, &at, &f.expired)
		f.at = at.Time
		return f, err
	}, selectFrontsSQL, home, keys, ungrouped, times)
	if err != nil {
		return err
	}
	if c.fronts == nil {
		c.fronts = make(map[int64]map[frontKey]time.Time)
	}
	last := make(map[frontKey]time.Time, len(fronts))
	c.fronts[home] = last
	for _, f := range fronts {
		last[f.frontKey] = f.at
		if !f.expired {
			continue
		}
		err := c.untilDone(ctx, home, position{ungrouped: f.ungrouped, at: f.at}, func(tx *sql.Tx, after position) (position, int, error) {
			return scanBatch(c.metrics.timed("remove_expired", tx).QueryRowContext(ctx, removeExpiredSQL, home, f.queueKey, cleanupBatch, after.ungrouped, after.at, after.seq))
		}, func(n int) { c.metrics.add(messagesExpired, f.id, n) })
		if err != nil {
			return err
		}
	}
	return nil
}

// The search for the rows of a deleted queue walks over all deleted rows that PostgreSQL
// cannot remove yet. So queues that were empty at the last pass are searched again only at
// the end of deletedQueueGrace.
const selectDeletedSQL = `
SELECT key, CASE
    WHEN key = ANY ($2::bigint[]) AND deleted_at >= now() - make_interval(secs => $3) THEN false
    ELSE EXISTS (SELECT FROM queued.messages WHERE queue_key = d.key AND home = $1)
        OR EXISTS (SELECT FROM queued.consumed_messages WHERE queue_key = d.key AND home = $1)
        OR EXISTS (SELECT FROM queued.deduplications WHERE queue_key = d.key AND home = $1)
END
FROM queued.deleted_queues d
WHERE d.home = $1
ORDER BY key`

const selectForgottenSQL = `
SELECT key
FROM queued.deleted_queues d
WHERE d.home = $1
    AND deleted_at < now() - make_interval(secs => $2)
    AND NOT EXISTS (SELECT FROM queued.messages WHERE queue_key = d.key AND home = $1)
    AND NOT EXISTS (SELECT FROM queued.consumed_messages WHERE queue_key = d.key AND home = $1)
    AND NOT EXISTS (SELECT FROM queued.deduplications WHERE queue_key = d.key AND home = $1)`

const forgetDeletedSQL = `
DELETE FROM queued.deleted_queues
WHERE key = ANY ($1::bigint[])`

// removeDeleted deletes the messages, consumed messages and deduplication ids of deleted
// queues.
func (c *cleanup) removeDeleted(ctx context.Context, home int64) error {
	type deleted struct {
		key   int64
		found bool // there are rows to delete
	}
	all, err := collect(ctx, c.on("deleted_queues"), func(row scanner) (d deleted, err error) {
		err = row.Scan(&d.key, &d.found)
		return d, err
	}, selectDeletedSQL, home, c.empty[home], graceSeconds)
	if err != nil {
		return err
	}
	if c.empty == nil {
		c.empty = make(map[int64]intArray)
	}
	c.empty[home] = nil
	for _, d := range all {
		if !d.found {
			c.empty[home] = append(c.empty[home], d.key)
			continue
		}
		err := c.untilDone(ctx, home, position{}, func(tx *sql.Tx, after position) (position, int, error) {
			return scanBatch(c.metrics.timed("remove_deleted", tx).QueryRowContext(ctx, purgeBatchSQL, home, d.key, int64(math.MaxInt64), after.ungrouped, after.at, after.seq, cleanupBatch))
		}, func(int) {})
		if err != nil {
			return err
		}
		if err := c.removeConsumedUntil(ctx, d.key, "infinity"); err != nil {
			return err
		}
		if err := c.removeDeduplicationsOf(ctx, d.key); err != nil {
			return err
		}
	}
	return nil
}

// forgetDeleted deletes the keys of deleted queues that have no rows.
func (c *cleanup) forgetDeleted(ctx context.Context) error {
	var keys intArray
	err := c.inHomes(ctx, func(ctx context.Context, home int64) error {
		all, err := collect(ctx, c.on("forgotten_queues"), scanKey, selectForgottenSQL, home, graceSeconds)
		keys = append(keys, all...)
		return err
	})
	if len(keys) == 0 {
		return err
	}
	failed := c.homes.needAllNodes()
	if failed == nil {
		_, failed = c.on("forget_deleted").ExecContext(ctx, forgetDeletedSQL, keys)
	}
	return errorList{}.with(err).with(asUnavailable(asNeedsAllNodes(failed))).err()
}

// untilDone repeats a batch of a home until it returns sql.ErrNoRows, and calls done with the
// number of rows of each other batch. A batch starts after the last position of the previous
// one, so that it does not walk over deleted rows.
func (c *cleanup) untilDone(ctx context.Context, home int64, last position, batch func(tx *sql.Tx, after position) (position, int, error), done func(n int)) error {
	for {
		n := 0
		locked, err := c.batch(ctx, home, func(tx *sql.Tx) (err error) {
			last, n, err = batch(tx, last)
			return err
		})
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil || !locked {
			return err
		}
		done(n)
	}
}

// batch runs change in a transaction that has the cleanup's lock of a home. It does nothing,
// and returns false, if another server has the lock. A transaction that waits for a node that
// does not respond keeps its lock, so the homes do not share one.
func (c *cleanup) batch(ctx context.Context, home int64, change func(*sql.Tx) error) (locked bool, err error) {
	tx, err := c.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	if err := tx.QueryRowContext(ctx, "SELECT pg_try_advisory_xact_lock($1)", int64(cleanupLock|home<<8)).Scan(&locked); err != nil || !locked {
		return false, err
	}
	if err := change(tx); err != nil {
		return false, err
	}
	return true, tx.Commit()
}

// recheckChangedGroups makes claims check groups after a change of settings, if the request
// that changed the settings could not do so.
func (c *cleanup) recheckChangedGroups(ctx context.Context, home int64) error {
	return c.store.recheckChangedGroups(ctx, home, "", func(queueID string) { c.announce(queueID, time.Time{}) })
}
