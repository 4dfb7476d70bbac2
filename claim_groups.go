package main

import (
	"cmp"
	"database/sql"
	"slices"
	"time"
)

// groupDelivery is the effect of a delivery on the group of its message.
type groupDelivery struct {
	before, after sql.NullTime // limited_until of the group before and after the delivery
}

// endedLeases is the maximum number of ended leases of a group among which a claim searches
// for the first message. The index is in the order in which leases end, and another index
// would cost on every claim. If more leases have ended, their messages become waiting
// messages again, endedBatch at a time, before any message is delivered.
const (
	endedLeases = 1000 // also in manyEndedSQL and frontsSQL
	endedBatch  = 10_000
)

// manyEndedSQL is true if more leases of the group g have ended than a claim reads.
const manyEndedSQL = `(
    SELECT true
    FROM queued.messages m
    WHERE m.queue_key = $1
        AND m.group_id = g.id
        AND m.in_flight
        AND m.scheduled_at >= g.first_lease_end
        AND m.scheduled_at <= now()
    ORDER BY m.scheduled_at
    LIMIT 1 OFFSET 999
)`

const readyGroupsSQL = `
SELECT g.tid, g.id, g.ready_at, now(), ` + manyEndedSQL + ` IS TRUE
FROM (
    SELECT ctid AS tid, id, ready_at, first_lease_end
    FROM queued.groups
    WHERE queue_key = $1
        AND ready_at >= $2
        AND ready_at <= now()
        AND ready_at < 'infinity'
        AND (SELECT version FROM queued.settings) = $3
    ORDER BY ready_at
    LIMIT $4
    FOR UPDATE`

// lockGroupsSQL skips groups that another transaction has locked. awaitGroupsSQL waits for
// them: most likely for a publish that is about to commit. The waiting claim holds no lock.
const (
	lockGroupsSQL = readyGroupsSQL + ` SKIP LOCKED
) g
ORDER BY g.ready_at`

	awaitGroupsSQL = readyGroupsSQL + `
) g
ORDER BY g.ready_at`
)

// aliveSQL is true if a message m has a delivery left. The delivery limit of its queue is
// $5.
const aliveSQL = `m.delivery_attempts < least($5, m.max_deliveries)`

// frontsSQL are the first due messages of the group g by number, at most its share. They
// wait, or their lease has ended. In an ordered queue ($4) they also contain messages that
// are not due or not alive, because later messages wait for them.
const frontsSQL = `(
        SELECT *
        FROM (
            (
                SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, ` + aliveSQL + ` AS alive
                FROM queued.messages m
                WHERE m.queue_key = $1
                    AND m.group_id = g.id
                    AND NOT m.in_flight
                    AND m.seq >= g.first_seq
                    AND m.expired_at > statement_timestamp()
                    AND ($4 OR m.scheduled_at <= statement_timestamp() AND ` + aliveSQL + `)
                ORDER BY m.seq
                LIMIT g.share
            )
            UNION ALL
            (
                SELECT m.ctid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, ` + aliveSQL + `
                FROM queued.messages m
                WHERE m.queue_key = $1
                    AND m.group_id = g.id
                    AND m.in_flight
                    AND m.scheduled_at >= g.first_lease_end
                    AND m.scheduled_at <= statement_timestamp()
                    AND m.expired_at > statement_timestamp()
                    AND ($4 OR ` + aliveSQL + `)
                ORDER BY m.scheduled_at
                LIMIT 1000
            )
        ) either
        ORDER BY seq
        LIMIT g.share
    )`

// heldUntilSQL is the time at which the last lease of the group g ends, or null if it has
// none.
const heldUntilSQL = `(
               SELECT m.scheduled_at
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = g.id
                   AND m.in_flight
                   AND m.scheduled_at >= g.first_lease_end
                   AND m.scheduled_at > statement_timestamp()
               ORDER BY m.scheduled_at DESC
               LIMIT 1
           )`

// takeFromGroupsSQL are steps that lock messages of the groups whose rows are $2. The
// transaction has locked these rows, so they do not move. It may have waited for that, so the
// time is that of the statement and not now(), with which the transaction began: leases and
// intervals would be shorter by the wait. No message is taken from a group
// that is limited or waits for the end of a lease, one from a group with an interval, and
// up to its share from any other group.
const takeFromGroupsSQL = `
WITH visited AS MATERIALIZED (
    SELECT g.id, g.first_seq, g.first_lease_end, g.limited_until, u.place,
           CASE WHEN $4 OR coalesce(g.delivery_interval_ms, $3) > 0 THEN 1 ELSE $6 / cardinality($2::tid[]) + 1 END AS share
    FROM unnest($2::tid[]) WITH ORDINALITY AS u (tid, place)
    JOIN queued.groups g ON g.ctid = u.tid
    WHERE (g.limited_until <= statement_timestamp()) IS NOT FALSE
        AND (NOT $4 OR ` + heldUntilSQL + ` IS NULL)
), fronts AS MATERIALIZED (
    SELECT f.*, g.place, g.limited_until, row_number() OVER (PARTITION BY g.place ORDER BY f.seq) AS turn
    FROM visited g
    CROSS JOIN LATERAL ` + frontsSQL + ` f
), fitting AS MATERIALIZED (
    SELECT tid, scheduled_at, bytes, in_flight, limited_until,
           row_number() OVER (ORDER BY turn, place) AS place,
           sum(bytes) OVER (ORDER BY turn, place) AS total
    FROM fronts
    WHERE scheduled_at <= statement_timestamp()
        AND alive
), taken AS MATERIALIZED (
    SELECT m.ctid AS tid, f.place, f.scheduled_at AS due_at, f.limited_until
    FROM fitting f
    JOIN queued.messages m ON m.ctid = f.tid
    WHERE f.place <= $6
        AND (f.total <= $7 OR f.total = f.bytes)
        AND m.in_flight = f.in_flight
        AND m.scheduled_at IS NOT DISTINCT FROM f.scheduled_at
    FOR UPDATE OF m SKIP LOCKED
)`

const claimFromGroupsSQL = takeFromGroupsSQL + `
UPDATE queued.messages m
SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= least($5, m.max_deliveries),
    scheduled_at = statement_timestamp() + make_interval(secs => $8), updated_at = statement_timestamp()
FROM taken t
WHERE m.ctid = t.tid
RETURNING ` + messageColumnsSQL + `, t.due_at, t.place, t.limited_until`

// The rows are as they were before: the delivery does not count yet.
const consumeFromGroupsSQL = takeFromGroupsSQL + `
DELETE FROM queued.messages m
USING taken t
WHERE m.ctid = t.tid
RETURNING ` + messageColumnsSQL + `, statement_timestamp(), t.place, t.limited_until`

// nextOfGroupSQL is the time at which the group g has the next message to deliver: a message
// becomes due, or a lease ends. It is null if there is none, and may be too early. It is for
// groups of queues that are not ordered, without a message to deliver now.
const nextOfGroupSQL = `least((
               SELECT m.scheduled_at
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = g.id
                   AND NOT m.in_flight
                   AND m.scheduled_at > statement_timestamp()
                   AND m.expired_at > statement_timestamp()
                   AND ` + aliveSQL + `
               ORDER BY m.scheduled_at
               LIMIT 1
           ), CASE WHEN g.first_lease_end > statement_timestamp() THEN nullif(g.first_lease_end, 'infinity') ELSE (
               SELECT m.scheduled_at
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = g.id
                   AND m.in_flight
                   AND m.scheduled_at > statement_timestamp()
                   AND m.expired_at > statement_timestamp()
                   AND ` + aliveSQL + `
               ORDER BY m.scheduled_at
               LIMIT 1
           ) END)`

// rescheduleGroupsSQL sets the time at which claims check the groups whose rows are $2
// again. Messages were taken from the groups whose ids are $6. A group from which none was
// taken, although it has a message to deliver, keeps its turn. A group with only exhausted
// or expired messages is checked from time to time: there is no notification when these are
// deleted, or become deliverable because the dead queue was deleted.
//
// Acked messages leave dead entries in the indexes until a vacuum, and a vacuum keeps them
// while an old transaction is open. first_seq and first_lease_end keep scans from walking over
// these again and again. A first_lease_end that is not past is not read anew, and may be too
// early, except in an ordered queue, where a group has one lease at a time.
const rescheduleGroupsSQL = `
WITH visited AS MATERIALIZED (
    SELECT u.tid, g.queue_key, g.id, g.first_seq, g.keep_interval, 1 AS share, t.taken, statement_timestamp() AS visited_at,
           least(g.first_lease_end, CASE WHEN t.taken THEN $7::timestamptz END) AS first_lease_end,
           CASE WHEN t.taken THEN statement_timestamp() + make_interval(secs => coalesce(g.delivery_interval_ms, $3) / 1000.0) ELSE g.limited_until END AS limited_until
    FROM unnest($2::tid[]) AS u (tid)
    JOIN queued.groups g ON g.ctid = u.tid
    CROSS JOIN LATERAL (SELECT g.id = ANY ($6::text[]) AS taken) t
), bounded AS MATERIALIZED (
    SELECT g.tid, g.queue_key, g.id, g.keep_interval, g.share, g.taken, g.visited_at, g.limited_until,
           CASE WHEN $4 OR g.first_lease_end <= g.visited_at THEN coalesce((
               SELECT m.scheduled_at
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = g.id
                   AND m.in_flight
                   AND m.scheduled_at >= g.first_lease_end
               ORDER BY m.scheduled_at
               LIMIT 1
           ), 'infinity') ELSE g.first_lease_end END AS first_lease_end,
           coalesce((
               SELECT m.seq
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = g.id
                   AND NOT m.in_flight
                   AND m.seq >= g.first_seq
               ORDER BY m.seq
               LIMIT 1
           ), 9223372036854775807) AS first_seq
    FROM visited g
), checked AS MATERIALIZED (
    SELECT g.*, (g.limited_until <= g.visited_at) IS NOT FALSE AS free,
           g.first_seq < 9223372036854775807 OR g.first_lease_end < 'infinity' AS holds,
           CASE
               WHEN $4 THEN coalesce(` + heldUntilSQL + `, CASE WHEN f.alive THEN least(f.scheduled_at, f.expired_at) END)
               ELSE coalesce(f.scheduled_at, ` + nextOfGroupSQL + `)
           END AS at
    FROM bounded g
    LEFT JOIN LATERAL ` + frontsSQL + ` f ON true
), idle AS (
    DELETE FROM queued.groups g
    USING checked c
    WHERE g.ctid = c.tid
        AND NOT c.holds
        AND NOT c.keep_interval
        AND c.free
), scheduled AS (
    UPDATE queued.groups g
    SET ready_at = CASE WHEN c.holds THEN greatest(coalesce(c.at, c.visited_at + interval '10 seconds'), c.limited_until) ELSE 'infinity' END,
        delivered_at = CASE WHEN c.taken THEN c.visited_at ELSE g.delivered_at END,
        limited_until = c.limited_until, first_seq = c.first_seq, first_lease_end = c.first_lease_end, blocked = $4 AND c.holds
    FROM checked c
    WHERE g.ctid = c.tid
        AND (c.holds OR c.keep_interval OR NOT c.free)
        AND (c.taken OR (c.at <= c.visited_at AND c.free) IS NOT TRUE)
)
SELECT id, limited_until
FROM checked
WHERE taken`

// lockedGroup is a group that the transaction has locked.
type lockedGroup struct {
	tid       string // PostgreSQL's ctid
	id        string
	readyAt   time.Time
	now       time.Time // the clock of PostgreSQL
	manyEnded bool      // more leases have ended than a claim reads
}

// Bounds of a claim from groups: the number of rounds if the visited groups have no message
// to deliver, and the number of groups in each further round.
const (
	groupRounds = 10
	groupVisits = 100
)

const returnEndedSQL = `
WITH ended AS MATERIALIZED (
    SELECT m.tid
    FROM unnest($2::text[]) AS u (group_id)
    CROSS JOIN LATERAL (
        SELECT ctid AS tid
        FROM queued.messages
        WHERE queue_key = $1
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
), groups AS (` + wakeGroupsSQL + `
)
SELECT count(*)
FROM returned`

// claimGrouped is claim for messages with a group, from the groups that are ready since
// from. It skips groups that another transaction has locked. A blocking claim waits for the
// lock of the group that is ready longest.
func (s *pinnedConn) claimGrouped(terms leaseTerms, at dispatcherKey, from time.Time, blocking bool, limit, budget int) (c claimPart, err error) {
	name, lock, visits := "lock_groups", lockGroupsSQL, limit
	if blocking {
		name, lock, visits = "await_group", awaitGroupsSQL, 1
	}
	for range groupRounds {
		var visited []lockedGroup
		var ended quotedArray
		err := s.transaction(func() (err error) {
			visited, err = s.lockGroups(name, lock, terms, from, visits)
			if err != nil || len(visited) == 0 {
				return err
			}
			for _, g := range visited {
				if g.manyEnded {
					ended = append(ended, g.id)
				}
			}
			if len(ended) > 0 {
				_, err = read(s, "return_ended", scanKey, returnEndedSQL, terms.queueKey, ended, endedBatch)
				return err
			}
			c.messages, err = s.takeFromGroups(terms, at, visited, limit, budget)
			return err
		})
		if err != nil {
			c.messages = nil
		}
		if locked(err) {
			break // the lock timeout: waiting longer is not worth it
		}
		if err != nil {
			return claimPart{}, err
		}
		if len(ended) > 0 {
			continue
		}
		if len(visited) == 0 {
			break
		}
		c.now, c.last = visited[0].now, visited[len(visited)-1].readyAt
		if len(c.messages) < len(visited) {
			c.last = visited[0].readyAt // some groups may have kept their place
		}
		if len(c.messages) > 0 || blocking {
			break
		}
		visits = max(limit, groupVisits)
	}
	return c, nil
}

// lockGroups runs one of the two statements that lock groups.
func (s *pinnedConn) lockGroups(name, statement string, terms leaseTerms, from time.Time, visits int) ([]lockedGroup, error) {
	return read(s, name, func(row scanner) (g lockedGroup, err error) {
		err = row.Scan(&g.tid, &g.id, &g.readyAt, &g.now, &g.manyEnded)
		return g, err
	}, statement, terms.queueKey, since(from), s.settings.version, visits)
}

// takeFromGroups claims messages from the locked groups, in turns, and sets the time at
// which claims check each group again.
func (s *pinnedConn) takeFromGroups(terms leaseTerms, at dispatcherKey, visited []lockedGroup, limit, budget int) ([]message, error) {
	type taken struct {
		message
		place int
	}
	tids := make(quotedArray, len(visited))
	for i, g := range visited {
		tids[i] = g.tid
	}
	interval := int(terms.deliveryInterval / time.Millisecond)
	args := []any{terms.queueKey, tids, interval, terms.ordered, terms.deliveryLimit, limit, budget}
	name, statement, consumes := "claim_groups", claimFromGroupsSQL, at.consumes && !terms.keepsConsumed
	if consumes {
		name, statement = "consume_groups", consumeFromGroupsSQL
	} else {
		args = append(args, int(terms.ackDeadline/time.Second))
	}
	all, err := read(s, name, func(row scanner) (taken, error) {
		m := taken{message: message{QueueID: at.queueID, consumed: consumes, groupDelivery: &groupDelivery{}}}
		var dueOrNow timestamp
		err := row.Scan(append(m.columns(), &dueOrNow, &m.place, &m.groupDelivery.before)...)
		if m.dueAt = dueOrNow; consumes {
			m.dueAt, m.UpdatedAt = m.ScheduledAt, dueOrNow
			m.DeliveryAttempts++
		}
		return m, err
	}, statement, args...)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b taken) int { return cmp.Compare(a.place, b.place) })
	var messages []message
	var groups quotedArray
	for _, m := range all {
		messages, groups = append(messages, m.message), append(groups, m.Group)
	}
	if at.consumes && terms.keepsConsumed {
		if err := s.keepConsumed(terms.queueKey, messages); err != nil {
			return nil, err
		}
	}
	limitedUntil := make(map[string]sql.NullTime)
	var leasedUntil sql.NullTime // the same for all messages; null if they are consumed
	if len(messages) > 0 && !at.consumes {
		leasedUntil = sql.NullTime{Time: messages[0].ScheduledAt.Time, Valid: true}
	}
	_, err = read(s, "reschedule_groups", func(row scanner) (any, error) {
		var id string
		var until sql.NullTime
		err := row.Scan(&id, &until)
		limitedUntil[id] = until
		return nil, err
	}, rescheduleGroupsSQL, terms.queueKey, tids, interval, terms.ordered, terms.deliveryLimit, groups, leasedUntil)
	for _, m := range messages {
		m.groupDelivery.after = limitedUntil[m.Group]
	}
	return messages, err
}
