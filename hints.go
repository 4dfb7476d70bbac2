package main

import (
	"errors"
	"log/slog"
	"net/http"
	"sync"
)

// hints are log lines about what is allowed and probably a mistake, such as a field that the
// server does not know. Each is logged once for each kind and place.
type hints struct {
	mu    sync.Mutex
	given map[hint]struct{}
}

// hint is a kind of mistake and the route, topic or queue where it was found.
type hint struct{ kind, place string }

// maxHints is the maximum number of hints that a server gives.
const maxHints = 1000

// give logs a hint, unless it was given before or there were too many.
func (h *hints) give(log *slog.Logger, kind, place, event string, attributes ...any) {
	h.mu.Lock()
	_, known := h.given[hint{kind, place}]
	known = known || len(h.given) >= maxHints
	if !known {
		if h.given == nil {
			h.given = make(map[hint]struct{})
		}
		h.given[hint{kind, place}] = struct{}{}
	}
	h.mu.Unlock()
	if !known {
		log.Info(event, attributes...)
	}
}

// hintUnknown gives a hint about the first unknown field of a request.
func (s *server) hintUnknown(r *request, route string) {
	if r.unknown.found == 0 || r.unknown.strict {
		return
	}
	remedy := "the header Prefer: handling=strict refuses unknown fields"
	if r.unknown.similar != "" {
		remedy = "did you mean " + r.unknown.similar + "? " + remedy
	}
	name := cutText(r.unknown.first, maxNameLength)
	s.hints.give(s.log, "unknown field", route+" "+name, "unknown field ignored", r.w.logged("route", route, "field", name, "remedy", remedy)...)
}

// hintMethod gives a hint about a GET at a path that has only a POST, as curl sends it without
// -d.
func (s *server) hintMethod(r *request) {
	if r.Method != http.MethodGet {
		return
	}
	post := r.Request.WithContext(r.Request.Context()) // a copy
	post.Method = http.MethodPost
	if _, route := s.mux.Handler(post); route != "" {
		s.hints.give(s.log, "method", route, "GET of a path that needs a POST", r.w.logged("route", route, "remedy", "send a body, as curl does with -d")...)
	}
}

// hintDiscarded gives a hint about a publication to a topic of which no copy was stored.
func (s *server) hintDiscarded(r *request, p *publication) {
	if p.topicID == "" || len(p.stored) > 0 {
		return
	}
	kind, event, remedy := "no match", "message discarded, no filter matches it", "check message_filters of the topic's queues and the attributes of the message"
	if p.address.to != nil && len(p.address.to.queues) == 0 {
		kind, event, remedy = "no queue", "message discarded, no queue subscribes to the topic", "create a queue with this topic_id, or set it at a queue"
	}
	s.hints.give(s.log, kind, p.topicID, event, r.w.logged("topic", p.topicID, "remedy", remedy)...)
}

// hintMisnamed gives a hint about a publish to a topic that does not exist if a queue has its
// name, and about the reverse.
func (s *server) hintMisnamed(r *request, err error) {
	switch {
	case errors.Is(err, errTopicNotFound):
		if _, err := s.store.recentQueue(r.Context(), r.topicID); err == nil {
			s.hints.give(s.log, "topic is a queue", r.topicID, "publish to a topic that does not exist, but a queue has its name",
				r.w.logged("topic", r.topicID, "remedy", "publish to /queues/"+r.topicID+"/messages, or create a topic and set topic_id of the queue")...)
		}
	case errors.Is(err, errQueueNotFound):
		if _, err := s.store.topic(r.Context(), r.queueID); err == nil {
			s.hints.give(s.log, "queue is a topic", r.queueID, "publish to a queue that does not exist, but a topic has its name",
				r.w.logged("queue", r.queueID, "remedy", "publish to /topics/"+r.queueID+"/messages")...)
		}
	}
}

// hintUnacked gives a hint about a queue whose messages are delivered again although they
// were not nacked, because the ack deadline has passed.
func (s *server) hintUnacked(r *request, queueID string) {
	totals := s.metrics.totalsOf(queueID)
	if totals == nil || totals[messagesRedelivered].Load() <= totals[messagesNacked].Load() {
		return
	}
	kind, remedy := "never acked", "ack each message after it was processed"
	if totals[messagesAcked].Load() > 0 {
		kind, remedy = "acked late", "raise ack_deadline_seconds or extend leases, if the work takes longer"
	}
	s.hints.give(s.log, kind, queueID, "message delivered again, its ack deadline had passed", r.w.logged("queue", queueID, "remedy", remedy)...)
}

// hintConsumed gives a hint about a queue whose messages are consumed by another server's API:
// maybe its path was taken for that of a receive.
func (s *server) hintConsumed(r *request, queueID, route string) {
	s.hints.give(s.log, "consumed", queueID, "message consumed, it is deleted without an ack",
		r.w.logged("queue", queueID, "route", route, "remedy", "GET /queues/"+queueID+"/messages leases messages until they are acked")...)
}
