package main

import (
	"context"
	"database/sql"
	"maps"
	"slices"
)

// SharQ's metrics have the numbers of jobs that were enqueued and dequeued in each of the
// last ten minutes. They are in the table job_counts. An enqueue counts in its own
// transaction, and a dequeue before its response, so all servers show what any of them has
// confirmed. metrics.go has the counters for monitoring.

// countedMinutes is the number of minutes that the metrics show.
const countedMinutes = 10

// The rows are locked in one order. Those of enqueues and those of dequeues are apart, so
// that no dequeue waits for the commit of an enqueue.
const addJobCountsSQL = `
INSERT INTO queued.job_counts AS c (home, minute, queue_key, group_id, dequeued, jobs)
SELECT $1, date_trunc('minute', now()), u.queue_key, u.group_id, $5, u.jobs
FROM unnest($2::bigint[], $3::text[], $4::bigint[]) AS u (queue_key, group_id, jobs)
ORDER BY u.queue_key, u.group_id
ON CONFLICT (minute, queue_key, group_id, dequeued) DO UPDATE
SET jobs = c.jobs + excluded.jobs`

// addJobCounts adds to the counts of the current minute.
func (s *pinnedConn) addJobCounts(jobs map[groupKey]int64, dequeued bool) error {
	all := slices.Collect(maps.Keys(jobs))
	_, err := inHomes(s, all, func(key groupKey) int64 { return homeOf(key.queueKey) }, func(home int64, all []groupKey) ([]any, error) {
		var keys, counts intArray
		var groups quotedArray
		for _, key := range all {
			keys, groups, counts = append(keys, key.queueKey), append(groups, key.id), append(counts, jobs[key])
		}
		return read[any](s, "add_job_counts", nil, addJobCountsSQL, home, keys, groups, counts, dequeued)
	})
	return err
}

// jobCount has the numbers of one minute.
type jobCount struct {
	minute             int64 // milliseconds since 1970, when it began
	enqueued, dequeued int64
}

const selectJobCountsSQL = `
SELECT (extract(epoch FROM m.minute) * 1000)::bigint,
       coalesce(sum(c.jobs) FILTER (WHERE NOT c.dequeued), 0), coalesce(sum(c.jobs) FILTER (WHERE c.dequeued), 0)
FROM generate_series(date_trunc('minute', now()) - make_interval(mins => $2 - 1), date_trunc('minute', now()), interval '1 minute') AS m (minute)
LEFT JOIN (
    SELECT c.minute, c.dequeued, c.jobs
    FROM queued.job_counts c
    JOIN (
        SELECT key
        FROM queued.queues` + visibleIDsSQL + `
    ) AS visible ON visible.key = c.queue_key
    WHERE ($1 = '' OR c.group_id = $1)
        AND c.minute > now() - make_interval(mins => $2)
) AS c ON c.minute = m.minute
GROUP BY m.minute
ORDER BY m.minute`

// jobCounts returns the counts of a group in each of the last countedMinutes, oldest first.
// For an empty group it returns the sums over the queues that visible matches.
func (s *store) jobCounts(ctx context.Context, visible *names, group string) ([]jobCount, error) {
	if err := s.homes.needAllNodes(); err != nil {
		return nil, err
	}
	return collect(ctx, s.on("job_counts"), func(row scanner) (c jobCount, err error) {
		err = row.Scan(&c.minute, &c.enqueued, &c.dequeued)
		return c, err
	}, selectJobCountsSQL, group, countedMinutes, visible.all, textArray(visible.exact), textArray(visible.prefixes))
}

const removeJobCountsSQL = `
WITH old AS MATERIALIZED (
    SELECT ctid AS tid, minute
    FROM queued.job_counts
    WHERE home = $1
        AND minute >= $2 -- and not >, because many rows have the same minute
        AND minute <= now() - make_interval(mins => $3)
    ORDER BY minute
    LIMIT $4
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.job_counts c
    USING old
    WHERE c.ctid = old.tid
        AND c.home = $1
)
SELECT false, max(minute), 0, count(*) -- the columns of scanBatch
FROM old
HAVING count(*) > 0`

// removeJobCounts deletes the counts that no response shows any more.
func (c *cleanup) removeJobCounts(ctx context.Context, home int64) error {
	return c.untilDone(ctx, home, position{}, func(tx *sql.Tx, after position) (position, int, error) {
		return scanBatch(c.metrics.timed("remove_job_counts", tx).QueryRowContext(ctx, removeJobCountsSQL, home, after.at, countedMinutes, cleanupBatch))
	}, func(int) {})
}
