package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// after returns the time from updated_at to scheduled_at of the one message in a queue, and
// its state, as a lookup shows them.
func (s *testServer) after(queueID string) string {
	s.t.Helper()
	var m struct {
		State       string
		ScheduledAt string `json:"scheduled_at"`
		UpdatedAt   string `json:"updated_at"`
	}
	mustDecode(s.t, s.must(200, "GET", "/messages/"+s.idOf(queueID), ""), &m)
	from, _ := time.Parse(timestampLayout, m.UpdatedAt)
	to, _ := time.Parse(timestampLayout, m.ScheduledAt)
	return fmt.Sprint(m.State, " ", to.Sub(from))
}

// ageLeases moves the leases of a queue and the delays after them into the past.
func (s *inspector) ageLeases(by string) {
	s.t.Helper()
	s.changeMessages(shift("scheduled_at", "-"+by) + ", " + shift("lease_end", "-"+by))
	s.makeGroupsReady()
}

func TestNackBacksOff(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"null", `"g"`} {
		for _, settings := range []string{`"ordered":false`, `"ordered":true`} {
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"retry_backoff_seconds":[5,30]`, `"dead_queue_id":"dead"`, `"message_max_deliveries":5`, settings)
			s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
			receive := func() wireMessage {
				t.Helper()
				s.makeDue()
				s.makeGroupsReady()
				got := s.receive("q", "?wait_seconds=20")
				checkDiff(t, "lease", "in_flight 1m0s", s.after("q"))
				return got[0]
			}
			for _, want := range []string{"delayed 5s", "delayed 30s", "delayed 30s"} {
				m := receive()
				s.must(204, "PUT", "/messages/"+m.ID+"/nack?scheduled_at="+m.ScheduledAt, "")
				checkDiff(t, fmt.Sprint("after attempt ", m.DeliveryAttempts), want, s.after("q"))
			}
			s.must(204, "PUT", "/messages/"+s.idOf("q")+"/nack", "") // of a delayed message
			checkDiff(t, "nacked while delayed", "ready 0s", s.after("q"))
			m := receive()
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", `{"count_attempt":false}`)
			checkDiff(t, "without counting the attempt", "ready 0s", s.after("q"))
			m = receive()
			s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q],"delay_seconds":7}`, m.ID))
			checkDiff(t, "with a delay", "delayed 7s", s.after("q"))
			m = receive()
			checkDiff(t, "attempts", 5, m.DeliveryAttempts)
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
			checkDiff(t, "in the dead queue", 1, s.messagesIn("dead"))
		}
	}
}

func TestEndOfALeaseBacksOff(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"null", `"g"`} {
		for _, settings := range []string{`"ordered":false`, `"ordered":true`} {
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"retry_backoff_seconds":[500,3000]`, `"dead_queue_id":"dead"`, `"message_max_deliveries":3`, settings)
			s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
			for i, step := range []string{"400 s", "2900 s"} {
				m := s.receive("q", "?wait_seconds=20")[0]
				checkDiff(t, "lease", "in_flight 1m0s", s.after("q"))
				s.ageLeases("60 s")
				if got := s.after("q"); !strings.HasPrefix(got, "delayed ") {
					t.Errorf("after lease %d the message is %s, want delayed", i+1, got)
				}
				s.ageLeases(step)
				checkDiff(t, "received during the backoff", 0, len(s.receive("q", "")))
				// The token of the lease holds until the next delivery.
				if i == 0 {
					s.must(409, "PUT", "/messages/"+m.ID+"/ack?scheduled_at="+s.peeked("q")[0].ScheduledAt, "")
				}
				s.ageLeases("100 s")
			}
			m := s.receive("q", "?wait_seconds=20")[0] // the last one
			checkDiff(t, "attempts", 3, m.DeliveryAttempts)
			s.ageLeases("60 s")
			s.mustCleanUp()
			checkDiff(t, "in the dead queue", 1, s.messagesIn("dead"))
		}
	}
}

// The lease token is the end of the lease, although the message is due later.
func TestLeaseTokenWithBackoff(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"null", `"g"`} {
		s := newTestServer(t)
		s.mustQueue("q", `"retry_backoff_seconds":[100]`)
		s.mustQueue("to")
		publish := func() {
			s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
		}
		publish()
		m := s.receive("q", "?wait_seconds=20")[0]
		checkDiff(t, "shown", m.ScheduledAt, s.peeked("q")[0].ScheduledAt)
		extended := s.messages(`{"data":[` + s.must(200, "PUT", "/messages/"+m.ID+"/extend?scheduled_at="+m.ScheduledAt, `{"ack_deadline_seconds":300}`) + `]}`)[0].ScheduledAt
		checkDiff(t, "extended", "in_flight 5m0s", s.after("q"))
		checkDiff(t, "due after the extended lease", 1, s.count("SELECT count(*) FROM queued.messages WHERE scheduled_at = lease_end + interval '100 s'"))
		s.must(409, "PUT", "/messages/"+m.ID+"/ack?scheduled_at="+m.ScheduledAt, "")
		s.ageLeases("300 s")
		aged := s.count("SELECT count(*) FROM queued.messages WHERE lease_end <= now() AND scheduled_at > now()")
		checkDiff(t, "backs off after the extended lease", 1, aged)
		s.changeMessages(shift("scheduled_at", "300 s") + ", " + shift("lease_end", "300 s"))
		s.must(201, "POST", "/queues/to/messages", fmt.Sprintf(`{"data":{},"ack":[{"id":%q,"scheduled_at":%q}]}`, m.ID, extended))
		checkDiff(t, "left", 0, s.messagesIn("q"))

		// A message that its receiver did not get is as before.
		publish()
		v, err := s.engine.receive(context.Background(), "q", 1, testTimeout)
		if err != nil || len(v.messages) != 1 {
			t.Fatal(len(v.messages), err)
		}
		s.engine.release("q", v.messages)
		checkDiff(t, "released", 1, s.count("SELECT count(*) FROM queued.messages WHERE queue_key = (SELECT key FROM queued.queues WHERE id = 'q') AND delivery_attempts = 0 AND NOT in_flight AND lease_end IS NULL AND scheduled_at <= now()"))

		// Without the setting, the end of a lease makes the message ready again.
		s.must(200, "PUT", "/queues/q", `{"ack_deadline_seconds":60,"message_retention_seconds":3600,"retry_backoff_seconds":null}`)
		if strings.Contains(s.must(200, "GET", "/queues/q", ""), "retry_backoff") {
			t.Error("the queue shows a backoff that it does not have")
		}
		got := s.receive("q", "?wait_seconds=20")[0]
		s.ageLeases("60 s")
		checkDiff(t, "received again", got.ID, s.receive("q", "?wait_seconds=20")[0].ID)
	}
	s := newTestServer(t)
	s.mustQueue("q", `"retry_backoff_seconds":[5,"30",300]`)
	if !strings.Contains(s.must(200, "GET", "/queues/q", ""), `"retry_backoff_seconds":[5,30,300]`) {
		t.Error("the queue does not show its backoff")
	}
	for _, value := range []string{"5", `["x"]`, "[-1]", "[43201]", "[" + strings.Repeat("1,", 100) + "1]"} {
		s.must(422, "PUT", "/queues/q", `{"ack_deadline_seconds":60,"message_retention_seconds":3600,"retry_backoff_seconds":`+value+`}`)
	}
}

// A change of the backoff applies to the nacks and the deliveries that follow, at all
// servers, and not to leases that have begun.
func TestBackoffChangesDuringALease(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"null", `"g"`} {
		s := newTestServer(t)
		other := newTestServerOn(t, s.dsn)
		s.mustQueue("q")
		set := func(backoff string) {
			s.must(200, "PUT", "/queues/q", `{"ack_deadline_seconds":60,"message_retention_seconds":3600,"retry_backoff_seconds":`+backoff+`}`)
		}
		s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
		for _, server := range []*testServer{s, other} {
			set("null")
			server.receive("q", "?wait_seconds=20")
			set("[5]")
			s.ageLeases("60 s")
			checkDiff(t, "after a lease without a backoff", "ready", strings.Fields(s.after("q"))[0])
			m := server.receive("q", "?wait_seconds=20")[0]
			set("[7,8]")
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
			checkDiff(t, "after a nack", "delayed 8s", s.after("q"))
			s.ageLeases("8 s")
			server.receive("q", "?wait_seconds=20")
			set("[]")
			s.ageLeases("60 s")
			checkDiff(t, "after a lease with a backoff", "delayed", strings.Fields(s.after("q"))[0])
			s.ageLeases("8 s")
			m = server.receive("q", "?wait_seconds=20")[0]
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
			checkDiff(t, "after a nack without a backoff", "ready 0s", s.after("q"))
		}
	}
}

// During its backoff a job is not in flight for clients of SharQ.
func TestJobThatBacksOffIsReplaced(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"retry_backoff_seconds":[100]`)
	const job = `{"job_id":"j","payload":{},"interval":1}`
	s.must(201, "POST", "/enqueue/q/g/", job)
	s.receive("q", "?wait_seconds=20")
	s.ageLeases("60 s")
	s.must(404, "POST", "/finish/q/g/j/", "")
	s.must(201, "POST", "/enqueue/q/g/", job)
	checkDiff(t, "jobs", 1, s.messagesIn("q"))
}
