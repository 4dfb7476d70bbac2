package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// publishWithID publishes to a queue a message with a deduplication id, and returns the one
// copy in the response.
func (s *client) publishWithID(queueID, id string, n int) wireMessage {
	s.t.Helper()
	return s.messages(s.must(201, "POST", "/queues/"+queueID+"/messages", fmt.Sprintf(`{"data":{"n":%d},"deduplication_id":%q}`, n, id)))[0]
}

// endWindows ends the deduplication windows of all ids.
func (s *inspector) endWindows() {
	s.t.Helper()
	s.exec("UPDATE queued.deduplications SET expires_at = now()")
}

func (s *inspector) deduplicationIDs() int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM queued.deduplications")
}

// All four routes take ids and keys, and a duplicate looks like the first message.
func TestPublishStoresMessagesWithTheSameIDOnce(t *testing.T) {
	t.Parallel()
	const one, batch = `{"data":{"n":%d}%s}`, `{"messages":[{"data":{"n":%d}%s}]}`
	for what, v := range map[string]struct{ path, body, id, key string }{
		"to a topic":                {"/topics/t/messages", one, "i", ""},
		"to a queue":                {"/queues/t/messages", one, "i", ""},
		"in a batch":                {"/topics/t/messages/batch", batch, "i", ""},
		"in a batch, a queue":       {"/queues/t/messages/batch", batch, "i", ""},
		"with a key":                {"/topics/t/messages", one, "", "k"},
		"with a key, to a queue":    {"/queues/t/messages", one, "", "k"},
		"with a key, in a batch":    {"/topics/t/messages/batch", batch, "", "k"},
		"with a key, batch, queue":  {"/queues/t/messages/batch", batch, "", "k"},
		"the longest id":            {"/queues/t/messages", one, strings.Repeat("~", 128), ""},
		"the longest key":           {"/queues/t/messages", one, "", strings.Repeat("!", 255)},
		"an id that needs escaping": {"/queues/t/messages", one, `"{\,}'`, ""},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustTopic("t")
			id := v.id
			if id != "" {
				id = fmt.Sprintf(`,"deduplication_id":%q`, id)
			}
			first := s.messages(s.keyed(v.key).must(201, "POST", v.path, fmt.Sprintf(v.body, 1, id)))
			again := s.messages(s.keyed(v.key).must(201, "POST", v.path, fmt.Sprintf(v.body, 1, id)))
			if len(first) != 1 || first[0].Duplicate {
				t.Fatalf("the first publish returns %v", first)
			}
			first[0].Duplicate = true
			checkDiff(t, "the duplicate", first, again)
			checkDiff(t, "stored", map[int]string{1: "ready"}, s.states("t"))
			s.wantMetrics(`queued_messages_published_total{queue="t"} 1`, `queued_messages_duplicate_total{queue="t"} 1`)
		})
	}
}

func TestResponseToAFirstPublishDoesNotSayDuplicate(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const body = `{"data":{},"deduplication_id":"i"}`
	const message = `{"id":"UUID","queue_id":"q","data":{},"attributes":null,"delivery_attempts":0,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"`
	s.play([]step{
		{"POST", "/queues/q/messages", body, 201, `{"data":[` + message + `}]}`},
		{"POST", "/queues/q/messages", body, 201, `{"data":[` + message + `,"duplicate":true}]}`},
		{"GET", "/queues/q/messages", "", 200, strings.ReplaceAll(`{"data":[`+message+`}]}`, `"delivery_attempts":0`, `"delivery_attempts":1`)},
	})
}

// The data of a duplicate is not compared with that of the first message.
func TestDuplicateShowsTheFirstMessageWithItsOwnData(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	first, again := s.publishWithID("q", "i", 1), s.publishWithID("q", "i", 2)
	checkDiff(t, "id", first.ID, again.ID)
	checkDiff(t, "created_at", first.CreatedAt, again.CreatedAt)
	checkDiff(t, "data", []int{2}, numbers([]wireMessage{again}))
	checkDiff(t, "stored", map[int]string{1: "ready"}, s.states("q"))
}

func TestDuplicateIsFoundWhateverBecameOfTheFirstMessage(t *testing.T) {
	t.Parallel()
	for what, become := range map[string]func(s *testServer, m wireMessage){
		"in flight": func(s *testServer, m wireMessage) { s.receive("q", "") },
		"acked":     func(s *testServer, m wireMessage) { s.must(204, "PUT", "/messages/"+m.ID+"/ack", "") },
		"purged":    func(s *testServer, m wireMessage) { s.must(204, "PUT", "/queues/q/purge", "") },
		"dead": func(s *testServer, m wireMessage) {
			s.receive("q", "")
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
			checkDiff(s.t, "in the dead queue", 1, s.messagesIn("dead"))
		},
		"moved": func(s *testServer, m wireMessage) {
			s.must(204, "PUT", "/queues/q/redrive", `{"destination_queue_id":"dead"}`)
			checkDiff(s.t, "in the other queue", 1, s.messagesIn("dead"))
		},
		"expired": func(s *testServer, m wireMessage) { s.expire(); s.mustCleanUp() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
			first := s.publishWithID("q", "i", 1)
			become(s, first)
			before := s.count("SELECT count(*) FROM queued.messages")
			if again := s.publishWithID("q", "i", 1); again.ID != first.ID || !again.Duplicate {
				t.Errorf("published again: %v, want a duplicate of %s", again, first.ID)
			}
			checkDiff(t, "messages", before, s.count("SELECT count(*) FROM queued.messages"))
		})
	}
}

func TestMessageAfterTheWindowIsNew(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	first := s.publishWithID("q", "i", 1)
	s.endWindows()
	second := s.publishWithID("q", "i", 2)
	if second.ID == first.ID || second.Duplicate {
		t.Errorf("published after the window: %v, want a new message", second)
	}
	if again := s.publishWithID("q", "i", 3); again.ID != second.ID {
		t.Errorf("the window of the second is not its own: %v", again)
	}
	checkDiff(t, "stored", map[int]string{1: "ready", 2: "ready"}, s.states("q"))
}

func TestDeduplicationWindowIsThatOfTheQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	seconds := func(queueID string) int {
		t.Helper()
		s.publishWithID(queueID, "i", 1)
		return s.count("SELECT extract(epoch FROM d.expires_at - d.created_at)::integer FROM queued.deduplications d JOIN queued.queues q ON q.key = d.queue_key WHERE q.id = $1", queueID)
	}
	s.mustQueue("default")
	s.mustQueue("own", `"deduplication_window_seconds":86400`)
	checkDiff(t, "default", 300, seconds("default"))
	checkDiff(t, "own", 86400, seconds("own"))
	s.exec("UPDATE queued.settings SET deduplication_window_seconds = 60")
	s.mustQueue("later")
	checkDiff(t, "after a change of the flag", 60, seconds("later"))
}

func TestDeduplicationWindowIsShownOnlyIfSet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const settings = `"ack_deadline_seconds":60,"message_retention_seconds":3600`
	window := func() bool {
		return strings.Contains(s.must(200, "GET", "/queues/q", ""), `"deduplication_window_seconds":7`)
	}
	checkDiff(t, "shown before", false, window())
	s.must(200, "PUT", "/queues/q", `{`+settings+`,"deduplication_window_seconds":7}`)
	checkDiff(t, "shown after it was set", true, window())
	s.must(200, "PUT", "/queues/q", `{`+settings+`}`)
	checkDiff(t, "shown after an update without it", true, window())
	s.must(200, "PUT", "/queues/q", `{`+settings+`,"deduplication_window_seconds":null}`)
	checkDiff(t, "shown after it was reset", false, window())
	s.play([]step{
		{"PUT", "/queues/q", `{` + settings + `,"deduplication_window_seconds":0}`, 422, `{"detail":[{"loc":["body","deduplication_window_seconds"],"msg":"ensure this value is greater than or equal to 1","type":"value_error.number.not_ge","ctx":{"limit_value":1}}]}`},
		{"PUT", "/queues/q", `{` + settings + `,"deduplication_window_seconds":86401}`, 422, `{"detail":[{"loc":["body","deduplication_window_seconds"],"msg":"ensure this value is less than or equal to 86400","type":"value_error.number.not_le","ctx":{"limit_value":86400}}]}`},
	})
}

// Each queue of a topic counts for itself: one that has got the message keeps it, and
// another one gets it.
func TestTopicPublishesToEachQueueOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`)
	s.publishWithID("u", "i", 1)
	duplicates := func() (all string) {
		for _, m := range s.messages(s.must(201, "POST", "/topics/t/messages", `{"data":{"n":2},"deduplication_id":"i"}`)) {
			all += fmt.Sprint(m.QueueID, m.Duplicate, " ")
		}
		return all
	}
	checkDiff(t, "the first publish", "tfalse utrue ", duplicates())
	s.mustQueue("v", `"topic_id":"t"`)
	checkDiff(t, "the second publish", "ttrue utrue vfalse ", duplicates())
	for queueID, want := range map[string]map[int]string{"t": {2: "ready"}, "u": {1: "ready"}, "v": {2: "ready"}} {
		checkDiff(t, queueID, want, s.states(queueID))
	}
}

func TestDuplicatesInOneBatchAreFound(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	body := s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[
		{"data":{"n":1},"deduplication_id":"i"},{"data":{"n":2}},{"data":{"n":3},"deduplication_id":"i"},{"data":{"n":4},"deduplication_id":"j"},{"data":{"n":5}}]}`)
	all := s.messages(body)
	var duplicates []bool
	for _, m := range all {
		duplicates = append(duplicates, m.Duplicate)
	}
	checkDiff(t, "order", []int{1, 2, 3, 4, 5}, numbers(all))
	checkDiff(t, "duplicates", []bool{false, false, true, false, false}, duplicates)
	checkDiff(t, "the first", []string{all[0].ID, all[0].CreatedAt}, []string{all[2].ID, all[2].CreatedAt})
	checkDiff(t, "stored", []int{1, 2, 4, 5}, numbers(s.receive("t", "")))
}

// A key applies to the messages without an id of their own, by their positions.
func TestKeyOfABatchAppliesToMessagesWithoutAnID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const body = `{"messages":[{"data":{"n":1}},{"data":{"n":2},"deduplication_id":"i"},{"data":{"n":3}}]}`
	s.keyed("k").must(201, "POST", "/queues/q/messages/batch", body)
	for _, m := range s.messages(s.keyed("k").must(201, "POST", "/queues/q/messages/batch", body)) {
		if !m.Duplicate {
			t.Errorf("stored twice: %s", m.Data)
		}
	}
	if m := s.publishWithID("q", "i", 2); !m.Duplicate {
		t.Errorf("the own id did not count: %v", m)
	}
	for _, m := range s.messages(s.keyed("l").must(201, "POST", "/queues/q/messages/batch", body)) {
		if own := numbers([]wireMessage{m})[0] == 2; m.Duplicate != own {
			t.Errorf("with another key: duplicate = %v of %s", m.Duplicate, m.Data)
		}
	}
	checkDiff(t, "stored", 5, s.messagesIn("q"))
}

// Requests that share a statement, and those of another server, find each other's ids.
func TestConcurrentPublishesWithTheSameIDStoreOne(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "queued")
	servers := []*testServer{newTestServerOn(t, dsn), newTestServerOn(t, dsn)}
	s := servers[0]
	s.mustTopic("t")
	const each, ids = 20, 5
	replies := make(chan []wireMessage)
	for i := range each * ids {
		v := servers[i%2]
		path := []string{"/topics/t/messages", "/queues/t/messages"}[i/2%2]
		go func() {
			for { // a 503 says to repeat the request
				r, err := v.send(context.Background(), "POST", path, fmt.Sprintf(`{"data":{"n":%d},"deduplication_id":"%d"}`, i%ids, i%ids))
				if err == nil && r.status == 503 {
					continue
				}
				all, _ := decodeMessages(r.body)
				replies <- all
				return
			}
		}()
	}
	stored, known := 0, map[int]string{}
	for range each * ids {
		all := <-replies
		if len(all) != 1 {
			t.Fatalf("published %v, want one message", all)
		}
		n := numbers(all)[0]
		if id := known[n]; id != "" && id != all[0].ID {
			t.Errorf("message %d has the ids %s and %s", n, id, all[0].ID)
		}
		known[n] = all[0].ID
		if !all[0].Duplicate {
			stored++
		}
	}
	checkDiff(t, "responses without duplicate", ids, stored)
	checkDiff(t, "stored", ids, s.messagesIn("t"))
}

func TestDuplicatesAreFoundAfterARestart(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "queued")
	s := newTestServerOn(t, dsn)
	s.mustQueue("q")
	first := s.publishWithID("q", "i", 1)
	if again := newTestServerOn(t, dsn).publishWithID("q", "i", 1); again.ID != first.ID {
		t.Errorf("another server returns %s, want %s", again.ID, first.ID)
	}
}

// The publish without an id runs the statements that it runs without this feature.
func TestPublishWithoutAnIDTouchesNoIDs(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	free := s.lockTable("queued.deduplications")
	defer free()
	s.publish("t", 1)
	s.publishGroups("t", "a1")
	checkDiff(t, "stored", 2, s.messagesIn("t"))
}

// A transaction of an application that has published with an id, and does not commit,
// delays only the publishers with the same id.
func TestHeldIDHurtsOnlyRequestsWithTheSameID(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("q")
	s.publishWithID("q", "warm", 0) // connects
	tx := s.begin(`INSERT INTO queued.deduplications (home, queue_key, id, message_id, created_at, expires_at)
		SELECT home, key, 'held', gen_random_uuid(), now(), now() + interval '1 min' FROM queued.queues WHERE id = 'q'`)
	free := s.hold("INSERT")
	ended := make(chan struct{})
	go func() {
		s.publishWithID("q", "first", 1)
		close(ended)
	}()
	s.waitForHeld(1)
	// The next requests share a batch, unless a second worker takes some of them.
	held, others := make(chan reply, 10), make(chan reply, 10)
	for i := range 10 {
		go func() {
			held <- s.do("POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"n":%d},"deduplication_id":"held"}`, 100+i))
		}()
		go func() {
			others <- s.do("POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"n":%d},"deduplication_id":"%d"}`, 10+i, i))
		}()
	}
	free()
	<-ended
	for range 10 {
		if r := <-others; r.status != 201 {
			t.Errorf("another id: %d %s", r.status, r.body)
		}
		if r := <-held; r.status != 503 || r.body != `{"detail":"a publish with the same deduplication id is not committed yet; try again later"}` || r.header.Get("Retry-After") == "" {
			t.Errorf("the held id: %d %s", r.status, r.body)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if m := s.publishWithID("q", "held", 1); !m.Duplicate {
		t.Errorf("after the commit: %v, want a duplicate", m)
	}
	checkDiff(t, "stored", 12, s.messagesIn("q"))
}

// A lock on the table of the ids is not that of an id, and a batch waits a few times for it.
func TestLockedDeduplicationsHoldABatchUpForABoundedTime(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishWithID("q", "warm", 0) // connects
	free := s.lockTable("queued.deduplications")
	const many = 30
	replies := make(chan reply, many)
	for i := range many {
		go func() {
			replies <- s.do("POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"n":%d},"deduplication_id":"%[1]d"}`, i))
		}()
	}
	for range many {
		if r := <-replies; r.status != 503 || r.body != `{"detail":"database unavailable; try again later"}` {
			t.Errorf("a publish while the table is locked: %d %s", r.status, r.body)
		}
	}
	free()
	var tries int
	_, metric, _ := strings.Cut(s.must(200, "GET", "/metrics", ""), `queued_statement_duration_seconds_count{statement="rollback"} `)
	if fmt.Sscan(metric, &tries); tries == 0 || tries > many/2 {
		t.Errorf("%d publishes took %d tries", many, tries)
	}
	if n := len(s.engine.held.until); n > 0 {
		t.Errorf("%d ids count as held", n)
	}
	s.publishWithID("q", "0", 0)
}

// If the transaction is rolled back, the id is free.
func TestHeldIDIsFreeAfterARollback(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	tx := s.begin(`INSERT INTO queued.deduplications (home, queue_key, id, message_id, created_at, expires_at)
		SELECT home, key, 'held', gen_random_uuid(), now(), now() + interval '1 min' FROM queued.queues WHERE id = 'q'`)
	s.must(503, "POST", "/queues/q/messages", `{"data":{},"deduplication_id":"held"}`)
	tx.Rollback()
	if m := s.publishWithID("q", "held", 1); m.Duplicate {
		t.Errorf("after the rollback: %v, want a new message", m)
	}
	if n := len(s.engine.held.until); n > 0 {
		t.Errorf("%d ids still count as held", n)
	}
}

// The response is lost, and maybe the publish; the repeated request makes both good.
func TestRepeatedPublishAfterAnUnknownOutcomeStoresOne(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("q")
	s.publishWithID("q", "warm", 0)
	free := s.hold("INSERT")
	response := make(chan reply)
	go func() { response <- s.keyed("k").do("POST", "/queues/q/messages", `{"data":{"n":1}}`) }()
	s.waitForHeld(1)
	s.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
	checkDiff(t, "status", 503, (<-response).status)
	free()
	s.keyed("k").must(201, "POST", "/queues/q/messages", `{"data":{"n":1}}`)
	s.keyed("k").must(201, "POST", "/queues/q/messages", `{"data":{"n":1}}`)
	checkDiff(t, "stored", map[int]string{0: "ready", 1: "ready"}, s.states("q"))
}

func TestDeduplicatedMessagesKeepDelaysGroupsAndReceiversAwake(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	poll := s.poll(t.Context(), "q", "?wait_seconds=20")
	s.waiting("q", 1)
	s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":"g","deduplication_id":"i"}`)
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
	delayed := s.messages(s.must(201, "POST", "/queues/q/messages", `{"data":{"n":2},"delay_seconds":60,"deduplication_id":"j"}`))[0]
	again := s.messages(s.must(201, "POST", "/queues/q/messages", `{"data":{"n":2},"delay_seconds":60,"deduplication_id":"j"}`))[0]
	checkDiff(t, "due time", delayed.ScheduledAt, again.ScheduledAt)
	checkDiff(t, "states", map[int]string{1: "in_flight", 2: "delayed"}, s.states("q"))
}

func TestCleanupRemovesDeduplicationIDsPastTheirWindow(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.publishWithID("q", "kept", 1)
	s.exec(`INSERT INTO queued.deduplications (home, queue_key, id, message_id, created_at, expires_at)
		SELECT home, key, n::text, gen_random_uuid(), now(), now() - n / 2 * interval '1 s' FROM queued.queues, generate_series(1, $1) AS n WHERE id = 'q'`, 2*cleanupBatch+1)
	s.mustCleanUp()
	checkDiff(t, "ids", 1, s.deduplicationIDs())
	if m := s.publishWithID("q", "kept", 2); !m.Duplicate {
		t.Errorf("the id in its window was removed: %v", m)
	}
}

func TestNewQueueWithTheIDOfADeletedOneKnowsNoDuplicates(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	other := newTestServerOn(t, s.dsn) // its cache has the deleted queue
	other.publishWithID("t", "i", 1)
	s.must(204, "DELETE", "/queues/t", "")
	s.mustQueue("t", `"topic_id":"t"`)
	if m := other.publishWithID("t", "i", 2); m.Duplicate {
		t.Errorf("published to the new queue: %v, want a new message", m)
	}
	s.mustCleanUp()
	checkDiff(t, "ids", 1, s.deduplicationIDs())
	s.exec("UPDATE queued.deleted_queues SET deleted_at = now() - interval '2 h'")
	s.mustCleanUp()
	checkDiff(t, "deleted queues", 0, s.count("SELECT count(*) FROM queued.deleted_queues"))
}

func TestWrongDeduplicationIDsAreRefusedByName(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	const characters = "ensure this value has 1 to 128 printable ASCII characters without spaces"
	wrong := func(loc, msg, kind string) string {
		return fmt.Sprintf(`{"detail":[{"loc":[%s],"msg":%q,"type":%q}]}`, loc, msg, kind)
	}
	var steps []step
	for id, msg := range map[string]string{`""`: characters, `"a b"`: characters, `"a\n0"`: characters, `"ñ"`: characters, `"` + strings.Repeat("x", 129) + `"`: characters, `1`: "str type expected", `{}`: "str type expected"} {
		kind := "value_error.str"
		if msg != characters {
			kind = "type_error.str"
		}
		steps = append(steps,
			step{"POST", "/topics/t/messages", `{"data":{},"deduplication_id":` + id + `}`, 422, wrong(`"body","deduplication_id"`, msg, kind)},
			step{"POST", "/queues/t/messages/batch", `{"messages":[{"data":{}},{"data":{},"deduplication_id":` + id + `}]}`, 422, wrong(`"body","messages",1,"deduplication_id"`, msg, kind)},
		)
	}
	s.play(steps)
	for _, headers := range [][]string{{"Idempotency-Key: "}, {"Idempotency-Key: a b"}, {"Idempotency-Key: ñ"}, {"Idempotency-Key: " + strings.Repeat("x", 256)}, {"Idempotency-Key: a", "idempotency-key: a"}} {
		for _, path := range []string{"/topics/t/messages", "/queues/t/messages"} {
			if r := s.raw("POST", path, `{"data":{}}`, append(headers, "Host: localhost")...); r.StatusCode != 422 {
				t.Errorf("%q: %s, want 422", headers, r.Status)
			}
		}
	}
	checkDiff(t, "the mistake in a key", wrong(`"header","Idempotency-Key"`, "ensure there is one key with 1 to 255 printable ASCII characters without spaces", "value_error.str"),
		s.keyed("a b").must(422, "POST", "/queues/t/messages", `{"data":{}}`))
	checkDiff(t, "stored", 0, s.messagesIn("t"))
	s.play([]step{{"POST", "/topics/t/messages", `{"data":{},"deduplication_id":null}`, 201, `{"data":[{"id":"UUID","queue_id":"t","data":{},"attributes":null,"delivery_attempts":0,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}]}`}})
	checkDiff(t, "ids", 0, s.deduplicationIDs())
}

// The step of a pipeline repeats its publish after a 503: the response is that of the first.
func TestRepeatedPublishThatAcksReturnsTheFirst(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct{ path, body string }{
		"to a topic":  {"/topics/out/messages", `{"data":{"n":7},"ack":%s}`},
		"in a batch":  {"/queues/out/messages/batch", `{"messages":[{"data":{"n":7}}],"ack":%s}`},
		"to no queue": {"/topics/empty/messages", `{"data":{"n":7},"ack":%s}`},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("in")
			s.mustTopic("out")
			s.must(201, "POST", "/topics", `{"id":"empty"}`)
			s.must(201, "POST", "/queues/in/messages", `{"data":{"n":1}}`)
			s.must(201, "POST", "/queues/in/messages", `{"data":{"n":2}}`)
			in := s.receive("in", "")
			body := fmt.Sprintf(v.body, fmt.Sprintf(`[%q,{"id":%q,"scheduled_at":%q}]`, in[0].ID, in[1].ID, in[1].ScheduledAt))
			first := s.messages(s.keyed("k").must(201, "POST", v.path, body))
			checkDiff(t, "input", 0, s.messagesIn("in"))
			s.mustQueue("new", `"topic_id":"out"`) // gets no copy of a message that was published before
			for i := range first {
				first[i].Duplicate = true
			}
			for range 2 {
				checkDiff(t, "repeated", first, s.messages(s.keyed("k").must(201, "POST", v.path, body)))
			}
			s.must(409, "POST", v.path, body)
			if what != "to no queue" {
				s.keyed("other").must(409, "POST", v.path, body)
				s.endWindows()
				s.keyed("k").must(409, "POST", v.path, body)
			}
			checkDiff(t, "output", len(first), s.count("SELECT count(*) FROM queued.messages"))
		})
	}
}

// A duplicate does not ack for another worker: only if the first publish has acked, or may
// have, its repetition does nothing.
func TestDuplicatePublishAcksOnlyWhatItMay(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct {
		before func(s *testServer, in wireMessage) // after the output was published, before its duplicate acks
		status int
		left   int // in "in"
	}{
		"in its lease":      {func(s *testServer, in wireMessage) {}, 201, 0},
		"in another lease":  {func(s *testServer, in wireMessage) { s.endLeases(); s.receive("in", "") }, 409, 1},
		"not in flight":     {func(s *testServer, in wireMessage) { s.must(204, "PUT", "/messages/"+in.ID+"/nack", "") }, 409, 1},
		"acked":             {func(s *testServer, in wireMessage) { s.must(204, "PUT", "/messages/"+in.ID+"/ack", "") }, 201, 0},
		"one of two is not": {func(s *testServer, in wireMessage) { s.must(201, "POST", "/queues/in/messages", `{"data":{"n":2}}`) }, 409, 2},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("in")
			s.mustQueue("out")
			s.must(201, "POST", "/queues/in/messages", `{"data":{"n":1}}`)
			in := s.receive("in", "")[0]
			s.publishWithID("out", "i", 7)
			v.before(s, in)
			acks := fmt.Sprintf(`{"id":%q,"scheduled_at":%q}`, in.ID, in.ScheduledAt)
			if what == "one of two is not" {
				acks += fmt.Sprintf(",%q", newID())
			}
			s.must(v.status, "POST", "/queues/out/messages", `{"data":{"n":7},"deduplication_id":"i","ack":[`+acks+`]}`)
			checkDiff(t, "output", 1, s.messagesIn("out"))
			checkDiff(t, "input", v.left, s.messagesIn("in"))
		})
	}
}

// The repeated request may share a batch with the first one, whose client has given up.
func TestRepeatedPublishThatAcksMayShareABatchWithTheFirst(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("in")
	s.mustQueue("out")
	s.publishWithID("out", "warm", 0)
	s.must(201, "POST", "/queues/in/messages", `{"data":{"n":1}}`)
	in := s.receive("in", "")[0]
	free := s.hold("INSERT")
	ended := make(chan struct{})
	go func() {
		s.publishWithID("out", "before", 1)
		close(ended)
	}()
	s.waitForHeld(1)
	replies := make(chan reply, 4)
	for range 4 {
		go func() {
			replies <- s.keyed("k").do("POST", "/queues/out/messages", fmt.Sprintf(`{"data":{"n":7},"ack":[%q]}`, in.ID))
		}()
	}
	eventually(t, "all wait for the next batch, or a second worker runs it", func() bool {
		return len(s.engine.main.deduplicated.waiting) == 4 || s.count("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()") == 2
	})
	free()
	<-ended
	fresh := 0
	for range 4 {
		r := <-replies
		if r.status != 201 {
			t.Fatalf("repeated publish = %d %s", r.status, r.body)
		}
		if !s.messages(r.body)[0].Duplicate {
			fresh++
		}
	}
	checkDiff(t, "responses without duplicate", 1, fresh)
	checkDiff(t, "output", 3, s.messagesIn("out"))
	checkDiff(t, "input", 0, s.messagesIn("in"))
}

func TestKeyDoesNotAffectOtherRoutes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for range 2 {
		if r := s.keyed("k").do("POST", "/in/q", "x"); r.status >= http.StatusBadRequest {
			t.Fatalf("micro-queue's publish = %d %s", r.status, r.body)
		}
	}
	checkDiff(t, "stored", 2, s.messagesIn("q"))
}
