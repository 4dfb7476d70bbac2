package main

import (
	"fmt"
	"strings"
	"testing"
)

// kill makes the messages of a queue with a dead queue move there.
func (s *testServer) kill(queueID string) {
	s.t.Helper()
	for _, m := range s.receive(queueID, "?limit=100") {
		s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
	}
}

// moved sends a redrive and returns its status and the numbers in its header.
func (s *testServer) moved(path, body string) string {
	s.t.Helper()
	v := s.do("PUT", path, body)
	return fmt.Sprintf("%d moved %s left %s", v.status, v.header.Get("X-Messages-Moved"), v.header.Get("X-Messages-Left"))
}

func TestRedriveWithoutADestinationSendsMessagesHome(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	for _, id := range []string{"a", "b", "c"} {
		s.mustQueue(id, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
		for n := range 2 {
			s.must(201, "POST", "/queues/"+id+"/messages", fmt.Sprintf(`{"data":{"n":%d},"group":"g"}`, n))
			s.must(201, "POST", "/queues/"+id+"/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n+2))
		}
		s.kill(id)
	}
	checkDiff(t, "dead", 12, s.messagesIn("dead"))
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":9}}`) // has no source
	s.must(204, "DELETE", "/queues/c", "")
	checkDiff(t, "with a limit", "204 moved 3 left 5", s.moved("/queues/dead/redrive", `{"limit":3}`))
	checkDiff(t, "response", "204 moved 5 left 5", s.moved("/queues/dead/redrive", ""))
	for _, id := range []string{"a", "b"} {
		messages := s.receive(id, "")
		checkDiff(t, "home in "+id, 4, len(messages))
		checkDiff(t, "attempts", 1, messages[0].DeliveryAttempts)
	}
	checkDiff(t, "left", 5, s.messagesIn("dead"))
	checkDiff(t, "again", "204 moved 0 left 5", s.moved("/queues/dead/redrive", `{"destination_queue_id":null}`))
	s.wantMetrics(`queued_messages_redriven_total{queue="dead"} 8`)
	checkDiff(t, "with a destination", "204 moved 5 left ", s.moved("/queues/dead/redrive", `{"destination_queue_id":"a"}`))
	checkDiff(t, "of an empty queue", "204 moved 0 left 0", s.moved("/queues/dead/redrive", `{}`))
}

func TestRedriveHomeNeedsASource(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":1}}`)
	v := s.do("PUT", "/queues/dead/redrive", `{}`)
	checkDiff(t, "status", 422, v.status)
	checkDiff(t, "left", "1", v.header.Get("X-Messages-Left"))
	if !strings.Contains(v.body, `"loc":["body","destination_queue_id"]`) {
		t.Errorf("the error does not name the field: %s", v.body)
	}
	id := s.idOf("dead")
	checkDiff(t, "by id", "422 moved 0 left 1", s.moved("/messages/redrive", fmt.Sprintf(`{"ids":[%q]}`, id)))
	s.must(404, "PUT", "/queues/none/redrive", `{}`)
	s.must(422, "PUT", "/queues/dead/redrive", `{"destination_queue_id":[]}`)
	s.must(422, "PUT", "/queues/dead/redrive", `[5`)
	s.must(404, "PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":"none"}`, id))
}

func TestRedriveOfSomeMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("other")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	ids := s.publish("t", 1, 2, 3, 4)
	s.kill("t")
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":5}}`)
	leased := s.receive("dead", "?limit=1")[0].ID
	checkDiff(t, "leased", ids[0], leased)
	poll := s.poll(t.Context(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	body := fmt.Sprintf(`{"ids":[%q,%q,%q,%q,%q]}`, ids[1], ids[1], leased, newID(), strings.ToUpper(ids[2]))
	checkDiff(t, "response", "204 moved 2 left 1", s.moved("/messages/redrive", body))
	if len(s.await(poll)) == 0 {
		t.Error("no receiver was woken")
	}
	checkDiff(t, "home", 2, s.messagesIn("t"))
	checkDiff(t, "to another queue", "204 moved 1 left 0", s.moved("/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":"other"}`, ids[3])))
	checkDiff(t, "received elsewhere", []int{4}, numbers(s.receive("other", "")))
	checkDiff(t, "left", 2, s.messagesIn("dead"))
	s.wantMetrics(`queued_messages_redriven_total{queue="dead"} 3`)
	for _, body := range []string{`{}`, `{"ids":[]}`, `{"ids":["x"]}`, `{"ids":5}`} {
		s.must(422, "PUT", "/messages/redrive", body)
		s.must(422, "DELETE", "/messages", body)
	}
}

func TestDeleteOfSomeMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	s.publishGroups("q", "a1", "a2", "b1", "b2")
	leased := s.receive("q", "?limit=1")[0]
	checkDiff(t, "leased", "a1", namesOf([]wireMessage{leased}))
	s.receive("q", "") // b1
	poll := s.poll(t.Context(), "q", "?wait_seconds=30")
	s.waiting("q", 1)
	v := s.do("DELETE", "/messages", fmt.Sprintf(`{"ids":[%q,%q]}`, leased.ID, newID()))
	checkDiff(t, "response", "204 1", fmt.Sprint(v.status, " ", v.header.Get("X-Messages-Deleted")))
	checkDiff(t, "the message behind it", "a2", namesOf(s.await(poll)))
	checkDiff(t, "left", 3, s.messagesIn("q"))
	s.must(404, "GET", "/messages/"+leased.ID, "")
	s.must(204, "PUT", "/messages/"+leased.ID+"/ack?scheduled_at="+leased.ScheduledAt, "")
	s.wantMetrics(`queued_messages_purged_total{queue="q"} 1`)
}
