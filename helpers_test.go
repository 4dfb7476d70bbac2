package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lib/pq"
)

// testPostgres is the cluster that all tests share; each test has databases of
// its own in it.
var testPostgres *privatePostgres

// thisRun is what these tests are, for who starts processes in them.
var thisRun *testRun

// testTimeout is how long a test waits for what should happen at once. It is
// long because the machine may be busy; nothing that works takes as long.
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
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	takeLibpqVariables(os.Getenv) // which are for who tests by hand
	run, err := beginTestRun()
	if err == nil {
		thisRun = run
		defer run.end()
		testPostgres, err = startPostgres(context.Background(), run.dir+"/data", slog.New(slog.DiscardHandler),
			"-cfsync=off", "-cmax_connections=400")
	}
	if err == nil {
		err = testPostgres.awaitReady(context.Background())
	}
	if err == nil {
		defer testPostgres.stop(true)
		err = migrateTemplate()
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

// migrateTemplate applies the schema to the database that those of tests are
// copies of.
func migrateTemplate() error {
	db, err := openDB(testPostgres.dsn("queued"), 1)
	if err != nil {
		return err
	}
	defer db.Close()
	return (&store{db, newMetrics(db)}).migrate(context.Background(), schemaSteps())
}

var testDatabases atomic.Int64

// newTestDatabase makes a copy of a database, for one test, and returns its
// connection string.
func newTestDatabase(t testing.TB, template string) string {
	t.Helper()
	admin, err := openDB(testPostgres.dsn("postgres"), 1)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test%d", testDatabases.Add(1))
	if _, err := admin.Exec("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		admin.Exec("DROP DATABASE " + name + " WITH (FORCE)")
		admin.Close()
	})
	return testPostgres.dsn(name)
}

// testConns is how many connections a server in a test has besides its engine's:
// some more than a real one, because the test looks through them too.
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
	return &store{db, newMetrics(db)}
}

// testServer is a server on a real port, and a client of it.
type testServer struct {
	*server
	t     testing.TB
	dsn   string
	url   string
	token string // sent with each request, if there is one
	trace trace  // likewise
}

// tracing returns a client of the server that sends a request id and a traceparent.
func (s *testServer) tracing(requestID, traceparent string) *testServer {
	c := *s
	c.trace = trace{requestID, traceparent}
	return &c
}

// with returns a client of the server that sends a token.
func (s *testServer) with(token string) *testServer {
	c := *s
	c.token = token
	return &c
}

func testLimits() limits {
	return limits{
		ackDeadline:        bounds{1, 600},
		messageRetention:   bounds{600, 1209600},
		maxDeliveries:      bounds{1, 1000},
		deliveryDelay:      bounds{1, 900},
		defaultAckDeadline: defaultAckDeadline,
		requeueLimit:       defaultRequeueLimit,
		maxLimit:           1000,
		maxWait:            testTimeout.Seconds(),
		maxBody:            1 << 20,
	}
}

// mustEngine starts an engine whose slow look never comes: a lost wake-up shows
// as a test that hangs.
func mustEngine(t testing.TB, d *database, m *metrics, quickSweep time.Duration) *engine {
	t.Helper()
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

// newTestServerOn starts a server on a database that may have other servers. It is
// patient with PostgreSQL, which many tests keep busy.
func newTestServerOn(t testing.TB, dsn string) *testServer {
	t.Helper()
	return newTestServerTicking(t, dsn, 20*tick)
}

// newTestServerTicking starts a server that counts by such ticks how long
// PostgreSQL does not answer.
func newTestServerTicking(t testing.TB, dsn string, tick time.Duration) *testServer {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	d := mustDatabase(t, dsn)
	d.tick = tick
	db := mustOpen(t, d)
	m := newMetrics(db)
	e := mustEngine(t, d, m, defaultQuickSweep)
	counter := newDepthCollector(db, log, m)
	m.registry.MustRegister(counter)
	s := newServer(log, &store{db, m}, e, m, counter, testLimits())
	s.checkHost = true
	s.ready.Store(true)
	h := httptest.NewUnstartedServer(s)
	h.Listener = listener{Listener: h.Listener, admission: s.admission}
	h.Config.ConnContext = withConn
	h.Start()
	t.Cleanup(func() {
		e.drain()
		h.Close()
		counter.close()
		e.close()
	})
	return &testServer{server: s, t: t, dsn: dsn, url: h.URL}
}

// reply is an answer to a request.
type reply struct {
	status int
	header http.Header
	body   string
}

// send makes a request, and may be called from any goroutine.
func (s *testServer) send(ctx context.Context, method, path, body string) (reply, error) {
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, in)
	if err != nil {
		return reply{}, err
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	if s.trace.requestID != "" {
		r.Header.Set("X-Request-Id", s.trace.requestID)
	}
	if s.trace.traceparent != "" {
		r.Header.Set("Traceparent", s.trace.traceparent)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer answer.Body.Close()
	out, err := io.ReadAll(answer.Body)
	if err == nil {
		recordReply(answer, out)
	}
	return reply{answer.StatusCode, answer.Header, string(out)}, err
}

// recordReply appends an answer to the file in QUEUED_TEST_REPLIES, for the
// module in openapi/ to compare with the description of the API.
func recordReply(answer *http.Response, body []byte) {
	path := os.Getenv("QUEUED_TEST_REPLIES")
	if path == "" {
		return
	}
	line, err := json.Marshal(map[string]any{
		"method": answer.Request.Method, "target": answer.Request.URL.RequestURI(), "status": answer.StatusCode,
		"header": answer.Header, "body": body,
	})
	if err != nil {
		panic(err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	if _, err := file.Write(append(line, '\n')); err != nil {
		panic(err)
	}
}

func (s *testServer) do(method, path, body string) reply {
	s.t.Helper()
	v, err := s.send(context.Background(), method, path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// must makes a request that has to be answered with this status, and returns
// the body.
func (s *testServer) must(status int, method, path, body string) string {
	s.t.Helper()
	v := s.do(method, path, body)
	if v.status != status {
		s.t.Fatalf("%s %s %s = %d %s, want %d", method, path, body, v.status, v.body, status)
	}
	return v.body
}

// mustQueue makes a queue with some settings, as JSON members, besides the
// required ones.
func (s *testServer) mustQueue(id string, settings ...string) {
	s.t.Helper()
	all := strings.Join(append([]string{fmt.Sprintf("%q:%q", "id", id)}, settings...), ",")
	if !strings.Contains(all, "ack_deadline_seconds") {
		all += `,"ack_deadline_seconds":60`
	}
	s.must(201, "POST", "/queues", "{"+all+`,"message_retention_seconds":3600}`)
}

// mustTopic makes a topic and a queue of the same name that gets all of it.
func (s *testServer) mustTopic(id string, settings ...string) {
	s.t.Helper()
	s.must(201, "POST", "/topics", fmt.Sprintf(`{"id":%q}`, id))
	s.mustQueue(id, append(settings, fmt.Sprintf(`"topic_id":%q`, id))...)
}

// wireMessage is a message as a client sees it.
type wireMessage struct {
	ID               string          `json:"id"`
	QueueID          string          `json:"queue_id"`
	Data             json.RawMessage `json:"data"`
	Attributes       json.RawMessage `json:"attributes"`
	DeliveryAttempts int             `json:"delivery_attempts"`
	ExpiredAt        string          `json:"expired_at"`
	ScheduledAt      string          `json:"scheduled_at"`
	CreatedAt        string          `json:"created_at"`
	UpdatedAt        string          `json:"updated_at"`
}

func decodeMessages(body string) ([]wireMessage, error) {
	var v struct {
		Data []wireMessage `json:"data"`
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(&v)
	if err == nil && v.Data == nil {
		err = fmt.Errorf("no data in %s", body)
	}
	return v.Data, err
}

func (s *testServer) messages(body string) []wireMessage {
	s.t.Helper()
	v, err := decodeMessages(body)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// publish publishes {"n": n} for each of the numbers, one after the other.
func (s *testServer) publish(topicID string, numbers ...int) (ids []string) {
	s.t.Helper()
	for _, n := range numbers {
		body := s.must(201, "POST", "/topics/"+topicID+"/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
		for _, m := range s.messages(body) {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// receive returns what a receive with this query answers.
func (s *testServer) receive(queueID, query string) []wireMessage {
	s.t.Helper()
	return s.messages(s.must(200, "GET", "/queues/"+queueID+"/messages"+query, ""))
}

// numbers returns the n of each message.
func numbers(messages []wireMessage) []int {
	all := []int{}
	for _, m := range messages {
		var v struct{ N int }
		if json.Unmarshal(m.Data, &v) != nil {
			v.N = -1
		}
		all = append(all, v.N)
	}
	return all
}

// exec changes the database behind the server's back, to move time.
func (s *testServer) exec(statement string, args ...any) {
	s.t.Helper()
	if _, err := s.store.db.Exec(statement, args...); err != nil {
		s.t.Fatal(err)
	}
}

// count returns the number that a query selects.
func (s *testServer) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.store.db.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// waiting waits until that many receivers wait for the queue, and its
// dispatcher has gone to sleep over it.
func (s *testServer) waiting(queueID string, receivers int) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%d receivers wait for %s", receivers, queueID), func() bool {
		s.engine.mu.Lock()
		defer s.engine.mu.Unlock()
		d := s.engine.dispatchers[dispatcherKey{queueID: queueID}]
		return d == nil && receivers == 0 || d != nil && len(d.line) == receivers && d.sleeping && !d.woken
	})
}

// inHand returns how many bytes of requests and answers the server holds.
func (s *testServer) inHand() int64 {
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	return s.admission.inHand
}

// setRoom leaves room for that many bytes once no request has some. It returns
// what gives the rest back, once that is so again.
func (s *testServer) setRoom(left int64) (giveBack func()) {
	s.t.Helper()
	set := func(from, to int64) {
		s.t.Helper()
		s.eventually(fmt.Sprintf("%d bytes in hand", from), func() bool { return s.inHand() == from })
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		s.admission.inHand = to
	}
	filled := s.admission.maxInHand - left
	set(0, filled)
	return func() { s.t.Helper(); set(filled, 0) }
}

// eventually waits until something is true.
func (s *testServer) eventually(what string, is func() bool) {
	s.t.Helper()
	for end := time.Now().Add(testTimeout); !is(); {
		if time.Now().After(end) {
			s.t.Fatalf("did not happen: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// poll starts a receive in the background and returns where its answer comes.
func (s *testServer) poll(ctx context.Context, queueID, query string) <-chan polled {
	result := make(chan polled, 1)
	go func() {
		v, err := s.send(ctx, "GET", "/queues/"+queueID+"/messages"+query, "")
		p := polled{reply: v, err: err}
		if err == nil && v.status == 200 {
			p.messages, p.err = decodeMessages(v.body)
		}
		result <- p
	}()
	return result
}

type polled struct {
	reply
	messages []wireMessage
	err      error
}

// await returns the answer to a poll that has to be a 200.
func (s *testServer) await(poll <-chan polled) []wireMessage {
	s.t.Helper()
	select {
	case p := <-poll:
		if p.err != nil || p.status != 200 {
			s.t.Fatalf("receive = %d %s, %v", p.status, p.body, p.err)
		}
		return p.messages
	case <-time.After(testTimeout):
		s.t.Fatal("the long poll was not answered")
		return nil
	}
}

// wantMetrics checks that a scrape has lines that begin so.
func (s *testServer) wantMetrics(lines ...string) {
	s.t.Helper()
	got := s.must(200, "GET", "/metrics", "")
	for _, want := range lines {
		if !strings.Contains(got, "\n"+want) {
			s.t.Errorf("metrics lack %s", want)
		}
	}
}

func checkDiff(t testing.TB, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s mismatch (-want +got):\n%s", what, diff)
	}
}

// mask replaces what differs from run to run: ids of messages and times.
func mask(s string) string {
	s = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`).ReplaceAllString(s, "UUID")
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}`).ReplaceAllString(s, "TIME")
}

// syncBuffer is a bytes.Buffer for several goroutines.
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
