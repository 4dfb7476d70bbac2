package main

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestGroupGivesOneMessageAnInterval(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1", "a2", "b1", "a3", "-1", "-2")
	checkDiff(t, "one of each group, and all without a group", "-1 -2 a1 b1", s.receiveNames("q", 10))
	checkDiff(t, "within the interval", "", s.receiveNames("q", 10))
	s.passIntervals()
	checkDiff(t, "in the next interval", "a2", s.receiveNames("q", 10))
	s.publishGroups("q", "b2", "a4")
	checkDiff(t, "after the interval of b", "b2", s.receiveNames("q", 10))
}

func TestGroupsTakeTurns(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishGroups("q", "a1", "a2", "a3", "b1", "b2", "c1")
	var got []string
	for range 7 {
		got = append(got, s.receiveNames("q", 1))
	}
	checkDiff(t, "order", "a1 b1 c1 a2 b2 a3 ", strings.Join(got, " "))
}

func TestReceiveOfManyTakesFromGroupsInTurns(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishGroups("q", "a1", "a2", "a3", "a4", "b1", "b2", "-1")
	checkDiff(t, "received", "-1 a1 b1 a2 b2", s.receiveNames("q", 5))
	checkDiff(t, "the rest", "a3 a4", s.receiveNames("q", 5))
}

func TestReturnedMessageIsAtTheFrontOfItsGroup(t *testing.T) {
	t.Parallel()
	for what, back := range map[string]func(s *testServer, id string){
		"nacked":    func(s *testServer, id string) { s.must(204, "PUT", "/messages/"+id+"/nack", "") },
		"not acked": func(s *testServer, id string) { s.makeDue(id) },
		"extended and not acked": func(s *testServer, id string) {
			s.must(200, "PUT", "/messages/"+id+"/extend", `{"ack_deadline_seconds":30}`)
			s.makeDue(id)
		},
		"released":             func(s *testServer, id string) { release(s, id) },
		"nacked without delay": func(s *testServer, id string) { s.must(204, "PUT", "/messages/"+id+"/nack", `{"delay_seconds":0}`) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("q")
			s.publishGroups("q", "a1", "a2", "a3")
			first := s.receive("q", "?limit=1")[0]
			back(s, first.ID)
			checkDiff(t, "received", "a1 a2 a3", s.receiveNames("q", 10))
		})
	}
}

// release undoes the delivery of a message, as if its receiver had disconnected.
func release(s *testServer, id string) {
	s.t.Helper()
	var m message
	turn := &groupDelivery{}
	err := s.store.db.QueryRow(`SELECT m.id, m.queue_key, m.group_id, m.delivery_attempts, m.scheduled_at, m.created_at, g.limited_until
		FROM queued.messages m JOIN queued.groups g ON g.home = m.home AND g.queue_key = m.queue_key AND g.id = m.group_id WHERE m.id = $1`, id).
		Scan(&m.ID, &m.queueKey, &m.Group, &m.DeliveryAttempts, &m.ScheduledAt, &m.dueAt, &turn.after)
	if err != nil {
		s.t.Fatal(err)
	}
	m.groupDelivery = turn
	s.engine.release("q", []message{m})
}

func TestReleaseRestoresTheInterval(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1", "a2")
	release(s, s.receive("q", "")[0].ID)
	again := s.receive("q", "")
	checkDiff(t, "received", "a1", namesOf(again))
	checkDiff(t, "attempts", 1, again[0].DeliveryAttempts)
	release(s, again[0].ID)
	s.must(200, "PUT", "/queues/q/groups/a", `{"delivery_interval_ms":3600000}`)
	checkDiff(t, "received after a change of the interval", "a1", s.receiveNames("q", 10))
}

// A publish to the group may be about to commit when a receiver disconnects.
func TestReleaseRestoresTheIntervalOfAGroupThatIsLocked(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1")
	id := s.receive("q", "")[0].ID
	tx := s.begin("UPDATE queued.groups SET first_seq = 0")
	released := make(chan struct{})
	go func() {
		defer close(released)
		release(s, id)
	}()
	s.waitForLocks(1)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	<-released
	checkDiff(t, "received", "a1", s.receiveNames("q", 10))
}

func TestReleaseLeavesOtherDeliveriesOfTheGroup(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishGroups("q", "a1", "a2", "a3")
	release(s, s.receive("q", "?limit=2")[1].ID)
	s.must(200, "PUT", "/queues/q/groups/a", `{"delivery_interval_ms":3600000}`)
	checkDiff(t, "received after a1", "", s.receiveNames("q", 10))
}

func TestReleasedConsumedMessageIsBackInItsGroup(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1", "a2")
	v, err := s.engine.consume(context.Background(), "q", 10, 0)
	if err != nil || len(v.messages) != 1 {
		t.Fatalf("consume = %v, %v", v.messages, err)
	}
	s.engine.release("q", v.messages)
	checkDiff(t, "received", "a1", s.receiveNames("q", 10))
}

func TestConsumingRespectsGroups(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`, `"consumed_retention_seconds":600`, `"ordered":true`)
	s.publishGroups("q", "a1", "a2", "b1")
	for _, want := range []string{"a1", "b1", ""} {
		v, err := s.engine.consume(context.Background(), "q", 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, m := range v.messages {
			got = namesOf([]wireMessage{{Data: m.Data}})
		}
		checkDiff(t, "consumed", want, got)
	}
	s.passIntervals()
	checkDiff(t, "a is left", "a2", s.receiveNames("q", 10))
	checkDiff(t, "kept", 2, len(consumedGroups(s, "q")))
}

// consumedGroups returns the groups of the consumed messages that the queue has kept.
func consumedGroups(s *testServer, queueID string) (groups []string) {
	s.t.Helper()
	var v struct{ Data []struct{ Group string } }
	if err := json.Unmarshal([]byte(s.must(200, "GET", "/queues/"+queueID+"/messages/consumed", "")), &v); err != nil {
		s.t.Fatal(err)
	}
	for _, m := range v.Data {
		groups = append(groups, m.Group)
	}
	return groups
}

func TestOrderedGroupWaitsUntilTheMessageBefore(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]func(s *testServer, id string){
		"was acked": func(s *testServer, id string) { s.must(204, "PUT", "/messages/"+id+"/ack", "") },
		"went to the dead queue by a nack": func(s *testServer, id string) {
			s.must(204, "PUT", "/messages/"+id+"/nack", "")
		},
		"went to the dead queue in time": func(s *testServer, id string) {
			s.makeDue(id)
			checkDiff(s.t, "before it has moved", "", s.receiveNames("q", 10))
			s.mustCleanUp()
		},
		"was purged": func(s *testServer, id string) {
			s.must(204, "PUT", "/queues/q/purge", "")
			s.publishGroups("q", "a2")
		},
		"was purged with its group": func(s *testServer, id string) {
			s.must(204, "DELETE", "/queues/q/groups/a", "")
			s.publishGroups("q", "a2")
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"ordered":true`, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
			s.publishGroups("q", "a1")
			first := s.receive("q", "")[0]
			s.publishGroups("q", "a2", "b1")
			checkDiff(t, "meanwhile", "b1", s.receiveNames("q", 10))
			poll := s.poll(context.Background(), "q", "?wait_seconds=30")
			s.waiting("q", 1)
			end(s, first.ID)
			checkDiff(t, "then", "a2", namesOf(s.await(poll)))
		})
	}
}

func TestOrderedGroupGivesAReturnedMessageAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	s.publishGroups("q", "a1", "a2")
	first := s.receive("q", "")[0]
	s.must(204, "PUT", "/messages/"+first.ID+"/nack", `{"delay_seconds":600}`)
	checkDiff(t, "while it is delayed", "", s.receiveNames("q", 10))
	s.makeDue(first.ID)
	s.must(200, "PUT", "/queues/q/groups/a", `{"delivery_interval_ms":0}`) // makes the next claim check the group
	checkDiff(t, "then", "a1", s.receiveNames("q", 10))
	checkDiff(t, "while it is in flight", "", s.receiveNames("q", 10))
	s.must(200, "PUT", "/queues/q", `{"ordered":false,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	checkDiff(t, "no longer ordered", "a2", s.receiveNames("q", 10))
}

func TestReceiverIsWokenWhenAGroupBecomesReady(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct {
		interval int // of the queue, in milliseconds
		cause    func(s, other *testServer)
	}{
		"in time": {300, func(s, other *testServer) {}},
		"by a change of its interval": {3600000, func(s, other *testServer) {
			s.waiting("q", 1)
			s.must(200, "PUT", "/queues/q/groups/a", `{"delivery_interval_ms":3600000}`)
			other.must(200, "PUT", "/queues/q/groups/a", `{"delivery_interval_ms":0}`)
		}},
		"by a change of the queue's interval": {3600000, func(s, other *testServer) {
			s.waiting("q", 1)
			other.must(200, "PUT", "/queues/q", `{"delivery_interval_ms":null,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
		}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			other := newTestServerOn(t, s.dsn)
			s.mustQueue("q", fmt.Sprintf(`"delivery_interval_ms":%d`, v.interval))
			eventually(t, "the servers listen", func() bool { return s.engine.main.notifier.listening() && other.engine.main.notifier.listening() })
			s.publishGroups("q", "a1", "a2")
			checkDiff(t, "first", "a1", s.receiveNames("q", 10))
			poll := s.poll(context.Background(), "q", "?wait_seconds=30")
			v.cause(s, other)
			checkDiff(t, "second", "a2", namesOf(s.await(poll)))
		})
	}
}

// The time of a receive is the message's updated_at, by PostgreSQL's clock.
func TestLimitsAndOrderHoldWithTwoServersAndEightReceivers(t *testing.T) {
	t.Parallel()
	const interval, groups, each = 50 * time.Millisecond, 5, 8
	s := newTestServer(t)
	servers := []*testServer{s, newTestServerOn(t, s.dsn)}
	s.mustQueue("q", `"delivery_interval_ms":50`)
	type received struct {
		at time.Time
		n  int
	}
	var mu sync.Mutex
	got := make(map[string][]received)
	left := groups * each
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	for i := range 8 {
		server := servers[i%2]
		wg.Go(func() {
			for ctx.Err() == nil {
				v, err := server.send(ctx, "GET", "/queues/q/messages?fields=group&wait_seconds=20&limit=3", "")
				if ctx.Err() != nil {
					return
				}
				var page struct {
					Data []struct {
						ID, Group string
						UpdatedAt string `json:"updated_at"`
						Data      struct{ N int }
					}
				}
				if err == nil {
					err = json.Unmarshal([]byte(v.body), &page)
				}
				if err != nil || v.status != 200 {
					t.Errorf("receive = %d %s, %v", v.status, v.body, err)
					stop()
					return
				}
				for _, m := range page.Data {
					at, err := time.Parse(timestampLayout, m.UpdatedAt)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					got[m.Group] = append(got[m.Group], received{at, m.Data.N})
					if left--; left == 0 {
						stop()
					}
					mu.Unlock()
					if v, err := server.send(context.Background(), "PUT", "/messages/"+m.ID+"/ack", ""); err != nil || v.status != 204 {
						t.Errorf("ack = %d, %v", v.status, err)
					}
				}
			}
		})
	}
	for n := range each {
		for g := range groups {
			servers[n%2].must(201, "POST", "/queues/q/messages", fmt.Sprintf(`{"group":"g%d","data":{"n":%d}}`, g, n))
		}
	}
	wg.Wait()
	for group, all := range got {
		slices.SortFunc(all, func(a, b received) int { return a.at.Compare(b.at) })
		for i, v := range all {
			if v.n != i {
				t.Errorf("%s: message %d was received at position %d", group, v.n, i)
			}
			if i > 0 && v.at.Sub(all[i-1].at) < interval {
				t.Errorf("%s: %v between %d and %d, want %v", group, v.at.Sub(all[i-1].at), i-1, i, interval)
			}
		}
		checkDiff(t, group+": messages", each, len(all))
	}
	checkDiff(t, "groups", groups, len(got))
}

func TestGroupsAreSeenAndSet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const published = `{"data":[{"id":"UUID","queue_id":"q","data":{},"attributes":null,"delivery_attempts":0,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}]}`
	s.play([]step{
		{"GET", "/queues/q/groups", "", 200, `{"data":[]}`},
		{"GET", "/queues/q/groups/a", "", 404, `{"detail":"Group not found"}`},
		{"GET", "/queues/none/groups", "", 404, `{"detail":"Queue not found"}`},
		{"GET", "/queues/none/groups/a", "", 404, `{"detail":"Queue not found"}`},
		{"DELETE", "/queues/q/groups/a", "", 404, `{"detail":"Group not found"}`},
		{"PUT", "/queues/none/groups/a", `{"delivery_interval_ms":1}`, 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/q/groups/a", `{}`, 422, `{"detail":[{"loc":["body","delivery_interval_ms"],"msg":"field required","type":"value_error.missing"}]}`},
		{"PUT", "/queues/q/groups/a", `{"delivery_interval_ms":-1}`, 422, `{"detail":[{"loc":["body","delivery_interval_ms"],"msg":"ensure this value is greater than or equal to 0","type":"value_error.number.not_ge","ctx":{"limit_value":0}}]}`},
		{"PUT", "/queues/q/groups/a", `{"delivery_interval_ms":2147483648}`, 422, `{"detail":[{"loc":["body","delivery_interval_ms"],"msg":"ensure this value is less than or equal to 2147483647","type":"value_error.number.not_le","ctx":{"limit_value":2147483647}}]}`},
		{"PUT", "/queues/q/groups/a%2Fb%20%C3%A4", `{"delivery_interval_ms":60000}`, 200, `{"queue_id":"q","group":"a/b ä","delivery_interval_ms":60000,"length":0,"state":"idle","limited_until":null,"messages":{"ready":0,"delayed":0,"in_flight":0,"exhausted":0}}`},
		{"POST", "/queues/q/messages", `{"group":"a/b ä","data":{}}`, 201, published},
		{"POST", "/queues/q/messages", `{"group":"a/b ä","data":{},"delay_seconds":900}`, 201, published},
		{"POST", "/queues/q/messages", `{"group":"z","data":{}}`, 201, published},
		{"GET", "/queues/q/groups?limit=1", "", 200, `{"data":[{"queue_id":"q","group":"a/b ä","delivery_interval_ms":60000,"length":2,"state":"ready","limited_until":null,"messages":{"ready":1,"delayed":1,"in_flight":0,"exhausted":0}}]}`},
		{"GET", "/queues/q/messages?fields=group&limit=1", "", 200, strings.Replace(strings.Replace(published, `"delivery_attempts":0`, `"delivery_attempts":1`, 1), `"TIME"}]`, `"TIME","group":"a/b ä"}]`, 1)},
		{"POST", "/queues/q/messages", `{"group":"a/b ä","data":{}}`, 201, published},
		{"GET", "/queues/q/groups/a%2Fb%20%C3%A4", "", 200, `{"queue_id":"q","group":"a/b ä","delivery_interval_ms":60000,"length":2,"state":"limited","limited_until":"TIME","messages":{"ready":1,"delayed":1,"in_flight":1,"exhausted":0}}`},
		{"DELETE", "/queues/q/groups/a%2Fb%20%C3%A4", "", 204, ""},
		{"GET", "/queues/q/groups/a%2Fb%20%C3%A4", "", 404, `{"detail":"Group not found"}`},
		{"GET", "/queues/q/groups?offset=1", "", 200, `{"data":[]}`},
		{"PUT", "/queues/q/groups/z", `{"delivery_interval_ms":null}`, 200, `{"queue_id":"q","group":"z","delivery_interval_ms":0,"length":1,"state":"ready","limited_until":null,"messages":{"ready":1,"delayed":0,"in_flight":0,"exhausted":0}}`},
		{"PUT", "/queues/q/groups/none", `{"delivery_interval_ms":null}`, 204, ""},
		{"POST", "/queues/q/messages", `{"group":"","data":{}}`, 422, `{"detail":[{"loc":["body","group"],"msg":"ensure this value has at least 1 characters","type":"value_error.any_str.min_length"}]}`},
		{"POST", "/queues/q/messages", `{"group":"` + strings.Repeat("ä", 129) + `","data":{}}`, 422, `{"detail":[{"loc":["body","group"],"msg":"ensure this value has at most 256 bytes","type":"value_error.any_str.max_length"}]}`},
		{"POST", "/queues/q/messages", `{"group":7,"data":{}}`, 422, `{"detail":[{"loc":["body","group"],"msg":"str type expected","type":"type_error.str"}]}`},
		{"POST", "/queues/q/messages", `{"group":"a\u0000","data":{}}`, 422, `{"detail":[{"loc":["body","group"],"msg":"the text must be UTF-8 without \\u0000","type":"value_error.unicode"}]}`},
		{"POST", "/queues/q/messages", `{"group":"\ud800","data":{}}`, 422, `{"detail":[{"loc":["body","group"],"msg":"the text must be UTF-8 without \\u0000","type":"value_error.unicode"}]}`},
		{"GET", "/queues/q/messages?fields=all", "", 422, `{"detail":[{"loc":["query","fields"],"msg":"unknown field; allowed: group, request_id, traceparent","type":"value_error"}]}`},
	})
}

func TestGroupIsShownWhereItIsAskedFor(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const group = `"group":"\"ä\\"`
	shown := func(body string) bool { return strings.Contains(body, group) }
	message := `{` + group + `,"data":{}}`
	checkDiff(t, "published", false, shown(s.must(201, "POST", "/queues/q/messages", message)))
	checkDiff(t, "published, asked for", true, shown(s.must(201, "POST", "/queues/q/messages?fields=group", message)))
	checkDiff(t, "batch, asked for", true, shown(s.must(201, "POST", "/queues/q/messages/batch?fields=group", `{"messages":[`+message+`]}`)))
	checkDiff(t, "peeked", true, shown(s.must(200, "GET", "/queues/q/messages/peek", "")))
	checkDiff(t, "received", false, shown(s.must(200, "GET", "/queues/q/messages?limit=1", "")))
	body := s.must(200, "GET", "/queues/q/messages?limit=1&fields=group", "")
	checkDiff(t, "received, asked for", true, shown(body))
	id := regexp.MustCompile(`"id":"([^"]*)"`).FindStringSubmatch(body)[1]
	checkDiff(t, "extended", false, shown(s.must(200, "PUT", "/messages/"+id+"/extend", `{"ack_deadline_seconds":60}`)))
	checkDiff(t, "extended, asked for", true, shown(s.must(200, "PUT", "/messages/"+id+"/extend?fields=group", `{"ack_deadline_seconds":60}`)))
	checkDiff(t, "read by its id", true, shown(s.must(200, "GET", "/messages/"+id, "")))
}

func TestMessagesKeepTheirGroupWhenTheyMove(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead", `"delivery_interval_ms":60000`)
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.publishGroups("q", "a1", "a2", "a3", "-1")
	for _, m := range s.receive("q", "") {
		s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
	}
	checkDiff(t, "of the dead queue", "-1 a1", s.receiveNames("dead", 10))
	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"q"}`)
	checkDiff(t, "redriven", "a2 a3", s.receiveNames("q", 10))
	s.endLeases()
	s.mustCleanUp()
	var v struct {
		Data []struct{ Group string }
	}
	if err := json.Unmarshal([]byte(s.must(200, "GET", "/queues/dead/groups", "")), &v); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "groups", []struct{ Group string }{{"a"}}, v.Data)
	s.must(200, "GET", "/queues/dead/stats?detail=true", "")
}

func TestIdleGroupsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.must(200, "PUT", "/queues/q/groups/k", `{"delivery_interval_ms":1}`)
	s.publishGroups("q", "a1", "b1", "b2", "k1")
	rows := func() int { return s.count("SELECT count(*) FROM queued.groups") }
	for _, m := range s.receive("q", "") {
		s.must(204, "PUT", "/messages/"+m.ID+"/ack", "")
	}
	s.mustCleanUp()
	checkDiff(t, "while they are limited", 3, rows())
	s.passIntervals()
	s.mustCleanUp()
	checkDiff(t, "then: groups with messages or with an interval of their own", 2, rows())
	s.must(204, "DELETE", "/queues/q", "")
	s.mustCleanUp()
	checkDiff(t, "without the queue", 0, rows())
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
}

// A claim begins at the front of a group. Any message that becomes due before the front
// must move it back.
func TestNothingIsHiddenBelowTheFrontOfAGroup(t *testing.T) {
	t.Parallel()
	for what, cause := range map[string]func(s *testServer, id string){
		"a message that is published": func(s *testServer, id string) { s.publishGroups("q", "a3") },
		"a job that is enqueued": func(s *testServer, id string) {
			s.must(201, "POST", "/enqueue/q/a/", `{"job_id":"j","payload":{"name":"a3"},"interval":0}`)
		},
		"one that is nacked":   func(s *testServer, id string) { s.must(204, "PUT", "/messages/"+id+"/nack", "") },
		"one that is released": func(s *testServer, id string) { release(s, id) },
		"one that is redriven": func(s *testServer, id string) {
			s.mustQueue("from")
			s.publishGroups("from", "a3")
			s.must(204, "PUT", "/queues/from/redrive", `{"destination_queue_id":"q"}`)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("q")
			s.publishGroups("q", "a1", "a2")
			all := s.receive("q", "")
			s.exec("UPDATE queued.groups SET first_seq = 9223372036854775807") // as if later messages had moved the front
			cause(s, all[0].ID)
			if got := s.receiveNames("q", 10); got == "" {
				t.Error("the message is hidden")
			}
		})
	}
}

func TestFrontOfAGroupMovesWithItsMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishGroups("q", "a1", "a2", "a3")
	s.must(204, "PUT", "/messages/"+s.receive("q", "?limit=1")[0].ID+"/ack", "")
	checkDiff(t, "distance of the front to the first waiting message", 0, s.count("SELECT g.first_seq - min(m.seq) FROM queued.groups g JOIN queued.messages m ON m.home = g.home GROUP BY g.first_seq"))
	checkDiff(t, "received", "a2 a3", s.receiveNames("q", 10))
}

// Publishers, receivers and the cleanup use groups that become empty again and again. No
// group is deleted while it has a message.
func TestNoMessageIsStuckInAGroupThatWasJustIdle(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustQueue("q", `"ordered":true`)
	const many = 300
	var wg sync.WaitGroup
	for i, server := range []*testServer{s, other} {
		wg.Go(func() {
			for n := range many {
				v, err := server.send(context.Background(), "POST", "/queues/q/messages", fmt.Sprintf(`{"group":"g%d","data":{}}`, (n+i)%3))
				if err != nil || v.status != 201 {
					t.Errorf("publish = %d, %v", v.status, err)
				}
			}
		})
	}
	var ids sync.Map
	var received atomic.Int64
	for _, server := range []*testServer{s, other, s, other} {
		wg.Go(func() {
			for received.Load() < 2*many && !t.Failed() {
				v, err := server.send(context.Background(), "GET", "/queues/q/messages?wait_seconds=0.2", "")
				messages, decodeErr := decodeMessages(v.body)
				if err != nil || decodeErr != nil {
					t.Errorf("receive = %s, %v", v.body, err)
					return
				}
				for _, m := range messages {
					// On a busy machine an ack may be refused, and the message be delivered again.
					eventually(t, "the message is acked", func() bool {
						v, err := server.send(context.Background(), "PUT", "/messages/"+m.ID+"/ack", "")
						return err == nil && v.status != 503
					})
					if _, again := ids.LoadOrStore(m.ID, true); !again {
						received.Add(1)
					}
				}
			}
		})
	}
	done := make(chan struct{})
	cleaning := make(chan struct{})
	go func() {
		defer close(cleaning)
		for {
			select {
			case <-done:
				return
			default:
				s.mustCleanUp()
			}
		}
	}()
	wg.Wait()
	close(done)
	<-cleaning
	checkDiff(t, "received", 2*many, int(received.Load()))
	checkDiff(t, "messages left", 0, s.count("SELECT count(*) FROM queued.messages"))
}

// A claim has seen a message in flight, so it takes none of the messages behind it. An
// ack that commits before the claim does must still make the group ready.
func TestOrderedGroupGoesOnThoughTheAckMeetsAClaim(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	s.publishGroups("q", "a1")
	first := s.receive("q", "")[0]
	s.publishGroups("q", "a2") // makes the next claim check the group
	claim := newPinnedConn(s.store.db, s.server.metrics)
	defer claim.close()
	if err := claim.readLeaseTerms([]string{"q"}, []time.Time{{}}); err != nil {
		t.Fatal(err)
	}
	terms := claim.settings.terms["q"]
	acked := make(chan reply, 1)
	err := claim.transaction(func() error {
		taken, err := claim.claimGrouped(terms, dispatcherKey{queueID: "q"}, time.Time{}, false, 1, deliverySize)
		checkDiff(t, "taken", 0, len(taken.messages))
		go func() {
			v, _ := s.send(context.Background(), "PUT", "/messages/"+first.ID+"/ack", "")
			acked <- v
		}()
		eventually(t, "the ack is done or waits for the claim", func() bool {
			return len(acked) == 1 || s.locksAwaited() > 0
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "ack", 204, (<-acked).status)
	checkDiff(t, "then", "a2", s.receiveNames("q", 10))
}

func TestGroupsKeepTheirTurnWhenTheQueueChanges(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "c1", "c2")
	checkDiff(t, "before", "c1", s.receiveNames("q", 10))
	s.publishGroups("q", "b1", "a1")
	s.must(200, "PUT", "/queues/q", `{"delivery_interval_ms":30000,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	checkDiff(t, "groups to check", 2, s.count("SELECT count(*) FROM queued.groups WHERE ready_at <= now()"))
	checkDiff(t, "first", "b1", s.receiveNames("q", 1))
	checkDiff(t, "second", "a1", s.receiveNames("q", 1))
}

// A claim may hold the lock of a group when the settings change, and then changes its row.
func TestNewIntervalHoldsForAGroupThatIsBeingClaimed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1", "a2")
	checkDiff(t, "before", "a1", s.receiveNames("q", 10))
	tx := s.begin("UPDATE queued.groups SET delivered_at = delivered_at")
	changed := make(chan reply, 1)
	go func() {
		r, _ := s.send(context.Background(), "PUT", "/queues/q", `{"delivery_interval_ms":0,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
		changed <- r
	}()
	s.waitForLocks(1)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "change", 200, (<-changed).status)
	checkDiff(t, "without an interval", "a2", s.receiveNames("q", 10))
}

// An exhausted message may be deleted, or be receivable again, without a change of its
// group.
func TestGroupWithOnlyExhaustedMessagesIsVisitedAgain(t *testing.T) {
	t.Parallel()
	for what, ordered := range map[string]string{"ordered": "true", "not ordered": "false"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"ordered":`+ordered, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
			s.publishGroups("q", "a1")
			s.receive("q", "")
			s.makeDue()
			s.makeGroupsReady()
			checkDiff(t, "exhausted", "", s.receiveNames("q", 10))
			s.must(204, "DELETE", "/queues/dead", "")
			s.exec("UPDATE queued.groups SET " + shift("ready_at", "-10 seconds"))
			checkDiff(t, "without a dead queue", "a1", s.receiveNames("q", 10))
		})
	}
}

// A publish locks its groups until it commits.
// The order must not be that of the database's collation, which sorts "a" before "B".
func TestGroupsAreLockedInTheOrderOfTheirIndex(t *testing.T) {
	t.Parallel()
	conn, err := newTestStoreOn(t, newPlainDatabase(t, "queued")).db.Conn(context.Background()) // Citus does not show whole plans
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sortKey := regexp.MustCompile(`Sort Key: .*queue_key, .*`)
	for name, v := range map[string]struct {
		statement string
		args      []string
	}{
		"publish": {lockGroupsSQL, []string{"0", "'{}'", "'{}'", "'1'"}},
		"jobs":    {lockGroupsOfJobsSQL, []string{"'{}'", "'{}'"}},
		"release": {lockGroupsOfDeliveriesSQL, []string{"0", "'{}'", "'{}'"}},
		"move":    {lockTakenSQL, []string{"'{}'", "'{}'", "'{}'"}},
		"wake":    {wakeTakenSQL, []string{"'{}'", "'{}'", "'{}'", "'{}'"}},
		"nack":    {nackMessagesSQL, []string{"0", "true", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'"}},
	} {
		plan := explain1(t, conn, v.statement, v.args)
		keys := sortKey.FindAllString(plan, -1)
		if len(keys) == 0 {
			t.Errorf("%s: the groups are not sorted:\n%s", name, plan)
		}
		for _, key := range keys {
			if !strings.Contains(key, `COLLATE "C"`) {
				t.Errorf("%s: %s, want COLLATE \"C\"", name, key)
			}
		}
	}
}

func TestReceiveWaitsForTheLockOfTheOnlyGroup(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishGroups("q", "a1")
	tx := s.begin("UPDATE queued.groups SET blocked = blocked")
	poll := s.poll(context.Background(), "q", "")
	eventually(t, "the receive waits", func() bool {
		return len(poll) == 1 || s.locksAwaited() > 0
	})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "received", "a1", namesOf(s.await(poll)))
}

// A claim begins before it waits for the lock. Its lease and the delivery interval must not
// be shorter by that time.
func TestLeaseAndIntervalOfAGroupBeginAfterTheWaitForItsLock(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ack_deadline_seconds":60`, `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1")
	tx := s.begin("UPDATE queued.groups SET blocked = blocked")
	poll := s.poll(context.Background(), "q", "")
	s.waitForLocks(1)
	var free time.Time
	if err := tx.QueryRow("SELECT clock_timestamp()").Scan(&free); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "received", "a1", namesOf(s.await(poll)))
	checkDiff(t, "too short leases", 0, s.count("SELECT count(*) FROM queued.messages WHERE updated_at < $1 OR scheduled_at < $1 + interval '1 minute'", free))
	checkDiff(t, "too short intervals", 0, s.count("SELECT count(*) FROM queued.groups WHERE delivered_at < $1 OR limited_until < $1 + interval '1 minute'", free))
}

func TestMessagesWithoutAGroupDoNotWaitForTheLockOfAGroup(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishGroups("q", "a1")
	s.begin("UPDATE queued.groups SET blocked = blocked")
	for range 2 { // claims begin with groups and with other messages in turns
		s.publishGroups("q", "-1")
		checkDiff(t, "received", "-1", s.receiveNames("q", 10))
	}
	if got := s.must(200, "GET", "/metrics", ""); strings.Contains(got, `statement="await_group"`) {
		t.Error("a receive waited for the group")
	}
}

func TestRedriveKeepsTheOrderOfGroups(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.mustQueue("to")
	s.publishGroups("q", "a1", "b1", "a2")
	s.must(204, "PUT", "/messages/"+s.receive("q", "?limit=1")[0].ID+"/nack", "")
	s.must(204, "PUT", "/queues/q/redrive", `{"destination_queue_id":"to"}`)
	checkDiff(t, "received", "a1 b1 a2", s.receiveNames("to", 10))
}

func TestRedriveLeavesExhaustedMessagesOfGroupsToTheDeadQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("to")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.publishGroups("q", "a1", "-1")
	checkDiff(t, "last delivery", "-1 a1", s.receiveNames("q", 10))
	s.makeDue()
	s.publishGroups("q", "a2", "-2")
	s.must(204, "PUT", "/queues/q/redrive", `{"destination_queue_id":"to"}`)
	checkDiff(t, "redriven", "-2 a2", s.receiveNames("to", 10))
	s.mustCleanUp()
	checkDiff(t, "in the dead queue", "-1 a1", s.receiveNames("dead", 10))
}

// A claim in between knows when the first lease of the group ends, and must not rely on what
// held before the lease was shortened.
func TestShortenedLeaseInAGroupEndsInTime(t *testing.T) {
	t.Parallel()
	for what, ordered := range map[string]string{"ordered": "true", "not ordered": "false"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("q", `"ack_deadline_seconds":600`, `"ordered":`+ordered)
			s.publishGroups("q", "a1")
			first := s.receive("q", "")[0]
			s.must(200, "PUT", "/messages/"+first.ID+"/extend", `{"ack_deadline_seconds":3}`)
			s.publishGroups("q", "a2")
			if ordered == "false" {
				checkDiff(t, "next", "a2", s.receiveNames("q", 10))
			}
			checkDiff(t, "again", "a1", namesOf(s.receive("q", "?limit=1&wait_seconds=20")))
		})
	}
}

func TestEndedLeasesOfAGroupComeInOrderHoweverManyThereAre(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const many = 1500 // more than a claim reads
	s.exec(`INSERT INTO queued.messages (home, id, queue_key, group_id, data, bytes, in_flight, delivery_attempts, expired_at, scheduled_at, created_at, updated_at)
		SELECT home, gen_random_uuid(), key, 'a', json_build_object('n', n), 8, true, 1, now() + interval '1 h', now() - n * interval '1 ms', now(), now()
		FROM queued.queues, generate_series(1, $1) n ORDER BY n`, many)
	s.exec("INSERT INTO queued.groups (home, queue_key, id, ready_at) SELECT home, key, 'a', now() FROM queued.queues")
	checkDiff(t, "first", []int{1, 2, 3}, numbers(s.receive("q", "?limit=3")))
	var want []int
	for n := 4; n <= many; n++ {
		want = append(want, n)
	}
	got := append(numbers(s.receive("q", "?limit=1000")), numbers(s.receive("q", "?limit=1000"))...)
	checkDiff(t, "the others", want, got)
	checkDiff(t, "delivered twice", many, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 2"))
}
