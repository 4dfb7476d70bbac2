package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTopicsRespondLikeFastqueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.play([]step{
		{"GET", "/topics", "", 200, `{"data":[]}`},
		{"POST", "/topics", `{"id":"events"}`, 201, `{"id":"events","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":"events"}`, 422, `{"detail":"This topic already exists"}`},
		{"POST", "/topics", `{"id":"Zoo._-9","more":{"is":"ignored"}}`, 201, `{"id":"Zoo._-9","created_at":"TIME"}`},
		{"GET", "/topics", "", 200, `{"data":[{"id":"Zoo._-9","created_at":"TIME"},{"id":"events","created_at":"TIME"}]}`},
		{"GET", "/topics?offset=1&limit=1", "", 200, `{"data":[{"id":"events","created_at":"TIME"}]}`},
		{"GET", "/topics/events", "", 200, `{"id":"events","created_at":"TIME"}`},
		{"GET", "/topics/nope", "", 404, `{"detail":"Topic not found"}`},
		{"DELETE", "/topics/events", "", 204, ``},
		{"DELETE", "/topics/events", "", 404, `{"detail":"Topic not found"}`},
		{"GET", "/topics/events", "", 404, `{"detail":"Topic not found"}`},
	})
}

func TestQueuesRespondLikeFastqueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	dead := `{"id":"dead","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":30,"message_retention_seconds":600,` +
		`"message_filters":null,"message_max_deliveries":null,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`
	q := `{"id":"q","topic_id":"t","dead_queue_id":"dead","ack_deadline_seconds":600,"message_retention_seconds":1209600,` +
		`"message_filters":{"kind":["a<b","1","True"]},"message_max_deliveries":2,"delivery_delay_seconds":900,"created_at":"TIME","updated_at":"TIME"}`
	bare := `{"id":"q","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":1,"message_retention_seconds":600,` +
		`"message_filters":null,"message_max_deliveries":null,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`
	s.play([]step{
		{"POST", "/topics", `{"id":"t"}`, 201, `{"id":"t","created_at":"TIME"}`},
		{"POST", "/queues", `{"id":"dead","ack_deadline_seconds":"30","message_retention_seconds":600}`, 201, dead},
		{"POST", "/queues", `{"id":"dead","ack_deadline_seconds":30,"message_retention_seconds":600}`, 422, `{"detail":"This queue already exists"}`},
		{"POST", "/queues", `{"id":"q","topic_id":"nope","ack_deadline_seconds":30,"message_retention_seconds":600}`, 404, `{"detail":"Topic not found"}`},
		{"POST", "/queues", `{"id":"dead","topic_id":"nope","ack_deadline_seconds":30,"message_retention_seconds":600}`, 404, `{"detail":"Topic not found"}`},
		{"POST", "/queues", `{"id":"q","dead_queue_id":"nope","message_max_deliveries":1,"ack_deadline_seconds":30,"message_retention_seconds":600}`, 404, `{"detail":"Queue not found"}`},
		{"POST", "/queues", `{"id":"q","topic_id":"t","dead_queue_id":"dead","message_max_deliveries":2,"ack_deadline_seconds":600,` +
			`"message_retention_seconds":1209600,"delivery_delay_seconds":900,"message_filters":{"kind": ["a<b", 1, true]}}`, 201, q},
		{"GET", "/queues/q", "", 200, q},
		{"GET", "/queues", "", 200, `{"data":[` + dead + `,` + q + `]}`},
		{"GET", "/queues?offset=1&limit=5", "", 200, `{"data":[` + q + `]}`},
		{"GET", "/queues/nope", "", 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/q", `{"ack_deadline_seconds":1,"message_retention_seconds":600}`, 200, bare},
		{"PUT", "/queues/nope", `{"ack_deadline_seconds":1,"message_retention_seconds":600}`, 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/nope", `{"topic_id":"nope","ack_deadline_seconds":1,"message_retention_seconds":600}`, 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/q", `{"topic_id":"nope","ack_deadline_seconds":1,"message_retention_seconds":600}`, 404, `{"detail":"Topic not found"}`},
		{"PUT", "/queues/q", `{"dead_queue_id":"nope","message_max_deliveries":3,"ack_deadline_seconds":1,"message_retention_seconds":600}`, 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/q", "", 200, bare},
		{"GET", "/queues/q/stats", "", 200, `{"num_undelivered_messages":0,"oldest_unacked_message_age_seconds":AGE}`},
		{"GET", "/queues/nope/stats", "", 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/nope/purge", "", 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/nope/redrive", `{"destination_queue_id":"q"}`, 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/q/redrive", `{"destination_queue_id":"nope"}`, 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/nope/messages", "", 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/nope/messages?wait_seconds=20", "", 404, `{"detail":"Queue not found"}`},
		{"DELETE", "/queues/nope", "", 404, `{"detail":"Queue not found"}`},
		{"DELETE", "/queues/q", "", 204, ``},
		{"GET", "/queues/q", "", 404, `{"detail":"Queue not found"}`},
	})
}

// These are the stories of fastqueue's own tests. Only the nack of a message that is due
// and not leased differs: here the message keeps its place.
func TestStoriesOfFastqueuesTestsHold(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"topic"}`)
	for n := range 5 {
		s.must(201, "POST", "/topics", fmt.Sprintf(`{"id":"topic-%d"}`, n))
		s.mustQueue(fmt.Sprintf("queue-%d", n), `"topic_id":"topic"`, `"message_filters":{"attr1":["attr1"]}`)
	}
	length := func(path string) int {
		var v struct{ Data []json.RawMessage }
		mustDecode(t, s.must(200, "GET", path, ""), &v)
		return len(v.Data)
	}
	checkDiff(t, "lists", []int{6, 0, 5, 0}, []int{length("/topics"), length("/topics?offset=10&limit=10"), length("/queues"), length("/queues?offset=10&limit=10")})

	// Each queue gets its own copy. A delivered copy is hidden until its ack deadline, and
	// then is delivered again.
	published := s.messages(s.must(201, "POST", "/topics/topic/messages", `{"data":{"message":"Hello"},"attributes":{"attr1":"attr1","attr2":"attr2"}}`))
	checkDiff(t, "copies", 5, len(published))
	for n, m := range published {
		queue := fmt.Sprintf("queue-%d", n)
		for attempt := 1; attempt <= 2; attempt++ {
			got := s.receive(queue, "")
			if len(got) != 1 || got[0].ID != m.ID || string(got[0].Data) != `{"message":"Hello"}` || got[0].DeliveryAttempts != attempt || got[0].ScheduledAt <= m.ScheduledAt {
				t.Errorf("receive %d from %s = %+v", attempt, queue, got)
			}
			checkDiff(t, "before the deadline", 0, len(s.receive(queue, "")))
			s.makeDue(m.ID)
		}
	}

	// The cleanup deletes expired messages. It moves messages with too many deliveries to
	// the dead queue, where their attempts count from 0.
	s.mustQueue("dead")
	s.must(200, "PUT", "/queues/queue-0", `{"dead_queue_id":"dead","message_max_deliveries":2,"ack_deadline_seconds":60,"message_retention_seconds":600,"delivery_delay_seconds":10}`)
	s.expire(published[1].ID)
	s.mustCleanUp()
	checkDiff(t, "left by the cleanup", []int{0, 0, 1, 1}, []int{s.messagesIn("queue-0"), s.messagesIn("queue-1"), s.messagesIn("queue-2"), s.messagesIn("dead")})
	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"queue-1","message_count":3}`)
	moved := s.receive("queue-1", "")
	if len(moved) != 1 || moved[0].ID != published[0].ID || moved[0].DeliveryAttempts != 1 {
		t.Errorf("redriven = %+v, want message %s in its first delivery", moved, published[0].ID)
	}

	s.must(204, "PUT", "/queues/queue-2/purge", "")
	checkDiff(t, "purged", `{"num_undelivered_messages":0,"oldest_unacked_message_age_seconds":0}`, s.must(200, "GET", "/queues/queue-2/stats", ""))
	s.must(204, "DELETE", "/queues/queue-3", "")
	s.must(204, "PUT", "/messages/"+published[3].ID+"/ack", "") // already deleted
	s.must(204, "DELETE", "/queues/dead", "")
	s.must(204, "DELETE", "/topics/topic", "")
	want := `{"id":"queue-0","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":60,"message_retention_seconds":600,` +
		`"message_filters":null,"message_max_deliveries":2,"delivery_delay_seconds":10,"created_at":"TIME","updated_at":"TIME"}`
	checkDiff(t, "queue without its topic and its dead queue", want, mask(s.must(200, "GET", "/queues/queue-0", "")))
}

// The filters and attributes are those of fastqueue's tests. Numbers are compared as
// text.
func TestFiltersOfFastqueuesTestsHold(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for n, v := range []struct {
		filters, attributes string
		copies              int
	}{
		{`{"attr1":[1]}`, `{"attr1":1}`, 1},
		{`{"attr1":[1]}`, `{"attr1":"1"}`, 1},
		{`{"attr1":[1]}`, `{"attr1":1.0}`, 0},
		{`{"attr1":[1,2]}`, `{"attr1":1}`, 1},
		{`{"attr1":[1,2]}`, `{"attr1":2}`, 1},
		{`{"attr1":[true]}`, `{"attr1":true}`, 1},
		{`{"attr1":["true"]}`, `{"attr1":true}`, 0},
		{`{"attr1":[1.50]}`, `{"attr1":15e-1}`, 1},
		{`{"attr1":[1]}`, `{"attr2":1}`, 0},
		{`{"attr1":[1],"attr2":[2]}`, `{"attr1":1}`, 0},
		{`{"attr1":[1],"attr2":[2]}`, `{"attr1":1,"attr2":2}`, 1},
		{`{"attr1":[1],"attr2":[2]}`, `{"attr1":1,"attr2":2,"attr3":3}`, 1},
		{`{"attr1":[1,2],"attr2":[1,2]}`, `{"attr1":1,"attr2":2,"attr3":3}`, 1},
		{`null`, `{"attr1":1}`, 1},
		{`{"attr1":[1]}`, `null`, 0},
		{`[]`, `[]`, 1},
		{`{}`, `null`, 0},
		{`null`, `null`, 1},
	} {
		id := fmt.Sprint("t", n)
		s.mustTopic(id, `"message_filters":`+v.filters)
		got := s.messages(s.must(201, "POST", "/topics/"+id+"/messages", `{"data":{},"attributes":`+v.attributes+`}`))
		if len(got) != v.copies {
			t.Errorf("a queue with the filters %s gets %d copies of a message with %s, want %d", v.filters, len(got), v.attributes, v.copies)
		}
	}
}

func TestDeletedTopicAndDeadQueueLeaveNull(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":3`)
	s.must(204, "DELETE", "/topics/t", "")
	s.must(204, "DELETE", "/queues/dead", "")
	want := `{"id":"t","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":60,"message_retention_seconds":3600,` +
		`"message_filters":null,"message_max_deliveries":3,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`
	checkDiff(t, "queue", want, mask(s.must(200, "GET", "/queues/t", "")))
}

func TestMessageLifeFromPublishToRedrive(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("orders", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	message := func(queue string, attempts int) string {
		return fmt.Sprintf(`{"data":[{"id":"UUID","queue_id":%q,"data":{"order": 1},"attributes":{"kind":"new"},"delivery_attempts":%d,`+
			`"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}]}`, queue, attempts)
	}
	published := s.must(201, "POST", "/topics/orders/messages", `{"data":{"order": 1},"attributes":{"kind":"new"}}`)
	checkDiff(t, "published", message("orders", 0), mask(published))
	id := s.messages(published)[0].ID

	checkDiff(t, "first receive", message("orders", 1), mask(s.must(200, "GET", "/queues/orders/messages", "")))
	checkDiff(t, "receive of a message in flight", `{"data":[]}`, s.must(200, "GET", "/queues/orders/messages", ""))
	s.must(204, "PUT", "/messages/"+id+"/nack", "")
	checkDiff(t, "second receive", message("orders", 2), mask(s.must(200, "GET", "/queues/orders/messages", "")))
	s.must(204, "PUT", "/messages/"+id+"/nack", "")
	checkDiff(t, "receive of a dead message", `{"data":[]}`, s.must(200, "GET", "/queues/orders/messages", ""))
	checkDiff(t, "dead queue", `{"num_undelivered_messages":1,"oldest_unacked_message_age_seconds":AGE}`, mask(s.must(200, "GET", "/queues/dead/stats", "")))

	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"orders"}`)
	again := s.receive("orders", "")
	if len(again) != 1 || again[0].ID != id || again[0].DeliveryAttempts != 1 || again[0].CreatedAt != s.messages(published)[0].CreatedAt {
		t.Errorf("redriven message = %+v, want the same id and created_at and one attempt", again)
	}
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
	s.must(204, "PUT", "/messages/"+id+"/nack", "")
	if n := s.count("SELECT count(*) FROM queued.messages"); n != 0 {
		t.Errorf("%d messages are left, want 0", n)
	}
}

func TestPublishReturnsWhatReceiveDelivers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	for _, data := range []string{
		`{}`,
		`{"a":"\u0000"}`,
		`{"a":"\ud800"}`,
		`{"\udfff":"\ud800\u0000"}`,
		`{"a":1,"a":2}`,
		`{"n":123456789012345678901234567890.10e400}`,
		`{"n":-0.0}`,
		`{"z":1,"a":2}`,
		`{"html":"<b>&amp;</b>"}`,
		"{\"u\":\"\u2028\u2029\U0001F600\"}",
		`{"escaped":"\/\b\f\n\r\t\"\\"}`,
		`{"deep":` + strings.Repeat("[", 990) + strings.Repeat("]", 990) + `}`,
	} {
		for _, attributes := range []string{`null`, `{}`, `{"k":"\u0000\ud800<"}`, `{"k":"1","k":"2"}`} {
			body := fmt.Sprintf(`{"data":%s,"attributes":%s}`, data, attributes)
			published := s.messages(s.must(201, "POST", "/topics/t/messages", body))
			received := s.receive("t", "")
			for what, m := range map[string][]wireMessage{"published": published, "received": received} {
				if len(m) != 1 || string(m[0].Data) != data || string(m[0].Attributes) != attributes {
					t.Errorf("%s %v, want data %s and attributes %s", what, m, data, attributes)
				}
			}
			s.must(204, "PUT", "/messages/"+published[0].ID+"/ack", "")
		}
	}
}

func TestPublishSetsTimesFromTheQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"delivery_delay_seconds":900`)
	m := s.messages(s.must(201, "POST", "/topics/t/messages", `{"data":{}}`))[0]
	n := s.count(`SELECT count(*) FROM queued.messages
		WHERE created_at = $1::timestamp AND updated_at = created_at
		AND scheduled_at = created_at + interval '900 s' AND scheduled_at = $2::timestamp
		AND expired_at = created_at + interval '3600 s' AND expired_at = $3::timestamp
		AND created_at BETWEEN now() - interval '1 min' AND now()`, m.CreatedAt, m.ScheduledAt, m.ExpiredAt)
	if n != 1 {
		t.Errorf("the times of %+v differ from the stored times, or from those of the queue", m)
	}
	if got := s.receive("t", ""); len(got) != 0 {
		t.Errorf("received %v before its delay is over", got)
	}
	s.schedule("-1 s")
	if got := s.receive("t", ""); len(got) != 1 {
		t.Errorf("received %v after the delay, want one message", got)
	}
}

func TestPublishCopiesToMatchingQueuesInOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.must(201, "POST", "/topics", `{"id":"other"}`)
	for id, filters := range map[string]string{
		"b-all": `null`, "a-any": `{}`, "C-red": `{"color":["red"]}`, "d-red-or-1": `{"color":["red",1]}`,
		"e-red-big": `{"color":["red"],"size":["big"]}`, "f-none": `{"color":[]}`,
	} {
		s.mustQueue(id, `"topic_id":"t"`, `"message_filters":`+filters)
	}
	s.mustQueue("other", `"topic_id":"other"`)
	for attributes, want := range map[string][]string{
		`null`:                           {"b-all"},
		`{}`:                             {"a-any", "b-all"},
		`{"color":"red"}`:                {"C-red", "a-any", "b-all", "d-red-or-1"},
		`{"color":"re\u0064"}`:           {"C-red", "a-any", "b-all", "d-red-or-1"},
		`{"color":1}`:                    {"a-any", "b-all", "d-red-or-1"},
		`{"size":"big","color":"red"}`:   {"C-red", "a-any", "b-all", "d-red-or-1", "e-red-big"},
		`{"color":"blue","color":"red"}`: {"C-red", "a-any", "b-all", "d-red-or-1"},
	} {
		var got []string
		for _, m := range s.messages(s.must(201, "POST", "/topics/t/messages", `{"data":{},"attributes":`+attributes+`}`)) {
			got = append(got, m.QueueID)
		}
		checkDiff(t, "queues of "+attributes, want, got)
	}
}

func TestPublishWithoutQueuesStoresNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.play([]step{
		{"POST", "/topics/t/messages", `{"data":{}}`, 201, `{"data":[]}`},
		{"POST", "/topics/nope/messages", `{"data":{}}`, 404, `{"detail":"Topic not found"}`},
	})
}

func TestQueueCreatedAgainStartsEmpty(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	old := s.publish("t", 1)
	s.must(204, "DELETE", "/queues/t", "")
	s.mustQueue("t", `"topic_id":"t"`)
	checkDiff(t, "stats", `{"num_undelivered_messages":0,"oldest_unacked_message_age_seconds":0}`, s.must(200, "GET", "/queues/t/stats", ""))
	s.publish("t", 2)
	s.must(204, "PUT", "/messages/"+old[0]+"/nack", "")
	checkDiff(t, "received", []int{2}, numbers(s.receive("t", "")))
}

func TestStatsCountWhatCouldBeReceived(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	ids := s.publish("t", 1, 2, 3, 4, 5, 6)
	s.changeMessages("created_at = now() - interval '1 h', expired_at = now()", ids[1])
	s.changeMessages("created_at = now() - interval '1 h', scheduled_at = now() + interval '1 min'", ids[2])
	s.changeMessages("created_at = now() - interval '1 h', scheduled_at = now() + interval '1 min', in_flight = true", ids[3])
	s.changeMessages("created_at = now() - interval '1 h', delivery_attempts = 2", ids[4])
	eventually(t, "two messages count, and the age is in whole seconds", func() bool { // the next second may begin before the request
		s.changeMessages("created_at = now() - interval '90.7 s'", ids[0])
		return s.must(200, "GET", "/queues/t/stats", "") == `{"num_undelivered_messages":2,"oldest_unacked_message_age_seconds":90}`
	})
}

func TestMessageStatesAsSeenByPeekAndDetails(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	ids := s.publish("t", 1, 2, 3, 4, 5, 6)
	for i, change := range []string{
		"scheduled_at = scheduled_at",
		"scheduled_at = now() + interval '1 min', in_flight = true, delivery_attempts = 1",
		"scheduled_at = now() + interval '2 min', in_flight = true, delivery_attempts = 2", // its last delivery
		"scheduled_at = now() + interval '3 min'",
		"scheduled_at = now() - interval '1 min', in_flight = true, delivery_attempts = 2", // its last delivery has ended
		"expired_at = now()",
	} {
		s.changeMessages(change, ids[i])
	}
	want := []string{"exhausted", "ready", "in_flight", "in_flight", "delayed"}
	order := []string{ids[4], ids[0], ids[1], ids[2], ids[3]}
	type page struct {
		Data []struct{ ID, State string }
	}
	var peeked page
	mustDecode(t, s.must(200, "GET", "/queues/t/messages/peek", ""), &peeked)
	for i, m := range peeked.Data {
		if len(peeked.Data) != len(want) || m.State != want[i] || m.ID != order[i] {
			t.Fatalf("peek = %v, want the states %v", peeked.Data, want)
		}
		var one struct{ ID, State string }
		mustDecode(t, s.must(200, "GET", "/messages/"+m.ID, ""), &one)
		checkDiff(t, "message", m, one)
	}
	var second page
	mustDecode(t, s.must(200, "GET", "/queues/t/messages/peek?offset=1&limit=2", ""), &second)
	checkDiff(t, "page", peeked.Data[1:3], second.Data)
	s.play([]step{
		{"GET", "/queues/t/stats?detail=true", "", 200, `{"num_undelivered_messages":1,"oldest_unacked_message_age_seconds":AGE,` +
			`"messages":{"ready":1,"delayed":1,"in_flight":2,"exhausted":1},"dead_queue_messages":0}`},
		{"GET", "/queues/dead/stats?detail=true", "", 200, `{"num_undelivered_messages":0,"oldest_unacked_message_age_seconds":AGE,` +
			`"messages":{"ready":0,"delayed":0,"in_flight":0,"exhausted":0},"dead_queue_messages":null}`},
		{"GET", "/queues/t/stats?detail=false", "", 200, `{"num_undelivered_messages":1,"oldest_unacked_message_age_seconds":AGE}`},
		{"GET", "/queues/nope/stats?detail=true", "", 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/t/stats?detail=maybe", "", 422, `{"detail":[{"loc":["query","detail"],"msg":"value could not be parsed to a boolean","type":"type_error.bool"}]}`},
		{"GET", "/messages/" + ids[5], "", 404, `{"detail":"Message not found"}`},
		{"GET", "/messages/" + ids[0], "", 200, `{"id":"UUID","queue_id":"t","data":{"n":1},"attributes":null,"delivery_attempts":0,` +
			`"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME","state":"ready"}`},
		{"GET", "/messages/x", "", 422, `{"detail":[{"loc":["path","message_id"],"msg":"value is not a valid uuid","type":"type_error.uuid"}]}`},
		{"GET", "/queues/nope/messages/peek", "", 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/t/messages/peek?limit=301", "", 422, `{"detail":[{"loc":["query","limit"],"msg":"ensure this value is less than or equal to 300","type":"value_error.number.not_le","ctx":{"limit_value":300}}]}`},
	})
	s.endLeases()
	s.mustCleanUp()
	if got := s.must(200, "GET", "/queues/t/stats?detail=true", ""); !strings.HasSuffix(got, `"dead_queue_messages":2}`) {
		t.Errorf("details = %s, want 2 messages in the dead queue", got)
	}
}

func TestPeekReturnsAtMostItsSize(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3)
	s.exec("UPDATE queued.messages SET bytes = $1", deliverySize/2)
	checkDiff(t, "peeked", []int{1, 2}, numbers(s.peeked("t")))
	s.exec("UPDATE queued.messages SET bytes = $1", deliverySize+1)
	checkDiff(t, "peeked", []int{1}, numbers(s.peeked("t")))
}

func TestRedriveMovesAtMostItsLimit(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("to")
	s.publish("t", 1, 2, 3, 4)
	s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"to","limit":3}`)
	checkDiff(t, "moved", []int{1, 2, 3}, numbers(s.receive("to", "")))
	checkDiff(t, "stayed", []int{4}, numbers(s.receive("t", "")))
	s.fill("t", 2*workBatch)
	s.must(204, "PUT", "/queues/t/redrive", fmt.Sprintf(`{"destination_queue_id":"to","limit":%d}`, workBatch+1))
	checkDiff(t, "stayed, with the one in flight", workBatch, s.messagesIn("t"))
	s.must(422, "PUT", "/queues/t/redrive", `{"destination_queue_id":"to","limit":0}`)
}

func TestLivezAndReadyz(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	yes, no := `{"success":true}`, `{"success":false}`
	s.play([]step{{"GET", "/livez", "", 200, yes}, {"GET", "/readyz", "", 200, yes}})
	s.server.ready.Store(false)
	s.play([]step{{"GET", "/livez", "", 200, yes}, {"GET", "/readyz", "", 503, no}})
	s.server.ready.Store(true)
	s.server.draining.Store(true)
	s.play([]step{{"GET", "/livez", "", 200, yes}, {"GET", "/readyz", "", 503, no}, {"GET", "/health", "", 200, yes}})
}

func TestBadRequestsNameThePlaceAndStoreNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	const queueRest = `,"ack_deadline_seconds":30,"message_retention_seconds":600`
	deep := strings.Repeat("[", 2000) + strings.Repeat("]", 2000)
	for _, v := range []struct {
		method, path, body string
		want               string // part of the detail
	}{
		{"POST", "/topics", ``, `"loc":["body"],"msg":"field required"`},
		{"POST", "/topics", `  `, `"loc":["body",2],"msg":"Expecting value: line 1 column 3 (char 2)"`},
		{"POST", "/topics", `{"id":`, `"loc":["body",6],"msg":"Expecting value: line 1 column 7 (char 6)"`},
		{"POST", "/topics", `{"id":"a"} junk`, `"loc":["body",11],"msg":"Extra data: line 1 column 12 (char 11)"`},
		{"POST", "/topics", `{"id":"a"}{}`, `"loc":["body",10],"msg":"Extra data: `},
		{"POST", "/topics", `["a"]`, `"loc":["body"],"msg":"value is not a valid dict"`},
		{"POST", "/topics", `"a"`, `"loc":["body"],"msg":"value is not a valid dict"`},
		{"POST", "/topics", `null`, `"loc":["body"]`},
		{"POST", "/topics", "{\"id\":\"a\xff\"}", `"loc":["body",8],"msg":"the body is not valid UTF-8"`},
		{"POST", "/topics", "\ufeff{]", `"loc":["body",1],"msg":"Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"`}, // the same as without the mark
		{"POST", "/topics", "{}\ufeff", `"loc":["body",2],"msg":"Extra data: `},
		{"POST", "/topics", "\xff\xfe{\x00}\x00", `"loc":["body",0],"msg":"the body is not valid UTF-8"`},
		{"POST", "/topics", "{\x00}\x00", `"loc":["body",1],"msg":"Expecting property name`},
		{"POST", "/topics", `{}`, `"loc":["body","id"],"msg":"field required","type":"value_error.missing"`},
		{"POST", "/topics", `{"ID":"a"}`, `"loc":["body","id"],"msg":"field required"`},
		{"POST", "/topics", `{"id":null}`, `"loc":["body","id"],"msg":"none is not an allowed value"`},
		{"POST", "/topics", `{"id":{}}`, `"loc":["body","id"],"msg":"str type expected","type":"type_error.str"`},
		{"POST", "/topics", `{"id":""}`, `"loc":["body","id"],"msg":"string does not match regex`},
		{"POST", "/topics", `{"id":"a b"}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":"a\n"}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":"a\u0000"}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":"é"}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":"a/b"}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":".."}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":"."}`, `"loc":["body","id"]`},
		{"POST", "/topics", `{"id":"` + strings.Repeat("a", 129) + `"}`, `"msg":"ensure this value has at most 128 characters","type":"value_error.any_str.max_length"`},
		{"POST", "/queues", `{"id":"q"}`, `[{"loc":["body","ack_deadline_seconds"],"msg":"field required","type":"value_error.missing"},{"loc":["body","message_retention_seconds"],"msg":"field required","type":"value_error.missing"}]`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":0,"message_retention_seconds":599}`, `"msg":"ensure this value is greater than or equal to 1","type":"value_error.number.not_ge","ctx":{"limit_value":1}},{"loc":["body","message_retention_seconds"],"msg":"ensure this value is greater than or equal to 600"`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":601,"message_retention_seconds":1209601}`, `"msg":"ensure this value is less than or equal to 600","type":"value_error.number.not_le","ctx":{"limit_value":600}},{"loc":["body","message_retention_seconds"],"msg":"ensure this value is less than or equal to 1209600"`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":"1.5","message_retention_seconds":600}`, `"msg":"value is not a valid integer","type":"type_error.integer"`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":"true","message_retention_seconds":600}`, `["body","ack_deadline_seconds"]`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":30,"message_retention_seconds":1e12}`, `"ensure this value is less than or equal to 1209600"`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":[1],"message_retention_seconds":600}`, `["body","ack_deadline_seconds"]`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":"","message_retention_seconds":600}`, `["body","ack_deadline_seconds"]`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":1e999,"message_retention_seconds":600}`, `"value is not a valid integer"`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":99999999999999999999,"message_retention_seconds":600}`, `"ensure this value is less than or equal to 600"`},
		{"POST", "/queues", `{"id":"q","topic_id":"5 6"` + queueRest + `}`, `["body","topic_id"]`},
		{"POST", "/queues", `{"id":"q","dead_queue_id":"t"` + queueRest + `}`, `[{"loc":["body","__root__"],"msg":"message_max_deliveries is required for dead queue support","type":"value_error"}]`},
		{"POST", "/queues", `{"id":"q","message_max_deliveries":5` + queueRest + `}`, `[{"loc":["body","__root__"],"msg":"dead_queue_id is required for dead queue support","type":"value_error"}]`},
		{"POST", "/queues", `{"id":"q","dead_queue_id":"t","message_max_deliveries":1001` + queueRest + `}`, `["body","message_max_deliveries"],"msg":"ensure this value is less than or equal to 1000","type":"value_error.number.not_le","ctx":{"limit_value":1000}},{"loc":["body","__root__"],"msg":"message_max_deliveries is required`},
		{"POST", "/queues", `{"id":"q","delivery_delay_seconds":901` + queueRest + `}`, `["body","delivery_delay_seconds"]`},
		{"POST", "/queues", `{"id":"q","message_filters":["a"]` + queueRest + `}`, `["body","message_filters"],"msg":"value is not a valid dict"`},
		{"POST", "/queues", `{"id":"q","message_filters":{"a":"b"}` + queueRest + `}`, `["body","message_filters","a"],"msg":"value is not a valid list"`},
		{"POST", "/queues", `{"id":"q","message_filters":{"a":["b",null,{}]}` + queueRest + `}`, `["body","message_filters","a",1],"msg":"none is not an allowed value","type":"type_error.none.not_allowed"},{"loc":["body","message_filters","a",2],"msg":"str type expected"`},
		{"PUT", "/queues/t", `{"ack_deadline_seconds":0,"message_retention_seconds":600}`, `["body","ack_deadline_seconds"]`},
		{"POST", "/topics/t/messages", `{}`, `["body","data"],"msg":"field required"`},
		{"POST", "/topics/t/messages", `{"data":null}`, `["body","data"]`},
		{"POST", "/topics/t/messages", `{"data":[1]}`, `["body","data"],"msg":"value is not a valid dict"`},
		{"POST", "/topics/t/messages", `{"data":""}`, `["body","data"]`},
		{"POST", "/topics/t/messages", `{"data":{"a":"\x"}}`, `"loc":["body",14],"msg":"Invalid \\escape: line 1 column 15 (char 14)"`},
		{"POST", "/topics/t/messages", `{"data":{"a":"\u12"}}`, `"loc":["body",15],"msg":"Invalid \\uXXXX escape: line 1 column 16 (char 15)"`},
		{"POST", "/topics/t/messages", "{\"data\":{\"a\":\"\x00\"}}", `"loc":["body",14],"msg":"Invalid control character at: line 1 column 15 (char 14)"`},
		{"POST", "/topics/t/messages", "{\"data\":{\"a\":\"\xed\xa0\x80\"}}", `"the body is not valid UTF-8"`},
		{"POST", "/topics/t/messages", `{"data":{"a":NaN}}`, `"Expecting value: line 1 column 14 (char 13)"`},
		{"POST", "/topics/t/messages", `{"data":{"a":` + deep + `}}`, `"nested deeper than 1000 levels"`},
		{"POST", "/topics/t/messages", `{"data":{},"attributes":[[]]}`, `["body","attributes"]`},
		{"POST", "/topics/t/messages", `{"data":{},"attributes":{"a":[true]}}`, `["body","attributes","a"],"msg":"str type expected"`},
		{"POST", "/topics/t/messages", `{"data":{},"attributes":{"a":null}}`, `["body","attributes","a"],"msg":"none is not an allowed value"`},
		{"POST", "/topics/t/messages", `{"data":{},"attributes":{"a":{}}}`, `["body","attributes","a"]`},
		{"GET", "/topics?limit=-1", ``, `"loc":["query","limit"],"msg":"ensure this value is greater than or equal to 0","type":"value_error.number.not_ge","ctx":{"limit_value":0}`},
		{"GET", "/topics?limit=1001", ``, `"loc":["query","limit"],"msg":"ensure this value is less than or equal to 1000"`},
		{"GET", "/topics?limit=99999999999999999999999", ``, `"loc":["query","limit"]`},
		{"GET", "/topics?limit=ten", ``, `"loc":["query","limit"],"msg":"value is not a valid integer"`},
		{"GET", "/topics?limit=", ``, `"loc":["query","limit"]`},
		{"GET", "/topics?limit=%zz", ``, `"loc":["query","limit"]`},
		{"GET", "/topics?limit=1;offset=2", ``, `"loc":["query","limit"]`},
		{"GET", "/topics?limit=1.0", ``, `"loc":["query","limit"]`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":"1e1","message_retention_seconds":600}`, `["body","ack_deadline_seconds"]`},
		{"POST", "/queues", `{"id":"q","message_filters":{"a":null}` + queueRest + `}`, `["body","message_filters","a"],"msg":"none is not an allowed value"`},
		{"GET", "/queues?offset=-1", ``, `"loc":["query","offset"]`},
		{"GET", "/queues?offset=x&limit=y", ``, `"loc":["query","offset"],"msg":"value is not a valid integer","type":"type_error.integer"},{"loc":["query","limit"]`},
		{"GET", "/queues/t/messages?limit=-1", ``, `"loc":["query","limit"]`},
		{"GET", "/queues/t/messages?wait_seconds=-1", ``, `"loc":["query","wait_seconds"],"msg":"ensure this value is greater than or equal to 0"`},
		{"GET", "/queues/t/messages?wait_seconds=31", ``, `"loc":["query","wait_seconds"],"msg":"ensure this value is less than or equal to 30"`},
		{"GET", "/queues/t/messages?wait_seconds=NaN", ``, `"loc":["query","wait_seconds"],"msg":"value is not a valid float"`},
		{"GET", "/queues/t/messages?wait_seconds=inf", ``, `"loc":["query","wait_seconds"]`},
		{"GET", "/queues/t/messages?wait_seconds=1e400", ``, `"loc":["query","wait_seconds"]`},
		{"PUT", "/messages/1/ack", ``, `"loc":["path","message_id"],"msg":"value is not a valid uuid"`},
		{"PUT", "/messages/00000000-0000-0000-0000-00000000000g/nack", ``, `"loc":["path","message_id"]`},
	} {
		got := s.do(v.method, v.path, v.body)
		if got.status != 422 || !strings.Contains(got.body, v.want) {
			body := v.body
			if len(body) > 100 {
				body = body[:100] + "…"
			}
			t.Errorf("%s %s %s = %d %s, want 422 with %s", v.method, v.path, body, got.status, got.body, v.want)
		}
	}
	n := s.count("SELECT (SELECT count(*) FROM queued.topics) + (SELECT count(*) FROM queued.queues) + (SELECT count(*) FROM queued.messages)")
	if n != 2 {
		t.Errorf("%d topics, queues and messages are stored, want the 2 from before", n)
	}
}

func TestAcceptedSpellings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", " \n{ \"id\" : \"t\" , \"x\" : [ { } , [ ] ] }\n ")
	s.must(201, "POST", "/queues", `{"id":"q","topic_id":"t","ack_deadline_seconds":"30","message_retention_seconds":6e2,"message_filters":null}`)
	s.must(201, "POST", "/queues", `{"id":"first","id":"last","ack_deadline_seconds":1,"message_retention_seconds":600}`)
	s.must(200, "GET", "/queues/last", "")
	s.must(200, "GET", "/queues?limit=1000&unknown=1;%zz&limit=2&", "")
	s.must(200, "GET", "/queues/q/messages?limit=99999999999999999999", "")
	s.must(200, "GET", "/queues/q/messages?wait_seconds=0.01", "")
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":1}}`)
	m := s.receive("q", "")[0]
	s.must(204, "PUT", "/messages/"+strings.ToUpper(m.ID)+"/nack", `{"body":"is ignored"}`)
	s.must(204, "PUT", "/messages/"+strings.ReplaceAll(m.ID, "-", "")+"/ack", "not even JSON")
	if n := s.count("SELECT count(*) FROM queued.messages"); n != 0 {
		t.Errorf("%d messages are left, want 0", n)
	}
}

func TestUnknownPathsAndMethodsAreJSON(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, v := range []struct {
		method, path string
		status       int
		want, allow  string
	}{
		{"GET", "/nope", 404, `{"detail":"Not Found"}`, ""},
		{"GET", "/topics/a/b/c", 404, `{"detail":"Not Found"}`, ""},
		{"PATCH", "/queues/q", 405, `{"detail":"Method Not Allowed"}`, "DELETE, GET, HEAD, PUT"},
		{"DELETE", "/queues/q/messages", 405, `{"detail":"Method Not Allowed"}`, "GET, HEAD, POST"},
		{"GET", "/messages/x/ack", 405, `{"detail":"Method Not Allowed"}`, "PUT"},
		{"GET", "/topics/a%2fb", 404, `{"detail":"Topic not found"}`, ""},
		{"GET", "/topics/a%00b", 404, `{"detail":"Topic not found"}`, ""},
		{"GET", "/queues/" + strings.Repeat("a", 10000) + "/messages", 404, `{"detail":"Queue not found"}`, ""},
	} {
		got := s.do(v.method, v.path, "")
		if got.status != v.status || got.body != v.want || got.header.Get("Allow") != v.allow || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s = %d %s, Allow %q, %s; want %d %s, Allow %q", v.method, v.path,
				got.status, got.body, got.header.Get("Allow"), got.header.Get("Content-Type"), v.status, v.want, v.allow)
		}
	}
}

func TestHeadNeverConsumes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	got := s.do("HEAD", "/queues/t/messages", "")
	if got.status != 405 || got.header.Get("Allow") != "GET" {
		t.Errorf("HEAD = %d, Allow %q; want 405, GET", got.status, got.header.Get("Allow"))
	}
	if m := s.receive("t", ""); len(m) != 1 || m[0].DeliveryAttempts != 1 {
		t.Errorf("after HEAD received %v, want one message in its first delivery", m)
	}
	s.must(200, "HEAD", "/queues/t/stats", "")
}

func TestResponsesAreNotCachedOrSniffed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, path := range []string{"/topics", "/nope", "/metrics", "/health", "/queues/x/messages"} {
		h := s.do("GET", path, "").header
		if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("GET %s has %v", path, h)
		}
	}
}

func TestBodyAboveTheLimitIs413(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	body := func(size int) string {
		const rest = `{"data":{"a":""}}`
		return `{"data":{"a":"` + strings.Repeat("x", size-len(rest)) + `"}}`
	}
	s.must(201, "POST", "/topics/t/messages", body(1<<20))
	s.must(413, "POST", "/topics/t/messages", body(1<<20+1))
	s.must(413, "POST", "/topics/t/messages", strings.Repeat("x", 30<<20)) // the client sends all of it
	// Without a Content-Length the server notices while it reads.
	r, err := http.NewRequest("POST", s.url+"/topics/t/messages", struct{ *strings.Reader }{strings.NewReader(body(1<<20 + 1))})
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 413 {
		t.Errorf("chunked body above the limit = %d, want 413", response.StatusCode)
	}
	if n := s.count("SELECT count(*) FROM queued.messages"); n != 1 {
		t.Errorf("%d messages are stored, want 1", n)
	}
}

func TestBufferedBodiesAreBounded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	restore := s.setCapacity(11) // 10 and one for the end of a body
	got := s.do("POST", "/topics", `{"id":"much"}`)
	if got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("a request above the limit = %d %s, want 503 with Retry-After", got.status, got.body)
	}
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	restore()
}

func TestPagesElsewhereCannotUseALocalServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	s.server.hosts.allowed = []string{"queue.example"}
	for _, v := range []struct {
		method, path, name, value string
		status                    int
	}{
		{"GET", "/queues/t/messages", "Sec-Fetch-Site", "cross-site", 403},
		{"GET", "/queues/t/messages", "Sec-Fetch-Site", "same-site", 403},
		{"PUT", "/queues/t/purge", "Sec-Fetch-Site", "cross-site", 403},
		{"POST", "/topics/t/messages", "Origin", "https://evil.example", 403},
		{"GET", "/queues/t/messages", "Host", "evil.example", 403},
		{"GET", "/queues/t", "Host", "evil.example:8000", 403},
		{"PUT", "/queues/t/purge", "Host", "evil.example", 403},
		{"GET", "/queues/t/stats", "Sec-Fetch-Site", "cross-site", 200},
		{"GET", "/queues/t/stats", "Host", "[::1].evil.example", 403},
		{"GET", "/queues/t/stats", "Host", "LOCALHOST:1", 200},
		{"GET", "/queues/t/stats", "Host", "127.1.2.3", 200},
		{"GET", "/queues/t/stats", "Host", "[::1]:8000", 200},
		{"GET", "/queues/t/stats", "Host", "Queue.Example", 200},
		{"GET", "/queues/t/messages", "Sec-Fetch-Site", "same-origin", 200},
	} {
		r, err := http.NewRequest(v.method, s.url+v.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v.name == "Host" {
			r.Host = v.value
		} else {
			r.Header.Set(v.name, v.value)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != v.status {
			t.Errorf("%s %s with %s %s = %d, want %d", v.method, v.path, v.name, v.value, response.StatusCode, v.status)
		}
	}
}

func TestTruncatedBodyStoresNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "POST /topics/t/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"data\":{}}")
	c.(*net.TCPConn).CloseWrite()
	response := make([]byte, 1000)
	n, _ := c.Read(response)
	c.Close()
	if n > 0 && !strings.Contains(string(response[:n]), " 400 ") {
		t.Errorf("a truncated body = %s, want a 400", response[:n])
	}
	s.publish("t", 1)
	if n := s.count("SELECT count(*) FROM queued.messages"); n != 1 {
		t.Errorf("%d messages are stored, want 1", n)
	}
}

// net/http would read an unwanted body before it responds, without a timeout.
func TestUnwantedBodyDoesNotDelayTheResponse(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.transferTimeout = 2 * time.Second // a busy machine begins the response within it
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(testTimeout))
	fmt.Fprint(c, "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
	response, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(response), "HTTP/1.1 404 ") {
		t.Errorf("POST /nowhere = %q, %v, want a 404", response, err)
	}
}

func TestStalledBodyTimesOut(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.transferTimeout = 100 * time.Millisecond
	for _, v := range []struct{ what, header, sent string }{
		{"too large", "Content-Length: 9999999\r\nExpect: 100-continue", ""},
		{"stalled", "Content-Length: 100", "{"},
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /topics HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n%s", v.header, v.sent)
		c.SetReadDeadline(time.Now().Add(testTimeout))
		response, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(response), "HTTP/1.1 4") {
			t.Errorf("%s body = %q, %v, want a 4xx", v.what, response, err)
		}
	}
}

func TestHealthWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	checkDiff(t, "health", `{"success":true}`, s.must(200, "GET", "/health", ""))
	s.server.ready.Store(false)
	checkDiff(t, "health", `{"success":false}`, s.must(500, "GET", "/health", ""))
	for _, v := range []struct{ method, path, body string }{
		{"GET", "/topics", ""},
		{"POST", "/topics/t/messages", `{"data":{}}`},
		{"GET", "/queues/t/messages", ""},
		{"PUT", "/messages/00000000-0000-0000-0000-000000000000/ack", ""},
	} {
		got := s.do(v.method, v.path, v.body)
		if got.status != 503 || got.header.Get("Retry-After") == "" || !strings.HasPrefix(got.body, `{"detail":"`) {
			t.Errorf("%s %s = %d %s, Retry-After %q; want 503 with both", v.method, v.path, got.status, got.body, got.header.Get("Retry-After"))
		}
	}
}

func TestPanicFailsOneRequest(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	log := newSyncBuffer()
	s.server.log = newLog(log, slog.LevelInfo, "text")
	s.handle(native, public, "GET /panic", func(*request) (any, error) { panic("oh") })
	checkDiff(t, "response", `{"detail":"internal error"}`, s.must(500, "GET", "/panic", ""))
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "panic=oh") || !strings.Contains(log.String(), "handlers_test.go:") {
		t.Errorf("the log is not one line with a stack:\n%s", log)
	}
	s.must(200, "GET", "/topics", "")
}

// The part of a response that was sent before a panic must not look complete.
func TestPanicCutsAResponseThatHasBegun(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	log := newSyncBuffer()
	s.server.log = newLog(log, slog.LevelInfo, "text")
	for path, flush := range map[string]bool{"/panic-sent": true, "/panic-buffered": false} {
		s.handle(native, public, "POST "+path, func(r *request) (any, error) {
			fmt.Fprint(&r.w, `{"data":[`)
			if flush {
				r.w.controller.Flush()
			}
			panic("oh")
		})
		if got, err := s.send(context.Background(), "POST", path, ""); err == nil {
			t.Errorf("%s = %d %s, want a closed connection", path, got.status, got.body)
		}
		s.wantMetrics(`http_requests_total{handler="` + path + `",method="POST",status="5xx"} 1`)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 || strings.Count(log.String(), "panic=oh") != 2 {
		t.Errorf("the log does not have a line for each panic:\n%s", log)
	}
}

// panicsOnce is a ResponseWriter that panics where a handler begins its response.
type panicsOnce struct {
	http.ResponseWriter
	done bool
}

func (w *panicsOnce) Header() http.Header {
	h := w.ResponseWriter.Header()
	if h.Get("X-Content-Type-Options") != "" && !w.done {
		w.done = true
		panic("oh")
	}
	return h
}

func TestPanicAfterAReceiveReleasesItsMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	response := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/queues/t/messages", nil)
	r.Host = "localhost"
	s.ServeHTTP(&panicsOnce{ResponseWriter: response}, r)
	checkDiff(t, "response", `500 {"detail":"internal error"}`, fmt.Sprint(response.Code, " ", response.Body))
	checkDiff(t, "released", 1, s.count("SELECT count(*) FROM queued.messages WHERE NOT in_flight AND delivery_attempts = 0"))
	checkDiff(t, "received", []int{1}, numbers(s.receive("t", "")))
}

func TestMetricsCountRequestsAndMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2, 3)
	s.receive("t", "?limit=2")
	s.must(204, "PUT", "/messages/"+ids[0]+"/ack", "")
	s.must(204, "PUT", "/messages/"+ids[1]+"/nack", "")
	s.must(404, "GET", "/topics/nope", "")
	s.do("BREW", "/coffee", "")
	s.wantMetrics(
		`queued_messages_published_total{queue="t"} 3`,
		`queued_messages_delivered_total{queue="t"} 2`,
		`queued_batch_requests_count{batcher="publish"} 4`, // the first publish enters twice, because it reads the queues of the topic
		`queued_batch_requests_sum{batcher="ack"} 1`,
		`queued_delivery_delay_seconds_count 2`,
		`queued_statement_duration_seconds_count{statement="claim"} 1`,
		`queued_messages_acked_total{queue="t"} 1`,
		`queued_messages_nacked_total{queue="t"} 1`,
		`http_requests_total{handler="/topics/{topic_id}/messages",method="POST",status="2xx"} 3`,
		`http_requests_total{handler="/topics/{topic_id}",method="GET",status="4xx"} 1`,
		`http_requests_total{handler="none",method="other",status="4xx"} 1`,
		`http_request_duration_seconds_count{handler="/queues/{queue_id}/messages",method="GET"} 1`,
		`http_request_duration_seconds_bucket{handler="/queues/{queue_id}/messages",method="GET",le="+Inf"} 1`,
		`http_request_size_bytes_count{handler="/topics/{topic_id}/messages"} 3`,
		`http_response_size_bytes_count{handler="/queues/{queue_id}/messages"} 1`,
		`go_goroutines `,
		`process_open_fds `,
		`go_sql_open_connections{db_name="engine"} `,
	)
	s.must(204, "DELETE", "/queues/t", "")
	eventually(t, "metrics no longer have the deleted queue", func() bool {
		return !strings.Contains(s.must(200, "GET", "/metrics", ""), `queue="t"`)
	})
}

func TestMetricsCountWhatBecomesOfMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	ids := s.publish("t", 1, 2, 3, 4, 5, 6)
	s.receive("t", "?limit=2")
	s.must(204, "PUT", "/messages/"+ids[0]+"/nack", "")
	s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q]}`, ids[1]))
	s.receive("t", "?limit=6")
	s.must(204, "PUT", "/messages/"+ids[0]+"/nack", "") // dead
	s.exec("UPDATE queued.messages SET scheduled_at = now() WHERE in_flight AND delivery_attempts = 2")
	s.expire(ids[2], ids[3])
	s.changeMessages("scheduled_at = 'epoch'", ids[3]) // the cleanup finds this one at the front, and the other by the walk
	s.mustCleanUp()
	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"t"}`)
	s.must(204, "PUT", "/queues/t/purge", "")
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	s.wantMetrics(
		`queued_messages_delivered_total{queue="t"} 8`,
		`queued_messages_redelivered_total{queue="t"} 2`,
		`queued_messages_nacked_total{queue="t"} 3`,
		`queued_messages_expired_total{queue="t"} 2`,
		`queued_messages_dead_lettered_total{queue="t"} 2`,
		`queued_messages_redriven_total{queue="dead"} 2`,
		`queued_messages_purged_total{queue="t"} 4`,
		`queued_waiting_receivers{queue="t"} 1`,
	)
	s.engine.drain()
	s.await(poll)
}

func TestMessageJSONIsWhatEncodingJSONReads(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2)
	want := s.messages(s.must(200, "GET", "/queues/t/messages", "")) // refuses unknown fields
	if diff := cmp.Diff([]int{1, 2}, numbers(want)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}
