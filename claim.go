package main

import (
	"cmp"
	"database/sql"
	"maps"
	"slices"
	"time"
)

// leaseTerms are the settings of a queue that a claim needs.
type leaseTerms struct {
	queueKey      int64
	ackDeadline   time.Duration
	deliveryLimit int // queues.delivery_limit
	keepsConsumed bool
	paused        bool
	retryBackoff  steps // nil if the queue never had one; see claimBackoffSQL

	deliveryInterval time.Duration
	ordered          bool
	hasGroups        bool // the queue has groups that may be ready
	readAt           time.Time
}

// alone reports whether the queue needs a claim of its own.
func (t *leaseTerms) alone() bool { return t.hasGroups || t.retryBackoff != nil }

// groupsUnnoticed is the maximum time until claims notice the first message with a group
// in a queue whose claims always find other messages.
const groupsUnnoticed = time.Second

const selectLeaseTermsSQL = `
SELECT s.version, q.id, q.key, q.ack_deadline_seconds, q.delivery_limit,
       coalesce(q.delivery_interval_ms, 0), q.ordered,
       EXISTS (
           SELECT
           FROM queued.ready_groups r
           WHERE r.queue_key = q.key
               AND r.home = $1
               AND r.ready_at >= coalesce(a.groups_since, '-infinity')
       ),
       q.consumed_retention_seconds IS NOT NULL, q.paused, q.retry_backoff_seconds
FROM unnest($2::text[], $3::timestamptz[]) AS a (id, groups_since)
JOIN queued.queues q ON q.id = a.id AND q.home = $1
CROSS JOIN queued.settings s`

// readLeaseTerms caches the terms of queues in s, and whether each has groups that are ready
// since a time. Unknown queues are not cached.
func (s *pinnedConn) readLeaseTerms(queueIDs []string, groupsSince []time.Time) error {
	if len(queueIDs) == 0 {
		return nil
	}
	type row struct {
		version int64
		queueID string
	}
	all := make(map[string]leaseTerms, len(queueIDs))
	rows, err := inHomesOfQueues(s, queueIDs, func(r row) string { return r.queueID }, func(home int64, part []int) ([]row, error) {
		return readInHome(s, home, "lease_terms", func(scan scanner) (r row, err error) {
			var terms leaseTerms
			var seconds, ms int64
			err = scan.Scan(&r.version, &r.queueID, &terms.queueKey, &seconds, &terms.deliveryLimit, &ms, &terms.ordered, &terms.hasGroups, &terms.keepsConsumed, &terms.paused, &terms.retryBackoff)
			terms.ackDeadline, terms.deliveryInterval = time.Duration(seconds)*time.Second, time.Duration(ms)*time.Millisecond
			terms.readAt = time.Now()
			all[r.queueID] = terms
			return r, err
		}, selectLeaseTermsSQL, home, textArray(pick(queueIDs, part)), timeArray(pick(groupsSince, part)))
	})
	if err != nil {
		return err
	}
	for _, queueID := range queueIDs {
		delete(s.settings.terms, queueID)
	}
	if len(rows) > 0 {
		oldest := slices.MinFunc(rows, func(a, b row) int { return cmp.Compare(a.version, b.version) })
		s.settings.at(oldest.version) // if they changed between two statements, those with the terms do nothing
		maps.Copy(s.settings.terms, all)
	}
	return nil
}

// leaseTermsOf returns the terms of a queue. It reads them if they are not cached, or too
// old to rely on for groups. It returns errQueueNotFound if there is no queue.
func (s *pinnedConn) leaseTermsOf(queueID string, groupsSince time.Time) (leaseTerms, error) {
	if terms, known := s.settings.terms[queueID]; known && time.Since(terms.readAt) <= groupsUnnoticed {
		return terms, nil
	}
	if err := s.readLeaseTerms([]string{queueID}, []time.Time{groupsSince}); err != nil {
		return leaseTerms{}, err
	}
	terms, found := s.settings.terms[queueID]
	if !found {
		return leaseTerms{}, errQueueNotFound
	}
	return terms, nil
}

// The statement has one plan on every table: a scan of messages_due that ends at the limit.
// It identifies rows by ctid, because rows that it has locked cannot move. It takes
// messages up to the budget of bytes, and the first one in any case, like share. Only
// messages with a group have a delivery limit of their own.
const dueMessagesSQL = `
WITH due AS MATERIALIZED (
    SELECT ctid AS tid, scheduled_at, seq, bytes
    FROM queued.messages
    WHERE queue_key = $2
        AND home = $1
        AND group_id IS NULL
        AND scheduled_at >= $7
        AND scheduled_at <= now()
        AND expired_at > now()
        AND delivery_attempts < $3
        AND (SELECT version FROM queued.settings) = $6
    ORDER BY scheduled_at, seq
    LIMIT $4
    FOR UPDATE SKIP LOCKED
), fitting AS MATERIALIZED (
    SELECT tid, scheduled_at, seq, bytes, sum(bytes) OVER (ORDER BY scheduled_at, seq) AS total
    FROM due
)`

const claimMessagesSQL = dueMessagesSQL + `
UPDATE queued.messages m
SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= $3,
    scheduled_at = now() + make_interval(secs => $8), updated_at = now()` + returnClaimedSQL + messageColumnsSQL + `, f.scheduled_at`

// claimBackoffSQL is claimMessagesSQL for queues that have a retry backoff, or have had one.
// No statement runs when a lease ends, so the claim decides when the message is due after
// that: scheduled_at is the end of the lease plus the step of this delivery. A message
// that has its last delivery has no step. The end of the lease is lease_end.
const claimBackoffSQL = leaseWithBackoffSQL + returnClaimedSQL + messageColumnsSQL + `, f.scheduled_at`

// claimSQSSQL is claimMessagesSQL or claimBackoffSQL for SQS's API.
const claimSQSSQL = leaseWithBackoffSQL + `, received_at = least(m.received_at, now())` + returnClaimedSQL + messageColumnsSQL + `, ` + pastColumnsSQL + `, f.scheduled_at`

// Parts of the claims. Without a backoff, leaseWithBackoffSQL sets no lease_end.
const (
	leaseWithBackoffSQL = dueMessagesSQL + `
UPDATE queued.messages m
SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= $3,
    scheduled_at = (now() AT TIME ZONE 'UTC' + make_interval(secs => $8::integer + CASE
        WHEN m.delivery_attempts + 1 >= $3 THEN 0
        ELSE coalesce(($9::integer[])[least(m.delivery_attempts + 1, cardinality($9::integer[]))], 0)
    END)) AT TIME ZONE 'UTC',
    lease_end = now() + make_interval(secs => CASE WHEN $9::integer[] IS NOT NULL THEN $8::integer END), updated_at = now()`

	returnClaimedSQL = `
FROM fitting f
WHERE m.ctid = f.tid
    AND m.home = $1
    AND (f.total <= $5 OR f.total = f.bytes)
RETURNING `
)

// The returned rows do not count the delivery yet.
const consumeMessagesSQL = dueMessagesSQL + `, moment AS MATERIALIZED (
    SELECT now() AS at
)
DELETE FROM queued.messages m
USING fitting f, moment n
WHERE m.ctid = f.tid
    AND m.home = $1
    AND (f.total <= $5 OR f.total = f.bytes)
RETURNING ` + messageColumnsSQL + `, ` + pastColumnsSQL + `, n.at`

// claimResult is the result of a claim.
type claimResult struct {
	messages    []message
	ackDeadline time.Duration
	ungrouped   claimPart
	grouped     claimPart
	alone       bool // the queue has groups that may be ready, or a retry backoff, so it needs a claim of its own
}

// claimPart is the result of a claim for the messages without a group, or for those with a
// group.
type claimPart struct {
	messages []message
	last     time.Time // the claim has checked everything that was due or ready until then; zero if it found nothing
	now      time.Time // the clock of PostgreSQL
}

// claim leases up to limit due messages, and up to budget bytes, but at least one message.
// Each counts one delivery attempt, and is hidden until the queue's ack deadline. Messages
// without a group are claimed oldest due first, and messages with a group in turns of their
// groups. The claim scans from the times in from. It returns errQueueNotFound if there is no
// queue.
func (s *pinnedConn) claim(key dispatcherKey, from claimStart, groupsFirst bool, limit, budget int) (claimResult, error) {
	queueID := key.queueID
	for range settingsAttempts {
		terms, err := s.leaseTermsOf(queueID, from.groups)
		if err != nil {
			return claimResult{}, err
		}
		version := s.settings.version
		v, err := s.claimOnce(terms, key, from, groupsFirst, limit, budget)
		if err != nil || len(v.messages) > 0 {
			return v, err
		}
		// No message is due, or the queue is paused, or the terms have changed, or the queue
		// was deleted.
		if err := s.readLeaseTerms([]string{queueID}, []time.Time{from.groups}); err != nil {
			return claimResult{}, err
		}
		now, found := s.settings.terms[queueID]
		if !found {
			return claimResult{}, errQueueNotFound
		}
		if s.settings.version == version && (terms.hasGroups || !now.hasGroups) {
			return v, nil
		}
	}
	return claimResult{}, errStale
}

// claimOnce is claim with cached terms. It claims nothing if they have changed, or if the
// queue is paused.
func (s *pinnedConn) claimOnce(terms leaseTerms, key dispatcherKey, from claimStart, groupsFirst bool, limit, budget int) (claimResult, error) {
	terms.ackDeadline = key.lease.or(terms.ackDeadline)
	v := claimResult{ackDeadline: terms.ackDeadline, alone: terms.alone()}
	if terms.paused {
		return v, nil
	}
	ungrouped := func(limit, budget int) (err error) {
		v.ungrouped, err = s.claimUngrouped(terms, key, from.messages, limit, budget)
		v.messages = append(v.messages, v.ungrouped.messages...)
		return err
	}
	claimGrouped := func(blocking bool, limit, budget int) (err error) {
		if terms.hasGroups {
			v.grouped, err = s.claimGrouped(terms, key, from.groups, blocking, limit, budget)
			v.messages = append(v.messages, v.grouped.messages...)
		}
		return err
	}
	grouped := func(limit, budget int) error { return claimGrouped(false, limit, budget) }
	first, second := ungrouped, grouped
	if groupsFirst {
		first, second = grouped, ungrouped
	}
	if err := first(limit, budget); err != nil || len(v.messages) == limit {
		return v, err
	}
	err := second(limit-len(v.messages), budget-sizeOf(v.messages))
	if err == nil && len(v.messages) == 0 {
		err = claimGrouped(true, limit, budget) // there is nothing else to claim, so it may wait for a lock
	}
	if len(v.messages) > 0 {
		err = nil // the messages of the first part must not be lost; a lasting error occurs in the next claim again
	}
	return v, err
}

// claimUngrouped is claim for messages without a group.
func (s *pinnedConn) claimUngrouped(terms leaseTerms, key dispatcherKey, from time.Time, limit, budget int) (c claimPart, err error) {
	args := []any{homeOf(terms.queueKey), terms.queueKey, terms.deliveryLimit, limit, budget, s.settings.version, since(from)}
	switch {
	case key.consumes && terms.keepsConsumed:
		err = s.transaction(func() (err error) {
			c.messages, err = s.leaseUngrouped(terms, key, args)
			if err == nil {
				err = s.keepConsumed(terms.queueKey, c.messages)
			}
			return err
		})
	case key.consumes:
		c.messages, err = readInHome(s, homeOf(terms.queueKey), "consume", func(row scanner) (message, error) {
			m := message{QueueID: key.queueID, consumed: true}
			err := row.Scan(append(m.columnsWithPast(), &m.UpdatedAt)...)
			m.dueAt = m.ScheduledAt
			m.DeliveryAttempts++
			return m, err
		}, consumeMessagesSQL, args...)
	default:
		c.messages, err = s.leaseUngrouped(terms, key, args)
	}
	if err != nil {
		return claimPart{}, err
	}
	return claimPartOf(c.messages), nil
}

// leaseUngrouped runs claimMessagesSQL or claimBackoffSQL. args has the arguments before the
// ack deadline.
func (s *pinnedConn) leaseUngrouped(terms leaseTerms, key dispatcherKey, args []any) ([]message, error) {
	name, statement, columns, args := "claim", claimMessagesSQL, (*message).columns, append(args, int(terms.ackDeadline/time.Second))
	switch {
	case key.sqs:
		name, statement, columns, args = "claim_sqs", claimSQSSQL, (*message).columnsWithPast, append(args, terms.retryBackoff)
	case terms.retryBackoff != nil:
		name, statement, args = "claim_backoff", claimBackoffSQL, append(args, terms.retryBackoff)
	}
	return readInHome(s, homeOf(terms.queueKey), name, func(row scanner) (message, error) {
		m := message{QueueID: key.queueID}
		err := row.Scan(append(columns(&m), &m.dueAt)...)
		m.endLease(terms)
		return m, err
	}, statement, args...)
}

// endLease sets the scheduled_at of a message that was claimed to the end of its lease, which
// the row does not have in a queue with a retry backoff.
func (m *message) endLease(terms leaseTerms) {
	if terms.retryBackoff != nil {
		m.ScheduledAt = timestamp{m.UpdatedAt.Add(terms.ackDeadline)}
	}
}

// since returns a time as an argument. The zero time becomes -infinity.
func since(t time.Time) any {
	if t.IsZero() {
		return "-infinity"
	}
	return t
}

// nextDue has the times at which a queue has the next message or group to claim.
type nextDue struct {
	queueID string
	now     time.Time // the clock of PostgreSQL
	dueAt   time.Time // of a message without a group; zero if there is none
	readyAt time.Time // of a group; zero if there is none
}

func (v nextDue) soonest() time.Time {
	if v.dueAt.IsZero() || !v.readyAt.IsZero() && v.readyAt.Before(v.dueAt) {
		return v.readyAt
	}
	return v.dueAt
}

// Due messages that cannot be claimed, because they are expired or exhausted, do not count.
// A paused queue has none to claim.
const selectNextDueSQL = `
SELECT q.id, now(), CASE WHEN NOT q.paused THEN (
    SELECT m.scheduled_at
    FROM queued.messages m
    WHERE m.queue_key = q.key
        AND m.home = $1
        AND m.group_id IS NULL
        AND m.scheduled_at >= coalesce(a.due_since, '-infinity')
        AND (m.scheduled_at > now()
            OR m.expired_at > now()
                AND m.delivery_attempts < least(q.delivery_limit, m.max_deliveries))
    ORDER BY m.scheduled_at, m.seq
    LIMIT 1
) END, CASE WHEN NOT q.paused THEN (
    SELECT r.ready_at
    FROM queued.ready_groups r
    WHERE r.queue_key = q.key
        AND r.home = $1
        AND r.ready_at >= coalesce(a.ready_since, '-infinity')
    ORDER BY r.ready_at
    LIMIT 1
) END
FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) AS a (id, due_since, ready_since)
JOIN queued.queues q ON q.id = a.id AND q.home = $1`

// nextDue looks up the next due times of queues in one statement, each from a time of its
// own. The result does not contain unknown queues.
func (s *pinnedConn) nextDue(queueIDs []string, since []claimStart) ([]nextDue, error) {
	return inHomesOfQueues(s, queueIDs, func(v nextDue) string { return v.queueID }, func(home int64, part []int) ([]nextDue, error) {
		var dueSince, readySince timeArray
		for _, i := range part {
			dueSince, readySince = append(dueSince, since[i].messages), append(readySince, since[i].groups)
		}
		return readInHome(s, home, "next_due", func(row scanner) (v nextDue, err error) {
			var dueAt, readyAt sql.NullTime
			err = row.Scan(&v.queueID, &v.now, &dueAt, &readyAt)
			v.dueAt, v.readyAt = dueAt.Time, readyAt.Time
			return v, err
		}, selectNextDueSQL, home, textArray(pick(queueIDs, part)), dueSince, readySince)
	})
}
