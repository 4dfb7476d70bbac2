package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// publishAt publishes a message that is due at a time relative to now, such as "1 h", and
// returns it with that time.
func (s *testServer) publishAt(path, in, members string) (m wireMessage, at string) {
	s.t.Helper()
	if err := s.store.db.QueryRow("SELECT to_char((now() + $1::interval) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')", in).Scan(&at); err != nil {
		s.t.Fatal(err)
	}
	return s.messages(s.must(201, "POST", path, fmt.Sprintf(`{"data":{"n":1},"scheduled_at":%q%s}`, at, members)))[0], at
}

func TestPublishAtATime(t *testing.T) {
	t.Parallel()
	for _, members := range []string{``, `,"group":"g"`, `,"deduplication_id":"i"`} {
		s := newTestServer(t)
		s.mustTopic("t", `"delivery_delay_seconds":900`)
		s.mustQueue("q")
		far, at := s.publishAt("/topics/t/messages", "50 min", members)
		checkDiff(t, "scheduled_at", at, far.ScheduledAt)
		checkDiff(t, "stored", far.ScheduledAt, s.peeked("t")[0].ScheduledAt)
		checkDiff(t, "received", 0, len(s.receive("t", "")))
		past, _ := s.publishAt("/queues/t/messages", "-1 h", strings.Replace(members, `"i"`, `"j"`, 1))
		checkDiff(t, "scheduled_at of a past time", past.CreatedAt, past.ScheduledAt)
		checkDiff(t, "due at once", past.ID, s.receive("t", "?limit=10")[0].ID)
		poll := s.poll(t.Context(), "q", "?wait_seconds=30")
		s.waiting("q", 1)
		soon, at := s.publishAt("/queues/q/messages", "1 s", members)
		got := s.await(poll)[0]
		checkDiff(t, "received", soon.ID, got.ID)
		if got.UpdatedAt < at {
			t.Errorf("received at %s, before %s", got.UpdatedAt, at)
		}
	}
}

// A batch has messages with due times and without.
func TestBatchWithTimes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`, `"delivery_delay_seconds":60`)
	_, at := s.publishAt("/queues/t/messages", "40 min", "")
	body := s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{"n":1}},{"data":{"n":2},"scheduled_at":"`+at+`Z"},{"data":{"n":3},"group":"g"},`+
		`{"data":{"n":4},"retention_seconds":100},{"data":{"n":5},"retention_seconds":99999,"delay_seconds":3599}]}`)
	var times []string
	for _, m := range s.messages(body) {
		created, _ := time.Parse(timestampLayout, m.CreatedAt)
		due, _ := time.Parse(timestampLayout, m.ScheduledAt)
		expires, _ := time.Parse(timestampLayout, m.ExpiredAt)
		v := due.Sub(created).String()
		if m.ScheduledAt == at {
			v = "scheduled"
		}
		times = append(times, m.QueueID+" "+v+" "+expires.Sub(created).String())
		for _, stored := range s.peeked(m.QueueID) {
			if stored.ID == m.ID {
				checkDiff(t, "stored", m.ScheduledAt+m.ExpiredAt, stored.ScheduledAt+stored.ExpiredAt)
			}
		}
	}
	checkDiff(t, "due and expired after", "t 0s 1h0m0s, u 1m0s 1h0m0s, t scheduled 1h0m0s, u scheduled 1h0m0s, t 0s 1h0m0s, u 1m0s 1h0m0s, "+
		"t 0s 1m40s, u 1m0s 1m40s, t 59m59s 1h0m0s, u 59m59s 1h0m0s", strings.Join(times, ", "))
}

func TestMessageMustBeDueBeforeItExpires(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("slow", `"delivery_delay_seconds":60`)
	for _, v := range []struct{ members, field string }{
		{`"delay_seconds":3600`, "delay_seconds"},
		{`"delay_seconds":10,"retention_seconds":10`, "retention_seconds"},
		{`"scheduled_at":"2100-01-01T00:00:00"`, "scheduled_at"},
	} {
		for path, place := range map[string]string{"/topics/t/messages": `["body",%q]`, "/queues/t/messages": `["body",%q]`, "/topics/t/messages/batch": `["body","messages",0,%q]`} {
			body := `{"data":{},` + v.members + `}`
			if strings.HasSuffix(path, "batch") {
				body = `{"messages":[` + body + `]}`
			}
			if got := s.must(422, "POST", path, body); !strings.Contains(got, fmt.Sprintf(place, v.field)) || !strings.Contains(got, "would expire in queue") {
				t.Errorf("%s %s: %s", path, body, got)
			}
		}
	}
	if got := s.must(422, "POST", "/queues/slow/messages", `{"data":{},"retention_seconds":60}`); !strings.Contains(got, `["body","retention_seconds"]`) {
		t.Error(got)
	}
	checkDiff(t, "stored", 0, s.count("SELECT count(*) FROM queued.messages"))
	for _, members := range []string{`"scheduled_at":5`, `"scheduled_at":"tomorrow"`, `"scheduled_at":"2026-01-01T00:00:00","delay_seconds":1`,
		`"retention_seconds":0`, `"retention_seconds":"x"`, `"delay_seconds":2147483648`} {
		s.must(422, "POST", "/queues/t/messages", `{"data":{},`+members+`}`)
	}
	s.must(201, "POST", "/queues/t/messages", `{"data":{},"scheduled_at":null,"retention_seconds":null,"delay_seconds":3599}`)
}

// A message that expires earlier than others of its queue is deleted soon, too.
func TestMessageWithAShortRetentionIsDeleted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce, expiry: s.engine.expiries.take}
	if err := c.once(context.Background()); err != nil {
		t.Fatal(err)
	}
	id := s.messages(s.must(201, "POST", "/queues/t/messages", `{"data":{"n":2},"retention_seconds":1}`))[0].ID
	s.expire(id)
	c.rests.table, c.round.began = rest{}, c.round.began.Add(-walkRest)
	eventually(t, "the message is deleted", func() bool {
		if err := c.once(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.rests.table = rest{}
		return s.messagesIn("t") == 1
	})
	checkDiff(t, "left", []int{1}, numbers(s.receive("t", "")))
}
