package main

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/lib/pq"
)

// redriven is the result of a redrive.
type redriven struct {
	moved    int
	left     int // messages that stayed, because they have no destination or are in flight
	noSource int // those of them that do not remember a queue that they came from
}

// err returns errNoSource if nothing has moved because no message remembers a source.
func (v redriven) err() error {
	if v.moved == 0 && v.left > 0 && v.noSource == v.left {
		return errNoSource
	}
	return nil
}

// errNoSource is the error of a redrive of messages to the queues that they came from.
var errNoSource = errors.New("no message remembers the queue that it came from; name a destination_queue_id")

// hasDestinationSQL is true if the destination of the message m exists: the queue $9, or its
// source if that is null.
const hasDestinationSQL = `(SELECT true FROM queued.queues h WHERE h.id = coalesce($9, m.source_queue_id)) IS TRUE`

const removeRedrivenSQL = `
WITH removed AS (
    WITH source AS MATERIALIZED (
        SELECT delivery_limit
        FROM queued.queues
        WHERE key = $2
    ), due AS MATERIALIZED (
        SELECT m.ctid AS tid, m.bytes
        FROM queued.messages m
        WHERE m.queue_key = $2
            AND m.home = $1
            AND ((m.group_id IS NULL), m.scheduled_at, m.seq) > ($5, $6, $7)
            AND m.scheduled_at <= $3
            AND m.seq <= $4
            AND m.expired_at > now()
            AND m.delivery_attempts < least((SELECT delivery_limit FROM source), m.max_deliveries)
            AND ` + hasDestinationSQL + `
        ORDER BY (m.group_id IS NULL), m.scheduled_at, m.seq
        LIMIT $8
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM queued.messages m
    USING due
    WHERE m.ctid = due.tid
        AND m.home = $1`

const (
	returnRedrivenSQL = `
    RETURNING m.*, false AS dies, coalesce($9, m.source_queue_id) AS destination_id, NULL::text AS new_error`

	redriveBatchSQL = removeRedrivenSQL + returnRedrivenSQL + `
), moved AS (` + moveMessagesSQL + wakeMovedSQL + `
SELECT group_id IS NULL, scheduled_at, seq, count(*) OVER (), (SELECT array_agg(DISTINCT destination_id) FROM removed)
FROM removed
ORDER BY (group_id IS NULL) DESC, scheduled_at DESC, seq DESC
LIMIT 1`

	takeRedrivenSQL = removeRedrivenSQL + takenFitsSQL + returnRedrivenSQL + takenRowsSQL + `, taken AS (
    SELECT ` + takenColumnsSQL + `, array_agg(DISTINCT destination_id)
    FROM removed
)
SELECT r.group_id IS NULL, r.scheduled_at, r.seq, count(*) OVER (), t.*
FROM removed r
CROSS JOIN taken t
ORDER BY (r.group_id IS NULL) DESC, r.scheduled_at DESC, r.seq DESC
LIMIT 1`
)

// redriveBatch moves at most limit messages of a queue, as it was, after a position. It returns
// the last position, the number of messages and their new queues, or sql.ErrNoRows.
func (s *store) redriveBatch(ctx context.Context, tx *sql.Tx, from snapshot, after position, limit int, destination *string) (last position, n int, to []string, err error) {
	in := func(name string) querier { return s.on(name) }
	if tx != nil {
		in = func(name string) querier { return s.in(tx, name) }
	}
	var t taken
	statement, columns := redriveBatchSQL, []any{&last.ungrouped, &last.at, &last.seq, &n}
	if s.homes.areSeveral() {
		statement, columns = takeRedrivenSQL, append(columns, t.columns()...)
	}
	row := in("redrive").QueryRowContext(ctx, statement, homeOf(from.key), from.key, from.at, from.seq, after.ungrouped, after.at, after.seq, limit, destination)
	err = row.Scan(append(columns, pq.Array(&to))...)
	if err == nil && s.homes.areSeveral() {
		err = t.store(ctx, in, from.key, false)
	}
	return last, n, to, err
}

// redrivableSQL are the messages that a redrive finds.
const redrivableSQL = `
    FROM queued.messages m
    JOIN queued.queues q ON q.key = m.queue_key
    WHERE m.queue_key = $2
        AND m.home = $1
        AND m.scheduled_at <= $3
        AND m.seq <= $4
        AND m.expired_at > now()
        AND m.delivery_attempts < least(q.delivery_limit, m.max_deliveries)`

const (
	redriveLeftSQL = `
SELECT EXISTS (
    SELECT` + redrivableSQL + `
        AND (SELECT true FROM queued.queues h WHERE h.id = coalesce($5, m.source_queue_id)) IS TRUE
)`

	countHomelessSQL = `
SELECT count(*), count(*) FILTER (WHERE source_queue_id IS NULL)
FROM (
    SELECT m.source_queue_id` + redrivableSQL + `
        AND (SELECT true FROM queued.queues h WHERE h.id = m.source_queue_id) IS NOT TRUE
) m`
)

// redrive moves the messages that could be received when it was called to the destination
// or, if that is nil, each to the queue that it came from. Messages whose queue does not
// exist stay. It calls moved with the number of messages in each batch and their new queues.
// It moves at most limit messages, in order, beginning with messages that have a group. If
// ctx ends or the process dies, some of the messages have moved, and each message is in one
// queue. A redrive of a queue to itself restarts its messages.
func (s *store) redrive(ctx context.Context, queueID string, destination *string, limit int, moved func(n int, to []string)) (v redriven, err error) {
	from, err := s.snapshot(ctx, queueID)
	if err != nil {
		return v, err
	}
	err = inBatches(ctx, func(after position) (last position, err error) {
		// If the destination were deleted meanwhile, no message would move.
		if destination != nil {
			if _, err := s.queue(ctx, *destination); err != nil {
				return position{}, err
			}
		}
		var n int
		var to []string
		batch := func(tx *sql.Tx) (err error) {
			last, n, to, err = s.redriveBatch(ctx, tx, from, after, min(limit-v.moved, workBatch), destination)
			return err
		}
		if s.homes.areSeveral() {
			err = s.transaction(ctx, batch)
		} else {
			err = batch(nil)
		}
		if err == nil {
			v.moved += n
			moved(n, to)
		}
		return last, err
	}, func() (left bool, err error) {
		if limit == v.moved {
			return false, nil
		}
		err = s.on("redrive_left").QueryRowContext(ctx, redriveLeftSQL, homeOf(from.key), from.key, from.at, from.seq, destination).Scan(&left)
		return left, err
	})
	if err == nil && destination == nil {
		err = s.on("redrive_homeless").QueryRowContext(ctx, countHomelessSQL, homeOf(from.key), from.key, from.at, from.seq).Scan(&v.left, &v.noSource)
	}
	return v, asUnavailable(err)
}

const redriveNamedSQL = `
WITH named AS MATERIALIZED (
    SELECT m.id, m.queue_key, m.source_queue_id, coalesce($3, m.source_queue_id) AS destination_id
    FROM unnest($2::uuid[]) AS a (id)
    JOIN queued.messages m ON ` + thatOneSQL + `
    WHERE m.expired_at > now()
        AND EXISTS (SELECT FROM queued.queues q WHERE q.key = m.queue_key)
), removed AS (
    DELETE FROM queued.messages m
    USING named a
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.queue_key
        AND NOT (m.in_flight AND ` + leaseEndSQL + ` > now())
        AND (SELECT true FROM queued.queues h WHERE h.id = a.destination_id) IS TRUE
    RETURNING m.*, false AS dies, a.destination_id, NULL::text AS new_error
), moved AS (` + moveMessagesSQL + wakeMovedSQL + `
SELECT (SELECT count(*) FROM named) - (SELECT count(*) FROM removed),
       (SELECT count(*) FROM named WHERE destination_id IS NULL),
       (SELECT array_agg(q.id) FROM removed r JOIN queued.queues q ON q.key = r.queue_key),
       (SELECT array_agg(DISTINCT destination_id) FROM removed)`

// redriveNamed moves the messages with these ids like redrive, in any state except in
// flight. It returns the queue that each moved message was in, and the new queues.
func (s *store) redriveNamed(ctx context.Context, ids idArray, destination *string) (v redriven, from, to []string, err error) {
	if destination != nil {
		if _, err := s.queue(ctx, *destination); err != nil {
			return v, nil, nil, err
		}
	}
	type outcome struct {
		redriven
		from, to []string
	}
	homes, err := s.homesOfMessages(ctx, ids)
	if err != nil {
		return v, nil, nil, asUnavailable(err)
	}
	for home, ids := range byHome(ids, homes) {
		o, err := once(ctx, s, "redrive_named", func(row scanner) (o outcome, err error) {
			err = row.Scan(&o.left, &o.noSource, pq.Array(&o.from), pq.Array(&o.to))
			return o, err
		}, redriveNamedSQL, home, idArray(ids), destination)
		if err != nil {
			return v, from, to, asUnavailable(err)
		}
		v.moved, v.left, v.noSource = v.moved+len(o.from), v.left+o.left, v.noSource+o.noSource
		from, to = append(from, o.from...), append(to, o.to...)
	}
	return v, from, to, nil
}

const deleteNamedSQL = `
WITH acked AS (
    DELETE FROM queued.messages m
    USING unnest($2::uuid[]) AS a (id)
    WHERE ` + thatOneSQL + `
    RETURNING m.id, m.queue_key, m.group_id
), ` + wakeAckedSQL + `
SELECT q.id, count(*)
FROM acked
JOIN queued.queues q ON q.key = acked.queue_key
GROUP BY q.id`

// deleteNamed deletes the messages with these ids, in any state, and returns how many it has
// deleted of each queue.
func (s *store) deleteNamed(ctx context.Context, ids idArray) (map[string]int, error) {
	deleted := make(map[string]int)
	homes, err := s.homesOfMessages(ctx, ids)
	if err != nil {
		return deleted, err
	}
	for home, ids := range byHome(ids, homes) {
		_, err := collect(ctx, s.on("delete_named"), func(row scanner) (any, error) {
			var queueID string
			var n int
			err := row.Scan(&queueID, &n)
			deleted[queueID] += n
			return nil, err
		}, deleteNamedSQL, home, idArray(ids))
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// messageIDs reads "ids" in the order in which statements lock messages.
func (f *form) messageIDs() (ids idArray) {
	f.list("ids", maxBatch, func(i int, raw []byte) {
		ids = append(ids, f.messageID(raw, "ids", i))
	})
	slices.Sort(ids)
	return slices.Compact(ids)
}
