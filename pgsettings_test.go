package main

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lib/pq"
)

// runExample uses every operation of every API, and checks the results.
func runExample(s *testServer) {
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
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":2}}`) // without attributes, so filtered out
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
	s.changeMessages("in_flight = true, last_delivery = true, delivery_attempts = 2, scheduled_at = now()")
	s.mustCleanUp()
	checkDiff(s.t, "dead again", []int{3}, numbers(s.receive("dead", "")))
	s.must(204, "PUT", "/queues/dead/purge", "")

	poll := s.poll(context.Background(), "t", "?wait_seconds=20")
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":5}}`)
	checkDiff(s.t, "long poll", []int{5}, numbers(s.await(poll)))
	s.expire()
	s.mustCleanUp()
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
	s.must(200, "GET", "/queues/t/stats?detail=true", "")
	s.must(200, "GET", "/queues/ordered/groups", "")
	s.must(200, "GET", "/overview", "")
	s.must(200, "GET", "/readyz", "")
	s.wantMetrics("queued_database_up 1\n", `queued_queue_messages{queue="t",state="ready"} 0`)
	crowd(s)
	s.mustCleanUp()
}

// crowd runs clients that do the same at the same time. No request may be refused, except that a
// change of queues in a cluster, where these are made one after the other, may wait for too long.
func crowd(s *testServer) {
	s.t.Helper()
	const clients, rounds = 8, 10
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			call := func(method, path, body string, want ...int) string {
				v, err := s.send(context.Background(), method, path, body)
				for try := 0; testCluster != nil && err == nil && v.status == 503 && (path == "/queues" || method == "DELETE") && try < 20; try++ {
					v, err = s.send(context.Background(), method, path, body)
				}
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

// Logical replication refuses changes of tables without a primary key.
func TestEverythingWorksUnderAPublicationOfAllTables(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.exec("CREATE PUBLICATION everything FOR ALL TABLES")
	runExample(s)
}

// Some databases have an event trigger that refuses tables without a primary key.
func TestSchemaIsCreatedWhereTablesMustHaveKeys(t *testing.T) {
	t.Parallel()
	s := newTestStoreOn(t, newPlainDatabase(t, "template1"))
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

// hostileTexts are values of settings that are neither numbers nor a choice.
var hostileTexts = map[string]string{
	"DateStyle":                        "SQL, DMY",
	"TimeZone":                         "Asia/Kathmandu",
	"timezone_abbreviations":           "India",
	"client_encoding":                  "LATIN1",
	"search_path":                      "hostile, pg_catalog",
	"default_tablespace":               "none",
	"temp_tablespaces":                 "none",
	"default_table_access_method":      "hostile",
	"default_text_search_config":       "pg_catalog.german",
	"application_name":                 "hostile",
	"lc_messages":                      "C",
	"restrict_nonsystem_relation_kind": "view, foreign-table",
}

// notHostile has the settings that the test leaves unchanged, and the reason.
var notHostile = map[string]string{
	"default_transaction_read_only": "respected, because providers set it when a disk is full",
	"transaction_read_only":         "of one transaction",
	"transaction_isolation":         "of one transaction",
	"transaction_deferrable":        "of one transaction",
	"session_replication_role":      "cannot be reset without superuser: TestStartEndsAfterAPermanentError",
	"dynamic_library_path":          "PostgreSQL 18 finds PL/pgSQL by it, which the server needs",
	"role":                          "another role",
	"session_authorization":         "another role",
}

// makeHostile gives a role or a database the lowest or the highest value of each setting
// that can be changed for it. what is as in ALTER.
func makeHostile(t testing.TB, db *sql.DB, what string, highest bool) {
	t.Helper()
	type setting struct {
		name, kind    string
		boot, low, up sql.NullString
		choices       pq.StringArray
	}
	all, err := collect(context.Background(), db, func(row scanner) (v setting, err error) {
		err = row.Scan(&v.name, &v.kind, &v.boot, &v.low, &v.up, &v.choices)
		return v, err
	}, `SELECT name, vartype, boot_val, min_val, max_val, enumvals FROM pg_settings
		WHERE context IN ('user', 'superuser') AND name NOT LIKE 'log\_%' AND name NOT LIKE 'debug\_print%' AND name NOT LIKE 'trace\_%'`)
	if err != nil {
		t.Fatal(err)
	}
	set := 0
	for _, v := range all {
		value := hostileTexts[v.name]
		switch v.kind {
		case "bool":
			value = map[string]string{"on": "off", "off": "on"}[v.boot.String]
		case "integer", "real":
			value = v.low.String
			if highest {
				value = v.up.String
			}
		case "enum":
			others := slices.DeleteFunc(slices.Clone(v.choices), func(choice string) bool { return choice == v.boot.String })
			if highest {
				slices.Reverse(others)
			}
			if len(others) > 0 { // a build without lz4 has one choice for compression
				value = others[0]
			}
		}
		if notHostile[v.name] != "" || value == "" {
			continue
		}
		if _, err := db.Exec(fmt.Sprintf("ALTER %s SET %s = %s", what, v.name, pq.QuoteLiteral(value))); err != nil {
			t.Logf("%s = %s: %v", v.name, value, err)
			continue
		}
		set++
	}
	if set < 120 {
		t.Errorf("only %d settings are hostile, want at least 120", set)
	}
}

// hostile creates functions and an access method with the names of those that the
// statements use, in a schema that a search path may name.
const hostile = `
CREATE SCHEMA hostile;
CREATE ACCESS METHOD hostile TYPE TABLE HANDLER heap_tableam_handler;
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''1970-01-01''::timestamptz';
CREATE FUNCTION hostile.starts_with(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
GRANT USAGE ON SCHEMA hostile TO PUBLIC;` + grants

// grants are the privileges that a server needs.
const grants = `
GRANT USAGE ON SCHEMA queued TO PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA queued TO PUBLIC;
GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA queued TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA queued TO PUBLIC`

// newHostileRole creates a database and a role with a hostile value of each setting.
func newHostileRole(t testing.TB, highest bool) (dsn, role string) {
	t.Helper()
	role = newTestRole(t)
	dsn = newPlainDatabase(t, "queued")
	admin := newTestDB(t, dsn)
	if _, err := admin.Exec(hostile); err != nil {
		t.Fatal(err)
	}
	makeHostile(t, admin, "ROLE "+role, highest)
	return dsn, role
}

// newTestRole creates a role that may log in. It is dropped after the databases that are
// created after it.
func newTestRole(t testing.TB) (name string) {
	t.Helper()
	admin, err := openDB(testPostgres.dsn("postgres"), 1)
	if err != nil {
		t.Fatal(err)
	}
	name = fmt.Sprintf("role%d", testDatabases.Add(1))
	if _, err := admin.Exec("CREATE ROLE " + name + " LOGIN"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		admin.Exec("DROP ROLE " + name)
		admin.Close()
	})
	return name
}

func TestEverythingWorksForAHostileRole(t *testing.T) {
	t.Parallel()
	for _, highest := range []bool{false, true} {
		t.Run(fmt.Sprintf("highest=%v", highest), func(t *testing.T) {
			t.Parallel()
			dsn, role := newHostileRole(t, highest)
			runExample(newTestServerOn(t, dsn+" user="+role))
		})
	}
}

func TestEverythingWorksInAHostileDatabase(t *testing.T) {
	t.Parallel()
	for _, highest := range []bool{false, true} {
		t.Run(fmt.Sprintf("highest=%v", highest), func(t *testing.T) {
			t.Parallel()
			dsn := newPlainDatabase(t, "queued")
			s := newTestStoreOn(t, dsn)
			if _, err := s.db.Exec(hostile); err != nil {
				t.Fatal(err)
			}
			makeHostile(t, s.db, "DATABASE "+databaseName(t, s), highest)
			runExample(newTestServerOn(t, dsn))
		})
	}
}

// -synchronous-commit is a minimum: a role or a database may set a higher level of
// synchronous_commit, and no connection commits at a lower one.
func TestCommitsAreDurableWhateverTheRoleSays(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ least, role, want string }{
		{"on", "off", "on"},
		{"on", "local", "on"},
		{"on", "remote_write", "on"},
		{"on", "on", "on"},
		{"on", "remote_apply", "remote_apply"},
		{"off", "off", "off"},
		{"off", "local", "local"},
		{"local", "off", "local"},
		{"remote_apply", "on", "remote_apply"},
	} {
		d := mustDatabase(t, newPlainDatabase(t, "queued")+" options='-c synchronous_commit="+v.role+"'")
		d.commit = v.least
		engine, err := d.openForEngine()
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Close()
		for _, db := range []*sql.DB{mustOpen(t, d), engine} {
			var got string
			if err := db.QueryRow("SELECT current_setting('synchronous_commit')").Scan(&got); err != nil || got != v.want {
				t.Errorf("at least %s, the role has %s: %s, %v, want %s", v.least, v.role, got, err, v.want)
			}
		}
	}
}

// The PostgreSQL of the tests has fsync off.
func TestServerWarnsThatPostgreSQLMayLoseMessages(t *testing.T) {
	t.Parallel()
	r := runServer(t, "-database-url", newPlainDatabase(t, "queued"), "-synchronous-commit", "off")
	if !strings.Contains(r.output.String(), `level=WARN msg="PostgreSQL can lose committed messages in a crash" disabled=fsync,full_page_writes`) {
		t.Errorf("the log does not warn:\n%s", r.output)
	}
	r.client().play([]step{
		{"GET", "/readyz", "", 200, `{"success":true}`},
		{"GET", "/readyz?verbose", "", 200, `{"success":true,"warnings":["fsync is off; PostgreSQL can lose committed messages in a crash","full_page_writes is off; PostgreSQL can lose committed messages in a crash"]}`},
	})
}
