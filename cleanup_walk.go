package main

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

// The walk reads every row from time to time, in the order of the table. It finds what the
// other searches could find only with another index, which would cost on every receive. It
// deletes expired messages behind messages that are not expired. It marks messages that a
// change of settings has exhausted, so that moveExhausted moves them. Only its statements
// are not about one queue.
const (
	selectWalkSQL = `
SELECT coalesce(min(message_retention_seconds), 0),
       coalesce(hashtextextended(string_agg(key || ' ' || delivery_limit, ',' ORDER BY key) FILTER (WHERE dead_queue_id IS NOT NULL), 0), 0)
FROM queued.queues`

	selectExpirySQL = `
SELECT count(*) FILTER (WHERE expired_at <= now()),
       extract(epoch FROM min(expired_at) FILTER (WHERE expired_at > now()) - now())::double precision
FROM queued.messages
WHERE home = $1
    AND ctid >= format('(%s,0)', $2::bigint)::tid
    AND ctid < format('(%s,0)', $3::bigint)::tid`

	walkExpiredSQL = `
WITH expired AS MATERIALIZED (
    SELECT ctid AS tid
    FROM queued.messages
    WHERE home = $1
        AND ctid >= format('(%s,0)', $2::bigint)::tid
        AND ctid < format('(%s,0)', $3::bigint)::tid
        AND expired_at <= now()
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.messages m
    USING expired
    WHERE m.ctid = expired.tid
        AND m.home = $1
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
    WHERE m.home = $1
        AND m.ctid >= format('(%s,0)', $2::bigint)::tid
        AND m.ctid < format('(%s,0)', $3::bigint)::tid
        AND NOT m.last_delivery
        AND m.delivery_attempts >= (SELECT q.delivery_limit FROM queued.queues q WHERE q.key = m.queue_key)
    FOR UPDATE SKIP LOCKED
)
UPDATE queued.messages m
SET last_delivery = true
FROM exhausted
WHERE m.ctid = exhausted.tid
    AND m.home = $1`
)

// round is one walk through the whole table, home by home. Times are by the clock of this
// process.
type round struct {
	home   int64     // the current home
	page   int64     // the next page
	began  time.Time // zero before the first round
	ended  bool
	limits int64     // a hash of the delivery limits of all queues when it began
	expiry time.Time // earliest expiry of the messages that it has left; zero if it has left none
}

// due reports whether another round may find something: messages that the last round has
// left or that were published since may have expired, or the limits of queues have changed.
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

// sees records that a message that the round has left expires after that time.
func (r *round) sees(after time.Duration) { r.seesAt(time.Now().Add(after)) }

func (r *round) seesAt(at time.Time) {
	if r.expiry.IsZero() || at.Before(r.expiry) {
		r.expiry = at
	}
}

// leaveHome goes on to the next home, although the round has not seen all of this one.
func (r *round) leaveHome() {
	r.sees(0)
	r.home, r.page = r.home+1, 0
}

// expiries has the earliest expiry of messages with a retention of their own that this server
// has stored since the cleanup last asked, by the clock of this process.
type expiries struct {
	mu sync.Mutex
	at time.Time // zero if there were none
}

func (x *expiries) add(after time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if at := time.Now().Add(after); x.at.IsZero() || at.Before(x.at) {
		x.at = at
	}
}

// take returns the time and forgets it.
func (x *expiries) take() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	at := x.at
	x.at = time.Time{}
	return at
}

// walk continues a round, or begins one if it is due. After an error it goes on with the next
// home, or continues there the next time if there is only one.
func (c *cleanup) walk(ctx context.Context) error {
	if c.expiry != nil {
		if at := c.expiry(); !at.IsZero() {
			c.round.seesAt(at)
		}
	}
	if !c.rests.table.over() {
		return nil
	}
	defer c.rests.table.after(time.Now(), 0)
	var retention, limits int64
	if err := c.on("scan_bounds").QueryRowContext(ctx, selectWalkSQL).Scan(&retention, &limits); err != nil {
		return err
	}
	if c.round.began.IsZero() || c.round.ended {
		if !c.round.due(limits, time.Duration(retention)*time.Second) {
			return nil
		}
		c.round = round{began: time.Now(), limits: limits}
	}
	homes, err := c.homes.inUse(ctx, c.on("homes"))
	if err != nil {
		return err
	}
	var errs errorList
	pages, sized := int64(0), int64(-1) // size of the current home, and its home
	for range walkBatches {
		for len(homes) > 0 && homes[0] < c.round.home {
			homes = homes[1:]
		}
		if len(homes) == 0 {
			break
		}
		if homes[0] > c.round.home {
			c.round.home, c.round.page = homes[0], 0
		}
		locked, err := true, c.homes.unavailable(homes[0])
		if err == nil && sized != homes[0] {
			sized = homes[0]
			pages, err = c.homes.pages(ctx, c.on("pages"), sized)
		}
		if err == nil {
			locked, err = c.walkBatch(ctx, pages)
		}
		c.homes.fails(homes[0], err)
		errs = errs.with(err)
		if err == nil && !locked || c.homes.endsAll(err) {
			return errs.err()
		}
		if err != nil {
			c.round.leaveHome()
		}
	}
	c.round.ended = len(homes) == 0 || c.round.home > homes[len(homes)-1]
	return errs.err()
}

// walkBatch walks through the next pages of the current home, and at their end goes on to the
// next home. It does nothing, and returns false, if another server has the lock.
func (c *cleanup) walkBatch(ctx context.Context, pages int64) (locked bool, err error) {
	to := min(c.round.page+walkPages, pages)
	var expired map[string]int
	locked, err = c.batch(ctx, c.round.home, func(tx *sql.Tx) (err error) {
		expired, err = c.walkPages(ctx, tx, c.round.home, c.round.page, to)
		return err
	})
	if err != nil || !locked {
		return locked, err
	}
	for queueID, n := range expired {
		c.metrics.add(messagesExpired, queueID, n)
	}
	if c.round.page = to; to == pages {
		c.round.home, c.round.page = c.round.home+1, 0
	}
	return true, nil
}

// walkPages walks through a part of the table, and returns the number of deleted messages by
// queue.
func (c *cleanup) walkPages(ctx context.Context, tx *sql.Tx, home, from, to int64) (expired map[string]int, err error) {
	if _, err := c.metrics.timed("scan_exhausted", tx).ExecContext(ctx, walkExhaustedSQL, home, from, to); err != nil {
		return nil, err
	}
	var found int
	var next sql.NullFloat64 // seconds until the next message expires; null if there is none
	if err := c.metrics.timed("scan_expiry", tx).QueryRowContext(ctx, selectExpirySQL, home, from, to).Scan(&found, &next); err != nil {
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
	}, walkExpiredSQL, home, from, to)
	if found > 0 { // another transaction has locked some of the rows
		c.round.sees(0)
	}
	return expired, err
}

// Bounds of the walk through the groups.
const groupWalk = 5000 // rows that one statement reads

// A group is idle if it has no messages, a client has not set its interval, and it is not
// limited. The first statement locks idle groups, and the second one checks them again
// before it deletes them: a publish may have added a message before the lock.
const (
	selectIdleGroupsSQL = `
WITH page AS MATERIALIZED (
    SELECT queue_key, id, keep_interval, limited_until
    FROM queued.groups
    WHERE home = $1
        AND (queue_key, id) > ($2, $3)
    ORDER BY queue_key, id
    LIMIT $4
), idle AS MATERIALIZED (
    SELECT p.queue_key, p.id
    FROM page p
    CROSS JOIN LATERAL (
        SELECT queue_key, id
        FROM queued.groups
        WHERE queue_key = p.queue_key
            AND home = $1
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
USING unnest($2::bigint[], $3::text[]) AS u (queue_key, id)
WHERE g.queue_key = u.queue_key
    AND g.home = $1
    AND g.id = u.id
    AND (NOT EXISTS (SELECT FROM queued.queues q WHERE q.key = g.queue_key)
        OR NOT g.keep_interval
        AND (g.limited_until IS NULL OR g.limited_until <= now())
        AND ` + groupHoldsSQL + ` IS NOT TRUE)`
)

// removeIdleGroups deletes the rows of idle groups. Claims also do so, for the groups that
// they check. It walks through all groups, and rests like the walk, which it resembles after
// an error.
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
	homes, err := c.homes.inUse(ctx, c.on("homes"))
	if err != nil {
		return err
	}
	var errs errorList
	for range walkBatches {
		home := homeOf(c.group.queueKey)
		var page []found
		locked, err := true, c.homes.unavailable(home)
		if err == nil {
			locked, err = c.batch(ctx, home, func(tx *sql.Tx) (err error) {
				page, err = collect(ctx, c.metrics.timed("idle_groups", tx), func(row scanner) (f found, err error) {
					err = row.Scan(&f.queueKey, &f.id, &f.idle)
					return f, err
				}, selectIdleGroupsSQL, home, c.group.queueKey, c.group.id, groupWalk)
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
					_, err = c.metrics.timed("remove_idle_groups", tx).ExecContext(ctx, removeIdleGroupsSQL, home, keys, ids)
				}
				return err
			})
		}
		c.homes.fails(home, err)
		errs = errs.with(err)
		if err == nil && !locked || c.homes.endsAll(err) {
			return errs.err()
		}
		if err == nil && len(page) == groupWalk {
			c.group = page[len(page)-1].groupKey
			continue
		}
		for len(homes) > 0 && homes[0] <= home {
			homes = homes[1:]
		}
		if len(homes) == 0 {
			c.group = groupKey{}
			least = walkRest
			break
		}
		c.group = groupKey{queueKey: firstKey(homes[0])}
	}
	return errs.err()
}
