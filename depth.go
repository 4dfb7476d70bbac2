package main

import (
	"context"
	"database/sql"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// depthCollector tells Prometheus which queues there are, and how many messages are
// in each. Counting takes time that grows with the messages, so a count begins
// only when a scrape or an overview asks for it and the last one is nineteen times
// as long ago as it took: it never takes more than a twentieth of the time. Whoever
// asks waits a little for the count and then has what there is.
type depthCollector struct {
	db      *sql.DB
	log     *slog.Logger
	metrics *metrics

	messages *prometheus.Desc
	oldest   *prometheus.Desc
	info     *prometheus.Desc

	pages int64 // of the table that one statement counts, 8 kB each

	ctx  context.Context // of the counts
	stop context.CancelFunc

	mu        sync.Mutex
	counted   []queueDepth
	countedAt time.Time     // when the count of these began; zero: not yet
	counting  chan struct{} // closed when the count that runs ends; nil if none does
	notBefore time.Time     // of the next one
	missing   []string      // queues that have counters here, and were not there at the last count
}

// queueDepth is what is in a queue, by state.
type queueDepth struct {
	queueID                             string
	deadQueueID                         string // empty if it has none
	ready, delayed, inFlight, exhausted int64
	oldestSeconds                       float64 // the age of the oldest that is ready
}

const (
	countShare   = 20                     // counting takes at most one part in so many of the time
	countTimeout = 500 * time.Millisecond // for which a scrape waits
	countPages   = 1 << 16
)

func newDepthCollector(db *sql.DB, log *slog.Logger, m *metrics) *depthCollector {
	ctx, stop := context.WithCancel(context.Background())
	return &depthCollector{
		db:       db,
		log:      log,
		metrics:  m,
		messages: prometheus.NewDesc("queued_queue_messages", "Messages in the queue, by state; the same on all servers of a database.", []string{"queue", "state"}, nil),
		oldest:   prometheus.NewDesc("queued_queue_oldest_message_age_seconds", "Age of the oldest message that could be received, 0 if there is none.", []string{"queue"}, nil),
		info:     prometheus.NewDesc("queued_queue_info", "1 for each queue, with the dead queue that it has, if any.", []string{"queue", "dead_queue"}, nil),
		pages:    countPages,
		ctx:      ctx,
		stop:     stop,
	}
}

func (c *depthCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.messages
	descs <- c.oldest
	descs <- c.info
}

func (c *depthCollector) Collect(all chan<- prometheus.Metric) {
	counted, _ := c.latest()
	for _, q := range counted {
		for state, n := range map[string]int64{"ready": q.ready, "delayed": q.delayed, "in_flight": q.inFlight, "exhausted": q.exhausted} {
			all <- prometheus.MustNewConstMetric(c.messages, prometheus.GaugeValue, float64(n), q.queueID, state)
		}
		all <- prometheus.MustNewConstMetric(c.oldest, prometheus.GaugeValue, q.oldestSeconds, q.queueID)
		all <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, q.queueID, q.deadQueueID)
	}
}

// latest begins a count if it is time for one, waits a little for the one that
// runs, and returns the last that ended, and when that began.
func (c *depthCollector) latest() ([]queueDepth, time.Time) {
	c.mu.Lock()
	if c.counting == nil && time.Now().After(c.notBefore) && c.ctx.Err() == nil {
		c.counting = make(chan struct{})
		go c.count(c.counting)
	}
	counting := c.counting
	c.mu.Unlock()
	if counting != nil {
		select {
		case <-counting:
		case <-time.After(countTimeout):
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counted, c.countedAt
}

func (c *depthCollector) count(ended chan struct{}) {
	began := time.Now()
	counted, err := c.query()
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.counted, c.countedAt = counted, began
		c.forgetMissing()
	} else if c.ctx.Err() == nil {
		c.log.Warn("count of messages", "error", err)
	}
	c.notBefore = time.Now().Add((countShare - 1) * took)
	c.counting = nil
	close(ended)
}

// close ends the count that runs.
func (c *depthCollector) close() {
	c.stop()
	c.mu.Lock()
	counting := c.counting
	c.mu.Unlock()
	if counting != nil {
		<-counting
	}
}

// forgetMissing drops the counters of queues that were deleted, here or at
// another server: those that were there at neither of two counts, as one that is
// only missing in the last may have been made since.
func (c *depthCollector) forgetMissing() {
	there := make(map[string]bool, len(c.counted))
	for _, q := range c.counted {
		there[q.queueID] = true
	}
	for _, queueID := range c.missing {
		if !there[queueID] {
			c.metrics.forget(queueID)
		}
	}
	c.missing = nil
	for queueID := range c.metrics.messages.Range {
		if queueID := queueID.(string); !there[queueID] {
			c.missing = append(c.missing, queueID)
		}
	}
}

const selectKeysSQL = `
SELECT key, id, coalesce(dead_queue_id, '')
FROM queued.queues
ORDER BY id`

const selectPagesSQL = `
SELECT pg_relation_size('queued.messages') / current_setting('block_size')::bigint`

// A part of the table, so that no statement is long: an old snapshot would keep
// PostgreSQL from reusing the space of what is gone.
const countMessagesSQL = `
WITH q AS MATERIALIZED (
    SELECT key, dead_queue_id, message_max_deliveries
    FROM queued.queues
), found AS (
    SELECT q.key AS queue_key, m.created_at, ` + messageStateSQL + ` AS state
    FROM queued.messages m
    JOIN q ON q.key = abs(m.queue_key)
    WHERE m.ctid >= format('(%s,0)', $1::bigint)::tid
        AND m.ctid < format('(%s,0)', $2::bigint)::tid
        AND m.expired_at > now()
)
SELECT queue_key,
       count(*) FILTER (WHERE state = 'ready'),
       count(*) FILTER (WHERE state = 'delayed'),
       count(*) FILTER (WHERE state = 'in_flight'),
       count(*) FILTER (WHERE state = 'exhausted'),
       coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE state = 'ready')), 0)::double precision
FROM found
GROUP BY queue_key`

// query counts the table part by part. A table of one part is counted at one
// moment; in a larger one, what changes meanwhile may be counted twice or not.
func (c *depthCollector) query() ([]queueDepth, error) {
	type keyed struct {
		key int64
		queueDepth
	}
	on := func(name string) querier { return c.metrics.timed(name, c.db) }
	queues, err := collect(c.ctx, on("queue_keys"), func(row scanner) (q keyed, err error) {
		err = row.Scan(&q.key, &q.queueID, &q.deadQueueID)
		return q, err
	}, selectKeysSQL)
	if err != nil {
		return nil, err
	}
	all := make([]queueDepth, len(queues))
	byKey := make(map[int64]*queueDepth, len(queues))
	for i, q := range queues {
		all[i] = q.queueDepth
		byKey[q.key] = &all[i]
	}
	var pages int64
	if err := on("pages").QueryRowContext(c.ctx, selectPagesSQL).Scan(&pages); err != nil {
		return nil, err
	}
	for page := int64(0); page < pages; page += c.pages {
		part, err := collect(c.ctx, on("count"), func(row scanner) (q keyed, err error) {
			err = row.Scan(&q.key, &q.ready, &q.delayed, &q.inFlight, &q.exhausted, &q.oldestSeconds)
			return q, err
		}, countMessagesSQL, page, page+c.pages)
		if err != nil {
			return nil, err
		}
		for _, q := range part {
			if sum := byKey[q.key]; sum != nil { // else it was made a moment ago
				sum.ready += q.ready
				sum.delayed += q.delayed
				sum.inFlight += q.inFlight
				sum.exhausted += q.exhausted
				sum.oldestSeconds = max(sum.oldestSeconds, q.oldestSeconds)
			}
		}
	}
	return all, nil
}
