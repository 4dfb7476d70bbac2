package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// leaseOf returns the length of the lease of a message in a response.
func leaseOf(t testing.TB, m wireMessage) time.Duration {
	t.Helper()
	from, err := time.Parse(timestampLayout, m.UpdatedAt)
	to, err2 := time.Parse(timestampLayout, m.ScheduledAt)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return to.Sub(from)
}

// Receives of one queue may have leases of different lengths, whatever the kind of its
// messages. The lease token is the end of the lease.
func TestReceiveSetsTheLengthOfItsLeases(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct{ settings, message string }{
		"no group":      {`"paused":false`, `{"data":{}}`},
		"group":         {`"paused":false`, `{"data":{},"group":"g"}`},
		"ordered":       {`"ordered":true`, `{"data":{},"group":"g"}`},
		"retry backoff": {`"retry_backoff_seconds":[5]`, `{"data":{}}`},
		"group, too":    {`"retry_backoff_seconds":[5]`, `{"data":{},"group":"g"}`},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("q", v.settings)
			polls := make(map[time.Duration]<-chan polled)
			receivers := 0
			for _, seconds := range []int{43200, 7, 60} {
				query := "?limit=1&wait_seconds=20"
				if seconds != 60 {
					query += fmt.Sprint("&ack_deadline_seconds=", seconds)
				}
				polls[time.Duration(seconds)*time.Second] = s.poll(context.Background(), "q", query)
				receivers++
				s.waiting("q", receivers)
			}
			for range polls { // whichever gets the message
				s.must(201, "POST", "/queues/q/messages", v.message)
				select {
				case p := <-polls[43200*time.Second]:
					checkLease(s, 43200*time.Second, p)
				case p := <-polls[7*time.Second]:
					checkLease(s, 7*time.Second, p)
				case p := <-polls[60*time.Second]:
					checkLease(s, 60*time.Second, p)
				case <-time.After(testTimeout):
					t.Fatal("no receiver got the message")
				}
			}
			s.must(201, "POST", "/queues/q/messages", v.message)
			got := s.messages(s.must(200, "POST", "/queues/q/messages/receive", `{"limit":1,"wait_seconds":20,"ack_deadline_seconds":9}`))
			checkDiff(t, "in a body", 9*time.Second, leaseOf(t, got[0]))
		})
	}
}

// checkLease checks the lease of the message that a poll has returned, and acks it with its
// lease token.
func checkLease(s *testServer, want time.Duration, p polled) {
	s.t.Helper()
	if p.err != nil || len(p.messages) != 1 {
		s.t.Fatalf("received %s, %v", p.body, p.err)
	}
	m := p.messages[0]
	checkDiff(s.t, "lease", want, leaseOf(s.t, m))
	s.must(204, "PUT", "/messages/"+m.ID+"/ack?scheduled_at="+m.ScheduledAt, "")
}

func TestLengthOfLeasesHasBounds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, value := range []string{"-1", "43201", "x", "1.5"} {
		s.must(422, "GET", "/queues/q/messages?ack_deadline_seconds="+value, "")
	}
	for _, value := range []string{"-1", "43201", `"x"`} {
		s.must(422, "POST", "/queues/q/messages/receive", `{"ack_deadline_seconds":`+value+`}`)
	}
}

// Claims of several queues, and of one queue with different leases, that wait at the same
// time share statements, and each gets its own messages with its own lease.
func TestClaimsWithDifferentLeasesShareABatch(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	conn := newPinnedConn(s.engine.main.db, s.server.metrics)
	conn.homes = s.engine.homes
	defer conn.end()
	var all []*claimRequest
	for _, queueID := range []string{"a", "b"} {
		s.mustQueue(queueID)
		for n := range 6 {
			s.must(201, "POST", "/queues/"+queueID+"/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
		}
		for _, key := range []dispatcherKey{{}, {lease: ownLease(7)}, {sqs: true}, {sqs: true, lease: ownLease(8)}} {
			key.queueID = queueID
			all = append(all, &claimRequest{dispatcherKey: key, limit: 1, budget: deliverySize})
		}
	}
	if err := s.engine.runClaims(conn, all); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, r := range all {
		if r.err != nil || len(r.result.messages) != 1 {
			t.Fatalf("%v: %d messages, %v", r.dispatcherKey, len(r.result.messages), r.err)
		}
		m := r.result.messages[0]
		checkDiff(t, fmt.Sprint(r.dispatcherKey, ": queue"), r.queueID, m.QueueID)
		checkDiff(t, fmt.Sprint(r.dispatcherKey, ": lease"), r.lease.or(time.Minute), m.ScheduledAt.Sub(m.UpdatedAt.Time))
		checkDiff(t, fmt.Sprint(r.dispatcherKey, ": past"), r.sqs, m.past != nil && m.past.receivedAt.Valid)
		seen[m.ID] = true
	}
	checkDiff(t, "different messages", len(all), len(seen))
}

// A message that is received without a lease can be received again at once, also by
// receivers that wait, until it is exhausted.
func TestReceiveWithoutALeaseLeavesTheMessageVisible(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct{ settings, message string }{
		"no group": {`"ordered":false`, `{"data":{"n":1}}`},
		"group":    {`"ordered":false`, `{"data":{"n":1},"group":"g"}`},
		"ordered":  {`"ordered":true`, `{"data":{"n":1},"group":"g"}`},
	} {
		for _, of := range []string{"the receive", "the queue"} {
			t.Run(what+", "+of, func(t *testing.T) {
				t.Parallel()
				s := newTestServer(t)
				other := newTestServerOn(t, s.dsn)
				s.mustQueue("dead")
				s.mustQueue("q", v.settings, `"dead_queue_id":"dead"`, `"message_max_deliveries":6`)
				query := "?limit=1&wait_seconds=20&ack_deadline_seconds=0"
				if of == "the queue" {
					s.exec("UPDATE queued.queues SET ack_deadline_seconds = 0 WHERE id = 'q'")
					query = "?limit=1&wait_seconds=20"
				}
				var polls []<-chan polled
				for i, server := range []*testServer{s, s, other} {
					polls = append(polls, server.poll(context.Background(), "q", query))
					server.waiting("q", 1+i%2)
				}
				s.must(201, "POST", "/queues/q/messages", v.message)
				attempts := make(map[int]bool)
				for _, poll := range polls {
					m := s.await(poll)[0]
					attempts[m.DeliveryAttempts] = true
					checkDiff(t, "lease", time.Duration(0), leaseOf(t, m))
				}
				checkDiff(t, "attempts", map[int]bool{1: true, 2: true, 3: true}, attempts)
				checkDiff(t, "visible", map[int]string{1: "ready"}, s.states("q"))
				m := s.receive("q", "?wait_seconds=20&ack_deadline_seconds=30")[0]
				s.must(204, "PUT", "/messages/"+m.ID+"/nack?scheduled_at="+m.ScheduledAt, "")
				s.receive("q", query)
				m = s.receive("q", query)[0]
				checkDiff(t, "exhausted", map[int]string{1: "exhausted"}, s.states("q"))
				s.must(204, "PUT", "/messages/"+m.ID+"/ack?scheduled_at="+m.ScheduledAt, "")
				checkDiff(t, "left", 0, s.messagesIn("q")+s.messagesIn("dead"))
			})
		}
	}
}

// If no other consumer has received it, a message without a lease is released like any other.
func TestReceiveWithoutALeaseIsUndone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	first := s.takeSQS("t", 1, 0, 0)
	second := s.takeSQS("t", 1, 0, 0)
	s.engine.release("t", first)
	m := s.peeked("t")[0]
	checkDiff(t, "attempts after a late release", 2, m.DeliveryAttempts)
	s.engine.release("t", second)
	checkDiff(t, "attempts after a release", 1, s.peeked("t")[0].DeliveryAttempts)
	checkDiff(t, "received", []int{1}, numbers(s.receive("t", "")))
}

// A response that is too late for its lease is not sent, but without a lease there is no
// too late.
func TestMessageWithoutALeaseIsSentLate(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	v, err := s.engine.take(context.Background(), dispatcherKey{queueID: "t", lease: ownLease(0)}, 1, 0)
	if err != nil || len(v.messages) != 1 || time.Until(v.goodUntil) < time.Hour {
		t.Errorf("take = %v, %v, want a message that is good for long", v, err)
	}
}

// What the store keeps for SQS's API stays with a message. Lookups and peek show it.
func TestSQSColumnsStayWithTheMessage(t *testing.T) {
	t.Parallel()
	const sqs = `{"deduplication_id" : "sqs"}`
	publish := func(s *testServer, queueID, group string, n int) {
		t.Helper()
		p := &publication{queueID: queueID, messages: []draft{{data: fmt.Appendf(nil, `{"n":%d}`, n), group: group, sqs: []byte(sqs)}, {data: []byte(`{"n":0}`), group: group}}}
		stored, err := s.engine.publish(context.Background(), p)
		if err != nil || len(stored) != 2 {
			t.Fatal(stored, err)
		}
	}
	for _, group := range []string{"", "g"} {
		s := newTestServer(t)
		s.mustQueue("dead")
		s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`, `"consumed_retention_seconds":100`)
		wantSQS := func(what, queueID string) {
			t.Helper()
			checkDiff(t, what, 1, s.count("SELECT count(*) FROM queued.messages WHERE sqs::text = '"+sqs+"' AND data ->> 'n' = '1' AND queue_key = (SELECT key FROM queued.queues WHERE id = '"+queueID+"')"))
			for _, shown := range []string{s.must(200, "GET", "/queues/"+queueID+"/messages/peek", ""), s.must(200, "GET", "/messages/"+s.idWith(1), "")} {
				if strings.Count(shown, `,"sqs":`+sqs) != 1 || strings.Count(shown, `"sqs":`) != 1 || strings.Contains(shown, "received_at") {
					t.Errorf("%s: shows %s, want %s once", what, shown, sqs)
				}
			}
		}
		publish(s, "q", group, 1)
		wantSQS("published", "q")
		all := s.takeSQS("q", 2, -1, testTimeout)
		checkDiff(t, "received", []string{sqs, ""}, []string{string(all[0].past.sqs), string(all[1].past.sqs)})
		checkDiff(t, "size", len(`{"n":1}`+sqs), all[0].size)
		first := all[0].past.receivedAt.Time
		checkDiff(t, "first receive", all[0].UpdatedAt.Time, first)
		s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q,%q]}`, all[0].ID, all[1].ID))
		wantSQS("nacked", "q")
		// A consumed message that no receiver got is as it was.
		v, err := s.engine.consume(context.Background(), "q", 2, testTimeout)
		if err != nil || len(v.messages) != 2 {
			t.Fatal(v.messages, err)
		}
		s.engine.release("q", v.messages)
		wantSQS("restored", "q")
		again := s.takeSQS("q", 2, -1, testTimeout)
		checkDiff(t, "received again", []string{sqs, ""}, []string{string(again[0].past.sqs), string(again[1].past.sqs)})
		checkDiff(t, "first receive", first, again[0].past.receivedAt.Time)
		if !again[0].UpdatedAt.After(first) {
			t.Errorf("the second receive is not after the first: %v, %v", again[0].UpdatedAt, first)
		}
		s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q,%q]}`, all[0].ID, all[1].ID))
		wantSQS("dead", "dead")
		dead := s.takeSQS("dead", 1, -1, testTimeout)[0]
		checkDiff(t, "where it came from", "q", dead.past.sourceQueueID.String)
		checkDiff(t, "first receive there", dead.UpdatedAt.Time, dead.past.receivedAt.Time)
		s.engine.release("dead", []message{dead})
		checkDiff(t, "first receive of released messages", 0, s.count("SELECT count(*) FROM queued.messages WHERE received_at IS NOT NULL"))
		s.must(204, "PUT", "/queues/dead/redrive", `{}`)
		wantSQS("redriven", "q")
		s.exec("SELECT queued.nack(id) FROM queued.receive('q', 2)")
		s.makeGroupsReady()
		s.exec("SELECT queued.nack(id) FROM queued.receive('q', 2)")
		wantSQS("dead by SQL", "dead")
	}
}

// idWith returns the id of the message {"n": n}.
func (s *inspector) idWith(n int) (id string) {
	s.t.Helper()
	if err := s.store.db.QueryRow("SELECT id FROM queued.messages WHERE (data ->> 'n')::integer = $1", n).Scan(&id); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// takeSQS receives messages as SQS's API does. A lease of -1 is that of the queue.
func (s *inspector) takeSQS(queueID string, limit, lease int, wait time.Duration) []message {
	s.t.Helper()
	key := dispatcherKey{queueID: queueID, sqs: true}
	if lease >= 0 {
		key.lease = ownLease(lease)
	}
	v, err := s.engine.take(context.Background(), key, limit, wait)
	if err != nil {
		s.t.Fatal(err)
	}
	return v.messages
}
