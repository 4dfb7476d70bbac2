package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// publication is one request to publish and, after its turn in the lane, the
// answer to it. It goes to a topic, or straight to a queue: one of the two is set.
type publication struct {
	topicID  string
	queueID  string
	trace    trace // of all its messages
	messages []draft

	stored []message // in the order sent, copies of one in order of queue id; nil until then
	err    error
}

// draft is a message that is to be published.
type draft struct {
	data       []byte            // JSON as sent
	attributes []byte            // JSON as sent; nil if there are none
	group      string            // empty if it has none
	matched    map[string]string // the attributes, for the filters; nil if there are none
	delay      *time.Duration    // in place of the queue's
	job        *job              // nil if it is none; one that is is published alone, to a queue
}

// maxCopies is the most messages that one request may make.
const maxCopies = 100_000

var errTooManyCopies = fmt.Errorf("a request makes at most %d copies of its messages", maxCopies)

// publish stores, in one commit, one copy of each message for each queue of the
// topic whose filter matches, or one for the queue, and wakes the receivers.
func (e *engine) publish(ctx context.Context, p *publication) ([]message, error) {
	size := 0
	for _, m := range p.messages {
		size += len(m.data) + len(m.attributes)
	}
	err := e.publications.do(ctx, p, len(p.messages), size)
	if err != nil && (ctx.Err() != nil || p.stored == nil) {
		return nil, err
	}
	return p.stored, p.err
}

// runPublications stores what a batch of publications makes: in one statement,
// or in several if there are many copies, but each publication whole in one. It
// leaves alone those that an earlier run of the batch has stored.
func (e *engine) runPublications(s *session, batch []*publication) error {
	for range settingsAttempts {
		if err := e.store(s, batch); !errors.Is(err, errStale) {
			return err
		}
		s.settings = settings{}
	}
	return errStale
}

// store is runPublications with the settings that s remembers. It returns
// errStale if they have changed.
func (e *engine) store(s *session, batch []*publication) error {
	if err := s.readDestinations(batch); err != nil {
		return err
	}
	var matched, jobs []*publication
	var messages []outgoing
	copies := 0
	insert := func() error {
		if len(matched) == 0 {
			return nil
		}
		began := time.Now()
		stored, readyAt, err := s.insert(messages)
		if errors.Is(err, errStale) {
			return err
		}
		// Even if it failed: an unknown outcome may be that they are stored.
		e.wakePublished(messages, stored, readyAt)
		if time.Since(began) > floorMargin/2 {
			// Claims at other servers may have passed the rows, which are due since the
			// statement began. They shall know before the publisher goes on, or what it
			// publishes next would be received first.
			e.notifier.sendNow(s)
		}
		if err != nil {
			return err
		}
		counts := make(map[string]int, 1)
		for _, p := range matched {
			p.stored, p.err = slices.Concat(stored[:len(p.messages)]...), nil // an earlier run may have missed the topic
			if p.stored == nil {
				p.stored = []message{}
			}
			for _, m := range p.stored {
				counts[m.QueueID]++
			}
			stored = stored[len(p.messages):]
		}
		for queueID, n := range counts {
			e.metrics.add(messagesPublished, queueID, n)
		}
		matched, messages, copies = nil, nil, 0
		return nil
	}
	for _, p := range batch {
		if p.stored != nil {
			continue
		}
		addressed, n, err := p.address(&s.settings)
		if err != nil {
			p.err = err
			continue
		}
		if p.messages[0].job != nil {
			jobs = append(jobs, p)
			continue
		}
		if copies > 0 && copies+n > publishRows {
			if err := insert(); err != nil {
				return err
			}
		}
		matched = append(matched, p)
		messages = append(messages, addressed...)
		copies += n
	}
	if err := insert(); err != nil {
		return err
	}
	return e.storeJobs(s, jobs)
}

// readDestinations makes s remember where the publications of a batch go to.
func (s *session) readDestinations(batch []*publication) error {
	for range settingsAttempts {
		resets := s.settings.resets
		topics, queues := map[string]bool{}, map[string]bool{}
		for _, p := range batch {
			if _, known := s.settings.queues[p.queueID]; p.queueID != "" && !known {
				queues[p.queueID] = true
			}
			if _, known := s.settings.topics[p.topicID]; p.topicID != "" && !known {
				topics[p.topicID] = true
			}
		}
		if err := s.readSubscriptions(slices.Collect(maps.Keys(topics))); err != nil {
			return err
		}
		if err := s.readNamed(slices.Collect(maps.Keys(queues))); err != nil {
			return err
		}
		if s.settings.resets == resets { // else some that was known is forgotten
			return nil
		}
	}
	return errStale
}

// address says which queues each message of a publication goes to, and how many
// copies that makes.
func (p *publication) address(v *settings) (messages []outgoing, copies int, err error) {
	subscriptions, found := v.topics[p.topicID]
	queue, named := v.queues[p.queueID]
	switch {
	case p.queueID != "" && !named:
		return nil, 0, errQueueNotFound
	case p.queueID == "" && !found:
		return nil, 0, errTopicNotFound
	}
	for _, m := range p.messages {
		var to []subscription
		if named {
			to = []subscription{queue}
		}
		for _, v := range subscriptions {
			if v.filters.match(m.matched) {
				to = append(to, v)
			}
		}
		if m.delay != nil {
			for i := range to {
				to[i].delay = *m.delay
			}
		}
		if copies += len(to); copies > maxCopies {
			return nil, 0, errTooManyCopies
		}
		messages = append(messages, outgoing{data: m.data, attributes: m.attributes, group: m.group, trace: p.trace, to: to})
	}
	return messages, copies, nil
}

// wakePublished wakes the receivers of the queues that messages go to, but of those
// with a group only where one is ready sooner than it was. Without stored, what
// became of the messages is unknown and they count as due now.
func (e *engine) wakePublished(messages []outgoing, stored [][]message, readyAt map[int64]time.Time) {
	dueAt := make(map[string]time.Time, 1)
	for i, m := range messages {
		for j, to := range m.to {
			var at time.Time
			if stored != nil && m.group != "" {
				ready, sooner := readyAt[stored[i][j].queueKey]
				if !sooner {
					continue
				}
				at = ready
			} else if stored != nil {
				at = stored[i][j].ScheduledAt.Time
			}
			if earliest, seen := dueAt[to.queueID]; !seen || at.Before(earliest) {
				dueAt[to.queueID] = at
			}
		}
	}
	for queueID, at := range dueAt {
		e.announce(queueID, at)
	}
}
