package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

// startOn runs a server that cannot start, and returns its error.
func startOn(t testing.TB, dsn string) string {
	t.Helper()
	output := newSyncBuffer()
	ended := make(chan error, 1)
	ctx, stop := context.WithTimeout(context.Background(), testTimeout)
	defer stop()
	go func() {
		ended <- run(ctx, []string{"-listen", "127.0.0.1:0", "-database-url", dsn}, func(string) string { return "" }, nil, io.Discard, output)
	}()
	err := <-ended
	if err == nil {
		t.Fatalf("the server on %s does not end by itself:\n%s", dsn, output)
	}
	if strings.Contains(output.String(), "WARN") {
		t.Errorf("the server warns before it ends:\n%s", output)
	}
	return err.Error()
}

// adminOf returns connections of the superuser to a new database from a template.
func adminOf(t testing.TB, template string) (dsn string, exec func(statement string)) {
	t.Helper()
	dsn = newPlainDatabase(t, template)
	db := newTestDB(t, dsn)
	return dsn, func(statement string) {
		t.Helper()
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

// An error that lasts until an operator removes its cause ends the start at once.
func TestStartEndsAfterAPermanentError(t *testing.T) {
	t.Parallel()
	role := newTestRole(t)
	granted, exec := adminOf(t, "queued")
	exec("GRANT USAGE ON SCHEMA queued TO " + role)
	exec("GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA queued TO " + role)
	exec("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA queued TO " + role)
	view, exec := adminOf(t, "queued")
	exec("ALTER TABLE queued.messages RENAME TO rows; CREATE VIEW queued.messages AS SELECT * FROM queued.rows")
	foreign, exec := adminOf(t, "template1")
	exec("CREATE SCHEMA queued; CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere; CREATE FOREIGN TABLE queued.messages (id uuid) SERVER elsewhere")
	others, exec := adminOf(t, "template1")
	exec("CREATE SCHEMA queued; CREATE TABLE queued.schema_version (name text)")
	sameVersion, exec := adminOf(t, "template1")
	exec(fmt.Sprintf("CREATE SCHEMA queued; CREATE TABLE queued.schema_version AS SELECT %d AS version", len(schemaSteps())))
	noFunction, exec := adminOf(t, "queued")
	exec("DROP FUNCTION queued.claim_groups")
	empty, exec := adminOf(t, "queued")
	exec("DELETE FROM queued.settings")
	event, exec := adminOf(t, "template1")
	exec("CREATE FUNCTION public.never() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no tables here'; END $$; CREATE EVENT TRIGGER never ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.never()")
	closed, exec := adminOf(t, "queued")
	replica := newTestRole(t)
	exec("ALTER ROLE " + replica + " SET session_replication_role = replica")
	locked := newTestRole(t)
	exec("ALTER ROLE " + locked + " NOLOGIN")
	for name, v := range map[string]struct{ dsn, want string }{
		"no database":            {testPostgres.dsn("nowhere"), "create the database"},
		"no such role":           {closed + " user=unknown", "check the user and the password"},
		"may not log in":         {closed + " user=" + locked, "check the user and the password"},
		"no right to create":     {newPlainDatabase(t, "template1") + " user=" + role, "permission denied for database"},
		"no rights at all":       {closed + " user=" + role, "permission denied for schema queued"},
		"no right to update":     {granted + " user=" + role, "lacks privileges on queued.consumed_messages, role " + role + " lacks privileges on queued.deduplications"},
		"triggers are off":       {closed + " user=" + replica, `permission denied to set parameter "session_replication_role"`},
		"a view":                 {view, "queued.messages is not a table"},
		"a foreign table":        {foreign, `relation "messages" already exists`},
		"another schema_version": {others, `column "version" does not exist`},
		"one of our version":     {sameVersion, "queued.consumed_messages is missing"},
		"no function":            {noFunction, "function queued.claim_groups is missing"},
		"no settings":            {empty, "queued.settings is empty"},
		"an event trigger":       {event, "no tables here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := startOn(t, v.dsn); !strings.Contains(got, v.want) || strings.Contains(got, "\n") {
				t.Errorf("the start ends with %q, want %q", got, v.want)
			}
		})
	}
}

// While a database refuses a server, requests get a 503, the log says so once, and the
// server does not try to log in again and again. When the cause is removed, the server
// recovers by itself.
func TestServerRecoversWhenADatabaseNoLongerRefusesIt(t *testing.T) {
	t.Parallel()
	const cut = "; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ROLE'"
	for name, v := range map[string]struct{ trouble, mend string }{
		"login":   {"ALTER ROLE ROLE NOLOGIN" + cut, "ALTER ROLE ROLE LOGIN"},
		"closed":  {"ALTER DATABASE DATABASE ALLOW_CONNECTIONS false" + cut, "ALTER DATABASE DATABASE ALLOW_CONNECTIONS true"},
		"rights":  {"REVOKE UPDATE, INSERT ON ALL TABLES IN SCHEMA queued FROM PUBLIC", "GRANT UPDATE, INSERT ON ALL TABLES IN SCHEMA queued TO PUBLIC"},
		"schema":  {"ALTER SCHEMA queued RENAME TO away", "ALTER SCHEMA away RENAME TO queued"},
		"columns": {"ALTER TABLE queued.messages RENAME id TO away; ALTER TABLE queued.settings RENAME version TO away", "ALTER TABLE queued.messages RENAME away TO id; ALTER TABLE queued.settings RENAME away TO version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			role := newTestRole(t)
			dsn, p := newProxiedDatabase(t)
			admin := newTestStoreOn(t, dsn)
			admin.db.SetMaxOpenConns(1)
			names := strings.NewReplacer("ROLE ROLE", "ROLE "+role, "'ROLE'", "'"+role+"'", "DATABASE DATABASE", "DATABASE "+databaseName(t, admin))
			outside := newTestDB(t, testPostgres.dsn("postgres"))
			exec := func(statement string) {
				t.Helper()
				db := admin.db
				if strings.HasPrefix(statement, "ALTER DATABASE") {
					db = outside
				}
				if _, err := db.Exec(names.Replace(statement)); err != nil {
					t.Fatal(err)
				}
			}
			exec(grants)
			r := runServer(t, "-database-url", dsn+" user="+role)
			s := r.client()
			s.mustTopic("t")
			s.mustTopic("other")
			poll := s.poll(context.Background(), "other", "?wait_seconds=20")
			eventually(t, "the receiver waits", func() bool {
				return strings.Contains(s.must(200, "GET", "/metrics", ""), `queued_statement_duration_seconds_count{statement="claim"} 1`)
			})
			id := s.publish("t", 0)[0]
			s.receive("t", "")
			said := len(r.output.String())

			exec(v.trouble)
			connections := p.accepted()
			requests := [][3]string{
				{"POST", "/topics/t/messages", `{"data":{}}`},
				{"PUT", "/messages/" + id + "/ack", ""},
				{"POST", "/queues", `{"id":"new","ack_deadline_seconds":60,"message_retention_seconds":3600}`},
			}
			for range 40 {
				for _, request := range requests {
					if got := s.do(request[0], request[1], request[2]); got.status != 503 || got.header.Get("Retry-After") == "" {
						t.Fatalf("%v = %d %s, want 503 with Retry-After", request, got.status, got.body)
					}
				}
			}
			if name != "columns" { // readyz does not check columns
				s.must(503, "GET", "/readyz", "")
			}
			if n := p.accepted() - connections; n > maxServerConnections+10 {
				t.Errorf("the server tried to connect %d times", n)
			}
			exec(v.mend)
			eventually(t, "the server publishes again", func() bool {
				return s.do("POST", "/topics/t/messages", `{"data":{}}`).status == 201
			})
			eventually(t, "the server is ready again", func() bool { return s.do("GET", "/readyz", "").status == 200 })
			eventually(t, "the server receives again", func() bool { return s.do("GET", "/queues/t/messages", "").status == 200 })
			s.must(201, "POST", "/queues/other/messages", `{"data":{"n":1}}`)
			checkDiff(t, "received by the long poll", []int{1}, numbers(s.await(poll)))
			lines := 0
			for _, line := range strings.Split(r.output.String()[said:], "\n") {
				if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
					lines++
				}
			}
			if lines == 0 || lines > 4 {
				t.Errorf("the log has %d lines about it:\n%s", lines, r.output.String()[said:])
			}
		})
	}
}

// The keys that a server caches are invalid in another schema that replaces the first.
func TestSchemaThatIsDroppedAndCreatedAgain(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("b")
	s.mustTopic("a")
	s.publish("a", 1)
	s.exec("DROP SCHEMA queued CASCADE")
	s.must(503, "POST", "/topics/a/messages", `{"data":{}}`)
	s.must(503, "GET", "/readyz", "")
	checkDiff(t, "schemas that the server created by itself", 0, s.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'queued'"))

	if err := s.store.migrate(context.Background(), schemaSteps()); err != nil {
		t.Fatal(err)
	}
	s.mustTopic("a")
	s.mustTopic("b")
	s.publish("a", 2)
	checkDiff(t, "in a", []int{2}, numbers(s.receive("a", "")))
	checkDiff(t, "in b", []int{}, numbers(s.receive("b", "")))
}
