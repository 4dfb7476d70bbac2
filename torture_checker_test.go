//go:build unix

package main

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"
)

// history has the requests of the clients of the torture test, and the messages that
// they received. Each message has a number, and most have a group. It goes to two lines:
// the ordered queue "plain", and the queue "work" with its dead queue "dead".
type history struct {
	publishes  []published
	deliveries []seen
	unknown    []span // receives without a response, which may have counted attempts
	redrives   []span // from dead to work
	faults     []span // of all queues: a server may lose the response to a claim, or fail to release what no receiver takes
	fifo       fifoHistory
}

// published is a message that a client tried to publish.
type published struct {
	n   int
	ids map[string]string // by line, from a 201, maybe of a repeated request; nil if it is unknown whether it was stored
}

// seen is a message that a client received.
type seen struct {
	queue, id  string
	n, attempt int
	at, until  time.Time // its lease, by the clock of PostgreSQL
	nackedAt   time.Time // when a nack was sent; zero if none was
	ackSentAt  time.Time // when an ack was sent; zero if none was
	ackedAt    time.Time // when the 204 of an ack was received; zero if none was
}

// span is the time in which a request may have had its effect.
type span struct {
	queue    string
	from, to time.Time
}

const tortureDeliveries = 3 // maximum deliveries in work, before a message moves to dead

// tortureGroup returns the group of a message, empty if it has none.
func tortureGroup(n int) string {
	if n%3 == 0 {
		return ""
	}
	return fmt.Sprintf("group %d", n%97)
}

func line(queue string) string {
	if queue == "dead" {
		return "work"
	}
	return queue
}

// verdict is the result of the check, which follows Jepsen's checker total-queue: every
// message of an acknowledged publish must be delivered, and every delivered message must
// have been published.
type verdict struct {
	published, unknown, recovered int // publishes with a 201; without a response; of these, delivered nevertheless
	delivered, repeated           int // deliveries; of these, not the first of a message
	acked, missed                 int // acks with a 204; attempts of receives without a response

	violations []string
}

func (a *verdict) violate(format string, args ...any) {
	a.violations = append(a.violations, fmt.Sprintf(format, args...))
}

func (h *history) check() *verdict {
	a := &verdict{}
	type copyOf struct {
		line string
		n    int
	}
	byCopy := map[copyOf]string{} // to the id that was delivered
	byID := map[string][]*seen{}
	for i := range h.deliveries {
		v := &h.deliveries[i]
		byID[v.id] = append(byID[v.id], v)
		c := copyOf{line(v.queue), v.n}
		if id, other := byCopy[c]; other && id != v.id {
			a.violate("message %d of %s exists twice: as %s and as %s", v.n, c.line, id, v.id)
		}
		byCopy[c] = v.id
	}
	tried := map[int]bool{}
	for _, p := range h.publishes {
		tried[p.n] = true
		if p.ids == nil {
			a.unknown++
		} else {
			a.published++
		}
		came := false
		for _, to := range []string{"work", "plain"} {
			id, delivered := byCopy[copyOf{to, p.n}]
			came = came || delivered
			if p.ids == nil {
				continue
			}
			if !delivered {
				a.violate("lost: message %d of %s, %s, was published with a 201 and never delivered", p.n, to, p.ids[to])
			} else if id != p.ids[to] {
				a.violate("unexpected: message %d of %s is %s and was delivered as %s", p.n, to, p.ids[to], id)
			}
		}
		if p.ids == nil && came {
			a.recovered++
		}
	}
	for c, id := range byCopy {
		if !tried[c.n] {
			a.violate("unexpected: message %d of %s, %s, was never published", c.n, c.line, id)
		}
	}
	a.delivered, a.repeated = len(h.deliveries), len(h.deliveries)-len(byID)
	for _, all := range byID {
		slices.SortFunc(all, func(v, w *seen) int { return cmp.Or(v.at.Compare(w.at), cmp.Compare(v.attempt, w.attempt)) })
		h.checkMessage(a, all)
	}
	h.checkOrdered(a)
	h.fifo.check(a)
	slices.Sort(a.violations)
	return a
}

// checkOrdered checks the order of each group in plain: no message may be delivered while
// another one is in flight, unless an ack or nack of that one has been sent.
func (h *history) checkOrdered(a *verdict) {
	ackedAt := map[string]time.Time{} // by message: when its first ack was sent
	byGroup := map[string][]*seen{}
	for i := range h.deliveries {
		v := &h.deliveries[i]
		if first := ackedAt[v.id]; !v.ackSentAt.IsZero() && (first.IsZero() || v.ackSentAt.Before(first)) {
			ackedAt[v.id] = v.ackSentAt
		}
		if group := tortureGroup(v.n); group != "" && v.queue == "plain" {
			byGroup[group] = append(byGroup[group], v)
		}
	}
	for group, all := range byGroup {
		slices.SortFunc(all, func(v, w *seen) int { return v.at.Compare(w.at) })
		for i, w := range all {
			for _, v := range all[:i] {
				ended := ackedAt[v.id]
				if !v.nackedAt.IsZero() && (ended.IsZero() || v.nackedAt.Before(ended)) {
					ended = v.nackedAt
				}
				if v.id != w.id && v.until.After(w.at) && (ended.IsZero() || ended.After(w.at)) {
					a.violate("out of order: %d of %s at %v, while %d was in flight from %v to %v; in full:%s%s", w.n, group, w.at, v.n, v.at, v.until, h.deliveriesOf(v.id), h.deliveriesOf(w.id))
				}
			}
		}
	}
}

// deliveriesOf describes all deliveries of a message.
func (h *history) deliveriesOf(id string) (out string) {
	const clock = "15:04:05.000000"
	for _, v := range h.deliveries {
		if v.id != id {
			continue
		}
		out += fmt.Sprintf("\n\t%d of %s, attempt %d, leased %s to %s", v.n, v.queue, v.attempt, v.at.Format(clock), v.until.Format(clock))
		for what, at := range map[string]time.Time{"nack sent": v.nackedAt, "ack sent": v.ackSentAt, "acked": v.ackedAt} {
			if !at.IsZero() {
				out += fmt.Sprintf(", %s %s", what, at.UTC().Format(clock))
			}
		}
	}
	return out
}

// checkMessage checks the deliveries of one message, in the order of their leases.
func (h *history) checkMessage(a *verdict, all []*seen) {
	var ackedAt time.Time
	for i, v := range all {
		if !ackedAt.IsZero() && v.at.After(ackedAt) {
			a.violate("delivered after its ack: %s of %s, attempt %d, leased at %v, acked at %v; in full:%s", v.id, v.queue, v.attempt, v.at, ackedAt, h.deliveriesOf(v.id))
		}
		if !v.ackedAt.IsZero() {
			a.acked++
			if ackedAt.IsZero() || v.ackedAt.Before(ackedAt) {
				ackedAt = v.ackedAt
			}
		}
		for _, w := range all[:i] {
			if w.until.After(v.at) && (w.nackedAt.IsZero() || w.nackedAt.After(v.at)) {
				a.violate("two consumers: %s of %s, attempt %d, leased at %v, and of %s, attempt %d, until %v",
					v.id, v.queue, v.attempt, v.at, w.queue, w.attempt, w.until)
			}
		}
		before := &seen{queue: v.queue}
		if i > 0 {
			before = all[i-1]
		}
		h.checkAttempt(a, before, v)
	}
}

// checkAttempt checks that a delivery attempt follows the one before it, which is zero if
// there is none. An attempt may be missing if a receive had no response, or during a fault.
func (h *history) checkAttempt(a *verdict, before, v *seen) {
	missing := 0 // attempts between the two
	exhausted := tortureDeliveries - before.attempt
	switch {
	case v.queue == before.queue && v.attempt > before.attempt:
		missing = v.attempt - before.attempt - 1
	case v.queue == "dead" && before.queue == "work":
		missing = exhausted + v.attempt - 1
	case v.queue == "work" && before.queue == "dead" && during(h.redrives, "dead", before.at, v.at):
		missing = v.attempt - 1
	case v.queue == "work" && before.queue == "work" && during(h.redrives, "dead", before.at, v.at):
		missing = exhausted + v.attempt - 1 // it was in the dead queue in between
	default:
		missing = -1
	}
	if missing < 0 || missing > 0 && !h.mayMissAttempts(before, v) || v.queue == "work" && v.attempt > tortureDeliveries {
		a.violate("attempts jump: %s of %s, attempt %d at %v, after attempt %d in %s at %v; in full:%s",
			v.id, v.queue, v.attempt, v.at, before.attempt, before.queue, before.at, h.deliveriesOf(v.id))
		return
	}
	a.missed += missing
}

// mayMissAttempts reports whether attempts may be missing between two deliveries of a message.
func (h *history) mayMissAttempts(before, v *seen) bool {
	return during(h.unknown, v.queue, before.at, v.at) || during(h.unknown, before.queue, before.at, v.at) || during(h.faults, "", before.at, v.at)
}

// during reports whether one of the spans of a queue has a moment between two times.
func during(spans []span, queue string, from, to time.Time) bool {
	return slices.ContainsFunc(spans, func(s span) bool {
		return s.queue == queue && s.from.Before(to) && s.to.After(from)
	})
}

// Each case changes a history of one message in each line, and says which violation the
// check must find.
func TestHistoryCheckFindsEveryViolation(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	lease := func(queue string, n, attempt int, from float64) seen {
		return seen{queue: queue, id: fmt.Sprint(line(queue), n), n: n, attempt: attempt, at: at(from), until: at(from + 2)}
	}
	for name, v := range map[string]struct {
		change func(h *history)
		want   string // the beginning of the violation; empty if there is none
	}{
		"no violation":        {func(h *history) {}, ""},
		"an unknown publish":  {func(h *history) { h.publishes = append(h.publishes, published{n: 2}) }, ""},
		"a recovered publish": {func(h *history) { h.publishes[0].ids = nil }, ""},
		"lost":                {func(h *history) { h.deliveries = h.deliveries[1:] }, "lost: message 1 of plain"},
		"never published":     {func(h *history) { h.deliveries = append(h.deliveries, lease("plain", 7, 1, 0)) }, "unexpected: message 7"},
		"another id":          {func(h *history) { h.publishes[0].ids["plain"] = "x" }, "unexpected: message 1 of plain"},
		"stored twice":        {func(h *history) { v := lease("plain", 1, 1, 0); v.id = "x"; h.deliveries = append(h.deliveries, v) }, "message 1 of plain exists twice"},
		"after its ack":       {func(h *history) { h.deliveries = append(h.deliveries, lease("plain", 1, 2, 9)) }, "delivered after its ack"},
		"before its ack": {func(h *history) {
			h.deliveries[0].ackedAt = at(9)
			h.deliveries = append(h.deliveries, lease("plain", 1, 2, 8))
		}, ""},
		"two consumers":         {func(h *history) { h.deliveries[2].at = at(1.5) }, "two consumers"},
		"two after a nack":      {func(h *history) { h.deliveries[2].at = at(1.5); h.deliveries[1].nackedAt = at(1) }, ""},
		"two before the nack":   {func(h *history) { h.deliveries[2].at = at(1.5); h.deliveries[1].nackedAt = at(1.6) }, "two consumers"},
		"an attempt again":      {func(h *history) { h.deliveries[2].attempt = 1 }, "attempts jump"},
		"an attempt missing":    {func(h *history) { h.deliveries = slices.Delete(h.deliveries, 2, 3) }, "attempts jump"},
		"first attempt missing": {func(h *history) { h.deliveries = slices.Delete(h.deliveries, 1, 2) }, "attempts jump"},
		"a missing one unknown": {func(h *history) {
			h.deliveries = slices.Delete(h.deliveries, 2, 3)
			h.unknown = []span{{"work", at(2), at(3)}}
		}, ""},
		"a missing one during a fault": {func(h *history) {
			h.deliveries = slices.Delete(h.deliveries, 2, 3)
			h.faults = []span{{"", at(2), at(3)}}
		}, ""},
		"a fault at another time": {func(h *history) {
			h.deliveries = slices.Delete(h.deliveries, 2, 3)
			h.faults = []span{{"", at(20), at(30)}}
		}, "attempts jump"},
		"too many attempts during a fault": {func(h *history) {
			h.deliveries[4].queue, h.deliveries[4].attempt = "work", 4
			h.faults = []span{{"", at(0), at(30)}}
		}, "attempts jump"},
		"unknown elsewhere": {func(h *history) {
			h.deliveries = slices.Delete(h.deliveries, 2, 3)
			h.unknown = []span{{"plain", at(2), at(3)}, {"work", at(20), at(30)}}
		}, "attempts jump"},
		"two of an ordered group": {func(h *history) {
			h.deliveries = append(h.deliveries, lease("plain", 98, 1, 0.5))
			h.publishes = append(h.publishes, published{n: 98})
		}, "out of order: 98"},
		"the next of an ordered group": {func(h *history) {
			h.deliveries[0].ackSentAt = at(0.4)
			h.deliveries = append(h.deliveries, lease("plain", 98, 1, 0.5))
			h.publishes = append(h.publishes, published{n: 98})
		}, ""},
		"too many attempts":    {func(h *history) { h.deliveries[4].queue, h.deliveries[4].attempt = "work", 4 }, "attempts jump"},
		"dead too early":       {func(h *history) { h.deliveries = slices.Delete(h.deliveries, 3, 4) }, "attempts jump"},
		"back without redrive": {func(h *history) { h.redrives = nil }, "attempts jump"},
	} {
		h := &history{
			publishes: []published{{1, map[string]string{"plain": "plain1", "work": "work1"}}},
			deliveries: []seen{
				lease("plain", 1, 1, 0),
				lease("work", 1, 1, 0), lease("work", 1, 2, 3), lease("work", 1, 3, 6),
				lease("dead", 1, 1, 9),
				lease("work", 1, 1, 12),
			},
			redrives: []span{{"dead", at(11), at(11.5)}},
		}
		h.deliveries[0].ackedAt = at(1)
		h.deliveries[5].ackedAt = at(13)
		v.change(h)
		got := h.check().violations
		if v.want == "" && len(got) > 0 || v.want != "" && (len(got) == 0 || !slices.ContainsFunc(got, func(s string) bool { return len(s) >= len(v.want) && s[:len(v.want)] == v.want })) {
			t.Errorf("%s: violations %q, want %q", name, got, v.want)
		}
	}
}
