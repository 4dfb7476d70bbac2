package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// publication is one request to publish and, after its turn in the lane, the
// answer to it. It goes to a topic, or straight to a queue: one of the two is set.
type publication struct {
	topicID  string
	queueID  string
	trace    trace // of all its messages
	messages []draft

	address address // as of the last look at the topic

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

// errNeverDue says that a message would expire in a queue before it is due there.
type errNeverDue struct {
	message int // its place in the publication
	queueID string
}

func (e errNeverDue) Error() string {
	return fmt.Sprintf("the message would expire in queue %q before it is due: its delay must be less than the retention there", e.queueID)
}

// directory is what is known of the queues of topics, for those who match messages
// with filters before they wait for their turn: a large filter, or a large batch, is
// to take the time of its own request. It may be out of date, which shows in the
// lane.
type directory struct {
	mu      sync.Mutex
	byTopic map[string]*subscribers
}

// of returns the queues of a topic, nil if they are not known.
func (d *directory) of(topicID string) *subscribers {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byTopic[topicID]
}

// share makes known what was read of a topic. It returns the same queues, but as
// others know them if nothing of them has changed.
func (d *directory) share(topicID string, read *subscribers) *subscribers {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.byTopic[topicID]
	if known == read || known != nil && slices.EqualFunc(known.queues, read.queues, subscription.equal) {
		return known
	}
	if d.byTopic == nil || len(d.byTopic) >= settingsKept {
		d.byTopic = make(map[string]*subscribers)
	}
	d.byTopic[topicID] = read
	return read
}

// publish stores, in one commit, one copy of each message for each queue of the
// topic whose filter matches, or one for the queue, and wakes the receivers.
func (e *engine) publish(ctx context.Context, p *publication) ([]message, error) {
	size := 0
	for _, m := range p.messages {
		size += len(m.data) + len(m.attributes)
	}
	for range settingsAttempts {
		if to := e.directory.of(p.topicID); to != nil && to != p.address.to {
			if err := p.match(ctx, to); err != nil {
				return nil, err
			}
		}
		err := e.publications.do(ctx, p, len(p.messages), size)
		if err != nil && (ctx.Err() != nil || p.stored == nil) {
			return nil, err
		}
		if p.stored != nil || p.err != nil {
			return p.stored, p.err
		}
		// The queues of the topic were not known, or have changed.
	}
	return nil, unknown(errStale)
}

// runPublications stores what a batch of publications makes: in one statement,
// or in several if there are many copies, but each publication whole in one. It
// leaves alone those that an earlier run of the batch has stored, and those that were
// matched with other queues than the topic has now.
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
		p.err = e.readdress(p, &s.settings)
		if p.err != nil || p.address.to == nil {
			continue
		}
		n := p.address.copies
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
		messages = p.appendOutgoing(messages)
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

// address says which queues each message of a publication goes to.
type address struct {
	to     *subscribers // nil: that is not known yet
	queues [][]int32    // for each message their places among them
	copies int
	err    error // why it cannot go there
}

// match addresses a publication to those of the queues whose filters match. It
// returns the error of ctx if that ends.
func (p *publication) match(ctx context.Context, to *subscribers) error {
	v := address{to: to, queues: make([][]int32, len(p.messages))}
	var all []int32
	met := make([]int32, len(to.queues))
	for i, m := range p.messages {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := len(all)
		all = to.match(m.matched, met, all)
		for _, place := range all[first:] {
			if queue := to.queues[place]; v.err == nil && m.delayIn(queue) >= queue.retention {
				v.err = errNeverDue{i, queue.queueID}
			}
		}
		if len(all) > maxCopies {
			v.err = errTooManyCopies
			break
		}
		v.queues[i] = all[first:]
	}
	v.copies = len(all)
	p.address = v
	return nil
}

// delayIn returns for how long the message is hidden in a queue.
func (m *draft) delayIn(queue subscription) time.Duration {
	if m.delay != nil {
		return *m.delay
	}
	return queue.delay
}

// readdress makes sure that the address of a publication is as the settings say, or
// forgets it: then its request has to match it anew. It returns why the publication
// cannot go there.
func (e *engine) readdress(p *publication, v *settings) error {
	if p.queueID != "" {
		to, found := v.queues[p.queueID]
		if !found {
			return errQueueNotFound
		}
		if err := p.match(context.Background(), to); err != nil { // quick, without filters
			return err
		}
		return p.address.err
	}
	to, found := v.topics[p.topicID]
	if !found {
		return errTopicNotFound
	}
	to = e.directory.share(p.topicID, to)
	v.topics[p.topicID] = to
	if p.address.to != to {
		p.address = address{}
	}
	return p.address.err
}

// appendOutgoing appends the messages of a publication with the queues that each
// goes to.
func (p *publication) appendOutgoing(messages []outgoing) []outgoing {
	all := p.address.to.queues
	for i, m := range p.messages {
		to := all
		if places := p.address.queues[i]; m.delay != nil || len(places) < len(all) {
			to = make([]subscription, len(places))
			for j, place := range places {
				to[j] = all[place]
				to[j].delay = m.delayIn(to[j])
			}
		}
		messages = append(messages, outgoing{data: m.data, attributes: m.attributes, group: m.group, trace: p.trace, to: to})
	}
	return messages
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
