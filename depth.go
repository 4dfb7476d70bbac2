package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// depthCollector exports the number of messages of each queue to Prometheus. The
// time of a count grows with the messages, so counts take at most a twentieth of the
// time: a count starts on demand, if the last one ended 19 times its duration ago. A
// scrape waits for the running count, at most for countTimeout, and then returns the
// last one. Queues in homes that it could not count have no numbers until the next count.
type depthCollector struct {
	db      *sql.DB
	log     *slog.Logger
	metrics *metrics
	homes   *homes

	messages *prometheus.Desc
	oldest   *prometheus.Desc
	info     *prometheus.Desc
	paused   *prometheus.Desc

	pages int64 // pages of the table per statement, 8 kB each

	ctx  context.Context // of the counts
	stop context.CancelFunc

	mu        sync.Mutex
	counted   []queueDepth     // the result of the last count
	countedAt time.Time        // when it began; zero if there was none
	counting  chan struct{}    // closed when the running count ends; nil if none is running
	notBefore time.Time        // earliest start of the next count
	totals    map[string]int64 // number of messages in each queue, by the last count
	nets      map[string]int64 // metrics.nets when that count ended; for uncounted queues, totals and nets are of an earlier count
	missing   []string         // queues with counters that the last count did not find
	bounded   bool             // the last count found a queue with max_messages
}

// queueDepth is a queue with the number of its messages, by state.
type queueDepth struct {
	queueID     string
	deadQueueID string // empty if it has none
	messageCounts
	oldestSeconds float64 // age of the oldest ready message
	uncounted     bool    // the numbers are not known, because the home could not be counted
	paused        bool

	max         int64 // queues.max_messages; 0 for no limit
	marked      bool  // queues.full_until is set
	markExpires bool  // and is over soon, or is not set
}

const (
	countShare   = 20                     // counts take at most a twentieth of the time
	countTimeout = 500 * time.Millisecond // maximum wait of a scrape
	countBounded = 5 * time.Second        // minimum time between counts that begin without a request
	countPages   = 1 << 16
)

func newDepthCollector(db *sql.DB, log *slog.Logger, m *metrics) *depthCollector {
	ctx, stop := context.WithCancel(context.Background())
	return &depthCollector{
		db:       db,
		log:      log,
		metrics:  m,
		messages: prometheus.NewDesc("queued_queue_messages", "Messages in the queue by state; the same on all servers of a database.", []string{"queue", "state"}, nil),
		oldest:   prometheus.NewDesc("queued_queue_oldest_message_age_seconds", "Age of the oldest message that can be received, 0 without one.", []string{"queue"}, nil),
		info:     prometheus.NewDesc("queued_queue_info", "Dead queue of each queue, if it has one; the value is always 1.", []string{"queue", "dead_queue"}, nil),
		paused:   prometheus.NewDesc("queued_queue_paused", "Whether the delivery of the queue is paused: 1 or 0.", []string{"queue"}, nil),
		pages:    countPages,
		ctx:      ctx,
		stop:     stop,
	}
}

func (c *depthCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.messages
	descs <- c.oldest
	descs <- c.info
	descs <- c.paused
}

func (c *depthCollector) Collect(all chan<- prometheus.Metric) {
	counted, _ := c.latest()
	for _, q := range counted {
		if !q.uncounted {
			for state, n := range map[string]int64{"ready": q.Ready, "delayed": q.Delayed, "in_flight": q.InFlight, "exhausted": q.Exhausted} {
				all <- prometheus.MustNewConstMetric(c.messages, prometheus.GaugeValue, float64(n), q.queueID, state)
			}
			all <- prometheus.MustNewConstMetric(c.oldest, prometheus.GaugeValue, q.oldestSeconds, q.queueID)
		}
		all <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, q.queueID, q.deadQueueID)
		paused := 0.0
		if q.paused {
			paused = 1
		}
		all <- prometheus.MustNewConstMetric(c.paused, prometheus.GaugeValue, paused, q.queueID)
	}
}

// latest starts a count if one is due, waits up to countTimeout for the running count, and
// returns the last count with the time at which it began.
func (c *depthCollector) latest() ([]queueDepth, time.Time) {
	c.mu.Lock()
	c.startLocked()
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

// startLocked starts a count if one is due. The caller holds the mutex.
func (c *depthCollector) startLocked() {
	if c.counting == nil && time.Now().After(c.notBefore) && c.ctx.Err() == nil {
		c.counting = make(chan struct{})
		go c.count(c.counting)
	}
}

func (c *depthCollector) count(ended chan struct{}) {
	began := time.Now()
	counted, failing, err := c.query()
	nets := c.metrics.nets() // after the count, because an estimate that is too high refuses publishes without need
	took := time.Since(began) - failing
	err = errors.Join(err, c.markFull(counted, took))
	c.mu.Lock()
	defer c.mu.Unlock()
	if counted != nil {
		totals := make(map[string]int64, len(counted))
		c.bounded = false
		for _, q := range counted {
			if q.uncounted {
				totals[q.queueID], nets[q.queueID] = c.totals[q.queueID], c.nets[q.queueID]
			} else {
				totals[q.queueID] = q.total()
			}
			c.bounded = c.bounded || q.max > 0
		}
		c.counted, c.countedAt, c.totals, c.nets = counted, began, totals, nets
		c.forgetMissing()
	}
	if err != nil && c.ctx.Err() == nil {
		c.log.Warn("message count failed", "error", err)
	}
	c.notBefore = time.Now().Add((countShare - 1) * took)
	c.counting = nil
	close(ended)
}

// run counts from time to time until ctx is done, while there are queues with max_messages:
// clients that publish with SQL start no counts.
func (c *depthCollector) run(ctx context.Context) {
	ticker := time.NewTicker(countBounded)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.mu.Lock()
			if c.bounded {
				c.startLocked()
			}
			c.mu.Unlock()
		}
	}
}

// close cancels the running count.
func (c *depthCollector) close() {
	c.stop()
	c.mu.Lock()
	counting := c.counting
	c.mu.Unlock()
	if counting != nil {
		<-counting
	}
}

// forgetMissing drops the counters of queues that were deleted, here or at another server:
// the queues that are missing in two counts. A queue that is missing in one count may have
// been created during the count.
func (c *depthCollector) forgetMissing() {
	found := make(map[string]bool, len(c.counted))
	for _, q := range c.counted {
		found[q.queueID] = true
	}
	for _, queueID := range c.missing {
		if !found[queueID] {
			c.metrics.forget(queueID)
		}
	}
	c.missing = nil
	for queueID := range c.metrics.messages.Range {
		if queueID := queueID.(string); !found[queueID] {
			c.missing = append(c.missing, queueID)
		}
	}
}

const selectKeysSQL = `
SELECT key, id, coalesce(dead_queue_id, ''), paused, coalesce(max_messages, 0), full_until IS NOT NULL,
       (full_until > now() + interval '1 minute') IS NOT TRUE
FROM queued.queues
ORDER BY id`

// The statement counts a part of the table, so that it is short: PostgreSQL cannot reuse
// the space of deleted rows that an old snapshot may see.
const countMessagesSQL = `
SELECT queue_key, ` + countStatesSQL + `,
       coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE state = 'ready')), 0)::double precision
FROM queued.live_messages
WHERE home = $1
    AND tid >= format('(%s,0)', $2::bigint)::tid
    AND tid < format('(%s,0)', $3::bigint)::tid
GROUP BY queue_key`

// query counts the table part by part. A table of one part is counted at one moment. In a
// larger table, messages that change during the count may be counted twice, or not at all.
// Where there are several homes, the queues of those that fail are uncounted; failing is the
// time that these homes took. After other errors query returns no queues.
func (c *depthCollector) query() (all []queueDepth, failing time.Duration, err error) {
	type keyed struct {
		key int64
		queueDepth
	}
	on := func(name string) querier { return c.metrics.timed(name, c.db) }
	queues, err := collect(c.ctx, on("queue_keys"), func(row scanner) (q keyed, err error) {
		err = row.Scan(&q.key, &q.queueID, &q.deadQueueID, &q.paused, &q.max, &q.marked, &q.markExpires)
		return q, err
	}, selectKeysSQL)
	if err != nil {
		return nil, 0, err
	}
	all = make([]queueDepth, len(queues))
	byKey := make(map[int64]*queueDepth, len(queues))
	for i, q := range queues {
		all[i] = q.queueDepth
		byKey[q.key] = &all[i]
	}
	homes, err := c.homes.inUse(c.ctx, on("homes"))
	if err != nil {
		return nil, 0, err
	}
	uncounted := make(map[int64]bool)
	for _, home := range homes {
		uncounted[home] = true
	}
	err = c.homes.each(homes, func(home int64) error {
		began := time.Now()
		err := c.queryHome(home, func(key int64) *queueDepth { return byKey[key] })
		if uncounted[home] = err != nil; err != nil {
			failing += time.Since(began)
		}
		return err
	})
	if c.homes.endsAll(err) {
		return nil, failing, err
	}
	for i, q := range queues {
		all[i].uncounted = uncounted[homeOf(q.key)]
	}
	return all, failing, err
}

// queryHome adds the numbers of a home to its queues. queue returns nil for a queue that was
// created during the count.
func (c *depthCollector) queryHome(home int64, queue func(key int64) *queueDepth) error {
	type keyed struct {
		key int64
		queueDepth
	}
	pages, err := c.homes.pages(c.ctx, c.metrics.timed("pages", c.db), home)
	if err != nil {
		return err
	}
	for page := int64(0); page < pages; page += c.pages {
		part, err := collect(c.ctx, c.metrics.timed("count", c.db), func(row scanner) (q keyed, err error) {
			err = row.Scan(&q.key, &q.Ready, &q.Delayed, &q.InFlight, &q.Exhausted, &q.oldestSeconds)
			return q, err
		}, countMessagesSQL, home, page, page+c.pages)
		if err != nil {
			return err
		}
		for _, q := range part {
			if sum := queue(q.key); sum != nil {
				sum.Ready += q.Ready
				sum.Delayed += q.Delayed
				sum.InFlight += q.InFlight
				sum.Exhausted += q.Exhausted
				sum.oldestSeconds = max(sum.oldestSeconds, q.oldestSeconds)
			}
		}
	}
	return nil
}
