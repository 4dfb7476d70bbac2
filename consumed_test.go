package main

import (
	"context"
	"fmt"
	"testing"
)

// keeping is the setting of a queue that keeps consumed messages for an hour.
const keeping = `"consumed_retention_seconds":3600`

// keptIn returns the number of consumed messages of a queue in the database, listed or
// not.
func keptIn(s *testServer, queueID string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM queued.consumed_messages c JOIN queued.queues q ON q.key = c.queue_key WHERE q.id = $1", queueID)
}

// setConsumedRetention changes how long a queue keeps consumed messages.
func setConsumedRetention(s *testServer, queueID, seconds string) {
	s.t.Helper()
	s.must(200, "PUT", "/queues/"+queueID, `{"ack_deadline_seconds":60,"message_retention_seconds":3600,"consumed_retention_seconds":`+seconds+`}`)
}

func TestConsumedMessagesAreListedAsDeliveredLatestFirst(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", keeping)
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n": 1},"attributes":{"a":"b"}}`)
	s.publish("t", 2, 3)
	s.exec("UPDATE queued.messages SET delivery_attempts = 4, scheduled_at = now() - interval '1 s' WHERE data->>'n' = '1'")
	v, err := s.engine.consume(context.Background(), "t", 1, 0)
	if err != nil || len(v.messages) != 1 {
		t.Fatalf("consume = %+v, %v, want one message", v.messages, err)
	}
	s.play([]step{
		{"GET", "/queues/t/messages/consumed", "", 200, `{"data":[{"id":"UUID","queue_id":"t","data":{"n": 1},"attributes":{"a":"b"},"delivery_attempts":5,` +
			`"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME","state":"consumed","consumed_at":"TIME"}]}`},
	})
	var delivered wireMessage
	mustDecode(t, string(v.messages[0].appendJSON(nil, shown{})), &delivered)
	checkDiff(t, "listed", []wireMessage{delivered}, s.consumed("t", ""))
	var at struct {
		Data []struct {
			ConsumedAt string `json:"consumed_at"`
		}
	}
	mustDecode(t, s.must(200, "GET", "/queues/t/messages/consumed", ""), &at)
	checkDiff(t, "consumed_at", delivered.UpdatedAt, at.Data[0].ConsumedAt)

	s.must(200, "GET", "/queue/t", "")
	s.must(200, "GET", "/out/t", "")
	checkDiff(t, "listed", []int{3, 2, 1}, numbers(s.consumed("t", "")))
	checkDiff(t, "page", []int{2, 1}, numbers(s.consumed("t", "?offset=1&limit=2")))
	checkDiff(t, "left", 0, s.messagesIn("t"))
}

func TestListOfConsumedChecksItsParameters(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.play([]step{
		{"GET", "/queues/q/messages/consumed", "", 200, `{"data":[]}`},
		{"GET", "/queues/q/messages/consumed?limit=300&offset=9", "", 200, `{"data":[]}`},
		{"GET", "/queues/nope/messages/consumed", "", 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/q/messages/consumed?limit=301&offset=-1", "", 422, `{"detail":[` +
			`{"loc":["query","offset"],"msg":"ensure this value is greater than or equal to 0","type":"value_error.number.not_ge","ctx":{"limit_value":0}},` +
			`{"loc":["query","limit"],"msg":"ensure this value is less than or equal to 300","type":"value_error.number.not_le","ctx":{"limit_value":300}}]}`},
		{"GET", "/queues/q/messages/consumed?limit=0", "", 200, `{"data":[]}`},
		{"GET", "/queues/q/messages/consumed?offset=x", "", 422, `{"detail":[{"loc":["query","offset"],"msg":"value is not a valid integer","type":"type_error.integer"}]}`},
	})
}

func TestListOfConsumedReturnsAtMostItsSize(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", keeping)
	s.publish("t", 1, 2, 3)
	for range 3 {
		s.must(200, "GET", "/queue/t", "")
	}
	s.exec("UPDATE queued.consumed_messages SET bytes = $1", deliverySize/2)
	checkDiff(t, "listed", []int{3, 2}, numbers(s.consumed("t", "")))
	s.exec("UPDATE queued.consumed_messages SET bytes = $1", deliverySize+1)
	checkDiff(t, "listed", []int{3}, numbers(s.consumed("t", "")))
}

// A server caches the setting, and still follows a change at once.
func TestOnlyQueuesWithTheSettingKeepWhatWasConsumed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3, 4)
	for i, retention := range []string{"null", "60", "null"} {
		setConsumedRetention(s, "t", retention)
		if retention == "null" {
			s.exec("DELETE FROM queued.consumed_messages")
		}
		s.must(200, "GET", "/queue/t", "")
		checkDiff(t, "kept with "+retention, i%2, keptIn(s, "t"))
	}
}

func TestAckedMessagesAreNotKept(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", keeping)
	s.publish("t", 1)
	s.must(204, "PUT", "/messages/"+s.receive("t", "")[0].ID+"/ack", "")
	checkDiff(t, "kept", 0, keptIn(s, "t"))
}

func TestReleasedConsumedMessagesAreNotKept(t *testing.T) {
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
	checkDiff(t, "kept", 2, keptIn(s, "t"))
	s.engine.release("t", v.messages)
	s.changeMessages("updated_at = created_at")
	checkDiff(t, "state after the release", before, s.state())

	v, err = s.engine.consume(ctx, "t", 2, 0)
	if err != nil || len(v.messages) != 2 {
		t.Fatalf("consume = %+v, %v, want two messages again", v.messages, err)
	}
	s.engine.release("t", v.messages[:1])
	checkDiff(t, "listed", []int{2}, numbers(s.consumed("t", "")))
	checkDiff(t, "received then", []int{1, 3}, numbers(s.receive("t", "")))
}

func TestConsumedMessagesGoWhenTheirTimeIsOver(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"t", "shortened", "off"} {
		s.mustTopic(id, keeping)
		s.publish(id, 1, 2)
		s.must(200, "GET", "/queue/"+id, "")
		s.must(200, "GET", "/queue/"+id, "")
	}
	s.exec("UPDATE queued.consumed_messages SET " + shift("consumed_at", "-10 min") + " WHERE data->>'n' = '1'")
	s.mustCleanUp()
	checkDiff(t, "kept within their time", 6, s.count("SELECT count(*) FROM queued.consumed_messages"))

	s.exec("UPDATE queued.consumed_messages SET " + shift("consumed_at", "-50 min") + " WHERE data->>'n' = '1' AND queue_key = (SELECT key FROM queued.queues WHERE id = 't')")
	setConsumedRetention(s, "shortened", "300")
	setConsumedRetention(s, "off", "null")
	want := map[string][]int{"t": {2}, "shortened": {2}, "off": {}}
	for id := range want {
		checkDiff(t, "listed of "+id+" before the cleanup", want[id], numbers(s.consumed(id, "")))
		checkDiff(t, "kept of "+id+" before the cleanup", 2, keptIn(s, id))
	}
	s.mustCleanUp()
	for id := range want {
		checkDiff(t, "kept of "+id, len(want[id]), keptIn(s, id))
	}
}

func TestCleanupRemovesConsumedMessagesInBatches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", keeping)
	s.fillConsumed("q", 2*cleanupBatch+1)
	s.exec("UPDATE queued.consumed_messages SET consumed_at = now() - interval '1 h'")
	s.fillConsumed("q", 1)
	c := &cleanup{store: s.store}
	if err := c.removeConsumed(context.Background(), s.homeOf("q")); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "kept", 1, keptIn(s, "q"))
	s.wantMetrics(`queued_statement_duration_seconds_count{statement="remove_consumed"} 4`)
}

func TestConsumedMessagesOfDeletedQueuesGo(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"gone", "stays"} {
		s.mustQueue(id, keeping)
		s.fillConsumed(id, 3)
	}
	s.must(204, "DELETE", "/queues/gone", "")
	s.mustQueue("gone", keeping)
	checkDiff(t, "listed of the queue that was created again", []wireMessage{}, s.consumed("gone", ""))
	s.exec("UPDATE queued.deleted_queues SET deleted_at = now() - interval '2 h'")
	s.mustCleanUp()
	checkDiff(t, "kept", 3, s.count("SELECT count(*) FROM queued.consumed_messages"))
	checkDiff(t, "kept of the other queue", 3, keptIn(s, "stays"))
	checkDiff(t, "keys of deleted queues", 0, s.count("SELECT count(*) FROM queued.deleted_queues"))
}

func TestPurgeDeletesWhatWasConsumed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"q", "other"} {
		s.mustQueue(id, keeping)
		s.fillConsumed(id, 2*workBatch+1)
	}
	s.must(204, "PUT", "/queues/q/purge", "")
	checkDiff(t, "kept", 0, keptIn(s, "q"))
	checkDiff(t, "kept of the other queue", 2*workBatch+1, keptIn(s, "other"))
}

func TestLargeConsumedMessagesComeBackWhole(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", keeping)
	data := fmt.Sprintf(`{"n":1,"text":"%0*d"}`, 500_000, 0)
	s.must(201, "POST", "/queues/q/messages", `{"data":`+data+`}`)
	s.must(200, "GET", "/queue/q", "")
	got := s.consumed("q", "")
	if len(got) != 1 || string(got[0].Data) != data {
		t.Errorf("listed %d messages, want the consumed message as it was sent", len(got))
	}
}
