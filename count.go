package main

import (
	"context"
	"database/sql"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// queueCounter tells Prometheus how many messages are in each queue. Counting
// takes time that grows with the messages, so a count begins only when a scrape
// asks for it and the last one is nineteen times as long ago as it took: it
// never takes more than a twentieth of the time. A scrape waits a little for the
// count and then has what there is.
type queueCounter struct {
	db  *sql.DB
	log *slog.Logger

	messages *prometheus.Desc
	oldest   *prometheus.Desc

	ctx  context.Context // of the counts
	stop context.CancelFunc

	mu        sync.Mutex
	counted   []queueCount
	counting  chan struct{} // closed when the count that runs ends; nil if none does
	notBefore time.Time     // of the next one
}

// queueCount is what is in a queue, by state.
type queueCount struct {
	queueID                             string
	ready, delayed, inFlight, exhausted int64
	oldestSeconds                       float64 // the age of the oldest that is ready
}

const (
	countShare    = 20                     // counting takes at most one part in so many of the time
	countPatience = 500 * time.Millisecond // for which a scrape waits
)

func newQueueCounter(db *sql.DB, log *slog.Logger) *queueCounter {
	ctx, stop := context.WithCancel(context.Background())
	return &queueCounter{
		db:       db,
		log:      log,
		messages: prometheus.NewDesc("queued_queue_messages", "Messages in the queue, by state; the same on all servers of a database.", []string{"queue", "state"}, nil),
		oldest:   prometheus.NewDesc("queued_queue_oldest_message_age_seconds", "Age of the oldest message that could be received, 0 if there is none.", []string{"queue"}, nil),
		ctx:      ctx,
		stop:     stop,
	}
}

func (c *queueCounter) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.messages
	descs <- c.oldest
}

func (c *queueCounter) Collect(all chan<- prometheus.Metric) {
	for _, q := range c.latest() {
		for state, n := range map[string]int64{"ready": q.ready, "delayed": q.delayed, "in_flight": q.inFlight, "exhausted": q.exhausted} {
			all <- prometheus.MustNewConstMetric(c.messages, prometheus.GaugeValue, float64(n), q.queueID, state)
		}
		all <- prometheus.MustNewConstMetric(c.oldest, prometheus.GaugeValue, q.oldestSeconds, q.queueID)
	}
}

// latest begins a count if it is time for one, waits a little for the one that
// runs, and returns the last that ended.
func (c *queueCounter) latest() []queueCount {
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
		case <-time.After(countPatience):
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counted
}

func (c *queueCounter) count(ended chan struct{}) {
	began := time.Now()
	counted, err := c.query()
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.counted = counted
	} else if c.ctx.Err() == nil {
		c.log.Warn("count of messages", "error", err)
	}
	c.notBefore = time.Now().Add((countShare - 1) * took)
	c.counting = nil
	close(ended)
}

// close ends the count that runs.
func (c *queueCounter) close() {
	c.stop()
	c.mu.Lock()
	counting := c.counting
	c.mu.Unlock()
	if counting != nil {
		<-counting
	}
}

// The one statement that looks at everything walks the table, not an index.
const allowSeqScan = `SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on`

const countMessages = `
SELECT q.id, coalesce(n.ready, 0), coalesce(n.delayed, 0), coalesce(n.in_flight, 0), coalesce(n.exhausted, 0),
       coalesce(extract(epoch FROM now() - n.oldest), 0)::double precision
FROM queued.queues q
LEFT JOIN (
    SELECT key,
           count(*) FILTER (WHERE state = 'ready') AS ready,
           count(*) FILTER (WHERE state = 'delayed') AS delayed,
           count(*) FILTER (WHERE state = 'in_flight') AS in_flight,
           count(*) FILTER (WHERE state = 'exhausted') AS exhausted,
           min(created_at) FILTER (WHERE state = 'ready') AS oldest
    FROM (
        SELECT q.key, m.created_at, ` + messageState + ` AS state
        FROM queued.messages m
        JOIN queued.queues q ON q.key = m.queue_key
        WHERE m.expired_at > now()
    ) messages
    GROUP BY key
) n ON n.key = q.key
ORDER BY q.id`

func (c *queueCounter) query() ([]queueCount, error) {
	tx, err := c.db.BeginTx(c.ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(c.ctx, allowSeqScan); err != nil {
		return nil, err
	}
	return collect(c.ctx, tx, func(row scanner) (q queueCount, err error) {
		err = row.Scan(&q.queueID, &q.ready, &q.delayed, &q.inFlight, &q.exhausted, &q.oldestSeconds)
		return q, err
	}, countMessages)
}
