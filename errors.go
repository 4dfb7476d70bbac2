package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/lib/pq"
)

// statusClientClosed is what nginx calls it; it is for the metrics.
const statusClientClosed = 499

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
	if err := r.api.problem(r.w, code, detail); err != nil { // no room for it
		s.fail(r, err)
	}
}

// explain returns the status that an error is answered with, and what to say.
func (s *server) explain(r *request, err error) (code int, detail any) {
	var known status
	var mistakes invalid
	var conflicts conflict
	var over errLeaseEnded
	switch {
	case errors.As(err, &known):
		return known.code, known.detail
	case r.Context().Err() != nil:
		// Most likely nobody reads it, but saying nothing would be a 200.
		return statusClientClosed, "the client closed the connection"
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
		s.log.Info("PostgreSQL rejected request data", r.w.logged("method", r.Method, "path", r.URL.Path, "error", err)...)
		return http.StatusUnprocessableEntity, invalid{{Loc: []any{"body"}, Msg: refusedData(err), Type: "value_error"}}
	case errors.Is(err, errOverloaded):
		return http.StatusServiceUnavailable, "too many requests are waiting; try again later"
	case errors.Is(err, errUnavailable), pq.As(err) != nil:
		s.logUnavailable(err)
		return http.StatusServiceUnavailable, "database unavailable; try again later"
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
		return "database rejected the value: it conflicts with stored data"
	case "54":
		return "database rejected the value: it is too large or nested too deeply"
	}
	return "database rejected the value: it cannot be stored"
}

// logUnavailable logs why PostgreSQL does not do what requests want, like that its disk
// is full. What is wrong with the connections themselves has lines of its own.
func (s *server) logUnavailable(err error) {
	level := slog.LevelDebug
	if pq.As(err) != nil {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "database error, responding with 503", "error", err)
}
