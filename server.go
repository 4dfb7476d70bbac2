package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"
)

// server serves requests. Its handlers decode, check, make one call to the store or the
// engine, and return the value to encode. respond and call do the part that all routes share.
type server struct {
	serverConfig

	id      string // of this process
	started time.Time

	consumers  *consumers
	requestIDs *requestIDs
	hints      hints

	compact chan struct{} // capacity 1; requests a vacuum
	moves   chan struct{} // capacity 1; a move task has started

	ready    atomic.Bool // the schema exists
	draining atomic.Bool // the server shuts down and is no longer ready
	mux      *http.ServeMux
	routes   []*route // of mux
}

// serverConfig has the parts and the settings of a server.
type serverConfig struct {
	log             *slog.Logger
	store           *store
	engine          *engine
	metrics         *metrics
	depth           *depthCollector
	history         *queueHistory
	limits          limits
	hosts           hostPolicy
	publicURL       *url.URL                // nil without -public-url
	tokens          *atomic.Pointer[tokens] // to nil if authentication is off
	admission       *admission
	place           databasePlace
	transferTimeout time.Duration // for a client to send a body or to read a response
}

// Bounds of a request with many messages.
const (
	maxBatch     = 1000     // messages
	maxBatchBody = 16 << 20 // bytes; each message is still bounded by -max-body
)

func newServer(c serverConfig) *server {
	c.engine.depth = c.depth
	v := &server{
		serverConfig: c,
		id:           newID(),
		started:      time.Now(),
		consumers:    newConsumers(),
		requestIDs:   newRequestIDs(),
		compact:      make(chan struct{}, 1),
		moves:        make(chan struct{}, 1),
		mux:          http.NewServeMux(),
	}
	v.handle(native, admin, "POST /topics", withoutQuery(v.createTopic))
	v.handle(native, anyToken, "GET /topics", v.listTopics)
	v.handle(native, canPostOrGet, "GET /topics/{topic_id}", withoutQuery(v.getTopic))
	v.handle(native, admin, "DELETE /topics/{topic_id}", withoutQuery(v.deleteTopic))
	v.handle(native, admin, "POST /queues", withoutQuery(v.createQueue))
	v.handle(native, anyToken, "GET /queues", v.listQueues)
	v.handle(native, canPostOrGet, "GET /queues/{queue_id}", withoutQuery(v.getQueue))
	v.handle(native, admin, "PUT /queues/{queue_id}", withoutQuery(v.updateQueue))
	v.handle(native, admin, "DELETE /queues/{queue_id}", withoutQuery(v.deleteQueue))
	v.handle(native, canPostOrGet, "GET /queues/{queue_id}/stats", v.queueStats)
	v.handle(native, canPostOrGet, "GET /queues/{queue_id}/consumers", withoutQuery(v.listConsumers))
	v.handle(native, admin, "PUT /queues/{queue_id}/purge", withoutQuery(v.purge))
	v.handle(native, admin, "PUT /queues/{queue_id}/redrive", withoutQuery(v.redrive))
	v.handle(native, admin, "PUT /queues/{queue_id}/pause", withoutQuery(v.pause))
	v.handle(native, admin, "PUT /queues/{queue_id}/resume", withoutQuery(v.resume))
	v.handle(native, canPost, "POST /topics/{topic_id}/messages", v.publish)
	v.handle(native, canPost, "POST /queues/{queue_id}/messages", v.publish)
	v.handle(native, canPost, "POST /topics/{topic_id}/messages/batch", v.publishBatch).maxBody = max(c.limits.maxBody, maxBatchBody)
	v.handle(native, canPost, "POST /queues/{queue_id}/messages/batch", v.publishBatch).maxBody = max(c.limits.maxBody, maxBatchBody)
	v.handle(native, canGet, "GET /queues/{queue_id}/messages", consuming(v.receive))
	v.handle(native, canGet, "POST /queues/{queue_id}/messages/receive", withoutQuery(v.receiveAndAck))
	v.handle(native, anyToken, "PUT /messages/{message_id}/ack", v.ack)
	v.handle(native, anyToken, "PUT /messages/{message_id}/nack", v.nack)
	v.handle(native, anyToken, "PUT /messages/{message_id}/extend", v.extend)
	v.handle(native, anyToken, "PUT /messages/ack", withoutQuery(v.ackBatch))
	v.handle(native, anyToken, "PUT /messages/nack", withoutQuery(v.nackBatch))
	v.handle(native, admin, "PUT /messages/redrive", withoutQuery(v.redriveNamed))
	v.handle(native, admin, "DELETE /messages", withoutQuery(v.deleteNamed))
	v.handle(native, anyToken, "GET /messages/{message_id}", withoutQuery(v.getMessage))
	v.handle(native, canGet, "GET /queues/{queue_id}/messages/peek", v.peekOrSearch)
	v.handle(native, canGet, "GET /queues/{queue_id}/messages/consumed", v.peek(c.store.consumed))
	v.handle(native, canPostOrGet, "GET /queues/{queue_id}/groups", v.listGroups)
	v.handle(native, canPostOrGet, "GET /queues/{queue_id}/groups/{group}", withoutQuery(v.getGroup))
	v.handle(native, admin, "PUT /queues/{queue_id}/groups/{group}", withoutQuery(v.putGroup))
	v.handle(native, admin, "DELETE /queues/{queue_id}/groups/{group}", withoutQuery(v.deleteGroup))
	v.handlePgQueue()
	v.handleMicroQueue()
	v.handleSharQ()
	v.handleDashboard()
	v.handle(native, public, "GET /health", v.health).always = true
	v.handle(native, public, "GET /livez", v.livez).always = true
	v.handle(native, public, "GET /readyz", v.readyz).always = true
	v.handle(native, public, "GET /openapi.json", v.openapi).always = true
	v.handle(native, public, "GET /docs", v.docs).always = true
	v.handle(native, public, "GET /redoc", v.redoc).always = true
	c.metrics.observeDatabase(v.healthy)
	v.handle(native, canScrape, "GET /metrics", v.scrape(c.metrics.handler())).always = true
	return v
}

// handler decodes a request, checks it, calls the store or the engine once, and returns
// the value to encode: see send.
type handler func(r *request) (any, error)

// route is a pattern of http.ServeMux, with the handler of requests that match it.
type route struct {
	api     *apiStyle
	need    permission
	pattern string
	handler handler
	maxBody int64
	always  bool // also without a database, and while all connections are busy
}

// handle registers a handler and returns its route, which the caller may change before
// the first request.
func (s *server) handle(api *apiStyle, need permission, pattern string, h handler) *route {
	rt := &route{api: api, need: need, pattern: pattern, handler: h, maxBody: s.limits.maxBody}
	s.routes = append(s.routes, rt)
	s.register(rt)
	return rt
}

// register adds a route to the mux.
func (s *server) register(rt *route) {
	call := func(r *request) (any, error) { return s.call(rt, r) }
	s.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, hr *http.Request) {
		r := w.(*responseWriter).request
		r.Request, r.api = hr, rt.api
		s.respond(r, call)
	})
}

// respond calls a handler and sends its result. If the response does not begin, also because
// of a panic, the received messages are released.
func (s *server) respond(r *request, call handler) {
	r.w.matched = true
	defer s.releaseUnsent(r)
	v, err := call(r)
	if err == nil {
		err = s.send(r, v)
	}
	if err != nil {
		s.fail(r, err)
	}
}

// call checks the permission of a request, reads its body and the ids in its path, and
// calls the handler.
func (s *server) call(rt *route, r *request) (any, error) {
	if err := s.authorize(r, rt.need); err != nil {
		return nil, err
	}
	if err := r.readBody(rt.maxBody, s.transferTimeout); err != nil {
		return nil, err
	}
	if err := s.serving(r); err != nil && !rt.always {
		return nil, err
	}
	if rt.api == native {
		if err := r.readPath(); err != nil {
			return nil, err
		}
		r.preferStrict()
		defer s.hintUnknown(r, rt.pattern)
	}
	return rt.handler(r)
}

// serving returns an error without a database, and while all connections are busy.
func (s *server) serving(r *request) error {
	switch {
	case !s.ready.Load():
		return errUnavailable
	case r.w.conn.extra:
		return errOverloaded
	}
	return nil
}

// ServeHTTP serves every request, also those that no route matches.
func (s *server) ServeHTTP(hw http.ResponseWriter, hr *http.Request) {
	r := s.newRequest(hw, hr)
	defer r.w.conn.move(phaseWaiting)
	defer r.discardRest()
	defer s.finish(r, time.Now())
	if isSQS(hr) {
		r.setSQS()
	}
	if err := s.admit(r); err != nil {
		s.fail(r, err)
		return
	}
	if r.api == amazonSQS {
		s.respond(r, s.callSQS)
		return
	}
	s.fixSlash(hr)
	s.mux.ServeHTTP(&r.w, hr)
	if err := r.w.unmatched(); err != nil {
		if err == errMethod {
			s.hintMethod(r)
		}
		s.fail(r, err)
	}
}

func (s *server) newRequest(hw http.ResponseWriter, hr *http.Request) *request {
	r := &request{Request: hr, api: native}
	w := &r.w
	*w = responseWriter{ResponseWriter: hw, request: r, controller: *http.NewResponseController(hw), conn: s.admission.connOf(hr), timeout: s.transferTimeout}
	w.trace = readTrace(hr.Header)
	if w.requestID = w.trace.requestID; w.requestID == "" {
		w.requestID = s.requestIDs.next()
	}
	w.Header().Set("X-Request-Id", w.requestID)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	return r
}

// finish recovers from a panic of a handler, and counts and logs the request.
func (s *server) finish(r *request, start time.Time) {
	w, hr := &r.w, r.Request
	v := recover()
	if v != nil && v != http.ErrAbortHandler {
		s.log.Error("panic", w.logged("method", hr.Method, "path", hr.URL.Path, "panic", v, "stack", string(debug.Stack()))...)
		if w.status == 0 {
			s.fail(r, errPanic)
			v = nil
		} else {
			w.status = http.StatusInternalServerError // for the metrics
		}
	}
	took := time.Since(start)
	route := hr.Pattern[strings.IndexByte(hr.Pattern, ' ')+1:]
	s.metrics.observe(hr.Method, strings.TrimSuffix(route, "{$}"), w.status, took, max(hr.ContentLength, 0), w.sent)
	if s.log.Enabled(hr.Context(), slog.LevelDebug) { // so that logged does not allocate without need
		s.log.Debug("request", w.logged("method", hr.Method, "path", hr.URL.Path, "status", w.status, "duration", took, "remote", hr.RemoteAddr)...)
	}
	if v != nil {
		panic(http.ErrAbortHandler) // closes the connection, so that the part that was sent does not look complete
	}
}

// admit returns an error if there is no capacity for the header of a request, or if a
// web page of another site has sent it.
func (s *server) admit(r *request) error {
	w := &r.w
	admitted := w.conn.begin(r.Header)
	if !admitted || w.conn.extra || s.draining.Load() {
		w.Header().Set("Connection", "close") // the client reconnects for its next request
	}
	if r.ContentLength != 0 {
		// net/http reads an unread body before it sends the response. That must not use up
		// the time for the response.
		w.controller.SetReadDeadline(time.Now().Add(min(discardTimeout, s.transferTimeout/2)))
	}
	if r.Header.Get("Expect") != "" {
		// net/http sends 100 Continue, under the deadline of the previous request on the connection.
		w.controller.SetWriteDeadline(time.Time{})
	}
	if !admitted {
		return errOverloaded
	}
	return s.refuse(r.Request)
}

// fixSlash adds the slash at the end of a path if its route has one, and removes it if the
// route has none: SharQ's clients may leave it out, and other clients may send one too
// many. It removes none for PUT and DELETE: clients and proxies turn
// "/queues/q/groups/.." into "/queues/q/", and that must not delete the queue.
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

// unmatched returns an error if no route has matched. w has kept the response of the mux,
// which may be a redirect to a path without "..", "." and empty segments. It is not sent,
// because a client would repeat a DELETE at a path with another meaning.
func (w *responseWriter) unmatched() error {
	switch w.refused {
	case 0: // a route has matched, or the mux has sent another response
		return nil
	case http.StatusMethodNotAllowed:
		return errMethod
	}
	w.Header().Del("Location")
	return errNoRoute
}

// success is the body of responses about the health of the server.
type success struct {
	Success bool `json:"success"`
}

var (
	errNotReady  = errors.New("not ready")
	errUnhealthy = errors.New("unhealthy")
)

// livez returns success as long as the process runs.
func (s *server) livez(*request) (any, error) { return success{true}, nil }

// readiness is the body of readyz with ?verbose.
type readiness struct {
	success
	Warnings []string `json:"warnings"`
}

// readyz returns errNotReady while the server has no database and once it drains. With
// ?verbose it also returns warnings.
//
// On a Citus cluster the server is ready while the coordinator or another node responds. All
// servers lose the queues of a node at the same time, so a load balancer gains nothing by
// removing one of them, and removing all would also stop the queues of the other nodes.
func (s *server) readyz(r *request) (any, error) {
	healthy := s.healthy(context.Background())
	var silent []string
	if all := s.engine.nodes()[1:]; len(all) > 0 && s.ready.Load() {
		silent = silentNodes(r.Context(), all)
		healthy = healthy || len(silent) < len(all)
	}
	if s.draining.Load() || !healthy {
		return nil, errNotReady
	}
	if !r.URL.Query().Has("verbose") {
		return success{true}, nil
	}
	v := readiness{success{true}, []string{}}
	off, err := s.store.undurable(r.Context())
	switch {
	case err != nil && len(silent) == 0 && len(s.engine.nodes()) == 1:
		return nil, err
	case err != nil:
		v.Warnings = append(v.Warnings, "the coordinator does not respond; topics and queues cannot be read or changed")
	}
	for _, setting := range off {
		v.Warnings = append(v.Warnings, setting+" is off; PostgreSQL can lose committed messages in a crash")
	}
	for _, name := range silent {
		v.Warnings = append(v.Warnings, "node "+name+" does not respond; requests for its queues get status 503, and topics and queues cannot be changed")
	}
	return v, nil
}

// health returns errUnhealthy without a database, which is 500 as in fastqueue.
func (s *server) health(*request) (any, error) {
	if !s.healthy(context.Background()) {
		return nil, errUnhealthy
	}
	return success{true}, nil
}

// healthy reports whether the database responds, has the schema, and can be written.
// Routes do not pass the context of the request, because a disconnection of its client
// says nothing about the database.
func (s *server) healthy(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return s.ready.Load() && s.store.ping(ctx) == nil
}

// buffer is a ResponseWriter for handlers of other packages.
type buffer struct {
	header http.Header
	status int // 0 is 200
	bytes.Buffer
}

func (b *buffer) Header() http.Header    { return b.header }
func (b *buffer) WriteHeader(status int) { b.status = status }

// scrape returns a handler that returns the response of a handler of Prometheus's library.
func (s *server) scrape(h http.Handler) handler {
	return func(r *request) (any, error) {
		b := buffer{header: r.w.Header()}
		h.ServeHTTP(&b, r.Request)
		switch b.status {
		case 0, http.StatusOK:
			return content{mediaType: b.header.Get("Content-Type"), bytes: b.Bytes()}, nil
		case http.StatusServiceUnavailable:
			return nil, errOverloaded
		}
		return nil, fmt.Errorf("metrics: %s", b.String())
	}
}
