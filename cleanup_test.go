package main

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestCleanupDeletesExpiredWhereverTheyAre(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2, 3, 4)
	s.expire(ids[0], ids[2])
	s.mustCleanUp()
	checkDiff(t, "left", []int{2, 4}, numbers(s.receive("t", "")))
	checkDiff(t, "rows", 2, s.count("SELECT count(*) FROM queued.messages"))
}

func TestCleanupMovesExhaustedToTheDeadQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead", `"delivery_delay_seconds":900`)
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	ids := s.publish("t", 1, 2)
	s.changeMessages("delivery_attempts = 1", ids[0])
	s.receive("t", "")

	s.mustCleanUp()
	checkDiff(t, "moved while in flight", 0, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0"))

	s.makeDue()
	s.mustCleanUp()
	n := s.count(`SELECT count(*) FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key
		WHERE q.id = 'dead' AND m.id = $1 AND m.delivery_attempts = 0 AND NOT m.in_flight AND NOT m.last_delivery
		AND m.scheduled_at = m.updated_at + interval '900 s' AND m.expired_at = m.updated_at + interval '3600 s'
		AND m.created_at < m.updated_at AND m.data::text = '{"n":1}'`, ids[0])
	if n != 1 {
		t.Error("the exhausted message did not move to the dead queue with its settings")
	}
	checkDiff(t, "still receivable", []int{2}, numbers(s.receive("t", "")))
}

func TestCleanupFindsExhaustedWithoutTheWalk(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.publish("t", 1)
	s.receive("t", "")
	s.makeDue()
	c := &cleanup{store: s.store, announce: s.engine.announce}
	if err := c.moveExhausted(context.Background(), s.homeOf("t")); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "dead queue", []int{1}, numbers(s.receive("dead", "")))
}

func TestCleanupMovesWhatAChangeOfSettingsExhausted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t")
	s.publish("t", 1)
	s.receive("t", "")
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","dead_queue_id":"dead","message_max_deliveries":1,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	s.mustCleanUp()
	checkDiff(t, "moved while in flight", []int{}, numbers(s.receive("dead", "")))
	s.makeDue()
	checkDiff(t, "received though exhausted", []int{}, numbers(s.receive("t", "")))
	s.mustCleanUp()
	checkDiff(t, "dead queue", []int{1}, numbers(s.receive("dead", "")))
}

func TestRaisedLimitRevivesExhausted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.publish("t", 1)
	s.receive("t", "")
	s.makeDue()
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","dead_queue_id":"dead","message_max_deliveries":2,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
	s.mustCleanUp()
	checkDiff(t, "dead queue", []int{}, numbers(s.receive("dead", "")))
}

func TestCleanupRemovesMessagesOfDeletedQueues(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustTopic("stays")
	s.publish("t", 1, 2, 3)
	s.publish("stays", 4)
	s.must(204, "DELETE", "/queues/t", "")
	s.mustCleanUp()
	checkDiff(t, "rows", 1, s.count("SELECT count(*) FROM queued.messages"))
	checkDiff(t, "its key is remembered for late publishes", 1, s.count("SELECT count(*) FROM queued.deleted_queues"))
	s.exec("UPDATE queued.deleted_queues SET deleted_at = now() - interval '2 h'")
	s.mustCleanUp()
	checkDiff(t, "deleted queues", 0, s.count("SELECT count(*) FROM queued.deleted_queues"))
}

// A search for the messages of a deleted queue may walk over many deleted rows, so a pass
// that found none is not repeated while late publishes may store some.
func TestCleanupSearchesAnEmptyDeletedQueueAgainAfterItsGrace(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(204, "DELETE", "/queues/q", "")
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce}
	for _, v := range []struct {
		what         string
		change       string
		messages     int
		keysAreThere int
	}{
		{"an empty queue", "", 0, 1},
		{"a late message", `INSERT INTO queued.messages (home, id, queue_key, data, bytes, created_at, updated_at, expired_at, scheduled_at)
			SELECT home, gen_random_uuid(), key, '{}', 2, now(), now(), now() + interval '1 h', now() FROM queued.deleted_queues`, 1, 1},
		{"the end of the grace", "UPDATE queued.deleted_queues SET deleted_at = now() - interval '61 min'", 0, 0},
	} {
		if v.change != "" {
			s.exec(v.change)
		}
		if err := c.once(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkDiff(t, v.what+": messages and keys", []int{v.messages, v.keysAreThere},
			[]int{s.count("SELECT count(*) FROM queued.messages"), s.count("SELECT count(*) FROM queued.deleted_queues")})
	}
}

func TestCleanupWorksInBatchesAndServersShareIt(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	const many = 3*cleanupBatch + 1
	insert := func(columns, values string) {
		s.exec(fmt.Sprintf(`INSERT INTO queued.messages (home, id, queue_key, data, bytes, created_at, updated_at, %s)
			SELECT home, gen_random_uuid(), key, '{}', 2, now(), now(), %s FROM queued.queues, generate_series(1, %d) WHERE id = 'q'`, columns, values, many))
	}
	insert("expired_at, scheduled_at", "now() - interval '1 s', now()")
	insert("expired_at, scheduled_at, last_delivery, in_flight, delivery_attempts", "now() + interval '1 h', now(), true, true, 1")
	insert("expired_at, scheduled_at", "now() + interval '1 h', now()")
	other := newTestServerOn(t, s.dsn)
	var wg sync.WaitGroup
	for _, v := range []*testServer{s, other, s, other} {
		wg.Go(func() { v.mustCleanUp() })
	}
	wg.Wait()
	s.mustCleanUp() // one server may have left a batch to the other, which had just finished
	checkDiff(t, "left", many, s.messagesIn("q"))
	checkDiff(t, "moved", many, s.messagesIn("dead"))
	checkDiff(t, "ids", 2*many, s.count("SELECT count(DISTINCT id) FROM queued.messages"))
}

func TestCleanupSearchesFromTheFrontOfTheLastPass(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.fill("q", 10)
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler)}
	pass := func(left int) {
		t.Helper()
		if err := c.removeExpired(context.Background(), s.homeOf("q")); err != nil {
			t.Fatal(err)
		}
		checkDiff(t, "left", left, s.messagesIn("q"))
	}
	pass(10)
	key := frontKey{int64(s.count("SELECT key FROM queued.queues")), true}
	front := c.fronts[homeOf(key.queueKey)][key]
	if front.IsZero() {
		t.Fatal("the front is not remembered")
	}
	s.expire()
	pass(0)
	s.fill("q", 3)
	s.exec("UPDATE queued.messages SET expired_at = now(), " + shift("scheduled_at", "-1 h") + " WHERE seq % 3 = 0")
	pass(3) // only the walk finds messages behind the front
	s.expire()
	pass(1)
	if !c.fronts[homeOf(key.queueKey)][key].After(front) {
		t.Errorf("the front stays at %v", front)
	}
}

// A claim skips rows that the cleanup has locked, and a short poll would then return
// nothing although a message is due.
func TestCleanupOfExpiredMessagesHidesNoOthers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	ids := s.publish("t", 1, 2, 3, 4)
	s.expire(ids[0], ids[2])
	tx, err := s.store.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	key := s.count("SELECT key FROM queued.queues")
	_, n, err := scanBatch(tx.QueryRow(removeExpiredSQL, 0, key, cleanupBatch, true, "-infinity", 0))
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "removed", 2, n)
	checkDiff(t, "received meanwhile", []int{2, 4}, numbers(s.receive("t", "")))
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "left", 2, s.messagesIn("t"))
}

func TestCleanupWalkGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.exec(`INSERT INTO queued.messages (home, id, queue_key, data, bytes, created_at, updated_at, scheduled_at, expired_at)
		SELECT home, gen_random_uuid(), key, '{}', 2, now(), now(), now(), now() + CASE WHEN n % 2 = 0 THEN interval '1 h' ELSE interval '0' END
		FROM queued.queues, generate_series(1, 5000) n`)
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler)}
	last := int64(s.count("SELECT max((ctid::text::point)[0])::integer FROM queued.messages"))
	c.round = round{home: s.homeOf("q"), page: last, began: time.Now()}
	if err := c.walk(context.Background()); err != nil {
		t.Fatal(err)
	}
	left := s.count("SELECT count(*) FROM queued.messages")
	if left <= 2500 || left == 5000 || !c.round.ended {
		t.Errorf("after the last page %d rows are left, and the walk has ended: %t", left, c.round.ended)
	}
	c.rests.table = rest{}
	c.round.limits++ // as if the limit of a queue had changed
	if err := c.walk(context.Background()); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "left after the walk has started over", 2500, s.count("SELECT count(*) FROM queued.messages"))
}

// A walk reads the whole table, so the cleanup starts one only when it may find
// something.
func TestCleanupWalkRestsWhenThereIsNothingToFind(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t")
	s.publish("t", 1, 2, 3)
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce}
	rounds, homes := 0, s.count("SELECT count(DISTINCT home) FROM queued.queues")
	pass := func(what string, walks bool) {
		t.Helper()
		if err := c.walk(context.Background()); err != nil {
			t.Fatal(err)
		}
		if c.rests.table.until.IsZero() {
			t.Error(what + ": the walk has no bound")
		}
		c.rests.table = rest{}
		if walks {
			rounds++
		}
		if want := fmt.Sprintf("\nqueued_statement_duration_seconds_count{statement=\"scan_expiry\"} %d\n", rounds*homes); !strings.Contains(s.must(200, "GET", "/metrics", ""), want) {
			t.Errorf("%s: want %d walks in all", what, rounds)
		}
	}
	// ago moves the last round into the past, by a minute more than d.
	ago := func(d time.Duration) {
		c.round.began = time.Now().Add(-d - time.Minute)
		c.round.expiry = c.round.began.Add(time.Hour)
	}
	pass("at the start", true)
	pass("right after it", false)
	ago(walkRest)
	pass("before anything can expire", false)
	ago(time.Hour)
	pass("when messages that it has seen expire", true)
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":1200}`)
	ago(20 * time.Minute)
	pass("when messages that were published since may expire", true)
	c.round.sees(0)
	pass("sooner than walkRest after the last", false)
	s.changeMessages("delivery_attempts = 1")
	pass("without other limits", false)
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","dead_queue_id":"dead","message_max_deliveries":1,"ack_deadline_seconds":60,"message_retention_seconds":1200}`)
	pass("when the limits have changed", true)
	checkDiff(t, "exhausted", 3, s.count("SELECT count(*) FROM queued.messages WHERE last_delivery"))
	pass("after that", false)
	c.rests.table.until = time.Now().Add(time.Hour) // as after a walk that took 3 minutes
	c.round = round{}
	pass("within its rest", false)
}

// If one task of the cleanup fails, here because the disk is full, the other tasks
// still run. Some of them free space.
func TestCleanupGoesOnAfterAnError(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.mustQueue("gone")
	s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
	s.must(201, "POST", "/queues/gone/messages", `{"data":{}}`)
	s.receive("q", "")
	s.schedule("-1 s")
	s.must(204, "DELETE", "/queues/gone", "")
	s.exec(`CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$`)
	s.exec(`CREATE TRIGGER full_disk BEFORE INSERT ON queued.messages FOR EACH ROW EXECUTE FUNCTION public.full_disk()`)
	c := &cleanup{store: s.store, log: s.log, announce: s.engine.announce}
	s.metrics.cleanedUp.Set(1)
	if err := c.once(context.Background()); err == nil {
		t.Error("the exhausted message was moved, so the cleanup had no error")
	}
	checkDiff(t, "messages left, all of them of q", 1, s.count("SELECT count(*) FROM queued.messages"))
	s.wantMetrics("queued_cleanup_last_success_timestamp_seconds 1\n")
}

func TestMetricsShowWhenTheCleanupLastEnded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	last := func() (at float64) {
		t.Helper()
		m := regexp.MustCompile(`\nqueued_cleanup_last_success_timestamp_seconds (\S+)`).FindStringSubmatch(s.must(200, "GET", "/metrics", ""))
		if m == nil {
			t.Fatal("metrics lack the time of the last pass")
		}
		at, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	checkRecent := func(what string, began time.Time) {
		t.Helper()
		if got := last(); got < float64(began.Add(-time.Second).Unix()) || got > float64(time.Now().Add(time.Second).Unix()) {
			t.Errorf("%s the last pass ended at %v, want a moment ago", what, got)
		}
	}
	checkRecent("at the start", time.Now().Add(-testTimeout))
	s.metrics.cleanedUp.Set(1)
	began := time.Now()
	s.mustCleanUp()
	checkRecent("after a pass", began)
}

// A pass ends at its first statement while PostgreSQL is starting.
func TestCleanupEndsItsPassIfTheDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("kept", `"consumed_retention_seconds":600`)
	for range 2 {
		s.must(201, "POST", "/queues/kept/messages", `{"data":{}}`)
	}
	s.consumeOne("kept")
	s.expire()
	s.exec("UPDATE queued.consumed_messages SET consumed_at = '-infinity'")
	s.exec(`CREATE FUNCTION public.starting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it starts' USING ERRCODE = '57P03'; END $$;
		CREATE TRIGGER starting BEFORE DELETE ON queued.messages FOR EACH ROW EXECUTE FUNCTION public.starting();
		CREATE TRIGGER starting BEFORE DELETE ON queued.consumed_messages FOR EACH ROW EXECUTE FUNCTION public.starting()`)
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce}
	err := c.once(t.Context())
	if n := strings.Count(fmt.Sprint(err), "it starts"); n != 1 {
		t.Errorf("the error says %d times that PostgreSQL is starting, want once: %v", n, err)
	}
}

func TestLogSaysOnceThatTheDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	output := newSyncBuffer()
	log := newLog(output, slog.LevelInfo, "text")
	db := newTestDB(t, "host="+t.TempDir())
	c := &cleanup{store: &store{db: db, metrics: newMetrics(db)}, log: log}
	for _, task := range []string{"cleanup", "cleanup", "cleanup", "vacuum", "vacuum"} {
		log.Warn(task, "error", c.once(t.Context()))
	}
	if n := strings.Count(output.String(), "level=WARN"); n != 2 {
		t.Errorf("the log has %d lines, want one of each task:\n%s", n, output)
	}
}
