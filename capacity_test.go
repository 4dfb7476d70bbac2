package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
)

// full publishes to a queue until that is refused, and waits for a count that began
// afterwards: an earlier one may have missed the last messages.
func (s *testServer) full(queueID string) {
	s.t.Helper()
	refused := func() bool { return s.do("POST", "/queues/"+queueID+"/messages", `{"data":{}}`).status == 429 }
	eventually(s.t, "queue "+queueID+" is full", func() bool {
		if !refused() {
			return false
		}
		since := time.Now()
		s.depth.mu.Lock()
		s.depth.notBefore = time.Time{}
		s.depth.mu.Unlock()
		eventually(s.t, "a new count", func() bool {
			_, began := s.depth.latest()
			return began.After(since)
		})
		return refused()
	})
}

func TestPublishToAFullQueueIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`, `"max_messages":3`)
	s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{}},{"data":{}},{"data":{}}]}`) // one by one, the last could be refused: the count is an estimate
	leased := s.receive("u", "?limit=1")[0].ID                                                            // counts, too
	s.full("u")
	others, stored := s.messagesIn("t"), s.messagesIn("u")
	for _, path := range []string{"/topics/t/messages", "/queues/u/messages"} {
		v := s.do("POST", path, `{"data":{}}`)
		checkDiff(t, path, `429 1 {"detail":"queue \"u\" is full: it has 3 messages or more (max_messages); try again later"}`, fmt.Sprint(v.status, " ", v.header.Get("Retry-After"), " ", v.body))
		s.must(429, "POST", path+"/batch", `{"messages":[{"data":{}}]}`)
		s.must(429, "POST", path, `{"data":{},"deduplication_id":"i"}`)
		s.must(429, "POST", path, fmt.Sprintf(`{"data":{},"ack":[%q]}`, leased))
	}
	s.must(429, "POST", "/in/u", "text")
	s.must(429, "POST", "/enqueue/u/g/", `{"job_id":"j","payload":{},"interval":1}`)
	checkDiff(t, "stored by refused publishes", 0, s.messagesIn("t")+s.messagesIn("u")-others-stored)
	s.must(201, "POST", "/queues/t/messages", `{"data":{}}`)
	newTestServerOn(t, s.dsn).full("u") // a server that has published nothing
	s.must(204, "PUT", "/queues/u/purge", "")
	eventually(t, "the queue is not full", func() bool { return s.do("POST", "/queues/u/messages", `{"data":{}}`).status == 201 })
	s.full("u")
}

// A server that has refused a publish knows of a new limit as soon as it is set, here or at
// another server.
func TestNewMaxMessagesAppliesAtOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	const settings = `"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600`
	other := newTestServerOn(t, s.dsn)
	for _, by := range []*testServer{s, other} {
		for _, path := range []string{"/topics/t/messages", "/queues/u/messages"} {
			s.mustQueue("u", `"topic_id":"t"`, `"max_messages":1`)
			s.full("u")
			s.must(429, "POST", path, `{"data":{}}`)
			s.must(429, "POST", path, `{"data":{},"deduplication_id":"i"}`)
			by.must(200, "PUT", "/queues/u", `{`+settings+`,"max_messages":1000}`)
			s.must(201, "POST", path, `{"data":{}}`)
			by.must(200, "PUT", "/queues/u", `{`+settings+`,"max_messages":1}`)
			s.must(429, "POST", path, `{"data":{}}`)
			by.must(200, "PUT", "/queues/u", `{`+settings+`,"max_messages":null}`)
			s.must(201, "POST", path, `{"data":{},"deduplication_id":"i"}`)
			s.must(204, "DELETE", "/queues/u", "")
		}
	}
}

// A publish that was stored and whose response was lost can be repeated, also if the queue is
// full meanwhile: otherwise it would be stored twice at the end of the deduplication window.
func TestRepeatedPublishToAFullQueueIsADuplicate(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`, `"max_messages":2`)
	s.mustQueue("from")
	s.must(201, "POST", "/queues/from/messages", `{"data":{}}`)
	acks := fmt.Sprintf(`{"data":{},"deduplication_id":"i","ack":[%q]}`, s.receive("from", "?wait_seconds=20")[0].ID)
	s.must(201, "POST", "/topics/t/messages", acks)
	s.full("u")
	for _, body := range []string{`{"data":{},"deduplication_id":"i"}`, acks} {
		for _, path := range []string{"/topics/t/messages", "/queues/u/messages"} {
			if v := s.must(201, "POST", path, body); !strings.Contains(v, `"duplicate":true`) {
				t.Errorf("POST %s %s = %s, want a duplicate", path, body, v)
			}
		}
	}
	stored := s.messagesIn("u")
	s.must(429, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{},"deduplication_id":"i"},{"data":{},"deduplication_id":"j"}]}`)
	s.must(429, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{},"deduplication_id":"i"},{"data":{}}]}`)
	checkDiff(t, "stored", stored, s.messagesIn("u"))
}

func TestPublishOfSQLToAFullQueueIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`, `"max_messages":2`)
	db := s.plainDB("")
	id := mustSelect(t, db, `SELECT queued.publish('t', '{}', deduplication_id => 'i')`)[1] // after that in t
	counted := func(full int) {
		t.Helper()
		eventually(t, fmt.Sprint("a count marks ", full, " queues"), func() bool {
			s.must(200, "GET", "/metrics", "") // counts
			return s.count("SELECT count(*) FROM queued.queues WHERE full_until > now()") == full
		})
	}
	others := s.messagesIn("t")
	mustSelect(t, db, `SELECT queued.send('u', '{}')`)
	counted(1)
	for _, call := range []string{`publish('t', '{}')`, `send('u', '{}')`, `send('u', '{}', deduplication_id => 'j')`} {
		_, err := selectRows(db, "SELECT queued."+call)
		if e := pq.As(err); e == nil || e.Code != "53400" || e.Message != `queue "u" is full: it has 2 messages or more (max_messages)` {
			t.Errorf("%s: %v, want an error about queue u", call, err)
		}
	}
	checkDiff(t, "stored by refused publishes", 2, s.messagesIn("u")+s.messagesIn("t")-others)
	checkDiff(t, "id of a duplicate", id, mustSelect(t, db, `SELECT queued.send('u', '{}', deduplication_id => 'i')`)[0])

	// A mark is over when no server counts any more, when the limit changes, and when a count
	// finds fewer messages.
	s.exec("UPDATE queued.queues SET full_until = now() WHERE full_until IS NOT NULL")
	mustSelect(t, db, `SELECT queued.send('u', '{}')`)
	counted(1)
	s.must(200, "PUT", "/queues/u", `{"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600,"max_messages":3}`)
	mustSelect(t, db, `SELECT queued.send('u', '{}')`)
	counted(1)
	s.must(204, "PUT", "/queues/u/purge", "")
	counted(0)
	mustSelect(t, db, `SELECT queued.send('u', '{}')`)
}
