package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lib/pq"
)

// testPostgres is the PostgreSQL of all tests. Each test has databases of its own.
var testPostgres *privatePostgres

// thisRun is this run of the tests. It ends the processes that the tests start.
var thisRun *testRun

// testTimeout is the time after which a test gives up waiting for an event. It is
// long because the machine may be busy.
const testTimeout = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv("QUEUED_TEST_RUN_MAIN") != "" { // see startProcess
		main()
		return
	}
	if dir := os.Getenv("QUEUED_TEST_JANITOR"); dir != "" {
		runJanitor(dir)
		return
	}
	if server := os.Getenv("QUEUED_TEST_WORKER"); server != "" {
		runWorker(server)
		return
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	debug.SetGCPercent(400) // tests with -race otherwise spend a fifth of their time on it
	debug.SetMemoryLimit(4 << 30)
	takeLibpqVariables(os.Getenv) // the variables of a developer must not affect the tests
	run, err := beginTestRun()
	if err == nil {
		thisRun = run
		defer run.end()
		testPostgres, err = startPostgres(context.Background(), run.dir+"/data", slog.New(slog.DiscardHandler),
			"-cfsync=off", "-cfull_page_writes=off", "-cwal_level=minimal", "-cmax_wal_senders=0", "-cmax_connections=400")
	}
	if err == nil {
		err = testPostgres.awaitReady(context.Background())
	}
	if err == nil {
		defer testPostgres.stop(true)
		err = migrateTemplate()
	}
	if err == nil {
		err = openAdmin()
		defer testAdmin.Close()
	}
	if text := os.Getenv(clusterVariable); err == nil && text != "" {
		if testCluster, err = openCluster(text); err == nil {
			defer testCluster.close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv("QUEUED_TEST_HANG") != "" { // see TestNothingStaysOfARunThatWasKilled
		fmt.Fprintln(os.Stderr, run.dir)
		select {}
	}
	return m.Run()
}

// migrateTemplate applies the schema to the template of the tests' databases.
func migrateTemplate() error {
	db, err := openDB(testPostgres.dsn("queued"), 1)
	if err != nil {
		return err
	}
	defer db.Close()
	return (&store{db: db, metrics: newMetrics(db)}).migrate(context.Background(), schemaSteps())
}

// openAdmin opens testAdmin and reads testCopying.
func openAdmin() error {
	dsn := testPostgres.dsn("postgres") + " options='-c lock_timeout=0'" // many tests copy the template at once
	var err error
	if testAdmin, err = sql.Open("postgres", dsn); err != nil {
		return err
	}
	return testAdmin.QueryRow("SELECT CASE WHEN current_setting('server_version_num')::integer >= 150000 THEN ' STRATEGY file_copy' ELSE '' END").Scan(&testCopying)
}

var (
	testAdmin     *sql.DB // creates and drops databases
	testCopying   string  // the end of CREATE DATABASE
	testDatabases atomic.Int64
)

// newTestDatabase copies a database for one test, and returns the connection string of
// the copy.
func newTestDatabase(t testing.TB, template string) string {
	t.Helper()
	if testCluster != nil && (template == "queued" || template == "template1") {
		return testCluster.newDatabase(t, template)
	}
	return newPlainDatabase(t, template)
}

// newPlainDatabase is newTestDatabase without Citus, for tests that create triggers, lock
// tables, create a hundred thousand queues, or end connections of PostgreSQL.
func newPlainDatabase(t testing.TB, template string) string {
	t.Helper()
	name := fmt.Sprintf("test%d", testDatabases.Add(1))
	if _, err := testAdmin.Exec("CREATE DATABASE " + name + " TEMPLATE " + template + testCopying); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testAdmin.Exec("DROP DATABASE " + name + " WITH (FORCE)") })
	return testPostgres.dsn(name)
}

// testConns is the number of connections of a server in a test besides those of its
// engine. There are some more than by default, because the test uses them too.
var testConns = defaultConnections.requests + 8

func newTestDB(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	return mustOpen(t, mustDatabase(t, dsn))
}

func mustDatabase(t testing.TB, dsn string) *database {
	t.Helper()
	d, err := newDatabase(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustConfig(t testing.TB, dsn string) pq.Config {
	t.Helper()
	c, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustOpen(t testing.TB, d *database) *sql.DB {
	t.Helper()
	db, err := d.open(testConns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// newTestStore returns the store of an empty database.
func newTestStore(t testing.TB) *store {
	t.Helper()
	return newTestStoreOn(t, newTestDatabase(t, "queued"))
}

func newTestStoreOn(t testing.TB, dsn string) *store {
	t.Helper()
	db := newTestDB(t, dsn)
	return &store{db: db, metrics: newMetrics(db), homes: homesIn(t, db)}
}

// homesIn returns the homes of a database, nil if the tests do not use Citus.
func homesIn(t testing.TB, db *sql.DB) *homes {
	t.Helper()
	if testCluster == nil {
		return nil
	}
	s := &store{db: db, homes: &homes{}}
	if err := s.readHomes(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s.homes
}

// testServer is a server on a real port, with a client and an inspector.
type testServer struct {
	client
	inspector
	t testing.TB
}

// mustTestConfig returns the defaults of the flags, except that receives may wait
// longer.
func mustTestConfig(t testing.TB) *config {
	t.Helper()
	c, err := parseConfig([]string{"-data-dir", "none", "-max-wait", testTimeout.String()}, func(string) string { return "" }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mustEngine starts an engine without full sweeps, so that a lost wake-up makes a test
// hang.
func mustEngine(t testing.TB, d *database, m *metrics, h *homes, quickSweep time.Duration) *engine {
	t.Helper()
	if h.areSeveral() {
		d.homes.set(*h.list.Load())
	}
	e, err := newEngine(d, slog.New(slog.DiscardHandler), m, time.Hour, quickSweep)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// newTestServer starts a server on an empty database.
func newTestServer(t testing.TB) *testServer {
	t.Helper()
	return newTestServerOn(t, newTestDatabase(t, "queued"))
}

// newPlainTestServer is newTestServer with newPlainDatabase.
func newPlainTestServer(t testing.TB) *testServer {
	t.Helper()
	return newTestServerOn(t, newPlainDatabase(t, "queued"))
}

// newTestServerOn starts a server on a database that may have other servers. Its
// timeouts for PostgreSQL are long, because many tests keep PostgreSQL busy.
func newTestServerOn(t testing.TB, dsn string) *testServer {
	t.Helper()
	return newTestServerTicking(t, dsn, 20*tick)
}

// newTestServerTicking starts a server that counts in ticks of this length how long
// PostgreSQL is unresponsive.
func newTestServerTicking(t testing.TB, dsn string, tick time.Duration) *testServer {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	d := mustDatabase(t, dsn)
	d.tick = tick
	db := mustOpen(t, d)
	m := newMetrics(db)
	h := homesIn(t, db)
	e := mustEngine(t, d, m, h, defaultQuickSweep)
	h = e.homes
	counter := newDepthCollector(db, log, m)
	counter.homes = h
	m.registry.MustRegister(counter)
	if h.areSeveral() {
		e.readPlacements(context.Background(), db)
	}
	c := mustTestConfig(t)
	s := newServer(serverConfig{
		log:             log,
		store:           &store{db: db, metrics: m, homes: h},
		engine:          e,
		metrics:         m,
		depth:           counter,
		history:         &queueHistory{depth: counter, metrics: m},
		limits:          c.limits,
		hosts:           hostPolicy{onLoopback: true},
		tokens:          new(atomic.Pointer[tokens]),
		admission:       newAdmission(log, c.maxConnections, c.maxBuffered),
		place:           databasePlace{Location: "queued at 127.0.0.1:5432"},
		transferTimeout: c.transferTimeout,
	})
	s.ready.Store(true)
	served := httptest.NewUnstartedServer(s)
	served.Listener = listener{Listener: served.Listener, admission: s.admission}
	served.Config.ConnContext = withConn
	served.Start()
	t.Cleanup(func() {
		e.drain()
		served.Close()
		counter.close()
		e.close()
	})
	return &testServer{
		client:    client{t: t, url: served.URL},
		inspector: inspector{server: s, t: t, dsn: dsn},
		t:         t,
	}
}

func mustDecode(t testing.TB, body string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
}

// eventually waits until a condition is true. It polls, so a test uses it only where
// it cannot wait for the event itself.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick, tooLong := time.NewTicker(time.Millisecond), time.After(testTimeout)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-tooLong:
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func checkDiff(t testing.TB, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s mismatch (-want +got):\n%s", what, diff)
	}
}

// mask replaces the values that differ between runs: ids of messages, times and ages.
func mask(s string) string {
	s = regexp.MustCompile(`(message_age_seconds":)\d+`).ReplaceAllString(s, "${1}AGE")
	s = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`).ReplaceAllString(s, "UUID")
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}`).ReplaceAllString(s, "TIME")
}

// syncBuffer is a bytes.Buffer that several goroutines may use.
type syncBuffer struct {
	mu chan struct{}
	b  bytes.Buffer
}

func newSyncBuffer() *syncBuffer { return &syncBuffer{mu: make(chan struct{}, 1)} }

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu <- struct{}{}
	defer func() { <-b.mu }()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu <- struct{}{}
	defer func() { <-b.mu }()
	return b.b.String()
}

// explain1 returns the generic plan of a statement with these arguments.
func explain1(t testing.TB, conn *sql.Conn, statement string, args []string) string {
	t.Helper()
	ctx := context.Background()
	if _, err := conn.ExecContext(ctx, "PREPARE explained AS "+statement); err != nil {
		t.Fatal(err)
	}
	defer conn.ExecContext(ctx, "DEALLOCATE explained")
	execute := "EXPLAIN EXECUTE explained"
	if len(args) > 0 {
		execute += "(" + strings.Join(args, ", ") + ")"
	}
	rows, err := conn.QueryContext(ctx, execute)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	return plan.String()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
