package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// tellStories does what clients do, by every API, and checks what comes of it.
func (s *testServer) tellStories() {
	s.t.Helper()
	s.must(201, "POST", "/topics", `{"id":"gone"}`)
	s.mustQueue("gone", `"topic_id":"gone"`)
	s.must(204, "DELETE", "/topics/gone", "")
	if body := s.must(200, "GET", "/queues/gone", ""); !strings.Contains(body, `"topic_id":null`) {
		s.t.Errorf("a queue still has its deleted topic: %s", body)
	}
	s.must(204, "DELETE", "/queues/gone", "")
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`, `"message_filters":{"kind":["a"]}`)
	s.must(200, "PUT", "/queues/t", `{"topic_id":"t","dead_queue_id":"dead","message_max_deliveries":2,"ack_deadline_seconds":60,"message_retention_seconds":3600,"message_filters":{"kind":["a","b"]}}`)

	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":1},"attributes":{"kind":"a"}}`)
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":2}}`) // without attributes: filtered out
	s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{"n":3},"attributes":{"kind":"b"}},{"data":{"n":4.50},"attributes":{"kind":"c"}}]}`)
	checkDiff(s.t, "peeked", []int{1, 3}, numbers(s.peeked("t")))
	messages := s.receive("t", "?limit=10")
	checkDiff(s.t, "received", []int{1, 3}, numbers(messages))
	s.must(200, "PUT", "/messages/"+messages[1].ID+"/extend", `{"ack_deadline_seconds":30}`)
	s.must(204, "PUT", "/messages/"+messages[0].ID+"/ack", "")
	s.must(204, "PUT", "/messages/"+messages[1].ID+"/nack", "")
	checkDiff(s.t, "received again", []int{3}, numbers(s.receive("t", "")))
	s.must(204, "PUT", "/messages/"+messages[1].ID+"/nack", "")
	checkDiff(s.t, "dead", []int{3}, numbers(s.peeked("dead")))
	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"t"}`)
	s.exec("UPDATE queued.messages SET in_flight = true, last_delivery = true, delivery_attempts = 2, scheduled_at = now()")
	mustCleanUp(s.t, s)
	checkDiff(s.t, "dead again", []int{3}, numbers(s.receive("dead", "")))
	s.must(204, "PUT", "/queues/dead/purge", "")

	poll := s.poll(context.Background(), "t", "?wait_seconds=20")
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":5}}`)
	checkDiff(s.t, "long poll", []int{5}, numbers(s.await(poll)))
	s.exec("UPDATE queued.messages SET expired_at = now()")
	mustCleanUp(s.t, s)
	checkDiff(s.t, "messages left", 0, s.count("SELECT count(*) FROM queued.messages"))

	s.mustQueue("ordered", `"ordered":true`, `"consumed_retention_seconds":600`)
	for n := range 3 {
		s.must(201, "POST", "/queues/ordered/messages", fmt.Sprintf(`{"data":{"n":%d},"group":"g%d"}`, n, n%2))
	}
	s.must(200, "PUT", "/queues/ordered/groups/g1", `{"delivery_interval_ms":1}`)
	first := s.receive("ordered", "?limit=10")
	checkDiff(s.t, "one of each group", []int{0, 1}, slices.Sorted(slices.Values(numbers(first))))
	for _, m := range first {
		s.must(204, "PUT", "/messages/"+m.ID+"/ack", "")
	}
	checkDiff(s.t, "consumed", `{"n":2}`, string(s.consumeOne("ordered")))
	checkDiff(s.t, "kept", []int{2}, numbers(s.consumed("ordered", "")))

	s.must(201, "POST", "/enqueue/sms/john/", `{"job_id":"j","payload":{"a":1},"interval":1}`)
	s.must(200, "GET", "/dequeue/sms/", "")
	s.must(200, "POST", "/finish/sms/john/j/", "")
	s.must(200, "GET", "/metrics/sms/john/", "")
	s.must(200, "POST", "/in/t", "text")
	checkDiff(s.t, "out", "text", s.must(200, "GET", "/out/t", ""))

	s.must(200, "GET", "/queues/t/stats", "")
	s.must(200, "GET", "/queues/t/stats?details=true", "")
	s.must(200, "GET", "/queues/ordered/groups", "")
	s.must(200, "GET", "/overview", "")
	s.must(200, "GET", "/readyz", "")
	s.wantMetrics("queued_database_up 1\n", `queued_queue_messages{queue="t",state="ready"} 0`)
	s.crowd()
	mustCleanUp(s.t, s)
}

// consumeOne receives a message by pgQueue's API, and returns its data.
func (s *testServer) consumeOne(queueID string) json.RawMessage {
	s.t.Helper()
	var v struct{ Message json.RawMessage }
	if body := s.must(200, "GET", "/queue/"+queueID, ""); json.Unmarshal([]byte(body), &v) != nil {
		s.t.Fatalf("not JSON: %s", body)
	}
	return v.Message
}

// crowd has clients do the same at the same time: none is refused.
func (s *testServer) crowd() {
	s.t.Helper()
	const clients, rounds = 8, 10
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			call := func(method, path, body string, want ...int) string {
				v, err := s.send(context.Background(), method, path, body)
				if err != nil || !slices.Contains(want, v.status) {
					s.t.Errorf("%s %s %s = %d %s, %v", method, path, body, v.status, v.body, err)
				}
				return v.body
			}
			for round := range rounds {
				id := fmt.Sprintf("crowd-%d-%d", client, round)
				call("POST", "/queues", fmt.Sprintf(`{"id":%q,"topic_id":"t","ack_deadline_seconds":60,"message_retention_seconds":3600}`, id), 201)
				call("POST", "/queues/ordered/messages", `{"data":{},"group":"g"}`, 201)
				call("POST", "/queues/dead/messages", `{"data":{}}`, 201)
				messages, _ := decodeMessages(call("GET", "/queues/dead/messages", "", 200))
				for _, m := range messages {
					call("PUT", "/messages/"+m.ID+"/ack", "", 204)
				}
				call("GET", "/queues/ordered/messages", "", 200)
				call("DELETE", "/queues/"+id, "", 204)
			}
		})
	}
	wg.Wait()
}

// Logical replication refuses changes of tables without a key.
func TestEverythingWorksUnderAPublicationOfAllTables(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.exec("CREATE PUBLICATION everything FOR ALL TABLES")
	s.tellStories()
}

// Some databases have an event trigger that refuses tables without a primary key.
func TestSchemaIsCreatedWhereTablesMustHaveKeys(t *testing.T) {
	t.Parallel()
	s := newTestStoreOn(t, newTestDatabase(t, "template1"))
	if _, err := s.db.Exec(`
CREATE FUNCTION public.insist() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    command record;
BEGIN
    FOR command IN SELECT objid FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP
        IF NOT EXISTS (SELECT FROM pg_index WHERE indrelid = command.objid AND indisprimary) THEN
            RAISE EXCEPTION 'table % has no primary key', command.objid::regclass;
        END IF;
    END LOOP;
END
$$;
CREATE EVENT TRIGGER insist ON ddl_command_end EXECUTE FUNCTION public.insist()`); err != nil {
		t.Fatal(err)
	}
	if err := s.migrate(context.Background(), schemaSteps()); err != nil {
		t.Fatal(err)
	}
}

// A build before the first release created two tables without a key.
func TestTablesWithoutAKeyGetOne(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.exec("ALTER TABLE queued.schema_version DROP CONSTRAINT schema_version_pkey")
	s.exec("ALTER TABLE queued.settings DROP COLUMN only_row")
	s.exec("UPDATE queued.schema_version SET version = 4")
	for range 2 {
		if err := s.store.migrate(context.Background(), schemaSteps()); err != nil {
			t.Fatal(err)
		}
	}
	checkDiff(t, "tables without a primary key", 0, s.count(`SELECT count(*) FROM pg_class c WHERE relnamespace = 'queued'::regnamespace
		AND relkind = 'r' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)`))
}
