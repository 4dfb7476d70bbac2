package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// mustSQSQueue creates a queue as SQS's API does, with settings that the native API would
// not accept.
func (s *testServer) mustSQSQueue(id string) queue {
	s.t.Helper()
	q, err := s.store.createQueue(context.Background(), id, queueSettings{
		AckDeadlineSeconds: 0, MessageRetentionSeconds: 60, DeliveryDelaySeconds: new(900),
		DeadQueueID: new("dead"), MessageMaxDeliveries: new(1000), SQS: sqsSettings{Attributes: map[string]string{"wait": "5"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return q
}

// An update by the native API keeps what only SQS's API has, and values outside of its own
// bounds if they are unchanged.
func TestNativeUpdateKeepsSettingsOfSQS(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.limits.messageRetention.min, s.server.limits.maxDeliveries.max = 600, 100
	s.mustQueue("dead")
	s.mustSQSQueue("q")
	const settings = `"ack_deadline_seconds":0,"message_retention_seconds":60,"message_filters":null,"message_max_deliveries":1000,"delivery_delay_seconds":900`
	shown := s.must(200, "GET", "/queues/q", "")
	if !strings.Contains(shown, settings) || strings.Contains(shown, "wait") || strings.Contains(shown, "sqs") {
		t.Errorf("GET = %s, want %s and nothing of SQS", shown, settings)
	}
	const dead = `"dead_queue_id":"dead",`
	body := `{` + dead + settings + `}`
	s.must(200, "PUT", "/queues/q", body)
	s.must(200, "PUT", "/queues/q", strings.Replace(body, `"ack_deadline_seconds":0`, `"ack_deadline_seconds":30`, 1))
	s.must(422, "PUT", "/queues/q", body)
	for _, change := range []string{`:60,"message_filters"|:61,"message_filters"`, `:1000|:999`, `:900|:901`, `"ack_deadline_seconds":30|"ack_deadline_seconds":0`} {
		from, to, _ := strings.Cut(change, "|")
		s.must(422, "PUT", "/queues/q", strings.Replace(strings.Replace(body, `seconds":0`, `seconds":30`, 1), from, to, 1))
	}
	s.must(422, "PUT", "/queues/dead", body)
	s.must(422, "PUT", "/queues/none", body)
	q, err := s.store.queue(context.Background(), "q")
	checkDiff(t, "kept", map[string]string{"wait": "5"}, q.SQS.Attributes)
	checkDiff(t, "error", nil, err)
}

// A change by SQS's API holds at all servers at once: it makes a new version of the settings,
// which publishes compare.
func TestSQSChangesMakeANewVersionOfTheSettings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"MaximumMessageSize":"2048"`)
	s.mustSQS("TagQueue", `{"QueueUrl":"q","Tags":{"a":"b"}}`, nil)
	for _, change := range [][2]string{
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"MaximumMessageSize":"1024"}}`},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"VisibilityTimeout":"7"}}`},
		{"AddPermission", `{"QueueUrl":"q","Label":"l","AWSAccountIds":["1"],"Actions":["*"]}`},
		{"RemovePermission", `{"QueueUrl":"q","Label":"l"}`},
		{"TagQueue", `{"QueueUrl":"q","Tags":{"a":"c"}}`},
		{"UntagQueue", `{"QueueUrl":"q","TagKeys":["a"]}`},
	} {
		before := s.count("SELECT version FROM queued.settings")
		s.mustSQS(change[0], change[1], nil)
		if s.count("SELECT version FROM queued.settings") <= before {
			t.Errorf("%s %s keeps the version", change[0], change[1])
		}
		before = s.count("SELECT version FROM queued.settings")
		if change[0] == "SetQueueAttributes" { // nothing changes
			s.mustSQS(change[0], change[1], nil)
			checkDiff(t, "version after the same change", before, s.count("SELECT version FROM queued.settings"))
		}
	}
}

func TestChangeQueueChangesAllOrNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	before := s.mustSQSQueue("q")
	ctx := context.Background()
	errNo := errors.New("no")
	state := s.state()
	_, err := s.store.changeQueue(ctx, "q", func(q queue) (queueSettings, error) {
		q.SQS = sqsSettings{}
		return q.queueSettings, errNo
	})
	checkDiff(t, "the error of the change", true, errors.Is(err, errNo) && !errors.Is(err, errUnavailable))
	checkDiff(t, "unchanged", state, s.state())
	if _, err := s.store.changeQueue(ctx, "none", nil); !errors.Is(err, errQueueNotFound) {
		t.Errorf("changeQueue of an unknown queue = %v, want errQueueNotFound", err)
	}
	after, err := s.store.changeQueue(ctx, "q", func(q queue) (queueSettings, error) {
		checkDiff(t, "as it is", map[string]string{"wait": "5"}, q.SQS.Attributes)
		q.SQS, q.AckDeadlineSeconds = sqsSettings{Attributes: map[string]string{"wait": "6"}}, 7
		return q.queueSettings, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "changed", []any{map[string]string{"wait": "6"}, 7, before.key}, []any{after.SQS.Attributes, after.AckDeadlineSeconds, after.key})
	if now, err := s.store.queue(ctx, "q"); err != nil || now.version <= before.version {
		t.Errorf("the version is %d after %d, %v", now.version, before.version, err)
	}
}

// A server sees a change of its own at once, and that of another server after a moment.
func TestRecentQueueIsRecent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustQueue("dead")
	s.mustSQSQueue("q")
	ctx := context.Background()
	deadline := func(server *testServer) int {
		t.Helper()
		q, err := server.store.recentQueue(ctx, "q")
		if err != nil {
			t.Fatal(err)
		}
		return q.AckDeadlineSeconds
	}
	set := func(seconds int) {
		t.Helper()
		_, err := s.store.changeQueue(ctx, "q", func(q queue) (queueSettings, error) {
			q.AckDeadlineSeconds = seconds
			return q.queueSettings, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := range 3 {
		set(n)
		checkDiff(t, "at the same server", n, deadline(s))
	}
	deadline(other)
	set(10)
	eventually(t, "the other server sees the change", func() bool { return deadline(other) == 10 })
	before := s.statements("queue")
	for range 100 {
		deadline(s)
	}
	if n := s.statements("queue") - before; n > 50 {
		t.Errorf("100 lookups took %d statements", n)
	}
	s.must(204, "DELETE", "/queues/q", "")
	if _, err := s.store.recentQueue(ctx, "q"); !errors.Is(err, errQueueNotFound) {
		t.Errorf("recentQueue of a deleted queue = %v, want errQueueNotFound", err)
	}
	recreated := s.mustSQSQueue("q")
	now, err := s.store.recentQueue(ctx, "q")
	checkDiff(t, "created again", []any{recreated.key, nil}, []any{now.key, err})
}

// A publish whose request relied on settings that have changed since stores nothing,
// whatever the connection has cached.
func TestPublishNoticesThatSettingsHaveChanged(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "i"} {
		s := newTestServer(t)
		s.mustQueue("q")
		s.mustQueue("r")
		ctx := context.Background()
		publish := func(version int64) error {
			_, err := s.engine.publish(ctx, &publication{queueID: "q", version: version, messages: []draft{{data: []byte(`{}`), deduplicationID: id}}})
			return err
		}
		for range 3 {
			q, err := s.store.queue(ctx, "q")
			if err != nil {
				t.Fatal(err)
			}
			s.exec("DELETE FROM queued.deduplications")
			s.must(200, "PUT", "/queues/r", fmt.Sprintf(`{"ack_deadline_seconds":%d,"message_retention_seconds":3600}`, 1+s.messagesIn("q")))
			now, err := s.store.queue(ctx, "q")
			if err != nil {
				t.Fatal(err)
			}
			checkDiff(t, "with the version that holds, which no connection has cached", nil, publish(now.version))
			stored := s.messagesIn("q")
			if err := publish(q.version); !errors.Is(err, errSettingsChanged) {
				t.Errorf("with an older version = %v, want errSettingsChanged", err)
			}
			checkDiff(t, "stored", stored, s.messagesIn("q"))
		}
	}
}

// A queue that another server has deleted does not exist for a publish, although this server
// has read it a moment ago.
func TestSQSSendsNothingToAQueueThatAnotherServerDeleted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	const missing = "AWS.SimpleQueueService.NonExistentQueue"
	for _, v := range []struct{ queue, attributes, message string }{
		{"q", ``, `"MessageBody":"a"`},
		{"q.fifo", `"FifoQueue":"true"`, `"MessageBody":"a","MessageGroupId":"g","MessageDeduplicationId":"d"`},
	} {
		for _, cached := range []bool{false, true} { // whether a connection knows the queue
			s.createSQS(v.queue, v.attributes)
			s.createSQS("changed")
			if cached {
				s.mustSQS("SendMessage", `{"QueueUrl":"`+v.queue+`",`+v.message+`}`, nil)
			} else if _, err := s.store.recentQueue(context.Background(), v.queue); err != nil {
				t.Fatal(err)
			}
			s.store.recent.of(v.queue).began = time.Now().Add(time.Hour)
			other.mustSQS("DeleteQueue", `{"QueueUrl":"`+v.queue+`"}`, nil)
			got := s.sqsJSONProblem(s.sqs("SendMessage", `{"QueueUrl":"`+v.queue+`",`+v.message+`}`))
			checkDiff(t, fmt.Sprintf("%s, known %v", v.queue, cached), sqsProblemReply{400, "com.amazonaws.sqs#QueueDoesNotExist", missing, "The specified queue does not exist."}, got)
			got = s.sqsJSONProblem(s.sqs("SendMessageBatch", `{"QueueUrl":"`+v.queue+`","Entries":[{"Id":"x",`+v.message+`}]}`))
			checkDiff(t, fmt.Sprintf("%s, known %v, in a batch", v.queue, cached), missing, got.Code)
			s.mustSQS("DeleteQueue", `{"QueueUrl":"changed"}`, nil)
		}
	}
}

// SQS's FIFO queues deduplicate with the ids of native publishes, for their own window. A
// duplicate has the id and the seq of the first message.
func TestDuplicateHasTheSeqOfTheFirstMessage(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`, `"deduplication_window_seconds":300`)
	ctx := context.Background()
	publish := func(ids ...string) []message {
		t.Helper()
		p := &publication{queueID: "q"}
		for _, id := range ids {
			p.messages = append(p.messages, draft{data: []byte(`{}`), group: "g", deduplicationID: id, sqs: []byte(`{}`)})
		}
		stored, err := s.engine.publish(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	first := publish("a", "b", "a")
	a, b := first[0], first[1]
	if a.seq <= 0 || b.seq <= a.seq || a.duplicate || b.duplicate {
		t.Fatalf("the first publish returns %v", first)
	}
	want := func(what string, m message, id string, seq int64) {
		t.Helper()
		checkDiff(t, what, []any{true, id, seq}, []any{m.duplicate, m.ID, m.seq})
	}
	want("twice in a request", first[2], a.ID, a.seq)
	again := publish("b", "c", "a")
	want("again", again[0], b.ID, b.seq)
	want("again", again[2], a.ID, a.seq)
	checkDiff(t, "another one", false, again[1].duplicate)
	s.must(204, "PUT", "/messages/"+a.ID+"/ack", "")
	want("after an ack", publish("a")[0], a.ID, 0)
	checkDiff(t, "window", 4, s.count("SELECT count(*) + 1 FROM queued.deduplications WHERE expires_at - created_at = interval '5 min'"))

	if inG := deduplicationInGroup("g", "a"); inG == deduplicationInGroup("h", "a") || publish(inG)[0].duplicate {
		t.Error("an id of a group is a duplicate of that of the queue or of another group")
	}

	// A purge of SQS's API ends the windows of all ids that were sent before.
	s.mustQueue("other")
	s.publishWithID("other", "a", 1)
	for n := range workBatch {
		s.exec("INSERT INTO queued.deduplications (home, queue_key, id, message_id, created_at, expires_at) SELECT home, key, 'id' || $1, gen_random_uuid(), now(), now() + interval '1 min' FROM queued.queues WHERE id = 'q'", n)
	}
	if err := s.store.forgetDeduplications(ctx, "q"); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "ids of the other queue", 1, s.deduplicationIDs())
	checkDiff(t, "after that", false, publish("a")[0].duplicate)
	if err := s.store.forgetDeduplications(ctx, "none"); !errors.Is(err, errQueueNotFound) {
		t.Errorf("forgetDeduplications of an unknown queue = %v, want errQueueNotFound", err)
	}
}

func TestPagesOfQueueIDs(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"a", "b", "B", "ba", "b_c", "b.fifo", "c"} {
		s.mustQueue(id)
	}
	for _, id := range []string{"s2", "s1"} {
		s.mustQueue(id, `"dead_queue_id":"b"`, `"message_max_deliveries":1`)
	}
	all := &names{all: true}
	page := func(visible *names, p queuePage) string {
		t.Helper()
		if p.limit == 0 {
			p.limit = 100
		}
		ids, err := s.store.pageOfIDs(context.Background(), visible, p)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(ids, " ")
	}
	checkDiff(t, "all", "B a b b.fifo b_c ba c s1 s2", page(all, queuePage{}))
	checkDiff(t, "by prefix", "b b.fifo b_c ba", page(all, queuePage{prefix: "b"}))
	checkDiff(t, "a part", "b b.fifo", page(all, queuePage{prefix: "b", limit: 2}))
	checkDiff(t, "the next part", "b_c ba", page(all, queuePage{prefix: "b", limit: 2, after: "b.fifo"}))
	checkDiff(t, "no wildcard", "b_c", page(all, queuePage{prefix: "b_"}))
	checkDiff(t, "by dead queue", "s1 s2", page(all, queuePage{deadQueueID: "b"}))
	checkDiff(t, "the rest", "s2", page(all, queuePage{deadQueueID: "b", after: "s1"}))
	checkDiff(t, "visible", "b s1", page(&names{exact: []string{"b"}, prefixes: []string{"s1"}}, queuePage{}))
}

// Counts are exact up to a number of messages, and then those of the last count of all
// queues.
func TestQueueCounts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("empty")
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	counts := func(queueID string) messageCounts {
		t.Helper()
		q, err := s.store.queue(context.Background(), queueID)
		if err == nil {
			var v messageCounts
			if v, err = s.server.queueCounts(context.Background(), q); err == nil {
				return v
			}
		}
		t.Fatal(err)
		return messageCounts{}
	}
	checkDiff(t, "empty", messageCounts{}, counts("empty"))
	s.fill("q", 5)
	ids := make([]string, 0, 2)
	for _, m := range s.receive("q", "?limit=2") {
		ids = append(ids, m.ID)
	}
	s.makeDue(ids[0])
	s.must(201, "POST", "/queues/q/messages", `{"data":{},"delay_seconds":100}`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{},"group":"g"}`)
	want := messageCounts{Ready: 4, Delayed: 1, InFlight: 1, Exhausted: 1}
	checkDiff(t, "few messages", want, counts("q"))
	s.server.depth.mu.Lock()
	s.server.depth.counted, s.server.depth.notBefore = []queueDepth{{queueID: "q", messageCounts: messageCounts{Ready: 7}}}, time.Now().Add(time.Hour)
	s.server.depth.mu.Unlock()
	s.fill("q", countedExactly)
	if v := counts("q"); v.total() <= countedExactly {
		t.Errorf("with a last count of 7: %+v, want more than %d in all", v, countedExactly)
	}
	s.server.depth.mu.Lock()
	s.server.depth.notBefore = time.Time{}
	s.server.depth.mu.Unlock()
	want.Ready += countedExactly
	eventually(t, "the count of all queues", func() bool { return counts("q") == want })
	few, err := s.store.counts(context.Background(), s.key("q"), 10)
	checkDiff(t, "of a limited count", []any{int64(10), nil}, []any{few.total(), err})
}

// key returns the key of a queue.
func (s *testServer) key(queueID string) int64 {
	s.t.Helper()
	q, err := s.store.queue(context.Background(), queueID)
	if err != nil {
		s.t.Fatal(err)
	}
	return q.key
}
