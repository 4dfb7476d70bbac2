package main

import (
	"fmt"
	"testing"
)

func TestPublishToAFullQueueIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`, `"max_messages":3`)
	s.publish("t", 1, 2, 3)
	leased := s.receive("u", "?limit=1")[0].ID // counts, too
	full := func(server *testServer) {
		t.Helper()
		eventually(t, "the queue is full", func() bool { return server.do("POST", "/queues/u/messages", `{"data":{}}`).status == 429 })
	}
	full(s)
	others, stored := s.messagesIn("t"), s.messagesIn("u")
	for _, path := range []string{"/topics/t/messages", "/queues/u/messages"} {
		v := s.do("POST", path, `{"data":{}}`)
		checkDiff(t, path, `429 1 {"detail":"queue \"u\" is full: it has 3 messages or more (max_messages); try again later"}`, fmt.Sprint(v.status, " ", v.header.Get("Retry-After"), " ", v.body))
		s.must(429, "POST", path+"/batch", `{"messages":[{"data":{}}]}`)
		s.must(429, "POST", path, `{"data":{},"deduplication_id":"i"}`)
		s.must(429, "POST", path, fmt.Sprintf(`{"data":{},"ack":[%q]}`, leased))
	}
	s.must(429, "POST", "/in/u", "text")
	checkDiff(t, "stored by refused publishes", 0, s.messagesIn("t")+s.messagesIn("u")-others-stored)
	s.must(201, "POST", "/queues/t/messages", `{"data":{}}`)
	full(newTestServerOn(t, s.dsn)) // which has published nothing
	s.must(204, "PUT", "/queues/u/purge", "")
	eventually(t, "the queue is not full", func() bool { return s.do("POST", "/queues/u/messages", `{"data":{}}`).status == 201 })
	full(s)
	s.must(200, "PUT", "/queues/u", `{"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600,"max_messages":null}`)
	s.publish("t", 5, 6, 7, 8)
}
