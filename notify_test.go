package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPayloadsAreHeardByOthers(t *testing.T) {
	t.Parallel()
	sender := newNotifier(nil, rand.Text(), slog.New(slog.DiscardHandler))
	listener := newNotifier(nil, rand.Text(), slog.New(slog.DiscardHandler))
	want := map[string]time.Time{"now": {}, "later": time.UnixMicro(1790000000123456)}
	for i := range 500 {
		want[fmt.Sprintf("%d-%s", i, strings.Repeat("x", 100))] = time.UnixMicro(int64(1790000000000000 + i))
	}
	got := map[string]time.Time{}
	payloads := sender.payloads(want)
	for _, payload := range payloads {
		if len(payload) >= 8000 {
			t.Errorf("a payload has %d bytes, want less than the 8000 of PostgreSQL", len(payload))
		}
		listener.hear(payload, func(queueID string, dueAt time.Time) { got[queueID] = dueAt }, func() { t.Error("not understood") })
		sender.hear(payload, func(string, time.Time) { t.Error("heard itself") }, func() { t.Error("heard itself") })
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

func TestForeignPayloadWakesAllReceivers(t *testing.T) {
	t.Parallel()
	n := newNotifier(nil, rand.Text(), slog.New(slog.DiscardHandler))
	for _, payload := range []string{"", "x y", "x y 1 z"} {
		woken := false
		n.hear(payload, func(string, time.Time) {}, func() { woken = true })
		if !woken {
			t.Errorf("payload %q woke no receiver", payload)
		}
	}
}

func TestAnnouncementsAreCoalesced(t *testing.T) {
	t.Parallel()
	n := newNotifier(nil, rand.Text(), slog.New(slog.DiscardHandler))
	early, late := time.UnixMicro(1000), time.UnixMicro(2000)
	n.add("a", late)
	n.add("a", early)
	n.add("a", late)
	n.add("b", early)
	n.add("b", time.Time{})
	if diff := cmp.Diff(map[string]time.Time{"a": early, "b": {}}, n.pending); diff != "" {
		t.Errorf("pending mismatch (-want +got):\n%s", diff)
	}
}

// When the database is available again, no request fails because of a lost connection.
func TestLostConnectionsAreReplacedBeforeTheirNextUse(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	other := newTestServerOn(t, s.dsn)
	for _, v := range []*testServer{s, other} {
		eventually(t, "the server listens", v.engine.main.notifier.listening)
		v.publish("t", 1) // connects the batchers
		v.must(204, "PUT", "/messages/"+v.receive("t", "?wait_seconds=5")[0].ID+"/ack", "")
	}
	// A connection is checked after it was idle for this time, which is shorter than a
	// restart.
	eventually(t, "the connections were idle for a while", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'queued'
			AND state_change > clock_timestamp() - $1 * interval '1 ms' AND pid <> pg_backend_pid()`, idleUnchecked.Milliseconds()) == 0
	})
	s.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	for range 2 {
		id := s.publish("t", 2)[0]
		if got := other.receive("t", "?wait_seconds=5"); len(got) != 1 || got[0].ID != id {
			t.Errorf("received %v, want the message that was just published", got)
		}
		other.must(204, "PUT", "/messages/"+id+"/nack", "")
		s.must(204, "PUT", "/messages/"+id+"/ack", "")
	}
	s.mustQueue("created-after")
}

func TestListenerReconnectsAndSweepsForMissedMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	eventually(t, "the server listens", s.engine.main.notifier.listening)
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	s.fill("t", 1) // without a notification
	const listeners = "SELECT %s FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
	lost := s.count(fmt.Sprintf(listeners, "pid"))
	s.exec("SELECT pg_terminate_backend($1::integer)", lost)
	if got := s.await(poll); len(got) != 1 {
		t.Errorf("received %v, want the message that no notification announced", got)
	}
	eventually(t, "the server listens again", func() bool { return s.count(fmt.Sprintf(listeners, "count(*)")+" AND pid <> $1", lost) == 1 })
}

func TestOtherServersKnowWhenSendNowReturns(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	eventually(t, "the other server listens", func() bool { return other.engine.main.notifier.listening() })
	s.mustTopic("q")
	s.publish("q", 1)
	other.receive("q", "?wait_seconds=5")
	if other.watermark("q").IsZero() {
		t.Fatal("the receive did not raise the low-water mark")
	}
	dueAt := time.Date(2022, 11, 23, 12, 0, 0, 0, time.UTC)
	conn := newPinnedConn(s.store.db, s.server.metrics)
	defer conn.close()
	for range 3 {
		s.engine.main.notifier.add("q", dueAt)
		s.engine.main.notifier.sendNow(conn)
		s.engine.main.notifier.mu.Lock()
		checkDiff(t, "pending", 0, len(s.engine.main.notifier.pending))
		s.engine.main.notifier.mu.Unlock()
	}
	eventually(t, "the low-water mark of the other server is lowered", func() bool { return other.watermark("q").Equal(dueAt) })
}
