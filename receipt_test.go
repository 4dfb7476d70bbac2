package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// takeOne receives one message as SQS's API does, and returns an item with its receipt.
func (s *inspector) takeOne(queueID string) ackItem {
	s.t.Helper()
	messages := s.takeSQS(queueID, 1, -1, testTimeout)
	if len(messages) != 1 {
		s.t.Fatalf("received %d messages, want 1", len(messages))
	}
	return ackItem{id: messages[0].ID, receipt: messages[0].receipt()}
}

// visible changes the ends of leases, and returns the indexes of the items that it refuses.
func (s *inspector) visible(after time.Duration, items ...ackItem) []int {
	s.t.Helper()
	for i := range items {
		items[i].after = after
	}
	return refused(s.t, s.engine.changeVisibility(context.Background(), items...))
}

// refused returns the items of errLeaseEnded.
func refused(t testing.TB, err error) []int {
	t.Helper()
	ended, ok := errors.AsType[errLeaseEnded](err)
	if err != nil && !ok {
		t.Fatal(err)
	}
	return ended.items
}

// What an ack, an extension and an extension to no time do with a receipt, whatever became
// of its lease.
func TestReceiptActsOnItsDeliveryOnly(t *testing.T) {
	t.Parallel()
	become := map[string]func(s *testServer, item ackItem){
		"in its lease": func(*testServer, ackItem) {},
		"extended":     func(s *testServer, item ackItem) { s.visible(time.Hour, item) },
		"extended natively": func(s *testServer, item ackItem) {
			s.must(200, "PUT", "/messages/"+item.id+"/extend", `{"ack_deadline_seconds":100}`)
		},
		"over":    func(s *testServer, _ ackItem) { s.endLeases() },
		"visible": func(s *testServer, item ackItem) { s.visible(0, item) },
		"nacked":  func(s *testServer, item ackItem) { s.must(204, "PUT", "/messages/"+item.id+"/nack", "") },
		"nacked, not counted": func(s *testServer, item ackItem) {
			s.must(204, "PUT", "/messages/"+item.id+"/nack", `{"count_attempt":false}`)
		},
		"nacked, not counted, and received again": func(s *testServer, item ackItem) {
			s.must(204, "PUT", "/messages/"+item.id+"/nack", `{"count_attempt":false}`)
			s.makeGroupsReady()
			s.takeOne("q")
		},
		"hidden again": func(s *testServer, item ackItem) { s.endLeases(); s.visible(time.Hour, item) },
		"received again": func(s *testServer, _ ackItem) {
			s.endLeases()
			s.makeGroupsReady()
			s.takeOne("q")
		},
		"that lease over, too": func(s *testServer, _ ackItem) {
			s.endLeases()
			s.makeGroupsReady()
			s.takeOne("q")
			s.endLeases()
		},
		"moved": func(s *testServer, item ackItem) {
			s.endLeases()
			s.must(204, "PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":"other"}`, item.id))
		},
		"moved and back": func(s *testServer, item ackItem) {
			s.endLeases()
			s.must(204, "PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":"q"}`, item.id))
		},
		"moved, back and received": func(s *testServer, item ackItem) {
			s.endLeases()
			s.must(204, "PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":"q"}`, item.id))
			s.takeOne("q")
		},
		"acked": func(s *testServer, item ackItem) { s.must(204, "PUT", "/messages/"+item.id+"/ack", "") },
	}
	const deleted, refused, nothing = "deleted", "refused", "nothing"
	for what, want := range map[string]struct{ ack, ackInLease, extend, atOnce string }{
		"in its lease":        {deleted, deleted, "in_flight 30s", "ready"},
		"extended":            {deleted, deleted, "in_flight 30s", "ready"},
		"extended natively":   {deleted, deleted, "in_flight 30s", "ready"},
		"hidden again":        {deleted, deleted, "in_flight 30s", "ready"},
		"over":                {deleted, refused, "in_flight 30s", nothing},
		"visible":             {deleted, refused, "in_flight 30s", nothing},
		"nacked":              {deleted, refused, "in_flight 30s", nothing},
		"nacked, not counted": {nothing, refused, refused, refused},
		"nacked, not counted, and received again": {nothing, refused, refused, refused},
		"received again":           {nothing, refused, refused, refused},
		"that lease over, too":     {nothing, refused, refused, refused},
		"moved":                    {nothing, nothing, refused, refused},
		"moved and back":           {nothing, nothing, refused, refused},
		"moved, back and received": {nothing, nothing, refused, refused},
		"acked":                    {nothing, nothing, refused, refused},
	} {
		for _, kind := range []string{"", "group", "ordered"} {
			t.Run(what+" "+kind, func(t *testing.T) {
				t.Parallel()
				s := newTestServer(t)
				s.mustQueue("other")
				try := func(do string, want string, act func(item ackItem) error) {
					t.Helper()
					group := "null"
					if kind != "" {
						group = `"g"`
					}
					s.do("DELETE", "/queues/q", "")
					s.mustCleanUp()
					s.exec("DELETE FROM queued.messages")
					s.mustQueue("q", fmt.Sprintf(`"ordered":%t`, kind == "ordered"))
					s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
					item := s.takeOne("q")
					become[what](s, item)
					before := s.state()
					err := act(item)
					got := nothing
					switch left := s.count("SELECT count(*) FROM queued.messages"); {
					case err != nil && s.state() == before:
						got = refused
					case err != nil:
						got = "refused, but changed something"
					case left == 0 && s.state() != before:
						got = deleted
					case s.state() != before:
						if got = s.after("q"); strings.HasPrefix(got, "ready") {
							got = "ready"
						}
					}
					checkDiff(t, do, want, got)
				}
				ctx := context.Background()
				try("ack", want.ack, func(item ackItem) error { return s.engine.ack(ctx, item) })
				try("ack in its lease", want.ackInLease, func(item ackItem) error {
					item.receipt.inLease = true
					return s.engine.ack(ctx, item)
				})
				try("extend", want.extend, func(item ackItem) error {
					item.after = 30 * time.Second
					return s.engine.changeVisibility(ctx, item)
				})
				try("extend to no time", want.atOnce, func(item ackItem) error { return s.engine.changeVisibility(ctx, item) })
			})
		}
	}
}

func TestReceiptsInABatchActOneByOne(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3, 4)
	var items []ackItem
	for _, m := range s.takeSQS("t", 4, -1, 0) {
		items = append(items, ackItem{id: m.ID, receipt: m.receipt()})
	}
	s.makeDue(items[1].id)
	again := s.takeOne("t")
	checkDiff(t, "received again", items[1].id, again.id)
	ctx := context.Background()
	if err := s.engine.ack(ctx, items[3]); err != nil {
		t.Fatal(err)
	}
	stale := items[1]
	checkDiff(t, "refused extensions", []int{1, 4}, s.visible(time.Hour, items[0], stale, again, items[2], items[3], items[0]))
	s.visible(0, items[2])
	native := ackItem{id: items[0].id} // an ack by id in the same batch
	if err := s.engine.ack(ctx, stale, native, items[2]); err != nil {
		t.Errorf("ack of stale receipts = %v, want no error", err)
	}
	checkDiff(t, "left", map[int]string{2: "in_flight"}, s.states("t"))
	stale.receipt.inLease, again.receipt.inLease = true, true
	if err := s.engine.ack(ctx, again, stale); err != nil {
		t.Errorf("ack in the lease, beside that of an earlier one = %v, want no error", err)
	}
	checkDiff(t, "left", 0, s.messagesIn("t"))
}

// A receiver, at this or at another server, gets a message as soon as it is visible again,
// also if the messages after it wait for it.
func TestVisibleMessageWakesReceivers(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{`"data":{"n":1}`, `"data":{"n":1},"group":"g"`} {
		for _, ordered := range []string{`"ordered":false`, `"ordered":true`} {
			t.Run(kind+ordered, func(t *testing.T) {
				t.Parallel()
				s := newTestServer(t)
				other := newTestServerOn(t, s.dsn)
				s.mustQueue("q", ordered)
				s.must(201, "POST", "/queues/q/messages", "{"+kind+"}")
				for _, server := range []*testServer{s, other} {
					item := s.takeOne("q")
					poll := server.poll(context.Background(), "q", "?wait_seconds=20")
					server.waiting("q", 1)
					checkDiff(t, "refused", []int(nil), s.visible(0, item))
					checkDiff(t, "received", []int{1}, numbers(server.await(poll)))
					s.must(204, "PUT", "/messages/"+item.id+"/nack", "")
				}
			})
		}
	}
}

// A message that is visible again after its last delivery stays in its queue, where its
// receipt is valid, until the cleanup moves it.
func TestVisibleMessageMovesWithTheCleanup(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1}}`)
	item := s.takeOne("q")
	s.visible(0, item)
	checkDiff(t, "visible", map[int]string{1: "exhausted"}, s.states("q"))
	checkDiff(t, "received", 0, len(s.takeSQS("q", 1, -1, 0)))
	s.visible(time.Hour, item)
	s.mustCleanUp()
	checkDiff(t, "hidden again", map[int]string{1: "in_flight"}, s.states("q"))
	s.visible(0, item)
	s.mustCleanUp()
	checkDiff(t, "in the dead queue", 1, s.messagesIn("dead"))
	s.wantMetrics(`queued_messages_nacked_total{queue="q"} 2`)
}

// The retry backoff follows a lease, but not an extension to no time, which is a nack
// without a delay.
func TestVisibilityAndBackoff(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"null", `"g"`} {
		s := newTestServer(t)
		s.mustQueue("q", `"retry_backoff_seconds":[50]`)
		s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
		item := s.takeOne("q")
		checkDiff(t, "received", "in_flight 1m0s", s.after("q"))
		s.visible(10*time.Second, item)
		checkDiff(t, "extended", "in_flight 10s", s.after("q"))
		s.ageLeases("10 s")
		checkDiff(t, "over", "delayed", strings.Fields(s.after("q"))[0])
		checkDiff(t, "refused at no time", []int(nil), s.visible(0, item))
		checkDiff(t, "nothing to do", "delayed", strings.Fields(s.after("q"))[0])
		s.visible(10*time.Second, item)
		checkDiff(t, "hidden again", "in_flight 10s", s.after("q"))
		s.visible(0, item)
		checkDiff(t, "visible", "ready 0s", s.after("q"))
		checkDiff(t, "received again", item.id, s.takeOne("q").id)
	}
}

// A receipt is compared with the message as another transaction leaves it.
func TestReceiptWaitsForAnUncommittedDelivery(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	for _, after := range []time.Duration{0, time.Hour} {
		item := s.takeOne("t")
		tx := s.begin("UPDATE queued.messages SET delivery_attempts = delivery_attempts + 1")
		result := make(chan error, 1)
		item.after = after
		go func() { result <- s.engine.changeVisibility(context.Background(), item) }()
		s.waitForLocks(1)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		checkDiff(t, "refused", []int{0}, refused(t, <-result))
		s.makeDue()
	}
}
