package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestWatermarkStaysBelowWakeUps(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	for what, v := range map[string]struct {
		do   func(w *watermark)
		want time.Time
	}{
		"a claim raises it": {func(w *watermark) {
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
		}, at(950)},
		"a claim does not lower it": {func(w *watermark) {
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
			w.raise(w.begin(), claimPart{last: at(960), now: at(2000)})
		}, at(950)},
		"a wake lowers it": {func(w *watermark) {
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
			w.lower(at(500))
		}, at(500)},
		"a wake for later does not": {func(w *watermark) {
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
			w.lower(at(1500))
		}, at(950)},
		"a wake for any time does": {func(w *watermark) {
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
			w.lower(time.Time{})
		}, time.Time{}},
		"a wake during a claim holds it down": {func(w *watermark) {
			from := w.begin()
			w.lower(at(700))
			w.lower(at(800))
			w.raise(from, claimPart{last: at(1000), now: at(2000)})
		}, at(700)},
		"a wake before a claim does not": {func(w *watermark) {
			w.lower(at(700))
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
		}, at(950)},
		"a clock that was set back resets it": {func(w *watermark) {
			w.raise(w.begin(), claimPart{last: at(1000), now: at(2000)})
			w.check(at(900))
		}, time.Time{}},
	} {
		w := &watermark{}
		v.do(w)
		if !w.at.Equal(v.want) {
			t.Errorf("%s: the mark is at %v, want %v", what, w.at, v.want)
		}
	}
}

// Claims scan from the low-water mark. A sweep finds a message that became due below
// it without a notification.
func TestMessageBelowTheWatermarkIsFoundByASweep(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2)
	s.receive("t", "?limit=1&wait_seconds=5")
	if s.watermark("t").IsZero() {
		t.Error("the receive did not raise the low-water mark of its queue")
	}
	s.schedule("-10 s", ids[1])
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	checkDiff(t, "received", []int{2}, numbers(s.await(poll)))
}

// A queue whose short polls always find a message never has a waiting receiver.
func TestSweepLowersTheWatermarkOfAQueueWithoutReceivers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2)
	s.receive("t", "?limit=1")
	before := s.watermark("t")
	s.schedule("-10 s", ids[1])
	eventually(t, "the mark is lowered", func() bool { return s.watermark("t").Before(before) })
}

// A short poll does not scan below the mark, which takes long while old rows cannot be
// removed. A sweep lowers the mark.
func TestShortPollsFindAMessageBelowTheWatermarkAfterASweep(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2)
	s.receive("t", "?limit=1")
	s.schedule("-10 s", ids[1])
	eventually(t, "a short poll finds the message", func() bool { return len(s.receive("t", "")) == 1 })
}

// statements returns how often the engine has run a statement.
func (s *testServer) statements(name string) int {
	s.t.Helper()
	for line := range strings.Lines(s.must(200, "GET", "/metrics", "")) {
		var n int
		if _, err := fmt.Sscanf(line, "queued_statement_duration_seconds_count{statement=\""+name+"\"} %d", &n); err == nil {
			return n
		}
	}
	return 0
}

func TestShortPollsOfAnEmptyQueueTakeOneStatementEach(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.receive("t", "")
	all := func() (n int) {
		for _, name := range []string{"claim", "lease_terms", "next_due", "claim_groups"} {
			n += s.statements(name)
		}
		return n
	}
	before := all()
	for range 5 {
		s.receive("t", "")
		s.must(200, "POST", "/queues/t/messages/receive", "")
	}
	checkDiff(t, "statements", 10, all()-before)
	s.publish("t", 1)
	checkDiff(t, "received after a publish", []int{1}, numbers(s.receive("t", "")))
}
