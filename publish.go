package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// publication is one request to publish and, after its turn in the lane, the
// answer to it.
type publication struct {
	topicID    string
	data       []byte            // JSON as sent
	attributes []byte            // JSON as sent; nil if there are none
	matched    map[string]string // the attributes, for the filters; nil if there are none

	stored []message // in order of queue id; nil until then
	err    error
}

// maxCopies is the most messages that one request may make.
const maxCopies = 100_000

var errTooManyCopies = fmt.Errorf("a request makes at most %d copies of its messages", maxCopies)

// settingsAge is how old the settings that a publication was matched with may
// be when its messages are stored: a process that was stopped in between reads
// them again.
const settingsAge = 10 * time.Second

// publish stores one copy of the message for each queue of the topic whose
// filter matches, and wakes their receivers.
func (e *engine) publish(ctx context.Context, p *publication) ([]message, error) {
	err := e.publications.do(ctx, p, 1, len(p.data)+len(p.attributes))
	if err != nil && (ctx.Err() != nil || p.stored == nil) {
		return nil, err
	}
	return p.stored, p.err
}

// runPublications stores what a batch of publications makes: in one statement,
// or in several if there are many copies, but each publication whole in one. It
// leaves alone those that an earlier run of the batch has stored.
func (e *engine) runPublications(s *session, batch []*publication) error {
	readAt := time.Now()
	byTopic, err := s.subscriptions(topicIDs(batch))
	if err != nil {
		return err
	}
	var matched []*publication
	var messages []outgoing
	copies := 0
	insert := func() error {
		if time.Since(readAt) > settingsAge {
			return errors.New("the process was stopped while it published")
		}
		stored, err := s.insert(messages)
		// Even if it failed: an unknown outcome may be that they are stored.
		e.wakePublished(messages, stored)
		if err != nil {
			return err
		}
		for i, p := range matched {
			p.stored, p.err = stored[i], nil // an earlier run may have missed the topic
			for _, m := range p.stored {
				e.metrics.published.WithLabelValues(m.QueueID).Inc()
			}
		}
		matched, messages, copies = nil, nil, 0
		return nil
	}
	for _, p := range batch {
		subscriptions, found := byTopic[p.topicID]
		if p.stored != nil {
			continue
		}
		if !found {
			p.err = errTopicNotFound
			continue
		}
		var to []subscription
		for _, v := range subscriptions {
			if v.filters.match(p.matched) {
				to = append(to, v)
			}
		}
		if len(to) > maxCopies {
			p.err = errTooManyCopies
			continue
		}
		if copies > 0 && copies+len(to) > publishRows {
			if err := insert(); err != nil {
				return err
			}
		}
		matched = append(matched, p)
		messages = append(messages, outgoing{data: p.data, attributes: p.attributes, to: to})
		copies += len(to)
	}
	return insert()
}

func topicIDs(batch []*publication) []string {
	var ids []string
	seen := make(map[string]bool, 1)
	for _, p := range batch {
		if !seen[p.topicID] {
			seen[p.topicID] = true
			ids = append(ids, p.topicID)
		}
	}
	return ids
}

// wakePublished wakes the receivers of the queues that messages go to. Without
// stored, what became of the messages is unknown and they count as due now.
func (e *engine) wakePublished(messages []outgoing, stored [][]message) {
	dueAt := make(map[string]time.Time, 1)
	for i, m := range messages {
		for j, to := range m.to {
			var at time.Time
			if stored != nil {
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
