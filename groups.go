package main

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
)

// A message may have a group: a customer, a device, an account. A queue delivers at
// most one message of a group in every delivery interval. Groups that are ready take
// turns, the one ready longest first. Within a group, messages are delivered in the order
// in which they were published; a nacked message comes first. In an ordered queue the next
// message of a group waits until the one before it was acked or has left the queue.
//
// Each group with messages has a row in queued.groups. Its ready_at is the time at which
// claims check the group. A statement that may make a group ready sooner sets an earlier
// time (wakeGroupsSQL). A claim (functions_claim.sql) locks the groups that are ready. It
// reads their messages in later statements of the same transaction, which see everything
// that was committed before the lock. So it knows which messages to deliver, when to check
// the group again, and whether the row can be deleted. A statement that adds a message to
// the group waits for the lock. So no row is deleted while the group has messages, and the
// interval is kept with any number of servers.

// wakeGroupsSQL is the last step of statements with a step woken, whose rows are
// (queue_key, group_id, due_at, seq). A row is a waiting message that is due at due_at. If
// seq is null, it is a group that no longer waits for a message. All statements lock groups
// in the same order. The step returns the groups that will be checked earlier.
const wakeGroupsSQL = insertGroupsSQL + `'infinity'` + updateGroupsSQL

// wakeExtendedSQL is wakeGroupsSQL for leases that will end at due_at.
const wakeExtendedSQL = insertGroupsSQL + `min(due_at)` + updateGroupsSQL

// The two parts of wakeGroupsSQL; first_lease_end is between them.
const (
	insertGroupsSQL = `
    INSERT INTO queued.groups AS g (home, queue_key, id, ready_at, first_seq, first_lease_end)
    SELECT queue_key >> 48, queue_key, group_id, min(due_at), coalesce(min(seq), 9223372036854775807), `

	updateGroupsSQL = `
    FROM woken
    GROUP BY queue_key, group_id
    ORDER BY queue_key, group_id
    ON CONFLICT (queue_key, id) DO UPDATE
    SET ready_at = least(g.ready_at, greatest(excluded.ready_at, g.limited_until)), blocked = false,
        first_seq = least(g.first_seq, excluded.first_seq), first_lease_end = least(g.first_lease_end, excluded.first_lease_end)
    WHERE g.blocked
        OR g.first_seq > excluded.first_seq
        OR g.first_lease_end > excluded.first_lease_end
        OR g.ready_at > greatest(excluded.ready_at, g.limited_until)
    RETURNING g.queue_key, g.ready_at`
)

// groupHoldsSQL is true if the group g has a message in any state, and null if it has none.
const groupHoldsSQL = `(
    SELECT true
    FROM queued.messages m
    WHERE m.queue_key = g.queue_key
        AND m.home = $1
        AND m.group_id = g.id
    ORDER BY m.in_flight, m.scheduled_at
    LIMIT 1
)`

// groupKey identifies a group.
type groupKey struct {
	queueKey int64
	id       string
}

// group is a group of a queue in the API.
type group struct {
	QueueID            string        `json:"queue_id"`
	ID                 string        `json:"group"`
	DeliveryIntervalMS int           `json:"delivery_interval_ms"` // its own, or that of the queue
	Length             int64         `json:"length"`               // number of ready and delayed messages
	State              string        `json:"state"`
	LimitedUntil       *timestamp    `json:"limited_until"` // null if it is not limited
	Messages           messageCounts `json:"messages"`
}

// stateIdle is the state of groups without messages.
const stateIdle = "idle"

// In an ordered queue, the state of a group is that of its first message, or in_flight. In
// other queues a group only waits for its interval.
const (
	foundGroupsSQL = `
WITH found AS MATERIALIZED (
    SELECT g.queue_key, g.id, g.delivery_interval_ms, g.limited_until
    FROM queued.queues q
    JOIN queued.groups g ON g.queue_key = q.key
    WHERE g.home = $1
        AND q.id = $2
        AND (g.keep_interval OR ` + groupHoldsSQL + `)`

	describeGroupsSQL = `
)
SELECT q.id, g.id, coalesce(g.delivery_interval_ms, q.delivery_interval_ms, 0),
       CASE WHEN g.limited_until > now() THEN g.limited_until END,
       CASE
           WHEN c.front IS NULL THEN '` + stateIdle + `'
           WHEN q.ordered AND c.in_flight > 0 THEN 'in_flight'
           WHEN q.ordered AND c.front <> 'ready' THEN c.front
           WHEN c.ready > 0 AND g.limited_until > now() THEN 'limited'
           WHEN c.ready > 0 THEN 'ready'
           WHEN c.in_flight > 0 THEN 'in_flight'
           WHEN c.delayed > 0 THEN 'delayed'
           ELSE 'exhausted'
       END,
       c.ready, c.delayed, c.in_flight, c.exhausted
FROM found g
JOIN queued.queues q ON q.key = g.queue_key
CROSS JOIN LATERAL (
    SELECT ` + countStatesSQL + `,
           (array_agg(state ORDER BY seq))[1] AS front
    FROM queued.live_messages m
    WHERE m.queue_key = g.queue_key
        AND m.home = $1
        AND m.group_id = g.id
) c
ORDER BY g.id`

	selectGroupSQL = foundGroupsSQL + `
        AND g.id = $3` + describeGroupsSQL

	selectPageOfGroupsSQL = foundGroupsSQL + `
    ORDER BY g.id
    LIMIT $4 OFFSET $3` + describeGroupsSQL
)

func scanGroup(row scanner) (g group, err error) {
	err = row.Scan(&g.QueueID, &g.ID, &g.DeliveryIntervalMS, &g.LimitedUntil, &g.State,
		&g.Messages.Ready, &g.Messages.Delayed, &g.Messages.InFlight, &g.Messages.Exhausted)
	g.Length = g.Messages.Ready + g.Messages.Delayed
	return g, err
}

// group returns a group. It returns errGroupNotFound for a group without messages, unless a
// client has set its interval.
func (s *store) group(ctx context.Context, queueID, id string) (group, error) {
	q, err := s.queueAtHome(ctx, queueID)
	if err != nil {
		return group{}, err
	}
	g, err := scanGroup(s.on("group").QueryRowContext(ctx, selectGroupSQL, homeOf(q.key), queueID, id))
	if errors.Is(err, sql.ErrNoRows) {
		return group{}, errGroupNotFound
	}
	return g, asUnavailable(err)
}

// groups returns a page of the groups that group finds, in order of their ids.
func (s *store) groups(ctx context.Context, queueID string, offset, limit int) ([]group, error) {
	q, err := s.queueAtHome(ctx, queueID)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.on("groups"), scanGroup, selectPageOfGroupsSQL, homeOf(q.key), queueID, offset, limit)
}

const putGroupSQL = `
INSERT INTO queued.groups (home, queue_key, id, ready_at, delivery_interval_ms, keep_interval)
VALUES ($1, $2, $3, 'infinity', $4, coalesce($5, false))
ON CONFLICT (queue_key, id) DO UPDATE
SET delivery_interval_ms = excluded.delivery_interval_ms, keep_interval = coalesce($5, groups.keep_interval)`

// setInterval sets the delivery interval of a group in milliseconds, or nil for that of the
// queue. It applies from the last delivery on. kept says whether the group keeps it without
// messages; nil does not change that. It returns the group, or nil if the group has neither
// messages nor an interval that it keeps.
func (s *store) setInterval(ctx context.Context, queueID, id string, interval *int, kept *bool) (g *group, err error) {
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		q, err := s.queueIn(ctx, tx, queueID)
		if err == nil {
			err = s.homes.unavailable(homeOf(q.key))
		}
		if err != nil {
			return err
		}
		if _, err := s.in(tx, "put_group").ExecContext(ctx, putGroupSQL, homeOf(q.key), q.key, id, interval, kept); err != nil {
			return err
		}
		if err := s.recheckLocked(ctx, tx, q.key, quotedArray{id}); err != nil {
			return err
		}
		v, err := scanGroup(s.in(tx, "group").QueryRowContext(ctx, selectGroupSQL, homeOf(q.key), queueID, id))
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		g = &v
		return err
	})
	return g, err
}

// The rows are locked in the order of wakeGroupsSQL, and in a statement of its own: a
// statement that waited for a lock would not find the row that the other transaction left.
const (
	lockPageOfGroupsSQL = `
SELECT id
FROM queued.groups
WHERE queue_key = $2
    AND home = $1
    AND id > $3
    AND ($4::text = '' OR id = $4)
ORDER BY id
LIMIT $5
FOR UPDATE`

	recheckGroupsSQL = `
WITH locked AS MATERIALIZED (
    SELECT g.ctid AS tid, now() AS at,
           g.delivered_at + make_interval(secs => coalesce(g.delivery_interval_ms, q.delivery_interval_ms, 0) / 1000.0) AS limited_until
    FROM queued.groups g
    JOIN queued.queues q ON q.key = g.queue_key
    WHERE g.queue_key = $2
        AND g.home = $1
        AND g.id = ANY ($3::text[])
)
UPDATE queued.groups g
SET ready_at = greatest(least(g.ready_at, l.at), l.limited_until), limited_until = l.limited_until, blocked = false
FROM locked l
WHERE g.ctid = l.tid
    AND g.home = $1
    AND (g.blocked
        OR g.limited_until IS DISTINCT FROM l.limited_until
        OR g.ready_at <> greatest(least(g.ready_at, l.at), l.limited_until))`
)

// recheckGroups makes claims check the groups of a queue, or one of them, as soon as they
// are not limited, because their settings have changed. Groups that are ready keep their
// turn.
func (s *store) recheckGroups(ctx context.Context, key int64, id string) error {
	after := ""
	for more := true; more; {
		err := s.transaction(ctx, func(tx *sql.Tx) error {
			ids, err := collect(ctx, s.in(tx, "lock_page_of_groups"), scanText, lockPageOfGroupsSQL, homeOf(key), key, after, id, workBatch)
			if more = len(ids) > 0; !more || err != nil {
				return err
			}
			after = ids[len(ids)-1]
			return s.recheckLocked(ctx, tx, key, ids)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recheckLocked is recheckGroups for groups that the transaction has locked.
func (s *store) recheckLocked(ctx context.Context, tx *sql.Tx, key int64, ids quotedArray) error {
	_, err := s.in(tx, "recheck_groups").ExecContext(ctx, recheckGroupsSQL, homeOf(key), key, ids)
	return err
}

const (
	selectChangedGroupsSQL = `
SELECT key, id, groups_changed_in
FROM queued.queues
WHERE groups_changed_in IS NOT NULL
    AND home = $1
    AND ($2 = '' OR id = $2)
ORDER BY id`

	groupsRecheckedSQL = `
UPDATE queued.queues
SET groups_changed_in = NULL
WHERE key = $1
    AND groups_changed_in = $2`
)

// recheckChangedGroups calls recheckGroups for each queue of a home whose group settings have
// changed since it was last called, or for one of these queues. It calls rechecked with the
// id of each. All of them are checked again later if a node does not respond, because all
// nodes have the table of queues.
func (s *store) recheckChangedGroups(ctx context.Context, home int64, queueID string, rechecked func(queueID string)) error {
	type changed struct {
		key     int64
		id      string
		version int64 // a later change requires another check
	}
	all, err := collect(ctx, s.on("changed_groups"), func(row scanner) (c changed, err error) {
		err = row.Scan(&c.key, &c.id, &c.version)
		return c, err
	}, selectChangedGroupsSQL, home, queueID)
	if err != nil {
		return err
	}
	var unmarked error
	for _, c := range all {
		if err := s.recheckGroups(ctx, c.key, ""); err != nil {
			return err
		}
		err := s.homes.needAllNodes()
		if err == nil {
			_, err = s.on("groups_rechecked").ExecContext(ctx, groupsRecheckedSQL, c.key, c.version)
		}
		if err != nil {
			unmarked = asUnavailable(asNeedsAllNodes(err))
		}
		rechecked(c.id)
	}
	return unmarked
}

const (
	purgeGroupBatchSQL = `
WITH found AS MATERIALIZED (
    SELECT m.ctid AS tid
    FROM queued.messages m
    WHERE m.queue_key = $2
        AND m.home = $1
        AND m.group_id = $3
        AND m.seq <= $4
        AND NOT ($5 AND ` + leasedSQL + `)
    ORDER BY m.in_flight, m.scheduled_at
    LIMIT $6
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM queued.messages m
    USING found
    WHERE m.ctid = found.tid
        AND m.home = $1
)
SELECT count(*)
FROM found`

	purgeGroupLeftSQL = `
SELECT EXISTS (
    SELECT
    FROM queued.messages m
    WHERE m.queue_key = $2
        AND m.home = $1
        AND m.group_id = $3
        AND m.seq <= $4
        AND NOT ($5 AND ` + leasedSQL + `)
)`

	resetGroupSQL = `
UPDATE queued.groups
SET delivery_interval_ms = NULL, keep_interval = false
WHERE queue_key = $2
    AND home = $1
    AND id = $3`
)

// purgeGroup deletes the messages that were in the group when it was called, or only the
// waiting ones. It calls purged with the number of messages in each batch.
func (s *store) purgeGroup(ctx context.Context, queueID, id string, waiting bool, purged func(n int)) error {
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	err = inBatches(ctx, func(position) (last position, err error) {
		var n int
		err = s.on("purge_group").QueryRowContext(ctx, purgeGroupBatchSQL, homeOf(v.key), v.key, id, v.seq, waiting, workBatch).Scan(&n)
		if err == nil && n == 0 {
			err = sql.ErrNoRows
		}
		purged(n)
		return last, err
	}, func() (left bool, err error) {
		err = s.on("purge_group_left").QueryRowContext(ctx, purgeGroupLeftSQL, homeOf(v.key), v.key, id, v.seq, waiting).Scan(&left)
		return left, err
	})
	if err != nil {
		return err
	}
	return s.recheckGroups(ctx, v.key, id)
}

// deleteGroup deletes the messages of a group and its interval, but keeps the time of its
// last delivery.
func (s *store) deleteGroup(ctx context.Context, queueID, id string, purged func(n int)) error {
	if _, err := s.group(ctx, queueID, id); err != nil {
		return err
	}
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	if _, err := s.on("reset_group").ExecContext(ctx, resetGroupSQL, homeOf(v.key), v.key, id); err != nil {
		return asUnavailable(err)
	}
	return s.purgeGroup(ctx, queueID, id, false, purged)
}

// lockGroupsSQL locks groups of FIFO queues before their messages get a seq. Otherwise, a
// message that waits for its group might get a smaller seq than one that another transaction has
// committed by then, and that consumers have received. Consumers of SQS's API see the seq, and
// may receive earlier messages of the group at the same time. The statement also restores the
// lock timeout.
const lockGroupsSQL = `
INSERT INTO queued.groups AS g (home, queue_key, id, ready_at, first_seq, first_lease_end)
SELECT DISTINCT $1::smallint, u.queue_key, u.group_id COLLATE "C" AS group_id, timestamptz 'infinity', 9223372036854775807, timestamptz 'infinity'
FROM unnest($2::bigint[], $3::text[]) AS u (queue_key, group_id)
WHERE (SELECT set_config('lock_timeout', $4, true)) IS NOT NULL
ORDER BY queue_key, group_id
ON CONFLICT (queue_key, id) DO UPDATE
SET ready_at = g.ready_at
WHERE false -- the row is locked nevertheless`

// groupsToLock reports whether some of the messages have a group, and returns the groups of those
// for FIFO queues.
func groupsToLock(messages []outgoing) (grouped bool, groups []groupKey) {
	for _, m := range messages {
		for _, to := range m.to {
			grouped = grouped || m.group != ""
			if m.group != "" && to.fifo {
				groups = append(groups, groupKey{to.queueKey, m.group})
			}
		}
	}
	return grouped, groups
}

// lockGroups runs lockGroupsSQL if there are groups to lock. All transactions lock those of a
// home with a smaller number first.
func (s *pinnedConn) lockGroups(all []groupKey) error {
	_, err := inHomes(s, all, func(g groupKey) int64 { return homeOf(g.queueKey) }, func(home int64, part []groupKey) ([]any, error) {
		var keys intArray
		var ids quotedArray
		for _, g := range part {
			keys, ids = append(keys, g.queueKey), append(ids, g.id)
		}
		return readInHome[any](s, home, "lock_groups", nil, lockGroupsSQL, home, keys, ids, strconv.FormatInt(lockTimeout.Milliseconds(), 10))
	})
	return err
}
