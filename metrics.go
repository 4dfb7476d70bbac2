package main

import (
	"context"
	"database/sql"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the server's Prometheus metrics. The http_ metrics have the names that
// fastqueue gives them, so that its dashboards keep working.
type metrics struct {
	registry *prometheus.Registry

	requests      *prometheus.CounterVec   // by method, handler (the path of a route) and status ("2xx")
	duration      *prometheus.HistogramVec // seconds, by method and handler
	requestSizes  *prometheus.SummaryVec   // bytes, by handler
	responseSizes *prometheus.SummaryVec   // bytes, by handler

	messages sync.Map // *messageTotals by queue id

	batches    *prometheus.HistogramVec // requests per statement, by batcher
	delay      prometheus.Histogram     // seconds from due to claimed
	statements *prometheus.HistogramVec // seconds, by name

	cleanedUp prometheus.Gauge // end of the last successful cleanup pass
}

func newMetrics(db *sql.DB) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	summary := func(name, help string) *prometheus.SummaryVec {
		return prometheus.NewSummaryVec(prometheus.SummaryOpts{Name: name, Help: help}, []string{"handler"})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: counter("http_requests_total", "HTTP requests by method, route and status class.", "method", "handler", "status"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "http_request_duration_seconds",
			Help:    "Duration of HTTP requests, including the wait of long polls.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
		}, []string{"method", "handler"}),
		requestSizes:  summary("http_request_size_bytes", "Size of request bodies."),
		responseSizes: summary("http_response_size_bytes", "Size of response bodies."),
		batches: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "queued_batch_requests",
			Help:    "Requests per batch that shared a statement.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}, []string{"batcher"}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "queued_delivery_delay_seconds",
			Help:    "Time from when a message was due until it was leased.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600, 3600},
		}),
		statements: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "queued_statement_duration_seconds",
			Help:    "Duration of database statements by name, to the end for batched ones and to the first row for others.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15},
		}, []string{"statement"}),
		cleanedUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "queued_cleanup_last_success_timestamp_seconds",
			Help: "Unix time of the last cleanup pass without an error on this server, or of its start.",
		}),
	}
	m.cleanedUp.SetToCurrentTime()
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.duration, m.requestSizes, m.responseSizes, m.batches, m.delay, m.statements, m.cleanedUp, messagesCollector{m},
	)
	m.observePool(db, "requests")
	return m
}

// messageCounter is one of the counters of a queue. A message that moves to another queue
// counts at the queue that it leaves.
type messageCounter int

const (
	messagesPublished messageCounter = iota
	messagesDuplicate
	messagesDelivered
	messagesRedelivered
	messagesAcked
	messagesNacked
	messagesExpired
	messagesDeadLettered
	messagesRedriven
	messagesPurged
	messagesDropped
	numMessageCounters
)

// messageTotals are the counters of a queue at this server.
type messageTotals [numMessageCounters]atomic.Int64

// messageDescs describes the counters.
var messageDescs = func() (descs [numMessageCounters]*prometheus.Desc) {
	for counter, v := range [numMessageCounters]struct{ name, help string }{
		messagesPublished:    {"published", "Messages published."},
		messagesDuplicate:    {"duplicate", "Messages not stored because the queue has got one with the same deduplication id."},
		messagesDelivered:    {"delivered", "Messages delivered."},
		messagesRedelivered:  {"redelivered", "Messages delivered again."},
		messagesAcked:        {"acked", "Messages acked."},
		messagesNacked:       {"nacked", "Messages nacked."},
		messagesExpired:      {"expired", "Messages deleted after their retention."},
		messagesDeadLettered: {"dead_lettered", "Messages moved to the dead queue of this queue."},
		messagesRedriven:     {"redriven", "Messages moved to another queue by redrives."},
		messagesPurged:       {"purged", "Messages deleted by purges."},
		messagesDropped:      {"dropped", "Jobs of SharQ's API deleted at their requeue limit, in queues without a dead queue."},
	} {
		descs[counter] = prometheus.NewDesc("queued_messages_"+v.name+"_total", v.help, []string{"queue"}, nil)
	}
	return descs
}()

// messagesCollector exports a series for each queue and counter above zero.
type messagesCollector struct{ *metrics }

func (c messagesCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range messageDescs {
		descs <- d
	}
}

func (c messagesCollector) Collect(all chan<- prometheus.Metric) {
	for queueID, totals := range c.messages.Range {
		for counter := range totals.(*messageTotals) {
			if n := totals.(*messageTotals)[counter].Load(); n > 0 {
				all <- prometheus.MustNewConstMetric(messageDescs[counter], prometheus.CounterValue, float64(n), queueID.(string))
			}
		}
	}
}

// observePool adds the metrics of a pool of database connections. The function that it
// returns removes them.
func (m *metrics) observePool(db *sql.DB, name string) (remove func()) {
	c := collectors.NewDBStatsCollector(db, name)
	m.registry.MustRegister(c)
	return func() { m.registry.Unregister(c) }
}

// scrapeTimeout is the maximum time that a scrape waits for the database.
const scrapeTimeout = time.Second

// observeDatabase adds a gauge for the state of the database, which each scrape checks.
func (m *metrics) observeDatabase(up func(context.Context) bool) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "queued_database_up",
		Help: "Whether the database responds, has the schema and is writable: 1 or 0.",
	}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
		defer cancel()
		if up(ctx) {
			return 1
		}
		return 0
	}))
}

// observeReceivers adds the number of waiting receivers by queue.
func (m *metrics) observeReceivers(e *engine) {
	m.registry.MustRegister(receiversCollector{e, prometheus.NewDesc("queued_waiting_receivers", "Receivers waiting for messages.", []string{"queue"}, nil)})
}

// receiversCollector exports a series for each queue with waiting receivers.
type receiversCollector struct {
	engine *engine
	desc   *prometheus.Desc
}

func (c receiversCollector) Describe(descs chan<- *prometheus.Desc) { descs <- c.desc }

func (c receiversCollector) Collect(all chan<- prometheus.Metric) {
	for queueID, n := range c.engine.waiting() {
		all <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), queueID)
	}
}

var (
	connectionsDesc = prometheus.NewDesc("queued_connections", "Open client connections.", nil, nil)
	evictionsDesc   = prometheus.NewDesc("queued_connections_evicted_total", "Connections closed to stay within the limits.", nil, nil)
	bufferedDesc    = prometheus.NewDesc("queued_buffered_bytes", "Bytes of requests and responses in memory.", nil, nil)
)

func (a *admission) Describe(descs chan<- *prometheus.Desc) {
	descs <- connectionsDesc
	descs <- evictionsDesc
	descs <- bufferedDesc
}

func (a *admission) Collect(all chan<- prometheus.Metric) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.GaugeValue, float64(a.open))
	all <- prometheus.MustNewConstMetric(evictionsDesc, prometheus.CounterValue, float64(a.evicted))
	all <- prometheus.MustNewConstMetric(bufferedDesc, prometheus.GaugeValue, float64(a.buffered))
}

// add counts messages of a queue.
func (m *metrics) add(counter messageCounter, queueID string, n int) {
	if n <= 0 {
		return
	}
	totals := m.totalsOf(queueID)
	if totals == nil {
		v, _ := m.messages.LoadOrStore(queueID, new(messageTotals))
		totals = v.(*messageTotals)
	}
	totals[counter].Add(int64(n))
}

// totalsOf returns the counters of a queue, or nil if it has none.
func (m *metrics) totalsOf(queueID string) *messageTotals {
	totals, _ := m.messages.Load(queueID)
	v, _ := totals.(*messageTotals)
	return v
}

// delivery counts the messages of a response to a receiver. It returns the number of those
// that were delivered before.
func (m *metrics) delivery(queueID string, messages []message) (redelivered int) {
	for _, v := range messages {
		if v.DeliveryAttempts > 1 {
			redelivered++
		}
		dueAt := v.dueAt.Time
		if v.groupDelivery != nil && v.groupDelivery.before.Time.After(dueAt) {
			dueAt = v.groupDelivery.before.Time // the rate limit of its group delayed it
		}
		m.delay.Observe(v.UpdatedAt.Sub(dueAt).Seconds())
	}
	m.add(messagesDelivered, queueID, len(messages))
	m.add(messagesRedelivered, queueID, redelivered)
	return redelivered
}

// timed returns a database that records the duration of its statements, up to their first
// row, under the name.
func (m *metrics) timed(name string, db querier) querier {
	return timed{db, m.statements.WithLabelValues(name)}
}

type timed struct {
	querier
	seconds prometheus.Observer
}

func (t timed) observe(start time.Time) { t.seconds.Observe(time.Since(start).Seconds()) }

func (t timed) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	defer t.observe(time.Now())
	return t.querier.ExecContext(ctx, query, args...)
}

func (t timed) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	defer t.observe(time.Now())
	return t.querier.QueryContext(ctx, query, args...)
}

func (t timed) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	defer t.observe(time.Now())
	return t.querier.QueryRowContext(ctx, query, args...)
}

// observe counts one request. The handler is the path of a route, or empty if
// no route matched.
func (m *metrics) observe(method, handler string, status int, took time.Duration, received, sent int64) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions:
	default:
		method = "other" // clients can send any method
	}
	if handler == "" {
		handler = "none"
	}
	class := [...]string{"0xx", "1xx", "2xx", "3xx", "4xx", "5xx"}[status/100]
	m.requests.WithLabelValues(method, handler, class).Inc()
	m.duration.WithLabelValues(method, handler).Observe(took.Seconds())
	m.requestSizes.WithLabelValues(handler).Observe(float64(received))
	m.responseSizes.WithLabelValues(handler).Observe(float64(sent))
}

// forget drops the series of a deleted queue.
func (m *metrics) forget(queueID string) {
	m.messages.Delete(queueID)
}

// maxScrapes is the maximum number of concurrent scrapes; others get a 503.
const maxScrapes = 8

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}
