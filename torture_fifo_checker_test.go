//go:build unix

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// fifoHistory has the requests to the FIFO queues of the torture test. Each message has a
// number, and most numbers a group in common with others.
type fifoHistory struct {
	sends    []fifoSend
	receives [][]fifoSeen  // the messages of each response
	unknown  []span        // receives without a response, which may have counted attempts
	tasks    []span        // move tasks from fifoDead to fifoContent
	moved    map[int64]int // messages that each task has moved, by the time of its start
}

// fifoSend is a message that a client sent, maybe several times, but to be stored once.
type fifoSend struct {
	queue          string
	n              int
	follows        int // number of the message before it in its request and group; zero if there is none
	invalid        bool
	again          bool      // long after its first request, so its order says nothing
	sentAt, doneAt time.Time // of the first request, and of the first response; zero if there was none
	ids, numbers   []string  // the message ids and the sequence numbers in the responses
}

// fifoSeen is a message that a client received.
type fifoSeen struct {
	queue              string
	n                  int
	id, number, handle string // its message id, sequence number and receipt handle
	attempt            int
	sentAt, gotAt      time.Time // of the request and its response
	leasedUntil, until time.Time // the earliest and the latest time at which its lease may end; zero if unknown
	deleteSentAt       time.Time // when its first delete was sent; zero if none was
	deletedAt          time.Time // when a response said that it is deleted; zero if none did
	refused            bool      // a response said that its receipt handle has expired
}

const fifoGroups = 20

// fifoGroup returns the group of a message.
func fifoGroup(n int) string { return fmt.Sprint("g", n%fifoGroups) }

// fifoMessage is a message with all its deliveries, in the order of sequence numbers and
// attempts. A move to another queue gives it a new sequence number.
type fifoMessage struct {
	n      int
	id     string
	number string // when it was sent
	seen   []*fifoSeen
	stays  []*fifoStay
}

// fifoStay is the part of the life of a message that it spent in a queue with one sequence
// number.
type fifoStay struct {
	*fifoMessage
	queue, number string
	seen          []*fifoSeen
	leftFrom      time.Time // when it may have left; zero if it did not
}

// deliveries describes all deliveries of a message.
func (m *fifoMessage) deliveries() (out string) {
	const clock = "15:04:05.000000"
	for _, d := range m.seen {
		out += fmt.Sprintf("\n\t%d of %s, number %s, attempt %d, request %s, response %s", d.n, d.queue, d.number, d.attempt, d.sentAt.UTC().Format(clock), d.gotAt.UTC().Format(clock))
		for _, v := range []struct {
			what string
			at   time.Time
		}{{"lease until", d.until}, {"delete sent", d.deleteSentAt}, {"deleted", d.deletedAt}} {
			if !v.at.IsZero() {
				out += ", " + v.what + " " + v.at.UTC().Format(clock)
			}
		}
	}
	return out
}

func (h *fifoHistory) check(a *verdict) {
	byID, byNumber := map[string]*fifoMessage{}, map[int]*fifoMessage{}
	for _, all := range h.receives {
		for i := range all {
			d := &all[i]
			m := byID[d.id]
			if m == nil {
				m = &fifoMessage{n: d.n, id: d.id}
				byID[d.id] = m
				if other := byNumber[d.n]; other != nil {
					a.violate("sent twice: FIFO message %d was received as %s and as %s", d.n, other.id, d.id)
				}
				byNumber[d.n] = m
			}
			m.seen = append(m.seen, d)
		}
	}
	returned, stays := 0, make(map[string][]*fifoStay) // by queue and group
	for _, m := range byID {
		slices.SortFunc(m.seen, func(d, e *fifoSeen) int {
			return cmp.Or(cmp.Compare(d.number, e.number), cmp.Compare(d.attempt, e.attempt))
		})
		m.number = m.seen[0].number
		m.checkDeletes(a)
		returned += h.checkSteps(a, m)
		for _, s := range m.stays {
			stays[s.queue+fifoGroup(m.n)] = append(stays[s.queue+fifoGroup(m.n)], s)
		}
	}
	sent := map[int]bool{}
	for _, s := range h.sends {
		if s.invalid {
			continue
		}
		sent[s.n] = true
		m := byNumber[s.n]
		if m == nil && len(s.ids) > 0 {
			a.violate("lost: FIFO message %d, %s, was sent with a 200 and never received", s.n, s.ids[0])
		}
		if m == nil {
			continue
		}
		for _, id := range s.ids {
			if id != m.id {
				a.violate("sent twice: FIFO message %d is %q in the responses, and was received as %s", s.n, s.ids, m.id)
			}
		}
		for _, number := range s.numbers {
			if m.number = min(m.number, number); s.queue == fifoIDs && number != m.seen[0].number {
				a.violate("sequence numbers: FIFO message %d is %q in the responses, and was received as %s", s.n, s.numbers, m.seen[0].number)
			}
		}
		if (s.queue == fifoIDs) != (m.seen[0].queue == fifoIDs) {
			a.violate("moved: FIFO message %d from %s to %s", s.n, s.queue, m.seen[0].queue)
		}
	}
	for _, m := range byID {
		if !sent[m.n] {
			a.violate("unexpected: FIFO message %d, %s, was never sent", m.n, m.id)
		}
	}
	h.checkOrder(a, stays)
	h.checkSequence(a, byNumber)
	if counted := h.countMoved(); counted < returned {
		a.violate("not counted: the tasks have moved %d FIFO messages, and %d came back", counted, returned)
	}
}

// checkDeletes checks the deletes of a message, which is not in any queue any more, and
// divides its life into stays.
func (m *fifoMessage) checkDeletes(a *verdict) {
	for _, d := range m.seen {
		if n := len(m.stays); n == 0 || m.stays[n-1].number != d.number {
			m.stays = append(m.stays, &fifoStay{fifoMessage: m, queue: d.queue, number: d.number})
		}
		s := m.stays[len(m.stays)-1]
		s.seen = append(s.seen, d)
	}
	explained := false
	for i, s := range m.stays {
		for _, d := range s.seen {
			if !d.refused && !d.deleteSentAt.IsZero() && !d.deleteSentAt.After(d.until) && (s.leftFrom.IsZero() || d.deleteSentAt.Before(s.leftFrom)) {
				s.leftFrom = d.deleteSentAt
			}
		}
		if i < len(m.stays)-1 {
			s.leftFrom = time.Time{} // it was moved
			for _, d := range s.seen {
				if d.sentAt.After(s.leftFrom) {
					s.leftFrom = d.sentAt
				}
			}
		}
		for _, d := range s.seen {
			if d.deletedAt.IsZero() {
				continue
			}
			if s.leftFrom.IsZero() || s.leftFrom.After(d.deletedAt) {
				explained = true
				a.violate("deleted after its lease: FIFO message %d, attempt %d, whose lease ended at %v, by a request of %v", m.n, d.attempt, d.until, d.deleteSentAt)
			}
			for _, other := range m.seen { // after a move, a delete has a 200 and no effect
				if other.sentAt.After(d.deletedAt) && (other.number == d.number || d.deletedAt.Before(d.leasedUntil)) {
					a.violate("received after its delete: FIFO message %d in %s, attempt %d at %v, deleted from %s at %v", m.n, other.queue, other.attempt, other.sentAt, d.queue, d.deletedAt)
				}
			}
		}
	}
	if last := m.stays[len(m.stays)-1]; last.leftFrom.IsZero() && !explained {
		a.violate("lost: FIFO message %d, %s, was removed from %s without a delete within its lease", m.n, m.id, last.queue)
	}
}

// checkSteps checks that each delivery of a message follows the one before it. Attempts, and
// with them stays, may be missing if a receive had no response. checkSteps returns how often
// the message came back from fifoDead.
func (h *fifoHistory) checkSteps(a *verdict, m *fifoMessage) (returned int) {
	before := &fifoSeen{queue: fifoContent}
	if m.seen[0].queue == fifoIDs {
		before.queue = fifoIDs
	}
	for i, d := range m.seen {
		missing, returns := d.attempt-1, 0
		switch {
		case d.number == before.number:
			missing = d.attempt - before.attempt - 1
		case before.queue == fifoContent && d.queue == fifoDead:
			missing += tortureDeliveries - before.attempt
		case before.queue == fifoDead && d.queue == fifoContent:
			returns = 1
		case before.queue == fifoContent && d.queue == fifoContent && i > 0: // it was in fifoDead in between
			missing += tortureDeliveries - before.attempt
			returns = 1
		case before.queue == fifoDead && d.queue == fifoDead: // it was in fifoContent in between
			missing += tortureDeliveries
			returns = 1
		case i > 0:
			a.violate("moved: FIFO message %d from %s to %s, at %v", m.n, before.queue, d.queue, d.gotAt)
		}
		switch {
		case missing < 0 || before.leasedUntil.After(d.gotAt):
			a.violate("two consumers: FIFO message %d in %s, attempt %d until %v, and attempt %d at %v", m.n, d.queue, before.attempt, before.leasedUntil, d.attempt, d.gotAt)
		case d.queue == fifoContent && d.attempt > tortureDeliveries:
			a.violate("attempts jump: FIFO message %d in %s has the attempt %d at %v", m.n, d.queue, d.attempt, d.gotAt)
		case missing > 0 && !during(h.unknown, d.queue, before.sentAt, d.gotAt) && !during(h.unknown, before.queue, before.sentAt, d.gotAt):
			a.violate("attempts jump: FIFO message %d in %s, attempt %d at %v, after attempt %d in %s at %v", m.n, d.queue, d.attempt, d.gotAt, before.attempt, before.queue, before.gotAt)
		case returns > 0 && !during(h.tasks, fifoDead, before.sentAt, d.gotAt):
			a.violate("undead: FIFO message %d in %s, at %v, without a task after it was in %s at %v", m.n, d.queue, d.gotAt, before.queue, before.gotAt)
		}
		returned += returns
		before = d
	}
	return returned
}

// checkOrder checks that each earlier message of the group of a received one had left the
// queue by then, or comes before it in the same response.
func (h *fifoHistory) checkOrder(a *verdict, stays map[string][]*fifoStay) {
	longest := make(map[string][]time.Time) // the latest leftFrom up to each stay
	for group, all := range stays {
		slices.SortFunc(all, func(s, t *fifoStay) int { return cmp.Compare(s.number, t.number) })
		var latest time.Time
		for _, s := range all {
			if s.leftFrom.IsZero() {
				latest = time.Unix(1<<40, 0)
			} else if s.leftFrom.After(latest) {
				latest = s.leftFrom
			}
			longest[group] = append(longest[group], latest)
		}
	}
	for _, response := range h.receives {
		before := map[string]bool{} // in the response
		for _, d := range response {
			group := d.queue + fifoGroup(d.n)
			all := stays[group]
			i, _ := slices.BinarySearchFunc(all, d.number, func(s *fifoStay, number string) int { return cmp.Compare(s.number, number) })
			for i--; i >= 0 && longest[group][i].After(d.gotAt); i-- {
				if s := all[i]; !before[s.id] && (s.leftFrom.IsZero() || s.leftFrom.After(d.gotAt)) {
					a.violate("out of order: FIFO message %d was received from %s at %v with number %s, and %d was before it until %v; in full:%s", d.n, d.queue, d.gotAt, d.number, s.n, s.leftFrom, s.deliveries())
				}
			}
			before[d.id] = true
		}
	}
}

// checkSequence checks that a message that was sent after the response to another one of its
// queue and group, or after it in the same request, comes after it.
func (h *fifoHistory) checkSequence(a *verdict, byNumber map[int]*fifoMessage) {
	byGroup := map[string][]fifoSend{}
	for _, s := range h.sends {
		if m := byNumber[s.n]; m != nil && !s.invalid && !s.again {
			byGroup[s.queue+fifoGroup(s.n)] = append(byGroup[s.queue+fifoGroup(s.n)], s)
			if last := byNumber[s.follows]; s.follows > 0 && last != nil && m.number < last.number {
				a.violate("out of order: FIFO message %d was sent after %d in a batch, and has the sequence number %s before %s", m.n, last.n, m.number, last.number)
			}
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
				a.violate("out of order: FIFO message %d was sent after %d, and has the sequence number %s before %s", m.n, last.n, m.number, last.number)
			}
		}
	}
}

// countMoved returns the number of messages that the tasks have counted.
func (h *fifoHistory) countMoved() (n int) {
	for _, moved := range h.moved {
		n += moved
	}
	return n
}

// String describes how much the history has.
func (h *fifoHistory) String() string {
	unknown, repeated, invalid, dead, delivered, deleted, refused := 0, 0, 0, 0, 0, 0, 0
	for _, s := range h.sends {
		switch {
		case s.again:
			repeated++
		case s.invalid:
			invalid++
		case len(s.ids) == 0:
			unknown++
		case len(s.ids) > 1:
			repeated++
		}
	}
	for _, all := range h.receives {
		delivered += len(all)
		for _, d := range all {
			if d.queue == fifoDead {
				dead++
			}
			if !d.deletedAt.IsZero() {
				deleted++
			}
			if d.refused {
				refused++
			}
		}
	}
	return fmt.Sprintf("%d messages sent, %d of them without a response, %d again, %d refused; %d deliveries, %d from the dead queue, %d deleted, %d deletes refused after their leases; %d tasks moved %d messages back",
		len(h.sends), unknown, repeated, invalid, delivered, dead, deleted, refused, len(h.moved), h.countMoved())
}

// Each case changes a history, and says which violation the check must find.
func TestFIFOCheckFindsEveryViolation(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	number := func(seq int) string { return fmt.Sprintf("%020d", seq) }
	seen := func(queue string, n, seq, attempt int, got float64) fifoSeen {
		return fifoSeen{queue: queue, n: n, id: fmt.Sprint("id", n), number: number(seq), attempt: attempt,
			sentAt: at(got - 0.1), gotAt: at(got), leasedUntil: at(got + 1.9), until: at(got + 2)}
	}
	deleted := func(d fifoSeen, sent float64) fifoSeen {
		d.deleteSentAt, d.deletedAt = at(sent), at(sent+0.1)
		return d
	}
	send := func(queue string, n, follows int, sent float64) fifoSend {
		return fifoSend{queue: queue, n: n, follows: follows, sentAt: at(sent), doneAt: at(sent + 1), ids: []string{fmt.Sprint("id", n)}}
	}
	const fail, back = 3, 7 // indexes of receives of 22: its first, and that after it came back
	for name, v := range map[string]struct {
		change func(h *fifoHistory)
		want   string // the beginning of the violation; empty if there is none
	}{
		"no violation":   {func(h *fifoHistory) {}, ""},
		"lost":           {func(h *fifoHistory) { h.receives = slices.Delete(h.receives, 2, 3) }, "lost: FIFO message 61"},
		"unknown send":   {func(h *fifoHistory) { h.sends = append(h.sends, fifoSend{queue: fifoIDs, n: 81}) }, ""},
		"recovered send": {func(h *fifoHistory) { h.sends[2].ids = nil }, ""},
		"never sent":     {func(h *fifoHistory) { h.sends = slices.Delete(h.sends, 2, 3) }, "unexpected: FIFO message 61"},
		"invalid":        {func(h *fifoHistory) { h.sends[2].invalid = true }, "unexpected: FIFO message 61"},
		"never deleted":  {func(h *fifoHistory) { d := &h.receives[2][0]; d.deleteSentAt, d.deletedAt = time.Time{}, time.Time{} }, "lost: FIFO message 61"},
		"delete unknown": {func(h *fifoHistory) { h.receives[2][0].deletedAt = time.Time{} }, ""},
		"delete refused": {func(h *fifoHistory) { d := &h.receives[2][0]; d.deletedAt, d.refused = time.Time{}, true }, "lost: FIFO message 61"},
		"a duplicate":    {func(h *fifoHistory) { h.sends[0].ids = append(h.sends[0].ids, "id21") }, ""},
		"two ids":        {func(h *fifoHistory) { h.sends[0].ids = append(h.sends[0].ids, "x") }, "sent twice: FIFO message 21"},
		"received as two": {func(h *fifoHistory) {
			d := deleted(seen(fifoIDs, 21, 4, 1, 7), 8)
			d.id = "x"
			h.receives = append(h.receives, []fifoSeen{d})
		}, "sent twice: FIFO message 21"},
		"its number":           {func(h *fifoHistory) { h.sends[0].numbers = []string{number(1)} }, ""},
		"another number":       {func(h *fifoHistory) { h.sends[0].numbers = []string{number(2)} }, "sequence numbers: FIFO message 21"},
		"deleted late":         {func(h *fifoHistory) { h.receives[2][0] = deleted(h.receives[2][0], 7.5) }, "deleted after its lease: FIFO message 61"},
		"late and no more":     {func(h *fifoHistory) { h.receives[0][0] = deleted(h.receives[0][0], 4.5) }, ""},
		"late and still there": {func(h *fifoHistory) { h.receives[0][0] = deleted(h.receives[0][0], 2.5) }, "deleted after its lease: FIFO message 21"},
		"after its delete":     {func(h *fifoHistory) { h.receives = append(h.receives, []fifoSeen{seen(fifoIDs, 61, 3, 2, 9)}) }, "received after its delete: FIFO message 61"},
		"two consumers":        {func(h *fifoHistory) { h.receives[1][0].attempt = 1 }, "two consumers: FIFO message 21"},
		"two in a lease":       {func(h *fifoHistory) { h.receives[1][0].gotAt = at(1.8) }, "two consumers: FIFO message 21"},
		"two after a change":   {func(h *fifoHistory) { h.receives[1][0].gotAt, h.receives[0][0].leasedUntil = at(1.8), at(1) }, ""},
		"an attempt missing":   {func(h *fifoHistory) { h.receives[1][0].attempt = 3 }, "attempts jump: FIFO message 21"},
		"a missing one unknown": {func(h *fifoHistory) {
			h.receives[1][0].attempt = 3
			h.unknown = []span{{fifoIDs, at(1), at(2)}}
		}, ""},
		"unknown elsewhere": {func(h *fifoHistory) {
			h.receives[1][0].attempt = 3
			h.unknown = []span{{fifoContent, at(1), at(2)}, {fifoIDs, at(10), at(12)}}
		}, "attempts jump: FIFO message 21"},
		"next too early":      {func(h *fifoHistory) { h.receives[2][0].gotAt = at(3.8) }, "out of order: FIFO message 61 was received"},
		"next alone":          {func(h *fifoHistory) { h.receives = append(h.receives, []fifoSeen{seen(fifoIDs, 41, 2, 3, 2.5)}) }, "out of order: FIFO message 41 was received"},
		"not in order":        {func(h *fifoHistory) { slices.Reverse(h.receives[1]) }, "out of order: FIFO message 41 was received"},
		"not as sent":         {func(h *fifoHistory) { h.sends[1].sentAt, h.sends[1].doneAt = at(-9), at(-8) }, "out of order: FIFO message 21 was sent after 41,"},
		"not as in the batch": {func(h *fifoHistory) { h.sends[0].follows, h.sends[0].sentAt = 41, at(-3) }, "out of order: FIFO message 21 was sent after 41 in a batch"},
		"moved":               {func(h *fifoHistory) { h.receives[1][0].queue, h.receives[1][0].number = fifoDead, number(9) }, "moved: FIFO message 21"},
		"moved at once":       {func(h *fifoHistory) { h.sends[3].queue = fifoIDs }, "moved: FIFO message 22"},

		"next of the dead": {func(h *fifoHistory) {
			h.receives = append(h.receives, []fifoSeen{deleted(seen(fifoContent, 42, 12, 1, 20), 21)})
		}, ""},
		"next before it dies": {func(h *fifoHistory) {
			h.receives = append(h.receives, []fifoSeen{deleted(seen(fifoContent, 42, 12, 1, 15.5), 16)})
		}, "out of order: FIFO message 42 was received"},
		"before it comes back": {func(h *fifoHistory) {
			h.receives = append(h.receives, []fifoSeen{deleted(seen(fifoContent, 42, 15, 1, 25.5), 27)})
		}, "out of order: FIFO message 42 was received"},
		"dead too early": {func(h *fifoHistory) { h.receives = slices.Delete(h.receives, fail+2, fail+3) }, "attempts jump: FIFO message 22"},
		"dead at once":   {func(h *fifoHistory) { h.receives = slices.Delete(h.receives, fail, fail+3) }, "attempts jump: FIFO message 22"},
		"dead after unknown": {func(h *fifoHistory) {
			h.receives = slices.Delete(h.receives, fail+2, fail+3)
			h.unknown = []span{{fifoContent, at(15), at(16)}}
		}, ""},
		"dead in its lease": {func(h *fifoHistory) { h.receives[fail+3][0].gotAt = at(17.8) }, "two consumers: FIFO message 22"},
		"received too often": {func(h *fifoHistory) {
			d := &h.receives[fail+3][0]
			d.queue, d.number, d.attempt = fifoContent, number(11), 4
		}, "attempts jump: FIFO message 22"},
		"back without a task":   {func(h *fifoHistory) { h.tasks = nil }, "undead: FIFO message 22"},
		"never seen dead":       {func(h *fifoHistory) { h.receives = slices.Delete(h.receives, fail+3, fail+4) }, ""},
		"nor a task":            {func(h *fifoHistory) { h.receives, h.tasks = slices.Delete(h.receives, fail+3, fail+4), nil }, "undead: FIFO message 22"},
		"dead again":            {func(h *fifoHistory) { h.receives[back][0].queue = fifoDead }, "attempts jump: FIFO message 22"},
		"not counted":           {func(h *fifoHistory) { h.moved = nil }, "not counted"},
		"deleted after it died": {func(h *fifoHistory) { h.receives[fail+2][0] = deleted(h.receives[fail+2][0], 18.5) }, ""},
		"deleted and dead":      {func(h *fifoHistory) { h.receives[fail+2][0] = deleted(h.receives[fail+2][0], 16.5) }, "received after its delete: FIFO message 22"},
	} {
		h := &fifoHistory{
			// 21 and 41 return after their leases, then they and 61 are deleted. 22 dies, and is
			// deleted when it has come back.
			sends: []fifoSend{send(fifoIDs, 21, 0, -5), send(fifoIDs, 41, 21, -3), send(fifoIDs, 61, 0, -1), send(fifoContent, 22, 0, 9), send(fifoContent, 42, 0, 11)},
			receives: [][]fifoSeen{
				{seen(fifoIDs, 21, 1, 1, 0), seen(fifoIDs, 41, 2, 1, 0)},
				{deleted(seen(fifoIDs, 21, 1, 2, 3), 4), deleted(seen(fifoIDs, 41, 2, 2, 3), 4)},
				{deleted(seen(fifoIDs, 61, 3, 1, 5), 6)},
				{seen(fifoContent, 22, 11, 1, 10)},
				{seen(fifoContent, 22, 11, 2, 13)},
				{seen(fifoContent, 22, 11, 3, 16)},
				{seen(fifoDead, 22, 13, 1, 19)},
				{deleted(seen(fifoContent, 22, 14, 1, 25), 26)},
			},
			tasks: []span{{fifoDead, at(22), at(24)}},
			moved: map[int64]int{1: 1},
		}
		h.sends[4].ids = nil // unless a case receives it
		v.change(h)
		a := &verdict{}
		h.check(a)
		found := slices.ContainsFunc(a.violations, func(s string) bool { return strings.HasPrefix(s, v.want) })
		if v.want == "" && len(a.violations) > 0 || !found && v.want != "" {
			t.Errorf("%s: violations %q, want %q", name, a.violations, v.want)
		}
	}
}
