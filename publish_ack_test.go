package main

import (
	"fmt"
	"testing"
)

// A step of a pipeline leaves its input or its output, never both.
func TestPublishAcksInTheSameCommit(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct{ path, body string }{
		"to a topic":          {"/topics/out/messages", `{"data":{"n":7},"ack":%s}`},
		"to a queue":          {"/queues/out/messages", `{"data":{"n":7},"ack":%s}`},
		"in a batch":          {"/topics/out/messages/batch", `{"messages":[{"data":{"n":7}}],"ack":%s}`},
		"in a batch, a queue": {"/queues/out/messages/batch", `{"messages":[{"data":{"n":7}}],"ack":%s}`},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustTopic("in")
			s.mustTopic("out")
			s.publish("in", 1, 2, 3)
			in := s.receive("in", "?limit=2")
			third := s.receive("in", "")[0]
			ack := fmt.Sprintf(`[%q,{"id":%q,"scheduled_at":%q}]`, in[0].ID, in[1].ID, in[1].ScheduledAt)
			s.must(201, "POST", v.path, fmt.Sprintf(v.body, ack))
			checkDiff(t, "output", map[int]string{7: "ready"}, s.states("out"))
			checkDiff(t, "input", map[int]string{3: "in_flight"}, s.states("in"))
			s.wantMetrics(`queued_messages_acked_total{queue="in"} 2`, `queued_messages_published_total{queue="out"} 1`)

			// The first has been deleted, so nothing happens at all.
			again := fmt.Sprintf(`[%q,%q]`, in[0].ID, third.ID)
			want := fmt.Sprintf(`{"detail":[{"loc":["body","ack",0],"msg":"message %s is not in flight, or not in the lease of this scheduled_at","type":"value_error.lease"}]}`, in[0].ID)
			checkDiff(t, "conflict", want, s.must(409, "POST", v.path, fmt.Sprintf(v.body, again)))
			checkDiff(t, "output", map[int]string{7: "ready"}, s.states("out"))
			checkDiff(t, "input", map[int]string{3: "in_flight"}, s.states("in"))
		})
	}
}

func TestPublishThatAcksDoesNothingUnlessAllAreInTheirLeases(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct {
		before func(s *testServer, in wireMessage)
		token  bool
		status int
	}{
		"in its lease":                   {func(s *testServer, in wireMessage) {}, true, 201},
		"without a token":                {func(s *testServer, in wireMessage) {}, false, 201},
		"lease ended, not yet delivered": {func(s *testServer, in wireMessage) { s.endLeases() }, false, 201},
		"delivered again":                {func(s *testServer, in wireMessage) { s.endLeases(); s.receive("in", "") }, true, 409},
		"nacked":                         {func(s *testServer, in wireMessage) { s.must(204, "PUT", "/messages/"+in.ID+"/nack", "") }, false, 409},
		"acked":                          {func(s *testServer, in wireMessage) { s.must(204, "PUT", "/messages/"+in.ID+"/ack", "") }, false, 409},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustTopic("in")
			s.mustQueue("out")
			s.publish("in", 1)
			in := s.receive("in", "")[0]
			v.before(s, in)
			left := s.messagesIn("in")
			ack := fmt.Sprintf("%q", in.ID)
			if v.token {
				ack = fmt.Sprintf(`{"id":%q,"scheduled_at":%q}`, in.ID, in.ScheduledAt)
			}
			s.must(v.status, "POST", "/queues/out/messages", `{"data":{"n":2},"ack":[`+ack+`]}`)
			if v.status == 201 {
				checkDiff(t, "output", 1, s.messagesIn("out"))
				checkDiff(t, "input", left-1, s.messagesIn("in"))
			} else {
				checkDiff(t, "output", 0, s.messagesIn("out"))
				checkDiff(t, "input", left, s.messagesIn("in"))
			}
		})
	}
}

// Two that share a transaction and ack the same message: one of them does.
func TestPublishesThatAckTheSameMessageDoNotBothHappen(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("in")
	s.mustQueue("out")
	s.publish("in", 1, 2)
	in := s.receive("in", "")
	free := s.lockTable("queued.messages")
	statuses := make(chan int, 4)
	for i, id := range []string{in[0].ID, in[0].ID, in[0].ID, in[1].ID} {
		go func() {
			statuses <- s.do("POST", "/queues/out/messages", fmt.Sprintf(`{"data":{"n":%d},"ack":[%q]}`, i, id)).status
		}()
	}
	s.waitForLocks(1)
	free()
	got := map[int]int{}
	for range 4 {
		got[<-statuses]++
	}
	checkDiff(t, "statuses", map[int]int{201: 2, 409: 2}, got)
	checkDiff(t, "output", 2, s.messagesIn("out"))
	checkDiff(t, "input", 0, s.messagesIn("in"))
}

func TestPublishThatAcksWakesTheGroupOfTheAckedMessage(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("in", `"ordered":true`)
	s.mustQueue("out")
	s.publishGroups("in", "a1", "a2")
	first := s.receive("in", "")[0]
	poll := s.poll(t.Context(), "in", "?wait_seconds=20")
	s.waiting("in", 1)
	s.must(201, "POST", "/queues/out/messages", fmt.Sprintf(`{"data":{"n":2},"ack":[%q]}`, first.ID))
	if got := s.await(poll); len(got) != 1 {
		t.Errorf("received %v, want the next of the group", got)
	}
}

func TestPublishThatAcksChecksItsBodyAndPermissions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("in")
	s.mustQueue("out")
	id := s.publish("in", 1)[0]
	s.receive("in", "")
	s.play([]step{
		{"POST", "/queues/out/messages", `{"data":{},"ack":["x"]}`, 422, `{"detail":[{"loc":["body","ack",0],"msg":"value is not a valid uuid","type":"type_error.uuid"}]}`},
		{"POST", "/queues/out/messages", `{"data":{},"ack":{}}`, 422, `{"detail":[{"loc":["body","ack"],"msg":"value is not a valid list","type":"type_error.list"}]}`},
		{"POST", "/queues/out/messages", fmt.Sprintf(`{"data":{},"ack":[%[1]q,{"id":%[1]q}]}`, id), 422, `{"detail":[{"loc":["body","ack",1],"msg":"the message is in ack twice","type":"value_error"}]}`},
		{"POST", "/queues/none/messages", fmt.Sprintf(`{"data":{},"ack":[%q]}`, id), 404, `{"detail":"Queue not found"}`},
	})
	s.useTokens(map[string]string{"publisher": `"post":["out"]`, "step": `"post":["out"],"get":["in"]`})
	body := fmt.Sprintf(`{"data":{},"ack":[%q]}`, id)
	want := fmt.Sprintf(`{"detail":[{"loc":["body","ack",0],"msg":"message %s is not in flight, or not in the lease of this scheduled_at","type":"value_error.lease"}]}`, id)
	checkDiff(t, "without permission to get", want, s.with(secret("publisher")).must(409, "POST", "/queues/out/messages", body))
	checkDiff(t, "output", 0, s.messagesIn("out"))
	s.with(secret("step")).must(201, "POST", "/queues/out/messages", body)
	checkDiff(t, "input", 0, s.messagesIn("in"))
}
