package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// compatAPI is an API of this server: the native one, or another server's.
type compatAPI struct {
	// problem answers with an error; detail is a string, or a list of mistakes. It
	// returns errOverloaded, and has answered nothing, if there is no room for that.
	problem func(w *response, code int, detail any) error
}

var native = &compatAPI{func(w *response, code int, detail any) error { return w.json(code, problem{detail}) }}

// errorText says in one line what the native API may say in a list.
func errorText(detail any) string {
	if mistakes, ok := detail.(invalid); ok {
		detail = mistakes.Error()
	}
	return fmt.Sprint(detail)
}

// noExpirySeconds is the retention of messages that do not expire, in seconds: 68 years.
const noExpirySeconds = math.MaxInt32

// implicitQueue are the settings of queues that nobody has made: other servers' users
// publish to a name, and it is there.
func (l *limits) implicitQueue() queueSettings {
	return queueSettings{AckDeadlineSeconds: l.defaultAckDeadline, MessageRetentionSeconds: noExpirySeconds}
}

// publishTo publishes one message to a queue, which is made if it is not there.
func (s *server) publishTo(r *request, queueID string, m draft) (message, error) {
	if !r.mayPost(queueID) {
		return message{}, forbidden(canPost)
	}
	if !r.w.conn.take(answerSize(1, len(m.data))) {
		return message{}, errOverloaded
	}
	publish := func() ([]message, error) {
		return s.engine.publish(r.Context(), &publication{queueID: queueID, trace: r.w.trace, messages: []draft{m}})
	}
	stored, err := publish()
	if errors.Is(err, errQueueNotFound) {
		if err = s.createImplicitQueue(r.Context(), queueID); err == nil {
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

// receiveOne takes the next message of a queue, and answers with it or, if there is
// none, with nothing. A queue that is not there is made by those who wait for it, if
// they may publish to it.
func (s *server) receiveOne(r *request, queueID string, take receiveFunc, answer func(all []message) error) error {
	f := parseQuery(r.URL.RawQuery)
	wait := time.Duration(f.waitSeconds(&s.limits) * float64(time.Second))
	if err := f.err(); err != nil {
		return err
	}
	v, err := take(r.whileHeard(), queueID, 1, wait)
	if errors.Is(err, errQueueNotFound) && wait > 0 && r.mayPost(queueID) {
		if err = s.createImplicitQueue(r.Context(), queueID); err == nil {
			v, err = take(r.whileHeard(), queueID, 1, wait)
		}
	}
	if err != nil {
		return err
	}
	return s.deliver(r, queueID, v, answer)
}

// createImplicitQueue makes a queue unless it is there.
func (s *server) createImplicitQueue(ctx context.Context, queueID string) error {
	_, err := s.store.createQueue(ctx, queueID, s.limits.implicitQueue())
	if errors.Is(err, errQueueExists) {
		return nil
	}
	return err
}
