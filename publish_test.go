package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestRequestsThatWaitTogetherShareAStatement(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":0}}`) // so that the server caches the queues of the topic
	free := s.hold("INSERT")
	defer free()
	publish := func(n int) {
		if v, err := s.send(context.Background(), "POST", "/topics/t/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n)); err != nil || v.status != 201 {
			t.Errorf("publish = %d %s, %v", v.status, v.body, err)
		}
	}
	var wg sync.WaitGroup
	for n := range batcherWorkers { // the second worker starts when the statement of the first takes long
		wg.Go(func() { publish(n) })
		s.waitForHeld(n + 1)
	}
	for n := range 20 {
		wg.Go(func() { publish(n) })
	}
	eventually(t, "20 requests wait in the batcher", func() bool { return len(s.engine.main.publications.waiting) == 20 })
	free()
	wg.Wait()
	// All messages of a statement have the same created_at.
	checkDiff(t, "statements", 1+batcherWorkers+1, s.count("SELECT count(DISTINCT created_at) FROM queued.messages"))
	checkDiff(t, "stored", 1+batcherWorkers+20, s.count("SELECT count(*) FROM queued.messages"))
}

func TestPoisonedMemberOfABatchFailsAlone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ok := func(n int) *publication {
		return &publication{topicID: "t", messages: []draft{{data: fmt.Appendf(nil, `{"n":%d}`, n)}}}
	}
	// A handler would refuse this. The test is about PostgreSQL's error.
	poison := &publication{topicID: "t", messages: []draft{{data: []byte(`{"n":`)}}}
	unknownTopic := &publication{topicID: "nope", messages: []draft{{data: []byte(`{}`)}}}
	batch := []*publication{ok(1), poison, ok(2), unknownTopic, ok(3)}
	s.match("t", batch...)
	var calls []*batchedRequest[*publication]
	for _, p := range batch {
		calls = append(calls, &batchedRequest[*publication]{ctx: context.Background(), request: p, done: make(chan error, 1)})
	}
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	s.engine.main.publications.runBatch(session, calls)
	for i, c := range calls {
		err := <-c.done
		switch c.request {
		case poison:
			if !atFault(err) {
				t.Errorf("the invalid request has %v, want PostgreSQL's error", err)
			}
		case unknownTopic:
			if err != nil || !errors.Is(c.request.err, errTopicNotFound) {
				t.Errorf("the request with an unknown topic has %v and %v", err, c.request.err)
			}
		default:
			if err != nil || len(c.request.stored) != 1 {
				t.Errorf("request %d has %v and stored %v", i, err, c.request.stored)
			}
		}
	}
	checkDiff(t, "received", []int{1, 2, 3}, numbers(s.receive("t", "")))
}

func TestCancelledMemberOfABatchIsNotCarriedOut(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	free := s.hold("INSERT")
	defer free()
	var wg sync.WaitGroup
	for n := range batcherWorkers {
		wg.Go(func() { s.send(context.Background(), "POST", "/topics/t/messages", `{"data":{}}`) })
		s.waitForHeld(n + 1)
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	body := `{"data":{"is":"cancelled"}}`
	fmt.Fprintf(c, "POST /topics/t/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	eventually(t, "the request waits in the batcher", func() bool { return len(s.engine.main.publications.waiting) == 1 })
	wg.Go(func() { s.send(context.Background(), "POST", "/topics/t/messages", `{"data":{}}`) })
	eventually(t, "another request waits behind it", func() bool { return len(s.engine.main.publications.waiting) == 2 })
	c.(*net.TCPConn).SetLinger(0) // so that Close resets the connection
	c.Close()
	eventually(t, "the server has noticed the disconnection", func() bool {
		return strings.Contains(s.must(200, "GET", "/metrics", ""), `http_requests_total{handler="/topics/{topic_id}/messages",method="POST",status="4xx"} 1`)
	})
	free()
	wg.Wait()
	checkDiff(t, "stored", batcherWorkers+1, s.count("SELECT count(*) FROM queued.messages"))
}

func TestPublicationsBeyondAStatementTakeSeveral(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.exec(`INSERT INTO queued.queues (id, topic_id, ack_deadline_seconds, message_retention_seconds)
		SELECT 'q' || n, 't', 60, 3600 FROM generate_series(1, $1) n`, publishRows/2+1)
	var batch []*publication
	for n := range 3 {
		batch = append(batch, &publication{topicID: "t", messages: []draft{{data: fmt.Appendf(nil, `{"n":%d}`, n)}}})
	}
	s.match("t", batch...)
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	if err := s.engine.runPublications(session, batch); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "statements", 3, s.count("SELECT count(DISTINCT created_at) FROM queued.messages"))
	checkDiff(t, "stored", 3*(publishRows/2+1), s.count("SELECT count(*) FROM queued.messages"))
	// A batch that runs again does not store its messages again.
	if err := s.engine.runPublications(session, batch); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "stored", 3*(publishRows/2+1), s.count("SELECT count(*) FROM queued.messages"))
}

func TestTooManyCopiesAreRefused(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.exec(`INSERT INTO queued.queues (id, topic_id, ack_deadline_seconds, message_retention_seconds)
		SELECT 'q' || n, 't', 60, 3600 FROM generate_series(1, $1) n`, maxCopies+1)
	checkDiff(t, "response", `{"detail":"too many message copies: a request may create at most 100000"}`,
		s.must(422, "POST", "/topics/t/messages", `{"data":{}}`))
	checkDiff(t, "stored", 0, s.count("SELECT count(*) FROM queued.messages"))
}

// A server caches topics and queues. A change at another server still applies to it at
// once.
func TestServersUseThePresentSettings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	publish := func(want ...string) {
		t.Helper()
		for range 4 { // more often than the server has connections with a cache
			got := []string{}
			for _, m := range s.messages(s.must(201, "POST", "/topics/t/messages", `{"data":{},"attributes":{"a":"1"}}`)) {
				got = append(got, m.QueueID)
			}
			checkDiff(t, "copies", want, got)
		}
	}
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	publish([]string{}...)
	other.mustQueue("q", `"topic_id":"t"`)
	publish("q")
	other.mustQueue("r", `"topic_id":"t"`, `"message_filters":{"a":["2"]}`)
	publish("q")
	other.must(200, "PUT", "/queues/r", `{"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	publish("q", "r")
	lease := func() int {
		m := s.receive("q", "?limit=1")[0]
		return s.count("SELECT extract(epoch FROM scheduled_at - updated_at)::integer FROM queued.messages WHERE id = $1", m.ID)
	}
	checkDiff(t, "lease", 60, lease())
	other.must(200, "PUT", "/queues/q", `{"topic_id":"t","ack_deadline_seconds":600,"message_retention_seconds":3600}`)
	for range cap(s.engine.main.claimers) {
		checkDiff(t, "lease after the change", 600, lease())
	}
	s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
	other.must(204, "DELETE", "/queues/q", "")
	publish("r")
	s.must(404, "POST", "/queues/q/messages", `{"data":{}}`)
	s.must(404, "GET", "/queues/q/messages", "")
	other.must(204, "DELETE", "/topics/t", "")
	s.must(404, "POST", "/topics/t/messages", `{"data":{}}`)
}

func TestMessageForAQueueThatIsBeingDeletedIsRemoved(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	if err := session.readSubscriptions([]string{"t"}); err != nil {
		t.Fatal(err)
	}
	s.must(204, "DELETE", "/queues/t", "")
	s.mustCleanUp()
	messages := []outgoing{{data: []byte(`{}`), to: session.settings.topics["t"].queues}}
	if _, _, err := session.insert(messages); !errors.Is(err, errStale) {
		t.Errorf("insert by old settings = %v, want errStale", err)
	}
	session.settings.version = int64(s.count("SELECT version FROM queued.settings")) // as if the queue was deleted after the version was read
	if _, _, err := session.insert(messages); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "rows", 1, s.count("SELECT count(*) FROM queued.messages"))
	s.mustCleanUp()
	checkDiff(t, "rows", 0, s.count("SELECT count(*) FROM queued.messages"))
}

func TestBatchIsStoredInTheOrderSent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.mustQueue("b", `"topic_id":"t"`)
	s.mustQueue("a", `"topic_id":"t"`, `"message_filters":{"kind":["x"]}`)
	var items, want []string
	for n := range 100 {
		kind := "y"
		if n%2 == 0 {
			kind = "x"
			want = append(want, fmt.Sprintf("a%d", n))
		}
		want = append(want, fmt.Sprintf("b%d", n))
		items = append(items, fmt.Sprintf(`{"data":{"n":%d},"attributes":{"kind":%q}}`, n, kind))
	}
	published := s.messages(s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[`+strings.Join(items, ",")+`]}`))
	var got []string
	for i, n := range numbers(published) {
		got = append(got, fmt.Sprintf("%s%d", published[i].QueueID, n))
	}
	checkDiff(t, "response", want, got)
	checkDiff(t, "commits", 1, s.count("SELECT count(DISTINCT created_at) FROM queued.messages"))
	received := numbers(s.receive("b", "?limit=100"))
	if len(received) != 100 || !slices.IsSorted(received) {
		t.Errorf("received %v, want the order sent", received)
	}
}

func TestBatchIsAllOrNone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	many := strings.Repeat(`{"data":{}},`, maxBatch)
	big := `{"data":{"x":"` + strings.Repeat("x", 1<<20) + `"}}`
	for body, want := range map[string]string{
		`{}`:                                     `["body","messages"],"msg":"field required"`,
		`{"messages":{}}`:                        `["body","messages"],"msg":"value is not a valid list"`,
		`{"messages":[]}`:                        `["body","messages"],"msg":"ensure this value has at least 1 items"`,
		`{"messages":[` + many + `{"data":{}}]}`: `["body","messages"],"msg":"ensure this value has at most 1000 items"`,
		`{"messages":[{"data":{}},5]}`:           `["body","messages",1],"msg":"value is not a valid dict"`,
		`{"messages":[{"data":{}},{"data":5}]}`:  `["body","messages",1,"data"]`,
		`{"messages":[{"data":{}},{"data":{},"attributes":{"a":null}}]}`: `["body","messages",1,"attributes","a"]`,
		`{"messages":[{"data":{}},{"data":{},"delay_seconds":-1}]}`:      `["body","messages",1,"delay_seconds"]`,
		`{"messages":[{"data":{}},` + big + `]}`:                         `["body","messages",1,"data"],"msg":"ensure data and attributes have at most 1048576 bytes"`,
	} {
		for _, path := range []string{"/topics/t", "/queues/t"} {
			if got := s.must(422, "POST", path+"/messages/batch", body); !strings.Contains(got, want) {
				t.Errorf("%.60s… = %s, want %s", body, got, want)
			}
		}
	}
	s.must(404, "POST", "/topics/nope/messages/batch", `{"messages":[{"data":{}}]}`)
	s.must(404, "POST", "/queues/nope/messages/batch", `{"messages":[{"data":{}}]}`)
	s.must(413, "POST", "/queues/t/messages/batch", strings.Repeat("x", maxBatchBody+1))
	checkDiff(t, "stored", 0, s.count("SELECT count(*) FROM queued.messages"))

	sixteen := strings.TrimSuffix(strings.Repeat(`{"data":{"x":"`+strings.Repeat("x", 1_000_000)+`"}},`, 16), ",")
	s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[`+sixteen+`]}`)
	s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[`+strings.TrimSuffix(many, ",")+`]}`)
	checkDiff(t, "stored", 1016, s.count("SELECT count(*) FROM queued.messages"))
}

func TestPublishStraightToAQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"message_filters":{"kind":["x"]}`)
	s.mustQueue("alone", `"delivery_delay_seconds":900`)
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	checkDiff(t, "response", `{"data":[{"id":"UUID","queue_id":"t","data":{"n":1},"attributes":null,"delivery_attempts":0,`+
		`"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}]}`,
		mask(s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1}}`))) // filters do not apply
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
	s.must(201, "POST", "/queues/alone/messages/batch", `{"messages":[{"data":{"n":2}},{"data":{"n":3},"delay_seconds":0}]}`)
	checkDiff(t, "received while the queue delays the other message", []int{3}, numbers(s.receive("alone", "")))
	s.must(404, "POST", "/queues/nope/messages", `{"data":{}}`)
}

func TestDelayOfAMessageReplacesThatOfTheQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"delivery_delay_seconds":900`)
	for delay, want := range map[string]int{`0`: 0, `7`: 7, `"900"`: 900, `3599`: 3599, `null`: 900} {
		m := s.messages(s.must(201, "POST", "/topics/t/messages", `{"data":{},"delay_seconds":`+delay+`}`))[0]
		n := s.count(`SELECT count(*) FROM queued.messages WHERE id = $1 AND scheduled_at = created_at + $2 * interval '1 s' AND scheduled_at = $3::timestamp`,
			m.ID, want, m.ScheduledAt)
		checkDiff(t, "delay "+delay, 1, n)
	}
	for _, delay := range []string{`-1`, `3600`, `"1.5"`, `"x"`, `{}`} {
		if got := s.must(422, "POST", "/topics/t/messages", `{"data":{},"delay_seconds":`+delay+`}`); !strings.Contains(got, `["body","delay_seconds"]`) {
			t.Errorf("delay %s = %s", delay, got)
		}
	}
}

// Each message would expire before it is due, so it would never be received.
func TestDelaysBeyondTheRetentionAreRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	const rest = `"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":600`
	mistake := func(loc string) string {
		return `{"detail":[{"loc":["body",` + loc + `],"msg":"`
	}
	const queueDelay = `"delivery_delay_seconds"`
	for _, delay := range []string{"600", `"600"`, "900"} {
		checkMistake := func(method, path, body string) {
			t.Helper()
			if got := s.must(422, method, path, body); !strings.HasPrefix(got, mistake(queueDelay)+"ensure this value is less than message_retention_seconds") {
				t.Errorf("%s %s %s = %s", method, path, body, got)
			}
		}
		checkMistake("POST", "/queues", `{"id":"q","delivery_delay_seconds":`+delay+`,`+rest+`}`)
		s.must(201, "POST", "/queues", `{"id":"q","delivery_delay_seconds":599,`+rest+`}`)
		checkMistake("PUT", "/queues/q", `{"delivery_delay_seconds":`+delay+`,`+rest+`}`)
		s.must(204, "DELETE", "/queues/q", "")
	}
	s.must(201, "POST", "/queues", `{"id":"short",`+rest+`,"message_filters":{"kind":["a"]}}`)
	s.mustQueue("long", `"topic_id":"t"`)
	for _, v := range []struct{ path, body, loc string }{
		{"/queues/short/messages", `{"data":{},"delay_seconds":600}`, `"delay_seconds"`},
		{"/topics/t/messages", `{"data":{},"attributes":{"kind":"a"},"delay_seconds":600}`, `"delay_seconds"`},
		{"/queues/short/messages/batch", `{"messages":[{"data":{}},{"data":{},"delay_seconds":900}]}`, `"messages",1,"delay_seconds"`},
		{"/topics/t/messages/batch", `{"messages":[{"data":{},"delay_seconds":900},{"data":{},"attributes":{"kind":"a"},"delay_seconds":900}]}`, `"messages",1,"delay_seconds"`},
	} {
		if got := s.must(422, "POST", v.path, v.body); !strings.HasPrefix(got, mistake(v.loc)+`the message would expire in queue \"short\" before it is due`) {
			t.Errorf("%s %s = %s", v.path, v.body, got)
		}
	}
	checkDiff(t, "stored", 0, s.count("SELECT count(*) FROM queued.messages"))
	s.must(201, "POST", "/queues/short/messages", `{"data":{},"delay_seconds":599}`)
	s.must(201, "POST", "/topics/t/messages", `{"data":{},"delay_seconds":900}`) // the filter of the queue "short" does not match
	checkDiff(t, "stored", 2, s.count("SELECT count(*) FROM queued.messages"))
}

// Matching a large batch with large filters costs time of its own request. In the
// batcher, where other requests wait, only the version of the queues is compared.
func TestMessagesAreMatchedOutsideTheBatcher(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"message_filters":{"kind":["a"]}`)
	session := newPinnedConn(s.engine.main.db, s.metrics)
	defer session.close()
	p := &publication{topicID: "t", messages: []draft{{data: []byte(`{}`), attributes: []byte(`{"kind":"a"}`)}}}
	turn := func(want int) {
		t.Helper()
		if err := s.engine.runPublications(session, []*publication{p}); err != nil || p.err != nil {
			t.Fatal(err, p.err)
		}
		checkDiff(t, "stored", want, len(p.stored))
		checkDiff(t, "messages", want, s.count("SELECT count(*) FROM queued.messages"))
	}
	turn(0) // not matched yet
	s.match("t", p)
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","message_filters":{"kind":["a","b"]},"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	turn(0) // matched with queues that have changed since
	s.match("t", p)
	s.mustQueue("another")
	turn(1) // another topic has changed
}

func TestFullBatcherIs503(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	free, began := make(chan struct{}), make(chan struct{}, batcherWorkers)
	defer close(free)
	s.engine.main.publications.close()
	s.engine.main.publications = newBatcher("publish", newPinnedConns(s.engine.main.db, s.metrics, batcherWorkers), s.metrics, 1, 1, func(*pinnedConn, []*publication) error {
		select {
		case began <- struct{}{}:
		default: // at the end
		}
		<-free
		return errUnavailable
	})
	publish := func() { s.engine.main.publications.do(context.Background(), &publication{}, 1, 1) }
	for range batcherWorkers {
		go publish()
		<-began
	}
	for range batcherCapacity {
		go publish()
	}
	eventually(t, "the batcher is full", func() bool { return len(s.engine.main.publications.waiting) == batcherCapacity })
	got := s.do("POST", "/topics/t/messages", `{"data":{}}`)
	if got.status != 503 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "too many requests") {
		t.Errorf("publish into a full batcher = %d %s, want 503 with Retry-After", got.status, got.body)
	}
}

func TestPublishesToATopicKnowThatAQueueHasBecomeFIFO(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.mustQueue("q.fifo", `"topic_id":"t"`)
	s.publish("t", 1)
	s.must(200, "PUT", "/queues/q.fifo", `{"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600,"ordered":true}`)
	s.publish("t", 2)
	checkDiff(t, "its groups are locked", true, s.engine.directory.of("t").queues[0].fifo)
}

func TestUnknownOutcomeIsNotRetriedAndIs503(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	s.publish("t", 0) // connects the batcher
	free := s.lockTable("queued.messages")
	defer free()
	result := make(chan reply, 1)
	go func() {
		v, _ := s.send(context.Background(), "POST", "/topics/t/messages", `{"data":{"n":1}}`)
		result <- v
	}()
	s.waitForLocks(1)
	s.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
	if v := <-result; v.status != 503 || v.header.Get("Retry-After") == "" {
		t.Errorf("publish on a lost connection = %d %s, want 503 with Retry-After", v.status, v.body)
	}
	free()
	s.publish("t", 2) // the batcher reconnects
	checkDiff(t, "received", []int{0, 2}, numbers(s.receive("t", "")))
}
