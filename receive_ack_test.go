package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// states returns the states of the messages of a queue, by their numbers.
func (s *testServer) states(queueID string) map[int]string {
	s.t.Helper()
	var v struct {
		Data []struct {
			Data  struct{ N int }
			State string
		}
	}
	mustDecode(s.t, s.must(200, "GET", "/queues/"+queueID+"/messages/peek", ""), &v)
	states := map[int]string{}
	for _, m := range v.Data {
		states[m.Data.N] = m.State
	}
	return states
}

// receiveAck sends a receive that acks and returns the messages and the response.
func (s *testServer) receiveAck(queueID, body string) ([]wireMessage, string) {
	s.t.Helper()
	response := s.must(200, "POST", "/queues/"+queueID+"/messages/receive", body)
	var v struct{ Data []wireMessage }
	mustDecode(s.t, response, &v)
	return v.Data, response
}

func TestReceiveAcksAndNacksOtherMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("other")
	s.publish("t", 1, 2, 3)
	other := s.messages(s.must(201, "POST", "/queues/other/messages", `{"data":{"n":9}}`))[0].ID
	first, _ := s.receiveAck("t", ``)
	checkDiff(t, "received by an empty body", []int{1, 2, 3}, numbers(first))
	s.publish("t", 4)
	second, response := s.receiveAck("t", fmt.Sprintf(
		`{"limit":1,"fields":["group"],"ack":[%q,{"id":%q,"scheduled_at":%q},%q],"nack":[{"id":%q,"scheduled_at":%q,"delay_seconds":600}]}`,
		first[0].ID, first[1].ID, first[1].ScheduledAt, other, first[2].ID, first[2].ScheduledAt))
	checkDiff(t, "received", []int{4}, numbers(second))
	if !strings.HasSuffix(response, `],"conflicts":[]}`) {
		t.Errorf("the response has conflicts: %s", response)
	}
	s.must(404, "GET", "/messages/"+first[0].ID, "")
	s.must(404, "GET", "/messages/"+first[1].ID, "")
	s.must(404, "GET", "/messages/"+other, "")
	checkDiff(t, "left", map[int]string{3: "delayed", 4: "in_flight"}, s.states("t"))
}

func TestReceiveThatAcksNamesConflicts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2)
	old := s.receive("t", "")
	s.endLeases()
	s.receive("t", "") // by another consumer
	_, response := s.receiveAck("t", fmt.Sprintf(`{"ack":[{"id":%q,"scheduled_at":%q}],"nack":[{"id":%q,"scheduled_at":%q}]}`,
		old[0].ID, old[0].ScheduledAt, old[1].ID, old[1].ScheduledAt))
	checkDiff(t, "response", fmt.Sprintf(`{"data":[],"conflicts":[%q,%q]}`, old[0].ID, old[1].ID), response)
	checkDiff(t, "messages", map[int]string{1: "in_flight", 2: "in_flight"}, s.states("t"))
}

func TestAcksOfAReceiveDoNotWaitForMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	ctx, hangUp := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.send(ctx, "POST", "/queues/t/messages/receive", fmt.Sprintf(`{"wait_seconds":20,"ack":[%q]}`, id))
	}()
	eventually(t, "the message is acked while the receiver waits", func() bool { return s.messagesIn("t") == 0 })
	s.waiting("t", 1)
	hangUp()
	<-ended
	s.waiting("t", 0)
	s.publish("t", 2)
	checkDiff(t, "the next message", 1, s.receive("t", "")[0].DeliveryAttempts)
}

func TestAcksOfAReceiveStandWhenTheClientDisconnects(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	s.publish("t", 2)
	free := s.lockTable("queued.messages")
	ctx, hangUp := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.send(ctx, "POST", "/queues/t/messages/receive", fmt.Sprintf(`{"ack":[%q]}`, id))
	}()
	s.waitForLocks(2) // the ack and the claim
	hangUp()
	<-ended
	free()
	eventually(t, "the message is acked", func() bool { return s.messagesIn("t") == 1 })
	eventually(t, "the other message is released without an attempt", func() bool {
		m := s.peeked("t")
		return len(m) == 1 && s.states("t")[2] == "ready" && m[0].DeliveryAttempts == 0
	})
}

func TestNothingIsLeasedByAReceiveThatCouldNotAck(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	s.publish("t", 2)
	s.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no deletes'; END $$`)
	s.exec(`CREATE TRIGGER refuse BEFORE DELETE ON queued.messages FOR EACH ROW EXECUTE FUNCTION refuse()`)
	s.must(503, "POST", "/queues/t/messages/receive", fmt.Sprintf(`{"wait_seconds":20,"ack":[%q]}`, id))
	eventually(t, "nothing is leased by it", func() bool { return s.states("t")[2] == "ready" })
	checkDiff(t, "the other", "in_flight", s.states("t")[1])
}

func TestRefusedReceiveHasAckedNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	for what, v := range map[string]struct {
		queueID, body string
		status        int
		want          string
	}{
		"no queue":           {"none", `{"ack":[%q]}`, 404, `{"detail":"Queue not found"}`},
		"wrong limit":        {"t", `{"ack":[%q],"limit":-1}`, 422, `{"detail":[{"loc":["body","limit"],"msg":"ensure this value is greater than or equal to 0","type":"value_error.number.not_ge","ctx":{"limit_value":0}}]}`},
		"negative wait":      {"t", `{"ack":[%q],"wait_seconds":-1}`, 422, `{"detail":[{"loc":["body","wait_seconds"],"msg":"ensure this value is greater than or equal to 0","type":"value_error.number.not_ge","ctx":{"limit_value":0}}]}`},
		"wrong id":           {"t", `{"ack":[%q,"x"]}`, 422, `{"detail":[{"loc":["body","ack",1],"msg":"value is not a valid uuid","type":"type_error.uuid"}]}`},
		"wrong lease token":  {"t", `{"ack":[%q,{"id":"01a20995-e87b-7939-b2a2-97398d1afab0","scheduled_at":"x"}]}`, 422, `{"detail":[{"loc":["body","ack",1,"scheduled_at"],"msg":"invalid datetime format","type":"value_error.datetime"}]}`},
		"unknown field":      {"t", `{"ack":[%q],"fields":["x"]}`, 422, `{"detail":[{"loc":["body","fields",0],"msg":"unknown field; allowed: group, request_id, traceparent","type":"value_error"}]}`},
		"no list":            {"t", `{"ack":[%q],"nack":"x"}`, 422, `{"detail":[{"loc":["body","nack"],"msg":"value is not a valid list","type":"type_error.list"}]}`},
		"acked and nacked":   {"t", `{"ack":[%[1]q],"nack":[{"id":%[1]q}]}`, 422, `{"detail":[{"loc":["body","nack",0,"id"],"msg":"the message is also in ack","type":"value_error"}]}`},
		"no object":          {"t", `["%s"]`, 422, `{"detail":[{"loc":["body"],"msg":"value is not a valid dict","type":"type_error.dict"}]}`},
		"a delay of a month": {"t", `{"nack":[{"id":%q,"delay_seconds":2592000}]}`, 422, `{"detail":[{"loc":["body","nack",0,"delay_seconds"],"msg":"ensure this value is less than or equal to 43200","type":"value_error.number.not_le","ctx":{"limit_value":43200}}]}`},
	} {
		checkDiff(t, what, v.want, s.must(v.status, "POST", "/queues/"+v.queueID+"/messages/receive", fmt.Sprintf(v.body, id)))
	}
	checkDiff(t, "messages", map[int]string{1: "in_flight"}, s.states("t"))
}

func TestOrderedGroupGoesOnInTheReceiveThatAcks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	s.publishGroups("q", "a1", "a2", "a3")
	m := s.receive("q", "")
	for want := 2; want <= 3; want++ {
		next, _ := s.receiveAck("q", fmt.Sprintf(`{"ack":[{"id":%q,"scheduled_at":%q}]}`, m[0].ID, m[0].ScheduledAt))
		if len(next) != 1 {
			t.Fatalf("message %d of the group did not come with the ack of the one before", want)
		}
		m = next
	}
}

func TestReceiveAcksOnlyWhatTheTokenMayGet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("mine")
	s.mustTopic("other")
	mine, other := s.publish("mine", 1)[0], s.publish("other", 2)[0]
	s.receive("mine", "")
	s.receive("other", "")
	s.useTokens(map[string]string{"worker": `"get":["mine"]`})
	c := s.with(secret("worker"))
	got := c.must(200, "POST", "/queues/mine/messages/receive", fmt.Sprintf(`{"ack":[%q,%q]}`, mine, other))
	checkDiff(t, "response", `{"data":[],"conflicts":[]}`, got)
	c.must(403, "POST", "/queues/other/messages/receive", "")
	checkDiff(t, "mine", 0, s.messagesIn("mine"))
	checkDiff(t, "other", 1, s.messagesIn("other"))
}

func TestReceiveThatOnlyAcks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	s.publish("t", 2)
	_, response := s.receiveAck("t", fmt.Sprintf(`{"limit":0,"ack":[%q]}`, id))
	checkDiff(t, "response", `{"data":[],"conflicts":[]}`, response)
	checkDiff(t, "messages", map[int]string{2: "ready"}, s.states("t"))
	s.must(404, "POST", "/queues/none/messages/receive", `{"limit":0}`)
}
