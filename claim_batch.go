package main

import (
	"cmp"
	"slices"
	"time"
)

// claimRequest is a claim of messages without a group. Claims of several queues that
// wait at the same time share a statement and a commit.
type claimRequest struct {
	dispatcherKey
	from   claimStart
	limit  int // messages
	budget int // bytes

	done   bool // the fields below are set
	result claimResult
	sentAt time.Time // of the statement
	err    error
	alone  bool // the queue may have ready groups, or has a retry backoff, so it needs a claim of its own
}

// claimBudget is the maximum bytes of the messages that one statement claims for several
// queues. A single message may be larger.
const claimBudget = claimShares * deliverySize

// runClaims runs the claims of a batch that an earlier run of the batch has not done.
func (e *engine) runClaims(s *pinnedConn, batch []*claimRequest) error {
	pending := slices.DeleteFunc(slices.Clone(batch), func(r *claimRequest) bool { return r.done })
	for range settingsAttempts {
		if err := s.readStaleTerms(pending); err != nil {
			return err
		}
		version := s.settings.version
		var able, paused []*claimRequest
		for _, r := range pending {
			terms, found := s.settings.terms[r.queueID]
			if found {
				e.homes.learn(r.queueID, terms.queueKey)
			}
			switch {
			case !found:
				r.done, r.err = true, errQueueNotFound
			case terms.alone():
				r.done, r.alone = true, true
			case terms.paused:
				paused = append(paused, r)
			default:
				able = append(able, r)
			}
		}
		for left := able; len(left) > 0; {
			var together []*claimRequest
			together, left = s.compatible(left)
			if err := s.claimBatch(together); err != nil {
				return err
			}
		}
		// For the other queues no message is due, or the queue is paused, or the terms have
		// changed, or the queue was deleted.
		pending = append(slices.DeleteFunc(able, func(r *claimRequest) bool { return r.done }), paused...)
		if err := s.readLeaseTerms(claimArgs(pending)); err != nil {
			return err
		}
		if s.settings.version == version {
			for _, r := range pending {
				terms, found := s.settings.terms[r.queueID]
				r.done, r.alone = true, terms.alone()
				if !found {
					r.err = errQueueNotFound
				}
			}
			return nil
		}
	}
	return errStale
}

// compatible returns the claims that can share a statement with the first one, and the
// others. Two claims of one queue would find the same messages, those of SQS's API read more
// columns, and a statement is about one home.
func (s *pinnedConn) compatible(all []*claimRequest) (together, others []*claimRequest) {
	if len(all) == 1 {
		return all, nil
	}
	queues := make(map[string]bool, len(all))
	home := func(r *claimRequest) int64 { return homeOf(s.settings.terms[r.queueID].queueKey) }
	for _, r := range all {
		if r.sqs == all[0].sqs && home(r) == home(all[0]) && !queues[r.queueID] {
			queues[r.queueID] = true
			together = append(together, r)
		} else {
			others = append(others, r)
		}
	}
	return together, others
}

// readStaleTerms reads the terms of those queues for which they are not known, or may
// not know of the groups. Afterwards the terms of all of them are known, except of queues
// that do not exist.
func (s *pinnedConn) readStaleTerms(all []*claimRequest) error {
	for range settingsAttempts {
		resets := s.settings.resets
		var stale []*claimRequest
		for _, r := range all {
			if terms, known := s.settings.terms[r.queueID]; !known || time.Since(terms.readAt) > groupsUnnoticed {
				stale = append(stale, r)
			}
		}
		if err := s.readLeaseTerms(claimArgs(stale)); err != nil {
			return err
		}
		if s.settings.resets == resets || len(stale) == len(all) { // otherwise known terms were forgotten
			return nil
		}
	}
	return errStale
}

func claimArgs(all []*claimRequest) (queueIDs []string, groupsSince []time.Time) {
	for _, r := range all {
		queueIDs, groupsSince = append(queueIDs, r.queueID), append(groupsSince, r.from.groups)
	}
	return queueIDs, groupsSince
}

// claimBatchSQL is claimMessagesSQL for several queues. It takes messages from the queues
// in turns, up to the budget of the statement ($8).
const claimBatchSQL = leaseBatchSQL + returnBatchSQL + messageColumnsSQL + `, f.scheduled_at, f.place`

// claimBatchSQSSQL is claimBatchSQL for SQS's API.
const claimBatchSQSSQL = leaseBatchSQL + `, received_at = least(m.received_at, now())` + returnBatchSQL + messageColumnsSQL + `, ` + pastColumnsSQL + `, f.scheduled_at, f.place`

// The two parts of claimBatchSQL.
const (
	leaseBatchSQL = `
WITH wanted AS MATERIALIZED (
    SELECT *, now() + make_interval(secs => ack_deadline) AS until
    FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[], $7::bigint[]) WITH ORDINALITY
        AS w (queue_key, delivery_limit, messages, budget, since, ack_deadline, place)
    WHERE (SELECT version FROM queued.settings) = $8
), due AS MATERIALIZED (
    SELECT d.*, w.place, w.budget, w.until, w.delivery_limit
    FROM wanted w
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, scheduled_at, seq, bytes
        FROM queued.messages
        WHERE queue_key = w.queue_key
            AND home = $1
            AND group_id IS NULL
            AND scheduled_at >= coalesce(w.since, '-infinity')
            AND scheduled_at <= now()
            AND expired_at > now()
            AND delivery_attempts < w.delivery_limit
        ORDER BY scheduled_at, seq
        LIMIT w.messages
        FOR UPDATE SKIP LOCKED
    ) d
), numbered AS MATERIALIZED (
    SELECT *, row_number() OVER queue AS turn, sum(bytes) OVER queue AS total
    FROM due
    WINDOW queue AS (PARTITION BY place ORDER BY scheduled_at, seq)
), fitting AS MATERIALIZED (
    SELECT *, sum(bytes) OVER (ORDER BY turn, place) AS batch_total
    FROM numbered
)
UPDATE queued.messages m
SET in_flight = true, delivery_attempts = m.delivery_attempts + 1, last_delivery = m.delivery_attempts + 1 >= f.delivery_limit,
    scheduled_at = f.until, updated_at = now()`

	returnBatchSQL = `
FROM fitting f
WHERE m.ctid = f.tid
    AND m.home = $1
    AND (f.total <= f.budget OR f.total = f.bytes)
    AND (f.batch_total <= $9 OR f.batch_total = f.bytes)
RETURNING `
)

// claimBatch claims for compatible requests whose terms s has cached. It sets done of the
// requests that got messages.
func (s *pinnedConn) claimBatch(all []*claimRequest) error {
	switch len(all) {
	case 0:
		return nil
	case 1:
		r := all[0]
		r.sentAt = time.Now()
		v, err := s.claimOnce(s.settings.terms[r.queueID], r.dispatcherKey, r.from, false, r.limit, r.budget)
		r.result, r.done = v, len(v.messages) > 0
		return err
	}
	var keys, limits, deliveryLimits, budgets, deadlines intArray
	var since timeArray
	sentAt := time.Now()
	for _, r := range all {
		terms := s.settings.terms[r.queueID]
		keys, limits, budgets = append(keys, terms.queueKey), append(limits, int64(r.limit)), append(budgets, int64(r.budget))
		terms.ackDeadline = r.lease.or(terms.ackDeadline)
		deliveryLimits, deadlines = append(deliveryLimits, int64(terms.deliveryLimit)), append(deadlines, int64(terms.ackDeadline/time.Second))
		since = append(since, r.from.messages)
		r.sentAt, r.result = sentAt, claimResult{ackDeadline: terms.ackDeadline}
	}
	name, statement, columns := "claim_batch", claimBatchSQL, (*message).columns
	if all[0].sqs {
		name, statement, columns = "claim_batch_sqs", claimBatchSQSSQL, (*message).columnsWithPast
	}
	_, err := readInHome(s, homeOf(keys[0]), name, func(row scanner) (any, error) {
		var m message
		var place int
		err := row.Scan(append(columns(&m), &m.dueAt, &place)...)
		if err == nil {
			r := all[place-1]
			m.QueueID = r.queueID
			r.result.messages = append(r.result.messages, m)
		}
		return nil, err
	}, statement, homeOf(keys[0]), keys, deliveryLimits, limits, budgets, since, deadlines, s.settings.version, claimBudget)
	if err != nil {
		return err
	}
	for _, r := range all {
		r.result.ungrouped = claimPartOf(r.result.messages)
		r.done = len(r.result.messages) > 0
	}
	return nil
}

// claimPartOf sorts claimed messages, oldest due first.
func claimPartOf(messages []message) claimPart {
	slices.SortFunc(messages, func(a, b message) int {
		return cmp.Or(a.dueAt.Compare(b.dueAt.Time), cmp.Compare(a.seq, b.seq))
	})
	c := claimPart{messages: messages}
	if n := len(messages); n > 0 {
		c.last, c.now = messages[n-1].dueAt.Time, messages[n-1].UpdatedAt.Time
	}
	return c
}
