package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// settling is one request to ack, nack or extend messages and, after its turn in
// the lane, what came of it.
type settling struct {
	items []settlement

	conflicts []int     // items whose guard did not hold
	extended  []message // by extend
}

// errNotInFlight says that there is no lease to extend.
var errNotInFlight = errors.New("not in flight")

// errLeaseOver says that the guard of a settlement did not hold. In a request
// with many of them, those of the others were carried out.
type errLeaseOver struct{ items []int }

func (errLeaseOver) Error() string { return "the message is not in this lease any more" }

// ack deletes messages, whoever holds them unless they have a guard. Unknown ids
// are ignored.
func (e *engine) ack(ctx context.Context, items ...settlement) error {
	return settle(ctx, e.acks, &settling{items: items})
}

// nack makes messages that are in flight or delayed due after their time, or moves
// them to the dead queue if they had their last delivery. Other ids are ignored.
func (e *engine) nack(ctx context.Context, items ...settlement) error {
	return settle(ctx, e.nacks, &settling{items: items})
}

// extend sets when the lease of a message in flight ends, and returns the
// message; errNotInFlight if it is not.
func (e *engine) extend(ctx context.Context, item settlement) (message, error) {
	v := &settling{items: []settlement{item}}
	if err := settle(ctx, e.extensions, v); err != nil {
		return message{}, err
	}
	if len(v.extended) == 0 {
		return message{}, errNotInFlight
	}
	return v.extended[0], nil
}

func settle(ctx context.Context, l *lane[*settling], v *settling) error {
	if err := l.do(ctx, v, len(v.items), 0); err != nil {
		return err
	}
	if len(v.conflicts) > 0 {
		return errLeaseOver{v.conflicts}
	}
	return nil
}

func (e *engine) runAcks(s *session, batch []*settling) error {
	all, err := s.ack(itemsOf(batch))
	for _, t := range all { // also before an error: it is committed
		if t.queueID != "" {
			e.metrics.add(messagesAcked, t.queueID, t.acked)
		}
		if !t.dueAt.IsZero() {
			e.announce(t.queueID, t.dueAt)
		}
	}
	if err != nil {
		e.wakeIfUnknown(err)
		return err
	}
	return findConflicts(s, batch, guardedIn(all))
}

func (e *engine) runNacks(s *session, batch []*settling) error {
	all, err := s.nack(itemsOf(batch))
	if err != nil {
		e.wakeIfUnknown(err)
		return err
	}
	for _, t := range all {
		e.metrics.add(messagesNacked, t.queueID, t.nacked)
		e.metrics.add(messagesDeadLettered, t.queueID, t.dead)
		e.metrics.add(messagesDropped, t.queueID, t.dropped)
		if !t.dueAt.IsZero() {
			e.announce(t.queueID, t.dueAt)
		}
	}
	return findConflicts(s, batch, guardedIn(all))
}

func (e *engine) runExtensions(s *session, batch []*settling) error {
	all, err := s.extend(itemsOf(batch))
	if err != nil {
		e.wakeIfUnknown(err)
		return err
	}
	byID := make(map[string]message, len(all))
	done := make(map[string]bool, len(all))
	for _, m := range all {
		byID[m.ID], done[m.ID] = m, true
		e.announce(m.QueueID, m.ScheduledAt.Time) // it may be sooner than before
	}
	for _, v := range batch {
		v.extended = nil
		for _, item := range v.items {
			if m, ok := byID[item.id]; ok {
				v.extended = append(v.extended, m)
			}
		}
	}
	return findConflicts(s, batch, done)
}

func itemsOf(batch []*settling) (all []settlement) {
	for _, v := range batch {
		all = append(all, v.items...)
	}
	return all
}

func guardedIn(all []touched) map[string]bool {
	done := make(map[string]bool)
	for _, t := range all {
		for _, id := range t.guarded {
			done[id] = true
		}
	}
	return done
}

// findConflicts tells each of the batch which of its guards did not hold: those
// of messages that were not among the done, but are there. A message that is
// gone needs no settling any more.
func findConflicts(s *session, batch []*settling, done map[string]bool) error {
	var ids idArray
	for _, v := range batch {
		v.conflicts = nil
		for _, item := range v.items {
			if !item.leasedUntil.IsZero() && !done[item.id] {
				ids = append(ids, item.id)
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	there, err := s.existing(ids)
	if err != nil {
		// What came before is committed, and must not be done again.
		return fmt.Errorf("%w: which guards held is unknown: %v", errUnavailable, err)
	}
	for _, v := range batch {
		for i, item := range v.items {
			if !item.leasedUntil.IsZero() && !done[item.id] && there[item.id] {
				v.conflicts = append(v.conflicts, i)
			}
		}
	}
	return nil
}

// maxLease is the longest that a nack delays a message or an extend keeps it.
const maxLease = 12 * time.Hour
