package main

import (
	"context"
	"slices"
	"strings"
)

// queuePage selects a page of queues, in order of their ids.
type queuePage struct {
	prefix      string // of their ids
	deadQueueID string // their dead queue; empty for any
	after       string // the last id of the previous page; empty for the first page
	limit       int
}

const selectPageOfIDsSQL = `
SELECT id
FROM (
    SELECT id, dead_queue_id
    FROM queued.queues` + visibleIDsSQL + `
) AS visible
WHERE id > $1
    AND starts_with(id, $6)
    AND ($7 = '' OR dead_queue_id = $7)
ORDER BY id
LIMIT $2`

// pageOfIDs returns a page of the visible queues.
func (s *store) pageOfIDs(ctx context.Context, visible *names, p queuePage) ([]string, error) {
	return collect(ctx, s.on("page_of_queue_ids"), scanText, selectPageOfIDsSQL, p.after, p.limit, visible.all, textArray(visible.exact), textArray(visible.prefixes), p.prefix, p.deadQueueID)
}

// countedExactly is the number of messages up to which queueCounts counts them.
const countedExactly = 100_000

const selectCountsSQL = `
SELECT ` + countStatesSQL + `
FROM (
    SELECT state
    FROM queued.live_messages
    WHERE queue_key = $2
        AND home = $1
    LIMIT $3
) AS counted`

// counts counts the messages of a queue, but no more than limit.
func (s *store) counts(ctx context.Context, queueKey int64, limit int) (v messageCounts, err error) {
	if err := s.homes.unavailable(homeOf(queueKey)); err != nil {
		return v, err
	}
	err = s.on("counts").QueryRowContext(ctx, selectCountsSQL, homeOf(queueKey), queueKey, limit).Scan(&v.Ready, &v.Delayed, &v.InFlight, &v.Exhausted)
	return v, asUnavailable(err)
}

// queueCounts returns the number of messages of a queue now or, if there are many, at the
// last count of all queues.
func (s *server) queueCounts(ctx context.Context, q queue) (messageCounts, error) {
	v, err := s.store.counts(ctx, q.key, countedExactly+1)
	if err != nil || v.total() <= countedExactly {
		return v, err
	}
	all, _ := s.depth.latest()
	i, found := slices.BinarySearchFunc(all, q.ID, func(d queueDepth, id string) int { return strings.Compare(d.queueID, id) })
	if !found || all[i].uncounted || all[i].total() < v.total() { // most of the messages came after the count
		return v, nil
	}
	return all[i].messageCounts, nil
}
