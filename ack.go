package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"

	"queued/internal/rawjson"
)

// ackRequest is a request to ack, nack or extend messages. The batcher sets its results.
type ackRequest struct {
	items []ackItem

	err       error     // errMoving, if the request was executed but for messages that may be moving
	conflicts []int     // indexes of items whose lease token did not match
	extended  []message // the messages that extend has changed
}

// errNotInFlight is the error of an extend for a message that has no lease.
var errNotInFlight = errors.New("not in flight")

// errLeaseEnded is the error of a request with lease tokens that do not match. The other
// messages of the request were acked, nacked or extended.
type errLeaseEnded struct{ items []int } // indexes

func (errLeaseEnded) Error() string { return "the lease has ended: scheduled_at does not match" }

// ack deletes messages. It deletes a message with a lease token only if the token matches
// its lease, and any other message whether or not it is leased. It ignores unknown ids.
func (e *engine) ack(ctx context.Context, items ...ackItem) error {
	return e.submitAck(ctx, &ackRequest{items: items}, func(n *node) *batcher[*ackRequest] { return n.acks })
}

// nack ends the leases and delays of messages: each is due after the item's time, or moves
// to the dead queue if it had its last delivery. It ignores other ids.
func (e *engine) nack(ctx context.Context, items ...ackItem) error {
	return e.submitAck(ctx, &ackRequest{items: items}, func(n *node) *batcher[*ackRequest] { return n.nacks })
}

// extend sets the end of the lease of a message in flight, and returns the message. It
// returns errNotInFlight for any other message.
func (e *engine) extend(ctx context.Context, item ackItem) (message, error) {
	v := &ackRequest{items: []ackItem{item}}
	if err := e.submitAck(ctx, v, func(n *node) *batcher[*ackRequest] { return n.extensions }); err != nil {
		return message{}, err
	}
	if len(v.extended) == 0 {
		return message{}, errNotInFlight
	}
	return v.extended[0], nil
}

// submitAck executes a request in a batcher of the node of its messages. If they have several
// nodes, each executes a part, and after an error some parts may have been executed.
func (e *engine) submitAck(ctx context.Context, v *ackRequest, batcherOf func(*node) *batcher[*ackRequest]) error {
	submit := func(n *node, v *ackRequest) error {
		return n.explain(batcherOf(n).do(ctx, v, len(v.items), 0))
	}
	var err error
	if n := e.nodeOfItems(v.items); n != nil {
		err = submit(n, v)
	} else {
		err = e.submitParts(v, submit)
	}
	switch {
	case err != nil:
		return err
	case v.err != nil:
		return v.err
	case len(v.conflicts) > 0:
		return errLeaseEnded{v.conflicts}
	}
	return nil
}

// submitParts executes a request on the nodes of its messages at the same time.
func (e *engine) submitParts(v *ackRequest, submit func(*node, *ackRequest) error) error {
	byNode := make(map[*node][]int)
	for i, item := range v.items {
		n := e.nodeOf(e.homes.ofItem(item))
		byNode[n] = append(byNode[n], i)
	}
	var parts sync.WaitGroup
	var mu sync.Mutex // protects what follows
	var failed error
	for n, places := range byNode {
		parts.Go(func() {
			part := &ackRequest{items: pick(v.items, places)}
			err := submit(n, part)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			}
			if part.err != nil {
				v.err = part.err
			}
			v.conflicts = append(v.conflicts, pick(places, part.conflicts)...)
		})
	}
	parts.Wait()
	slices.Sort(v.conflicts)
	return failed
}

func (e *engine) runAcks(s *pinnedConn, batch []*ackRequest) error {
	all, moving, err := s.ack(itemsOf(batch))
	e.countAcks(all) // also before an error, because these acks are committed
	if err != nil {
		e.sweepIfUnknown(err)
		return err
	}
	return finishAcks(s, batch, idsIn(all), moving)
}

// finishAcks sets the conflicts and errors of requests, see findConflicts. moving are ids of
// messages that may be moving.
func finishAcks(s *pinnedConn, batch []*ackRequest, done map[string]bool, moving []string) error {
	if err := findConflicts(s, batch, done); err != nil {
		return err
	}
	for _, id := range moving {
		failItems(batch, id, errMoving)
	}
	return nil
}

// failItems sets the error of the requests with a message.
func failItems(batch []*ackRequest, id string, err error) {
	for _, v := range batch {
		if slices.ContainsFunc(v.items, func(item ackItem) bool { return item.id == id }) {
			v.err = err
		}
	}
}

// countAcks counts committed acks, and wakes the receivers of groups whose messages waited
// for them.
func (e *engine) countAcks(all []queueChange) {
	for _, t := range all {
		if t.queueID != "" {
			e.metrics.add(messagesAcked, t.queueID, t.acked)
		}
		if !t.dueAt.IsZero() {
			e.announce(t.queueID, t.dueAt)
		}
	}
}

// runExtensions runs the extensions of a batch: those with receipts in one statement, and the
// others in another. It may run again.
func (e *engine) runExtensions(s *pinnedConn, batch []*ackRequest) error {
	var others, withReceipts []*ackRequest
	for _, v := range batch {
		if v.items[0].receipt.attempts > 0 {
			withReceipts = append(withReceipts, v)
		} else {
			others = append(others, v)
		}
	}
	if len(withReceipts) > 0 {
		if err := e.extendReceipts(s, withReceipts); err != nil {
			return err
		}
	}
	if len(others) == 0 {
		return nil
	}
	return e.extendMessages(s, others)
}

func (e *engine) extendMessages(s *pinnedConn, batch []*ackRequest) error {
	all, moving, err := s.extend(itemsOf(batch))
	if err != nil {
		e.sweepIfUnknown(err)
		return err
	}
	byID := make(map[string]message, len(all))
	done := make(map[string]bool, len(all))
	for _, m := range all {
		byID[m.ID], done[m.ID] = m, true
		e.announce(m.QueueID, m.ScheduledAt.Time) // the lease may end sooner than before
	}
	for _, v := range batch {
		v.extended = nil
		for _, item := range v.items {
			if m, ok := byID[item.id]; ok {
				v.extended = append(v.extended, m)
			}
		}
	}
	return finishAcks(s, batch, done, moving)
}

func itemsOf(batch []*ackRequest) (all []ackItem) {
	for _, v := range batch {
		all = append(all, v.items...)
	}
	return all
}

func idsIn(all []queueChange) map[string]bool {
	ids := make(map[string]bool)
	for _, t := range all {
		for _, id := range t.ids {
			ids[id] = true
		}
	}
	return ids
}

// findConflicts sets the conflicts of each request: the items with a lease token whose
// messages are not in done, but exist. A lease token of a deleted message is no conflict. It
// sets the error of a request if such a message may be moving.
func findConflicts(s *pinnedConn, batch []*ackRequest, done map[string]bool) error {
	var ids idArray
	for _, v := range batch {
		v.err, v.conflicts = nil, nil
		for _, item := range v.items {
			if item.hasToken() && !done[item.id] {
				ids = append(ids, item.id)
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	exists, sure, err := s.locate(ids)
	if err != nil {
		// The acks are committed, and must not run again.
		return fmt.Errorf("%w: unknown which leases had ended: %v", errUnavailable, err)
	}
	for _, v := range batch {
		for i, item := range v.items {
			if !item.hasToken() || done[item.id] {
				continue
			}
			at, found := exists[item.id]
			if !found && !sure {
				v.err = errMoving
			}
			if item.receipt.inLease {
				found = found && at.queueKey == item.receipt.queueKey && at.seq == item.receipt.seq // otherwise it has moved
			}
			if found {
				v.conflicts = append(v.conflicts, i)
			}
		}
	}
	return nil
}

// maxLease is the maximum delay of a nack, and the maximum lease of an extend.
const maxLease = 12 * time.Hour

// queueChange has the changes of one statement to a queue.
type queueChange struct {
	queueID string
	acked   int
	nacked  int
	dead    int       // number of nacked messages that moved to the dead queue
	dropped int       // number of nacked messages that were deleted without a dead queue
	dueAt   time.Time // the earliest due time of changed messages and groups; zero if there is none
	ids     []string  // of the changed messages that had a lease token; of an ack where messages have homes, all
	stay    []string  // ids of messages that a nack did not change, because they had their last delivery
}

// ackItem is a message to ack, nack or extend.
type ackItem struct {
	id          string
	leasedUntil time.Time     // lease token: the scheduled_at that the message must still have; zero for none
	receipt     receipt       // lease token in place of leasedUntil; zero for none
	after       time.Duration // for a nack, until the message is due; for an extend, until the lease ends
	backsOff    bool          // for a nack: the message is due after the retry backoff of its queue
	uncounted   bool          // for a nack: the delivery does not count as an attempt
	lastError   string        // for a nack; empty if it has none
}

// hasToken reports whether an ack, nack or extension of the item may conflict with another
// lease.
func (v *ackItem) hasToken() bool { return !v.leasedUntil.IsZero() || v.receipt.inLease }

// sortedItems returns the items sorted by id, so that all statements lock rows in the same
// order.
func sortedItems(items []ackItem) []ackItem {
	return slices.SortedFunc(slices.Values(items), func(a, b ackItem) int { return cmp.Compare(a.id, b.id) })
}

// ackItemArgs returns the arguments ids, leases and seconds of sorted items.
func ackItemArgs(sorted []ackItem) (ids idArray, leases timeArray, seconds intArray) {
	for _, v := range sorted {
		ids = append(ids, v.id)
		leases = append(leases, v.leasedUntil)
		if v.backsOff {
			seconds = append(seconds, -1)
		} else {
			seconds = append(seconds, int64(v.after/time.Second))
		}
	}
	return ids, leases, seconds
}

// inLeaseSQL is true if the ack, nack or extension a has no lease token, or one that matches
// the lease of the message m. See plans.go for the comparison.
const inLeaseSQL = `(a.leased_until IS NULL OR m.in_flight AND ` + leaseEndSQL + ` IS NOT DISTINCT FROM a.leased_until)`

// leaseEndSQL is the end of the lease of a message m in flight, which is its lease token. A
// message is due then, or later in a queue with a retry backoff (claimBackoffSQL).
const leaseEndSQL = `coalesce(m.lease_end, m.scheduled_at)`

// leasedSQL is true if the message m is leased now.
const leasedSQL = `(m.in_flight AND ` + leaseEndSQL + ` > now())`

// wakeAckedSQL are steps of statements that ack messages. They make claims check the groups
// of ordered queues, in which the next message may have waited for the ack. They do so also
// for groups that are not blocked, because a claim that saw the message may be about to block
// its group.
const wakeAckedSQL = `woken AS (
    SELECT a.queue_key, a.group_id, now() AS due_at, NULL::bigint AS seq
    FROM acked a
    WHERE a.group_id IS NOT NULL
        AND (SELECT q.ordered FROM queued.queues q WHERE q.key = a.queue_key)
), groups AS (` + wakeGroupsSQL + `
)`

// The statement also deletes messages of deleted queues. Their queue id is empty. It returns
// the ids of messages with a lease token or, if $4 is true, of all.
const ackMessagesSQL = `
WITH acked AS (
    DELETE FROM queued.messages m
    USING unnest($2::uuid[], $3::timestamptz[]) AS a (id, leased_until)
    WHERE ` + thatOneSQL + `
        AND ` + inLeaseSQL + `
    RETURNING m.id, m.queue_key, m.group_id, a.leased_until IS NOT NULL OR $4 AS named
), ` + countAckedSQL

// ackReceiptsSQL is ackMessagesSQL for items of which some have a receipt.
const ackReceiptsSQL = `
WITH acked AS (
    DELETE FROM queued.messages m
    USING unnest($2::uuid[], $3::timestamptz[], $5::bigint[], $6::bigint[], $7::integer[], $8::timestamptz[], $9::boolean[])
        AS a (id, leased_until, queue_key, seq, attempts, received_at, in_lease)
    WHERE ` + thatOneSQL + `
        AND (a.attempts = 0 AND ` + inLeaseSQL + `
            OR a.attempts > 0 AND ` + ofReceiptSQL + ` AND (NOT a.in_lease OR ` + leasedSQL + `))
    RETURNING m.id, m.queue_key, m.group_id, a.leased_until IS NOT NULL OR a.in_lease OR $4 AS named
), ` + countAckedSQL

const countAckedSQL = wakeAckedSQL + `
SELECT coalesce(q.id, ''), count(*), array_agg(acked.id) FILTER (WHERE named), min(g.ready_at)
FROM acked
LEFT JOIN queued.queues q ON q.key = acked.queue_key
LEFT JOIN (SELECT queue_key, min(ready_at) AS ready_at FROM groups GROUP BY queue_key) g ON g.queue_key = acked.queue_key
GROUP BY q.id`

// ack deletes messages, see engine.ack. It returns the ids of messages that may be moving. The
// changes that it returns are committed, also if it returns an error. It may run again with
// the same items.
func (s *pinnedConn) ack(items []ackItem) (all []queueChange, moving []string, err error) {
	for home, part := range byHome(sortedItems(items), s.homes.ofItem) {
		acked, err := s.ackIn(home, part)
		if all = append(all, acked...); err != nil {
			return all, moving, err
		}
		if !areMissing(part, acked) {
			continue
		}
		if s.homes.areSeveral() {
			done := idsIn(acked)
			part = slices.DeleteFunc(slices.Clone(part), func(v ackItem) bool { return done[v.id] })
		}
		// A statement that began before the commit of a move does not see the moved message
		// in either queue. A search sees it. Usually nothing is missing.
		acked, unsure, err := s.ackMoved(home, part)
		all, moving = append(all, acked...), append(moving, unsure...)
		if err != nil {
			return all, moving, err
		}
	}
	return all, moving, nil
}

// areMissing reports whether sorted items name messages that were not acked.
func areMissing(items []ackItem, acked []queueChange) bool {
	n := 0
	for i, v := range items {
		if i == 0 || v.id != items[i-1].id {
			n++
		}
	}
	for _, t := range acked {
		n -= t.acked
	}
	return n > 0
}

// ackIn acks sorted items of one home with one statement.
func (s *pinnedConn) ackIn(home int64, items []ackItem) ([]queueChange, error) {
	ids, leases, _ := ackItemArgs(items)
	statement, args := ackMessagesSQL, []any{home, ids, leases, s.homes.areSeveral()}
	if slices.ContainsFunc(items, func(v ackItem) bool { return v.receipt.attempts > 0 }) {
		v := receiptArgsOf(items)
		statement, args = ackReceiptsSQL, append(args, v.keys, v.seqs, v.attempts, v.receivedAt, v.inLease)
	}
	return readInHome(s, home, "ack", func(row scanner) (t queueChange, err error) {
		var readyAt sql.NullTime
		err = row.Scan(&t.queueID, &t.acked, pq.Array(&t.ids), &readyAt)
		t.dueAt = readyAt.Time
		return t, err
	}, statement, args...)
}

const extendMessagesSQL = `
WITH extended AS (
    WITH asked AS MATERIALIZED (
        SELECT id, leased_until, now() + make_interval(secs => seconds) AS until
        FROM unnest($2::uuid[], $3::timestamptz[], $4::integer[]) AS u (id, leased_until, seconds)
    ), named AS MATERIALIZED (
        SELECT m.id, m.queue_key, a.leased_until, a.until, a.until + coalesce(m.scheduled_at - m.lease_end, interval '0') AS due_at
        FROM asked a
        JOIN queued.messages m ON ` + thatOneSQL + `
        WHERE m.in_flight
            AND ` + inLeaseSQL + `
        FOR UPDATE OF m
    )
    UPDATE queued.messages m
    SET scheduled_at = a.due_at, updated_at = now(), lease_end = CASE WHEN m.lease_end IS NOT NULL THEN a.until END
    FROM named a
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.queue_key
        AND m.in_flight
        AND ` + inLeaseSQL + `
    RETURNING m.*
), woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, NULL::bigint AS seq
    FROM extended
    WHERE group_id IS NOT NULL
), groups AS (` + wakeExtendedSQL + `
)
SELECT ` + messageColumnsSQL + `, q.id, ` + leaseEndSQL + `
FROM extended m
JOIN queued.queues q ON q.key = m.queue_key`

// extend sets the ends of the leases of messages in flight, and returns these messages. It
// ignores other ids. It returns the ids of messages that may be moving.
func (s *pinnedConn) extend(items []ackItem) (all []message, moving []string, err error) {
	return inHomesOfItems(s, sortedItems(items), func(home int64, items []ackItem) ([]message, error) {
		ids, leases, seconds := ackItemArgs(items)
		return readInHome(s, home, "extend", func(row scanner) (m message, err error) {
			err = row.Scan(append(m.columns(), &m.QueueID, &m.ScheduledAt)...)
			return m, err
		}, extendMessagesSQL, home, ids, leases, seconds)
	}, func(m message) []string { return []string{m.ID} })
}

// messageID reads the id of a message.
func (f *form) messageID(raw []byte, loc ...any) string {
	if raw[0] == '"' {
		if id, ok := parseID(rawjson.Unquote(raw)); ok {
			return id
		}
	}
	f.addMistake("value is not a valid uuid", "type_error.uuid", loc...)
	return ""
}

// ackItems reads "ids", or "messages", which have an id and an optional lease token each.
func (f *form) ackItems() (items []ackItem) {
	switch {
	case f.has("messages") && f.has("ids"):
		f.addMistake("ids and messages are mutually exclusive", "value_error", "messages")
	case f.has("messages"):
		f.objects("messages", maxBatch, func(item *form) {
			items = append(items, item.ackItem())
		})
	default:
		f.list("ids", maxBatch, func(i int, raw []byte) {
			items = append(items, ackItem{id: f.messageID(raw, "ids", i)})
		})
	}
	return items
}

// ackItem decodes the id of a message and its optional lease token.
func (f *form) ackItem() (v ackItem) {
	if raw := f.value("id", true); raw != nil {
		v.id = f.messageID(raw, "id")
	}
	if raw := f.value("scheduled_at", false); raw != nil {
		if raw[0] != '"' {
			f.addMistake("invalid datetime format", "value_error.datetime", "scheduled_at")
		} else {
			v.leasedUntil = f.time(rawjson.Unquote(raw), "scheduled_at")
		}
	}
	return v
}

// maxError is the maximum length of the error of a nack, in bytes. The rest is cut off.
const maxError = 2048

// nack returns an item with the fields of a nack besides the message.
func (f *form) nack() (v ackItem) {
	v.after = f.seconds("delay_seconds", bounds{0, int(maxLease / time.Second)}, false)
	v.backsOff = f.value("delay_seconds", false) == nil
	v.uncounted = f.value("count_attempt", false) != nil && !f.boolean("count_attempt")
	if raw := f.value("error", false); raw != nil {
		if raw[0] != '"' {
			f.addMistake("str type expected", "type_error.str", "error")
		} else {
			v.lastError = cutText(strings.ReplaceAll(rawjson.Unquote(raw), "\x00", "\uFFFD"), maxError) // PostgreSQL stores no zero bytes
		}
	}
	return v
}

// of returns the nack for the message and the lease token of another item.
func (v ackItem) of(message ackItem) ackItem {
	v.id, v.leasedUntil = message.id, message.leasedUntil
	return v
}
