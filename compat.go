package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// apiStyle is the native API or that of another server. They differ in the bodies of
// their errors.
type apiStyle struct {
	// problem returns the body of the response to an error, or a response with another
	// status. The detail comes from failures: a string, a list of mistakes, or the whole body.
	problem func(r *request, err error, status int, detail any) any
}

var native = &apiStyle{func(_ *request, _ error, _ int, detail any) any {
	if body, ok := detail.(success); ok {
		return body
	}
	return problem{detail}
}}

// errorText returns the detail of an error as one line of text.
func errorText(detail any) string {
	if mistakes, ok := detail.(invalid); ok {
		detail = mistakes.Error()
	}
	return fmt.Sprint(detail)
}

// noExpirySeconds is the retention of messages that do not expire, in seconds: 68 years.
const noExpirySeconds = math.MaxInt32

// implicitQueue returns the settings of queues that are created by their first use, as
// on other servers.
func (l *limits) implicitQueue() queueSettings {
	return queueSettings{AckDeadlineSeconds: l.defaultAckDeadline, MessageRetentionSeconds: noExpirySeconds}
}

// publishTo publishes one message to a queue, which it creates if it does not exist.
func (s *server) publishTo(r *request, queueID string, m draft) (message, error) {
	if !r.mayPost(queueID) {
		return message{}, forbidden(canPost)
	}
	publish := func() ([]message, error) {
		return s.engine.publish(r.Context(), &publication{queueID: queueID, trace: r.w.trace, messages: []draft{m}})
	}
	stored, err := publish()
	if errors.Is(err, errQueueNotFound) {
		if err = s.createImplicitQueue(r, queueID); err == nil {
			stored, err = publish()
		}
	}
	if err != nil {
		return message{}, err
	}
	return stored[0], nil
}

// receiveFunc is engine.receive or engine.consume.
type receiveFunc func(ctx context.Context, queueID string, limit int, wait time.Duration) (delivery, error)

// creating returns take for an API that creates queues at their first use: if the queue
// does not exist, it is created for a client that waits for a message and has the
// permission to publish to it.
func (s *server) creating(r *request, take receiveFunc) receiveFunc {
	return func(ctx context.Context, queueID string, limit int, wait time.Duration) (delivery, error) {
		v, err := take(ctx, queueID, limit, wait)
		if errors.Is(err, errQueueNotFound) && wait > 0 && r.mayPost(queueID) {
			if err = s.createImplicitQueue(r, queueID); err == nil {
				v, err = take(ctx, queueID, limit, wait)
			}
		}
		return v, err
	}
}

// receiveOne returns the next message of a queue, nil if there is none.
func (s *server) receiveOne(r *request, queueID string, take receiveFunc) (*message, error) {
	q := parseQuery(r.URL.RawQuery)
	wait := q.waitSeconds(&s.limits)
	if err := q.err(); err != nil {
		return nil, err
	}
	v, err := take(r.whileHeard(), queueID, 1, wait)
	if err != nil {
		return nil, err
	}
	if messages := s.deliver(r, queueID, v); len(messages) > 0 {
		return &messages[0], nil
	}
	return nil, nil
}

// createImplicitQueue creates a queue unless it exists.
func (s *server) createImplicitQueue(r *request, queueID string) error {
	_, err := s.store.createQueue(r.Context(), queueID, s.limits.implicitQueue())
	if errors.Is(err, errQueueExists) {
		return nil
	}
	return s.logged(r, err, "queue created", "queue", queueID, "by", "first use")
}
