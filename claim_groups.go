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

// claimGroupsSQL calls a function of the database (functions_claim.sql), because a claim of
// groups needs several statements, and other transactions wait for its locks in the
// meantime.
const claimGroupsSQL = `
SELECT ` + messageColumnsSQL + `, ` + claimGroupsTailSQL

// claimGroupsWithPastSQL is claimGroupsSQL for a claim that also reads the past of the
// messages, because it consumes them or is one of SQS's API.
const claimGroupsWithPastSQL = `
SELECT ` + messageColumnsSQL + `, ` + pastColumnsSQL + `, ` + claimGroupsTailSQL

const claimGroupsTailSQL = `c.was_due_at, c.nth, c.was_limited_until, c.now_limited_until, c.claimed_at, c.checked_from
FROM queued.claim_groups($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) c
CROSS JOIN LATERAL (SELECT (c.message).*) m`

// claimGrouped is claim for messages with a group, from the groups that are ready since
// from. It skips groups that another transaction has locked. A blocking claim waits for the
// lock of the group that is ready longest.
func (s *pinnedConn) claimGrouped(terms leaseTerms, key dispatcherKey, from time.Time, blocking bool, limit, budget int) (c claimPart, err error) {
	claim := func() (err error) {
		c, err = s.takeFromGroups(terms, key, from, blocking, limit, budget)
		return err
	}
	if key.consumes && terms.keepsConsumed {
		err = s.transaction(func() error {
			if err := claim(); err != nil {
				return err
			}
			return s.keepConsumed(terms.queueKey, c.messages)
		})
	} else {
		err = claim()
	}
	if locked(err) {
		return claimPart{}, nil // waiting longer is not worth it
	}
	if err != nil {
		return claimPart{}, err
	}
	return c, nil
}

// takeFromGroups runs claimGroupsSQL.
func (s *pinnedConn) takeFromGroups(terms leaseTerms, key dispatcherKey, from time.Time, blocking bool, limit, budget int) (c claimPart, err error) {
	type numbered struct {
		message
		nth int
	}
	name, visits := "claim_groups", limit
	if blocking {
		name, visits = "await_group", 1
	}
	consumes := key.consumes && !terms.keepsConsumed
	statement, columns := claimGroupsSQL, (*message).columns
	if consumes || key.sqs {
		statement, columns = claimGroupsWithPastSQL, (*message).columnsWithPast
	}
	lease := sql.NullInt64{Int64: int64(terms.ackDeadline / time.Second), Valid: !consumes}
	all, err := readInHome(s, homeOf(terms.queueKey), name, func(row scanner) (numbered, error) {
		m := numbered{message: message{QueueID: key.queueID, consumed: consumes, groupDelivery: &groupDelivery{}}}
		var claimedAt timestamp
		err := row.Scan(append(columns(&m.message), &m.dueAt, &m.nth, &m.groupDelivery.before, &m.groupDelivery.after, &claimedAt, &c.last)...)
		if !consumes {
			m.endLease(terms)
		}
		if c.now = claimedAt.Time; consumes { // the row is as it was before
			m.UpdatedAt = claimedAt
			m.DeliveryAttempts++
		}
		return m, err
	}, statement, terms.queueKey, s.settings.version, since(from), visits, blocking, int(terms.deliveryInterval/time.Millisecond), terms.ordered,
		terms.deliveryLimit, limit, budget, lease, terms.retryBackoff, key.sqs, key.runs)
	if err != nil {
		return claimPart{}, err
	}
	slices.SortFunc(all, func(a, b numbered) int { return cmp.Compare(a.nth, b.nth) })
	for _, m := range all {
		c.messages = append(c.messages, m.message)
	}
	return c, nil
}
