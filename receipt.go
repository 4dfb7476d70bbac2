package main

import (
	"context"
	"database/sql"
	"time"

	"github.com/lib/pq"
)

// receipt is a lease token that stays valid when the lease is extended: it consists of what
// only a delivery, a move, or a nack that does not count the delivery changes.
type receipt struct {
	queueKey, seq int64
	attempts      int
	receivedAt    int64 // messages.received_at, in microseconds since 1970
	inLease       bool  // for an ack: it has no effect after the end of the lease
}

// receipt returns the receipt of a message that SQS's API has received.
func (m *message) receipt() receipt {
	return receipt{queueKey: m.queueKey, seq: m.seq, attempts: m.DeliveryAttempts, receivedAt: m.past.receivedAt.Time.UnixMicro()}
}

// receiptArgs has the receipts of sorted items as arguments.
type receiptArgs struct {
	keys, seqs, attempts intArray // attempts are 0 for items without a receipt
	receivedAt           timeArray
	inLease              pq.BoolArray
}

func receiptArgsOf(sorted []ackItem) (args receiptArgs) {
	for _, v := range sorted {
		r, receivedAt := v.receipt, time.Time{}
		if r.attempts > 0 {
			receivedAt = time.UnixMicro(r.receivedAt)
		}
		args.keys, args.seqs, args.attempts = append(args.keys, r.queueKey), append(args.seqs, r.seq), append(args.attempts, int64(r.attempts))
		args.receivedAt, args.inLease = append(args.receivedAt, receivedAt), append(args.inLease, r.inLease)
	}
	return args
}

// ofReceiptSQL is true if the last delivery of the message m is that of the receipt a. See
// plans.go for the comparisons.
const ofReceiptSQL = `m.queue_key IS NOT DISTINCT FROM a.queue_key AND m.seq IS NOT DISTINCT FROM a.seq
        AND m.delivery_attempts IS NOT DISTINCT FROM a.attempts AND m.received_at IS NOT DISTINCT FROM a.received_at`

// changeVisibility sets the ends of the leases of items with receipts. Without a time, a
// message is due at once. If its lease is over and it had no other delivery, it is hidden
// again. changeVisibility returns errLeaseEnded with the items whose messages had another
// delivery, or were moved or deleted.
func (e *engine) changeVisibility(ctx context.Context, items ...ackItem) error {
	return e.submitAck(ctx, &ackRequest{items: items}, func(n *node) *batcher[*ackRequest] { return n.extensions })
}

// extendReceipts runs a batch of requests with receipts. It may run again.
func (e *engine) extendReceipts(s *pinnedConn, batch []*ackRequest) error {
	all, err := s.extendReceipts(itemsOf(batch))
	if err != nil {
		e.sweepIfUnknown(err)
		return err
	}
	type delivered struct {
		id string
		receipt
	}
	done := make(map[delivered]bool, len(all))
	for _, v := range all {
		done[delivered{v.id, v.receipt}] = true
		if v.queueID == "" {
			continue
		}
		if v.atOnce {
			e.metrics.add(messagesNacked, v.queueID, 1)
		}
		e.announce(v.queueID, v.until)
	}
	for _, v := range batch {
		v.conflicts = nil
		for i, item := range v.items {
			item.receipt.inLease = false
			if !done[delivered{item.id, item.receipt}] {
				v.conflicts = append(v.conflicts, i)
			}
		}
	}
	return nil
}

// visibility is the result of an extension with a receipt.
type visibility struct {
	id      string
	receipt receipt
	queueID string // empty if there was nothing to do
	until   time.Time
	atOnce  bool
}

// A message that is due at once stays in_flight, with a lease that has ended: so it keeps
// its receipt, and the cleanup moves it if that was its last delivery. It has no retry
// backoff, because the client has asked for this time.
const extendReceiptsSQL = `
WITH asked AS MATERIALIZED (
    SELECT u.*, now() + make_interval(secs => u.seconds) AS until
    FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::integer[], $6::timestamptz[], $7::integer[])
        AS u (id, queue_key, seq, attempts, received_at, seconds)
), over AS MATERIALIZED (
    SELECT m.id, m.queue_key, m.seq, m.delivery_attempts, m.received_at
    FROM asked a
    JOIN queued.messages m ON ` + thatOneSQL + `
    WHERE a.seconds = 0
        AND ` + ofReceiptSQL + `
        AND NOT ` + leasedSQL + `
), extended AS (
    WITH named AS MATERIALIZED (
        SELECT a.*, a.until + CASE WHEN a.seconds > 0 THEN coalesce(m.scheduled_at - m.lease_end, interval '0') ELSE interval '0' END AS due_at
        FROM asked a
        JOIN queued.messages m ON ` + thatOneSQL + `
        WHERE ` + ofReceiptSQL + `
            AND (a.seconds > 0 OR ` + leasedSQL + `)
        FOR UPDATE OF m
    )
    UPDATE queued.messages m
    SET in_flight = true, updated_at = now(), scheduled_at = a.due_at,
        lease_end = CASE WHEN a.seconds > 0 AND m.lease_end IS NOT NULL THEN a.until END
    FROM named a
    WHERE ` + thatOneSQL + `
        AND ` + ofReceiptSQL + `
    RETURNING m.id, m.queue_key, m.seq, m.delivery_attempts, m.received_at, m.group_id, m.scheduled_at, a.seconds = 0 AS at_once
), woken AS (
    SELECT queue_key, group_id, scheduled_at AS due_at, NULL::bigint AS seq
    FROM extended
    WHERE group_id IS NOT NULL
), groups AS (` + wakeExtendedSQL + `
)
SELECT m.id, m.queue_key, m.seq, m.delivery_attempts, m.received_at, q.id, m.scheduled_at, m.at_once
FROM extended m
JOIN queued.queues q ON q.key = m.queue_key
UNION ALL
SELECT id, queue_key, seq, delivery_attempts, received_at, '', NULL, false
FROM over`

// extendReceipts sets the ends of the leases of items with receipts, and returns those whose
// receipts match, each once.
func (s *pinnedConn) extendReceipts(items []ackItem) ([]visibility, error) {
	return inHomes(s, sortedItems(items), s.homes.ofItem, func(home int64, items []ackItem) ([]visibility, error) {
		ids, _, seconds := ackItemArgs(items)
		args := receiptArgsOf(items)
		return readInHome(s, home, "extend_receipts", func(row scanner) (v visibility, err error) {
			var receivedAt time.Time
			var until sql.NullTime
			err = row.Scan(&v.id, &v.receipt.queueKey, &v.receipt.seq, &v.receipt.attempts, &receivedAt, &v.queueID, &until, &v.atOnce)
			v.receipt.receivedAt, v.until = receivedAt.UnixMicro(), until.Time
			return v, err
		}, extendReceiptsSQL, home, ids, args.keys, args.seqs, args.attempts, args.receivedAt, seconds)
	})
}
