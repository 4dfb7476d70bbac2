package main

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"
)

// A message may have a group: a customer, a device, an account. A queue delivers
// at most one message of a group in every delivery interval, groups that are ready
// take turns, the one ready longest first, and within a group messages come in
// the order they were published, one that was returned at the front. In a queue
// that is ordered, a group's next message waits until the one before is gone.
//
// A row for each group that has messages says when to look at it (schema.sql,
// queued.groups). Whoever may have made a group ready sooner sets that time back
// (wakeGroups) in the statement that does it. Who claims locks groups whose time
// has come, looks at their messages with a snapshot taken after that, and knows
// then: what to deliver, when to look again, or that there is nothing and the row
// can go. Whoever adds a message waits for that lock, so no row goes while there
// is something, and the limit holds whatever the number of servers.
//
// Messages with a group are kept under the negative of their queue's key, where
// claims of messages without one do not meet them.

// groupTurn is what one delivery did to the group of its message.
type groupTurn struct {
	before, after sql.NullTime // until when the group was limited, and is
	manyEnded     bool         // more leases of the group have ended than were looked at
}

// wakeGroups is the end of statements with a step named woken, of rows (queue_key,
// group_id, due_at, seq): messages that wait and are due at that time, or groups that
// need not wait for a message any more, where seq is null. Rows are locked in one
// order in all statements. It returns the groups that are looked at earlier for it.
const wakeGroups = `
    INSERT INTO queued.groups AS g (queue_key, id, ready_at, front)
    SELECT queue_key, group_id, min(due_at), coalesce(min(seq), 9223372036854775807)
    FROM woken
    GROUP BY queue_key, group_id
    ORDER BY queue_key, group_id
    ON CONFLICT (queue_key, id) DO UPDATE
    SET ready_at = least(g.ready_at, greatest(excluded.ready_at, g.limited_until)), front = least(g.front, excluded.front), blocked = false
    WHERE g.blocked
        OR g.front > excluded.front
        OR g.ready_at > greatest(excluded.ready_at, g.limited_until)
    RETURNING g.queue_key, g.ready_at`

const readyGroups = `
SELECT ctid, ready_at, now()
FROM queued.groups
WHERE abs(queue_key) = abs($1::bigint)
    AND ready_at >= $2
    AND ready_at <= now()
    AND (SELECT version FROM queued.settings) = $3
ORDER BY ready_at
LIMIT $4
FOR UPDATE`

// lockGroups passes over those that somebody holds. awaitGroups waits for them: most
// likely for a publisher that commits in a moment. Who waits holds no lock.
const (
	lockGroups  = readyGroups + ` SKIP LOCKED`
	awaitGroups = readyGroups
)

// What a claim finds in the groups that it has locked, whose rows ($2) cannot move
// meanwhile. A group with a limit gives one message, others their share. The front
// of a group is the first by number of those that wait and those whose lease has
// ended; the second are usually few, and looked for among the first endedLeases, of
// which it says whether there are as many. In an ordered queue ($4) the front is
// also what is not due yet, or is exhausted: the others wait for it.
const frontsOfGroups = `
WITH visited AS MATERIALIZED (
    SELECT u.tid, g.id, u.place, g.limited_until, g.kept, g.front,
           coalesce(g.limited_until <= now(), true) AS free,
           make_interval(secs => coalesce(g.delivery_interval_ms, $3) / 1000.0) AS pause,
           CASE WHEN $4 OR coalesce(g.delivery_interval_ms, $3) > 0 THEN 1 ELSE $6 / cardinality($2::tid[]) + 1 END AS share,
           CASE WHEN $4 THEN (
               SELECT max(m.scheduled_at)
               FROM queued.messages m
               WHERE abs(m.queue_key) = abs($1::bigint)
                   AND m.group_id = g.id
                   AND m.in_flight
                   AND m.scheduled_at > now()
           ) END AS held_until
    FROM unnest($2::tid[]) WITH ORDINALITY AS u (tid, place)
    JOIN queued.groups g ON g.ctid = u.tid AND (g.queue_key = $1) IS TRUE -- nothing to look for in an index
), fronts AS MATERIALIZED (
    SELECT v.id AS group_id, v.place, v.limited_until, f.*,
           row_number() OVER (PARTITION BY v.id ORDER BY f.seq) AS turn,
           f.scheduled_at <= now() AND f.delivery_attempts < least($5, f.max_deliveries) AS claimable,
           v.free AND v.held_until IS NULL AS open
    FROM visited v
    CROSS JOIN LATERAL (
        SELECT *, bool_or(many) OVER () AS many_ended
        FROM (
            (
                SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.size, m.in_flight, m.delivery_attempts, m.max_deliveries, false AS many
                FROM queued.messages m
                WHERE abs(m.queue_key) = abs($1::bigint)
                    AND m.group_id = v.id
                    AND NOT m.in_flight
                    AND m.seq >= v.front
                    AND m.expired_at > now()
                    AND ($4 OR m.scheduled_at <= now() AND m.delivery_attempts < least($5, m.max_deliveries))
                ORDER BY m.seq
                LIMIT v.share
            )
            UNION ALL
            (
                SELECT ended.*, count(*) OVER () = 1000
                FROM (
                    SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.size, m.in_flight, m.delivery_attempts, m.max_deliveries
                    FROM queued.messages m
                    WHERE abs(m.queue_key) = abs($1::bigint)
                        AND m.group_id = v.id
                        AND m.in_flight
                        AND m.scheduled_at <= now()
                        AND m.expired_at > now()
                        AND ($4 OR m.delivery_attempts < least($5, m.max_deliveries))
                    ORDER BY m.scheduled_at
                    LIMIT 1000
                ) ended
            )
        ) either
        ORDER BY seq
        LIMIT v.share
    ) f
), fitting AS MATERIALIZED (
    SELECT tid, group_id, limited_until, scheduled_at, seq, size, in_flight, many_ended,
           row_number() OVER (ORDER BY turn, place) AS place,
           sum(size) OVER (ORDER BY turn, place) AS total
    FROM fronts
    WHERE claimable
        AND open
), taken AS MATERIALIZED (
    SELECT m.ctid AS tid, f.group_id, f.place, f.scheduled_at, f.seq, f.limited_until, f.many_ended
    FROM fitting f
    JOIN queued.messages m ON m.ctid = f.tid
    WHERE f.place <= $6
        AND (f.total <= $7 OR f.total = f.size)
        AND m.in_flight = f.in_flight
        AND m.scheduled_at IS NOT DISTINCT FROM f.scheduled_at
    FOR UPDATE OF m SKIP LOCKED
), `

// What was taken is leased or, by those who consume, gone.
const (
	leaseTaken = `claimed AS (
    UPDATE queued.messages m
    SET in_flight = true, delivery_attempts = m.delivery_attempts + 1,
        last_delivery = m.delivery_attempts + 1 >= least($5, m.max_deliveries),
        scheduled_at = now() + make_interval(secs => $8), updated_at = now()
    FROM taken t
    WHERE m.ctid = t.tid
    RETURNING m.id, m.data, m.attributes, m.size, m.delivery_attempts, m.expired_at, m.scheduled_at, m.created_at, m.updated_at,
              t.scheduled_at AS due_at, m.seq, m.group_id, m.job_id, m.max_deliveries, m.request_id, m.traceparent, t.limited_until, t.place, t.many_ended
), `

	consumeTaken = `claimed AS (
    DELETE FROM queued.messages m
    USING taken t
    WHERE m.ctid = t.tid
    RETURNING m.id, m.data, m.attributes, m.size, m.delivery_attempts + 1 AS delivery_attempts, m.expired_at, m.scheduled_at, m.created_at, now() AS updated_at,
              t.scheduled_at AS due_at, m.seq, m.group_id, m.job_id, m.max_deliveries, m.request_id, m.traceparent, t.limited_until, t.place, t.many_ended
), `
)

// keepTaken keeps what consumeTaken takes, in a queue that wants it.
const keepTaken = `kept AS (
    INSERT INTO queued.consumed (queue_key, consumed_at, seq, id, group_id, data, attributes, size, request_id, traceparent, delivery_attempts, expired_at, scheduled_at, created_at)
    SELECT abs($1::bigint), now(), seq, id, group_id, data, attributes, size, request_id, traceparent, delivery_attempts, expired_at, scheduled_at, created_at
    FROM claimed
), `

// lookAgain says when to look at the locked groups again, at those of which
// something was taken after $8 seconds at the latest. A group whose front somebody
// else has locked, or that had to stand back, keeps its place. One that has only
// what is exhausted or expired is looked at from time to time: nobody says so when
// that goes, or when it can be delivered because there is no dead queue any more.
const lookAgain = `soonest AS MATERIALIZED (
    SELECT v.tid, v.id, v.kept, t.taken, now() AS visited_at, now() + interval '10 seconds' AS again_at,
           CASE WHEN t.taken THEN now() + v.pause ELSE v.limited_until END AS limited_until,
           t.taken AND NOT $9 OR ( -- not EXISTS, which may read all messages
               SELECT true
               FROM queued.messages m
               WHERE abs(m.queue_key) = abs($1::bigint)
                   AND m.group_id = v.id
                   AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
               LIMIT 1
           ) IS NOT NULL AS holds,
           coalesce((
               SELECT m.seq
               FROM queued.messages m
               WHERE abs(m.queue_key) = abs($1::bigint)
                   AND m.group_id = v.id
                   AND NOT m.in_flight
                   AND m.seq >= v.front
                   AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
               ORDER BY m.seq
               LIMIT 1
           ), greatest(v.front, (SELECT max(taken.seq) FROM taken WHERE taken.group_id = v.id))) AS front,
           CASE
               WHEN $4 AND t.taken THEN now() + make_interval(secs => $8)
               WHEN $4 THEN coalesce(v.held_until, (
                   SELECT CASE WHEN f.delivery_attempts < least($5, f.max_deliveries) THEN least(f.scheduled_at, f.expired_at) END
                   FROM fronts f
                   WHERE f.group_id = v.id
               ))
               ELSE coalesce((
                   SELECT m.scheduled_at
                   FROM queued.messages m
                   WHERE abs(m.queue_key) = abs($1::bigint)
                       AND m.group_id = v.id
                       AND NOT m.in_flight
                       AND m.seq >= v.front
                       AND m.scheduled_at <= now()
                       AND m.expired_at > now()
                       AND m.delivery_attempts < least($5, m.max_deliveries)
                       AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
                   ORDER BY m.seq
                   LIMIT 1
               ), least(CASE WHEN t.taken THEN now() + make_interval(secs => $8) END, (
                   SELECT m.scheduled_at
                   FROM queued.messages m
                   WHERE abs(m.queue_key) = abs($1::bigint)
                       AND m.group_id = v.id
                       AND NOT m.in_flight
                       AND m.scheduled_at > now()
                       AND m.expired_at > now()
                       AND m.delivery_attempts < least($5, m.max_deliveries)
                   ORDER BY m.scheduled_at
                   LIMIT 1
               ), (
                   SELECT m.scheduled_at
                   FROM queued.messages m
                   WHERE abs(m.queue_key) = abs($1::bigint)
                       AND m.group_id = v.id
                       AND m.in_flight
                       AND m.expired_at > now()
                       AND m.delivery_attempts < least($5, m.max_deliveries)
                       AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
                   ORDER BY m.scheduled_at
                   LIMIT 1
               )))
           END AS at
    FROM visited v
    CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM taken WHERE taken.group_id = v.id) AS taken) t
    WHERE t.taken
        OR NOT EXISTS (SELECT FROM fitting f WHERE f.group_id = v.id)
), idle AS (
    DELETE FROM queued.groups g
    USING soonest s
    WHERE g.ctid = s.tid
        AND NOT s.holds
        AND NOT s.kept
        AND coalesce(s.limited_until <= now(), true)
), scheduled AS (
    UPDATE queued.groups g
    SET ready_at = CASE WHEN s.holds THEN greatest(coalesce(s.at, s.again_at), s.limited_until) ELSE 'infinity' END,
        delivered_at = CASE WHEN s.taken THEN s.visited_at ELSE g.delivered_at END,
        limited_until = s.limited_until,
        front = s.front,
        blocked = $4 AND s.holds
    FROM soonest s
    WHERE g.ctid = s.tid
        AND (s.holds OR s.kept OR s.limited_until > now())
)
SELECT c.id, c.data, c.attributes, c.size, c.delivery_attempts, c.expired_at, c.scheduled_at, c.created_at, c.updated_at,
       c.due_at, c.seq, c.group_id, c.job_id, c.max_deliveries, coalesce(c.request_id, ''), coalesce(c.traceparent, ''), c.limited_until, s.limited_until, c.many_ended
FROM claimed c
JOIN soonest s ON s.id = c.group_id
ORDER BY c.place`

// group is a group of a queue, as a look at it shows it.
type group struct {
	QueueID            string        `json:"queue_id"`
	ID                 string        `json:"group"`
	DeliveryIntervalMS int           `json:"delivery_interval_ms"` // the queue's unless it has its own
	Length             int64         `json:"length"`               // messages that wait: ready and delayed
	State              string        `json:"state"`
	LimitedUntil       *timestamp    `json:"limited_until"` // null if it is not
	Messages           messageCounts `json:"messages"`
}

// stateIdle is the state of groups without messages.
const stateIdle = "idle"

// A group of a queue that is ordered is what its front is, or waits for the message
// in flight. Any other waits only for its interval.
const (
	foundGroups = `
WITH found AS MATERIALIZED (
    SELECT g.queue_key, g.id, g.delivery_interval_ms, g.limited_until
    FROM queued.queues q
    JOIN queued.groups g ON g.queue_key = -q.key
    WHERE q.id = $1
        AND (g.kept OR (SELECT true FROM queued.messages m WHERE abs(m.queue_key) = q.key AND m.group_id = g.id LIMIT 1))`

	describeGroups = `
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
JOIN queued.queues q ON q.key = -g.queue_key
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 'ready') AS ready,
           count(*) FILTER (WHERE state = 'delayed') AS delayed,
           count(*) FILTER (WHERE state = 'in_flight') AS in_flight,
           count(*) FILTER (WHERE state = 'exhausted') AS exhausted,
           (array_agg(state ORDER BY seq))[1] AS front
    FROM (
        SELECT m.seq, ` + messageState + ` AS state
        FROM queued.messages m
        WHERE abs(m.queue_key) = q.key
            AND m.group_id = g.id
            AND m.expired_at > now()
    ) messages
) c
ORDER BY g.id`

	selectGroup = foundGroups + `
        AND g.id = $2` + describeGroups

	selectPageOfGroups = foundGroups + `
    ORDER BY g.id
    LIMIT $3 OFFSET $2` + describeGroups
)

func scanGroup(row scanner) (g group, err error) {
	err = row.Scan(&g.QueueID, &g.ID, &g.DeliveryIntervalMS, &g.LimitedUntil, &g.State,
		&g.Messages.Ready, &g.Messages.Delayed, &g.Messages.InFlight, &g.Messages.Exhausted)
	g.Length = g.Messages.Ready + g.Messages.Delayed
	return g, err
}

// group returns errGroupNotFound for a group without messages, unless a client has
// set its interval.
func (s *store) group(ctx context.Context, queueID, id string) (group, error) {
	if _, err := s.queue(ctx, queueID); err != nil {
		return group{}, err
	}
	g, err := scanGroup(s.on("group").QueryRowContext(ctx, selectGroup, queueID, id))
	if errors.Is(err, sql.ErrNoRows) {
		return group{}, errGroupNotFound
	}
	return g, unknown(err)
}

// groups returns those that group does, in order of their ids.
func (s *store) groups(ctx context.Context, queueID string, offset, limit int) ([]group, error) {
	if _, err := s.queue(ctx, queueID); err != nil {
		return nil, err
	}
	return collect(ctx, s.on("groups"), scanGroup, selectPageOfGroups, queueID, offset, limit)
}

const putGroup = `
INSERT INTO queued.groups (queue_key, id, ready_at, delivery_interval_ms, kept)
SELECT -key, $2, 'infinity', $3, coalesce($4, false)
FROM queued.queues
WHERE id = $1
ON CONFLICT (queue_key, id) DO UPDATE
SET delivery_interval_ms = excluded.delivery_interval_ms, kept = coalesce($4, groups.kept)
RETURNING -queue_key`

// setInterval sets the delivery interval of a group in milliseconds, nil for the
// queue's, from its last delivery on. If it is kept, the group keeps it when it
// has no messages; nil leaves that as it is. It returns the group, nil if it has
// neither messages nor an interval that is kept.
func (s *store) setInterval(ctx context.Context, queueID, id string, interval *int, kept *bool) (g *group, err error) {
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		key, err := scanKey(s.in(tx, "put_group").QueryRowContext(ctx, putGroup, queueID, id, interval, kept))
		if errors.Is(err, sql.ErrNoRows) {
			return errQueueNotFound
		}
		if err != nil {
			return err
		}
		if err := lookAtGroupsOn(ctx, s.in(tx, "look_at_groups"), key, id); err != nil {
			return err
		}
		v, err := scanGroup(s.in(tx, "group").QueryRowContext(ctx, selectGroup, queueID, id))
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		g = &v
		return err
	})
	return g, err
}

// The rows are locked in the order of wakeGroups.
const lookAtGroups = `
WITH batch AS MATERIALIZED (
    SELECT ctid AS tid, id, now() AS at,
           delivered_at + make_interval(secs => coalesce(delivery_interval_ms, (
               SELECT delivery_interval_ms
               FROM queued.queues
               WHERE key = -$1::bigint
           ), 0) / 1000.0) AS limited_until
    FROM queued.groups
    WHERE queue_key = $1
        AND id > $2
        AND ($3::text = '' OR id = $3)
    ORDER BY id
    LIMIT $4
    FOR UPDATE
), looked AS (
    UPDATE queued.groups g
    SET ready_at = greatest(least(g.ready_at, b.at), b.limited_until), limited_until = b.limited_until, blocked = false
    FROM batch b
    WHERE g.ctid = b.tid
        AND (g.blocked
            OR g.limited_until IS DISTINCT FROM b.limited_until
            OR g.ready_at <> greatest(least(g.ready_at, b.at), b.limited_until))
)
SELECT id
FROM batch
ORDER BY id DESC
LIMIT 1`

// lookAtGroupsOn makes the next claim look at the groups of the queue with that key,
// or at one of them, as soon as they are not limited: what they go by has changed.
// Those that are ready keep their turn.
func lookAtGroupsOn(ctx context.Context, db querier, key int64, id string) error {
	after := ""
	for {
		err := db.QueryRowContext(ctx, lookAtGroups, -key, after, id, workBatch).Scan(&after)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return unknown(err)
		}
	}
}

const (
	selectChangedGroups = `
SELECT key, id, groups_changed_in
FROM queued.queues
WHERE groups_changed_in IS NOT NULL
    AND ($1 = '' OR id = $1)
ORDER BY id`

	groupsLookedAt = `
UPDATE queued.queues
SET groups_changed_in = NULL
WHERE key = $1
    AND groups_changed_in = $2`
)

// lookAtChangedGroups is lookAtGroupsOn for the groups of those queues whose
// settings have changed and who have not been looked at since, or of one of them. It
// calls looked with the id of each.
func (s *store) lookAtChangedGroups(ctx context.Context, queueID string, looked func(queueID string)) error {
	type changed struct {
		key     int64
		id      string
		version int64 // a later change asks for another look
	}
	all, err := collect(ctx, s.on("changed_groups"), func(row scanner) (c changed, err error) {
		err = row.Scan(&c.key, &c.id, &c.version)
		return c, err
	}, selectChangedGroups, queueID)
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := lookAtGroupsOn(ctx, s.on("look_at_groups"), c.key, ""); err != nil {
			return err
		}
		if _, err := s.on("groups_looked_at").ExecContext(ctx, groupsLookedAt, c.key, c.version); err != nil {
			return unknown(err)
		}
		looked(c.id)
	}
	return nil
}

const (
	purgeGroupBatch = `
WITH found AS MATERIALIZED (
    SELECT ctid AS tid
    FROM queued.messages
    WHERE abs(queue_key) = abs($1::bigint)
        AND group_id = $2
        AND (seq <= $3) IS TRUE -- nothing to look for in an index
        AND NOT ($4 AND in_flight AND scheduled_at > now())
    LIMIT $5
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM queued.messages m
    USING found
    WHERE m.ctid = found.tid
)
SELECT count(*)
FROM found`

	purgeGroupLeft = `
SELECT EXISTS (
    SELECT
    FROM queued.messages
    WHERE abs(queue_key) = abs($1::bigint)
        AND group_id = $2
        AND (seq <= $3) IS TRUE -- nothing to look for in an index
        AND NOT ($4 AND in_flight AND scheduled_at > now())
)`

	resetGroup = `
UPDATE queued.groups
SET delivery_interval_ms = NULL, kept = false
WHERE queue_key = $1
    AND id = $2`
)

// purgeGroup deletes the messages that were in the group when it was called, or
// only those that wait, and calls purged with the number of each batch.
func (s *store) purgeGroup(ctx context.Context, queueID, id string, waiting bool, purged func(n int)) error {
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	err = inBatches(ctx, func(position) (last position, err error) {
		var n int
		err = s.on("purge_group").QueryRowContext(ctx, purgeGroupBatch, -v.key, id, v.seq, waiting, workBatch).Scan(&n)
		if err == nil && n == 0 {
			err = sql.ErrNoRows
		}
		purged(n)
		return last, err
	}, func() (left bool, err error) {
		err = s.on("purge_group_left").QueryRowContext(ctx, purgeGroupLeft, -v.key, id, v.seq, waiting).Scan(&left)
		return left, err
	})
	if err != nil {
		return err
	}
	return lookAtGroupsOn(ctx, s.on("look_at_groups"), v.key, id)
}

// deleteGroup deletes the messages of a group and forgets its interval, but not
// that it has just been delivered from.
func (s *store) deleteGroup(ctx context.Context, queueID, id string, purged func(n int)) error {
	if _, err := s.group(ctx, queueID, id); err != nil {
		return err
	}
	v, err := s.snapshot(ctx, queueID)
	if err != nil {
		return err
	}
	if _, err := s.on("reset_group").ExecContext(ctx, resetGroup, -v.key, id); err != nil {
		return unknown(err)
	}
	return s.purgeGroup(ctx, queueID, id, false, purged)
}

// lockedGroup is a group whose time has come.
type lockedGroup struct {
	tid     string // PostgreSQL's ctid
	readyAt time.Time
	now     time.Time // the clock of PostgreSQL
}

// Bounds of a claim from groups: how often it goes on when all that it visited had
// nothing, and how many it visits then.
const (
	groupRounds = 10
	groupVisits = 100
)

// endedLeases is among how many leases of a group that have ended a claim looks for
// the front, those that ended first. Where there are more, they are returned to those
// that wait, endedBatch at a time, before anything is delivered: only those have an
// index in their order, and one for the others would cost on every claim.
const (
	endedLeases = 1000 // stands in frontsOfGroups
	endedBatch  = 10_000
)

const returnEnded = `
WITH ended AS MATERIALIZED (
    SELECT m.tid
    FROM unnest($2::text[]) AS u (group_id)
    CROSS JOIN LATERAL (
        SELECT ctid AS tid
        FROM queued.messages
        WHERE abs(queue_key) = abs($1::bigint)
            AND group_id = u.group_id
            AND in_flight
            AND scheduled_at <= now()
        ORDER BY scheduled_at
        LIMIT $3
        FOR UPDATE SKIP LOCKED
    ) m
), returned AS (
    UPDATE queued.messages m
    SET in_flight = false
    FROM ended
    WHERE m.ctid = ended.tid
    RETURNING m.queue_key, m.group_id, m.scheduled_at, m.seq
), woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, seq
    FROM returned
), groups AS (` + wakeGroups + `
)
SELECT count(*)
FROM returned`

// errManyEnded says in which groups more leases have ended than were looked at.
type errManyEnded struct{ groups []string }

func (e errManyEnded) Error() string { return "more leases of a group have ended than were looked at" }

// manyEnded returns errManyEnded if one of the messages is of such a group.
func manyEnded(messages []message) error {
	var groups []string
	for _, m := range messages {
		if m.turn.manyEnded && !slices.Contains(groups, m.Group) {
			groups = append(groups, m.Group)
		}
	}
	if groups == nil {
		return nil
	}
	slices.Sort(groups)
	return errManyEnded{groups}
}

// claimGroups is claimOn for messages with a group: each of the groups that were
// ready since a time gives what it may. Without patience those that somebody holds
// are passed over, and with it the one ready longest is waited for.
func (s *session) claimGroups(terms leaseTerms, at outlet, from time.Time, patient bool, limit, budget int) (c claimedFrom, err error) {
	name, lock, visits := "lock_groups", lockGroups, limit
	if patient {
		name, lock, visits = "await_group", awaitGroups, 1
	}
	for range groupRounds {
		var visited []lockedGroup
		err := s.transaction(func() (err error) {
			visited, err = s.lockGroups(name, lock, terms, from, visits)
			if err != nil || len(visited) == 0 {
				return err
			}
			c.messages, err = s.takeFromGroups(terms, at, visited, limit, budget)
			if err == nil {
				err = manyEnded(c.messages)
			}
			return err
		})
		var many errManyEnded
		if errors.As(err, &many) {
			c.messages = nil // nothing was delivered
			if _, err := read(s, "return_ended", scanKey, returnEnded, -terms.queueKey, groupArray(many.groups), endedBatch); err != nil {
				return claimedFrom{}, err
			}
			continue
		}
		if locked(err) {
			break // for longer than it is worth to wait
		}
		if err != nil {
			return claimedFrom{}, err
		}
		if len(visited) == 0 {
			break
		}
		c.now, c.last = visited[0].now, visited[len(visited)-1].readyAt
		if len(c.messages) < len(visited) {
			c.last = visited[0].readyAt // some may have kept their place
		}
		if len(c.messages) > 0 || patient {
			break
		}
		visits = max(limit, groupVisits)
	}
	return c, nil
}

// lockGroups runs one of the two statements that lock groups.
func (s *session) lockGroups(name, statement string, terms leaseTerms, from time.Time, visits int) ([]lockedGroup, error) {
	return read(s, name, func(row scanner) (g lockedGroup, err error) {
		err = row.Scan(&g.tid, &g.readyAt, &g.now)
		return g, err
	}, statement, -terms.queueKey, since(from), s.settings.version, visits)
}

func (s *session) takeFromGroups(terms leaseTerms, at outlet, visited []lockedGroup, limit, budget int) ([]message, error) {
	name, statement, hidden := "claim_groups", frontsOfGroups+leaseTaken+lookAgain, terms.ackDeadline
	if at.consumes {
		name, statement, hidden = "consume_groups", frontsOfGroups+consumeTaken+lookAgain, 0
	}
	if at.consumes && terms.keepsConsumed {
		statement = frontsOfGroups + consumeTaken + keepTaken + lookAgain
	}
	tids := make(groupArray, len(visited))
	for i, g := range visited {
		tids[i] = g.tid
	}
	return read(s, name, func(row scanner) (message, error) {
		m := message{QueueID: at.queueID, queueKey: -terms.queueKey, consumed: at.consumes, turn: &groupTurn{}}
		err := row.Scan(&m.ID, &m.Data, &m.Attributes, &m.size, &m.DeliveryAttempts, &m.ExpiredAt, &m.ScheduledAt, &m.CreatedAt, &m.UpdatedAt,
			&m.dueAt, &m.seq, &m.Group, &m.jobID, &m.maxDeliveries, &m.trace.requestID, &m.trace.traceparent, &m.turn.before, &m.turn.after, &m.turn.manyEnded)
		return m, err
	}, statement, -terms.queueKey, tids, int(terms.deliveryInterval/time.Millisecond), terms.ordered, terms.maxDeliveries, limit, budget,
		int(hidden/time.Second), at.consumes)
}

// A group that was delivered from once more since then is left alone. The delivery
// before counts again, which was the interval before the limit that was; without an
// interval others may have been delivered at the same time.
const undoTurns = `
WITH undone AS MATERIALIZED (
    SELECT g.tid, u.before, u.after,
           coalesce(g.delivery_interval_ms, (
               SELECT q.delivery_interval_ms
               FROM queued.queues q
               WHERE q.key = -u.queue_key
           ), 0) AS interval_ms
    FROM (
        SELECT queue_key, id, min(after) AS after, min(before) AS before
        FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS u (queue_key, id, before, after)
        GROUP BY queue_key, id
        ORDER BY queue_key, id
    ) u
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, delivery_interval_ms
        FROM queued.groups
        WHERE queue_key = u.queue_key
            AND id = u.id
        FOR UPDATE -- all, in their order: the next statement needs them too
    ) g
)
UPDATE queued.groups g
SET limited_until = u.before,
    delivered_at = CASE WHEN u.interval_ms > 0 THEN u.before - make_interval(secs => u.interval_ms / 1000.0) ELSE g.delivered_at END
FROM undone u
WHERE g.ctid = u.tid
    AND g.limited_until IS NOT DISTINCT FROM u.after`

// undoTurns takes back what the delivery of messages did to their groups, and locks
// those.
func (s *session) undoTurns(messages []message) error {
	var keys intArray
	var ids groupArray
	var before, after timeArray
	for _, m := range messages {
		keys, ids = append(keys, m.queueKey), append(ids, m.Group)
		before, after = append(before, m.turn.before.Time), append(after, m.turn.after.Time)
	}
	_, err := read[any](s, "undo_turns", nil, undoTurns, keys, ids, before, after)
	return err
}
