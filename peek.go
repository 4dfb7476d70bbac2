package main

import (
	"context"
	"database/sql"
	"errors"
	"slices"
)

// scanMessage reads a message of live_messages.
func scanMessage(row scanner) (m message, err error) {
	err = row.Scan(append(m.columnsWithPast(), &m.QueueID, &m.State)...)
	if m.State == "in_flight" && m.past.leaseEnd.Valid {
		m.ScheduledAt.Time = m.past.leaseEnd.Time
	}
	return m, err
}

const selectMessageSQL = `
SELECT ` + messageColumnsSQL + `, ` + pastColumnsSQL + `, m.queue_id, m.state
FROM queued.live_messages m
WHERE m.home = $1
    AND m.id = $2`

// message returns a message in any queue.
func (s *store) message(ctx context.Context, id string) (message, error) {
	home := s.homes.ofID(id)
	if err := s.homes.unavailable(home); err != nil {
		return message{}, err
	}
	m, err := scanMessage(s.on("message").QueryRowContext(ctx, selectMessageSQL, home, id))
	if errors.Is(err, sql.ErrNoRows) && s.homes.areSeveral() {
		var homes func(id string) int64
		if homes, err = s.homesOfMessages(ctx, []string{id}); err == nil {
			m, err = scanMessage(s.on("message").QueryRowContext(ctx, selectMessageSQL, homes(id), id))
		}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return message{}, errMessageNotFound
	}
	return m, asUnavailable(err)
}

// maxHolding is the maximum number of queues that holding returns.
const maxHolding = 10_000

const selectHoldingSQL = `
SELECT visible.id
FROM (
    SELECT id, key
    FROM queued.queues` + visibleIDsSQL + `
) AS visible
WHERE visible.key >> 48 = $6
    AND EXISTS (SELECT FROM queued.messages WHERE queue_key = visible.key AND home = $6)
ORDER BY visible.id
LIMIT $2 OFFSET $1`

// holding returns the queues that hold messages, in order.
func (s *store) holding(ctx context.Context, visible *names) ([]string, error) {
	return s.idsInHomes(ctx, "holding", selectHoldingSQL, visible)
}

// idsInHomes runs a statement that returns ids of visible queues in each home, and returns
// all of them in order, at most maxHolding.
func (s *store) idsInHomes(ctx context.Context, name, statement string, visible *names) ([]string, error) {
	homes, err := s.homes.inUse(ctx, s.on("homes"))
	if err != nil {
		return nil, err
	}
	all := []string{}
	for _, home := range homes {
		if err := s.homes.unavailable(home); err != nil {
			return nil, err
		}
		ids, err := collect(ctx, s.on(name), scanText, statement, 0, maxHolding, visible.all, textArray(visible.exact), textArray(visible.prefixes), home)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	slices.Sort(all)
	return all[:min(len(all), maxHolding)], nil
}

const selectQueuesOfSQL = `
SELECT m.id, q.id
FROM queued.messages m
JOIN queued.queues q ON q.key = m.queue_key
WHERE m.home = $1
    AND m.id = ANY($2::uuid[])`

// queuesOf returns the queues that messages are in, by message id. The map does not contain
// unknown ids.
func (s *store) queuesOf(ctx context.Context, ids idArray) (map[string]string, error) {
	queues := make(map[string]string, len(ids))
	read := func(ids []string, at func(id string) int64) error {
		for home, ids := range byHome(ids, at) {
			if err := s.homes.unavailable(home); err != nil {
				return err
			}
			_, err := collect(ctx, s.on("queues_of"), func(row scanner) (any, error) {
				var id, queueID string
				err := row.Scan(&id, &queueID)
				queues[id] = queueID
				return nil, err
			}, selectQueuesOfSQL, home, idArray(ids))
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := read(ids, s.homes.ofID); err != nil || !s.homes.areSeveral() {
		return queues, err
	}
	missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return queues[id] != "" })
	if len(missing) == 0 {
		return queues, nil
	}
	at, err := s.homesOfMessages(ctx, missing)
	if err == nil {
		err = read(missing, at)
	}
	return queues, err
}

const selectPeekSQL = `
WITH page AS MATERIALIZED (
    SELECT id, queue_key, bytes, scheduled_at, seq
    FROM (VALUES (true), (false)) AS k (ungrouped)
    CROSS JOIN LATERAL (
        SELECT id, queue_key, bytes, scheduled_at, seq
        FROM queued.messages
        WHERE queue_key = (SELECT key FROM queued.queues WHERE id = $2)
            AND home = $1
            AND (group_id IS NULL) = k.ungrouped
            AND expired_at > now()
        ORDER BY scheduled_at, seq
        LIMIT $3::bigint + $4
    ) oldest
    ORDER BY scheduled_at, seq
    LIMIT $4 OFFSET $3
), fitting AS MATERIALIZED (
    SELECT id, queue_key, bytes, sum(bytes) OVER (ORDER BY scheduled_at, seq) AS total
    FROM page
)
SELECT ` + messageColumnsSQL + `, ` + pastColumnsSQL + `, m.queue_id, m.state
FROM fitting f
JOIN queued.live_messages m ON m.home = $1 AND m.id = ANY (ARRAY[f.id]) AND m.queue_key IS NOT DISTINCT FROM f.queue_key
WHERE f.total <= $5
    OR f.total = f.bytes
ORDER BY f.total`

// peek returns messages of a queue in any state without receiving them, oldest due first. It
// returns up to limit messages, and up to deliverySize bytes, but at least one message.
func (s *store) peek(ctx context.Context, queueID string, offset, limit int) ([]message, error) {
	q, err := s.queueAtHome(ctx, queueID)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.on("peek"), scanMessage, selectPeekSQL, homeOf(q.key), queueID, offset, limit, deliverySize)
}
