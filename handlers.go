package main

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"time"
)

func (s *server) createTopic(r *request) error {
	f := parseBody(r.body)
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
	f := parseQuery(r.URL.RawQuery)
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
	f := parseBody(r.body)
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
	f := parseQuery(r.URL.RawQuery)
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
	f := parseBody(r.body)
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
	f := parseQuery(r.URL.RawQuery)
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
	f := parseBody(r.body)
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
	f := parseBody(r.body)
	p.messages = []draft{f.draft(&s.limits)}
	return s.finishPublish(r, f, p, func(int) []any { return []any{"body"} })
}

func (s *server) publishBatch(r *request) error {
	p, err := r.publication()
	if err != nil {
		return err
	}
	f := parseBody(r.body)
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
	q := parseQuery(r.URL.RawQuery)
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
	f := parseQuery(r.URL.RawQuery)
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
			s.engine.release(queueID, v.messages)
		}
	}()
	if len(v.messages) == 0 {
		return answer(nil)
	}
	// Before the first byte is written a receiver can still be gone, or be so
	// late, because the process was stopped, that its lease has ended.
	ended, failed := peerClosed(r.Request)
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
	f := parseQuery(r.URL.RawQuery)
	item := ackItem{id: id, leasedUntil: f.leaseToken("scheduled_at")}
	if err := f.err(); err != nil {
		return err
	}
	if err := s.ackOne(r, s.engine.ack, item); err != nil {
		return err
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) nack(r *request) error {
	id, err := r.messageID()
	if err != nil {
		return err
	}
	f := parseQuery(r.URL.RawQuery)
	item := ackItem{id: id, leasedUntil: f.leaseToken("scheduled_at")}
	b := optionalBody(r.body)
	item.after, item.uncounted = b.nack()
	if err := cmp.Or(f.err(), b.err()); err != nil {
		return err
	}
	if err := s.ackOne(r, s.engine.nack, item); err != nil {
		return err
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) extend(r *request) error {
	id, err := r.messageID()
	if err != nil {
		return err
	}
	f := parseQuery(r.URL.RawQuery)
	item := ackItem{id: id, leasedUntil: f.leaseToken("scheduled_at")}
	shows := f.shown()
	b := parseBody(r.body)
	item.after = b.seconds("ack_deadline_seconds", bounds{1, int(maxLease / time.Second)}, true)
	if err := cmp.Or(f.err(), b.err()); err != nil {
		return err
	}
	var m message
	err = s.ackOne(r, func(ctx context.Context, items ...ackItem) (err error) {
		m, err = s.engine.extend(ctx, items[0])
		return err
	}, item)
	if err != nil {
		return err
	}
	m.shows = shows
	return r.w.own(http.StatusOK, m.appendJSON(nil))
}

// ackOne calls the engine for those of the messages that the request may settle;
// the others are unknown to it.
func (s *server) ackOne(r *request, do func(context.Context, ...ackItem) error, items ...ackItem) error {
	if err := s.hideForbidden(r, items); err != nil {
		return err
	}
	return do(r.Context(), items...)
}

func (s *server) ackBatch(r *request) error {
	f := parseBody(r.body)
	items := f.ackItems()
	if err := f.err(); err != nil {
		return err
	}
	if err := s.ackOne(r, s.engine.ack, items...); err != nil {
		return batchConflicts(err)
	}
	return r.w.empty(http.StatusNoContent)
}

func (s *server) nackBatch(r *request) error {
	f := parseBody(r.body)
	items := f.ackItems()
	after, uncounted := f.nack()
	if err := f.err(); err != nil {
		return err
	}
	for i := range items {
		items[i].after, items[i].uncounted = after, uncounted
	}
	if err := s.ackOne(r, s.engine.nack, items...); err != nil {
		return batchConflicts(err)
	}
	return r.w.empty(http.StatusNoContent)
}

// batchConflicts says of errLeaseEnded which messages of a body it is about.
func batchConflicts(err error) error {
	var over errLeaseEnded
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

// peek answers with a page of messages, as a method of the store finds it.
func (s *server) peek(page func(ctx context.Context, queueID string, offset, limit int) ([]message, error)) handler {
	return func(r *request) error {
		id, err := r.queueID()
		if err != nil {
			return err
		}
		f := parseQuery(r.URL.RawQuery)
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
	f := parseQuery(r.URL.RawQuery)
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
	f := parseBody(r.body)
	if !f.broken && !f.has("delivery_interval_ms") {
		f.addMistake("field required", "value_error.missing", "delivery_interval_ms")
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
