package main

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
)

// release undoes the delivery of messages: they are due again as if they had never
// been received, and the next receiver is woken.
func (e *engine) release(queueID string, messages []message) {
	if len(messages) == 0 {
		return
	}
	// The context of the request may have ended with the client's connection.
	err := e.nodeOf(ofMessage(messages[0])).releases.do(context.Background(), messages, len(messages), 0)
	if err != nil {
		// The messages are due again when their leases end.
		e.log.Warn("undelivered messages not released, they return at their ack deadline", "queue", queueID, "count", len(messages), "error", err)
	}
}

// runReleases releases the messages of a batch, which their receivers did not get.
func (e *engine) runReleases(s *pinnedConn, batch [][]message) error {
	all, err := s.undoDeliveries(slices.Concat(batch...))
	if err != nil {
		e.sweepIfUnknown(err)
		return err
	}
	for _, t := range all {
		e.announce(t.queueID, t.dueAt)
	}
	return nil
}

// dueOfUndoneSQL ends a statement whose step undone are messages that can be received again: it
// wakes their groups, and returns the queues with the times at which a message or group is due.
const dueOfUndoneSQL = `woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, seq
    FROM undone
    WHERE group_id IS NOT NULL
), groups AS (` + wakeGroupsSQL + `
)
SELECT q.id, min(t.due_at)
FROM (
    SELECT queue_key, CASE WHEN group_id IS NULL THEN scheduled_at END AS due_at FROM undone
    UNION ALL
    SELECT queue_key, ready_at FROM groups
) t
JOIN queued.queues q ON q.key = t.queue_key
GROUP BY q.id`

// releaseMessagesSQL changes only messages that are still in the lease of the delivery.
const releaseMessagesSQL = `
WITH undone AS (
    UPDATE queued.messages m
    SET in_flight = false, last_delivery = false, delivery_attempts = m.delivery_attempts - 1,
        scheduled_at = a.due_at, lease_end = NULL, updated_at = now(), received_at = CASE WHEN m.delivery_attempts > 1 THEN m.received_at END
    FROM unnest($2::uuid[], $3::bigint[], $4::timestamptz[], $5::integer[], $6::timestamptz[])
        AS a (id, queue_key, leased_until, delivery_attempts, due_at)
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.queue_key
        AND m.in_flight
        AND ` + leaseEndSQL + ` IS NOT DISTINCT FROM a.leased_until
        AND m.delivery_attempts = a.delivery_attempts
    RETURNING m.queue_key, m.group_id, m.scheduled_at, m.seq
), ` + dueOfUndoneSQL

// undoDeliveries undoes the deliveries of messages that no client has received, leased or
// consumed. If it takes several statements, they are one transaction, because a batch that
// is retried must not have changed anything.
func (s *pinnedConn) undoDeliveries(messages []message) (all []queueChange, err error) {
	var leased, consumed, grouped []message
	for _, m := range messages {
		if m.consumed {
			consumed = append(consumed, m)
		} else {
			leased = append(leased, m)
		}
		if m.groupDelivery != nil {
			grouped = append(grouped, m)
		}
	}
	do := func() error {
		if len(grouped) > 0 {
			if err := s.lockMessages(leased); err != nil { // all statements lock messages before groups
				return err
			}
			if err := s.undoGroupDeliveries(grouped); err != nil {
				return err
			}
		}
		restored, err := s.restore(consumed)
		if err != nil {
			return err
		}
		released, err := s.release(leased)
		all = slices.Concat(restored, released)
		return err
	}
	if len(grouped) == 0 && (len(leased) == 0 || len(consumed) == 0) {
		err = do()
	} else {
		err = s.transaction(do)
	}
	return all, err
}

const lockMessagesSQL = `
SELECT m.seq
FROM unnest($2::uuid[], $3::bigint[]) AS a (id, queue_key)
JOIN queued.messages m ON ` + thatOneSQL + ` AND m.queue_key IS NOT DISTINCT FROM a.queue_key
FOR UPDATE OF m`

// lockMessages locks the messages that still exist.
func (s *pinnedConn) lockMessages(messages []message) error {
	_, err := inHomes(s, sortedByID(messages), ofMessage, func(home int64, messages []message) ([]int64, error) {
		var ids idArray
		var keys intArray
		for _, m := range messages {
			ids, keys = append(ids, m.ID), append(keys, m.queueKey)
		}
		return read(s, "lock_messages", scanKey, lockMessagesSQL, home, ids, keys)
	})
	return err
}

// sortedByID returns the messages in the order in which statements lock them.
func sortedByID(messages []message) []message {
	return slices.SortedFunc(slices.Values(messages), func(a, b message) int { return cmp.Compare(a.ID, b.ID) })
}

// release undoes the delivery of leased messages: they have their old due time, and one
// delivery attempt less. It changes only messages that are still in the lease of that
// delivery.
func (s *pinnedConn) release(messages []message) ([]queueChange, error) {
	return inHomes(s, sortedByID(messages), ofMessage, func(home int64, messages []message) ([]queueChange, error) {
		var ids idArray
		var keys, attempts intArray
		var leases, dues timeArray
		for _, m := range messages {
			ids = append(ids, m.ID)
			keys = append(keys, m.queueKey)
			leases = append(leases, m.ScheduledAt.Time)
			attempts = append(attempts, int64(m.DeliveryAttempts))
			dues = append(dues, m.dueAt.Time)
		}
		return readInHome(s, home, "release", scanDue, releaseMessagesSQL, home, ids, keys, leases, attempts, dues)
	})
}

const restoreMessagesSQL = `
WITH undone AS (
    INSERT INTO queued.messages (home, queue_key, seq, delivery_attempts, expired_at, scheduled_at, updated_at, max_deliveries,
                                 last_error, last_error_at, source_queue_id, source_delivery_attempts, dead_at, received_at, ` + carriedColumnsSQL + `)
    OVERRIDING SYSTEM VALUE
    SELECT $1, queue_key, seq, delivery_attempts, expired_at, scheduled_at, now(), nullif(max_deliveries, 0),
           last_error, last_error_at, source_queue_id, nullif(source_delivery_attempts, 0), dead_at, received_at, ` + carriedColumnsSQL + `
    FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::json[], $6::json[], $7::integer[], $8::integer[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[],
                $12::text[], $13::text[], $14::integer[], $16::json[], $17::text[], $18::timestamptz[], $19::text[], $20::timestamptz[], $21::integer[], $22::json[], $23::timestamptz[])
        AS u (id, queue_key, seq, data, attributes, bytes, delivery_attempts, expired_at, scheduled_at, created_at, group_id, job_id, max_deliveries, trace, last_error, last_error_at, source_queue_id, dead_at, source_delivery_attempts, sqs, received_at)
    RETURNING queue_key, group_id, scheduled_at, seq
), forgotten AS (
    DELETE FROM queued.consumed_messages c
    USING unnest($3::bigint[], $4::bigint[], $15::timestamptz[]) AS u (queue_key, seq, consumed_at)
    WHERE c.queue_key = u.queue_key
        AND c.home = $1
        AND c.consumed_at = u.consumed_at
        AND c.seq = abs(u.seq)
), ` + dueOfUndoneSQL

// restore undoes the delivery of consumed messages: they are in their queue as before, at
// their old place, and no longer among the consumed messages.
func (s *pinnedConn) restore(messages []message) ([]queueChange, error) {
	return inHomes(s, messages, ofMessage, s.restoreIn)
}

// restoreIn is restore for messages of one home.
func (s *pinnedConn) restoreIn(home int64, messages []message) ([]queueChange, error) {
	var ids idArray
	var keys, seqs, sizes, attempts, limits intArray
	var data, attributes jsonArray
	var expiries, dues, created, consumed timeArray
	var groups, jobs, lastErrors, sources quotedArray
	var lastErrorTimes, deaths timeArray
	var attemptsBefore intArray
	var traces, sqs jsonArray
	var received timeArray
	for i, m := range messages {
		p := m.past
		if p == nil {
			p = &past{}
		}
		traces.set(i, m.trace.json())
		sqs.set(i, p.sqs)
		received = append(received, p.receivedAt.Time)
		seq := m.seq
		if s.homes.areSeveral() {
			seq = -seq // see numberMessageSQL
		}
		ids, keys, seqs = append(ids, m.ID), append(keys, m.queueKey), append(seqs, seq)
		data, attributes = append(data, m.Data), append(attributes, m.Attributes)
		sizes, attempts = append(sizes, int64(m.size)), append(attempts, int64(m.DeliveryAttempts-1))
		expiries, dues, created = append(expiries, m.ExpiredAt.Time), append(dues, m.dueAt.Time), append(created, m.CreatedAt.Time)
		consumed = append(consumed, m.UpdatedAt.Time)
		lastErrors, lastErrorTimes = append(lastErrors, p.lastError.String), append(lastErrorTimes, p.lastErrorAt.Time)
		sources, deaths = append(sources, p.sourceQueueID.String), append(deaths, p.deadAt.Time)
		attemptsBefore = append(attemptsBefore, p.attempts.Int64)
		groups, jobs, limits = append(groups, m.Group), append(jobs, m.jobID.String), append(limits, m.maxDeliveries.Int64)
	}
	return read(s, "restore", scanDue, restoreMessagesSQL, home, ids, keys, seqs, data, attributes, sizes, attempts, expiries, dues, created, groups, jobs, limits, consumed, traces,
		lastErrors, lastErrorTimes, sources, deaths, attemptsBefore, sqs, received)
}

// scanDue reads a queue and the time at which a message or group of it is due.
func scanDue(row scanner) (t queueChange, err error) {
	var dueAt sql.NullTime
	err = row.Scan(&t.queueID, &dueAt)
	t.dueAt = dueAt.Time
	return t, err
}

// The groups are locked in the order of wakeGroupsSQL, and in a statement of its own: a
// statement that waited for a lock would not find the row that the other transaction left.
const lockGroupsOfDeliveriesSQL = `
SELECT u.queue_key
FROM (
    SELECT DISTINCT queue_key, id COLLATE "C" AS id
    FROM unnest($2::bigint[], $3::text[]) AS u (queue_key, id)
    ORDER BY queue_key, id
) u
CROSS JOIN LATERAL (
    SELECT
    FROM queued.groups
    WHERE queue_key = u.queue_key
        AND home = $1
        AND id = u.id
    FOR UPDATE
) g`

// The statement changes only groups without a later delivery. It restores the limit, and
// the time of the delivery before, which is the limit minus the interval. Without an
// interval it keeps the time of the last delivery, because other messages may have been
// delivered at that time.
const undoGroupDeliveriesSQL = `
WITH undone AS MATERIALIZED (
    SELECT g.tid, u.before, u.after, i.ms, u.before - make_interval(secs => i.ms / 1000.0) AS delivered_at
    FROM (
        SELECT queue_key, id, min(after) AS after, min(before) AS before
        FROM unnest($2::bigint[], $3::text[], $4::timestamptz[], $5::timestamptz[]) AS u (queue_key, id, before, after)
        GROUP BY queue_key, id
    ) u
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, delivery_interval_ms
        FROM queued.groups
        WHERE queue_key = u.queue_key
            AND home = $1
            AND id = u.id
        OFFSET 0
    ) g
    CROSS JOIN LATERAL (
        SELECT coalesce(g.delivery_interval_ms, (
            SELECT q.delivery_interval_ms
            FROM queued.queues q
            WHERE q.key = u.queue_key
        ), 0) AS ms
    ) i
)
UPDATE queued.groups g
SET limited_until = u.before,
    delivered_at = CASE WHEN u.ms > 0 THEN u.delivered_at ELSE g.delivered_at END
FROM undone u
WHERE g.ctid = u.tid
    AND g.home = $1
    AND g.limited_until IS NOT DISTINCT FROM u.after`

// undoGroupDeliveries undoes the effect of deliveries on their groups, and locks the groups.
func (s *pinnedConn) undoGroupDeliveries(messages []message) error {
	_, err := inHomes(s, messages, ofMessage, func(home int64, messages []message) ([]any, error) {
		var keys intArray
		var ids quotedArray
		var before, after timeArray
		for _, m := range messages {
			keys, ids = append(keys, m.queueKey), append(ids, m.Group)
			before, after = append(before, m.groupDelivery.before.Time), append(after, m.groupDelivery.after.Time)
		}
		if _, err := read(s, "lock_groups_of_deliveries", scanKey, lockGroupsOfDeliveriesSQL, home, keys, ids); err != nil {
			return nil, err
		}
		return read[any](s, "undo_group_deliveries", nil, undoGroupDeliveriesSQL, home, keys, ids, before, after)
	})
	return err
}
