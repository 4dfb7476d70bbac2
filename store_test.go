package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestManyServersMigrateAtOnce(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "template1")
	var wg sync.WaitGroup
	for range 8 {
		s := newTestStoreOn(t, dsn)
		wg.Go(func() {
			if err := s.migrate(context.Background(), schemaSteps()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// functionsOf describes the functions and the triggers of a database.
func functionsOf(t testing.TB, s *store) []string {
	t.Helper()
	return mustSelect(t, s.db, `
SELECT pg_get_functiondef(oid)
FROM pg_proc
WHERE pronamespace = 'queued'::regnamespace
UNION ALL
SELECT pg_get_triggerdef(oid) || ' ' || tgenabled::text
FROM pg_trigger
WHERE tgrelid = ANY ('{queued.messages,queued.groups,queued.deduplications}'::regclass[])
    AND NOT tgisinternal
ORDER BY 1`)
}

func TestMigrationKeepsMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("q", `"ordered":true`)
	s.publish("t", 1)
	s.publishGroups("q", "a1", "a2")
	steps := append(schemaSteps(), "ALTER TABLE queued.messages ADD COLUMN later integer;\n"+claimFunctionsSQL+publicFunctionsSQL)
	functions := functionsOf(t, s.store)
	for range 2 {
		err := s.store.migrate(context.Background(), steps)
		checkDiff(t, "functions and triggers", functions, functionsOf(t, s.store)) // of a cluster, where the tables are distributed
		if err == nil {
			err = s.store.distribute(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	checkDiff(t, "later", 0, s.count("SELECT count(later) FROM queued.messages"))
	checkDiff(t, "received", []int{1}, numbers(s.receive("t", "")))
	checkDiff(t, "received of a group", "a1", s.receiveNames("q", 10))
}

// A database of the first version has messages, which are delivered and acked after the
// other steps.
func TestMessagesOfTheFirstSchemaAreDelivered(t *testing.T) {
	t.Parallel()
	dsn := newPlainDatabase(t, "template1")
	s := newTestStoreOn(t, dsn)
	if err := s.migrate(context.Background(), schemaSteps()[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec(`
INSERT INTO queued.queues (id, ack_deadline_seconds, message_retention_seconds)
VALUES ('q', 30, 3600);

INSERT INTO queued.groups (queue_key, id, ready_at)
SELECT key, 'g', now()
FROM queued.queues;

INSERT INTO queued.ready_groups (queue_key, ready_at, id)
SELECT queue_key, ready_at, id
FROM queued.groups;

INSERT INTO queued.messages (id, queue_key, scheduled_at, expired_at, created_at, updated_at, bytes, group_id, data)
SELECT gen_random_uuid(), q.key, now(), now() + interval '1 hour', now(), now(), 7, g.id, '{"n":1}'
FROM queued.queues q, (VALUES (NULL), ('g')) AS g (id)`); err != nil {
		t.Fatal(err)
	}
	if err := s.migrate(context.Background(), schemaSteps()); err != nil {
		t.Fatal(err)
	}
	server := newTestServerOn(t, dsn)
	messages := server.receive("q", "?limit=2")
	checkDiff(t, "received", []int{1, 1}, numbers(messages))
	for _, m := range messages {
		server.must(204, "PUT", "/messages/"+m.ID+"/ack", "")
	}
	checkDiff(t, "left", 0, server.messagesIn("q"))
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	if _, err := s.db.Exec("INSERT INTO queued.schema_version (version) VALUES (999)"); err != nil {
		t.Fatal(err)
	}
	err := s.migrate(context.Background(), schemaSteps())
	if !errors.Is(err, errSchemaNewer) || !hopeless(err) {
		t.Errorf("migrate of a newer schema = %v, want errSchemaNewer", err)
	}
}

func TestSchemaFromBeforeTheFirstReleaseIsRefused(t *testing.T) {
	t.Parallel()
	for what, tables := range map[string]string{
		"the first ones":        "CREATE TABLE queued.messages (size integer NOT NULL); CREATE TABLE queued.queues (id text)",
		"the last one of these": "CREATE TABLE queued.messages (bytes integer NOT NULL); CREATE TABLE queued.queues (id text, consumed_retention_seconds integer)",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dsn := newPlainDatabase(t, "template1")
			s := newTestStoreOn(t, dsn)
			if _, err := s.db.Exec("CREATE SCHEMA queued; CREATE TABLE queued.schema_version (version integer PRIMARY KEY);" + tables + "; INSERT INTO queued.messages VALUES (1)"); err != nil {
				t.Fatal(err)
			}
			for _, version := range []int{1, len(schemaSteps()), 7} {
				if _, err := s.db.Exec("TRUNCATE queued.schema_version"); err != nil {
					t.Fatal(err)
				}
				if _, err := s.db.Exec("INSERT INTO queued.schema_version VALUES ($1)", version); err != nil {
					t.Fatal(err)
				}
				const want = "DROP SCHEMA queued CASCADE"
				if got := startOn(t, dsn); !strings.Contains(got, want) || strings.Contains(got, "\n") {
					t.Errorf("the start on version %d ends with %q, want %q", version, got, want)
				}
				if _, err := newTestDB(t, dsn).Exec(scriptFor(t, "")); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("the printed schema on version %d: %v, want %q", version, err, want)
				}
			}
			var n int
			if err := s.db.QueryRow("SELECT count(*) FROM queued.messages").Scan(&n); err != nil || n != 1 {
				t.Errorf("%d messages are left, %v, want 1", n, err)
			}
		})
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	steps := append(schemaSteps(), "CREATE TABLE queued.half ();", "broken")
	if err := s.migrate(context.Background(), steps); err == nil {
		t.Error("migrate with a broken step succeeded")
	}
	if version, err := schemaVersion(context.Background(), s.db); version != len(schemaSteps()) || err != nil {
		t.Errorf("version = %d, %v, want %d", version, err, len(schemaSteps()))
	}
}

func TestCurrentSchemaNeedsNoRights(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	if _, err := s.db.Exec("ALTER DATABASE " + databaseName(t, s) + " SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	s.db.SetMaxIdleConns(0)
	if err := s.migrate(context.Background(), schemaSteps()); err != nil {
		t.Errorf("migrate of a current schema on a read-only database = %v", err)
	}
}

func databaseName(t testing.TB, s *store) (name string) {
	t.Helper()
	if err := s.db.QueryRow("SELECT current_database()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPurgeDeletesWhatWasThereWhateverItsState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"delivery_delay_seconds":900`)
	s.mustTopic("other")
	s.publish("t", 1)
	s.publish("other", 2)
	s.fill("t", 2*workBatch+1)
	s.receive("t", "")
	s.must(204, "PUT", "/queues/t/purge", "")
	checkDiff(t, "left", 0, s.messagesIn("t"))
	checkDiff(t, "others", 1, s.messagesIn("other"))
}

func TestPurgeWaitsForRowsThatOthersHold(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2)
	tx := s.begin("UPDATE queued.messages SET bytes = bytes WHERE data->>'n' = '1'")
	result := make(chan reply, 1)
	go func() {
		v, _ := s.send(context.Background(), "PUT", "/queues/t/purge", "")
		result <- v
	}()
	eventually(t, "the other row is deleted", func() bool { return s.messagesIn("t") == 1 })
	s.publish("t", 3)
	tx.Rollback()
	if v := <-result; v.status != 204 {
		t.Errorf("purge = %d %s", v.status, v.body)
	}
	checkDiff(t, "what came meanwhile", []int{3}, numbers(s.receive("t", "")))
}

func TestRedriveMovesWhatCouldBeReceived(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":3`)
	s.mustQueue("to", `"delivery_delay_seconds":900`)
	ids := s.publish("t", 1, 2, 3, 4, 5, 6)
	s.receive("t", "?limit=1") // in flight
	s.expire(ids[1])
	s.changeMessages("delivery_attempts = 3", ids[2])
	s.schedule("1 min", ids[3])
	s.changeMessages("delivery_attempts = 2, last_delivery = true, created_at = now() - interval '1 d'", ids[4])
	s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"to"}`)
	n := s.count(`SELECT count(*) FROM queued.messages m JOIN queued.queues q ON q.key = m.queue_key
		WHERE q.id = 'to' AND delivery_attempts = 0 AND NOT last_delivery AND NOT in_flight AND scheduled_at = m.updated_at + interval '900 s'
		AND expired_at = m.updated_at + interval '3600 s' AND m.id = ANY($1::uuid[])
		AND (m.created_at < now() - interval '23 h') = (m.id = $2)`, idArray{ids[4], ids[5]}, ids[4])
	checkDiff(t, "moved", 2, n)
	checkDiff(t, "in destination", 2, s.messagesIn("to"))
	checkDiff(t, "stayed", 4, s.messagesIn("t"))
}

func TestRedriveLeavesWhatBecomesDueMeanwhile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("from")
	s.mustQueue("to")
	delayed := s.publish("from", 1)[0]
	s.schedule("1 min")
	s.fill("from", workBatch+1)
	first := true
	_, err := s.store.redrive(context.Background(), "from", new("to"), math.MaxInt, func(int, []string) {
		if first {
			s.makeDue(delayed)
			s.publish("from", 2)
		}
		first = false
	})
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "stayed", []int{1, 2}, numbers(s.receive("from", "")))
}

func TestNackEndsALastDeliveryWhoseLeaseIsOver(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	id := s.publish("t", 1)[0]
	s.must(204, "PUT", "/messages/"+id+"/nack", "")
	checkDiff(t, "dead queue, before a delivery", []int{}, numbers(s.receive("dead", "")))
	s.receive("t", "")
	s.makeDue()
	s.must(204, "PUT", "/messages/"+id+"/nack", "") // late, but the message has no new lease
	checkDiff(t, "dead queue", []int{1}, numbers(s.receive("dead", "")))
}

func TestAckFindsAMessageThatIsBeingMoved(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("to")
	id := s.publish("t", 1)[0]
	move := s.begin(`WITH gone AS (DELETE FROM queued.messages RETURNING *)
		INSERT INTO queued.messages (home, id, queue_key, data, bytes, expired_at, scheduled_at, created_at, updated_at)
		SELECT q.home, gone.id, q.key, data, bytes, expired_at, scheduled_at, gone.created_at, gone.updated_at FROM gone, queued.queues q WHERE q.id = 'to'`)
	if v := s.sendUntilCommit(move, "PUT", "/messages/"+id+"/ack"); v.status != 204 {
		t.Errorf("ack = %d %s", v.status, v.body)
	}
	checkDiff(t, "received after its ack", []int{}, numbers(s.receive("to", "")))
}

func TestWritesAreNotRepeatedWhenTheConnectionIsLost(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	before := s.count("SELECT nextval('queued.messages_seq_seq')")
	_, err := once(context.Background(), s.store, "test", func(row scanner) (any, error) {
		var v any
		return v, row.Scan(&v, &v)
	}, "SELECT nextval('queued.messages_seq_seq'), pg_terminate_backend(pg_backend_pid())")
	if !errors.Is(asUnavailable(err), errUnavailable) {
		t.Errorf("a statement that cut its connection = %v", err)
	}
	checkDiff(t, "times it ran", 1, s.count("SELECT nextval('queued.messages_seq_seq')")-before-1)
}

func TestSlowRequestsDoNotTakeTheEnginesConnections(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	outside := inspector{t: t, dsn: s.dsn, server: &server{serverConfig: serverConfig{store: newTestStoreOn(t, s.dsn)}}}
	free := outside.lockTable("queued.deleted_queues")
	defer free()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 2 * testConns {
		wg.Go(func() { s.send(ctx, "DELETE", "/queues/t", "") })
	}
	outside.waitForLocks(testConns)
	v, err := s.send(context.Background(), "POST", "/topics/t/messages", `{"data":{"n":1}}`)
	if err != nil || v.status != 201 {
		t.Errorf("publish = %d %s, %v", v.status, v.body, err)
	}
	checkDiff(t, "received", []int{1}, numbers(s.receive("t", "")))
}

func TestServerRecoversFromAReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	output := newSyncBuffer()
	s.log = newLog(output, slog.LevelInfo, "text")
	s.mustTopic("t")
	outside := newTestDB(t, s.dsn) // connects before the database is read-only
	exec := func(statement string) {
		t.Helper()
		if _, err := outside.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	outside.SetMaxOpenConns(1)
	exec("ALTER DATABASE " + databaseName(t, s.store) + " SET default_transaction_read_only = on")
	exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	eventually(t, "requests that write get a 503", func() bool {
		return s.do("POST", "/topics/t/messages", `{"data":{}}`).status == 503 && s.do("POST", "/topics", `{"id":"new"}`).status == 503 &&
			s.do("GET", "/readyz", "").status == 503
	})
	if n := strings.Count(output.String(), "read-only transaction (25006)"); n != 1 {
		t.Errorf("the log has the reason %d times, want once:\n%s", n, output)
	}
	exec("ALTER DATABASE " + databaseName(t, s.store) + " SET default_transaction_read_only = off")
	// This time the connections stay open.
	for range 2 {
		s.do("POST", "/topics/t/messages", `{"data":{}}`)
	}
	for range 2 {
		s.must(201, "POST", "/topics/t/messages", `{"data":{}}`)
	}
}

func TestRedriveKeepsTheOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("to")
	ids := s.publish("t", 1, 2, 3, 4)
	s.changeMessages(shift("scheduled_at", "-1 min"), ids[2])
	s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"to"}`)
	checkDiff(t, "received", []int{3, 1, 2, 4}, numbers(s.receive("to", "")))
}

func TestRedriveOntoItselfRestartsMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.fill("t", workBatch+10)
	id := s.receive("t", "?limit=1")[0].ID
	s.must(204, "PUT", "/messages/"+id+"/nack", "")
	s.must(204, "PUT", "/queues/t/redrive", `{"destination_queue_id":"t"}`)
	checkDiff(t, "messages", workBatch+10, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND updated_at > created_at"))
}

func TestRedriveBothWaysAtOnceKeepsEachMessageOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("a")
	s.mustQueue("b")
	const many = workBatch + 500
	s.fill("a", many)
	s.fill("b", many)
	var wg sync.WaitGroup
	for _, v := range [][2]string{{"a", "b"}, {"b", "a"}, {"a", "b"}, {"b", "a"}} {
		wg.Go(func() {
			v, err := s.send(context.Background(), "PUT", "/queues/"+v[0]+"/redrive", fmt.Sprintf(`{"destination_queue_id":%q}`, v[1]))
			if err != nil || v.status != 204 {
				t.Errorf("redrive = %d %s, %v", v.status, v.body, err)
			}
		})
	}
	wg.Wait()
	checkDiff(t, "rows", 2*many, s.count("SELECT count(*) FROM queued.messages"))
	checkDiff(t, "ids", 2*many, s.count("SELECT count(DISTINCT id) FROM queued.messages"))
}

func TestRedriveKilledInTheMiddleLeavesEachMessageInOneQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("from")
	s.mustQueue("to")
	const many = 40 * workBatch
	s.fill("from", many)
	other := startProcess(t, "-database-url", s.dsn)
	done := make(chan error, 1)
	go func() {
		_, err := other.client().send(context.Background(), "PUT", "/queues/from/redrive", `{"destination_queue_id":"to"}`)
		done <- err
	}()
	eventually(t, "part of the messages have moved", func() bool { return s.messagesIn("to") > 0 })
	other.cmd.Process.Kill()
	if err := <-done; err == nil {
		t.Fatal("the redrive ended before the kill")
	}
	eventually(t, "each message is in one queue, when the last step has ended on all nodes", func() bool {
		return s.count("SELECT count(*) FROM queued.messages") == many && s.count("SELECT count(DISTINCT id) FROM queued.messages") == many
	})
	s.must(204, "PUT", "/queues/from/redrive", `{"destination_queue_id":"to"}`)
	checkDiff(t, "moved in the end", many, s.messagesIn("to"))
	checkDiff(t, "different messages", many, s.count("SELECT count(DISTINCT id) FROM queued.messages"))
}

func TestRedriveEndsWhenItsDestinationIsDeleted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("from")
	s.mustQueue("to")
	s.fill("from", 3*workBatch)
	moved := make(chan struct{}, 10)
	_, err := s.store.redrive(context.Background(), "from", new("to"), math.MaxInt, func(int, []string) {
		if len(moved) == 0 {
			s.must(204, "DELETE", "/queues/to", "")
		}
		moved <- struct{}{}
	})
	if !errors.Is(err, errQueueNotFound) {
		t.Errorf("redrive = %v, want errQueueNotFound", err)
	}
	checkDiff(t, "stayed", 2*workBatch, s.messagesIn("from"))
}

var wholeIndex = regexp.MustCompile(`Index (Only )?Scan using \S+ on (messages|groups)`)

// Each hot statement has one plan: on a table without statistics, on a full table and on
// an analyzed one, and for roles with other settings.
func TestHotStatementsWalkTheirIndex(t *testing.T) {
	t.Parallel()
	s, conns := newEngineConns(t)
	statements := map[string]struct {
		statement string
		args      []string
		index     string
	}{
		"claim":          {claimMessagesSQL, []string{"1", "10", "10", "1000000", "1", "now()", "60"}, "messages_due"},
		"claim backoff":  {claimBackoffSQL, []string{"1", "10", "10", "1000000", "1", "now()", "60", "'{5}'"}, "messages_due"},
		"claim sqs":      {claimSQSSQL, []string{"1", "10", "10", "1000000", "1", "now()", "60", "NULL"}, "messages_due"},
		"sqs batch":      {claimBatchSQSSQL, []string{"'{1,2}'", "'{10,10}'", "'{10,10}'", "'{1000000,1000000}'", "'{now,now}'", "'{60,60}'", "1", "1000000"}, "messages_due"},
		"claim batch":    {claimBatchSQL, []string{"'{1,2}'", "'{10,10}'", "'{10,10}'", "'{1000000,1000000}'", "'{now,now}'", "'{60,60}'", "1", "1000000"}, "messages_due"},
		"lock leases":    {lockLeasesSQL, []string{"'{}'"}, "messages_pkey"},
		"consume":        {consumeMessagesSQL, []string{"1", "10", "10", "1000000", "1", "now()"}, "messages_due"},
		"keep":           {keepConsumedSQL, []string{"1", "'{}'", "'{}'"}, "messages_pkey"},
		"ack":            {ackMessagesSQL, []string{"'{}'", "'{}'", "false"}, "messages_pkey"},
		"ack receipts":   {ackReceiptsSQL, slices.Insert(slices.Repeat([]string{"'{}'"}, 7), 2, "false"), "messages_pkey"},
		"extend receipt": {extendReceiptsSQL, slices.Repeat([]string{"'{}'"}, 6), "messages_pkey"},
		"nack":           {nackMessagesSQL, []string{"true", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'"}, "messages_pkey"},
		"nack last":      {takeNackedSQL, []string{"true", "'{}'", "'{}'", "'{}'", "'{}'"}, "messages_pkey"},
		"extend":         {extendMessagesSQL, []string{"'{}'", "'{}'", "'{}'"}, "messages_pkey"},
		"release":        {releaseMessagesSQL, []string{"'{}'", "'{}'", "'{}'", "'{}'", "'{}'"}, "messages_pkey"},
		"restore":        {restoreMessagesSQL, slices.Repeat([]string{"'{}'"}, 22), "consumed_messages_pkey"},
		"next due":       {selectNextDueSQL, []string{"'{t}'", "'{now}'", "'{now}'"}, "messages_due"},
		"purge":          {purgeBatchSQL, []string{"1", "100", "false", "now()", "0", "10"}, "messages_due"},
		"redrive":        {takeRedrivenSQL, []string{"1", "now()", "100", "'t'", "false", "now()", "0", "10"}, "messages_due"},
		"redrive named":  {takeNamedSQL, []string{"'{}'", "'t'"}, "messages_pkey"},
		"delete named":   {deleteNamedSQL, []string{"'{}'"}, "messages_pkey"},
		"peek":           {selectPeekSQL, []string{"'t'", "0", "10", "1000000"}, "messages_due"},
		"locate":         {selectLocationsSQL, []string{"'{}'"}, "messages_pkey"},
		"in flight":      {selectInFlightSQL, []string{"1", "'{}'"}, "messages_pkey"},
		"consumed":       {selectConsumedSQL, []string{"'t'", "0", "10", "1000000"}, "Backward using consumed_messages_pkey"},
		"find old":       {selectKeptLongEnoughSQL, nil, "consumed_messages_pkey"},
		"remove old":     {removeConsumedSQL, []string{"1", "now()", "now()", "0", "10"}, "consumed_messages_pkey"},
		"message":        {selectMessageSQL, []string{"'00000000-0000-0000-0000-000000000000'"}, "messages_pkey"},
		"find expired":   {selectFrontsSQL, []string{"'{1}'", "'{false}'", "'{now}'"}, "messages_due"},
		"find exhausted": {selectExhaustedSQL, nil, "messages_last_delivery"},
		"move exhausted": {takeExhaustedSQL, []string{"1", "10", "now()"}, "messages_last_delivery"},
		"remove expired": {removeExpiredSQL, []string{"1", "10", "false", "now()", "0"}, "messages_due"},
		"lock messages":  {lockMessagesSQL, []string{"'{}'", "'{}'"}, "messages_pkey"},
		"lock groups of": {lockGroupsOfDeliveriesSQL, []string{"'{}'", "'{}'"}, "groups_pkey"},
		"undo":           {undoGroupDeliveriesSQL, []string{"'{}'", "'{}'", "'{}'", "'{}'"}, "groups_pkey"},
		"purge group":    {purgeGroupBatchSQL, []string{"1", "'a'", "100", "false", "10"}, "messages_group_due"},
		"idle groups":    {selectIdleGroupsSQL, []string{"1", "''", "100"}, "groups_pkey"},
		"replace job":    {selectWaitingJobsSQL, []string{"'{}'", "'{}'", "'{}'", "1"}, "messages_job"},
		"store job":      {storeJobsSQL, []string{"'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "1"}, "messages_pkey"},
		"group of job":   {updateGroupsOfJobsSQL, []string{"'{}'", "'{}'", "'{}'", "'{}'"}, "groups_pkey"},
		"job":            {selectJobSQL, []string{"'t'", "'a'", "'j'"}, "messages_job"},
		"as job":         {selectAsJobSQL, []string{"'t'", "'a'", "'00000000-0000-0000-0000-000000000000'"}, "messages_pkey"},
		"waiting":        {selectWaitingSQL, []string{"'{}'", "'{}'", "10"}, "messages_group_due"},
		"count jobs":     {addJobCountsSQL, []string{"0", "'{}'", "'{}'", "'{}'", "true"}, "job_counts_pkey"},
		"old counts":     {removeJobCountsSQL, []string{"now()", "10", "10"}, "job_counts_pkey"},
		"finish":         {finishJobsSQL, []string{"'{}'", "'{}'", "'{}'"}, "messages_job"},
		"deduplicate":    {insertDeduplicationsSQL, []string{"0", "'{}'", "'{}'", "'{}'", "'1'", "1"}, "deduplications_pkey"},
		"lock groups":    {lockGroupsSQL, []string{"0", "'{}'", "'{}'", "'1'"}, "groups_pkey"},
		"duplicates":     {selectDeduplicationsSQL, []string{"'{}'", "'{}'"}, "deduplications_pkey"},
		"forget ids":     {forgetDeduplicationsSQL, []string{"1", "''", "now()", "10"}, "deduplications_pkey"},
		"old ids":        {removeDeduplicationsSQL, []string{"now()", "10"}, "deduplications_expires_at"},
		"ids of deleted": {removeDeletedDeduplicationsSQL, []string{"1", "10", "''"}, "deduplications_pkey"},
		"walk on":        {selectExpirySQL, []string{"0", "10"}, "Tid Range Scan"},
		"walk":           {walkExpiredSQL, []string{"0", "10"}, "Tid Range Scan"},
		"walk exhausted": {walkExhaustedSQL, []string{"0", "10"}, "Tid Range Scan"},
	}
	// These statements are planned each time that they run, so their plans never depend on
	// an earlier state of the table.
	planned := map[string]bool{"message": true, "in flight": true, "as job": true, "peek": true, "redrive named": true, "find exhausted": true}
	aboutGroups := map[string]bool{"replace job": true, "store job": true, "group of job": true, "waiting": true, "finish": true, "job": true, "lock groups of": true, "undo": true}
	checkOn := func(when string, conn *sql.Conn) {
		for name, v := range statements {
			if planned[name] && strings.HasPrefix(when, "empty") {
				continue
			}
			args := v.args
			if strings.Contains(v.statement, "home = $1") {
				args = append([]string{"0"}, args...)
			}
			plan := explain1(t, conn, v.statement, args)
			t.Logf("%s, %s:\n%s", name, when, plan)
			if !strings.Contains(plan, v.index) || strings.Contains(plan, "Seq Scan on messages") || strings.Contains(plan, "Seq Scan on consumed_messages") {
				t.Errorf("%s, %s: does not use %s:\n%s", name, when, v.index, plan)
			}
			lines := strings.Split(plan, "\n")
			for i, line := range lines {
				// A statement about some groups finds each by its id, and its messages by group.
				if aboutGroups[name] && (strings.Contains(line, "using messages_due") || strings.Contains(line, "using ready_groups_pkey") ||
					strings.Contains(line, "using groups_pkey") && !strings.Contains(lines[i+1], "id = ")) {
					t.Errorf("%s, %s: reads the whole queue: %s\n%s", name, when, line, plan)
				}
				if wholeIndex.MatchString(line) && !strings.Contains(lines[i+1], "Index Cond") || strings.Contains(line, "Hash Join") || strings.Contains(line, "Merge Join") {
					t.Errorf("%s, %s: reads more rows than it needs: %s\n%s", name, when, line, plan)
				}
			}
			if strings.Contains(plan, "Sort Key: messages.scheduled_at") && name != "peek" || // peek merges messages with and without a group
				strings.Contains(plan, "Sort Key: consumed_messages.consumed_at") {
				t.Errorf("%s, %s: sorts the due messages:\n%s", name, when, plan)
			}
		}
	}
	asTablesGrow(s, func(when string) {
		for whose, conn := range conns {
			checkOn(when+whose, conn)
		}
	})
}

// newEngineConns returns a server with the queues t and other, and connections with the
// settings of the engine: of the superuser, and of roles with the lowest and the highest
// settings.
func newEngineConns(t testing.TB) (*testServer, map[string]*sql.Conn) {
	t.Helper()
	dsn, low := newHostileRole(t, false)
	high := newTestRole(t)
	s := newTestServerOn(t, dsn)
	makeHostile(t, s.store.db, "ROLE "+high, true)
	s.mustTopic("t")
	s.mustTopic("other")
	conns := make(map[string]*sql.Conn)
	for whose, db := range map[string]*sql.DB{"": s.store.db, " with low settings": newTestDB(t, dsn+" user="+low), " with high settings": newTestDB(t, dsn+" user="+high)} {
		conn, err := db.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.ExecContext(context.Background(), "SET quote_all_identifiers = off"+engineSettings); err != nil {
			t.Fatal(err)
		}
		conns[whose] = conn
	}
	return s, conns
}

// asTablesGrow calls check on new tables, empty ones, full ones without statistics, and
// analyzed ones.
func asTablesGrow(s *testServer, check func(when string)) {
	check("new table")
	s.exec("VACUUM ANALYZE queued.messages")
	s.exec("VACUUM ANALYZE queued.groups")
	check("empty table")
	s.fill("other", 30000)
	s.fill("t", 30000)
	s.fillGroups("t", 30000)
	s.fillConsumed("t", 30000)
	check("full table without statistics")
	s.analyze("")
	check("analyzed table")
}

// The plans of the statements in the function stay as they were on the first call.
func TestClaimOfGroupsReadsFewBlocksOfAnyTable(t *testing.T) {
	t.Parallel()
	s, conns := newEngineConns(t)
	asTablesGrow(s, func(when string) {
		for whose, conn := range conns {
			for what, args := range map[string]string{
				"leases":           "false, 0, false, 10, 10, 1000000, 60",
				"leases in order":  "false, 0, true, 10, 10, 1000000, 60",
				"consumes":         "false, 1000, false, 10, 10, 1000000, NULL",
				"waits for a lock": "true, 0, false, 10, 10, 1000000, 60",
			} {
				claim := "SELECT FROM queued.claim_groups((SELECT key FROM queued.queues WHERE id = 't'), (SELECT version FROM queued.settings), '-infinity', 10, " + args + ")"
				n := blocksReadBy(t, conn, claim)
				t.Logf("%s, %s%s: %d blocks", what, when, whose, n)
				if n > 1500 {
					t.Errorf("%s, %s%s: reads %d blocks", what, when, whose, n)
				}
			}
		}
	})
}

// blocksReadBy runs a statement in a transaction that it rolls back. It returns the number of
// blocks that the statement has read.
func blocksReadBy(t testing.TB, conn *sql.Conn, statement string) int {
	t.Helper()
	tx, err := conn.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var text string
	if err := tx.QueryRow("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	mustDecode(t, text, &plans)
	return plans[0].Plan.Hit + plans[0].Plan.Read
}

func TestIDsAreVersion7AndParse(t *testing.T) {
	t.Parallel()
	var ids []string
	for range 100 {
		id := newID()
		parsed, ok := parseID(strings.ToUpper(id))
		if !ok || parsed != id || id[14] != '7' || !strings.Contains("89ab", id[19:20]) {
			t.Fatalf("newID() = %s, parsed as %s, %v", id, parsed, ok)
		}
		ids = append(ids, id[:13])
	}
	if !slices.IsSorted(ids) {
		t.Error("ids do not sort by their time")
	}
	for _, bad := range []string{"", "x", newID() + "0", "{" + newID() + "}", strings.Replace(newID(), "-", "", 1), "zz" + newID()[2:]} {
		if id, ok := parseID(bad); ok {
			t.Errorf("parseID(%q) = %s", bad, id)
		}
	}
}

// A new version of the settings clears the caches of all servers, so the version changes
// only if a cached topic or queue may be out of date.
func TestVersionChangesOnlyWithCachedSettings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	const rest = `"ack_deadline_seconds":60,"message_retention_seconds":3600}`
	for _, v := range []struct {
		status             int
		method, path, body string
		changes            bool
	}{
		{404, "DELETE", "/topics/t", "", false},
		{404, "DELETE", "/queues/q", "", false},
		{404, "PUT", "/queues/q", "{" + rest, false},
		{404, "POST", "/queues", `{"id":"q","topic_id":"t",` + rest, false},
		{201, "POST", "/topics", `{"id":"t"}`, false},
		{201, "POST", "/queues", `{"id":"q",` + rest, false}, // no server has cached it
		{422, "POST", "/queues", `{"id":"q",` + rest, false},
		{200, "PUT", "/queues/q", "{" + rest, false},
		{200, "PUT", "/queues/q", `{"topic_id":"t",` + rest, true},
		{200, "PUT", "/queues/q", `{"topic_id":"t","message_filters":{"a":["b"]},` + rest, true},
		{200, "PUT", "/queues/q", `{"topic_id":"t","message_filters":{"a":["b"]},` + rest, false},
		{201, "POST", "/queues", `{"id":"r","topic_id":"t",` + rest, true},
		{200, "PUT", "/queues/r", `{"topic_id":"t","ordered":true,` + rest, true},
		{200, "PUT", "/queues/r", `{"topic_id":"t",` + rest, false}, // the queue stays ordered
		{404, "PUT", "/queues/r", `{"topic_id":"nope",` + rest, false},
		{204, "DELETE", "/queues/r", "", true},
		{204, "DELETE", "/topics/t", "", true},
	} {
		before := s.count("SELECT version FROM queued.settings")
		s.must(v.status, v.method, v.path, v.body)
		checkDiff(t, "version changes with "+v.method+" "+v.path+" "+v.body, v.changes, s.count("SELECT version FROM queued.settings") > before)
	}
}

// A change of settings either holds completely, or is an error and changes nothing.
func TestSettingsHoldOrTheResponseIsAnError(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1", "a2")
	checkDiff(t, "first", "a1", s.receiveNames("q", 10))
	s.exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '55P03'; END $$`)
	s.exec("CREATE TRIGGER refuse BEFORE UPDATE ON queued.groups FOR EACH ROW EXECUTE FUNCTION public.refuse()")

	s.must(503, "PUT", "/queues/q/groups/b", `{"delivery_interval_ms":5}`)
	s.must(404, "GET", "/queues/q/groups/b", "")

	s.must(200, "PUT", "/queues/q", `{"delivery_interval_ms":0,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	c := &cleanup{store: s.store, announce: s.engine.announce}
	if err := c.recheckChangedGroups(context.Background(), s.homeOf("q")); err == nil {
		t.Error("the groups were checked although their table refuses updates")
	}
	s.exec("DROP TRIGGER refuse ON queued.groups")
	poll := s.poll(context.Background(), "q", "?wait_seconds=30")
	s.waiting("q", 1)
	s.mustCleanUp()
	checkDiff(t, "second, by the new interval", "a2", namesOf(s.await(poll)))
	checkDiff(t, "queues whose groups are to be checked", 0, s.count("SELECT count(*) FROM queued.queues WHERE groups_changed_in IS NOT NULL"))
}

func TestGroupsChangeOnlyWithTheirOwnSettings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"delivery_interval_ms":60000`)
	s.publishGroups("q", "a1", "a2", "b1")
	s.receive("q", "?limit=1")
	rows := func() (all string) {
		if err := s.store.db.QueryRow("SELECT string_agg(id || ctid || xmin, ',' ORDER BY id) FROM queued.groups").Scan(&all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := rows()
	s.must(200, "PUT", "/queues/q", `{"ack_deadline_seconds":30,"message_retention_seconds":7200,"delivery_delay_seconds":1}`)
	checkDiff(t, "rows", before, rows())
	s.must(200, "PUT", "/queues/q", `{"delivery_interval_ms":30000,"ack_deadline_seconds":30,"message_retention_seconds":7200}`)
	if rows() == before {
		t.Error("a new interval did not make the groups ready to be checked")
	}
}

func TestClientsDoNotReceivePostgreSQLsErrors(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	logged := newSyncBuffer()
	s.server.log = slog.New(slog.NewTextHandler(logged, nil))
	s.mustTopic("t")
	for code, want := range map[string]string{
		"22P02": "database rejected the value: it cannot be stored",
		"23514": "database rejected the value: it conflicts with stored data",
		"54001": "database rejected the value: it is too large or nested too deeply",
	} {
		s.exec(`CREATE OR REPLACE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a secret of the database' USING ERRCODE = '` + code + `'; END $$`)
		s.exec("CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON queued.messages FOR EACH STATEMENT EXECUTE FUNCTION public.refuse()")
		checkDiff(t, "response", `{"detail":[{"loc":["body"],"msg":"`+want+`","type":"value_error"}]}`, s.must(422, "POST", "/topics/t/messages", `{"data":{}}`))
	}
	if !strings.Contains(logged.String(), "a secret of the database") {
		t.Errorf("the log lacks PostgreSQL's error:\n%s", logged)
	}
}

// PostgreSQL reads null as NULL in an array, but it is an id as any other.
func TestIDsMayReadNull(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"null"}`)
	for n, id := range []string{"null", "NULL", "Null"} {
		s.mustQueue(id, `"topic_id":"null"`)
		s.must(201, "POST", "/queues/"+id+"/messages", `{"data":{"n":9}}`)
		s.must(201, "POST", "/topics/null/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
		s.mustSQS("SendMessage", `{"QueueUrl":"`+id+`","MessageBody":"{\"n\":8}"}`, nil)
		checkDiff(t, "received from "+id, []int{9, n, 8}, numbers(s.receive(id, "?limit=10")))
	}
	s.must(204, "PUT", "/queues/null/purge", "")
	s.sqsPublish("null", "a")
	checkDiff(t, "received by SQS's API", "a", bodiesOf(s.sqsReceive("null")))
	s.useTokens(map[string]string{"a": `"get":["null"],"post":["NULL*"]`})
	checkDiff(t, "queues of a token", `{"QueueUrls":["http://HOST/000000000000/NULL","http://HOST/000000000000/null"]}`, maskSQS(&s.client, s.with(secret("a")).sqs("ListQueues", `{}`).body))
}
