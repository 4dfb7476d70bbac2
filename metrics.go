package main

import (
	"database/sql"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what Prometheus scrapes. The names of the http_ metrics are those
// of the servers whose clients come here with their dashboards.
type metrics struct {
	registry *prometheus.Registry

	requests      *prometheus.CounterVec   // by method, handler (the path of a route) and status ("2xx")
	duration      *prometheus.HistogramVec // seconds, by method and handler
	requestSizes  *prometheus.SummaryVec   // bytes, by handler
	responseSizes *prometheus.SummaryVec   // bytes, by handler

	// Messages, by queue.
	published *prometheus.CounterVec
	delivered *prometheus.CounterVec
	acked     *prometheus.CounterVec
	nacked    *prometheus.CounterVec
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
		requests: counter("http_requests_total", "Requests, by method, route and class of status.", "method", "handler", "status"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "http_request_duration_seconds",
			Help:    "Time from the request's header to the end of the answer; long polls take as long as they wait.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
		}, []string{"method", "handler"}),
		requestSizes:  summary("http_request_size_bytes", "Size of request bodies."),
		responseSizes: summary("http_response_size_bytes", "Size of answers, without their headers."),
		published:     counter("queued_messages_published_total", "Messages stored by publishes.", "queue"),
		delivered:     counter("queued_messages_delivered_total", "Messages sent to receivers.", "queue"),
		acked:         counter("queued_messages_acked_total", "Messages acked.", "queue"),
		nacked:        counter("queued_messages_nacked_total", "Messages nacked.", "queue"),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.duration, m.requestSizes, m.responseSizes,
		m.published, m.delivered, m.acked, m.nacked,
	)
	m.observePool(db, "requests")
	return m
}

// observePool adds the numbers of a pool of database connections.
func (m *metrics) observePool(db *sql.DB, name string) {
	m.registry.MustRegister(collectors.NewDBStatsCollector(db, name))
}

// observe counts one request. The handler is the path of a route, or empty if
// no route matched.
func (m *metrics) observe(method, handler string, status int, took time.Duration, received, sent int64) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions:
	default:
		method = "other" // anything a client can think of
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

// forget drops the series of a queue that is gone.
func (m *metrics) forget(queueID string) {
	for _, v := range []*prometheus.CounterVec{m.published, m.delivered, m.acked, m.nacked} {
		v.DeleteLabelValues(queueID)
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
