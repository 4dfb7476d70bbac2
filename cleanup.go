package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"time"

	"github.com/lib/pq"
)

// cleanup removes what nobody can receive any more: expired messages and those
// of deleted queues go, exhausted ones move to their dead queues. What was
// consumed goes when it was kept for long enough. It runs on
// every server; each batch is a transaction under one advisory lock, so servers
// share the work and never do the same at once. A batch that another server has
// the lock for is left to it.
type cleanup struct {
	db  *sql.DB
	log *slog.Logger

	metrics *metrics

	// announce tells receivers of the queue that messages have moved into it.
	announce func(queueID string, dueAt time.Time)

	round  round    // of the walk through the table
	group  groupKey // where the walk through the groups goes on; zero: at the first
	rests  struct{ table, groups rest }
	fronts map[frontKey]time.Time // when the oldest message was due, at the last pass
}

// frontKey is one of the two fronts of a queue: that of its messages without a group,
// or that of those with one.
type frontKey struct {
	queueKey  int64
	ungrouped bool
}

// cleanupLock is the key of the advisory lock. It is a transaction's: a session
// lock held by a process that was stopped would stop the cleanup for ever.
const cleanupLock = 0x71756575_65640002

// Bounds of one statement of the cleanup, and of one pass.
const (
	cleanupBatch = 1000 // rows
	walkPages    = 1024 // pages of the table, 8 kB each
	walkBatches  = 8

	walkRest  = 10 * time.Minute // between the beginnings of two walks through a table, at least
	walkShare = 20               // a walk takes at most one part in so many of the time
)

// rest is when a walk goes on, by the clock of this process; zero: at once.
type rest struct{ until time.Time }

// after makes a walk that has begun then, and ends now, take no more than its share,
// and rest for so long at least.
func (r *rest) after(began time.Time, least time.Duration) {
	r.until = time.Now().Add(max((walkShare-1)*time.Since(began), least))
}

// over reports whether the walk may go on.
func (r *rest) over() bool { return !time.Now().Before(r.until) }

// deletedQueueGrace is how long the key of a deleted queue is remembered: a
// publish that found the queue just before may still write to it.
const deletedQueueGrace = time.Hour

// on returns the database for one statement, whose name is for the metrics.
func (c *cleanup) on(name string) querier { return c.metrics.timed(name, c.db) }

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
			if err != nil && ctx.Err() == nil && !errors.Is(err, errUnresponsive) { // of which the log has a line
				c.log.Warn("cleanup failed", "error", err)
			}
		}
	}
}

// vacuum reclaims the space of deleted messages at each request until ctx is done, on
// a pool without a statement timeout. Autovacuum does the same at times of its own.
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

// once is one pass: it does all there is to do, but for what only the walks find.
// What another server has the lock for counts as done.
func (c *cleanup) once(ctx context.Context) (err error) {
	for _, work := range []func(context.Context) error{c.walk, c.moveExhausted, c.removeExpired, c.removeConsumed, c.removeDeleted, c.recheckChangedGroups, c.removeIdleGroups} {
		failed := work(ctx)
		err = errors.Join(err, failed)
		if errors.Is(asUnavailable(failed), errUnavailable) && !rejected(failed) {
			break // the database is away, and not only unwilling to do this
		}
	}
	if err == nil {
		c.metrics.cleanedUp.SetToCurrentTime()
	}
	return err
}

const selectExhaustedSQL = `
SELECT q.key, q.id, coalesce(q.dead_queue_id, '')
FROM queued.queues q
WHERE EXISTS (
    SELECT
    FROM queued.messages m
    WHERE m.queue_key = q.key
        AND m.last_delivery
        AND m.scheduled_at <= now()
        AND m.delivery_attempts >= least(q.delivery_limit, m.max_deliveries)
)
ORDER BY q.id`

const moveExhaustedSQL = `
WITH source AS MATERIALIZED (
    SELECT delivery_limit, dead_queue_id
    FROM queued.queues
    WHERE key = $1
), due AS MATERIALIZED (
    SELECT ctid AS tid, group_id IS NULL AS ungrouped, scheduled_at, seq
    FROM queued.messages
    WHERE queue_key = $1
        AND last_delivery
        AND scheduled_at >= $3 -- several have the same time, and one may be left over
        AND scheduled_at <= now()
        AND expired_at > now()
        AND delivery_attempts >= least((SELECT delivery_limit FROM source), max_deliveries)
    ORDER BY scheduled_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM queued.messages m
    USING due, source
    WHERE m.ctid = due.tid
    RETURNING m.*, false AS keeps_limit, source.dead_queue_id AS destination_id
), moved AS (` + moveMessagesSQL + wakeMovedSQL + `
SELECT bool_and(ungrouped), max(scheduled_at), 0, count(*)
FROM due
HAVING count(*) > 0`

// moveExhausted moves messages whose last delivery ended without an ack to the
// dead queue; where there is none, they are dropped. Those that were nacked are
// gone already.
func (c *cleanup) moveExhausted(ctx context.Context) error {
	type move struct {
		key             int64
		id, deadQueueID string
	}
	moves, err := collect(ctx, c.on("exhausted_queues"), func(row scanner) (m move, err error) {
		err = row.Scan(&m.key, &m.id, &m.deadQueueID)
		return m, err
	}, selectExhaustedSQL)
	if err != nil {
		return err
	}
	for _, m := range moves {
		grouped := false // some of them had a group
		err := c.untilDone(ctx, position{}, func(tx *sql.Tx, after position) (last position, n int, err error) {
			last, n, err = scanBatch(c.metrics.timed("move_exhausted", tx).QueryRowContext(ctx, moveExhaustedSQL, m.key, cleanupBatch, after.at))
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
				c.announce(m.id, time.Time{}) // others of their groups waited for them
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Messages expire roughly in the order in which they become due, so the expired
// ones are found at the front of a queue. The search begins where the front was
// the last time: as long as PostgreSQL cannot remove what is gone from there, it
// would walk over all of it.
const selectFrontsSQL = `
SELECT q.key, k.ungrouped, q.id, coalesce(oldest.scheduled_at, f.front), coalesce(oldest.expired_at <= now(), false)
FROM queued.queues q
CROSS JOIN (VALUES (true), (false)) AS k (ungrouped)
LEFT JOIN unnest($1::bigint[], $2::boolean[], $3::timestamptz[]) AS f (key, ungrouped, front) ON f.key = q.key AND f.ungrouped = k.ungrouped
LEFT JOIN LATERAL (
    SELECT scheduled_at, expired_at
    FROM queued.messages
    WHERE queue_key = q.key
        AND (group_id IS NULL) = k.ungrouped
        AND scheduled_at >= coalesce(f.front, '-infinity')
    ORDER BY scheduled_at, seq
    LIMIT 1
) oldest ON true`

// Only what is deleted is locked: a claim passes over rows that are locked, and
// what is not expired would come late and out of order.
const removeExpiredSQL = `
WITH oldest AS MATERIALIZED (
    SELECT ctid AS tid
    FROM queued.messages
    WHERE queue_key = $1
        AND (group_id IS NULL) = $3
        AND (scheduled_at, seq) > ($4, $5)
    ORDER BY scheduled_at, seq
    LIMIT $2
), due AS MATERIALIZED (
    SELECT m.tid, $3::boolean AS ungrouped, m.scheduled_at, m.seq
    FROM oldest
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, scheduled_at, seq
        FROM queued.messages
        WHERE queue_key = $1
            AND ctid = oldest.tid
            AND expired_at <= now()
        FOR UPDATE SKIP LOCKED
    ) m
), removed AS (
    DELETE FROM queued.messages m
    USING due
    WHERE m.ctid = due.tid
)` + lastOfBatchSQL

// removeExpired deletes expired messages at the front of their queues, where
// they are in the way of receivers. The walk finds the others.
func (c *cleanup) removeExpired(ctx context.Context) error {
	type front struct {
		frontKey
		id      string
		at      time.Time
		expired bool
	}
	var keys intArray
	var ungrouped pq.BoolArray
	var times timeArray
	for key, at := range c.fronts {
		keys, ungrouped, times = append(keys, key.queueKey), append(ungrouped, key.ungrouped), append(times, at)
	}
	fronts, err := collect(ctx, c.on("fronts"), func(row scanner) (f front, err error) {
		var at sql.NullTime // null: the queue never had any
		err = row.Scan(&f.queueKey, &f.ungrouped, &f.id, &at, &f.expired)
		f.at = at.Time
		return f, err
	}, selectFrontsSQL, keys, ungrouped, times)
	if err != nil {
		return err
	}
	c.fronts = make(map[frontKey]time.Time, len(fronts))
	for _, f := range fronts {
		c.fronts[f.frontKey] = f.at
		if !f.expired {
			continue
		}
		err := c.remove(ctx, "remove_expired", removeExpiredSQL, f.queueKey, position{ungrouped: f.ungrouped, at: f.at}, func(n int) {
			c.metrics.add(messagesExpired, f.id, n)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const selectDeletedSQL = `
SELECT key
FROM queued.deleted_queues d
WHERE EXISTS (SELECT FROM queued.messages WHERE queue_key = d.key)
ORDER BY key`

const removeDeletedSQL = `
WITH due AS MATERIALIZED (
    SELECT ctid AS tid, group_id IS NULL AS ungrouped, scheduled_at, seq
    FROM queued.messages
    WHERE queue_key = $1
        AND ((group_id IS NULL), scheduled_at, seq) > ($3, $4, $5)
    ORDER BY (group_id IS NULL), scheduled_at, seq
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.messages m
    USING due
    WHERE m.ctid = due.tid
)` + lastOfBatchSQL

const forgetDeletedSQL = `
DELETE FROM queued.deleted_queues d
WHERE deleted_at < now() - make_interval(secs => $1)
    AND NOT EXISTS (SELECT FROM queued.messages WHERE queue_key = d.key)
    AND NOT EXISTS (SELECT FROM queued.consumed_messages WHERE queue_key = d.key)`

// removeDeleted deletes the messages of deleted queues.
func (c *cleanup) removeDeleted(ctx context.Context) error {
	keys, err := collect(ctx, c.on("deleted_queues"), scanKey, selectDeletedSQL)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := c.remove(ctx, "remove_deleted", removeDeletedSQL, key, position{}, func(int) {}); err != nil {
			return err
		}
	}
	_, err = c.on("forget_deleted").ExecContext(ctx, forgetDeletedSQL, int(deletedQueueGrace/time.Second))
	return err
}

// The walk looks at every row from time to time, in the order of the table: for
// what the other searches cannot find without an index that every receive would
// pay for. It deletes what expired behind messages that did not, and marks what
// a change of its queue's settings has exhausted, for moveExhausted to move. Its
// statements alone are not about a queue.
const (
	selectWalkSQL = `
SELECT pg_relation_size('queued.messages') / current_setting('block_size')::bigint,
       coalesce(min(message_retention_seconds), 0),
       coalesce(hashtextextended(string_agg(key || ' ' || delivery_limit, ',' ORDER BY key) FILTER (WHERE dead_queue_id IS NOT NULL), 0), 0)
FROM queued.queues`

	selectExpirySQL = `
SELECT count(*) FILTER (WHERE expired_at <= now()),
       extract(epoch FROM min(expired_at) FILTER (WHERE expired_at > now()) - now())::double precision
FROM queued.messages
WHERE ctid >= format('(%s,0)', $1::bigint)::tid
    AND ctid < format('(%s,0)', $2::bigint)::tid`

	walkExpiredSQL = `
WITH expired AS MATERIALIZED (
    SELECT ctid AS tid
    FROM queued.messages
    WHERE ctid >= format('(%s,0)', $1::bigint)::tid
        AND ctid < format('(%s,0)', $2::bigint)::tid
        AND expired_at <= now()
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.messages m
    USING expired
    WHERE m.ctid = expired.tid
    RETURNING m.queue_key
)
SELECT q.id, count(*)
FROM removed
JOIN queued.queues q ON q.key = removed.queue_key
GROUP BY q.id`

	walkExhaustedSQL = `
WITH exhausted AS MATERIALIZED (
    SELECT m.ctid AS tid
    FROM queued.messages m
    JOIN queued.queues q ON q.key = m.queue_key
    WHERE m.ctid >= format('(%s,0)', $1::bigint)::tid
        AND m.ctid < format('(%s,0)', $2::bigint)::tid
        AND NOT m.last_delivery
        AND m.delivery_attempts >= q.delivery_limit
    FOR UPDATE OF m SKIP LOCKED
)
UPDATE queued.messages m
SET last_delivery = true
FROM exhausted
WHERE m.ctid = exhausted.tid`
)

// round is one walk through the whole table. Times are by the clock of this process.
type round struct {
	page   int64     // where it goes on
	began  time.Time // zero: there was none yet
	ended  bool
	limits int64     // a hash of how often queues delivered when it began
	expiry time.Time // of what it has seen and left, the earliest; zero: it has left nothing
}

// due reports whether there may be something for another round to find: what the last
// one has left expires, or what came since, or the limits of queues have changed.
func (r *round) due(limits int64, retention time.Duration) bool {
	if r.began.IsZero() || limits != r.limits {
		return true
	}
	at := r.began.Add(retention)
	if !r.expiry.IsZero() && r.expiry.Before(at) {
		at = r.expiry
	}
	now := time.Now()
	return !now.Before(at) && now.Sub(r.began) >= walkRest
}

// sees notes that something that was left expires after that time.
func (r *round) sees(after time.Duration) {
	if at := time.Now().Add(after); r.expiry.IsZero() || at.Before(r.expiry) {
		r.expiry = at
	}
}

// walk goes on with a round, or begins one if that is due.
func (c *cleanup) walk(ctx context.Context) error {
	if !c.rests.table.over() {
		return nil
	}
	defer c.rests.table.after(time.Now(), 0)
	var pages, retention, limits int64
	if err := c.on("scan_bounds").QueryRowContext(ctx, selectWalkSQL).Scan(&pages, &retention, &limits); err != nil {
		return err
	}
	if c.round.began.IsZero() || c.round.ended {
		if !c.round.due(limits, time.Duration(retention)*time.Second) {
			return nil
		}
		c.round = round{began: time.Now(), limits: limits}
	}
	for range walkBatches {
		to := min(c.round.page+walkPages, pages)
		var expired map[string]int
		locked, err := c.batch(ctx, func(tx *sql.Tx) (err error) {
			expired, err = c.walkPages(ctx, tx, c.round.page, to)
			return err
		})
		if err != nil || !locked {
			return err
		}
		for queueID, n := range expired {
			c.metrics.add(messagesExpired, queueID, n)
		}
		if c.round.page = to; to == pages {
			c.round.ended = true
			break
		}
	}
	return nil
}

// walkPages looks at a part of the table, and returns how many messages it has
// deleted of each queue.
func (c *cleanup) walkPages(ctx context.Context, tx *sql.Tx, from, to int64) (expired map[string]int, err error) {
	if _, err := c.metrics.timed("scan_exhausted", tx).ExecContext(ctx, walkExhaustedSQL, from, to); err != nil {
		return nil, err
	}
	var found int
	var next sql.NullFloat64 // seconds until the next expires; null: there is none
	if err := c.metrics.timed("scan_expiry", tx).QueryRowContext(ctx, selectExpirySQL, from, to).Scan(&found, &next); err != nil {
		return nil, err
	}
	if next.Valid {
		c.round.sees(time.Duration(min(next.Float64, noExpirySeconds) * float64(time.Second)))
	}
	if found == 0 {
		return nil, nil
	}
	expired = make(map[string]int)
	_, err = collect(ctx, c.metrics.timed("scan_expired", tx), func(row scanner) (any, error) {
		var queueID string
		var n int
		err := row.Scan(&queueID, &n)
		expired[queueID] = n
		found -= n
		return nil, err
	}, walkExpiredSQL, from, to)
	if found > 0 { // somebody holds it
		c.round.sees(0)
	}
	return expired, err
}

// remove runs a statement that deletes the messages of a queue after a position, batch
// by batch.
func (c *cleanup) remove(ctx context.Context, name, statement string, key int64, from position, done func(n int)) error {
	return c.untilDone(ctx, from, func(tx *sql.Tx, after position) (position, int, error) {
		return scanBatch(c.metrics.timed(name, tx).QueryRowContext(ctx, statement, key, cleanupBatch, after.ungrouped, after.at, after.seq))
	}, done)
}

// untilDone repeats a batch until it returns sql.ErrNoRows, and calls done with
// the number of rows of each that did not. A batch starts after the last position
// of the one before, and so does not walk over what that one removed.
func (c *cleanup) untilDone(ctx context.Context, last position, batch func(tx *sql.Tx, after position) (position, int, error), done func(n int)) error {
	for {
		n := 0
		locked, err := c.batch(ctx, func(tx *sql.Tx) (err error) {
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

// batch runs change in a transaction that has the lock of the cleanup. It does
// nothing, and returns false, if another server has the lock.
func (c *cleanup) batch(ctx context.Context, change func(*sql.Tx) error) (locked bool, err error) {
	tx, err := c.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	if err := tx.QueryRowContext(ctx, "SELECT pg_try_advisory_xact_lock($1)", int64(cleanupLock)).Scan(&locked); err != nil || !locked {
		return false, err
	}
	if err := change(tx); err != nil {
		return false, err
	}
	return true, tx.Commit()
}

// groupKey is what a group is found by.
type groupKey struct {
	queueKey int64
	id       string
}

// Bounds of the walk through the groups.
const groupWalk = 5000 // rows that one statement looks at

// What has neither messages nor an interval that a client has set or that is still
// running is locked first and looked at again then: a publisher may just have
// added a message.
const (
	selectIdleGroupsSQL = `
WITH page AS MATERIALIZED (
    SELECT queue_key, id, keep_interval, limited_until
    FROM queued.groups
    WHERE (queue_key, id) > ($1, $2)
    ORDER BY queue_key, id
    LIMIT $3
), idle AS MATERIALIZED (
    SELECT p.queue_key, p.id
    FROM page p
    CROSS JOIN LATERAL (
        SELECT queue_key, id
        FROM queued.groups
        WHERE queue_key = p.queue_key
            AND id = p.id
        FOR UPDATE SKIP LOCKED
    ) g
    WHERE NOT EXISTS (SELECT FROM queued.queues q WHERE q.key = p.queue_key)
        OR NOT p.keep_interval
        AND coalesce(p.limited_until <= now(), true)
        AND ` + groupHoldsSQL + ` IS NOT TRUE
)
SELECT p.queue_key, p.id, idle.id IS NOT NULL
FROM page p
LEFT JOIN idle ON idle.queue_key = p.queue_key AND idle.id = p.id
ORDER BY p.queue_key, p.id`

	removeIdleGroupsSQL = `
DELETE FROM queued.groups g
USING unnest($1::bigint[], $2::text[]) AS u (queue_key, id)
WHERE g.queue_key = u.queue_key
    AND g.id = u.id
    AND (NOT EXISTS (SELECT FROM queued.queues q WHERE q.key = g.queue_key)
        OR NOT g.keep_interval
        AND coalesce(g.limited_until <= now(), true)
        AND ` + groupHoldsSQL + ` IS NOT TRUE)`
)

// removeIdleGroups forgets groups that have nothing to remember: claims do so too,
// where they look. It walks through all groups, and rests like the walk.
func (c *cleanup) removeIdleGroups(ctx context.Context) error {
	if !c.rests.groups.over() {
		return nil
	}
	began, least := time.Now(), time.Duration(0)
	defer func() { c.rests.groups.after(began, least) }()
	type found struct {
		groupKey
		idle bool
	}
	for range walkBatches {
		var page []found
		locked, err := c.batch(ctx, func(tx *sql.Tx) (err error) {
			page, err = collect(ctx, c.metrics.timed("idle_groups", tx), func(row scanner) (f found, err error) {
				err = row.Scan(&f.queueKey, &f.id, &f.idle)
				return f, err
			}, selectIdleGroupsSQL, c.group.queueKey, c.group.id, groupWalk)
			if err != nil {
				return err
			}
			var keys intArray
			var ids quotedArray
			for _, f := range page {
				if f.idle {
					keys, ids = append(keys, f.queueKey), append(ids, f.id)
				}
			}
			if len(ids) > 0 {
				_, err = c.metrics.timed("remove_idle_groups", tx).ExecContext(ctx, removeIdleGroupsSQL, keys, ids)
			}
			return err
		})
		if err != nil || !locked {
			return err
		}
		if len(page) < groupWalk {
			c.group = groupKey{}
			least = walkRest
			return nil
		}
		c.group = page[len(page)-1].groupKey
	}
	return nil
}

// recheckChangedGroups looks at groups for a change of settings that the request for
// it did not get done.
func (c *cleanup) recheckChangedGroups(ctx context.Context) error {
	return (&store{c.db, c.metrics}).recheckChangedGroups(ctx, "", func(queueID string) { c.announce(queueID, time.Time{}) })
}

func scanKey(row scanner) (key int64, err error) {
	err = row.Scan(&key)
	return key, err
}
