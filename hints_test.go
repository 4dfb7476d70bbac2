package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestLogHasAHintForEachKindOfMistake(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	log := newSyncBuffer()
	s.server.log = newLog(log, slog.LevelInfo, "text")
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.mustQueue("q")
	s.must(201, "POST", "/topics", `{"id":"u"}`)
	s.mustQueue("fr", `"topic_id":"u","message_filters":{"country":["fr"]}`)
	redeliver := func() {
		s.receive("q", "?limit=1")
		s.makeDue()
		s.receive("q", "?limit=1")
	}
	for _, v := range []struct {
		mistake func()
		want    string // the line of the log without its time and request id
	}{
		{func() { s.do("GET", "/topics/t/messages", "") },
			`msg="GET of a path that needs a POST" route="POST /topics/{topic_id}/messages" remedy="send a body, as curl does with -d"`},
		{func() {
			s.must(201, "POST", "/topics/u/messages", `{"data":{},"delay":5,"attributes":{"country":"fr"}}`)
		},
			`msg="unknown field ignored" route="POST /topics/{topic_id}/messages" field=delay remedy="did you mean delay_seconds? the header Prefer: handling=strict refuses unknown fields"`},
		{func() { s.must(404, "POST", "/topics/q/messages", `{"data":{}}`) },
			`msg="publish to a topic that does not exist, but a queue has its name" topic=q remedy="publish to /queues/q/messages, or create a topic and set topic_id of the queue"`},
		{func() { s.must(404, "POST", "/queues/u/messages/batch", `{"messages":[{"data":{}}]}`) },
			`msg="publish to a queue that does not exist, but a topic has its name" queue=u remedy="publish to /topics/u/messages"`},
		{func() { s.must(200, "GET", "/queues/fr/messages?colour=1", "") },
			`msg="unknown field ignored" route="GET /queues/{queue_id}/messages" field=colour remedy="the header Prefer: handling=strict refuses unknown fields"`},
		{func() { s.must(201, "POST", "/topics/t/messages", `{"data":{}}`) },
			`msg="message discarded, no queue subscribes to the topic" topic=t remedy="create a queue with this topic_id, or set it at a queue"`},
		{func() { s.must(201, "POST", "/topics/u/messages/batch", `{"messages":[{"data":{}}]}`) },
			`msg="message discarded, no filter matches it" topic=u remedy="check message_filters of the topic's queues and the attributes of the message"`},
		{func() { s.must(201, "POST", "/queues/q/messages", `{"data":{}}`); redeliver() },
			`msg="message delivered again, its ack deadline had passed" queue=q remedy="ack each message after it was processed"`},
		{func() {
			s.must(204, "PUT", "/queues/q/purge", "")
			s.must(201, "POST", "/queues/q/messages/batch", `{"messages":[{"data":{}},{"data":{}}]}`)
			s.must(204, "PUT", "/messages/"+s.receive("q", "?limit=1")[0].ID+"/ack", "")
			redeliver()
		}, `msg="message delivered again, its ack deadline had passed" queue=q remedy="raise ack_deadline_seconds or extend leases, if the work takes longer"`},
		{func() {
			s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
			s.must(200, "GET", "/queue/q", "")
		}, `msg="message consumed, it is deleted without an ack" queue=q route="GET /queue/{channel}" remedy="GET /queues/q/messages leases messages until they are acked"`},
	} {
		for i := range 2 {
			before := len(log.String())
			v.mistake()
			logged := log.String()[before:]
			if got := strings.Count(logged, v.want); got != 1-i || got == 0 && strings.Contains(logged, "remedy=") {
				t.Errorf("the mistake number %d logs %swant %d lines with %s", i+1, logged, 1-i, v.want)
			}
		}
	}
}

func TestCorrectUseGetsNoHint(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	log := newSyncBuffer()
	s.server.log = newLog(log, slog.LevelInfo, "text")
	s.mustTopic("t")
	before := log.String()
	s.strict().must(422, "POST", "/topics/t/messages", `{"data":{},"delay":5}`)
	s.do("DELETE", "/topics/t/messages", "")
	s.must(404, "POST", "/topics/none/messages", `{"data":{}}`)
	s.must(404, "POST", "/queues/none/messages", `{"data":{}}`)
	s.publish("t", 1)
	for range 3 {
		s.must(204, "PUT", "/messages/"+s.receive("t", "")[0].ID+"/nack", "")
	}
	s.must(204, "PUT", "/messages/"+s.receive("t", "")[0].ID+"/ack", "")
	checkDiff(t, "the log", before, log.String())
}

func TestNumberOfHintsIsBounded(t *testing.T) {
	t.Parallel()
	log := newSyncBuffer()
	var h hints
	for i := range 2 * maxHints {
		h.give(newLog(log, slog.LevelInfo, "text"), "unknown field", fmt.Sprint(i), "event")
	}
	checkDiff(t, "lines", maxHints, strings.Count(log.String(), "\n"))
}
