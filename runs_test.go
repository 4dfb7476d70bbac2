package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// run receives messages of an ordered queue as SQS's API does from a FIFO queue, and returns
// their names and receipts.
func (s *testServer) run(queueID string, limit int, wait time.Duration) (names string, receipts map[string]ackItem) {
	s.t.Helper()
	v, err := s.engine.take(context.Background(), dispatcherKey{queueID: queueID, sqs: true, runs: true}, limit, wait)
	if err != nil {
		s.t.Fatal(err)
	}
	var all []string
	receipts = make(map[string]ackItem)
	for _, m := range v.messages {
		var data struct{ Name string }
		mustDecode(s.t, string(m.Data), &data)
		all = append(all, data.Name)
		receipts[data.Name] = ackItem{id: m.ID, receipt: m.receipt()}
	}
	return strings.Join(all, " "), receipts
}

// wantRun checks what a receive of up to 10 messages returns.
func (s *testServer) wantRun(what, want string) map[string]ackItem {
	s.t.Helper()
	got, receipts := s.run("q", 10, 0)
	checkDiff(s.t, what, want, got)
	return receipts
}

func (s *testServer) mustAck(items ...ackItem) {
	s.t.Helper()
	if err := s.engine.ack(context.Background(), items...); err != nil {
		s.t.Fatal(err)
	}
}

func newOrderedQueue(t *testing.T, settings ...string) *testServer {
	return withOrderedQueue(newTestServer(t), settings...)
}

func withOrderedQueue(s *testServer, settings ...string) *testServer {
	s.mustQueue("q", append(settings, `"ordered":true`)...)
	return s
}

// A receive takes the messages of a group in order up to one that is hidden, and then those
// of the next group. Messages in flight hold back only those after them.
func TestReceiveOfARunKeepsTheOrder(t *testing.T) {
	t.Parallel()
	s := newOrderedQueue(t)
	s.publishGroups("q", "a1", "b1", "a2", "b2", "a3")
	held := s.wantRun("two groups", "a1 a2 a3 b1 b2")
	s.publishGroups("q", "a4", "c1", "c2")
	c := s.wantRun("other groups", "c1 c2")
	s.mustAck(held["a2"])
	s.wantRun("after an ack in the middle", "")
	s.mustAck(held["a3"])
	s.wantRun("after an ack of the last one", "")
	s.visible(0, c["c1"])
	s.wantRun("the first one is returned", "c1")
	s.visible(0, held["b2"])
	s.wantRun("a later one is returned", "")
	s.mustAck(held["b1"])
	s.wantRun("and then is the first one", "b2")
	s.mustAck(held["a1"])
	s.wantRun("all that were in flight are acked", "a4")
}

func TestReturnedMessageComesBeforeThoseInFlight(t *testing.T) {
	t.Parallel()
	s := newOrderedQueue(t)
	s.publishGroups("q", "a1", "a2", "a3", "a4")
	got, held := s.run("q", 3, 0)
	checkDiff(t, "received", "a1 a2 a3", got)
	s.visible(0, held["a2"])
	s.wantRun("a1 is in flight", "")
	s.mustAck(held["a1"])
	again := s.wantRun("a3 is in flight", "a2")
	s.mustAck(again["a2"])
	s.wantRun("a3 is still in flight", "")
	s.visible(0, held["a3"])
	s.wantRun("a3 is returned", "a3 a4")
}

func TestRunEndsAtAMessageThatIsHidden(t *testing.T) {
	t.Parallel()
	for what, hide := range map[string]func(s *testServer, id string){
		"delayed": func(s *testServer, id string) { s.schedule("1 h", id) },
		"in flight": func(s *testServer, id string) {
			s.changeMessages("in_flight = true, scheduled_at = now() + interval '1 h'", id)
		},
		"exhausted": func(s *testServer, id string) { s.changeMessages("delivery_attempts = 2, last_delivery = true", id) },
		"locked":    func(s *testServer, id string) { s.begin("UPDATE queued.messages SET bytes = bytes WHERE id = $1", id) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"ordered":true`, `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
			s.publishGroups("q", "a1", "a2", "a3", "b1")
			var id string
			if err := s.store.db.QueryRow("SELECT id FROM queued.messages WHERE data ->> 'name' = 'a2'").Scan(&id); err != nil {
				t.Fatal(err)
			}
			hide(s, id)
			s.wantRun("received", "a1 b1")
			s.wantRun("received then", "")
		})
	}
}

// A waiting receiver gets the next messages of a group when the ones before them have left
// the queue, or when their leases end.
func TestRunWakesReceivers(t *testing.T) {
	t.Parallel()
	for what, free := range map[string]func(s *testServer, held map[string]ackItem){
		"acked":      func(s *testServer, held map[string]ackItem) { s.mustAck(held["a1"], held["a2"]) },
		"one by one": func(s *testServer, held map[string]ackItem) { s.mustAck(held["a2"]); s.mustAck(held["a1"]) },
		"returned":   func(s *testServer, held map[string]ackItem) { s.mustAck(held["a1"]); s.visible(0, held["a2"]) },
		"short":      func(s *testServer, held map[string]ackItem) { s.visible(time.Second, held["a1"], held["a2"]) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newOrderedQueue(t)
			s.publishGroups("q", "a1", "a2")
			held := s.wantRun("first", "a1 a2")
			s.publishGroups("q", "a3")
			result := make(chan string, 1)
			go func() {
				got, _ := s.run("q", 10, testTimeout)
				result <- got
			}()
			s.waiting("q", 1)
			free(s, held)
			want := map[string]string{"returned": "a2 a3", "short": "a1 a2 a3"}[what]
			if want == "" {
				want = "a3"
			}
			checkDiff(t, "received", want, <-result)
		})
	}
}

// A run is not divided among receivers, whose consumers would process it at the same time.
func TestRunGoesToOneReceiver(t *testing.T) {
	t.Parallel()
	s := newOrderedQueue(t)
	results := make(chan string, 3)
	for n := range 3 {
		go func() {
			got, _ := s.run("q", 2, testTimeout)
			results <- got
		}()
		s.waiting("q", n+1)
	}
	s.must(201, "POST", "/queues/q/messages/batch", `{"messages":[{"data":{"name":"a1"},"group":"a"},{"data":{"name":"a2"},"group":"a"},{"data":{"name":"a3"},"group":"a"},{"data":{"name":"b1"},"group":"b"}]}`)
	got := []string{<-results, <-results}
	slices.Sort(got)
	checkDiff(t, "received", []string{"a1 a2", "b1"}, got)
	s.waiting("q", 1)
	s.must(204, "PUT", "/queues/q/purge", "")
	s.publishGroups("q", "c1")
	checkDiff(t, "the third receiver", "c1", <-results)
}

// If the receiver of a run has disconnected, the next one gets no more of it than it can take.
func TestRunIsNotDividedAfterADisconnection(t *testing.T) {
	t.Parallel()
	s := newOrderedQueue(t)
	key := dispatcherKey{queueID: "q", sqs: true, runs: true}
	first := &unnoticedEnd{Context: context.Background()}
	results := make(chan int, 3)
	for n, limit := range []int{10, 1, 1} {
		ctx := context.Context(first)
		if n > 0 {
			ctx = context.Background()
		}
		go func() {
			v, _ := s.engine.take(ctx, key, limit, testTimeout)
			results <- len(v.messages)
		}()
		s.waiting("q", n+1)
	}
	first.ended.Store(true)
	s.must(201, "POST", "/queues/q/messages/batch", `{"messages":[{"data":{"name":"a1"},"group":"a"},{"data":{"name":"a2"},"group":"a"},{"data":{"name":"a3"},"group":"a"}]}`)
	got := []int{<-results, <-results}
	slices.Sort(got)
	checkDiff(t, "messages of the first two", []int{0, 1}, got)
	s.waiting("q", 1)
	checkDiff(t, "deliveries", 1, s.count("SELECT sum(delivery_attempts) FROM queued.messages"))
	s.must(204, "PUT", "/queues/q/purge", "")
	s.publishGroups("q", "b1")
	checkDiff(t, "messages of the third", 1, <-results)
}

// Each receive that does not wait has a claim of its own, or a reply without messages.
func TestReceivesOfRunsThatDoNotWaitAreAnswered(t *testing.T) {
	t.Parallel()
	s := withOrderedQueue(newPlainTestServer(t))
	s.publishGroups("q", "a1", "a2", "b1", "c1")
	free := s.hold("UPDATE")
	results := make(chan string, 5)
	for range 5 {
		go func() {
			got, _ := s.run("q", 1, 0)
			results <- got
		}()
	}
	s.inLine("q", 5)
	free()
	var got []string
	for range 5 {
		got = append(got, <-results)
	}
	slices.Sort(got)
	checkDiff(t, "received", []string{"", "", "a1", "b1", "c1"}, got)
}

// Consumers of two servers process each group in order, although they return messages,
// and each process each message once.
func TestGroupsAreProcessedInOrderWhateverIsReturned(t *testing.T) {
	t.Parallel()
	const groups, each = 4, 40
	s := newOrderedQueue(t)
	servers := []*testServer{s, newTestServerOn(t, s.dsn)}
	var mu sync.Mutex
	processed := make(map[string][]string)
	left := groups * each
	var all sync.WaitGroup
	for n := range each {
		for g := range groups {
			s.publishGroups("q", fmt.Sprintf("%c%d", 'a'+g, n))
		}
	}
	for i := range 6 {
		server, random := servers[i%2], rand.New(rand.NewPCG(1, uint64(i)))
		all.Go(func() {
			for {
				mu.Lock()
				done := left == 0
				mu.Unlock()
				if done {
					return
				}
				names, receipts := server.run("q", 1+random.IntN(10), 50*time.Millisecond)
				back := make(map[string][]ackItem)
				for name := range strings.FieldsSeq(names) {
					group := name[:1]
					if back[group] != nil || random.IntN(4) == 0 {
						back[group] = append(back[group], receipts[name])
						continue
					}
					mu.Lock()
					processed[group] = append(processed[group], name[1:])
					left--
					mu.Unlock()
					item := receipts[name]
					item.receipt.inLease = true
					if err := server.engine.ack(context.Background(), item); err != nil {
						t.Errorf("ack = %v", err)
					}
				}
				for _, items := range back {
					if err := server.engine.changeVisibility(context.Background(), items...); err != nil {
						t.Errorf("changeVisibility = %v", err)
					}
				}
			}
		})
	}
	all.Wait()
	for g := range groups {
		var want []string
		for n := range each {
			want = append(want, fmt.Sprint(n))
		}
		checkDiff(t, "order of the group", want, processed[fmt.Sprintf("%c", 'a'+g)])
	}
}
