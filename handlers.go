package main

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"time"
)

// logged logs a change by an administrator with the name of the token, unless err is an
// error. It returns err.
func (s *server) logged(r *request, err error, event string, attributes ...any) error {
	if err == nil {
		if r.token != nil {
			attributes = append(attributes, "token", r.token.name)
		}
		s.log.Info(event, r.w.logged(attributes...)...)
	}
	return err
}

// nameOf returns the destination of a redrive for the log.
func nameOf(destination *string) string {
	if destination == nil {
		return "source"
	}
	return *destination
}

func (s *server) createTopic(r *request) (any, error) {
	f := r.form()
	id := f.id("id", true)
	if err := f.err(); err != nil {
		return nil, err
	}
	t, err := s.store.createTopic(r.Context(), *id)
	return created(t, s.logged(r, err, "topic created", "topic", *id))
}

func (s *server) listTopics(r *request) (any, error) {
	q := r.query()
	offset, limit := q.page(&s.limits)
	if err := q.err(); err != nil {
		return nil, err
	}
	return listOf(s.store.topics(r.Context(), r.visible(), offset, limit))
}

func (s *server) getTopic(r *request) (any, error) {
	return s.store.topic(r.Context(), r.topicID)
}

func (s *server) deleteTopic(r *request) (any, error) {
	return nil, s.logged(r, s.store.deleteTopic(r.Context(), r.topicID), "topic deleted", "topic", r.topicID)
}

// readOnly are fields of queues in responses. Requests may have them and do not change them, so
// that a client can change a queue that it has read and send it back.
var readOnly = []string{"id", "created_at", "updated_at"}

func (s *server) createQueue(r *request) (any, error) {
	f := r.form()
	id := f.id("id", true)
	f.skip(readOnly...)
	settings := f.queueSettings(&s.limits)
	if err := f.err(); err != nil {
		return nil, err
	}
	q, err := s.store.createQueue(r.Context(), *id, settings)
	return created(q, s.logged(r, err, "queue created", "queue", *id))
}

func (s *server) listQueues(r *request) (any, error) {
	q := r.query()
	offset, limit := q.page(&s.limits)
	if err := q.err(); err != nil {
		return nil, err
	}
	queues, _, err := s.store.queues(r.Context(), r.visible(), offset, limit)
	return listOf(queues, err)
}

func (s *server) getQueue(r *request) (any, error) {
	return s.store.queue(r.Context(), r.queueID)
}

func (s *server) updateQueue(r *request) (any, error) {
	f := r.form()
	f.skip(readOnly...)
	settings := f.queueSettings(&s.limits)
	if f.err() != nil { // SQS's API has other bounds, and what it has set may stay
		if q, err := s.store.queue(r.Context(), r.queueID); err == nil {
			f = r.form()
			f.skip(readOnly...)
			f.unchanged = q.integers()
			settings = f.queueSettings(&s.limits)
		}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	q, err := s.store.updateQueue(r.Context(), r.queueID, settings)
	if err := s.logged(r, err, "queue changed", "queue", r.queueID); err != nil {
		return nil, err
	}
	// Exhausted messages and rate-limited groups may be due under the new settings.
	s.engine.announce(r.queueID, time.Time{})
	return q, nil
}

func (s *server) deleteQueue(r *request) (any, error) {
	if err := s.logged(r, s.store.deleteQueue(r.Context(), r.queueID), "queue deleted", "queue", r.queueID); err != nil {
		return nil, err
	}
	s.engine.announce(r.queueID, time.Time{}) // ends the wait of its receivers
	s.metrics.forget(r.queueID)
	s.consumers.forget(r.queueID)
	return nil, nil
}

func (s *server) queueStats(r *request) (any, error) {
	q := r.query()
	detail := q.boolean("detail")
	if err := q.err(); err != nil {
		return nil, err
	}
	if detail {
		return s.store.details(r.Context(), r.queueID)
	}
	return s.store.stats(r.Context(), r.queueID)
}

// pause stops the delivery of messages of a queue at all servers. Receivers wait on.
func (s *server) pause(r *request) (any, error) {
	return nil, s.logged(r, s.store.setPaused(r.Context(), r.queueID, true), "queue paused", "queue", r.queueID)
}

func (s *server) resume(r *request) (any, error) {
	if err := s.logged(r, s.store.setPaused(r.Context(), r.queueID, false), "queue resumed", "queue", r.queueID); err != nil {
		return nil, err
	}
	s.engine.announce(r.queueID, time.Time{})
	return nil, nil
}

func (s *server) purge(r *request) (any, error) {
	purged := 0
	err := s.store.purge(r.Context(), r.queueID, func(n int) {
		purged += n
		s.metrics.add(messagesPurged, r.queueID, n)
	})
	if err := s.logged(r, err, "queue purged", "queue", r.queueID, "count", purged); err != nil {
		return nil, err
	}
	s.engine.announce(r.queueID, time.Time{}) // in an ordered group, later messages may have waited for deleted ones
	return nil, nil
}

// redrive moves messages to a queue or, if the body names none, to the queues that they
// came from.
func (s *server) redrive(r *request) (any, error) {
	f := r.optionalForm()
	destination := f.text("destination_queue_id", false)
	limit := math.MaxInt
	if n := f.integer("limit", bounds{1, math.MaxInt}, false); n != nil {
		limit = *n
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if destination != nil && !validID(*destination) {
		return nil, errQueueNotFound
	}
	v, err := s.store.redrive(r.Context(), r.queueID, destination, limit, func(n int, to []string) {
		s.metrics.add(messagesRedriven, r.queueID, n)
		for _, queueID := range to {
			s.engine.announce(queueID, time.Time{})
		}
	})
	return s.redriven(r, v, s.logged(r, err, "queue redriven", "queue", r.queueID, "destination", nameOf(destination), "count", v.moved), destination == nil)
}

// redriveNamed moves some messages, like redrive.
func (s *server) redriveNamed(r *request) (any, error) {
	f := r.form()
	ids := f.messageIDs()
	destination := f.text("destination_queue_id", false)
	if err := f.err(); err != nil {
		return nil, err
	}
	if destination != nil && !validID(*destination) {
		return nil, errQueueNotFound
	}
	v, from, to, err := s.store.redriveNamed(r.Context(), ids, destination)
	for _, queueID := range from {
		s.metrics.add(messagesRedriven, queueID, 1)
	}
	changed := slices.Concat(from, to) // in the old queues, other messages may have waited for them
	slices.Sort(changed)
	for _, queueID := range slices.Compact(changed) {
		s.engine.announce(queueID, time.Time{})
	}
	return s.redriven(r, v, s.logged(r, err, "messages redriven", "destination", nameOf(destination), "count", v.moved), true)
}

// redriven returns the response to a redrive. Its body is that of fastqueue, so the numbers
// are in the header. left says whether messages may stay.
func (s *server) redriven(r *request, v redriven, err error, left bool) (any, error) {
	if err != nil {
		return nil, err
	}
	r.w.Header().Set("X-Messages-Moved", strconv.Itoa(v.moved))
	if left {
		r.w.Header().Set("X-Messages-Left", strconv.Itoa(v.left))
	}
	if err := v.err(); err != nil {
		return nil, invalid{{Loc: []any{"body", "destination_queue_id"}, Msg: err.Error(), Type: "value_error.missing"}}
	}
	return nil, nil
}

// deleteNamed deletes some messages.
func (s *server) deleteNamed(r *request) (any, error) {
	f := r.form()
	ids := f.messageIDs()
	if err := f.err(); err != nil {
		return nil, err
	}
	deleted, err := s.store.deleteNamed(r.Context(), ids)
	total := 0 // also if the deletion has failed in another home
	for queueID, n := range deleted {
		total += n
		s.metrics.add(messagesPurged, queueID, n)
		s.engine.announce(queueID, time.Time{}) // in an ordered group, later messages may have waited for deleted ones
	}
	if err == nil {
		r.w.Header().Set("X-Messages-Deleted", strconv.Itoa(total))
	}
	return nil, s.logged(r, err, "messages deleted", "count", total)
}

func (s *server) publish(r *request) (any, error) {
	f := r.form()
	return s.publishDrafts(r, f, []draft{f.draft(&s.limits)}, func(int) []any { return []any{"body"} })
}

func (s *server) publishBatch(r *request) (any, error) {
	f := r.form()
	var drafts []draft
	f.objects("messages", maxBatch, func(item *form) {
		drafts = append(drafts, item.draft(&s.limits))
	})
	return s.publishDrafts(r, f, drafts, func(i int) []any { return []any{"body", "messages", i} })
}

// publishDrafts publishes the messages of a body to the topic or queue in the path. In
// errors, at returns the place of a message in the body.
func (s *server) publishDrafts(r *request, f *form, drafts []draft, at func(i int) []any) (any, error) {
	q := r.query()
	shows := q.shown()
	acks := f.acks()
	if err := cmp.Or(f.err(), q.err(), useIdempotencyKey(r.Header, drafts)); err != nil {
		return nil, err
	}
	named := slices.Clone(acks)
	if err := s.hideForbidden(r, acks); err != nil {
		return nil, err
	}
	p := &publication{topicID: r.topicID, queueID: r.queueID, trace: r.w.trace, messages: drafts, acks: acks}
	stored, err := s.engine.publish(r.Context(), p)
	if unacked, ok := errors.AsType[errNotAcked](err); ok {
		return nil, unackedConflict(unacked, named)
	}
	if never, ok := errors.AsType[errNeverDue](err); ok {
		return nil, invalid{{Loc: append(at(never.message), never.field), Msg: never.Error(), Type: "value_error.number.not_lt"}}
	}
	if err == nil {
		s.hintDiscarded(r, p)
	} else {
		s.hintMisnamed(r, err)
	}
	return created(&messageList{messages: stored, shows: shows, shared: true}, err)
}

func (s *server) receive(r *request) (any, error) {
	q := r.query()
	limit := min(q.integer("limit", 10, bounds{0, math.MaxInt}), s.limits.maxLimit)
	wait := q.waitSeconds(&s.limits)
	if !q.has("wait_seconds") {
		wait = r.preferredWait(&s.limits)
	}
	lease := q.lease()
	shows := q.shown()
	if err := q.err(); err != nil {
		return nil, err
	}
	if limit == 0 {
		_, err := s.store.queue(r.Context(), r.queueID)
		return &messageList{}, err
	}
	v, err := s.engine.take(r.whileHeard(), dispatcherKey{queueID: r.queueID, lease: lease}, limit, wait)
	if err != nil {
		return nil, err
	}
	return &messageList{messages: s.deliver(r, r.queueID, v), shows: shows}, nil
}

// receiveAndAck is receive, and acks and nacks other messages at the same time. A
// request that is refused has acked nothing, so it looks up the queue first unless
// that was received from a moment ago. If the queue is deleted meanwhile, the acks
// stand, and there are no messages.
func (s *server) receiveAndAck(r *request) (any, error) {
	f := r.optionalForm()
	v := f.receiveAck(&s.limits)
	if !f.has("wait_seconds") {
		v.wait = r.preferredWait(&s.limits)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	v.queueID = r.queueID
	if err := s.hideForbidden(r, v.acks); err != nil {
		return nil, err
	}
	if err := s.hideForbidden(r, v.nacks); err != nil {
		return nil, err
	}
	acks := len(v.acks)+len(v.nacks) > 0
	if acks && !s.engine.knows(r.queueID) || v.limit == 0 {
		if _, err := s.store.queue(r.Context(), r.queueID); err != nil {
			return nil, err
		}
	}
	d, conflicts, err := s.engine.receiveAck(r.whileHeard(), v)
	if err != nil && !(acks && errors.Is(err, errQueueNotFound)) {
		return nil, err
	}
	return &messageList{messages: s.deliver(r, r.queueID, d), shows: v.shows, conflicts: conflicts, hasConflicts: true}, nil
}

// resetTime is the maximum wait for the reset of a connection: longer than the round
// trip of most networks.
const resetTime = 200 * time.Millisecond

// deliver ends every receive, and returns the messages for the response. It returns none if
// the connection has failed, or if the lease may have ended because the process was paused.
// Messages whose response does not begin are released.
func (s *server) deliver(r *request, queueID string, v delivery) []message {
	if len(v.messages) == 0 {
		s.consumers.received(queueID, r.consumer(), nil, time.Now())
		return nil
	}
	r.unsent = unsent{queueID, v.messages}
	ended, failed := peerClosed(r.Request)
	if failed || time.Now().After(v.goodUntil) {
		s.releaseUnsent(r)
		return nil
	}
	r.w.doubtful = ended
	return v.messages
}

// releaseUnsent releases messages that were received for a response that has not begun.
func (s *server) releaseUnsent(r *request) {
	if len(r.unsent.messages) > 0 {
		s.consumers.received(r.unsent.queueID, r.consumer(), nil, time.Now())
		s.engine.release(r.unsent.queueID, r.unsent.messages)
		r.unsent = unsent{}
	}
}

// countDelivery counts messages whose response begins.
func (s *server) countDelivery(r *request) {
	v := r.unsent
	r.unsent = unsent{}
	s.consumers.received(v.queueID, r.consumer(), v.messages, time.Now())
	if s.metrics.delivery(v.queueID, v.messages) > 0 {
		s.hintUnacked(r, v.queueID)
	}
	if v.messages[0].consumed {
		s.metrics.add(messagesAcked, v.queueID, len(v.messages))
	}
}

func (s *server) ack(r *request) (any, error) {
	q := r.query()
	item := ackItem{id: r.messageID, leasedUntil: q.leaseToken("scheduled_at")}
	if err := q.err(); err != nil {
		return nil, err
	}
	return nil, s.ackVisible(r, s.engine.ack, item)
}

func (s *server) nack(r *request) (any, error) {
	q := r.query()
	item := ackItem{id: r.messageID, leasedUntil: q.leaseToken("scheduled_at")}
	f := r.form().ignoreBroken()
	item = f.nack().of(item)
	if err := cmp.Or(q.err(), f.err()); err != nil {
		return nil, err
	}
	return nil, s.ackVisible(r, s.engine.nack, item)
}

func (s *server) extend(r *request) (any, error) {
	q := r.query()
	item := ackItem{id: r.messageID, leasedUntil: q.leaseToken("scheduled_at")}
	shows := q.shown()
	f := r.form()
	item.after = f.seconds("ack_deadline_seconds", bounds{1, int(maxLease / time.Second)}, true)
	if err := cmp.Or(q.err(), f.err()); err != nil {
		return nil, err
	}
	var m message
	err := s.ackVisible(r, func(ctx context.Context, items ...ackItem) (err error) {
		m, err = s.engine.extend(ctx, items[0])
		return err
	}, item)
	return rawJSON(m.appendJSON(nil, shows)), err
}

// ackVisible acks, nacks or extends messages. Messages that the token has no permission
// for count as deleted.
func (s *server) ackVisible(r *request, do func(context.Context, ...ackItem) error, items ...ackItem) error {
	if err := s.hideForbidden(r, items); err != nil {
		return err
	}
	return do(r.Context(), items...)
}

func (s *server) ackBatch(r *request) (any, error) {
	f := r.form()
	items := f.ackItems()
	if err := f.err(); err != nil {
		return nil, err
	}
	return nil, batchConflicts(s.ackVisible(r, s.engine.ack, items...))
}

func (s *server) nackBatch(r *request) (any, error) {
	f := r.form()
	items := f.ackItems()
	nack := f.nack()
	if err := f.err(); err != nil {
		return nil, err
	}
	for i := range items {
		items[i] = nack.of(items[i])
	}
	return nil, batchConflicts(s.ackVisible(r, s.engine.nack, items...))
}

// conflict is a list of mistakes with status 409.
type conflict invalid

func (c conflict) Error() string { return invalid(c).Error() }

// batchConflicts turns errLeaseEnded into mistakes that name the messages in the body. It
// returns other errors unchanged.
func batchConflicts(err error) error {
	ended, ok := errors.AsType[errLeaseEnded](err)
	if !ok {
		return err
	}
	var mistakes conflict
	for _, i := range ended.items {
		mistakes = append(mistakes, mistake{Loc: []any{"body", "messages", i, "scheduled_at"}, Msg: ended.Error(), Type: "value_error.lease"})
	}
	return mistakes
}

func (s *server) getMessage(r *request) (any, error) {
	m, err := s.store.message(r.Context(), r.messageID)
	if err == nil && !r.mayGet(m.QueueID) {
		err = errMessageNotFound
	}
	return rawJSON(m.appendJSON(nil, showAll)), err
}

// maxPeek is the maximum number of messages that a peek returns.
const maxPeek = 300

// peek returns a handler for a page of messages, which the function page reads.
func (s *server) peek(page func(ctx context.Context, queueID string, offset, limit int) ([]message, error)) handler {
	return func(r *request) (any, error) {
		q := r.query()
		offset := q.integer("offset", 0, bounds{0, math.MaxInt})
		limit := q.integer("limit", 25, bounds{0, maxPeek})
		if err := q.err(); err != nil {
			return nil, err
		}
		all, err := page(r.Context(), r.queueID, offset, limit)
		return &messageList{messages: all, shows: showAll}, err
	}
}

// peekOrSearch returns a page of messages, or the result of a search.
func (s *server) peekOrSearch(r *request) (any, error) {
	q := r.query()
	if !q.isSearch() {
		return s.peek(s.store.peek)(r)
	}
	v := q.search()
	if err := q.err(); err != nil {
		return nil, err
	}
	all, next, err := s.store.search(r.Context(), r.queueID, v)
	if errors.Is(err, errNotComparable) {
		q.addMistake("PostgreSQL cannot compare this value: a number in it is too large", "value_error", "contains")
		err = q.err()
	}
	return &searchResult{messageList{messages: all, shows: showAll}, next}, err
}

func (s *server) listGroups(r *request) (any, error) {
	q := r.query()
	offset, limit := q.page(&s.limits)
	if err := q.err(); err != nil {
		return nil, err
	}
	return listOf(s.store.groups(r.Context(), r.queueID, offset, limit))
}

func (s *server) getGroup(r *request) (any, error) {
	return s.store.group(r.Context(), r.queueID, r.groupID)
}

func (s *server) putGroup(r *request) (any, error) {
	if msg := pathMistake(r.groupID); msg != "" {
		return nil, invalid{{Loc: []any{"path", "group"}, Msg: msg, Type: "value_error"}}
	}
	f := r.form()
	if !f.broken && !f.has("delivery_interval_ms") {
		f.addMistake("field required", "value_error.missing", "delivery_interval_ms")
	}
	interval := f.integer("delivery_interval_ms", bounds{0, maxInterval}, false)
	if err := f.err(); err != nil {
		return nil, err
	}
	g, err := s.store.setInterval(r.Context(), r.queueID, r.groupID, interval, new(interval != nil))
	if err := s.logged(r, err, "group changed", "queue", r.queueID, "group", r.groupID); err != nil {
		return nil, err
	}
	s.engine.announce(r.queueID, time.Time{})
	if g == nil {
		return nil, nil
	}
	return g, nil
}

func (s *server) deleteGroup(r *request) (any, error) {
	err := s.store.deleteGroup(r.Context(), r.queueID, r.groupID, func(n int) {
		s.metrics.add(messagesPurged, r.queueID, n)
	})
	if err := s.logged(r, err, "group deleted", "queue", r.queueID, "group", r.groupID); err != nil {
		return nil, err
	}
	s.engine.announce(r.queueID, time.Time{})
	return nil, nil
}
