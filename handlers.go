package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// server answers requests. Its handlers decode, check, make one call to the
// store or the engine, and encode; handle does what is the same for all.
type server struct {
	log     *slog.Logger
	store   *store
	engine  *engine
	metrics *metrics
	tally   *tally
	counter *queueCounter
	limits  limits

	id      string // of this process
	started time.Time

	// checkHost is set if requests must name a host that is a loopback address
	// or in allowedHosts: a web page elsewhere that has its own name point to
	// 127.0.0.1 does not.
	checkHost    bool
	allowedHosts []string

	tokens *atomic.Pointer[tokens] // to nil: the server is open

	room            *room
	transferTimeout time.Duration // for a client to send a body, or to take an answer

	compact chan struct{} // holds one: asks for a vacuum

	requestIDs *requestIDs

	ready    atomic.Bool // the schema is there
	draining atomic.Bool // and so not ready any more
	mux      *http.ServeMux
	routes   []route // of mux
}

// route is a pattern of http.ServeMux and the API that it belongs to.
type route struct {
	pattern string
	dialect *dialect
}

// Bounds of a request with many messages.
const (
	maxBatch     = 1000     // messages
	maxBatchBody = 16 << 20 // bytes; each message is still bounded by -max-body
)

// Bounds of a connection.
const (
	headerTimeout = 10 * time.Second
	maxHeader     = 64 << 10
)

// Defaults of settings.
const (
	defaultMaxConnections  = 16_000
	defaultMaxInHand       = 256 << 20
	defaultTransferTimeout = 30 * time.Second
	defaultIdleTimeout     = 3 * time.Minute
)

func newServer(log *slog.Logger, s *store, e *engine, m *metrics, counter *queueCounter, l limits) *server {
	v := &server{
		log: log, store: s, engine: e, metrics: m, tally: newTally(s, e), counter: counter, limits: l,
		id: newID(), started: time.Now(),
		tokens:          new(atomic.Pointer[tokens]),
		room:            newRoom(log, defaultMaxConnections, defaultMaxInHand),
		transferTimeout: defaultTransferTimeout,
		compact:         make(chan struct{}, 1),
		requestIDs:      newRequestIDs(),
		mux:             http.NewServeMux(),
	}
	v.handle(admin, "POST /topics", v.createTopic)
	v.handle(anyToken, "GET /topics", v.listTopics)
	v.handle(seeing, "GET /topics/{topic_id}", v.getTopic)
	v.handle(admin, "DELETE /topics/{topic_id}", v.deleteTopic)
	v.handle(admin, "POST /queues", v.createQueue)
	v.handle(anyToken, "GET /queues", v.listQueues)
	v.handle(seeing, "GET /queues/{queue_id}", v.getQueue)
	v.handle(admin, "PUT /queues/{queue_id}", v.updateQueue)
	v.handle(admin, "DELETE /queues/{queue_id}", v.deleteQueue)
	v.handle(seeing, "GET /queues/{queue_id}/stats", v.queueStats)
	v.handle(admin, "PUT /queues/{queue_id}/purge", v.purge)
	v.handle(admin, "PUT /queues/{queue_id}/redrive", v.redrive)
	v.handle(posting, "POST /topics/{topic_id}/messages", v.publish)
	v.handle(posting, "POST /queues/{queue_id}/messages", v.publish)
	v.handleLarge(posting, "POST /topics/{topic_id}/messages/batch", v.publishBatch)
	v.handleLarge(posting, "POST /queues/{queue_id}/messages/batch", v.publishBatch)
	v.handle(getting, "GET /queues/{queue_id}/messages", consuming(v.receive))
	v.handle(anyToken, "PUT /messages/{message_id}/ack", v.ack)
	v.handle(anyToken, "PUT /messages/{message_id}/nack", v.nack)
	v.handle(anyToken, "PUT /messages/{message_id}/extend", v.extend)
	v.handle(anyToken, "PUT /messages/ack", v.ackBatch)
	v.handle(anyToken, "PUT /messages/nack", v.nackBatch)
	v.handle(anyToken, "GET /messages/{message_id}", v.getMessage)
	v.handle(getting, "GET /queues/{queue_id}/messages/peek", v.look(s.peek))
	v.handle(getting, "GET /queues/{queue_id}/messages/consumed", v.look(s.consumed))
	v.handle(seeing, "GET /queues/{queue_id}/groups", v.listGroups)
	v.handle(seeing, "GET /queues/{queue_id}/groups/{group}", v.getGroup)
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
	m.observeDatabase(v.healthy)
	scrape := m.handler()
	v.handleAlways(scraping, "GET /metrics", func(r *request) error {
		p := page{header: r.w.Header()}
		scrape.ServeHTTP(&p, r.Request)
		return r.w.page(&p)
	})
	return v
}

// request is what a handler works on.
type request struct {
	*http.Request
	w       *response
	dialect *dialect
	token   *token // nil if the server is open, or the route to everybody
	body    []byte
}

// Context ends when the connection has failed, and not, as that of http.Request,
// when the client has said all that it had to say and only reads now.
func (r *request) Context() context.Context { return r.w.conn.ctx }

// whileHeard returns the context of http.Request: long polls end with it.
func (r *request) whileHeard() context.Context { return r.Request.Context() }

// A handler answers by one of the methods of response, or returns an error for
// handle to answer.
type handler func(r *request) error

// handle registers a handler for a pattern of http.ServeMux, and the right that
// it takes. It is called once the database is ready.
func (s *server) handle(need right, pattern string, h handler) {
	s.handleAs(native, need, pattern, h)
}

// handleAs is handle for a route of another server's API.
func (s *server) handleAs(d *dialect, need right, pattern string, h handler) {
	s.register(d, need, pattern, s.limits.maxBody, s.whenReady(h))
}

// handleLarge is handle for requests with many messages.
func (s *server) handleLarge(need right, pattern string, h handler) {
	s.register(native, need, pattern, max(s.limits.maxBody, maxBatchBody), s.whenReady(h))
}

// handleAlways is handle for what also works without a database.
func (s *server) handleAlways(need right, pattern string, h handler) {
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

func (s *server) register(d *dialect, need right, pattern string, maxBody int64, h handler) {
	s.routes = append(s.routes, route{pattern, d})
	s.serve(d, need, pattern, maxBody, h)
}

// serve is register for what is no route, but a mistake that an API has a text for.
func (s *server) serve(d *dialect, need right, pattern string, maxBody int64, h handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, hr *http.Request) {
		r := &request{Request: hr, w: w.(*response), dialect: d}
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

// withBody calls the handler with the body of the request, as long as there is
// room for it.
func (s *server) withBody(r *request, limit int64, h handler) error {
	if r.ContentLength > limit {
		r.discardBody()
		return errTooLarge
	}
	if err := r.readBody(limit, s.transferTimeout); err != nil {
		return err
	}
	return h(r)
}

// ServeHTTP is around every request, also those that no route matches.
func (s *server) ServeHTTP(hw http.ResponseWriter, hr *http.Request) {
	start := time.Now()
	w := &response{ResponseWriter: hw, controller: http.NewResponseController(hw), conn: s.room.connOf(hr), timeout: s.transferTimeout}
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
			s.log.Debug("request", w.logged("method", hr.Method, "path", hr.URL.Path, "status", w.status, "took", took, "remote", hr.RemoteAddr)...)
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
		s.fail(&request{Request: hr, w: w, dialect: native}, err)
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
	if s.checkHost && !s.hostAllowed(r) {
		return status{http.StatusForbidden, fmt.Sprintf("the host %q is not allowed, see -allowed-hosts", r.Host)}
	}
	if err := crossOrigin.Check(r); err != nil {
		return errOtherSite
	}
	return nil
}

// crossOrigin goes by Sec-Fetch-Site and, where a browser does not send it, by
// Origin. It lets GETs through, see consuming.
var crossOrigin = http.NewCrossOriginProtection()

var errOtherSite = status{http.StatusForbidden, "requests from pages of other sites are not allowed"}

// hostAllowed reports whether a request names the server as it may. One without a
// name is no browser's, and comes from health checks in HTTP/1.0. A dot at the end
// is for allowed names alone: a browser may not take "localhost." for this machine,
// and only where it does it sends Sec-Fetch-Site.
func (s *server) hostAllowed(r *http.Request) bool {
	host := r.Host
	if host == "" {
		return r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == ""
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || slices.Contains(s.allowedHosts, anyHost) || slices.Contains(s.allowedHosts, strings.TrimSuffix(host, ".")) {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// anyHost allows all names.
const anyHost = "*"

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

// readBody reads the body to its end, also where none is expected: only then
// does net/http notice a client that hangs up. It takes room for what has come,
// and not for what the header says will come.
func (r *request) readBody(limit int64, timeout time.Duration) error {
	if r.ContentLength == 0 {
		return nil
	}
	r.w.controller.SetReadDeadline(time.Now().Add(timeout))
	r.w.conn.beginBody()
	defer r.w.conn.endBody()
	body := http.MaxBytesReader(r.w.ResponseWriter, r.Body, limit)
	most := limit
	if r.ContentLength > 0 {
		most = r.ContentLength
	}
	var b []byte
	var err error
	for err == nil {
		if len(b) == cap(b) {
			size := min(max(firstBody, 4*cap(b)), int(most)+1) // one more, to see the end
			if !r.w.conn.take(int64(size - cap(b))) {
				r.w.Header().Set("Connection", "close")
				return errOverloaded
			}
			b = append(make([]byte, 0, size), b...)
		}
		var n int
		n, err = body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
	}
	if err == io.EOF {
		r.body, r.w.bodyRead, err = b, true, nil
	}
	if err == nil {
		r.w.controller.SetReadDeadline(time.Time{})
		return nil
	}
	// Or net/http would wait for the rest before it answers.
	r.w.Header().Set("Connection", "close")
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return errTooLarge
	}
	return status{http.StatusBadRequest, "the body ends before its length, or did not come in time"}
}

// firstBody is the size of the first buffer for a body.
const firstBody = 4 << 10

// unwantedBody is how much net/http reads of a body that no handler wants, after
// which it closes the connection.
const unwantedBody = 256 << 10

// discardRest reads what no handler wanted: net/http would, but after the end of
// the request, and it would look like the header of the next.
func (w *response) discardRest(body io.Reader) {
	if w.bodyRead {
		return
	}
	w.conn.beginBody()
	defer w.conn.endBody()
	io.CopyN(io.Discard, body, unwantedBody)
}

// Bounds of discardBody.
const (
	discardSize    = 64 << 20
	discardTimeout = 5 * time.Second
)

// discardBody reads a body that is not wanted, within bounds, because most
// clients do not look for an answer before they have sent theirs. Those that do
// have asked whether to send it.
func (r *request) discardBody() {
	r.w.Header().Set("Connection", "close")
	if r.Header.Get("Expect") == "" {
		r.w.controller.SetReadDeadline(time.Now().Add(discardTimeout))
		io.CopyN(io.Discard, r.Body, discardSize)
	}
}

var errTooLarge = status{http.StatusRequestEntityTooLarge, "the body is too large, see -max-body"}

// statusClientGone is what nginx calls it; it is for the metrics.
const statusClientGone = 499

// status is an error that is answered with a status and a text.
type status struct {
	code   int
	detail string
}

func (s status) Error() string { return s.detail }

// problem is the body of answers that say what is wrong.
type problem struct {
	Detail any `json:"detail"`
}

// fail answers with an error. It alone knows which status an error is, and it
// logs what is our fault.
func (s *server) fail(r *request, err error) {
	code, detail := s.explain(r, err)
	if code == http.StatusServiceUnavailable {
		r.w.Header().Set("Retry-After", "1")
	}
	if err := r.dialect.problem(r.w, code, detail); err != nil { // no room for it
		s.fail(r, err)
	}
}

// explain returns the status that an error is answered with, and what to say.
func (s *server) explain(r *request, err error) (code int, detail any) {
	var known status
	var mistakes invalid
	var conflicts conflict
	var over errLeaseOver
	switch {
	case errors.As(err, &known):
		return known.code, known.detail
	case r.Context().Err() != nil:
		// Most likely nobody reads it, but saying nothing would be a 200.
		return statusClientGone, "the client has closed the connection"
	case errors.As(err, &mistakes):
		return http.StatusUnprocessableEntity, mistakes
	case errors.As(err, &conflicts):
		return http.StatusConflict, conflicts
	case errors.As(err, &over):
		return http.StatusConflict, over.Error()
	case errors.Is(err, errNotInFlight):
		return http.StatusNotFound, "Message not in flight"
	case errors.Is(err, errTopicNotFound):
		return http.StatusNotFound, "Topic not found"
	case errors.Is(err, errQueueNotFound):
		return http.StatusNotFound, "Queue not found"
	case errors.Is(err, errMessageNotFound):
		return http.StatusNotFound, "Message not found"
	case errors.Is(err, errGroupNotFound):
		return http.StatusNotFound, "Group not found"
	case errors.Is(err, errTopicExists):
		return http.StatusUnprocessableEntity, "This topic already exists"
	case errors.Is(err, errQueueExists):
		return http.StatusUnprocessableEntity, "This queue already exists"
	case errors.Is(err, errTooManyCopies), errors.As(err, new(errNeverDue)):
		return http.StatusUnprocessableEntity, err.Error()
	case atFault(err):
		s.log.Info("PostgreSQL refused what a request brought", r.w.logged("method", r.Method, "path", r.URL.Path, "error", err)...)
		return http.StatusUnprocessableEntity, invalid{{Loc: []any{"body"}, Msg: refusedData(err), Type: "value_error"}}
	case errors.Is(err, errOverloaded):
		return http.StatusServiceUnavailable, "too many requests are waiting, try again later"
	case errors.Is(err, errUnavailable), pq.As(err) != nil:
		s.complain(err)
		return http.StatusServiceUnavailable, "the database is not available, try again later"
	default:
		s.log.Error("internal error", r.w.logged("method", r.Method, "path", r.URL.Path, "error", err)...)
		return http.StatusInternalServerError, "internal error"
	}
}

// refusedData says why PostgreSQL refuses what a request brought. Its own words name
// what is ours.
func refusedData(err error) string {
	switch pq.As(err).Code.Class() {
	case "23":
		return "the database refuses it: it contradicts what is stored"
	case "54":
		return "the database refuses it: it is larger, or nested deeper, than the database takes"
	}
	return "the database refuses it: it cannot represent what the body holds"
}

// complain logs why PostgreSQL does not do what requests want, like that its disk
// is full. What is wrong with the connections themselves has lines of its own.
func (s *server) complain(err error) {
	level := slog.LevelDebug
	if pq.As(err) != nil {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "requests are answered with 503", "error", err)
}

// response is a ResponseWriter that knows what was sent. Until a route has
// matched it keeps the answers of the mux, which are not JSON, to itself.
type response struct {
	http.ResponseWriter
	controller *http.ResponseController
	conn       *conn
	timeout    time.Duration // for the client to take the answer
	trace      trace         // of the request
	requestID  string        // that of the trace, or else one of ours
	matched    bool
	bodyRead   bool // to its end
	refused    int  // the status that the mux would have sent
	doubtful   bool // the client may have closed the connection, so that the header is to be sent alone
	lost       bool // it had, and gets no more than the header
	status     int  // 0 before the header is sent
	sent       int64
}

// logged returns attributes of a line of the log, and those that say which request
// it is about.
func (w *response) logged(attributes ...any) []any {
	attributes = append(attributes, "request_id", w.requestID)
	if w.trace.traceparent != "" {
		attributes = append(attributes, "traceparent", w.trace.traceparent)
	}
	return attributes
}

// WriteHeader gives the client its time to take the answer from now on: how long
// the request waited before is no fault of the client's.
func (w *response) WriteHeader(code int) {
	if !w.matched && (code/100 == 3 || code == http.StatusNotFound || code == http.StatusMethodNotAllowed) {
		w.refused = code
		return
	}
	if w.status == 0 && code >= 200 {
		w.status = code
	}
	w.controller.SetWriteDeadline(time.Now().Add(w.timeout))
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(b []byte) (int, error) {
	if w.refused != 0 && w.status == 0 {
		return len(b), nil
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(b) > smallAnswer {
		w.conn.move(transferring)
	}
	if w.lost {
		return 0, net.ErrClosed
	}
	n, err := w.ResponseWriter.Write(b)
	w.sent += int64(n)
	return n, err
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// empty answers with a status alone.
func (w *response) empty(code int) error {
	w.refused = 0
	w.matched = true
	w.Header().Del("Content-Type")
	w.WriteHeader(code)
	return nil
}

// smallAnswer is what net/http has a buffer for. More than that takes room: where
// there is none, the methods below return errOverloaded and answer nothing.
const smallAnswer = 4 << 10

// json answers with a value.
func (w *response) json(code int, v any) error {
	var b bytes.Buffer
	if err := appendJSON(&b, v); err != nil {
		return err
	}
	return w.own(code, b.Bytes())
}

// appendJSON appends a value, with < and the like as they are.
func appendJSON(b *bytes.Buffer, v any) error {
	encoder := json.NewEncoder(b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the newline
	return nil
}

// own answers with JSON that nobody else holds.
func (w *response) own(code int, b []byte) error {
	if len(b) > smallAnswer && !w.conn.take(int64(len(b))) {
		return errOverloaded
	}
	return w.shared(code, b)
}

// shared answers with JSON that is there anyway. That the client may not take it
// is no error of ours.
func (w *response) shared(code int, b []byte) error {
	w.start(code, len(b))
	w.Write(b)
	return nil
}

// text answers with lines of text.
func (w *response) text(code int, lines string) error {
	if len(lines) > smallAnswer && !w.conn.take(int64(len(lines))) {
		return errOverloaded
	}
	w.refused = 0
	w.matched = true
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(lines)))
	w.WriteHeader(code)
	w.Write([]byte(lines))
	return nil
}

// start sends the header of an answer in JSON.
func (w *response) start(code, size int) {
	w.refused = 0
	w.matched = true
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(code)
	if w.doubtful {
		w.controller.Flush()
		w.lost = w.conn.isReset(resetTime)
	}
}

// Sizes of an answer with messages, in bytes.
const (
	messageSize = 512       // of a message, beside its data and attributes
	wholeAnswer = 1 << 20   // up to here it is made in one piece
	answerPiece = 256 << 10 // else in some of about this size
)

// answerSize returns how much an answer takes that has n messages with so many
// bytes of data and attributes, which are held by somebody else.
func answerSize(n, bytes int) int64 {
	return int64(min(bytes, wholeAnswer) + n*messageSize)
}

// takeFor takes the room for an answer with messages that nobody else holds.
func (w *response) takeFor(messages []message) bool {
	size := len(messages) * messageSize
	for _, m := range messages {
		size += len(m.Data) + len(m.Attributes) + m.trace.size()
	}
	return size <= smallAnswer || w.conn.take(int64(size))
}

// messages answers with {"data": [message…]}. The caller has taken the room.
func (w *response) messages(code int, messages []message) error {
	size := 16
	for i := range messages {
		size += len(messages[i].Data) + len(messages[i].Attributes) + len(messages[i].QueueID) + messages[i].trace.size() + 320
	}
	if size > wholeAnswer {
		w.pieces(code, messages)
		return nil
	}
	b := append(make([]byte, 0, size), `{"data":[`...)
	for i := range messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = messages[i].appendJSON(b)
	}
	return w.shared(code, append(b, "]}"...))
}

// pieces is messages for an answer that is too large to be held beside what it
// is made of: copies of a message for many queues share their data.
func (w *response) pieces(code int, messages []message) {
	var b []byte
	size := len(`{"data":[]}`) + len(messages) - 1
	for i := range messages {
		b = messages[i].appendJSON(b[:0])
		size += len(b)
	}
	w.start(code, size)
	b = append(b[:0], `{"data":[`...)
	for i := range messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = messages[i].appendJSON(b)
		if len(b) < answerPiece {
			continue
		}
		if _, err := w.Write(b); err != nil {
			return
		}
		b = b[:0]
	}
	w.Write(append(b, "]}"...))
}

// page is an answer in the making, for handlers that are not ours: nothing waits
// for the client before it is complete.
type page struct {
	header http.Header
	code   int // 0 is 200
	bytes.Buffer
}

func (p *page) Header() http.Header  { return p.header }
func (p *page) WriteHeader(code int) { p.code = code }

// page answers with a page.
func (w *response) page(p *page) error {
	if p.code == http.StatusServiceUnavailable || !w.conn.take(int64(p.Cap())) {
		p.header.Del("Content-Encoding")
		return errOverloaded
	}
	p.header.Set("Content-Length", strconv.Itoa(p.Len()))
	w.WriteHeader(cmp.Or(p.code, http.StatusOK))
	w.Write(p.Bytes())
	return nil
}

// listed is an item of a list. Its size is about how many bytes it takes, here and as
// JSON.
type listed interface{ size() int }

func (t topic) size() int { return 64 + len(t.ID) }
func (q queue) size() int { return queueSize/2 + len(q.MessageFilters) }
func (g group) size() int { return 256 + len(g.QueueID) + len(g.ID) }

// list responds with {"data": [item…]}, with as many of the items as fit into
// listSize, but one in any case.
func list[T listed](w *response, items []T) error {
	return writeList(w, items, func(int) any { return struct{}{} })
}

// writeList is list with the members of one more object, which may depend on how many
// of the items are listed.
func writeList[T listed](w *response, items []T, rest func(n int) any) error {
	size := len(`{"data":[]}`)
	for _, item := range items {
		size += item.size() + 1
	}
	if size > smallAnswer && !w.conn.take(2*int64(size)) {
		return errOverloaded
	}
	var b bytes.Buffer
	b.Grow(size)
	b.WriteString(`{"data":[`)
	n := 0
	for i, item := range items {
		before := b.Len()
		if i > 0 {
			b.WriteByte(',')
		}
		if err := appendJSON(&b, item); err != nil {
			return err
		}
		if i > 0 && b.Len() > listSize {
			b.Truncate(before)
			break
		}
		n++
	}
	b.WriteByte(']')
	end := b.Len()
	if err := appendJSON(&b, rest(n)); err != nil {
		return err
	}
	if b.Bytes()[end+1] == '}' {
		b.Bytes()[end] = '}'
		b.Truncate(end + 1)
	} else {
		b.Bytes()[end] = ','
	}
	if b.Len() > max(size, smallAnswer) {
		w.conn.add(int64(b.Len() - size))
	}
	return w.shared(http.StatusOK, b.Bytes())
}

func (s *server) createTopic(r *request) error {
	f := readBody(r.body)
	id := f.id("id", true)
	if err := f.err(); err != nil {
		return err
	}
	t, err := s.store.createTopic(r.Context(), *id)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusCreated, t)
}

func (s *server) listTopics(r *request) error {
	f := readQuery(r.URL.RawQuery)
	offset, limit := f.page(&s.limits)
	if err := f.err(); err != nil {
		return err
	}
	all, err := s.store.topics(r.Context(), r.visible(), offset, limit)
	if err != nil {
		return err
	}
	return list(r.w, all)
}

func (s *server) getTopic(r *request) error {
	id, err := r.topicID()
	if err != nil {
		return err
	}
	t, err := s.store.topic(r.Context(), id)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusOK, t)
}

func (s *server) deleteTopic(r *request) error {
	id, err := r.topicID()
	if err != nil {
		return err
	}
	if err := s.store.deleteTopic(r.Context(), id); err != nil {
		return err
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) createQueue(r *request) error {
	f := readBody(r.body)
	id := f.id("id", true)
	settings := f.queueSettings(&s.limits)
	if err := f.err(); err != nil {
		return err
	}
	q, err := s.store.createQueue(r.Context(), *id, settings)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusCreated, q)
}

func (s *server) listQueues(r *request) error {
	f := readQuery(r.URL.RawQuery)
	offset, limit := f.page(&s.limits)
	if err := f.err(); err != nil {
		return err
	}
	all, _, err := s.store.queues(r.Context(), r.visible(), offset, limit)
	if err != nil {
		return err
	}
	return list(r.w, all)
}

func (s *server) getQueue(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	q, err := s.store.queue(r.Context(), id)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusOK, q)
}

func (s *server) updateQueue(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	f := readBody(r.body)
	settings := f.queueSettings(&s.limits)
	if err := f.err(); err != nil {
		return err
	}
	q, err := s.store.updateQueue(r.Context(), id, settings)
	if err != nil {
		return err
	}
	// Messages that were exhausted may not be any more, nor groups limited.
	s.engine.announce(id, time.Time{})
	return r.w.json(http.StatusOK, q)
}

func (s *server) deleteQueue(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	if err := s.store.deleteQueue(r.Context(), id); err != nil {
		return err
	}
	s.engine.announce(id, time.Time{}) // lets its receivers go
	s.metrics.forget(id)
	return r.w.empty(http.StatusNoContent)
}

func (s *server) queueStats(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	f := readQuery(r.URL.RawQuery)
	detail := f.boolean("detail")
	if err := f.err(); err != nil {
		return err
	}
	if detail {
		v, err := s.store.details(r.Context(), id)
		if err != nil {
			return err
		}
		return r.w.json(http.StatusOK, v)
	}
	v, err := s.store.stats(r.Context(), id)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusOK, v)
}

func (s *server) purge(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	err = s.store.purge(r.Context(), id, func(n int) {
		s.metrics.add(messagesPurged, id, n)
	})
	if err != nil {
		return err
	}
	s.engine.announce(id, time.Time{}) // what is published meanwhile may have waited for what is gone
	return r.w.empty(http.StatusNoContent)
}

func (s *server) redrive(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	f := readBody(r.body)
	destination := f.text("destination_queue_id", true)
	limit := math.MaxInt
	if n := f.integer("limit", bounds{1, math.MaxInt}, false); n != nil {
		limit = *n
	}
	if err := f.err(); err != nil {
		return err
	}
	if _, err := pathID(*destination, errQueueNotFound); err != nil {
		return err
	}
	err = s.store.redrive(r.Context(), id, *destination, limit, func(n int) {
		s.metrics.add(messagesRedriven, id, n)
		s.engine.announce(*destination, time.Time{})
	})
	if err != nil {
		return err
	}
	return r.w.empty(http.StatusNoContent)
}

// publication returns an empty publication to the topic or queue in the path.
func (r *request) publication() (p *publication, err error) {
	p = &publication{trace: r.w.trace}
	if r.PathValue("topic_id") != "" {
		p.topicID, err = r.topicID()
	} else {
		p.queueID, err = r.queueID()
	}
	return p, err
}

func (s *server) publish(r *request) error {
	p, err := r.publication()
	if err != nil {
		return err
	}
	f := readBody(r.body)
	p.messages = []draft{f.draft(&s.limits)}
	return s.finishPublish(r, f, p, func(int) []any { return []any{"body"} })
}

func (s *server) publishBatch(r *request) error {
	p, err := r.publication()
	if err != nil {
		return err
	}
	f := readBody(r.body)
	f.objects("messages", maxBatch, func(item *form) {
		p.messages = append(p.messages, item.draft(&s.limits))
	})
	return s.finishPublish(r, f, p, func(i int) []any { return []any{"body", "messages", i} })
}

// attributesCost is how many times their size attributes take for filters to look
// at, if they are short.
const attributesCost = 16

// finishPublish publishes what a form had; at is where a message stands in it.
func (s *server) finishPublish(r *request, f *form, p *publication, at func(i int) []any) error {
	q := readQuery(r.URL.RawQuery)
	shows := q.shown()
	if err := cmp.Or(f.err(), q.err()); err != nil {
		return err
	}
	size := 0
	for _, m := range p.messages {
		size += len(m.data) + len(m.attributes)*(1+attributesCost)
	}
	taken := answerSize(len(p.messages), size)
	if !r.w.conn.take(taken) {
		return errOverloaded
	}
	stored, err := s.engine.publish(r.Context(), p)
	var never errNeverDue
	if errors.As(err, &never) {
		return invalid{{Loc: append(at(never.message), "delay_seconds"), Msg: never.Error(), Type: "value_error.number.not_lt"}}
	}
	if err != nil {
		return err
	}
	size = 0
	for _, m := range stored {
		size += len(m.Data) + len(m.Attributes) + m.trace.size()
	}
	r.w.conn.add(answerSize(len(stored), size) - taken) // they are stored: no answer would be worse
	show(stored, shows)
	return r.w.messages(http.StatusCreated, stored)
}

// show makes messages show what was asked for.
func show(messages []message, asked shown) {
	for i := range messages {
		messages[i].shows = asked
	}
}

func (s *server) receive(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	f := readQuery(r.URL.RawQuery)
	limit := min(f.parameter("limit", 10, bounds{0, math.MaxInt}), s.limits.maxLimit)
	wait := time.Duration(f.waitSeconds(&s.limits) * float64(time.Second))
	shows := f.shown()
	if err := f.err(); err != nil {
		return err
	}
	if limit == 0 {
		if _, err := s.store.queue(r.Context(), id); err != nil {
			return err
		}
		return r.w.messages(http.StatusOK, nil)
	}
	v, err := s.engine.receive(r.whileHeard(), id, limit, wait)
	if err != nil {
		return err
	}
	show(v.messages, shows)
	return s.deliver(r, id, v, func(messages []message) error {
		return r.w.messages(http.StatusOK, messages)
	})
}

// resetTime is how long the reset of a connection may take to come: longer than
// the round trips of most networks.
const resetTime = 200 * time.Millisecond

// deliver answers with what was received, which may be nothing. What the client
// does not get is given back.
func (s *server) deliver(r *request, queueID string, v delivery, answer func(messages []message) error) error {
	handed := false
	defer func() {
		if !handed || r.w.status == 0 || r.w.lost { // no room for the answer, or a panic
			s.engine.giveBack(queueID, v.messages)
		}
	}()
	if len(v.messages) == 0 {
		return answer(nil)
	}
	// Before the first byte is written a receiver can still be gone, or be so
	// late, because the process was stopped, that its lease has ended.
	ended, failed := hungUp(r.Request)
	if failed || time.Now().After(v.goodUntil) {
		return answer(nil)
	}
	if !r.w.takeFor(v.messages) {
		return errOverloaded
	}
	count := func() {
		s.metrics.delivery(queueID, v.messages)
		if v.messages[0].consumed {
			s.metrics.add(messagesAcked, queueID, len(v.messages))
		}
	}
	handed = true
	if !ended {
		count()
		return answer(v.messages)
	}
	r.w.doubtful = true
	err := answer(v.messages)
	if !r.w.lost {
		count()
	}
	return err
}

func (s *server) ack(r *request) error {
	id, err := r.messageID()
	if err != nil {
		return err
	}
	f := readQuery(r.URL.RawQuery)
	item := settlement{id: id, leasedUntil: f.guard("scheduled_at")}
	if err := f.err(); err != nil {
		return err
	}
	if err := s.settle(r, s.engine.ack, item); err != nil {
		return err
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) nack(r *request) error {
	id, err := r.messageID()
	if err != nil {
		return err
	}
	f := readQuery(r.URL.RawQuery)
	item := settlement{id: id, leasedUntil: f.guard("scheduled_at")}
	b := optionalBody(r.body)
	item.after, item.uncounted = b.nack()
	if err := cmp.Or(f.err(), b.err()); err != nil {
		return err
	}
	if err := s.settle(r, s.engine.nack, item); err != nil {
		return err
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) extend(r *request) error {
	id, err := r.messageID()
	if err != nil {
		return err
	}
	f := readQuery(r.URL.RawQuery)
	item := settlement{id: id, leasedUntil: f.guard("scheduled_at")}
	shows := f.shown()
	b := readBody(r.body)
	item.after = b.seconds("ack_deadline_seconds", bounds{1, int(maxLease / time.Second)}, true)
	if err := cmp.Or(f.err(), b.err()); err != nil {
		return err
	}
	var m message
	err = s.settle(r, func(ctx context.Context, items ...settlement) (err error) {
		m, err = s.engine.extend(ctx, items[0])
		return err
	}, item)
	if err != nil {
		return err
	}
	m.shows = shows
	return r.w.own(http.StatusOK, m.appendJSON(nil))
}

// settle calls the engine for those of the messages that the request may settle;
// the others are unknown to it.
func (s *server) settle(r *request, do func(context.Context, ...settlement) error, items ...settlement) error {
	if err := s.hideOthers(r, items); err != nil {
		return err
	}
	return do(r.Context(), items...)
}

func (s *server) ackBatch(r *request) error {
	f := readBody(r.body)
	items := f.settlements()
	if err := f.err(); err != nil {
		return err
	}
	if err := s.settle(r, s.engine.ack, items...); err != nil {
		return batchConflicts(err)
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) nackBatch(r *request) error {
	f := readBody(r.body)
	items := f.settlements()
	after, uncounted := f.nack()
	if err := f.err(); err != nil {
		return err
	}
	for i := range items {
		items[i].after, items[i].uncounted = after, uncounted
	}
	if err := s.settle(r, s.engine.nack, items...); err != nil {
		return batchConflicts(err)
	}
	return r.w.empty(http.StatusNoContent)
}

// batchConflicts says of errLeaseOver which messages of a body it is about.
func batchConflicts(err error) error {
	var over errLeaseOver
	if !errors.As(err, &over) {
		return err
	}
	var mistakes invalid
	for _, i := range over.items {
		mistakes = append(mistakes, mistake{Loc: []any{"body", "messages", i, "scheduled_at"}, Msg: over.Error(), Type: "value_error.lease"})
	}
	return conflict(mistakes)
}

// conflict is a list of mistakes that is answered with 409.
type conflict invalid

func (c conflict) Error() string { return invalid(c).Error() }

func (s *server) getMessage(r *request) error {
	id, err := r.messageID()
	if err != nil {
		return err
	}
	m, err := s.store.message(r.Context(), id)
	if err == nil && !r.mayGet(m.QueueID) {
		err = errMessageNotFound
	}
	if err != nil {
		return err
	}
	return r.w.own(http.StatusOK, m.appendJSON(nil))
}

// maxPeek is the most messages that a peek shows.
const maxPeek = 300

// look answers with a page of messages, as a method of the store finds it.
func (s *server) look(page func(ctx context.Context, queueID string, offset, limit int) ([]message, error)) handler {
	return func(r *request) error {
		id, err := r.queueID()
		if err != nil {
			return err
		}
		f := readQuery(r.URL.RawQuery)
		offset := f.parameter("offset", 0, bounds{0, math.MaxInt})
		limit := f.parameter("limit", 25, bounds{0, maxPeek})
		if err := f.err(); err != nil {
			return err
		}
		all, err := page(r.Context(), id, offset, limit)
		if err != nil {
			return err
		}
		if !r.w.takeFor(all) {
			return errOverloaded
		}
		return r.w.messages(http.StatusOK, all)
	}
}

func (s *server) listGroups(r *request) error {
	id, err := r.queueID()
	if err != nil {
		return err
	}
	f := readQuery(r.URL.RawQuery)
	offset, limit := f.page(&s.limits)
	if err := f.err(); err != nil {
		return err
	}
	all, err := s.store.groups(r.Context(), id, offset, limit)
	if err != nil {
		return err
	}
	return list(r.w, all)
}

func (s *server) getGroup(r *request) error {
	queueID, id, err := r.groupID()
	if err != nil {
		return err
	}
	g, err := s.store.group(r.Context(), queueID, id)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusOK, g)
}

func (s *server) putGroup(r *request) error {
	queueID, id, err := r.groupID()
	if err != nil {
		return err
	}
	if msg := pathMistake(id); msg != "" {
		return invalid{{Loc: []any{"path", "group"}, Msg: msg, Type: "value_error"}}
	}
	f := readBody(r.body)
	if !f.broken && !f.has("delivery_interval_ms") {
		f.wrong("field required", "value_error.missing", "delivery_interval_ms")
	}
	interval := f.integer("delivery_interval_ms", bounds{0, maxInterval}, false)
	if err := f.err(); err != nil {
		return err
	}
	g, err := s.store.setInterval(r.Context(), queueID, id, interval, new(interval != nil))
	if err != nil {
		return err
	}
	s.engine.announce(queueID, time.Time{})
	if g == nil {
		return r.w.empty(http.StatusNoContent)
	}
	return r.w.json(http.StatusOK, g)
}

func (s *server) deleteGroup(r *request) error {
	queueID, id, err := r.groupID()
	if err != nil {
		return err
	}
	err = s.store.deleteGroup(r.Context(), queueID, id, func(n int) {
		s.metrics.add(messagesPurged, queueID, n)
	})
	if err != nil {
		return err
	}
	s.engine.announce(queueID, time.Time{})
	return r.w.empty(http.StatusNoContent)
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
		v.Warnings = append(v.Warnings, setting+" is off: PostgreSQL can lose committed messages in a crash")
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

// topicID returns the id in the path. One that no topic can have is not found.
func (r *request) topicID() (string, error) {
	return pathID(r.PathValue("topic_id"), errTopicNotFound)
}

func (r *request) queueID() (string, error) {
	return pathID(r.PathValue("queue_id"), errQueueNotFound)
}

// groupID returns the queue and the group in the path.
func (r *request) groupID() (queueID, id string, err error) {
	queueID, err = r.queueID()
	id = r.PathValue("group")
	if msg, _ := groupMistake(id); msg != "" && err == nil {
		err = errGroupNotFound
	}
	return queueID, id, err
}

func pathID(id string, missing error) (string, error) {
	if !validID(id) {
		return "", missing
	}
	return id, nil
}

func (r *request) messageID() (string, error) {
	id, ok := parseID(r.PathValue("message_id"))
	if !ok {
		return "", invalid{{Loc: []any{"path", "message_id"}, Msg: "value is not a valid uuid", Type: "type_error.uuid"}}
	}
	return id, nil
}
