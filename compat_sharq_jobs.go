package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// A job is a message with a name in its group, like SharQ's jobs. At most one message of a
// name waits: if the job is enqueued again, its data and its trace are replaced. A job may
// set the interval of its group, be refused by a group with too many messages, and be
// dropped after a number of deliveries.

// job is the part of a draft that makes it a job; its group is never empty.
type job struct {
	id            string
	interval      time.Duration // of the group, from now on
	maxDeliveries int           // 0 for the maximum of the queue
	maxWaiting    *int          // number of waiting messages at which the group refuses the job; nil for no limit

	waiting int // set by the publish: number of messages that waited before it, if it has a maxWaiting
}

// errGroupFull is the error of a job that was refused.
type errGroupFull struct{ waiting int }

func (e errGroupFull) Error() string {
	return fmt.Sprintf("%d messages wait in the group already", e.waiting)
}

// storeJobs stores the publications of a batch that are jobs, and sets the result of each.
// It returns errStale if the settings that s has cached have changed.
func (e *engine) storeJobs(s *pinnedConn, batch []*publication) error {
	if len(batch) == 0 {
		return nil
	}
	b := newJobBatch(s, batch)
	err := s.transaction(b.store)
	if errors.Is(err, errStale) {
		return err
	}
	for _, v := range b.all {
		switch {
		case err != nil: // the outcome may be unknown
			e.announce(v.publication.queueID, time.Time{})
		case v.refused:
			v.publication.stored, v.publication.err = []message{}, errGroupFull{v.job.waiting}
		default:
			v.publication.stored, v.publication.err = []message{v.message.stored}, nil
			e.metrics.add(messagesPublished, v.publication.queueID, 1)
			e.announce(v.publication.queueID, v.message.group.readyAt)
		}
	}
	return err
}

// jobBatch has jobs that are stored in one transaction. The outcome is the same as if they
// were stored one after another.
type jobBatch struct {
	conn     *pinnedConn
	all      []*batchedJob
	messages []*jobMessage
	groups   []*jobGroup
}

type batchedJob struct {
	*job
	publication *publication
	message     *jobMessage
	refused     bool
}

// jobMessage is the one message that waits for all jobs of a name.
type jobMessage struct {
	group *jobGroup
	name  string

	exists bool        // it already waits in the database, and keeps its place
	last   *batchedJob // the last job that was not refused; nil if all were refused
	stored message
}

// jobGroup is a group that a batch has jobs for.
type jobGroup struct {
	key      groupKey
	queue    subscription
	bounded  bool // some of the jobs have a maxWaiting
	waiting  int  // messages, if it is bounded
	interval time.Duration
	firstSeq int64 // the lowest seq that the batch stores; 0 if it stores none
	readyAt  time.Time
}

func (g *jobGroup) home() int64 { return homeOf(g.key.queueKey) }

func newJobBatch(s *pinnedConn, batch []*publication) *jobBatch {
	type name struct {
		group *jobGroup
		id    string
	}
	b := &jobBatch{conn: s}
	groups, messages := make(map[groupKey]*jobGroup), make(map[name]*jobMessage)
	for _, p := range batch {
		m := &p.messages[0]
		queue := s.settings.queues[p.queueID].queues[0]
		key := groupKey{queue.queueKey, m.group}
		group := groups[key]
		if group == nil {
			group = &jobGroup{key: key, queue: queue}
			groups[key], b.groups = group, append(b.groups, group)
		}
		group.bounded = group.bounded || m.job.maxWaiting != nil
		one := name{group, m.job.id}
		if messages[one] == nil {
			messages[one] = &jobMessage{group: group, name: m.job.id}
			b.messages = append(b.messages, messages[one])
		}
		b.all = append(b.all, &batchedJob{job: m.job, publication: p, message: messages[one]})
	}
	return b
}

// store runs the statements of the transaction. It returns errStale if the settings that
// the connection has cached have changed.
func (b *jobBatch) store() error {
	for _, step := range []func() error{b.lockGroups, b.findWaiting, b.countWaiting, b.storeMessages, b.updateGroups, b.countEnqueues} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// The groups are locked in the order of wakeGroupsSQL, before the transaction reads their
// waiting messages.
const lockGroupsOfJobsSQL = `
INSERT INTO queued.groups AS g (home, queue_key, id, ready_at)
SELECT u.queue_key >> 48, u.queue_key, u.id, timestamptz 'infinity'
FROM unnest($1::bigint[], $2::text[]) AS u (queue_key, id)
ORDER BY u.queue_key, u.id COLLATE "C"
ON CONFLICT (queue_key, id) DO UPDATE
SET blocked = g.blocked
WHERE false`

func (b *jobBatch) lockGroups() error {
	keys, ids := groupArrays(b.groups)
	_, err := read[any](b.conn, "lock_groups_of_jobs", nil, lockGroupsOfJobsSQL, keys, ids)
	return err
}

// A locked message does not count as the same job. The transaction that has locked it is
// about to ack or move it, and may need the lock of its group next.
const selectWaitingJobsSQL = `
SELECT w.id
FROM unnest($2::bigint[], $3::text[], $4::text[]) WITH ORDINALITY AS j (queue_key, group_id, job_id, n)
LEFT JOIN LATERAL (
    SELECT m.id
    FROM queued.messages m
    WHERE m.queue_key = j.queue_key
        AND m.home = $1
        AND m.group_id = j.group_id
        AND m.job_id = j.job_id
        AND m.expired_at > now()
        AND NOT ` + leasedSQL + `
    ORDER BY m.seq
    LIMIT 1
    FOR UPDATE SKIP LOCKED
) w ON true
WHERE (SELECT version FROM queued.settings) = $5
ORDER BY j.n`

// findWaiting finds the messages that new jobs of their name replace.
func (b *jobBatch) findWaiting() error {
	_, err := inHomes(b.conn, b.messages, func(m *jobMessage) int64 { return homeOf(m.group.key.queueKey) }, func(home int64, messages []*jobMessage) ([]any, error) {
		var keys intArray
		var groups, names quotedArray
		for _, m := range messages {
			keys, groups, names = append(keys, m.group.key.queueKey), append(groups, m.group.key.id), append(names, m.name)
		}
		found, err := read(b.conn, "waiting_jobs", func(row scanner) (id sql.NullString, err error) {
			err = row.Scan(&id)
			return id, err
		}, selectWaitingJobsSQL, home, keys, groups, names, b.conn.settings.version)
		if err != nil {
			return nil, err
		}
		if len(found) < len(messages) {
			return nil, errStale
		}
		for i, m := range messages {
			m.exists, m.stored.ID = found[i].Valid, found[i].String
			if !m.exists {
				m.stored.ID = b.conn.homes.newID(m.group.key.queueKey)
			}
		}
		return nil, nil
	})
	return err
}

// countWaiting refuses the jobs whose group has too many messages.
func (b *jobBatch) countWaiting() error {
	most := maxMeasured
	var bounded []*jobGroup
	for _, g := range b.groups {
		if g.bounded {
			bounded = append(bounded, g)
		}
	}
	for _, v := range b.all {
		if v.maxWaiting != nil {
			most = max(most, *v.maxWaiting)
		}
	}
	if len(bounded) > 0 {
		_, err := inHomes(b.conn, bounded, (*jobGroup).home, func(home int64, groups []*jobGroup) ([]any, error) {
			keys, ids := groupArrays(groups)
			counts, err := read(b.conn, "waiting", scanKey, selectWaitingSQL, home, keys, ids, most)
			for i, n := range counts {
				groups[i].waiting = int(n)
			}
			return nil, err
		})
		if err != nil {
			return err
		}
	}
	for _, v := range b.all {
		m, g := v.message, v.message.group
		v.waiting = g.waiting
		isNew := !m.exists && m.last == nil
		if isNew && v.maxWaiting != nil && g.waiting >= *v.maxWaiting {
			v.refused = true
			continue
		}
		if isNew {
			g.waiting++
		}
		m.last, g.interval = v, v.interval
	}
	return nil
}

// A message that exists keeps its id and its place, and starts again at its first
// delivery.
const storeJobsSQL = `
INSERT INTO queued.messages AS m (home, id, queue_key, group_id, job_id, data, bytes, max_deliveries, trace, expired_at, scheduled_at, created_at, updated_at)
SELECT j.queue_key >> 48, j.id, j.queue_key, j.group_id, j.job_id, j.data, j.bytes, nullif(j.max_deliveries, 0), j.trace,
       now() + make_interval(secs => j.retention), now() + make_interval(secs => j.delay), now(), now()
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::json[], $6::integer[], $7::integer[], $8::integer[], $9::integer[], $10::json[])
    WITH ORDINALITY AS j (id, queue_key, group_id, job_id, data, bytes, max_deliveries, retention, delay, trace, n)
WHERE (SELECT version FROM queued.settings) = $11
ORDER BY j.n
ON CONFLICT (id, queue_key) DO UPDATE
SET data = excluded.data, bytes = excluded.bytes, max_deliveries = excluded.max_deliveries, trace = excluded.trace,
    delivery_attempts = 0, in_flight = false, last_delivery = false, expired_at = excluded.expired_at, updated_at = excluded.updated_at
RETURNING m.id, m.seq, now()`

// storeMessages stores, for each name, the last job that was not refused.
func (b *jobBatch) storeMessages() error {
	var ids idArray
	var keys, bytes, deliveries, retentions, delays intArray
	var groups, names quotedArray
	var data, traces jsonArray
	accepted := make(map[string]*jobMessage)
	for _, m := range b.messages {
		if m.last == nil {
			continue
		}
		p := m.last.publication
		to, draft := &m.group.queue, &p.messages[0]
		traces.set(len(accepted), p.trace.json())
		accepted[m.stored.ID] = m
		ids, keys = append(ids, m.stored.ID), append(keys, m.group.key.queueKey)
		groups, names = append(groups, m.group.key.id), append(names, m.name)
		data, bytes = append(data, draft.data), append(bytes, int64(len(draft.data)))
		deliveries = append(deliveries, int64(m.last.maxDeliveries))
		retentions, delays = append(retentions, int64(to.retention/time.Second)), append(delays, int64(to.delay/time.Second))
	}
	if len(accepted) == 0 {
		return nil
	}
	type row struct {
		id  string
		seq int64
		at  timestamp
	}
	rows, err := read(b.conn, "store_jobs", func(scan scanner) (r row, err error) {
		err = scan.Scan(&r.id, &r.seq, &r.at)
		return r, err
	}, storeJobsSQL, ids, keys, groups, names, data, bytes, deliveries, retentions, delays, traces, b.conn.settings.version)
	if err != nil {
		return err
	}
	if len(rows) < len(accepted) {
		return errStale
	}
	for _, r := range rows {
		m := accepted[r.id]
		p, g := m.last.publication, m.group
		m.stored = message{ID: r.id, QueueID: p.queueID, Data: p.messages[0].data, Group: g.key.id, trace: p.trace, queueKey: g.key.queueKey, seq: r.seq, CreatedAt: r.at, UpdatedAt: r.at}
		if g.firstSeq == 0 || r.seq < g.firstSeq {
			g.firstSeq = r.seq
		}
	}
	return nil
}

const updateGroupsOfJobsSQL = `
WITH locked AS MATERIALIZED (
    SELECT u.interval_ms, u.first_seq, now() AS at, g.tid, g.delivered_at + make_interval(secs => u.interval_ms / 1000.0) AS limited_until
    FROM unnest($2::bigint[], $3::text[], $4::integer[], $5::bigint[]) AS u (queue_key, id, interval_ms, first_seq)
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, delivered_at
        FROM queued.groups
        WHERE queue_key = u.queue_key
            AND home = $1
            AND id = u.id
        OFFSET 0
    ) g
)
UPDATE queued.groups g
SET delivery_interval_ms = l.interval_ms, limited_until = l.limited_until, ready_at = least(g.ready_at, greatest(l.at, l.limited_until)),
    first_seq = least(g.first_seq, l.first_seq), blocked = false
FROM locked l
WHERE g.ctid = l.tid
    AND g.home = $1
RETURNING g.queue_key, g.id, g.ready_at`

// updateGroups sets the intervals of groups that got a job, and reads when each is ready.
func (b *jobBatch) updateGroups() error {
	changed := make(map[groupKey]*jobGroup)
	var all []*jobGroup
	for _, g := range b.groups {
		if g.firstSeq != 0 {
			changed[g.key], all = g, append(all, g)
		}
	}
	_, err := inHomes(b.conn, all, (*jobGroup).home, func(home int64, groups []*jobGroup) ([]any, error) {
		keys, ids := groupArrays(groups)
		var intervals, firstSeqs intArray
		for _, g := range groups {
			intervals, firstSeqs = append(intervals, g.interval.Milliseconds()), append(firstSeqs, g.firstSeq)
		}
		return read(b.conn, "update_groups_of_jobs", func(row scanner) (any, error) {
			var key groupKey
			var readyAt timestamp
			err := row.Scan(&key.queueKey, &key.id, &readyAt)
			if err == nil {
				changed[key].readyAt = readyAt.Time
			}
			return nil, err
		}, updateGroupsOfJobsSQL, home, keys, ids, intervals, firstSeqs)
	})
	return err
}

// countEnqueues counts the jobs that were not refused.
func (b *jobBatch) countEnqueues() error {
	accepted := make(map[groupKey]int64)
	for _, v := range b.all {
		if !v.refused {
			accepted[v.message.group.key]++
		}
	}
	return b.conn.addJobCounts(accepted, false)
}

func groupArrays(groups []*jobGroup) (keys intArray, ids quotedArray) {
	for _, g := range groups {
		keys, ids = append(keys, g.key.queueKey), append(ids, g.key.id)
	}
	return keys, ids
}

const (
	selectJobSQL = `
SELECT id, scheduled_at, state
FROM queued.live_messages
WHERE home = $1
    AND queue_id = $2
    AND group_id = $3
    AND job_id = $4
ORDER BY state = 'in_flight' DESC, seq
LIMIT 1`

	selectAsJobSQL = `
SELECT id, scheduled_at, state
FROM queued.live_messages
WHERE home = $1
    AND queue_id = $2
    AND id = $4
    AND coalesce(group_id, $3) = $3
    AND job_id IS NULL`
)

// job returns the id, the state and the due time of a job. If there are two jobs of the
// name, it returns the one in flight. The name may also be the id of a message that is not
// a job, in the group or without a group. It returns errMessageNotFound if there is none.
func (s *store) job(ctx context.Context, queueID, group, id string) (m message, err error) {
	home, err := s.homeOfQueue(ctx, queueID)
	if err != nil {
		return m, err
	}
	scan := func(row scanner) error { return row.Scan(&m.ID, &m.ScheduledAt, &m.State) }
	err = scan(s.on("job").QueryRowContext(ctx, selectJobSQL, home, queueID, group, id))
	if uuid, ok := parseID(id); ok && errors.Is(err, sql.ErrNoRows) {
		err = scan(s.on("message_as_job").QueryRowContext(ctx, selectAsJobSQL, home, queueID, group, uuid))
	}
	if errors.Is(err, sql.ErrNoRows) {
		return m, errMessageNotFound
	}
	return m, asUnavailable(err)
}

// finishing is a request to ack a job in flight by its name.
type finishing struct {
	queueID, group, jobID string
	done                  bool // set by the batch: the job was in flight and was acked
}

// finish acks a job in flight by its name, and reports whether there was one.
func (e *engine) finish(ctx context.Context, queueID, group, jobID string) (bool, error) {
	v := &finishing{queueID: queueID, group: group, jobID: jobID}
	n := e.nodeOfQueue(queueID)
	err := n.explain(n.finishes.do(ctx, v, 1, 0))
	return err == nil && v.done, err
}

func (e *engine) runFinishes(s *pinnedConn, batch []*finishing) error {
	all, err := s.finish(batch)
	if err != nil {
		e.sweepIfUnknown(err)
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
    SELECT u.n, m.id, q.key
    FROM unnest($2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS u (queue_id, group_id, job_id, n)
    JOIN queued.queues q ON q.id = u.queue_id
    CROSS JOIN LATERAL (
        SELECT m.id
        FROM queued.messages m
        WHERE m.queue_key = q.key
            AND m.home = $1
            AND m.group_id = u.group_id
            AND m.job_id = u.job_id
            AND ` + leasedSQL + `
        ORDER BY m.seq
        OFFSET 0
    ) m
), acked AS (
    DELETE FROM queued.messages m
    USING found a
    WHERE ` + thatOneSQL + `
        AND m.queue_key IS NOT DISTINCT FROM a.key
        AND ` + leasedSQL + ` IS TRUE
    RETURNING a.n, m.queue_key, m.group_id
), ` + wakeAckedSQL + `
SELECT a.n, g.ready_at
FROM acked a
LEFT JOIN (SELECT queue_key, min(ready_at) AS ready_at FROM groups GROUP BY queue_key) g ON g.queue_key = a.queue_key`

// finished is a job that was acked.
type finished struct {
	n       int          // of its request in the batch, from 1
	readyAt sql.NullTime // the earliest time that a group of the queue is ready because of the ack
}

func (s *pinnedConn) finish(batch []*finishing) ([]finished, error) {
	var queues textArray
	for _, v := range batch {
		queues = append(queues, v.queueID)
	}
	home, err := s.homes.ofQueues(s, queues)
	if err != nil {
		return nil, err
	}
	return inHomes(s, places(batch), func(i int) int64 { return home(queues[i]) }, func(home int64, part []int) ([]finished, error) {
		var groups, jobs quotedArray
		for _, i := range part {
			groups, jobs = append(groups, batch[i].group), append(jobs, batch[i].jobID)
		}
		return read(s, "finish", func(row scanner) (f finished, err error) {
			err = row.Scan(&f.n, &f.readyAt)
			if err == nil {
				f.n = part[f.n-1] + 1
			}
			return f, err
		}, finishJobsSQL, home, pick(queues, part), groups, jobs)
	})
}

// measuring is a request to count a dequeue, and the messages that wait in its group.
type measuring struct {
	group   groupKey
	waiting int64 // set by the batch
}

// countDequeue counts a dequeue from a group for SharQ's metrics. It returns the number of
// messages that wait in the group, at most maxMeasured.
func (e *engine) countDequeue(ctx context.Context, group groupKey) (int64, error) {
	v := &measuring{group: group}
	err := e.main.measurings.do(ctx, v, 1, 0)
	return v.waiting, err
}

// maxMeasured is the maximum number of rows that a count reads.
const maxMeasured = 100_000

const selectWaitingSQL = `
SELECT (
    SELECT count(*)
    FROM (
        SELECT
        FROM queued.messages m
        WHERE m.queue_key = u.queue_key
            AND m.home = $1
            AND m.group_id = u.group_id
            AND NOT ` + leasedSQL + `
        ORDER BY m.in_flight, m.scheduled_at
        LIMIT $4
    ) waiting
)
FROM unnest($2::bigint[], $3::text[]) WITH ORDINALITY AS u (queue_key, group_id, n)
ORDER BY u.n`

func (e *engine) runMeasurings(s *pinnedConn, batch []*measuring) error {
	dequeued := make(map[groupKey]int64)
	for _, v := range batch {
		dequeued[v.group]++
	}
	if err := s.addJobCounts(dequeued, true); err != nil {
		return err
	}
	_, err := inHomes(s, batch, func(v *measuring) int64 { return homeOf(v.group.queueKey) }, func(home int64, batch []*measuring) ([]any, error) {
		var keys intArray
		var groups quotedArray
		for _, v := range batch {
			keys, groups = append(keys, v.group.queueKey), append(groups, v.group.id)
		}
		counts, err := read(s, "waiting", scanKey, selectWaitingSQL, home, keys, groups, maxMeasured)
		for i, n := range counts {
			batch[i].waiting = n
		}
		return nil, err
	})
	return err
}

const selectGroupIDsSQL = `
SELECT g.id
FROM queued.queues q
JOIN queued.groups g ON g.queue_key = q.key
WHERE g.home = $1
    AND q.id = $2
    AND ` + groupHoldsSQL + `
ORDER BY g.id
LIMIT $3`

// groupIDs returns the groups of a queue that hold messages, in order.
func (s *store) groupIDs(ctx context.Context, queueID string) ([]string, error) {
	home, err := s.homeOfQueue(ctx, queueID)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.on("group_ids"), scanText, selectGroupIDsSQL, home, queueID, maxHolding)
}

const selectGroupedSQL = `
SELECT visible.id
FROM (
    SELECT id, key
    FROM queued.queues` + visibleIDsSQL + `
) AS visible
WHERE visible.key >> 48 = $6
    AND EXISTS (SELECT FROM queued.messages WHERE queue_key = visible.key AND home = $6 AND group_id IS NOT NULL)
ORDER BY visible.id
LIMIT $2 OFFSET $1`

// grouped returns the queues that hold messages with a group, in order.
func (s *store) grouped(ctx context.Context, visible *names) ([]string, error) {
	return s.idsInHomes(ctx, "grouped", selectGroupedSQL, visible)
}
