package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestReceiveDeliversOldestDueFirst(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2, 3, 4, 5)
	s.changeMessages(shift("scheduled_at", "-1 min"), ids[3])
	checkDiff(t, "first", []int{4, 1}, numbers(s.receive("t", "?limit=2")))
	checkDiff(t, "rest", []int{2, 3, 5}, numbers(s.receive("t", "")))
}

func TestReceiveKeepsTheOrderOfOneStatement(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	session := newPinnedConn(s.db, newMetrics(s.db))
	defer session.close()
	if _, err := s.createQueue(context.Background(), "q", queueSettings{AckDeadlineSeconds: 60, MessageRetentionSeconds: 600}); err != nil {
		t.Fatal(err)
	}
	if err := session.readNamed([]string{"q"}); err != nil {
		t.Fatal(err)
	}
	to := session.settings.queues["q"].queues
	var messages []outgoing
	var want []string
	for i := range 500 {
		want = append(want, fmt.Sprintf(`{"n":%d}`, i))
		messages = append(messages, outgoing{data: []byte(want[i]), to: to})
	}
	if _, _, err := session.insert(messages); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 5 {
		v, err := session.claim(dispatcherKey{queueID: "q"}, claimStart{}, false, 100, deliverySize)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range v.messages {
			got = append(got, string(m.Data))
		}
	}
	checkDiff(t, "order", want, got)
}

func TestReceiveHidesUntilAckDeadline(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"ack_deadline_seconds":600`)
	id := s.publish("t", 1)[0]
	first := s.receive("t", "")[0]
	if n := s.count(`SELECT count(*) FROM queued.messages WHERE scheduled_at = updated_at + interval '600 s' AND scheduled_at = $1::timestamp`, first.ScheduledAt); n != 1 {
		t.Errorf("scheduled_at %s is not the time of the receive and the ack deadline", first.ScheduledAt)
	}
	checkDiff(t, "hidden", []int{}, numbers(s.receive("t", "")))
	s.makeDue(id)
	if again := s.receive("t", ""); len(again) != 1 || again[0].DeliveryAttempts != 2 {
		t.Errorf("after the deadline received %v, want a second delivery", again)
	}
}

func TestReceiveSkipsExpiredAndExhausted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	ids := s.publish("t", 1, 2, 3)
	s.expire(ids[0])
	s.changeMessages("delivery_attempts = 2", ids[1])
	checkDiff(t, "received", []int{3}, numbers(s.receive("t", "?wait_seconds=1")))
}

func TestReceiveSkipsLockedRows(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2)
	tx := s.begin("UPDATE queued.messages SET bytes = bytes WHERE id = $1", ids[0])
	checkDiff(t, "received", []int{2}, numbers(s.receive("t", "")))
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.inLine("t", 1)
	tx.Rollback() // there is no notification, so the dispatcher must keep trying
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
}

func TestWithoutDeadQueueNothingIsExhausted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	for attempt := 1; attempt <= 5; attempt++ {
		m := s.receive("t", "")
		if len(m) != 1 || m[0].DeliveryAttempts != attempt {
			t.Fatalf("delivery %d = %v", attempt, m)
		}
		s.must(204, "PUT", "/messages/"+m[0].ID+"/nack", "")
	}
}

func TestLargeMessagesShareAResponseUpToItsSize(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		sizes []int
		limit int
		want  int
	}{
		{nil, 10, 0},
		{[]int{1, 1, 1}, 2, 2},
		{[]int{1, 1, 1}, 3, 3},
		{[]int{deliverySize + 1, 1}, 10, 1},
		{[]int{deliverySize, 1}, 10, 1},
		{[]int{deliverySize - 1, 1, 1}, 10, 2},
	} {
		var messages []message
		for _, size := range v.sizes {
			messages = append(messages, message{size: size})
		}
		if got := share(messages, v.limit); got != v.want {
			t.Errorf("share(%v, %d) = %d, want %d", v.sizes, v.limit, got, v.want)
		}
	}
}

func TestLargeMessagesStayInOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	var want []int
	for n := range 18 { // three responses
		want = append(want, n)
		s.must(201, "POST", "/topics/t/messages", fmt.Sprintf(`{"data":{"n":%d,"x":%q}}`, n, strings.Repeat("x", 1_000_000)))
	}
	var got []int
	for len(got) < len(want) {
		m := s.receive("t", "?limit=1000")
		if len(m) == 0 || len(m) > 8 {
			t.Fatalf("a response has %d messages of a megabyte, want at most 8", len(m))
		}
		got = append(got, numbers(m)...)
	}
	checkDiff(t, "order", want, got)
	checkDiff(t, "deliveries", 18, s.count("SELECT sum(delivery_attempts) FROM queued.messages"))
}

func TestClaimStaysWithinItsBudget(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3, 4)
	s.changeMessages("bytes = 100")
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	for _, want := range []int{1, 2, 1} { // a claim takes at least one message
		v, err := session.claim(dispatcherKey{queueID: "t"}, claimStart{}, false, 10, 50+100*(want-1)+want/2*50)
		if err != nil || len(v.messages) != want {
			t.Fatalf("claim = %d messages, %v, want %d", len(v.messages), err, want)
		}
	}
	checkDiff(t, "attempts", 4, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 1"))
}

func TestLongPollReturnsAtOnceAfter(t *testing.T) {
	t.Parallel()
	const settings = `"message_retention_seconds":3600,"ack_deadline_seconds":60`
	for what, cause := range map[string]func(s, other *testServer){
		"publish":            func(s, _ *testServer) { s.publish("t", 1) },
		"publish in another": func(_, other *testServer) { other.publish("t", 1) },
		"nack":               func(s, _ *testServer) { s.must(204, "PUT", "/messages/"+leased(s)+"/nack", "") },
		"nack in another":    func(s, other *testServer) { other.must(204, "PUT", "/messages/"+leased(s)+"/nack", "") },
		"redrive": func(s, _ *testServer) {
			s.publish("source", 1)
			s.must(204, "PUT", "/queues/source/redrive", `{"destination_queue_id":"t"}`)
		},
		"redrive in another": func(s, other *testServer) {
			s.publish("source", 1)
			other.must(204, "PUT", "/queues/source/redrive", `{"destination_queue_id":"t"}`)
		},
		"final nack":            func(s, _ *testServer) { s.must(204, "PUT", "/messages/"+deadly(s)+"/nack", "") },
		"final nack in another": func(s, other *testServer) { other.must(204, "PUT", "/messages/"+deadly(s)+"/nack", "") },
		"cleanup in another": func(s, other *testServer) {
			deadly(s)
			s.endLeases()
			other.mustCleanUp()
		},
		"end of delay": func(s, _ *testServer) {
			s.must(200, "PUT", "/queues/t", `{"topic_id":"t","delivery_delay_seconds":1,`+settings+`}`)
			s.publish("t", 1)
		},
		"end of delay in another": func(s, other *testServer) {
			s.must(200, "PUT", "/queues/t", `{"topic_id":"t","delivery_delay_seconds":1,`+settings+`}`)
			other.publish("t", 1)
		},
		"a full sweep after a lost notification": func(s, _ *testServer) {
			s.fill("t", 1)
			s.engine.sweepSoon()
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			other := newTestServerOn(t, s.dsn)
			s.mustTopic("t")
			s.mustTopic("source")
			s.mustTopic("deadly", `"dead_queue_id":"t"`, `"message_max_deliveries":1`)
			eventually(t, "the servers listen", func() bool { return s.engine.main.notifier.listening() && other.engine.main.notifier.listening() })
			poll := s.poll(context.Background(), "t", "?wait_seconds=30")
			s.waiting("t", 1)
			cause(s, other)
			checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
		})
	}
}

// No notification is sent at the ack deadline. The server of the receiver knows when the
// message is due.
func TestLongPollReturnsAtTheAckDeadlineOfAnotherServersLease(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustTopic("t")
	s.publish("t", 1)
	other.receive("t", "")
	s.schedule("1 s")
	checkDiff(t, "received", []int{1}, numbers(s.receive("t", "?wait_seconds=30")))
}

// leased adds a message to t that is in flight, without waking receivers, and returns
// its id.
func leased(s *testServer) string {
	s.exec(`INSERT INTO queued.messages (home, id, queue_key, data, bytes, in_flight, delivery_attempts, expired_at, scheduled_at, created_at, updated_at)
		SELECT home, gen_random_uuid(), key, '{"n":1}', 7, true, 1, now() + interval '1 h', now() + interval '1 h', now(), now()
		FROM queued.queues WHERE id = 't'`)
	return s.idOf("t")
}

// deadly returns the id of a message in its last delivery. Its dead queue is t.
func deadly(s *testServer) string {
	s.publish("deadly", 1)
	return s.receive("deadly", "")[0].ID
}

func TestLongPollReturnsEmptyAfterItsTime(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	began := time.Now()
	checkDiff(t, "received", []int{}, numbers(s.receive("q", "?wait_seconds=0.3")))
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("the response came after %v, want 300ms", took)
	}
	s.waiting("q", 0)
}

func TestReceiversAreServedInTheOrderTheyCame(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	var polls []<-chan polled
	for i := range 8 {
		polls = append(polls, s.poll(context.Background(), "t", "?wait_seconds=30&limit=1"))
		s.waiting("t", i+1)
	}
	for i, poll := range polls {
		s.publish("t", i)
		checkDiff(t, "received", []int{i}, numbers(s.await(poll)))
		s.waiting("t", len(polls)-i-1) // no other receiver was woken
	}
}

// Thousands of receivers poll again every twenty seconds. This costs no statement while
// nothing is due.
func TestReceiverThatJoinsSleepingOnesCostsNoStatement(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	first := s.poll(context.Background(), "t", "?wait_seconds=30&limit=1")
	s.waiting("t", 1)
	statements := func() string {
		return regexp.MustCompile(`queued_statement_duration_seconds_count\{statement="(claim|lease_terms)"\} \d+`).FindString(s.must(200, "GET", "/metrics", ""))
	}
	before := statements()
	var others []<-chan polled
	for n := range 5 {
		others = append(others, s.poll(context.Background(), "t", "?wait_seconds=30&limit=1"))
		s.waiting("t", n+2)
	}
	checkDiff(t, "claims", before, statements())
	s.publish("t", 1, 2, 3, 4, 5, 6)
	got := numbers(s.await(first))
	for _, poll := range others {
		got = append(got, numbers(s.await(poll))...)
	}
	slices.Sort(got)
	checkDiff(t, "received", []int{1, 2, 3, 4, 5, 6}, got)
}

// The dispatcher cannot connect to look up the next due time. It sleeps without knowing
// that nothing is due, so the next receiver must cause a claim.
func TestReceiverCausesAClaimWhereTheNextDueTimeIsUnknown(t *testing.T) {
	t.Parallel()
	s, p := newProxiedServer(t)
	s.mustTopic("t")
	free := s.hold("UPDATE")
	first := s.poll(context.Background(), "t", "?wait_seconds=30&limit=1")
	s.waitForHeld(1)
	p.refuse(true)
	free()
	s.waiting("t", 1)
	p.refuse(false)
	s.fill("t", 2)
	second := s.poll(context.Background(), "t", "?wait_seconds=30&limit=1")
	if got := len(s.await(first)) + len(s.await(second)); got != 2 {
		t.Errorf("two receivers got %d messages", got)
	}
}

func TestReceiversOfADeletedQueueGetAnError(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	eventually(t, "the servers listen", func() bool { return s.engine.main.notifier.listening() })
	for _, by := range []*testServer{s, other} {
		s.mustQueue("q")
		poll := s.poll(context.Background(), "q", "?wait_seconds=30")
		s.waiting("q", 1)
		by.must(204, "DELETE", "/queues/q", "")
		if p := <-poll; p.status != 404 || p.body != `{"detail":"Queue not found"}` {
			t.Errorf("poll of a deleted queue = %d %s, %v", p.status, p.body, p.err)
		}
	}
}

func TestDrainEndsReceivesWithoutMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("a")
	s.mustQueue("b")
	var polls []<-chan polled
	for _, id := range []string{"a", "a", "b"} {
		polls = append(polls, s.poll(context.Background(), id, "?wait_seconds=30"))
	}
	s.waiting("a", 2)
	s.waiting("b", 1)
	s.engine.drain()
	for _, poll := range polls {
		checkDiff(t, "received", []int{}, numbers(s.await(poll)))
	}
	checkDiff(t, "later", []int{}, numbers(s.receive("a", "?wait_seconds=30")))
}

// hangUpLater starts a long poll of t, and returns its connection for the test to close.
func hangUpLater(s *testServer) net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Fprint(c, "GET /queues/t/messages?wait_seconds=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	return c
}

// wantUntouched receives the message in t, which must be in its first delivery.
func wantUntouched(s *testServer) {
	s.t.Helper()
	got := s.receive("t", "?wait_seconds=30")
	if len(got) != 1 || got[0].DeliveryAttempts != 1 {
		s.t.Errorf("the next receiver got %+v, want the message in its first delivery", got)
	}
}

func TestReceiverThatHangsUpWhileItWaitsTakesNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	c := hangUpLater(s)
	s.waiting("t", 1)
	c.Close()
	s.waiting("t", 0)
	s.publish("t", 1)
	wantUntouched(s)
}

func TestReceiverThatHangsUpBeforeAPublishTakesNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	c := hangUpLater(s)
	s.waiting("t", 1)
	c.Close() // the test does not wait for the server to notice
	s.publish("t", 1)
	wantUntouched(s)
}

func TestReceiverThatHangsUpDuringAClaimTakesNothing(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	c := hangUpLater(s)
	s.waiting("t", 1)
	// The client disconnects while the claim waits for a lock.
	tx := s.begin("LOCK TABLE queued.queues IN ACCESS EXCLUSIVE MODE")
	s.engine.wake("t", time.Time{})
	s.waitForLocks(1)
	if _, err := tx.Exec(`INSERT INTO queued.messages (home, id, queue_key, data, bytes, expired_at, scheduled_at, created_at, updated_at)
		SELECT home, gen_random_uuid(), key, '{"n":1}', 7, now() + interval '1 h', now(), now(), now() FROM queued.queues`); err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.inLine("t", 0)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	s.waiting("t", 0) // otherwise the next receiver could get the claimed message without a release
	wantUntouched(s)
}

func TestReleasedMessageHasItsDueTimeAndAttemptsAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	v, err := s.engine.receive(context.Background(), "t", 10, 0)
	if err != nil || len(v.messages) != 1 {
		t.Fatalf("receive = %v, %v", v, err)
	}
	due := v.messages[0].dueAt
	s.engine.release("t", v.messages)
	n := s.count(`SELECT count(*) FROM queued.messages
		WHERE delivery_attempts = 0 AND NOT in_flight AND NOT last_delivery AND scheduled_at = $1`, due.Time)
	if n != 1 {
		t.Error("the message was not released with its old due time and attempts")
	}
	wantUntouched(s)
}

func TestReceiverWithAnUnnoticedDisconnectionIsSkipped(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	first := &unnoticedEnd{Context: context.Background()}
	received := make(chan delivery)
	go func() {
		v, _ := s.engine.receive(first, "t", 10, testTimeout)
		received <- v
	}()
	s.waiting("t", 1)
	for range 20 {
		c := hangUpLater(s)
		defer c.Close()
	}
	s.waiting("t", 21)
	first.ended.Store(true)
	s.publish("t", 1)
	s.inLine("t", 19)
	checkDiff(t, "received by the disconnected client", 0, len((<-received).messages))
	checkDiff(t, "attempts", 1, s.count("SELECT delivery_attempts FROM queued.messages"))
}

// unnoticedEnd is the context of a request whose client has disconnected. Its Err says
// so, and its Done does not yet.
type unnoticedEnd struct {
	context.Context
	ended atomic.Bool
}

func (c *unnoticedEnd) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return nil
}

func TestReleaseChangesOnlyItsOwnLease(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]string{
		"delivered again":        "delivery_attempts = delivery_attempts + 1, " + shift("scheduled_at", "1 min"),
		"its lease has changed":  shift("scheduled_at", "1 min"),
		"its attempts changed":   "delivery_attempts = 0",
		"released or nacked":     "in_flight = false",
		"moved to another queue": "queue_key = queue_key + 1",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustTopic("t")
			s.publish("t", 1)
			v, err := s.engine.receive(context.Background(), "t", 1, 0)
			if err != nil {
				t.Fatal(err)
			}
			s.changeMessages("updated_at = 'epoch', " + change)
			s.engine.release("t", v.messages)
			checkDiff(t, "untouched", 1, s.count("SELECT count(*) FROM queued.messages WHERE updated_at = 'epoch'"))
		})
	}
}

func TestMessageWhoseLeaseHasEndedIsNotSent(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t", `"ack_deadline_seconds":1`)
	s.publish("t", 1)
	s.exec(`CREATE FUNCTION public.linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1.1); RETURN NULL; END'`)
	s.exec("CREATE TRIGGER linger BEFORE UPDATE ON queued.messages FOR EACH STATEMENT EXECUTE FUNCTION public.linger()")
	// The lease ends before the claim returns.
	checkDiff(t, "received", []int{}, numbers(s.receive("t", "")))
	s.exec("DROP TRIGGER linger ON queued.messages")
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	if got := s.receive("t", ""); len(got) != 1 || got[0].DeliveryAttempts != 1 {
		t.Errorf("then received %+v, want the message in its first delivery", got)
	}
}

func TestNoMessageIsDeliveredToTwo(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustTopic("t")
	const publishers, receivers, each = 8, 8, 50
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				at := []*testServer{s, other}[p%2]
				v, err := at.send(context.Background(), "POST", "/topics/t/messages", fmt.Sprintf(`{"data":{"n":%d}}`, p*each+n))
				if err != nil || v.status != 201 {
					t.Errorf("publish = %d %s, %v", v.status, v.body, err)
				}
			}
		})
	}
	var mu sync.Mutex
	deliveries := map[int]int{}
	inOrder := map[[2]int]int{} // by receiver and publisher: the last number received
	ctx, allAcked := context.WithTimeout(context.Background(), testTimeout)
	defer allAcked()
	var acked atomic.Int64
	for r := range receivers {
		wg.Go(func() {
			at := []*testServer{s, other}[r%2]
			for {
				// Messages that are claimed for a receiver whose wait has ended are
				// released, and then are late. So no wait ends before all are received.
				p := <-at.poll(ctx, "t", "?wait_seconds=20&limit=3")
				if acked.Load() == publishers*each {
					return
				}
				if p.err != nil || p.status != 200 {
					t.Errorf("receive = %d %s, %v", p.status, p.body, p.err)
					return
				}
				for i, n := range numbers(p.messages) {
					mu.Lock()
					deliveries[n]++
					key := [2]int{r, n / each}
					if last, seen := inOrder[key]; seen && last >= n {
						t.Errorf("receiver %d got %d after %d", r, n, last)
					}
					inOrder[key] = n
					mu.Unlock()
					if v, err := at.send(ctx, "PUT", "/messages/"+p.messages[i].ID+"/ack", ""); err != nil || v.status != 204 {
						t.Errorf("ack = %d %s, %v", v.status, v.body, err)
					}
					if acked.Add(1) == publishers*each {
						allAcked()
					}
				}
			}
		})
	}
	wg.Wait()
	for n, times := range deliveries {
		if times != 1 {
			t.Errorf("message %d was delivered %d times", n, times)
		}
	}
	checkDiff(t, "left", 0, s.count("SELECT count(*) FROM queued.messages"))
}

func TestOnePublisherIsReceivedInOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	const publishers, each = 8, 40
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				if v, err := s.send(context.Background(), "POST", "/topics/t/messages", fmt.Sprintf(`{"data":{"n":%d}}`, p*each+n)); err != nil || v.status != 201 {
					t.Errorf("publish = %d %s, %v", v.status, v.body, err)
				}
			}
		})
	}
	got := make([][]int, publishers)
	for total := 0; total < publishers*each; {
		m := s.receive("t", "?wait_seconds=30&limit=7")
		for _, n := range numbers(m) {
			got[n/each] = append(got[n/each], n%each)
		}
		total += len(m)
	}
	wg.Wait()
	for p := range publishers {
		if !slices.IsSorted(got[p]) || len(got[p]) != each {
			t.Errorf("publisher %d: received in the order %v", p, got[p])
		}
	}
}

var wakeRounds = flag.Int("wakes", 2000, "number of rounds of TestNoWakeUpIsLost; a million take ten minutes")

// A publish, a nack and the end of a delay each must wake the waiting receiver, at any
// moment of its dispatcher. This engine makes no sweeps.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "queued")
	store := newTestStoreOn(t, dsn)
	e := mustEngine(t, mustDatabase(t, dsn), store.metrics, store.homes, time.Hour)
	t.Cleanup(e.close)
	const queues = 8
	var wg sync.WaitGroup
	for q := range queues {
		queueID := fmt.Sprint("q", q)
		if _, err := store.createQueue(context.Background(), queueID, queueSettings{AckDeadlineSeconds: 60, MessageRetentionSeconds: 3600}); err != nil {
			t.Fatal(err)
		}
		received := make(chan message)
		stop := make(chan struct{})
		wg.Go(func() {
			defer close(received)
			for {
				v, err := e.receive(context.Background(), queueID, 1, testTimeout)
				if err != nil || len(v.messages) != 1 {
					t.Errorf("receive = %v, %v: a wake-up was lost", v.messages, err)
					return
				}
				select {
				case received <- v.messages[0]:
				case <-stop:
					return
				}
			}
		})
		wg.Go(func() {
			defer close(stop)
			random := mathrand.New(mathrand.NewPCG(1, uint64(q)))
			spin := func() { // for a random time, so that the dispatcher may be anywhere between two waits
				for end := time.Now().Add(time.Duration(random.IntN(1500)) * time.Microsecond); time.Now().Before(end); {
					runtime.Gosched()
				}
			}
			for range *wakeRounds / queues {
				p := &publication{queueID: queueID, messages: []draft{{data: []byte(`{}`)}}}
				if random.IntN(8) == 0 {
					delay := time.Duration(0)
					p.messages[0].delay = &delay
				}
				spin()
				if _, err := e.publish(context.Background(), p); err != nil {
					t.Error(err)
					return
				}
				m, ok := <-received
				if ok && random.IntN(4) == 0 {
					spin()
					if err := e.nack(context.Background(), ackItem{id: m.ID}); err != nil {
						t.Error(err)
						return
					}
					m, ok = <-received
				}
				if !ok {
					return
				}
				if err := e.ack(context.Background(), ackItem{id: m.ID}); err != nil {
					t.Error(err)
					return
				}
			}
			// The receiver waits for one more message, and then finds that the test has ended.
			if _, err := e.publish(context.Background(), &publication{queueID: queueID, messages: []draft{{data: []byte(`{}`)}}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestConsumeDeletesAndReleaseRestores(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":1},"attributes":{"a":"b"}}`)
	s.publish("t", 2, 3)
	before := s.state()
	ctx := context.Background()
	v, err := s.engine.consume(ctx, "t", 2, 0)
	if err != nil || len(v.messages) != 2 || v.messages[0].DeliveryAttempts != 1 {
		t.Fatalf("consume = %+v, %v, want two messages in their first delivery", v.messages, err)
	}
	checkDiff(t, "left", 1, s.messagesIn("t"))
	s.engine.release("t", v.messages)
	s.changeMessages("updated_at = created_at") // only the time of the restore differs
	checkDiff(t, "state after the release", before, s.state())
	checkDiff(t, "received then", []int{1, 2, 3}, numbers(s.receive("t", "")))
}

// Receivers that lease and receivers that consume wait at the same queue.
func TestLeasingAndConsumingReceiversAreWoken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	consumed := make(chan delivery, 1)
	go func() {
		v, _ := s.engine.consume(context.Background(), "t", 1, testTimeout)
		consumed <- v
	}()
	poll := s.poll(context.Background(), "t", "?limit=1&wait_seconds=20")
	s.waiting("t", 2)
	s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{}},{"data":{}}]}`)
	if got := s.await(poll); len(got) != 1 {
		t.Errorf("leased %d messages, want 1", len(got))
	}
	if v := <-consumed; len(v.messages) != 1 {
		t.Errorf("consumed %d messages, want 1", len(v.messages))
	}
	checkDiff(t, "left, in flight", 1, s.messagesIn("t"))
}

// The batcher retries a refused batch, so a refusal must have changed nothing.
func TestRefusedReleaseDoesNothing(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "-1", "-2", "a1", "b1", "a2", "b2")
	ctx := context.Background()
	consumed, err := s.engine.consume(ctx, "q", 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	leased, err := s.engine.receive(ctx, "q", 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(consumed.messages) != 2 || len(leased.messages) != 2 {
		t.Fatalf("got %d and %d messages, want 2 and 2", len(consumed.messages), len(leased.messages))
	}
	s.exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '55P03'; END $$`)
	s.exec("CREATE TRIGGER refuse BEFORE UPDATE ON queued.messages FOR EACH STATEMENT EXECUTE FUNCTION public.refuse()")
	groups := func() int {
		return s.count("SELECT count(*) FROM queued.groups WHERE limited_until > now()")
	}
	before, limited := s.state(), groups()
	session := newPinnedConn(s.engine.main.db, s.metrics)
	defer session.close()
	batch := [][]message{consumed.messages, leased.messages}
	if err := s.engine.runReleases(session, batch); !locked(err) {
		t.Errorf("release = %v, want a refusal", err)
	}
	checkDiff(t, "messages after the refusal", before, s.state())
	checkDiff(t, "limited groups after the refusal", limited, groups())
	s.exec("DROP TRIGGER refuse ON queued.messages")
	if err := s.engine.runReleases(session, batch); err != nil {
		t.Errorf("the second try of the release = %v", err)
	}
	checkDiff(t, "received then", "-1 -2 a1 b1", s.receiveNames("q", 10))
}

// sendAndShutDown sends a request and shuts down the sending side, as nc -N does. It
// returns the connection, for the response.
func sendAndShutDown(s *testServer, method, target, body string) *net.TCPConn {
	s.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(testTimeout))
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body)
	c.(*net.TCPConn).CloseWrite()
	return c.(*net.TCPConn)
}

// readResponse reads a response.
func readResponse(s *testServer, c io.Reader) (status int, body string) {
	s.t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

// Examples of such clients are nc -N and some proxies.
func TestClientsThatShutDownTheirSideAreServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("large")
	for range 3 {
		s.must(201, "POST", "/queues/large/messages", fmt.Sprintf(`{"data":{"n":1,"x":%q}}`, strings.Repeat("x", 900_000)))
	}
	s.must(201, "POST", "/enqueue/jobs/g/", `{"job_id":"j","payload":{"n":5},"interval":0}`)
	for _, v := range []struct {
		method, target, body string
		status               int
		want                 string // part of the body
	}{
		{"GET", "/health", "", 200, "true"},
		{"GET", "/readyz", "", 200, "true"},
		{"GET", "/deepstatus/", "", 200, "success"},
		{"GET", "/metrics", "", 200, "queued_database_up 1"},
		{"GET", "/queues", "", 200, `"id":"t"`},
		{"POST", "/topics/t/messages", `{"data":{"n":1}}`, 201, `"n":1`},
		{"GET", "/queues/t/messages", "", 200, `"n":1`},
		{"GET", "/queues/t/messages", "", 200, `{"data":[]}`},
		{"POST", "/topics/t/messages/batch", `{"messages":[{"data":{"n":2}},{"data":{"n":3}},{"data":{"n":4}}]}`, 201, `"n":2`},
		{"GET", "/queues/t/messages?wait_seconds=30&limit=1", "", 200, `"n":2`},
		{"GET", "/out/t?wait_seconds=30", "", 200, `{"n":3}`},
		{"GET", "/queue/t", "", 200, `"n":4`},
		{"GET", "/queue/t?wait_seconds=30", "", 204, ""},
		{"GET", "/dequeue/jobs/", "", 200, `"n":5`},
		{"GET", "/queues/large/messages", "", 200, strings.Repeat("x", 900_000)},
		{"PUT", "/queues/t/purge", "", 204, ""},
	} {
		c := sendAndShutDown(s, v.method, v.target, v.body)
		if status, body := readResponse(s, c); status != v.status || !strings.Contains(body, v.want) {
			t.Errorf("%s %s = %d %.300s, want %d and %.100s", v.method, v.target, status, body, v.status, v.want)
		}
		c.Close()
	}
	checkDiff(t, "attempts", 4, s.count("SELECT sum(delivery_attempts) FROM queued.messages")) // of the three large messages and the job
}

// A client that has shut down its side may have closed the connection, so its long poll
// ends.
func TestLongPollEndsWhenTheClientShutsDownItsSide(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	poll := s.poll(context.Background(), "t", "?wait_seconds=30") // keeps waiting
	s.waiting("t", 1)
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /queues/t/messages?wait_seconds=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	s.waiting("t", 2)
	c.(*net.TCPConn).CloseWrite()
	status, body := readResponse(s, c)
	checkDiff(t, "response", `200 {"data":[]}`, fmt.Sprint(status, " ", body))
	s.publish("t", 1)
	checkDiff(t, "received by the waiting client", []int{1}, numbers(s.await(poll)))
}

// Only the reset that follows data distinguishes a client that has closed the connection
// from one that still reads.
func TestClientThatClosedTheConnectionTakesNothing(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"/queues/t/messages", "/queues/t/messages?wait_seconds=30", "/out/t", "/queue/t?wait_seconds=30", "/dequeue/t/"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			s := newPlainTestServer(t)
			s.mustTopic("t")
			s.publish("t", 1)
			tx := s.begin("LOCK TABLE queued.queues IN ACCESS EXCLUSIVE MODE")
			c := sendAndShutDown(s, "GET", target, "")
			s.waitForLocks(1)
			c.Close()
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			s.waiting("t", 0)
			wantUntouched(s)
		})
	}
}

func TestClientsThatEndTheirSideOfTLSAreServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	h := httptest.NewUnstartedServer(s)
	h.Listener = listener{Listener: h.Listener, admission: s.admission, tls: true}
	h.Config.ConnContext = withConn
	h.StartTLS()
	t.Cleanup(h.Close)
	ask := func(target string) *tls.Conn {
		c, err := tls.Dial("tcp", h.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(testTimeout))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target)
		return c
	}
	c := ask("/queues/t/messages")
	defer c.Close()
	c.CloseWrite()
	if status, body := readResponse(s, c); status != 200 || !strings.Contains(body, `"n":1`) {
		t.Errorf("receive = %d %s, want the message", status, body)
	}
	s.schedule("1 h")
	c = ask("/queues/t/messages?wait_seconds=30")
	s.waiting("t", 1)
	c.Close()
	s.waiting("t", 0)
	s.changeMessages("scheduled_at = now(), in_flight = false")
	s.engine.wake("t", time.Time{})
	checkDiff(t, "received by another", []int{1}, numbers(s.receive("t", "?wait_seconds=30")))
}

// A receive without wait_seconds waits as long as the header Prefer asks for.
func TestReceiveWaitsAsPreferred(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, v := range []struct{ method, path, body, prefer, applied string }{
		{"GET", "/queues/q/messages", "", "wait=20", "wait=20"},
		{"GET", "/queues/q/messages", "", "respond-async, WAIT = \"9999\"; x=y, wait=0", "wait=9999"},
		{"POST", "/queues/q/messages/receive", "{}", "wait=20", "wait=20"},
		{"GET", "/queues/q/messages?wait_seconds=0", "", "wait=20", ""},
		{"POST", "/queues/q/messages/receive", `{"wait_seconds":0}`, "wait=20", ""},
		{"GET", "/queues/q/messages", "", "wait", ""},
		{"GET", "/queues/q/messages", "", "wait=-1", ""},
		{"GET", "/queues/q/messages", "", "wait=soon, waiting=20", ""},
		{"GET", "/queues/q/messages", "", "wait=0", "wait=0"},
	} {
		waits := v.applied != "" && v.applied != "wait=0"
		result := make(chan *http.Response, 1)
		go func() {
			r, err := http.NewRequest(v.method, s.url+v.path, strings.NewReader(v.body))
			if err == nil {
				r.Header.Set("Prefer", v.prefer)
				if response, err := http.DefaultClient.Do(r); err == nil {
					response.Body.Close()
					result <- response
					return
				}
			}
			result <- &http.Response{}
		}()
		if waits {
			s.waiting("q", 1)
			s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
		}
		response := <-result
		checkDiff(t, v.method+" "+v.path+" "+v.prefer, "200 "+v.applied, fmt.Sprint(response.StatusCode, " ", response.Header.Get("Preference-Applied")))
		s.must(204, "PUT", "/queues/q/purge", "")
	}
}
