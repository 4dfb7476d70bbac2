package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const leaseOver = `{"detail":"the lease has ended: scheduled_at does not match"}`

// The lease token of a consumer that was too slow does not match the lease of the next
// consumer, nor the message after it has moved to another queue.
func TestLateConsumerCannotTouchTheNextLease(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct {
		ended bool // the lease, before what comes next
		next  func(s *testServer, id string)
	}{
		"delivered again": {true, func(s *testServer, id string) { s.receive("t", "") }},
		"redriven and delivered": {true, func(s *testServer, id string) {
			s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"to"}`)
			s.receive("to", "")
		}},
		"redriven": {true, func(s *testServer, id string) {
			s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"to"}`)
		}},
		"redriven to itself": {true, func(s *testServer, id string) {
			s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"t"}`)
		}},
		"nacked": {false, func(s *testServer, id string) { s.must(204, "PUT", "/messages/"+id+"/nack", "") }},
		"extended by another": {false, func(s *testServer, id string) {
			s.must(200, "PUT", "/messages/"+id+"/extend", `{"ack_deadline_seconds":9}`)
		}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustTopic("t")
			s.mustQueue("to")
			id := s.publish("t", 1)[0]
			lease := s.receive("t", "")[0].ScheduledAt
			if v.ended {
				s.makeDue()
			}
			v.next(s, id)
			before := s.must(200, "GET", "/messages/"+id, "")
			withToken := fmt.Sprintf(`{"messages":[{"id":%q,"scheduled_at":%q}]}`, id, lease)
			conflict := `{"detail":[{"loc":["body","messages",0,"scheduled_at"],"msg":"the lease has ended: scheduled_at does not match","type":"value_error.lease"}]}`
			s.play([]step{
				{"PUT", "/messages/" + id + "/ack?scheduled_at=" + lease, "", 409, leaseOver},
				{"PUT", "/messages/" + id + "/nack?scheduled_at=" + lease, "", 409, leaseOver},
				{"PUT", "/messages/" + id + "/extend?scheduled_at=" + lease, `{"ack_deadline_seconds":1}`, 409, leaseOver},
				{"PUT", "/messages/ack", withToken, 409, conflict},
				{"PUT", "/messages/nack", withToken, 409, conflict},
			})
			checkDiff(t, "message", before, s.must(200, "GET", "/messages/"+id, ""))
		})
	}
}

func TestLeaseTokenHoldsUntilTheNextDelivery(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3)
	var leased []wireMessage
	for range 3 {
		leased = append(leased, s.receive("t", "?limit=1")...)
	}
	path := func(i int, verb string) string {
		return "/messages/" + leased[i].ID + "/" + verb + "?scheduled_at=" + leased[i].ScheduledAt
	}
	s.must(204, "PUT", path(0, "ack"), "")
	s.must(204, "PUT", path(0, "ack"), "") // already deleted
	s.must(204, "PUT", path(0, "nack"), "")
	s.must(404, "PUT", path(0, "extend"), `{"ack_deadline_seconds":1}`)
	s.must(204, "PUT", path(1, "nack"), "")
	// The client receives an end that is a little before the end in the database. Between
	// the two the server must treat the lease as ended.
	ended := s.messages(`{"data":[` + s.must(200, "PUT", path(2, "extend"), `{"ack_deadline_seconds":1}`) + `]}`)[0].ScheduledAt
	eventually(t, "the lease has ended", func() bool {
		return s.count("SELECT count(*) FROM queued.messages WHERE id = $1 AND scheduled_at <= now()", leased[2].ID) == 1
	})
	s.must(204, "PUT", "/messages/"+leased[2].ID+"/ack?scheduled_at="+ended+"Z", "")
	checkDiff(t, "left", []int{2}, numbers(s.receive("t", "")))
}

func TestExtendSetsTheEndOfTheLease(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.play([]step{{"PUT", "/messages/" + id + "/extend", `{"ack_deadline_seconds":60}`, 404, `{"detail":"Message not in flight"}`}})
	s.receive("t", "")
	checkDiff(t, "response", `{"id":"UUID","queue_id":"t","data":{"n":1},"attributes":null,"delivery_attempts":1,`+
		`"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}`,
		mask(s.must(200, "PUT", "/messages/"+id+"/extend", `{"ack_deadline_seconds":43200}`)))
	checkDiff(t, "extended", 1, s.count("SELECT count(*) FROM queued.messages WHERE scheduled_at = updated_at + interval '12 h' AND delivery_attempts = 1 AND in_flight"))
	for _, body := range []string{``, `{}`, `{"ack_deadline_seconds":0}`, `{"ack_deadline_seconds":43201}`} {
		s.must(422, "PUT", "/messages/"+id+"/extend", body)
	}
	// When the shorter lease ends, the waiting receiver is woken.
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	s.must(200, "PUT", "/messages/"+id+"/extend", `{"ack_deadline_seconds":1}`)
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
}

func TestNackWithDelay(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	s.must(204, "PUT", "/messages/"+id+"/nack", `{"delay_seconds":43200}`)
	checkDiff(t, "delayed", 1, s.count("SELECT count(*) FROM queued.messages WHERE scheduled_at = updated_at + interval '12 h' AND NOT in_flight"))
	for _, body := range []string{`{"delay_seconds":-1}`, `{"delay_seconds":43201}`, `{"delay_seconds":"x"}`} {
		s.must(422, "PUT", "/messages/"+id+"/nack", body)
	}
	s.makeDue()
	s.receive("t", "")
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q],"delay_seconds":1}`, id))
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
}

// A consumer that could not begin to process a message nacks it without counting the
// delivery. It may do so any number of times, and in the last delivery too.
func TestNackThatCountsNoAttempt(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	for _, queue := range []string{`"id":"plain"`, `"id":"ordered","ordered":true`} {
		s.must(201, "POST", "/queues", "{"+queue+`,"ack_deadline_seconds":60,"message_retention_seconds":3600,"dead_queue_id":"dead","message_max_deliveries":2}`)
		id := strings.Split(queue, `"`)[3]
		s.must(201, "POST", "/queues/"+id+"/messages", `{"data":{"n":1},"group":"g"}`)
		attempt := func(want int) wireMessage {
			t.Helper()
			got := s.receive(id, "")
			if len(got) != 1 || got[0].DeliveryAttempts != want {
				t.Fatalf("%s: received %+v, want one message with attempt %d", id, got, want)
			}
			return got[0]
		}
		nack := func(m wireMessage, members string) {
			t.Helper()
			s.must(204, "PUT", "/messages/"+m.ID+"/nack?scheduled_at="+m.ScheduledAt, "{"+members+"}")
		}
		nack(attempt(1), `"count_attempt":false`)
		nack(attempt(1), `"count_attempt":true`)
		m := attempt(2) // its last
		nack(m, `"count_attempt":false,"delay_seconds":0`)
		s.must(409, "PUT", "/messages/"+m.ID+"/nack?scheduled_at="+m.ScheduledAt, `{"count_attempt":false}`)
		s.must(204, "PUT", "/messages/"+m.ID+"/nack", `{"count_attempt":false}`) // not leased
		m = attempt(2)
		s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q],"count_attempt":false,"delay_seconds":60}`, m.ID))
		s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q],"count_attempt":false}`, m.ID)) // delayed, not leased
		m = attempt(2)
		s.must(422, "PUT", "/messages/"+m.ID+"/nack", `{"count_attempt":"no"}`)
		nack(m, `"count_attempt":null`)
		checkDiff(t, id+": received after a last delivery that counts", 0, len(s.receive(id, "")))
	}
	checkDiff(t, "dead", 2, len(s.receive("dead", "")))
}

func TestBatchesOfAcksAndNacks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2, 3, 4, 5)
	leased := s.receive("t", "")
	unknown := newID()
	s.must(204, "PUT", "/messages/ack", fmt.Sprintf(`{"ids":[%q,%q,%q]}`, ids[0], unknown, ids[0]))
	s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q,%q]}`, strings.ToUpper(ids[1]), unknown))
	// Messages whose lease token matches are acked, and the error names the others.
	got := s.must(409, "PUT", "/messages/ack", fmt.Sprintf(`{"messages":[{"id":%q,"scheduled_at":%q},{"id":%q,"scheduled_at":"2022-10-05T21:48:24.724341"},{"id":%q},{"id":%q,"scheduled_at":%q}]}`,
		ids[2], leased[2].ScheduledAt, ids[3], ids[4], unknown, leased[0].ScheduledAt))
	if !strings.Contains(got, `["body","messages",1,"scheduled_at"]`) || strings.Count(got, "loc") != 1 {
		t.Errorf("conflicts = %s, want the second message alone", got)
	}
	checkDiff(t, "nacked", []int{2}, numbers(s.receive("t", "")))
	checkDiff(t, "left", 2, s.count("SELECT count(*) FROM queued.messages"))
	many := strings.TrimSuffix(strings.Repeat(`"`+unknown+`",`, maxBatch+1), ",")
	for _, body := range []string{``, `{}`, `{"ids":5}`, `{"ids":[]}`, `{"ids":["x"]}`, `{"ids":[5]}`, `{"ids":[` + many + `]}`,
		`{"messages":[5]}`, `{"messages":[{}]}`, `{"messages":[{"id":"x"}]}`, `{"messages":[{"id":"` + unknown + `","scheduled_at":"yesterday"}]}`,
		`{"messages":[{"id":"` + unknown + `","scheduled_at":5}]}`, `{"ids":["` + unknown + `"],"messages":[{"id":"` + unknown + `"}]}`} {
		s.must(422, "PUT", "/messages/ack", body)
		s.must(422, "PUT", "/messages/nack", body)
	}
	s.must(422, "PUT", "/messages/"+unknown+"/ack?scheduled_at=yesterday", "")
}

// While another transaction locks a row, only the requests for that row fail.
func TestLockedMessageHurtsNoOther(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3, 4)
	got := s.receive("t", "")
	tx := s.begin("UPDATE queued.messages SET bytes = bytes WHERE id = $1", got[0].ID)
	type outcome struct {
		n, status int
		err       error
	}
	outcomes := make(chan outcome)
	for n, m := range got[:3] {
		go func() {
			v, err := s.send(context.Background(), "PUT", "/messages/"+m.ID+"/ack", "")
			outcomes <- outcome{n, v.status, err}
		}()
	}
	for range got[:3] {
		o := <-outcomes
		if want := map[bool]int{true: 503, false: 204}[o.n == 0]; o.err != nil || o.status != want {
			t.Errorf("ack %d = %d %v, want %d", o.n, o.status, o.err, want)
		}
	}
	s.must(503, "PUT", "/messages/ack", fmt.Sprintf(`{"ids":[%q]}`, got[0].ID))
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.must(204, "PUT", "/messages/"+got[0].ID+"/ack", "")
	checkDiff(t, "left", 1, s.count("SELECT count(*) FROM queued.messages"))
}

// A nack makes a delayed message due although it is not leased, as in fastqueue. It
// does not count as a delivery.
func TestNackMakesADelayedMessageDue(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct {
		settings string
		delay    func(s *testServer) (id string) // publishes one message, delayed
		attempts int                             // delivery attempts of the delayed message
	}{
		"by its queue": {`"delivery_delay_seconds":900`, func(s *testServer) string { return s.publish("t", 1)[0] }, 0},
		"by its publisher": {`"ordered":false`, func(s *testServer) string {
			return s.messages(s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1},"delay_seconds":900}`))[0].ID
		}, 0},
		"by a nack": {`"ordered":false`, func(s *testServer) string {
			id := s.publish("t", 1)[0]
			s.receive("t", "")
			s.must(204, "PUT", "/messages/"+id+"/nack", `{"delay_seconds":900}`)
			return id
		}, 1},
		"with a group": {`"delivery_delay_seconds":900`, func(s *testServer) string {
			return s.messages(s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1},"group":"g"}`))[0].ID
		}, 0},
		"with a group in order": {`"ordered":true`, func(s *testServer) string {
			id := s.messages(s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1},"group":"g"}`))[0].ID
			s.must(201, "POST", "/queues/t/messages", `{"data":{"n":2},"group":"g"}`)
			s.receive("t", "")
			s.must(204, "PUT", "/messages/"+id+"/nack", `{"delay_seconds":900}`)
			return id
		}, 1},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustTopic("t", v.settings)
			id := v.delay(s)
			checkDiff(t, "received before", "[]", fmt.Sprint(numbers(s.receive("t", ""))))
			poll := s.poll(context.Background(), "t", "?wait_seconds=30")
			s.waiting("t", 1)
			s.must(204, "PUT", "/messages/"+id+"/nack", "")
			got := s.await(poll)
			if len(got) != 1 || got[0].ID != id || got[0].DeliveryAttempts != v.attempts+1 {
				t.Errorf("received %+v, want message %s in its delivery %d", got, id, v.attempts+1)
			}
		})
	}
}

func TestNackOfADelayedMessageMayDelayItAnew(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"delivery_delay_seconds":900`)
	published := s.messages(s.must(201, "POST", "/topics/t/messages", `{"data":{}}`))[0]
	id, token := published.ID, published.ScheduledAt
	s.must(409, "PUT", "/messages/"+id+"/nack?scheduled_at="+token, "") // not leased
	due := func(from, to int) int {
		return s.count(`SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND NOT in_flight
			AND scheduled_at BETWEEN now() + make_interval(secs => $1) AND now() + make_interval(secs => $2)`, from, to)
	}
	checkDiff(t, "delayed as before", 1, due(600, 900))
	s.must(204, "PUT", "/messages/nack", `{"ids":["`+id+`"],"delay_seconds":300}`)
	checkDiff(t, "delayed anew", 1, due(1, 300))
	s.must(204, "PUT", "/messages/"+id+"/nack", "")
	checkDiff(t, "due", 1, due(-300, 0))

	// A nack changes nothing about a message that is due and not leased.
	before := s.must(200, "GET", "/messages/"+id, "")
	s.must(204, "PUT", "/messages/"+id+"/nack", `{"delay_seconds":300}`)
	checkDiff(t, "message", before, s.must(200, "GET", "/messages/"+id, ""))
}

// One of the messages is in no queue when the first statement of the ack searches it, and in one
// afterwards. PostgreSQL refuses the statement that acks it there.
func TestAckThatIsRefusedKeepsWhatItHasDone(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	s.mustQueue("other")
	s.publishGroups("q", "a1", "a2")
	moving := s.messages(s.must(201, "POST", "/queues/other/messages", `{"data":{}}`))[0].ID
	id := s.receive("q", "")[0].ID
	poll := s.poll(context.Background(), "q", "?wait_seconds=30")
	s.waiting("q", 1)
	s.exec("CREATE TABLE public.moved AS SELECT * FROM queued.messages WHERE id = $1", moving)
	s.exec("DELETE FROM queued.messages WHERE id = $1", moving)
	s.exec("CREATE SEQUENCE public.deletes")
	s.exec(`CREATE FUNCTION public.refuse_second() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('public.deletes') > 1 THEN RAISE EXCEPTION 'refused' USING ERRCODE = '55P03'; END IF;
		INSERT INTO queued.messages SELECT * FROM public.moved;
		RETURN NULL; END $$`)
	s.exec("CREATE TRIGGER refuse_second BEFORE DELETE ON queued.messages FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_second()")
	s.must(503, "PUT", "/messages/ack", fmt.Sprintf(`{"ids":[%q,%q]}`, id, moving))
	checkDiff(t, "received after the ack", "a2", namesOf(s.await(poll)))
	s.wantMetrics(`queued_messages_acked_total{queue="q"} 1`)
}

// inspected returns the optional members of the one message in a queue, as peek and a
// lookup by id show them.
func (s *testServer) inspected(queueID string) (last struct {
	ID             string
	LastError      string `json:"last_error"`
	LastErrorAt    string `json:"last_error_at"`
	SourceQueueID  string `json:"source_queue_id"`
	SourceAttempts *int   `json:"source_delivery_attempts"`
	DeadAt         string `json:"dead_at"`
}) {
	s.t.Helper()
	var page struct{ Data []json.RawMessage }
	mustDecode(s.t, s.must(200, "GET", "/queues/"+queueID+"/messages/peek", ""), &page)
	if len(page.Data) != 1 {
		s.t.Fatalf("%s has %d messages, want 1", queueID, len(page.Data))
	}
	mustDecode(s.t, string(page.Data[0]), &last)
	checkDiff(s.t, "message by id", string(page.Data[0]), s.must(200, "GET", "/messages/"+last.ID, ""))
	return last
}

func TestNackKeepsItsError(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", maxError)
	for _, v := range []struct{ members, want string }{
		{`"error":"no paper"`, "no paper"},
		{`"error":"one\u0000two"`, "one\uFFFDtwo"},
		{`"error":"` + long + `"`, long[:maxError]},
		{`"error":"x` + long + `"`, "x" + long[:maxError-2]}, // not in the middle of a character
		{`"error":"\ud83d\ude00","delay_seconds":9,"count_attempt":false`, "\U0001F600"},
	} {
		for _, way := range []string{"single", "batch", "receive"} {
			s := newTestServer(t)
			s.mustTopic("t")
			s.publish("t", 1)
			m := s.receive("t", "")[0]
			switch way {
			case "single":
				s.must(204, "PUT", "/messages/"+m.ID+"/nack", "{"+v.members+"}")
			case "batch":
				s.must(204, "PUT", "/messages/nack", fmt.Sprintf(`{"ids":[%q,%q],%s}`, newID(), m.ID, v.members))
			case "receive":
				s.receiveAck("t", fmt.Sprintf(`{"limit":0,"nack":[{"id":%q,"scheduled_at":%q,%s}]}`, m.ID, m.ScheduledAt, v.members))
			}
			got := s.inspected("t")
			checkDiff(t, way+": last_error", v.want, got.LastError)
			if got.LastErrorAt < m.UpdatedAt {
				t.Errorf("%s: last_error_at = %s, received at %s", way, got.LastErrorAt, m.UpdatedAt)
			}
		}
	}
}

func TestLastErrorStaysWithTheMessage(t *testing.T) {
	t.Parallel()
	for _, settings := range []string{`"ordered":false`, `"ordered":true`} {
		s := newTestServer(t)
		s.mustQueue("dead")
		s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`, settings)
		id := s.messages(s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1},"group":"g"}`))[0].ID
		nack := func(body string) {
			t.Helper()
			checkDiff(t, "received", 1, len(s.receive("t", "")))
			s.must(204, "PUT", "/messages/"+id+"/nack", body)
		}
		nack(`{"error":"first"}`)
		if strings.Contains(s.must(200, "GET", "/queues/t/messages", ""), "last_error") { // fastqueue's clients know no such member
			t.Error("a receive shows last_error")
		}
		s.must(204, "PUT", "/messages/"+id+"/nack", `{"count_attempt":false}`)
		checkDiff(t, "after a nack without an error", "first", s.inspected("t").LastError)
		nack(`{"error":"last"}`) // the last delivery
		got := s.inspected("dead")
		checkDiff(t, "in the dead queue", []string{"last", "t"}, []string{got.LastError, got.SourceQueueID})
		checkDiff(t, "attempts in the dead queue", new(2), got.SourceAttempts)
		if got.DeadAt == "" {
			t.Error("the message does not show when it moved to the dead queue")
		}
		s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"t"}`)
		got = s.inspected("t")
		checkDiff(t, "redriven", []string{"last", "", ""}, []string{got.LastError, got.SourceQueueID, got.DeadAt})
		checkDiff(t, "redriven: attempts", (*int)(nil), got.SourceAttempts)
		// The cleanup moves messages whose last lease has ended.
		s.changeMessages("in_flight = true, last_delivery = true, delivery_attempts = 3, scheduled_at = now()")
		s.mustCleanUp()
		got = s.inspected("dead")
		checkDiff(t, "moved by the cleanup", []string{"last", "t"}, []string{got.LastError, got.SourceQueueID})
		checkDiff(t, "moved by the cleanup: attempts", new(3), got.SourceAttempts)
	}
	s := newTestServer(t)
	s.must(422, "PUT", "/messages/"+newID()+"/nack", `{"error":5}`)
	s.must(204, "PUT", "/messages/"+newID()+"/nack", `{"error":null}`)
}

// A message that was consumed by a client that has disconnected returns as it was.
func TestRestoredMessageKeepsItsPast(t *testing.T) {
	t.Parallel()
	for _, settings := range []string{`"ordered":false`, `"consumed_retention_seconds":600`} {
		for _, group := range []string{`null`, `"g"`} {
			s := newTestServer(t)
			s.mustQueue("dead", settings)
			s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
			s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1},"group":`+group+`}`)
			s.must(204, "PUT", "/messages/"+s.receive("t", "")[0].ID+"/nack", `{"error":"no paper"}`)
			want := s.inspected("dead")
			v, err := s.engine.consume(context.Background(), "dead", 1, 0)
			if err != nil || len(v.messages) != 1 {
				t.Fatal(len(v.messages), err)
			}
			checkDiff(t, "left", 0, s.messagesIn("dead"))
			s.engine.release("dead", v.messages)
			checkDiff(t, "restored", want, s.inspected("dead"))
		}
	}
}
