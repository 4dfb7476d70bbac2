package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// fifoHistory has the requests to the FIFO queue of the torture test. Each message has a
// number, which is its body, and a group.
type fifoHistory struct {
	sends    []fifoSend
	receives [][]fifoSeen // the messages of each response
}

// fifoSend is a message that a client sent, maybe several times with one deduplication id.
type fifoSend struct {
	n              int
	sentAt, doneAt time.Time // of the first request, and of the first response; zero if there was none
	ids            []string  // the message ids in the responses
}

// fifoSeen is a message that a client received.
type fifoSeen struct {
	n             int
	id, number    string // its message id and sequence number
	attempt       int
	sentAt, gotAt time.Time // of the request and its response
	until         time.Time // the latest time at which its lease may end
	deleteSentAt  time.Time // when its first delete was sent; zero if none was
	deletedAt     time.Time // when a response said that it is deleted; zero if none did
	refused       bool      // a response said that its receipt handle has expired
}

// fifoGroup returns the group of a message.
func fifoGroup(n int) string { return fmt.Sprint("g", n%20) }

// fifoMessage is a message with all its deliveries.
type fifoMessage struct {
	n          int
	id, number string
	seen       []*fifoSeen
	goneFrom   time.Time // when the first delete within its lease was sent; zero if none was
}

func (h *fifoHistory) check(a *verdict) {
	byID, byNumber := map[string]*fifoMessage{}, map[int]*fifoMessage{}
	for _, all := range h.receives {
		for i := range all {
			d := &all[i]
			m := byID[d.id]
			if m == nil {
				m = &fifoMessage{n: d.n, id: d.id, number: d.number}
				byID[d.id] = m
				if other := byNumber[d.n]; other != nil {
					a.violate("sent twice: message %d of the FIFO queue was received as %s and as %s", d.n, other.id, d.id)
				}
				byNumber[d.n] = m
			}
			m.seen = append(m.seen, d)
		}
	}
	tried := map[int]bool{}
	for _, s := range h.sends {
		tried[s.n] = true
		m := byNumber[s.n]
		for i, id := range s.ids {
			switch {
			case id != s.ids[0] || m != nil && id != m.id:
				a.violate("sent twice: message %d of the FIFO queue is %q in the responses, and %+v", s.n, s.ids, m)
			case m == nil && i == 0:
				a.violate("lost: message %d of the FIFO queue, %s, was sent with a 200 and never received", s.n, id)
			}
		}
	}
	for _, m := range byID {
		if !tried[m.n] {
			a.violate("unexpected: message %d of the FIFO queue, %s, was never sent", m.n, m.id)
		}
		m.check(a)
	}
	h.checkOrder(a, byID)
	h.checkSequence(a, byNumber)
}

// check checks the deletes of a message, which is not in the queue any more.
func (m *fifoMessage) check(a *verdict) {
	for _, d := range m.seen {
		if !d.refused && !d.deleteSentAt.IsZero() && !d.deleteSentAt.After(d.until) && (m.goneFrom.IsZero() || d.deleteSentAt.Before(m.goneFrom)) {
			m.goneFrom = d.deleteSentAt
		}
	}
	late := false
	for i, d := range m.seen {
		if !d.deletedAt.IsZero() && (m.goneFrom.IsZero() || m.goneFrom.After(d.deletedAt)) {
			late = true
			a.violate("deleted after its lease: message %d of the FIFO queue, attempt %d, whose lease ended at %v, by a request of %v", m.n, d.attempt, d.until, d.deleteSentAt)
		}
		for j, other := range m.seen {
			if !d.deletedAt.IsZero() && other.sentAt.After(d.deletedAt) {
				a.violate("received after its delete: message %d of the FIFO queue, attempt %d at %v, deleted at %v", m.n, other.attempt, other.sentAt, d.deletedAt)
			}
			if i < j && d.attempt == other.attempt {
				a.violate("two consumers: message %d of the FIFO queue, attempt %d at %v and at %v", m.n, d.attempt, d.gotAt, other.gotAt)
			}
		}
	}
	if m.goneFrom.IsZero() && !late {
		a.violate("lost: message %d of the FIFO queue, %s, was removed without a delete within its lease", m.n, m.id)
	}
}

// checkOrder checks that each earlier message of the group of a received one was deleted by
// then, or comes before it in the same response.
func (h *fifoHistory) checkOrder(a *verdict, byID map[string]*fifoMessage) {
	byGroup := map[string][]*fifoMessage{}
	for _, m := range byID {
		byGroup[fifoGroup(m.n)] = append(byGroup[fifoGroup(m.n)], m)
	}
	for _, all := range h.receives {
		before := map[string]bool{} // in the response
		for _, d := range all {
			for _, m := range byGroup[fifoGroup(d.n)] {
				if m.number < d.number && !before[m.id] && (m.goneFrom.IsZero() || m.goneFrom.After(d.gotAt)) {
					a.violate("out of order: message %d of the FIFO queue was received at %v, and %d was before it and not deleted", d.n, d.gotAt, m.n)
				}
			}
			before[d.id] = true
		}
	}
}

// checkSequence checks that a message that was sent after the response to another one of its
// group comes after it.
func (h *fifoHistory) checkSequence(a *verdict, byNumber map[int]*fifoMessage) {
	byGroup := map[string][]fifoSend{}
	for _, s := range h.sends {
		if byNumber[s.n] != nil {
			byGroup[fifoGroup(s.n)] = append(byGroup[fifoGroup(s.n)], s)
		}
	}
	for _, sent := range byGroup {
		done := slices.DeleteFunc(slices.Clone(sent), func(s fifoSend) bool { return s.doneAt.IsZero() })
		slices.SortFunc(sent, func(s, t fifoSend) int { return s.sentAt.Compare(t.sentAt) })
		slices.SortFunc(done, func(s, t fifoSend) int { return s.doneAt.Compare(t.doneAt) })
		last := &fifoMessage{} // of those with a response before s was sent
		for _, s := range sent {
			for len(done) > 0 && done[0].doneAt.Before(s.sentAt) {
				last = slices.MaxFunc([]*fifoMessage{last, byNumber[done[0].n]}, func(m, n *fifoMessage) int { return cmp.Compare(m.number, n.number) })
				done = done[1:]
			}
			if m := byNumber[s.n]; m.number < last.number {
				a.violate("out of order: message %d of the FIFO queue was sent after %d and has the sequence number %s before %s", m.n, last.n, m.number, last.number)
			}
		}
	}
}

// String describes how much the history has.
func (h *fifoHistory) String() string {
	unknown, repeated, delivered, deleted, refused := 0, 0, 0, 0, 0
	for _, s := range h.sends {
		switch {
		case len(s.ids) == 0:
			unknown++
		case len(s.ids) > 1:
			repeated++
		}
	}
	for _, all := range h.receives {
		delivered += len(all)
		for _, d := range all {
			if !d.deletedAt.IsZero() {
				deleted++
			}
			if d.refused {
				refused++
			}
		}
	}
	return fmt.Sprintf("%d messages sent, %d of them without a response, %d again after a response; %d deliveries, %d deleted, %d deletes refused after their leases",
		len(h.sends), unknown, repeated, delivered, deleted, refused)
}
