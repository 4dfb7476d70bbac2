package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// server answers requests. Its handlers decode, check, make one call to the
// store or the engine, and encode; handle does what is the same for all.
type server struct {
	serverConfig

	id      string // of this process
	started time.Time

	jobCounts  *jobCounts
	requestIDs *requestIDs

	compact chan struct{} // holds one: asks for a vacuum

	ready    atomic.Bool // the schema is there
	draining atomic.Bool // and so not ready any more
	mux      *http.ServeMux
	routes   []route // of mux
}

// serverConfig is what a server is built from.
type serverConfig struct {
	log             *slog.Logger
	store           *store
	engine          *engine
	metrics         *metrics
	depth           *depthCollector
	limits          limits
	hosts           hostPolicy
	tokens          *atomic.Pointer[tokens] // to nil if authentication is off
	admission       *admission
	transferTimeout time.Duration // for a client to send a body or to read a response
}

// route is a pattern of http.ServeMux and the API that it belongs to.
type route struct {
	pattern string
	dialect *compatAPI
}

// Bounds of a request with many messages.
const (
	maxBatch     = 1000     // messages
	maxBatchBody = 16 << 20 // bytes; each message is still bounded by -max-body
)

func newServer(c serverConfig) *server {
	v := &server{
		serverConfig: c,
		id:           newID(),
		started:      time.Now(),
		jobCounts:    newJobCounts(),
		requestIDs:   newRequestIDs(),
		compact:      make(chan struct{}, 1),
		mux:          http.NewServeMux(),
	}
	v.handle(admin, "POST /topics", v.createTopic)
	v.handle(anyToken, "GET /topics", v.listTopics)
	v.handle(canPostOrGet, "GET /topics/{topic_id}", v.getTopic)
	v.handle(admin, "DELETE /topics/{topic_id}", v.deleteTopic)
	v.handle(admin, "POST /queues", v.createQueue)
	v.handle(anyToken, "GET /queues", v.listQueues)
	v.handle(canPostOrGet, "GET /queues/{queue_id}", v.getQueue)
	v.handle(admin, "PUT /queues/{queue_id}", v.updateQueue)
	v.handle(admin, "DELETE /queues/{queue_id}", v.deleteQueue)
	v.handle(canPostOrGet, "GET /queues/{queue_id}/stats", v.queueStats)
	v.handle(admin, "PUT /queues/{queue_id}/purge", v.purge)
	v.handle(admin, "PUT /queues/{queue_id}/redrive", v.redrive)
	v.handle(canPost, "POST /topics/{topic_id}/messages", v.publish)
	v.handle(canPost, "POST /queues/{queue_id}/messages", v.publish)
	v.handleLarge(canPost, "POST /topics/{topic_id}/messages/batch", v.publishBatch)
	v.handleLarge(canPost, "POST /queues/{queue_id}/messages/batch", v.publishBatch)
	v.handle(canGet, "GET /queues/{queue_id}/messages", consuming(v.receive))
	v.handle(anyToken, "PUT /messages/{message_id}/ack", v.ack)
	v.handle(anyToken, "PUT /messages/{message_id}/nack", v.nack)
	v.handle(anyToken, "PUT /messages/{message_id}/extend", v.extend)
	v.handle(anyToken, "PUT /messages/ack", v.ackBatch)
	v.handle(anyToken, "PUT /messages/nack", v.nackBatch)
	v.handle(anyToken, "GET /messages/{message_id}", v.getMessage)
	v.handle(canGet, "GET /queues/{queue_id}/messages/peek", v.peek(c.store.peek))
	v.handle(canGet, "GET /queues/{queue_id}/messages/consumed", v.peek(c.store.consumed))
	v.handle(canPostOrGet, "GET /queues/{queue_id}/groups", v.listGroups)
	v.handle(canPostOrGet, "GET /queues/{queue_id}/groups/{group}", v.getGroup)
	v.handle(admin, "PUT /queues/{queue_id}/groups/{group}", v.putGroup)
	v.handle(admin, "DELETE /queues/{queue_id}/groups/{group}", v.deleteGroup)
	v.handlePgQueue()
	v.handleMicroQueue()
	v.handleSharQ()
	v.handleDashboard()
	v.handleAlways(public, "GET /health", v.health)
	v.handleAlways(public, "GET /livez", v.livez)
	v.handleAlways(public, "GET /readyz", v.readyz)
	v.handleAlways(public, "GET /openapi.json", v.openapi)
	v.handleAlways(public, "GET /docs", v.docs)
	v.handleAlways(public, "GET /redoc", v.redoc)
	c.metrics.observeDatabase(v.healthy)
	scrape := c.metrics.handler()
	v.handleAlways(canScrape, "GET /metrics", func(r *request) error {
		p := page{header: r.w.Header()}
		scrape.ServeHTTP(&p, r.Request)
		return r.w.page(&p)
	})
	return v
}

// A handler answers by one of the methods of response, or returns an error for
// handle to answer.
type handler func(r *request) error

// handle registers a handler for a pattern of http.ServeMux, and the right that
// it takes. It is called once the database is ready.
func (s *server) handle(need permission, pattern string, h handler) {
	s.handleAs(native, need, pattern, h)
}

// handleAs is handle for a route of another server's API.
func (s *server) handleAs(d *compatAPI, need permission, pattern string, h handler) {
	s.register(d, need, pattern, s.limits.maxBody, s.whenReady(h))
}

// handleLarge is handle for requests with many messages.
func (s *server) handleLarge(need permission, pattern string, h handler) {
	s.register(native, need, pattern, max(s.limits.maxBody, maxBatchBody), s.whenReady(h))
}

// handleAlways is handle for what also works without a database.
func (s *server) handleAlways(need permission, pattern string, h handler) {
	s.register(native, need, pattern, s.limits.maxBody, h)
}

func (s *server) whenReady(h handler) handler {
	return func(r *request) error {
		if !s.ready.Load() {
			return errUnavailable
		}
		if r.w.conn.beyond {
			return errOverloaded
		}
		return h(r)
	}
}

func (s *server) register(d *compatAPI, need permission, pattern string, maxBody int64, h handler) {
	s.routes = append(s.routes, route{pattern, d})
	s.serve(d, need, pattern, maxBody, h)
}

// serve is register for what is no route, but a mistake that an API has a text for.
func (s *server) serve(d *compatAPI, need permission, pattern string, maxBody int64, h handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, hr *http.Request) {
		r := &request{Request: hr, w: w.(*response), api: d}
		r.w.matched = true
		err := s.authorize(r, need)
		if err == nil {
			err = s.withBody(r, maxBody, h)
		}
		if err != nil {
			s.fail(r, err)
		}
	})
}

// ServeHTTP is around every request, also those that no route matches.
func (s *server) ServeHTTP(hw http.ResponseWriter, hr *http.Request) {
	start := time.Now()
	w := &response{ResponseWriter: hw, controller: http.NewResponseController(hw), conn: s.admission.connOf(hr), timeout: s.transferTimeout}
	w.trace = readTrace(hr.Header)
	if w.requestID = w.trace.requestID; w.requestID == "" {
		w.requestID = s.requestIDs.next()
	}
	w.Header().Set("X-Request-Id", w.requestID)
	roomy := w.conn.begin(hr.Header)
	defer w.conn.end()
	if hr.ContentLength != 0 && hr.Header.Get("Expect") == "" {
		defer w.discardRest(hr.Body)
	}
	defer func() {
		v := recover()
		if v != nil && v != http.ErrAbortHandler {
			s.log.Error("panic", w.logged("method", hr.Method, "path", hr.URL.Path, "panic", v, "stack", string(debug.Stack()))...)
			if w.status == 0 {
				w.json(http.StatusInternalServerError, problem{"internal error"})
				v = nil
			} else {
				w.status = http.StatusInternalServerError // for the metrics
			}
		}
		took := time.Since(start)
		route := hr.Pattern[strings.IndexByte(hr.Pattern, ' ')+1:]
		s.metrics.observe(hr.Method, strings.TrimSuffix(route, "{$}"), w.status, took, max(hr.ContentLength, 0), w.sent)
		if s.log.Enabled(hr.Context(), slog.LevelDebug) { // or the line is made for nothing
			s.log.Debug("request", w.logged("method", hr.Method, "path", hr.URL.Path, "status", w.status, "duration", took, "remote", hr.RemoteAddr)...)
		}
		if v != nil {
			panic(http.ErrAbortHandler) // cuts the connection: what was sent must not look like a whole answer
		}
	}()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if w.conn.beyond {
		w.Header().Set("Connection", "close")
	}
	if hr.ContentLength != 0 {
		// net/http reads a body that no handler wants before it sends the answer, which
		// takes some of the time for the answer.
		w.controller.SetReadDeadline(start.Add(min(discardTimeout, s.transferTimeout/2)))
	}
	if hr.Header.Get("Expect") != "" {
		// net/http answers it, within the deadline of the request before on the same connection.
		w.controller.SetWriteDeadline(time.Time{})
	}
	if s.draining.Load() {
		w.Header().Set("Connection", "close") // the next request goes elsewhere
	}
	err := s.refuse(hr)
	if err == nil && !roomy {
		w.Header().Set("Connection", "close")
		err = errOverloaded
	}
	if err != nil {
		s.fail(&request{Request: hr, w: w, api: native}, err)
		return
	}
	s.fixSlash(hr)
	s.mux.ServeHTTP(w, hr)
	if !w.matched {
		s.unmatched(w)
	}
}

// fixSlash gives a path the slash at its end that its route has: SharQ's clients
// may leave it out, and those of the other servers may send one too many. From the
// path of a PUT or DELETE none is taken: clients and proxies make "/queues/q/" of
// "/queues/q/groups/..", and that must not delete the queue.
func (s *server) fixSlash(r *http.Request) {
	path, hasSlash := strings.CutSuffix(r.URL.Path, "/")
	if strings.HasSuffix(r.URL.RawPath, "%2F") || strings.HasSuffix(r.URL.RawPath, "%2f") {
		hasSlash = false // it is part of an id
	}
	if !hasSlash {
		s.addSlash(r)
		return
	}
	if r.Method == http.MethodPut || r.Method == http.MethodDelete {
		return
	}
	if _, pattern := s.mux.Handler(r); pattern == "" {
		r.URL.Path, r.URL.RawPath = path, strings.TrimSuffix(r.URL.RawPath, "/")
	}
}

// unmatched writes the response of a request that no route matches, in JSON: w has
// kept what the mux wanted to send. Its redirects to a path without "..", "." and
// empty segments are not sent: a client would repeat a DELETE at a path that means
// something else.
func (s *server) unmatched(w *response) {
	switch w.refused {
	case 0: // the mux has sent something else
	case http.StatusMethodNotAllowed:
		w.json(w.refused, problem{"Method Not Allowed"})
	default:
		w.Header().Del("Location")
		w.json(http.StatusNotFound, problem{"Not Found"})
	}
}

// refuse keeps web pages that are open in a browser on this machine from using
// the server: it is for programs, and reachable for browsers by accident.
func (s *server) refuse(r *http.Request) error {
	if !s.hosts.allow(r) {
		return status{http.StatusForbidden, fmt.Sprintf("host %q is not allowed; see -allowed-hosts", r.Host)}
	}
	if err := crossOrigin.Check(r); err != nil {
		return errOtherSite
	}
	return nil
}

// crossOrigin goes by Sec-Fetch-Site and, where a browser does not send it, by
// Origin. It lets GETs through, see consuming.
var crossOrigin = http.NewCrossOriginProtection()

var errOtherSite = status{http.StatusForbidden, "cross-site requests are not allowed"}

// hostPolicy is by which names requests may address a server on a loopback address:
// localhost, loopback addresses, and those that are allowed, or all if one of these is
// "*". It keeps out a web page whose own name points to 127.0.0.1. On any other address
// all names are allowed.
type hostPolicy struct {
	onLoopback bool
	allowed    []string
}

// allow reports whether a request addresses the server by an allowed name. A request
// without a name does not come from a browser, but from a health check in HTTP/1.0. A
// final dot is ignored in allowed names only: a browser may not take "localhost." for
// this machine, and sends Sec-Fetch-Site only if it does.
func (p hostPolicy) allow(r *http.Request) bool {
	host := r.Host
	if !p.onLoopback {
		return true
	}
	if host == "" {
		return r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == ""
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || slices.Contains(p.allowed, "*") || slices.Contains(p.allowed, strings.TrimSuffix(host, ".")) {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// consuming is around handlers that change something although they are GETs.
func consuming(h handler) handler {
	return func(r *request) error {
		if r.Method == http.MethodHead {
			r.w.Header().Set("Allow", http.MethodGet)
			return status{http.StatusMethodNotAllowed, "Method Not Allowed"}
		}
		// WebSockets and older browsers send no Sec-Fetch-Site, but an Origin.
		asPost := *r.Request
		asPost.Method = http.MethodPost
		if err := crossOrigin.Check(&asPost); err != nil {
			return errOtherSite
		}
		return h(r)
	}
}

// success is the body of answers that say how the server is.
type success struct {
	Success bool `json:"success"`
}

// livez answers as long as the process runs.
func (s *server) livez(r *request) error {
	return r.w.json(http.StatusOK, success{true})
}

// readiness is the body of readyz when it is asked to be verbose.
type readiness struct {
	success
	Warnings []string `json:"warnings"`
}

// readyz says whether requests should come here: not without a database, and
// not any more once the server drains. With ?verbose it also has warnings.
func (s *server) readyz(r *request) error {
	if s.draining.Load() || !s.healthy(context.Background()) {
		r.w.Header().Set("Retry-After", "1")
		return r.w.json(http.StatusServiceUnavailable, success{false})
	}
	if !r.URL.Query().Has("verbose") {
		return r.w.json(http.StatusOK, success{true})
	}
	off, err := s.store.undurable(r.Context())
	if err != nil {
		return err
	}
	v := readiness{success{true}, []string{}}
	for _, setting := range off {
		v.Warnings = append(v.Warnings, setting+" is off; PostgreSQL can lose committed messages in a crash")
	}
	return r.w.json(http.StatusOK, v)
}

// health answers 500 without a database, and not 503, as fastqueue does.
func (s *server) health(r *request) error {
	if !s.healthy(context.Background()) {
		return r.w.json(http.StatusInternalServerError, success{false})
	}
	return r.w.json(http.StatusOK, success{true})
}

// healthy reports whether the database answers, has the schema, and can be written.
// Routes ask with a context of no request: that its client hangs up says nothing
// about the database.
func (s *server) healthy(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return s.ready.Load() && s.store.ping(ctx) == nil
}
