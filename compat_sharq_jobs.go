package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// A job is a message that has a name in its group, as SharQ's have. Of one name at
// most one waits: the same job again replaces what waits, with its trace. It may set the interval of
// its group, be refused by a group that is long enough, and be dropped after so
// many deliveries.

// job is what a draft has that is one; its group is never empty.
type job struct {
	id            string
	interval      time.Duration // of the group, from now on
	maxDeliveries int           // 0: as many as the queue allows
	maxWaiting    *int          // it is refused if so many wait in its group; nil: however many do

	// After it was published:
	waiting int       // how many waited before it; only with maxWaiting
	readyAt time.Time // when its group is, by PostgreSQL's clock
}

// errGroupFull is the answer to a job that was refused.
type errGroupFull struct{ waiting int }

func (e errGroupFull) Error() string {
	return fmt.Sprintf("%d messages wait in the group already", e.waiting)
}

// maxJobs is how many jobs one statement takes at most.
const maxJobs = 500

// storeJobs is store for publications that are jobs, whose queues s remembers. A
// statement takes those that do not depend on others in it: of one group either
// all have the same maxWaiting or none has any. Of one name it takes the last, as
// if that had replaced the others, which are answered likewise.
func (e *engine) storeJobs(s *pinnedConn, batch []*publication) error {
	for len(batch) > 0 {
		type name struct{ queueID, group, id string }
		places, bounds := make(map[name]int), make(map[name]int)
		var now, later []*publication
		var replaced [][]*publication // by each of now
		for _, p := range batch {
			m := &p.messages[0]
			group := name{p.queueID, m.group, ""}
			one := name{p.queueID, m.group, m.job.id}
			bound, seen := bounds[group]
			place, again := places[one]
			switch {
			case seen && bound != m.job.bound() || !again && len(now) == maxJobs:
				later = append(later, p)
			case again:
				now[place], replaced[place] = p, append(replaced[place], now[place])
			default:
				places[one], bounds[group] = len(now), m.job.bound()
				now, replaced = append(now, p), append(replaced, nil)
			}
		}
		err := s.transaction(func() error { return s.enqueue(now) })
		if errors.Is(err, errStale) {
			return err
		}
		for i, p := range now {
			if err != nil { // even so they may be stored
				p.stored, p.messages[0].job.readyAt = nil, time.Time{}
			}
			for _, v := range replaced[i] {
				v.stored, v.err, v.messages[0].job.waiting = p.stored, p.err, p.messages[0].job.waiting
			}
			e.metrics.add(messagesPublished, p.queueID, len(p.stored)*(1+len(replaced[i])))
			if err != nil || len(p.stored) > 0 {
				e.announce(p.queueID, p.messages[0].job.readyAt)
			}
		}
		if err != nil {
			return err
		}
		batch = later
	}
	return nil
}

// bound returns maxWaiting, -1 if there is none.
func (j *job) bound() int {
	if j.maxWaiting == nil {
		return -1
	}
	return *j.maxWaiting
}

// The groups are locked, in the order of wakeGroupsSQL, before anybody looks at what
// waits in them.
const lockGroupsOfJobsSQL = `
INSERT INTO queued.groups AS g (queue_key, id, ready_at)
SELECT DISTINCT u.queue_key, u.id, timestamptz 'infinity'
FROM unnest($1::bigint[], $2::text[]) AS u (queue_key, id)
WHERE (SELECT version FROM queued.settings) = $3
ORDER BY u.queue_key, u.id
ON CONFLICT (queue_key, id) DO UPDATE
SET blocked = g.blocked
WHERE false`

// Those of one group that are new come one after the other, until it is full. What
// waits but is locked does not count as the same job: who has locked it may want
// its group next, and is about to settle or to move it.
const insertJobsSQL = `
WITH jobs AS MATERIALIZED (
    SELECT j.id, j.queue_key, j.group_id, j.job_id, j.data, j.bytes, j.max_deliveries, j.interval_ms, j.max_waiting, j.retention, j.delay, j.request_id, j.traceparent, j.n
    FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::json[], $6::integer[], $7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::integer[],
                $14::text[], $15::text[])
        WITH ORDINALITY AS j (id, queue_key, group_id, job_id, data, bytes, max_deliveries, interval_ms, max_waiting, retention, delay, request_id, traceparent, n)
    WHERE (SELECT version FROM queued.settings) = $12
), lengths AS MATERIALIZED (
    SELECT g.queue_key, g.group_id, (
               SELECT count(*)
               FROM (
                   SELECT
                   FROM queued.messages m
                   WHERE m.queue_key = g.queue_key
                       AND m.group_id = g.group_id
                       AND NOT (m.in_flight AND m.scheduled_at > now())
                   ORDER BY m.in_flight, m.scheduled_at
                   LIMIT greatest(g.max_waiting, $13)
               ) waiting
           ) AS waiting
    FROM (SELECT queue_key, group_id, max(max_waiting) AS max_waiting FROM jobs WHERE max_waiting >= 0 GROUP BY queue_key, group_id) g
), waiting AS MATERIALIZED (
    SELECT j.n, j.data, j.bytes, j.max_deliveries, j.request_id, j.traceparent, now() + make_interval(secs => j.retention) AS expired_at, w.tid
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT m.ctid AS tid
        FROM queued.messages m
        WHERE m.queue_key = j.queue_key
            AND m.group_id = j.group_id
            AND m.job_id = j.job_id
            AND m.expired_at > now()
            AND NOT (m.in_flight AND m.scheduled_at > now())
        ORDER BY m.seq
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) w
), replaced AS (
    UPDATE queued.messages m
    SET data = w.data, bytes = w.bytes, request_id = w.request_id, traceparent = w.traceparent, max_deliveries = nullif(w.max_deliveries, 0), delivery_attempts = 0, in_flight = false, last_delivery = false,
        expired_at = w.expired_at, updated_at = now()
    FROM waiting w
    WHERE m.ctid = w.tid
    RETURNING w.n, m.id, m.seq
), placed AS MATERIALIZED (
    SELECT j.n, l.waiting IS NULL OR l.waiting + j.before < j.max_waiting AS fits,
           coalesce(least(l.waiting + j.before, greatest(l.waiting, j.max_waiting)), -1) AS waiting
    FROM (
        SELECT j.n, j.queue_key, j.group_id, j.max_waiting,
               count(*) FILTER (WHERE r.n IS NULL) OVER (PARTITION BY j.queue_key, j.group_id ORDER BY j.n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM jobs j
        LEFT JOIN replaced r ON r.n = j.n
    ) j
    LEFT JOIN lengths l ON l.queue_key = j.queue_key AND l.group_id = j.group_id
), inserted AS (
    INSERT INTO queued.messages (id, queue_key, group_id, job_id, max_deliveries, data, bytes, request_id, traceparent, expired_at, scheduled_at, created_at, updated_at)
    SELECT j.id, j.queue_key, j.group_id, j.job_id, nullif(j.max_deliveries, 0), j.data, j.bytes, j.request_id, j.traceparent,
           now() + make_interval(secs => j.retention), now() + make_interval(secs => j.delay), now(), now()
    FROM jobs j
    WHERE EXISTS (SELECT FROM placed p WHERE p.n = j.n AND p.fits)
        AND NOT EXISTS (SELECT FROM replaced r WHERE r.n = j.n)
    ORDER BY j.n
    RETURNING id, seq
), accepted AS MATERIALIZED (
    SELECT j.queue_key, j.group_id, j.interval_ms, j.n, coalesce(r.seq, i.seq) AS seq
    FROM jobs j
    LEFT JOIN replaced r ON r.n = j.n
    LEFT JOIN inserted i ON i.id = j.id
    WHERE r.n IS NOT NULL
        OR i.id IS NOT NULL
), paced AS MATERIALIZED (
    SELECT DISTINCT ON (a.queue_key, a.group_id) a.queue_key, a.group_id, a.interval_ms, now() AS at,
           min(a.seq) OVER (PARTITION BY a.queue_key, a.group_id) AS first_seq, g.tid, g.delivered_at + make_interval(secs => a.interval_ms / 1000.0) AS limited_until
    FROM accepted a
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, delivered_at
        FROM queued.groups
        WHERE queue_key = a.queue_key
            AND id = a.group_id
        OFFSET 0 -- not a join, which may read all groups
    ) g
    ORDER BY a.queue_key, a.group_id, a.n DESC
), groups AS (
    UPDATE queued.groups g
    SET delivery_interval_ms = p.interval_ms, limited_until = p.limited_until, ready_at = least(g.ready_at, greatest(p.at, p.limited_until)),
        first_seq = least(g.first_seq, p.first_seq), blocked = false
    FROM paced p
    WHERE g.ctid = p.tid
    RETURNING g.queue_key, g.id, g.ready_at
)
SELECT j.n, p.waiting, now(), coalesce(r.id, i.id), coalesce(r.seq, i.seq), coalesce(g.ready_at, now())
FROM jobs j
JOIN placed p ON p.n = j.n
LEFT JOIN replaced r ON r.n = j.n
LEFT JOIN inserted i ON i.id = j.id
LEFT JOIN groups g ON g.queue_key = j.queue_key AND g.id = j.group_id`

// enqueue stores jobs and leaves in each what became of it: no name is in it twice,
// and no group with two different bounds. It returns errStale if the settings that s
// remembers have changed.
func (s *pinnedConn) enqueue(batch []*publication) error {
	var ids idArray
	var keys, sizes, deliveries, intervals, waiting, retentions, delays intArray
	var groups, names groupArray
	var data jsonArray
	var traces traceArrays
	for i, p := range batch {
		m := &p.messages[0]
		traces.set(i, p.trace)
		to := s.settings.queues[p.queueID].queues[0]
		ids, keys = append(ids, newID()), append(keys, to.queueKey)
		groups, names = append(groups, m.group), append(names, m.job.id)
		data, sizes = append(data, m.data), append(sizes, int64(len(m.data)))
		deliveries = append(deliveries, int64(m.job.maxDeliveries))
		intervals = append(intervals, int64(m.job.interval/time.Millisecond))
		waiting = append(waiting, int64(m.job.bound()))
		retentions, delays = append(retentions, int64(to.retention/time.Second)), append(delays, int64(to.delay/time.Second))
	}
	if _, err := read[any](s, "lock_groups_of_jobs", nil, lockGroupsOfJobsSQL, keys, groups, s.settings.version); err != nil {
		return err
	}
	type outcome struct {
		n, waiting int
		at, ready  timestamp
		id         sql.NullString
		seq        sql.NullInt64
	}
	outcomes, err := read(s, "insert_jobs", func(row scanner) (o outcome, err error) {
		err = row.Scan(&o.n, &o.waiting, &o.at, &o.id, &o.seq, &o.ready)
		return o, err
	}, insertJobsSQL, ids, keys, groups, names, data, sizes, deliveries, intervals, waiting, retentions, delays, s.settings.version, maxMeasured, traces.requestIDs, traces.traceparents)
	if err != nil {
		return err
	}
	if len(outcomes) < len(batch) {
		return errStale
	}
	for _, o := range outcomes {
		p := batch[o.n-1]
		m := &p.messages[0]
		m.job.waiting, m.job.readyAt = o.waiting, o.ready.Time
		p.stored, p.err = []message{}, errGroupFull{o.waiting}
		if o.id.Valid {
			stored := message{ID: o.id.String, QueueID: p.queueID, Data: m.data, Group: m.group, trace: p.trace, queueKey: keys[o.n-1], seq: o.seq.Int64, CreatedAt: o.at, UpdatedAt: o.at}
			p.stored, p.err = []message{stored}, nil
		}
	}
	return nil
}

const (
	selectJobSQL = `
SELECT m.id, m.scheduled_at, ` + messageStateSQL + `
FROM queued.queues q
JOIN queued.messages m ON m.queue_key = q.key AND m.group_id = $2 AND m.job_id = $3
WHERE q.id = $1
    AND m.expired_at > now()
ORDER BY m.in_flight AND m.scheduled_at > now() DESC, m.seq
LIMIT 1`

	selectAsJobSQL = `
SELECT m.id, m.scheduled_at, ` + messageStateSQL + `
FROM queued.queues q
JOIN queued.messages m ON m.id = $3 AND m.queue_key = q.key
WHERE q.id = $1
    AND coalesce(m.group_id, $2) = $2
    AND m.job_id IS NULL
    AND m.expired_at > now()`
)

// job looks at a job: the one in flight, if there are two of that name. A message
// that is none is named by its id, and found in any group if it has none.
func (s *store) job(ctx context.Context, queueID, group, id string) (m message, err error) {
	scan := func(row scanner) error { return row.Scan(&m.ID, &m.ScheduledAt, &m.State) }
	err = scan(s.on("job").QueryRowContext(ctx, selectJobSQL, queueID, group, id))
	if uuid, ok := parseID(id); ok && errors.Is(err, sql.ErrNoRows) {
		err = scan(s.on("message_as_job").QueryRowContext(ctx, selectAsJobSQL, queueID, group, uuid))
	}
	if errors.Is(err, sql.ErrNoRows) {
		return m, errMessageNotFound
	}
	return m, asUnavailable(err)
}

// finishing is one request to ack the job of a name that is in flight.
type finishing struct {
	queueID, group, jobID string
	done                  bool // after its turn in the lane: it was in flight, and is gone
}

// finish acks the job of that name that is in flight, and reports whether there was one.
func (e *engine) finish(ctx context.Context, queueID, group, jobID string) (bool, error) {
	v := &finishing{queueID: queueID, group: group, jobID: jobID}
	err := e.finishes.do(ctx, v, 1, 0)
	return err == nil && v.done, err
}

func (e *engine) runFinishes(s *pinnedConn, batch []*finishing) error {
	all, err := s.finish(batch)
	if err != nil {
		e.wakeIfUnknown(err)
		return err
	}
	for _, f := range all {
		v := batch[f.n-1]
		v.done = true
		e.metrics.add(messagesAcked, v.queueID, 1)
		if f.readyAt.Valid {
			e.announce(v.queueID, f.readyAt.Time)
		}
	}
	return nil
}

const finishJobsSQL = `
WITH found AS MATERIALIZED (
    SELECT u.n, m.tid
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS u (queue_id, group_id, job_id, n)
    JOIN queued.queues q ON q.id = u.queue_id
    CROSS JOIN LATERAL (
        SELECT m.ctid AS tid
        FROM queued.messages m
        WHERE m.queue_key = q.key
            AND m.group_id = u.group_id
            AND m.job_id = u.job_id
            AND m.in_flight
            AND m.scheduled_at > now()
        ORDER BY m.seq
        FOR UPDATE
    ) m
), acked AS (
    DELETE FROM queued.messages m
    USING found f
    WHERE m.ctid = f.tid
    RETURNING f.n, m.queue_key, m.group_id
), ` + wakeAckedSQL + `
SELECT a.n, g.ready_at
FROM acked a
LEFT JOIN (SELECT queue_key, min(ready_at) AS ready_at FROM groups GROUP BY queue_key) g ON g.queue_key = a.queue_key`

// finished is a job that was acked: by which of a batch, and when its queue has a
// group that is ready sooner for it.
type finished struct {
	n       int
	readyAt sql.NullTime
}

func (s *pinnedConn) finish(batch []*finishing) ([]finished, error) {
	var queues textArray
	var groups, jobs groupArray
	for _, v := range batch {
		queues, groups, jobs = append(queues, v.queueID), append(groups, v.group), append(jobs, v.jobID)
	}
	return read(s, "finish", func(row scanner) (f finished, err error) {
		err = row.Scan(&f.n, &f.readyAt)
		return f, err
	}, finishJobsSQL, queues, groups, jobs)
}

// measuring is one request for how many messages wait in a group: those of the
// queue with that key.
type measuring struct {
	key     int64
	group   string
	waiting int64 // after its turn in the lane
}

// waitingIn counts the messages that wait in the group of a message, to maxMeasured.
func (e *engine) waitingIn(ctx context.Context, m *message) (int64, error) {
	v := &measuring{key: m.queueKey, group: m.Group}
	err := e.measurings.do(ctx, v, 1, 0)
	return v.waiting, err
}

// maxMeasured is where waitingIn stops to count.
const maxMeasured = 100_000

const selectWaitingSQL = `
SELECT (
    SELECT count(*)
    FROM (
        SELECT
        FROM queued.messages m
        WHERE m.queue_key = u.queue_key
            AND m.group_id = u.group_id
            AND NOT (m.in_flight AND m.scheduled_at > now())
        ORDER BY m.in_flight, m.scheduled_at
        LIMIT $3
    ) waiting
)
FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS u (queue_key, group_id, n)
ORDER BY u.n`

func (e *engine) runMeasurings(s *pinnedConn, batch []*measuring) error {
	var keys intArray
	var groups groupArray
	for _, v := range batch {
		keys, groups = append(keys, v.key), append(groups, v.group)
	}
	counts, err := read(s, "waiting", scanKey, selectWaitingSQL, keys, groups, maxMeasured)
	for i, n := range counts {
		batch[i].waiting = n
	}
	return err
}

const selectGroupIDsSQL = `
SELECT g.id
FROM queued.queues q
JOIN queued.groups g ON g.queue_key = q.key
WHERE q.id = $1
    AND ` + groupHoldsSQL + `
ORDER BY g.id
LIMIT $2`

// groupIDs returns the groups of a queue that hold messages, in order.
func (s *store) groupIDs(ctx context.Context, queueID string) ([]string, error) {
	return collect(ctx, s.on("group_ids"), scanID, selectGroupIDsSQL, queueID, maxHolding)
}

const selectGroupedSQL = `
SELECT visible.id
FROM (
    SELECT id, key
    FROM queued.queues` + visibleIDsSQL + `
) AS visible
WHERE EXISTS (SELECT FROM queued.messages WHERE queue_key = visible.key AND group_id IS NOT NULL)
ORDER BY visible.id
LIMIT $2 OFFSET $1`

// grouped returns the queues that hold messages with a group, in order.
func (s *store) grouped(ctx context.Context, visible *names) ([]string, error) {
	return collect(ctx, s.on("grouped"), scanID, selectGroupedSQL, 0, maxHolding, visible.all, textArray(visible.exact), textArray(visible.prefixes))
}

func scanID(row scanner) (id string, err error) {
	err = row.Scan(&id)
	return id, err
}
