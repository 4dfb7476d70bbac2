package main

import (
	"cmp"
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

// hasDestinationSQL is true if the destination of the message m exists: the queue $5, or its
// source if that is null.
const hasDestinationSQL = `(SELECT true FROM queued.queues h WHERE h.id = coalesce($5, m.source_queue_id)) IS TRUE`

const takeRedrivenSQL = `
WITH source AS MATERIALIZED (
    SELECT delivery_limit
    FROM queued.queues
    WHERE key = $2
), due AS MATERIALIZED (
    SELECT m.ctid AS tid, m.bytes
    FROM queued.messages m
    WHERE m.queue_key = $2
        AND m.home = $1
        AND ((m.group_id IS NULL), m.scheduled_at, m.seq) > ($6, $7, $8)
        AND m.scheduled_at <= $3
        AND m.seq <= $4
        AND m.expired_at > now()
        AND m.delivery_attempts < least((SELECT delivery_limit FROM source), m.max_deliveries)
        AND ` + hasDestinationSQL + `
    ORDER BY (m.group_id IS NULL), m.scheduled_at, m.seq
    LIMIT $9
    FOR UPDATE SKIP LOCKED
), ` + fittingSQL + `, removed AS (
    DELETE FROM queued.messages m
    USING fitting a
    WHERE m.ctid = a.tid
        AND m.home = $1
    RETURNING m.queue_key, m.group_id, m.scheduled_at, m.seq, coalesce($5, m.source_queue_id) AS destination_id, m AS whole
), last AS (
    SELECT group_id IS NULL, scheduled_at, seq, count(*) OVER ()
    FROM removed
    ORDER BY (group_id IS NULL) DESC, scheduled_at DESC, seq DESC
    LIMIT 1
), taken AS (
    SELECT ` + takenColumnsSQL + `, array_agg(DISTINCT destination_id)
    FROM removed
)
SELECT *
FROM last
CROSS JOIN taken`

// redriveBatch moves at most limit messages of a queue, as it was, after a position. It returns
// the last position, the number of messages and their new queues, or sql.ErrNoRows.
func (s *store) redriveBatch(ctx context.Context, tx *sql.Tx, from snapshot, after position, limit int, destination *string) (last position, n int, to []string, err error) {
	in := func(name string) querier { return s.in(tx, name) }
	var t taken
	row := in("redrive").QueryRowContext(ctx, takeRedrivenSQL, homeOf(from.key), from.key, from.at, from.seq, destination, after.ungrouped, after.at, after.seq, limit)
	columns := append([]any{&last.ungrouped, &last.at, &last.seq, &n}, t.columns()...)
	if err = row.Scan(append(columns, pq.Array(&to))...); err == nil {
		err = s.checkDestinations(ctx, in, to)
	}
	if err == nil {
		err = t.store(runIn(ctx, in), false)
	}
	return last, n, to, err
}

// checkDestinations returns errNodeUnavailable if a queue to which messages are to move is on a
// node that does not respond.
func (s *store) checkDestinations(ctx context.Context, in func(name string) querier, ids []string) error {
	if s.homes.needAllNodes() == nil {
		return nil
	}
	_, err := collect(ctx, in("homes"), func(row scanner) (any, error) {
		var id string
		var home int64
		err := row.Scan(&id, &home)
		return nil, cmp.Or(err, s.homes.unavailable(home))
	}, selectHomesOfSQL, textArray(ids))
	return err
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
        AND ` + hasDestinationSQL + `
)`

	countWithoutDestinationSQL = `
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
			if _, err := s.queueAtHome(ctx, *destination); err != nil {
				return position{}, err
			}
		}
		var n int
		var to []string
		err = s.transaction(ctx, func(tx *sql.Tx) (err error) {
			last, n, to, err = s.redriveBatch(ctx, tx, from, after, min(limit-v.moved, workBatch), destination)
			return err
		})
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
		err = s.on("redrive_without_destination").QueryRowContext(ctx, countWithoutDestinationSQL, homeOf(from.key), from.key, from.at, from.seq).Scan(&v.left, &v.noSource)
	}
	return v, asUnavailable(err)
}

const takeNamedSQL = `
WITH named AS MATERIALIZED (
    SELECT m.id, m.queue_key, m.bytes, coalesce($3, m.source_queue_id) AS destination_id, NOT ` + leasedSQL + ` AS free
    FROM unnest($2::uuid[]) AS a (id)
    JOIN queued.messages m ON ` + thatOneSQL + `
    WHERE m.expired_at > now()
        AND EXISTS (SELECT FROM queued.queues q WHERE q.key = m.queue_key)
), due AS MATERIALIZED (
    SELECT id, queue_key, bytes, destination_id
    FROM named
    WHERE free
        AND (SELECT true FROM queued.queues h WHERE h.id = destination_id) IS TRUE
), ` + fittingSQL + `, removed AS (
    DELETE FROM queued.messages m
    USING fitting a
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.queue_key
        AND NOT ` + leasedSQL + `
    RETURNING m.id, m.queue_key, m.group_id, a.destination_id, m AS whole
)
SELECT (SELECT count(*) FROM named) - count(*),
       (SELECT count(*) FROM named WHERE destination_id IS NULL),
       array_agg(id), array_agg((SELECT q.id FROM queued.queues q WHERE q.key = queue_key)), ` + takenColumnsSQL + `
FROM removed`

// redriveNamed moves the messages with these ids like redrive, in any state except in
// flight. It returns the queue that each moved message was in, and the new queues.
func (s *store) redriveNamed(ctx context.Context, ids idArray, destination *string) (v redriven, from, to []string, err error) {
	if destination != nil {
		if _, err := s.queueAtHome(ctx, *destination); err != nil {
			return v, nil, nil, err
		}
	}
	homes, err := s.homesOfMessages(ctx, ids)
	if err != nil {
		return v, nil, nil, asUnavailable(err)
	}
	for home, ids := range byHome(ids, homes) {
		var left, noSource int
		for moves := true; moves; { // until the messages that are left stay
			var t taken
			var gone, sources []string
			err := s.transaction(ctx, func(tx *sql.Tx) error {
				in := func(name string) querier { return s.in(tx, name) }
				row := in("redrive_named").QueryRowContext(ctx, takeNamedSQL, home, idArray(ids), destination)
				columns := []any{&left, &noSource, pq.Array(&gone), pq.Array(&sources)}
				if err := row.Scan(append(columns, t.columns()...)...); err != nil || len(gone) == 0 {
					return err
				}
				if err := s.checkDestinations(ctx, in, t.destinations); err != nil {
					return err
				}
				return t.store(runIn(ctx, in), false)
			})
			if err != nil {
				return v, from, to, err
			}
			v.moved += len(gone)
			from, to = append(from, sources...), append(to, t.destinations...)
			ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(gone, id) })
			moves = len(gone) > 0 && len(ids) > 0
		}
		v.left, v.noSource = v.left+left, v.noSource+noSource
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
