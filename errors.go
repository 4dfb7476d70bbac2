package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/lib/pq"
)

// statusClientClosed is the status in metrics of requests whose client has
// disconnected; nginx uses the same.
const statusClientClosed = 499

// statusError is an error with its own status and detail for the response.
type statusError struct {
	status int
	detail string
}

func (e statusError) Error() string { return e.detail }

// problem is the body of error responses.
type problem struct {
	Detail any `json:"detail"`
}

// failures maps errors to the status and the detail of their responses. The first entry
// that matches counts. The last entry matches all other errors, which are faults of the
// server.
var failures = []struct {
	status int
	match  func(error) (detail any, ok bool)
	log    func(s *server, r *request, err error) // nil if nothing is logged
}{
	{http.StatusUnprocessableEntity, as(func(mistakes invalid) any { return mistakes }), nil},
	{http.StatusConflict, as(func(mistakes conflict) any { return mistakes }), nil},
	{http.StatusConflict, as(func(err errLeaseEnded) any { return err.Error() }), nil},
	{http.StatusUnprocessableEntity, as(func(err errNeverDue) any { return err.Error() }), nil},
	{http.StatusTooManyRequests, as(func(err errQueueFull) any { return err.Error() }), nil},
	{http.StatusUnprocessableEntity, is(errTooManyCopies, errTooManyCopies.Error()), nil},
	{http.StatusUnprocessableEntity, is(errTopicExists, "This topic already exists"), nil},
	{http.StatusUnprocessableEntity, is(errQueueExists, "This queue already exists"), nil},
	{http.StatusNotFound, is(errNotInFlight, "Message not in flight"), nil},
	{http.StatusNotFound, is(errTopicNotFound, "Topic not found"), nil},
	{http.StatusNotFound, is(errQueueNotFound, "Queue not found"), nil},
	{http.StatusNotFound, is(errMessageNotFound, "Message not found"), nil},
	{http.StatusNotFound, is(errGroupNotFound, "Group not found"), nil},
	{http.StatusNotFound, is(errNoRoute, "Not Found"), nil},
	{http.StatusMethodNotAllowed, is(errMethod, "Method Not Allowed"), nil},
	{http.StatusServiceUnavailable, is(errNotReady, success{false}), nil},
	{http.StatusInternalServerError, is(errUnhealthy, success{false}), nil}, // as fastqueue does
	{http.StatusUnprocessableEntity, refusedData, (*server).logRefused},
	{http.StatusServiceUnavailable, is(errHeld, errHeld.Error()+"; try again later"), nil},
	{http.StatusServiceUnavailable, is(errMoving, errMoving.Error()+"; try again later"), nil},
	{http.StatusServiceUnavailable, is(errOverloaded, "too many requests are waiting; try again later"), nil},
	{http.StatusServiceUnavailable, is(errNodeUnavailable, "the database server of the queue is unavailable; try again later"), (*server).logUnavailable},
	{http.StatusServiceUnavailable, is(errNeedsAllNodes, "topics and queues cannot be changed while a database server is unavailable; try again later"), (*server).logUnavailable},
	{http.StatusServiceUnavailable, isUnavailable, (*server).logUnavailable},
	{http.StatusInternalServerError, is(errPanic, "internal error"), nil},
	{http.StatusInternalServerError, is(nil, "internal error"), (*server).logInternal},
}

var (
	errNoRoute = errors.New("no route matches")
	errMethod  = errors.New("no route has this method")
	errPanic   = errors.New("a handler panicked, which was logged")
)

// is matches a sentinel, and nil any error.
func is(target error, detail any) func(error) (any, bool) {
	return func(err error) (any, bool) { return detail, target == nil || errors.Is(err, target) }
}

func as[T error](detail func(T) any) func(error) (any, bool) {
	return func(err error) (any, bool) {
		found, ok := errors.AsType[T](err)
		if !ok {
			return nil, false
		}
		return detail(found), true
	}
}

// refusedData matches errors of PostgreSQL about data of the request. PostgreSQL's own
// message may name tables and constraints, so the client gets another one.
func refusedData(err error) (any, bool) {
	if !atFault(err) {
		return nil, false
	}
	msg := "database rejected the value: it cannot be stored"
	switch pq.As(err).Code.Class() {
	case "23":
		msg = "database rejected the value: it conflicts with stored data"
	case "54":
		msg = "database rejected the value: it is too large or nested too deeply"
	}
	return invalid{{Loc: []any{"body"}, Msg: msg, Type: "value_error"}}, true
}

// isUnavailable matches all other errors of PostgreSQL.
func isUnavailable(err error) (any, bool) {
	return "database unavailable; try again later", errors.Is(err, errUnavailable) || pq.As(err) != nil
}

// fail responds with an error.
func (s *server) fail(r *request, err error) {
	s.releaseUnsent(r)
	status, detail := s.explain(r, err)
	header := r.w.Header()
	header.Del("Content-Encoding")
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		header.Set("Retry-After", "1")
	}
	body := r.api.problem(r, err, status, detail)
	if _, has := body.(withStatus); !has {
		body = withStatus{status, body}
	}
	if err := s.send(r, body); err != nil { // too large
		s.fail(r, err)
	}
}

// explain returns the status and the detail of the response to an error.
func (s *server) explain(r *request, err error) (status int, detail any) {
	if known, ok := errors.AsType[statusError](err); ok {
		return known.status, known.detail
	}
	if known, ok := errors.AsType[sqsError](err); ok {
		return known.status, known.text
	}
	if r.Context().Err() != nil {
		// Usually no client reads this, but net/http would send 200 without it.
		return statusClientClosed, "the client closed the connection"
	}
	for _, v := range failures {
		if detail, ok := v.match(err); ok {
			if v.log != nil {
				v.log(s, r, err)
			}
			return v.status, detail
		}
	}
	panic("unreachable: the last entry matches any error")
}

func (s *server) logRefused(r *request, err error) {
	s.log.Info("PostgreSQL rejected request data", r.w.logged("method", r.Method, "path", r.URL.Path, "error", err)...)
}

// logUnavailable logs why PostgreSQL cannot serve requests, for example because its disk
// is full. Errors of the connections are logged where they occur.
func (s *server) logUnavailable(_ *request, err error) {
	level := slog.LevelDebug
	if pq.As(err) != nil {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "database error, responding with 503", "error", err)
}

func (s *server) logInternal(r *request, err error) {
	s.log.Error("internal error", r.w.logged("method", r.Method, "path", r.URL.Path, "error", err)...)
}
