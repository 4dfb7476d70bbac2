package main

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestMetricsCountMessagesByState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	ids := s.publish("t", 1, 2, 3, 4, 5, 6)
	s.receive("t", "?limit=2")
	s.makeDue(ids[0]) // its lease is over
	s.schedule("1 h", ids[2])
	s.expire(ids[3])
	s.changeMessages("created_at = now() - interval '90 s'", ids[4])
	s.wantMetrics(
		`queued_queue_messages{queue="t",state="ready"} 2`,
		`queued_queue_messages{queue="t",state="delayed"} 1`,
		`queued_queue_messages{queue="t",state="in_flight"} 1`,
		`queued_queue_messages{queue="t",state="exhausted"} 1`,
		`queued_queue_messages{queue="dead",state="ready"} 0`,
		`queued_queue_oldest_message_age_seconds{queue="t"} 9`,
		`queued_queue_oldest_message_age_seconds{queue="dead"} 0`,
		`queued_queue_info{dead_queue="dead",queue="t"} 1`,
		`queued_queue_info{dead_queue="",queue="dead"} 1`,
	)
	s.must(204, "DELETE", "/queues/t", "")
	eventually(t, "the deleted queue is forgotten", func() bool {
		return !strings.Contains(s.must(200, "GET", "/metrics", ""), `queue="t"`)
	})
}

func TestSeriesOfAQueueDeletedElsewhereGo(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustTopic("t")
	other.mustTopic("stays")
	other.publish("t", 1)
	other.publish("stays", 1)
	s.must(204, "DELETE", "/queues/t", "")
	eventually(t, "the other server forgets it", func() bool {
		return !strings.Contains(other.must(200, "GET", "/metrics", ""), `queue="t"`)
	})
	other.wantMetrics(`queued_messages_published_total{queue="stays"} 1`)
}

func TestLargeTablesAreCountedInParts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.fill("q", 5000)
	c := newDepthCollector(s.store.db, slog.New(slog.DiscardHandler), s.server.metrics)
	c.homes = s.store.homes
	defer c.close()
	c.homes, c.pages = s.store.homes, 7
	counted, _, err := c.query()
	if err != nil || len(counted) != 1 || counted[0].Ready != 5000 {
		t.Errorf("counted %+v, %v, want 5000 messages", counted, err)
	}
}

func TestCountingTakesATwentiethOfTheTime(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	c := newDepthCollector(s.store.db, slog.New(slog.DiscardHandler), s.server.metrics)
	c.homes = s.store.homes
	defer c.close()
	free := s.lockTable("queued.queues")
	if got, _ := c.latest(); got != nil {
		t.Errorf("a count that is still running has %v", got)
	}
	freed := time.Now()
	free()
	eventually(t, "the count is over", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.counting == nil })
	over := time.Now()
	s.mustQueue("later")
	if got, _ := c.latest(); len(got) != 1 {
		t.Errorf("the next scrape has %v, want the finished count", got)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	least, most := freed.Sub(c.countedAt), over.Sub(c.countedAt) // bounds of the duration of the count
	if wait := c.notBefore.Sub(c.countedAt); wait < countShare*least || wait > countShare*most {
		t.Errorf("a count of %v to %v is followed by the next after %v, want twenty times as long", least, most, wait)
	}
}
