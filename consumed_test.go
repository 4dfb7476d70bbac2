package main

import (
	"context"
	"testing"
)

const keeping = `"consumed_retention_seconds":3600`

func (s *testServer) keptIn(queueID string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM queued.consumed c JOIN queued.queues q ON q.key = c.queue_key WHERE q.id = $1", queueID)
}

func (s *testServer) fillConsumed(queueID string, many int) {
	s.t.Helper()
	s.exec(`INSERT INTO queued.consumed (queue_key, consumed_at, seq, id, data, size, delivery_attempts, expired_at, scheduled_at, created_at)
		SELECT key, now(), n, gen_random_uuid(), '{}', 2, 1, now() + interval '1 h', now(), now()
		FROM queued.queues, generate_series(1, $2) AS n WHERE id = $1`, queueID, many)
}

func (s *testServer) setRetention(queueID, seconds string) {
	s.t.Helper()
	s.must(200, "PUT", "/queues/"+queueID, `{"ack_deadline_seconds":60,"message_retention_seconds":3600,"consumed_retention_seconds":`+seconds+`}`)
}

func TestOnlyQueuesWithTheSettingKeepWhatWasConsumed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3, 4)
	for i, retention := range []string{"null", "60", "null"} {
		s.setRetention("t", retention)
		if retention == "null" {
			s.exec("DELETE FROM queued.consumed")
		}
		s.must(200, "GET", "/queue/t", "")
		checkDiff(t, "kept with "+retention, i%2, s.keptIn("t"))
	}
}

func TestAckedMessagesAreNotKept(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", keeping)
	s.publish("t", 1)
	s.must(204, "PUT", "/messages/"+s.receive("t", "")[0].ID+"/ack", "")
	checkDiff(t, "kept", 0, s.keptIn("t"))
}

func TestWhatWasConsumedAndGivenBackIsNotKept(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", keeping)
	s.publish("t", 1, 2, 3)
	before := s.state()
	ctx := context.Background()
	v, err := s.engine.consume(ctx, "t", 2, 0)
	if err != nil || len(v.messages) != 2 {
		t.Fatalf("consume = %+v, %v, want two messages", v.messages, err)
	}
	checkDiff(t, "kept", 2, s.keptIn("t"))
	s.engine.giveBack("t", v.messages)
	s.exec("UPDATE queued.messages SET updated_at = created_at")
	checkDiff(t, "what is there after it was given back", before, s.state())

	v, err = s.engine.consume(ctx, "t", 2, 0)
	if err != nil || len(v.messages) != 2 {
		t.Fatalf("consume = %+v, %v, want two messages again", v.messages, err)
	}
	s.engine.giveBack("t", v.messages[:1])
	checkDiff(t, "kept", 1, s.keptIn("t"))
	checkDiff(t, "received then", []int{1, 3}, numbers(s.receive("t", "")))
}
