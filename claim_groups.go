package main

import (
	"database/sql"
	"errors"
	"slices"
	"time"
)

// groupDelivery is what one delivery did to the group of its message.
type groupDelivery struct {
	before, after sql.NullTime // until when the group was limited, and is
	manyEnded     bool         // more leases of the group have ended than were looked at
}

const readyGroupsSQL = `
SELECT ctid, ready_at, now()
FROM queued.groups
WHERE queue_key = $1
    AND ready_at >= $2
    AND ready_at <= now()
    AND ready_at < 'infinity'
    AND (SELECT version FROM queued.settings) = $3
ORDER BY ready_at
LIMIT $4
FOR UPDATE`

// lockGroupsSQL passes over those that somebody holds. awaitGroupsSQL waits for them: most
// likely for a publisher that commits in a moment. Who waits holds no lock.
const (
	lockGroupsSQL  = readyGroupsSQL + ` SKIP LOCKED`
	awaitGroupsSQL = readyGroupsSQL
)

// What a claim finds in the groups that it has locked, whose rows ($2) cannot move
// meanwhile. A group with a limit gives one message, others their share. The front
// of a group is the first by number of those that wait and those whose lease has
// ended; the second are usually few, and looked for among the first endedLeases, of
// which it says whether there are as many. In an ordered queue ($4) the front is
// also what is not due yet, or is exhausted: the others wait for it.
const frontsOfGroupsSQL = `
WITH visited AS MATERIALIZED (
    SELECT u.tid, g.id, u.place, g.limited_until, g.keep_interval, g.first_seq,
           coalesce(g.limited_until <= now(), true) AS free,
           make_interval(secs => coalesce(g.delivery_interval_ms, $3) / 1000.0) AS pause,
           CASE WHEN $4 OR coalesce(g.delivery_interval_ms, $3) > 0 THEN 1 ELSE $6 / cardinality($2::tid[]) + 1 END AS share,
           CASE WHEN $4 THEN (
               SELECT max(m.scheduled_at)
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = g.id
                   AND m.in_flight
                   AND m.scheduled_at > now()
           ) END AS held_until
    FROM unnest($2::tid[]) WITH ORDINALITY AS u (tid, place)
    JOIN queued.groups g ON g.ctid = u.tid AND (g.queue_key = $1) IS TRUE
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
                SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, m.delivery_attempts, m.max_deliveries, false AS many
                FROM queued.messages m
                WHERE m.queue_key = $1
                    AND m.group_id = v.id
                    AND NOT m.in_flight
                    AND m.seq >= v.first_seq
                    AND m.expired_at > now()
                    AND ($4 OR m.scheduled_at <= now() AND m.delivery_attempts < least($5, m.max_deliveries))
                ORDER BY m.seq
                LIMIT v.share
            )
            UNION ALL
            (
                SELECT ended.*, count(*) OVER () = 1000
                FROM (
                    SELECT m.ctid AS tid, m.seq, m.scheduled_at, m.expired_at, m.bytes, m.in_flight, m.delivery_attempts, m.max_deliveries
                    FROM queued.messages m
                    WHERE m.queue_key = $1
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
    SELECT tid, group_id, limited_until, scheduled_at, seq, bytes, in_flight, many_ended,
           row_number() OVER (ORDER BY turn, place) AS place,
           sum(bytes) OVER (ORDER BY turn, place) AS total
    FROM fronts
    WHERE claimable
        AND open
), taken AS MATERIALIZED (
    SELECT m.ctid AS tid, f.group_id, f.place, f.scheduled_at, f.seq, f.limited_until, f.many_ended
    FROM fitting f
    JOIN queued.messages m ON m.ctid = f.tid
    WHERE f.place <= $6
        AND (f.total <= $7 OR f.total = f.bytes)
        AND m.in_flight = f.in_flight
        AND m.scheduled_at IS NOT DISTINCT FROM f.scheduled_at
    FOR UPDATE OF m SKIP LOCKED
), `

// What was taken is leased or, by those who consume, gone.
const (
	leaseTakenSQL = `claimed AS (
    UPDATE queued.messages m
    SET in_flight = true, delivery_attempts = m.delivery_attempts + 1,
        last_delivery = m.delivery_attempts + 1 >= least($5, m.max_deliveries),
        scheduled_at = now() + make_interval(secs => $8), updated_at = now()
    FROM taken t
    WHERE m.ctid = t.tid
    RETURNING m.id, m.data, m.attributes, m.bytes, m.delivery_attempts, m.expired_at, m.scheduled_at, m.created_at, m.updated_at,
              t.scheduled_at AS due_at, m.seq, m.group_id, m.job_id, m.max_deliveries, m.request_id, m.traceparent, t.limited_until, t.place, t.many_ended
), `

	consumeTakenSQL = `claimed AS (
    DELETE FROM queued.messages m
    USING taken t
    WHERE m.ctid = t.tid
    RETURNING m.id, m.data, m.attributes, m.bytes, m.delivery_attempts + 1 AS delivery_attempts, m.expired_at, m.scheduled_at, m.created_at, now() AS updated_at,
              t.scheduled_at AS due_at, m.seq, m.group_id, m.job_id, m.max_deliveries, m.request_id, m.traceparent, t.limited_until, t.place, t.many_ended
), `
)

// keepTakenSQL keeps what consumeTakenSQL takes, in a queue that wants it.
const keepTakenSQL = `kept AS (
    INSERT INTO queued.consumed_messages (queue_key, consumed_at, seq, id, group_id, data, attributes, bytes, request_id, traceparent, delivery_attempts, expired_at, scheduled_at, created_at)
    SELECT $1, now(), seq, id, group_id, data, attributes, bytes, request_id, traceparent, delivery_attempts, expired_at, scheduled_at, created_at
    FROM claimed
), `

// recheckVisitedSQL says when to look at the locked groups again, at those of which
// something was taken after $8 seconds at the latest. A group whose front somebody
// else has locked, or that had to stand back, keeps its place. One that has only
// what is exhausted or expired is looked at from time to time: nobody says so when
// that goes, or when it can be delivered because there is no dead queue any more.
const recheckVisitedSQL = `soonest AS MATERIALIZED (
    SELECT v.tid, v.id, v.keep_interval, t.taken, now() AS visited_at, now() + interval '10 seconds' AS again_at,
           CASE WHEN t.taken THEN now() + v.pause ELSE v.limited_until END AS limited_until,
           t.taken AND NOT $9 OR ( -- not EXISTS, where an order does not count
               SELECT true
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = v.id
                   AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
               ORDER BY m.in_flight, m.scheduled_at
               LIMIT 1
           ) IS NOT NULL AS holds,
           coalesce((
               SELECT m.seq
               FROM queued.messages m
               WHERE m.queue_key = $1
                   AND m.group_id = v.id
                   AND NOT m.in_flight
                   AND m.seq >= v.first_seq
                   AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
               ORDER BY m.seq
               LIMIT 1
           ), greatest(v.first_seq, (SELECT max(taken.seq) FROM taken WHERE taken.group_id = v.id))) AS first_seq,
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
                   WHERE m.queue_key = $1
                       AND m.group_id = v.id
                       AND NOT m.in_flight
                       AND m.seq >= v.first_seq
                       AND m.scheduled_at <= now()
                       AND m.expired_at > now()
                       AND m.delivery_attempts < least($5, m.max_deliveries)
                       AND NOT EXISTS (SELECT FROM taken WHERE taken.tid = m.ctid)
                   ORDER BY m.seq
                   LIMIT 1
               ), least(CASE WHEN t.taken THEN now() + make_interval(secs => $8) END, (
                   SELECT m.scheduled_at
                   FROM queued.messages m
                   WHERE m.queue_key = $1
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
                   WHERE m.queue_key = $1
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
        AND NOT s.keep_interval
        AND coalesce(s.limited_until <= now(), true)
), scheduled AS (
    UPDATE queued.groups g
    SET ready_at = CASE WHEN s.holds THEN greatest(coalesce(s.at, s.again_at), s.limited_until) ELSE 'infinity' END,
        delivered_at = CASE WHEN s.taken THEN s.visited_at ELSE g.delivered_at END,
        limited_until = s.limited_until,
        first_seq = s.first_seq,
        blocked = $4 AND s.holds
    FROM soonest s
    WHERE g.ctid = s.tid
        AND (s.holds OR s.keep_interval OR s.limited_until > now())
)
SELECT c.id, c.data, c.attributes, c.bytes, c.delivery_attempts, c.expired_at, c.scheduled_at, c.created_at, c.updated_at,
       c.due_at, c.seq, c.group_id, c.job_id, c.max_deliveries, coalesce(c.request_id, ''), coalesce(c.traceparent, ''), c.limited_until, s.limited_until, c.many_ended
FROM claimed c
JOIN soonest s ON s.id = c.group_id
ORDER BY c.place`

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
	endedLeases = 1000 // stands in frontsOfGroupsSQL
	endedBatch  = 10_000
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

// errManyEnded says in which groups more leases have ended than were looked at.
type errManyEnded struct{ groups []string }

func (e errManyEnded) Error() string {
	return "a group has more ended leases than one statement examines"
}

// manyEnded returns errManyEnded if one of the messages is of such a group.
func manyEnded(messages []message) error {
	var groups []string
	for _, m := range messages {
		if m.groupDelivery.manyEnded && !slices.Contains(groups, m.Group) {
			groups = append(groups, m.Group)
		}
	}
	if groups == nil {
		return nil
	}
	slices.Sort(groups)
	return errManyEnded{groups}
}

// claimGrouped is claimOn for messages with a group: each of the groups that were
// ready since a time gives what it may. Without patience those that somebody holds
// are passed over, and with it the one ready longest is waited for.
func (s *pinnedConn) claimGrouped(terms leaseTerms, at dispatcherKey, from time.Time, patient bool, limit, budget int) (c claimPart, err error) {
	name, lock, visits := "lock_groups", lockGroupsSQL, limit
	if patient {
		name, lock, visits = "await_group", awaitGroupsSQL, 1
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
			if _, err := read(s, "return_ended", scanKey, returnEndedSQL, terms.queueKey, groupArray(many.groups), endedBatch); err != nil {
				return claimPart{}, err
			}
			continue
		}
		if locked(err) {
			break // for longer than it is worth to wait
		}
		if err != nil {
			return claimPart{}, err
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
func (s *pinnedConn) lockGroups(name, statement string, terms leaseTerms, from time.Time, visits int) ([]lockedGroup, error) {
	return read(s, name, func(row scanner) (g lockedGroup, err error) {
		err = row.Scan(&g.tid, &g.readyAt, &g.now)
		return g, err
	}, statement, terms.queueKey, since(from), s.settings.version, visits)
}

func (s *pinnedConn) takeFromGroups(terms leaseTerms, at dispatcherKey, visited []lockedGroup, limit, budget int) ([]message, error) {
	name, statement, hidden := "claim_groups", frontsOfGroupsSQL+leaseTakenSQL+recheckVisitedSQL, terms.ackDeadline
	if at.consumes {
		name, statement, hidden = "consume_groups", frontsOfGroupsSQL+consumeTakenSQL+recheckVisitedSQL, 0
	}
	if at.consumes && terms.keepsConsumed {
		statement = frontsOfGroupsSQL + consumeTakenSQL + keepTakenSQL + recheckVisitedSQL
	}
	tids := make(groupArray, len(visited))
	for i, g := range visited {
		tids[i] = g.tid
	}
	return read(s, name, func(row scanner) (message, error) {
		m := message{QueueID: at.queueID, queueKey: terms.queueKey, consumed: at.consumes, groupDelivery: &groupDelivery{}}
		err := row.Scan(&m.ID, &m.Data, &m.Attributes, &m.size, &m.DeliveryAttempts, &m.ExpiredAt, &m.ScheduledAt, &m.CreatedAt, &m.UpdatedAt,
			&m.dueAt, &m.seq, &m.Group, &m.jobID, &m.maxDeliveries, &m.trace.requestID, &m.trace.traceparent, &m.groupDelivery.before, &m.groupDelivery.after, &m.groupDelivery.manyEnded)
		return m, err
	}, statement, terms.queueKey, tids, int(terms.deliveryInterval/time.Millisecond), terms.ordered, terms.deliveryLimit, limit, budget,
		int(hidden/time.Second), at.consumes)
}
