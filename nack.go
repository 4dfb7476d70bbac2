package main

import (
	"cmp"
	"database/sql"
	"maps"
	"slices"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// A nack makes messages due again, with one statement for the requests of a batch. A message
// that had its last delivery moves to the dead queue, or is deleted if there is none. That is
// rare and takes a transaction, so the statement returns these messages, and pinnedConn.nackLast
// moves them. If it fails, they stay in flight, and the cleanup moves them when their leases
// have ended.

func (e *engine) runNacks(s *pinnedConn, batch []*ackRequest) error {
	all, last, moving, err := s.nack(itemsOf(batch))
	if err != nil {
		e.sweepIfUnknown(err)
		return err
	}
	failed := make(map[string]error)
	for _, home := range slices.Sorted(maps.Keys(last)) {
		all = append(all, e.nackLast(s, home, last[home], failed)...)
	}
	for _, t := range all {
		e.metrics.add(messagesNacked, t.queueID, t.nacked)
		e.metrics.add(messagesDeadLettered, t.queueID, t.dead)
		e.metrics.add(messagesDropped, t.queueID, t.dropped)
		if !t.dueAt.IsZero() {
			e.announce(t.queueID, t.dueAt)
		}
	}
	err = finishAcks(s, batch, idsIn(all), moving)
	for id, err := range failed {
		failItems(batch, id, err)
	}
	return err
}

// nackLast moves messages of a home that had their last delivery, and sets the errors of those
// that stay in flight.
func (e *engine) nackLast(s *pinnedConn, home int64, items []ackItem, failed map[string]error) (all []queueChange) {
	items = s.withDeadQueue(home, items, failed)
	for len(items) > 0 {
		moved, err := s.nackLast(home, items)
		if pq.As(err, pqerror.TRDeadlockDetected) != nil {
			moved, err = s.nackLast(home, items)
		}
		if err != nil {
			e.sweepIfUnknown(err)
			return append(all, e.nackEach(s, home, items, err, failed)...)
		}
		done := make(map[string]bool)
		for _, m := range moved {
			all = append(all, m.queueChange)
			done[m.id] = true
			if m.deadQueueID != "" {
				e.announce(m.deadQueueID, time.Time{})
			}
			if m.group != "" {
				e.announce(m.queueID, time.Time{}) // other messages of the group may have waited for it
			}
		}
		if len(moved) == 0 { // the others have changed meanwhile
			break
		}
		items = slices.DeleteFunc(slices.Clone(items), func(v ackItem) bool { return done[v.id] })
	}
	return all
}

// nackEach is nackLast for each item alone, after an error of all of them, if one of them may
// be the cause.
func (e *engine) nackEach(s *pinnedConn, home int64, items []ackItem, err error, failed map[string]error) (all []queueChange) {
	ofDeadQueue := pq.As(err, pqerror.ConnectionFailure) != nil // maybe only the node of one dead queue is down
	alone := len(items) > 1 && (blamesOne(err) || locked(err) || ofDeadQueue)
	lockTimeouts := 0
	for i, v := range items {
		if !alone || lockTimeouts >= batchLockTimeouts {
			failed[v.id] = asUnavailable(err)
			continue
		}
		all = append(all, e.nackLast(s, home, items[i:i+1], failed)...)
		if locked(failed[v.id]) {
			lockTimeouts++
		}
	}
	return all
}

// nackableSQL is true if a nack changes the message m: it was received, or is not due yet.
// A message that is due keeps its place.
const nackableSQL = `(m.in_flight OR m.scheduled_at > now())`

// attemptsAfterNackSQL is the number of delivery attempts of a message m after a nack a.
const attemptsAfterNackSQL = `m.delivery_attempts - (a.uncounted AND m.in_flight)::integer`

// nackStepSQL is the retry backoff of a message m, in seconds.
const nackStepSQL = `coalesce(q.retry_backoff_seconds[least(m.delivery_attempts, cardinality(q.retry_backoff_seconds))], 0)`

// A message is due after the time of its item or, if that is negative, after the retry backoff
// of its queue. A delivery that does not count has none. It changes received_at, so that its
// receipt does not match the next delivery, which has the same number. A message that had its
// last delivery stays; takeNackedSQL takes it. If that delivery began after this statement, the
// cleanup moves the message.
//
// The statement returns the ids of messages with a lease token or, if $2 is true, of all, and
// those of messages that stay.
const nackMessagesSQL = `
WITH named AS MATERIALIZED (
    SELECT m.id, m.queue_key, a.leased_until,
           now() + make_interval(secs => CASE WHEN a.seconds >= 0 THEN a.seconds WHEN m.in_flight AND NOT a.uncounted THEN ` + nackStepSQL + ` ELSE 0 END) AS due_at,
           a.uncounted, a.last_error, now() AS at,
           ` + deliveryLimitSQL + ` AS delivery_limit, ` + isExhaustedSQL + ` AS exhausted
    FROM unnest($3::uuid[], $4::timestamptz[], $5::boolean[], $6::text[], $7::integer[]) AS a (id, leased_until, uncounted, last_error, seconds)
    JOIN queued.messages m ON ` + thatOneSQL + nackQueueSQL + `
    WHERE ` + nackableSQL + `
        AND ` + inLeaseSQL + `
), nacked AS (
    UPDATE queued.messages m
    SET in_flight = false, last_delivery = ` + attemptsAfterNackSQL + ` >= a.delivery_limit, delivery_attempts = ` + attemptsAfterNackSQL + `,
        received_at = CASE WHEN a.uncounted AND m.in_flight THEN (m.received_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC' ELSE m.received_at END,
        scheduled_at = a.due_at, lease_end = NULL, updated_at = a.at, last_error = coalesce(a.last_error, m.last_error),
        last_error_at = CASE WHEN a.last_error IS NULL THEN m.last_error_at ELSE a.at END
    FROM named a
    WHERE NOT a.exhausted
        AND ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.queue_key
        AND ` + nackableSQL + `
        AND ` + inLeaseSQL + `
    RETURNING m.id, m.queue_key, m.group_id, m.scheduled_at, m.seq, a.leased_until
), woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, seq
    FROM nacked
    WHERE group_id IS NOT NULL
), groups AS (` + wakeGroupsSQL + `
)
SELECT q.id, sum(t.nacked), min(t.due_at), array_agg(t.id) FILTER (WHERE t.id IS NOT NULL AND (t.leased_until IS NOT NULL OR $2)), array_agg(t.stays) FILTER (WHERE t.stays IS NOT NULL)
FROM (
    SELECT queue_key, 1 AS nacked, CASE WHEN group_id IS NULL THEN scheduled_at END AS due_at, id, leased_until, NULL::uuid AS stays FROM nacked
    UNION ALL
    SELECT queue_key, 0, NULL, NULL, NULL, id FROM named WHERE exhausted
    UNION ALL
    SELECT queue_key, 0, ready_at, NULL, NULL, NULL FROM groups
) t
JOIN queued.queues q ON q.key = t.queue_key
GROUP BY q.id`

const (
	// nackQueueSQL is the queue q of a message m.
	nackQueueSQL = `
    CROSS JOIN LATERAL (
        SELECT id, dead_queue_id, delivery_limit, retry_backoff_seconds
        FROM queued.queues
        WHERE key = m.queue_key
        OFFSET 0
    ) q`

	// isExhaustedSQL is true if a nack a ends the last delivery of a message m.
	isExhaustedSQL = attemptsAfterNackSQL + ` >= ` + deliveryLimitSQL

	// deliveryLimitSQL is the maximum number of deliveries of a message m of a queue q.
	deliveryLimitSQL = `least(q.delivery_limit, m.max_deliveries)`
)

// nack nacks messages, see engine.nack. It returns the ids of messages that may be moving, and,
// by home, the items of messages that had their last delivery, for nackLast.
func (s *pinnedConn) nack(items []ackItem) (all []queueChange, last map[int64][]ackItem, moving []string, err error) {
	last = make(map[int64][]ackItem)
	all, moving, err = inHomesOfItems(s, sortedItems(items), func(home int64, items []ackItem) ([]queueChange, error) {
		args := append([]any{home, s.homes.areSeveral()}, nackArgs(items)...)
		changes, err := readInHome(s, home, "nack", func(row scanner) (t queueChange, err error) {
			var dueAt sql.NullTime
			err = row.Scan(&t.queueID, &t.nacked, &dueAt, pq.Array(&t.ids), pq.Array(&t.stay))
			t.dueAt = dueAt.Time
			return t, err
		}, nackMessagesSQL, args...)
		stay := make(map[string]bool)
		for _, t := range changes {
			for _, id := range t.stay {
				stay[id] = true
			}
		}
		if len(stay) > 0 {
			last[home] = slices.DeleteFunc(slices.Clone(items), func(v ackItem) bool { return !stay[v.id] })
		}
		return changes, err
	}, func(t queueChange) []string { return slices.Concat(t.ids, t.stay) })
	return all, last, moving, err
}

// nackArgs returns the arguments of a nack of sorted items.
func nackArgs(items []ackItem) []any {
	ids, leases, seconds := ackItemArgs(items)
	var uncounted pq.BoolArray
	var lastErrors quotedArray
	for i, v := range items {
		uncounted = append(uncounted, v.uncounted)
		lastErrors.set(i, v.lastError)
	}
	return []any{ids, leases, uncounted, lastErrors, seconds}
}

// takeNackedSQL deletes the messages that nackMessagesSQL leaves, or the first ones of them.
const takeNackedSQL = `
WITH due AS MATERIALIZED (
    SELECT m.id, m.queue_key, m.bytes, a.leased_until, a.uncounted, a.last_error, q.id AS queue_id, q.dead_queue_id AS destination_id
    FROM unnest($3::uuid[], $4::timestamptz[], $5::boolean[], $6::text[]) AS a (id, leased_until, uncounted, last_error)
    JOIN queued.messages m ON ` + thatOneSQL + nackQueueSQL + `
    WHERE ` + nackableSQL + `
        AND ` + inLeaseSQL + `
        AND ` + isExhaustedSQL + `
), ` + fittingSQL + `, removed AS (
    DELETE FROM queued.messages m
    USING fitting a
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.queue_key
        AND ` + nackableSQL + `
        AND ` + inLeaseSQL + `
    RETURNING m.id, m.queue_key, m.group_id, a.destination_id, m AS whole, a.last_error, a.queue_id, a.leased_until
)
SELECT whole::text, coalesce(destination_id, ''), queue_key, coalesce(group_id, ''), coalesce(last_error, ''), queue_id, id, leased_until IS NOT NULL OR $2
FROM removed`

const selectDeadHomesSQL = `
SELECT m.id, d.home
FROM queued.messages m
JOIN queued.queues q ON q.key = m.queue_key
JOIN queued.queues d ON d.id = q.dead_queue_id
WHERE m.home = $1
    AND m.id = ANY($2::uuid[])`

// withDeadQueue returns the items of a home without those whose dead queue is on a node that
// does not respond, and sets the errors of these.
func (s *pinnedConn) withDeadQueue(home int64, items []ackItem, failed map[string]error) []ackItem {
	if s.homes.needAllNodes() == nil {
		return items
	}
	ids, _, _ := ackItemArgs(items)
	stay := make(map[string]error)
	_, err := read(s, "dead_homes", func(row scanner) (any, error) {
		var id string
		var deadHome int64
		err := row.Scan(&id, &deadHome)
		stay[id] = s.homes.unavailable(deadHome)
		return nil, err
	}, selectDeadHomesSQL, home, ids)
	return slices.DeleteFunc(slices.Clone(items), func(v ackItem) bool {
		stays := cmp.Or(err, stay[v.id])
		if stays != nil {
			failed[v.id] = asUnavailable(stays)
		}
		return stays != nil
	})
}

// movedLast is a message that has moved after its last delivery.
type movedLast struct {
	queueChange
	id, group   string
	deadQueueID string // empty if there is none
}

// nackLast moves some of sorted items of a home that had their last delivery to their dead
// queues, or deletes those without one.
func (s *pinnedConn) nackLast(home int64, items []ackItem) (all []movedLast, err error) {
	err = s.transaction(func() (err error) {
		var t taken
		all, err = read(s, "nack_last", func(row scanner) (m movedLast, err error) {
			var whole, reason string
			var key int64
			var named bool
			if err := row.Scan(&whole, &m.deadQueueID, &key, &m.group, &reason, &m.queueID, &m.id, &named); err != nil {
				return m, err
			}
			t.rows, t.destinations, t.keys = append(t.rows, whole), append(t.destinations, m.deadQueueID), append(t.keys, key)
			t.groups, t.errors = append(t.groups, m.group), append(t.errors, reason)
			m.nacked, m.dead = 1, 1
			if m.deadQueueID == "" {
				m.dead, m.dropped = 0, 1
			}
			if named {
				m.ids = []string{m.id}
			}
			return m, nil
		}, takeNackedSQL, append([]any{home, s.homes.areSeveral()}, nackArgs(items)[:4]...)...)
		if err == nil && len(all) > 0 {
			err = t.store(s.run, true)
		}
		return err
	})
	return all, err
}
