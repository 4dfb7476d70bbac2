package main

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"
)

func TestStalledConnectionTimesOut(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := newDatabase("dbname=q")
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialer{database: d, timeout: 10 * time.Millisecond}.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("read from a silent peer = %v, want a timeout", err)
	}
}

func TestConnectionsHaveOurSettings(t *testing.T) {
	t.Parallel()
	db := newTestDB(t, newPlainDatabase(t, "template1")+" options='-c statement_timeout=0 -c enable_sort=on'")
	for name, want := range map[string]string{"statement_timeout": "15s", "lock_timeout": "1s", "enable_sort": "off", "timezone": "UTC", "plan_cache_mode": "force_generic_plan"} {
		var got string
		if err := db.QueryRow("SELECT current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %s, %v, want %s", name, got, err, want)
		}
	}
}

// Setting up a connection takes longer than the time limit of the role.
func TestConnectionsAreSetUpWhateverTheTimeLimitOfTheRole(t *testing.T) {
	t.Parallel()
	db := newTestDB(t, newTestDatabase(t, "template1"))
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), "SET statement_timeout = 20"); err != nil {
		t.Fatal(err)
	}
	slow := strings.Replace(connectionSettings, "SET search_path", "SELECT pg_sleep(0.1); SET search_path", 1)
	if _, err := conn.ExecContext(t.Context(), slow); err != nil {
		t.Error(err)
	}
	var limit string
	if err := conn.QueryRowContext(t.Context(), "SELECT current_setting('statement_timeout')").Scan(&limit); err != nil || limit != "15s" {
		t.Errorf("the limit of the connection is %s, %v, want 15s", limit, err)
	}
}

// With a pooler that reassigns connections between statements, two clients can have the
// same connection to PostgreSQL.
func TestPoolerBetweenStatementsIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	ctx := context.Background()
	if err := checkSessions(ctx, s); err != nil {
		t.Errorf("connections without a pooler: %v", err)
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := checkDistinct(ctx, conn, conn); !hopeless(err) {
		t.Errorf("one connection for two clients: %v, want a permanent error", err)
	}
}

// newProxiedDatabase creates a database and a proxy to it. The connection string asks
// for TLS, which PostgreSQL does not offer.
func newProxiedDatabase(t testing.TB) (dsn string, p *proxy) {
	t.Helper()
	dsn = newPlainDatabase(t, "queued")
	c, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p = newProxy(t, "unix", filepath.Join(c.Host, socketName))
	host, port, _ := net.SplitHostPort(p.address)
	return fmt.Sprintf("%s host=%s port=%s sslmode=prefer", dsn, host, port), p
}

func newProxiedServer(t testing.TB) (*testServer, *proxy) {
	t.Helper()
	dsn, p := newProxiedDatabase(t)
	return newTestServerTicking(t, dsn, 3*tick), p
}

// lib/pq drops some connections without closing them.
func TestConnectionsThatWereClosedLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	dsn, p := newProxiedDatabase(t)
	d := mustDatabase(t, dsn)
	db := mustOpen(t, d)
	for range 3 {
		conn, err := db.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it
		conn.Close()
	}
	d.mu.Lock()
	checkDiff(t, "connections", 0, len(d.conns))
	d.mu.Unlock()
	eventually(t, "no connection is open", func() bool { return p.open() == 0 })
}

// Each response takes longer than silenceTimeout, and connecting, which takes several,
// longer than pingTimeout. The database still counts as available.
func TestSlowNetworkDoesNotCountAsUnresponsive(t *testing.T) {
	t.Parallel()
	dsn, p := newProxiedDatabase(t)
	output := newSyncBuffer()
	d := mustDatabase(t, dsn)
	d.tick = 6 * tick // or a busy machine would be part of the way
	p.slow(d.tick*silenceTimeout + d.tick/2)
	m := newMetrics(mustOpen(t, d))
	e, err := newEngine(d, newLog(output, slog.LevelInfo, "text"), m, time.Hour, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	if err := e.ack(context.Background(), ackItem{id: newID()}); err != nil {
		t.Error(err)
	}
	eventually(t, "the engine listens", e.main.notifier.listening)
	if d.unresponsive.Load() || strings.Contains(output.String(), "does not respond") {
		t.Errorf("a slow database counts as unresponsive:\n%s", output)
	}
}

// PostgreSQL may close the connection of the pings while it responds on all others.
func TestLostPingConnectionEndsNoStatement(t *testing.T) {
	t.Parallel()
	s := newTestServerTicking(t, newTestDatabase(t, "queued"), 3*tick)
	outside := newTestDB(t, s.dsn)
	count := func(query string, args ...any) (n int) {
		if err := outside.QueryRow(query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const pings = "FROM pg_stat_activity WHERE query = ';' AND datname = current_database()"
	result := make(chan error, 1)
	go func() {
		_, err := s.store.db.Exec("SELECT pg_sleep(60)")
		result <- err
	}()
	eventually(t, "the server pings PostgreSQL", func() bool { return count("SELECT count(*) "+pings) > 0 })
	var ended string
	if err := outside.QueryRow("SELECT array_agg(pid) FROM (SELECT pid, pg_terminate_backend(pid) " + pings + ") AS ended").Scan(&ended); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server pings on a new connection", func() bool {
		return count("SELECT count(*) "+pings+" AND pid <> ALL ($1::integer[])", ended) > 0
	})
	if _, err := outside.Exec("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !rejected(err) {
		t.Errorf("the statement ended with %v, want its cancellation", err)
	}
}

// countGoroutines returns a function that counts the goroutines that the calling one
// starts from now on, directly or indirectly. Goroutines of other tests do not count.
func countGoroutines(t *testing.T) (count func() int) {
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("test", t.Name())))
	of := regexp.MustCompile(`(?m)^(\d+) @ .*\n# labels: \{"test":"` + t.Name() + `"\}$`)
	return func() (n int) {
		var profile bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&profile, 1)
		for _, m := range of.FindAllStringSubmatch(profile.String(), -1) {
			same, _ := strconv.Atoi(m[1])
			n += same
		}
		return n
	}
}

// While PostgreSQL is unresponsive, requests get a 503 long before a connection times
// out. Receivers that wait for a message keep waiting.
func TestUnresponsiveDatabase(t *testing.T) {
	t.Parallel()
	count := countGoroutines(t)
	s, p := newProxiedServer(t)
	s.mustTopic("t")
	s.mustQueue("other")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	ctx, cancel := context.WithTimeout(context.Background(), networkTimeout/2)
	defer cancel()
	poll := s.poll(ctx, "other", fmt.Sprintf("?wait_seconds=%v", testTimeout.Seconds()))
	s.waiting("other", 1)
	goroutines := count()

	p.freeze()
	for range 3 {
		results := make(chan error)
		requests := [][3]string{
			{"POST", "/topics/t/messages", `{"data":{}}`},
			{"POST", "/queues/t/messages/batch", `{"messages":[{"data":{}}]}`},
			{"GET", "/queues/t/messages", ""},
			{"GET", "/queues/t/messages?wait_seconds=20", ""},
			{"GET", "/queues/other/messages", ""}, // another receiver already waits there
			{"GET", "/queues/other/messages?wait_seconds=20", ""},
			{"PUT", "/messages/" + id + "/ack", ""},
			{"PUT", "/messages/" + id + "/nack", ""},
			{"PUT", "/messages/" + id + "/extend", `{"ack_deadline_seconds":10}`},
			{"GET", "/messages/" + id, ""},
			{"GET", "/queues", ""},
			{"GET", "/queues/t/stats", ""},
			{"POST", "/topics", `{"id":"u"}`},
			{"PUT", "/queues/t/purge", ""},
			{"PUT", "/queues/t/redrive", `{"destination_queue_id":"other"}`},
			{"GET", "/readyz", ""},
		}
		for _, r := range requests {
			go func() {
				v, err := s.send(ctx, r[0], r[1], r[2])
				if err == nil && (v.status != 503 || v.header.Get("Retry-After") == "") {
					err = fmt.Errorf("%s %s = %d %s, want 503 with Retry-After", r[0], r[1], v.status, v.body)
				}
				results <- err
			}()
		}
		for range requests {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		s.must(200, "GET", "/livez", "")
	}
	eventually(t, "goroutines do not pile up", func() bool { return count() < goroutines+50 })

	p.thaw()
	eventually(t, "the server is ready again", func() bool { return s.do("GET", "/readyz", "").status == 200 })
	s.must(201, "POST", "/queues/other/messages", `{"data":{"n":2}}`)
	checkDiff(t, "received by the long poll", []int{2}, numbers(s.await(poll)))
	eventually(t, "the server listens again", s.engine.main.notifier.listening)
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
}

func TestConnectionsAreSharedOut(t *testing.T) {
	t.Parallel()
	if c := shareConnections(leastConnections); c != (connections{requests: 2, claimers: 1, batchers: 2}) {
		t.Errorf("the minimum is divided as %+v", c)
	}
	if c := defaultConnections; c != (connections{requests: 9, claimers: 2, batchers: nodeBatchers*batcherWorkers + 2}) {
		t.Errorf("the default is divided as %+v", c)
	}
	for n := leastConnections; n <= maxServerConnections; n++ {
		c := shareConnections(n)
		if c.requests+c.claimers+c.batchers+otherConnections != n || c.requests < 2 || c.claimers < 1 || c.batchers < 2 {
			t.Errorf("%d connections are divided as %+v", n, c)
		}
	}
}

// Two servers, as during a replacement, share a PostgreSQL with 20 connections, of which
// three are reserved for superusers.
func TestFewConnectionsServeAllAPIs(t *testing.T) {
	t.Parallel()
	p, err := startPostgres(context.Background(), newDataDir(t), slog.New(slog.DiscardHandler), "-cfsync=off", "-cmax_connections=20")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop(true) })
	if err := p.awaitReady(context.Background()); err != nil {
		t.Fatal(err)
	}
	admin, err := openDB(p.dsn("postgres"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.Exec("CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE queued TO app"); err != nil {
		t.Fatal(err)
	}
	dsn := strings.Replace(p.dsn("queued"), "user=queued", "user=app", 1)
	var servers []*client
	for _, name := range []string{"a", "b"} {
		r := runServer(t, "-database-url", dsn+" application_name="+name, "-max-database-connections", fmt.Sprint(leastConnections), "-cleanup-interval", "50ms")
		servers = append(servers, r.client())
	}
	servers[0].mustTopic("t")
	servers[0].mustQueue("dead")
	ctx, cancel := context.WithTimeout(context.Background(), 4*testTimeout)
	defer cancel()
	ids := make(chan string, 1000)
	const rounds = 10
	var group sync.WaitGroup
	for _, s := range servers {
		for _, request := range [][3]string{
			{"POST", "/topics/t/messages", `{"data":{}}`},
			{"POST", "/queues/t/messages", `{"data":{},"group":"g"}`},
			{"POST", "/queues/t/messages/batch", `{"messages":[{"data":{}},{"data":{}}]}`},
			{"GET", "/queues/t/messages?limit=1", ""},
			{"GET", "/queues/dead/messages?wait_seconds=0.1", ""},
			{"PUT", "/messages/ID/ack", ""},
			{"PUT", "/messages/ID/nack", ""},
			{"PUT", "/messages/ID/extend", `{"ack_deadline_seconds":10}`},
			{"GET", "/messages/ID", ""},
			{"POST", "/queues", `{"id":"more","ack_deadline_seconds":30,"message_retention_seconds":3600}`},
			{"DELETE", "/queues/more", ""},
			{"GET", "/overview", ""},
			{"GET", "/queues/t/stats", ""},
			{"GET", "/queues/t/messages/peek", ""},
			{"GET", "/queues/t/groups", ""},
			{"PUT", "/queues/dead/purge", ""},
			{"PUT", "/queues/dead/redrive", `{"destination_queue_id":"t"}`},
			{"GET", "/metrics", ""},
			{"GET", "/readyz", ""},
			{"GET", "/health", ""},
			{"POST", "/enqueue/sms/g/", `{"job_id":"JOB","payload":{},"interval":1}`},
			{"GET", "/dequeue/sms/", ""},
			{"POST", "/finish/sms/g/JOB/", ""},
			{"GET", "/metrics/sms/g/", ""},
			{"POST", "/in/t", "body"},
			{"GET", "/out/t", ""},
			{"POST", "/message", `{"channel":"t","payload":{}}`},
			{"GET", "/queue/t", ""},
		} {
			group.Go(func() {
				for n := range rounds {
					id := newID()
					if strings.Contains(request[1], "/ID") {
						select {
						case id = <-ids:
						default:
						}
					}
					fill := strings.NewReplacer("ID", id, "JOB", fmt.Sprint("job", n))
					v, err := s.send(ctx, request[0], fill.Replace(request[1]), fill.Replace(request[2]))
					if err != nil || v.status >= 500 {
						t.Errorf("%s %s = %d %s, %v", request[0], request[1], v.status, v.body, err)
						return
					}
					if messages, err := decodeMessages(v.body); err == nil && strings.Contains(request[1], "limit") {
						for _, m := range messages {
							select {
							case ids <- m.ID:
							default:
							}
						}
					}
				}
			})
		}
	}
	served := make(chan struct{})
	go func() {
		group.Wait()
		close(served)
	}()
	most := map[string]int{}
	for done := false; !done; {
		select {
		case <-served:
			done = true
		case <-time.After(10 * time.Millisecond):
		}
		rows, err := admin.Query("SELECT application_name, count(*) FROM pg_stat_activity WHERE usename = 'app' GROUP BY application_name")
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var name string
			var n int
			if err := rows.Scan(&name, &n); err != nil {
				t.Fatal(err)
			}
			most[name] = max(most[name], n)
		}
		rows.Close()
	}
	for _, name := range []string{"a", "b"} {
		if most[name] == 0 || most[name] > leastConnections {
			t.Errorf("server %s has %d connections, want 1 to %d", name, most[name], leastConnections)
		}
	}
}

// A lost connection fails only the requests that use it.
func TestRestartedDatabase(t *testing.T) {
	t.Parallel()
	s, p := newProxiedServer(t)
	s.mustTopic("t")
	poll := s.poll(context.Background(), "t", "?wait_seconds=20")
	s.waiting("t", 1)
	p.refuse(true)
	p.reset()
	s.must(503, "GET", "/readyz", "")
	s.must(503, "POST", "/topics/t/messages", `{"data":{}}`)
	p.refuse(false)
	eventually(t, "the server publishes again", func() bool {
		return s.do("POST", "/topics/t/messages", `{"data":{"n":1}}`).status == 201
	})
	checkDiff(t, "received by the long poll", []int{1}, numbers(s.await(poll)))
	eventually(t, "the server listens again", s.engine.main.notifier.listening)
}

func TestMetricsShowWhetherTheDatabaseIsAvailable(t *testing.T) {
	t.Parallel()
	s, p := newProxiedServer(t)
	up := func(want string) func() bool {
		return func() bool {
			return strings.Contains(s.must(200, "GET", "/metrics", ""), "\nqueued_database_up "+want+"\n")
		}
	}
	s.wantMetrics("queued_database_up 1\n")

	p.refuse(true)
	p.reset()
	eventually(t, "the database counts as unavailable", up("0"))
	p.refuse(false)
	eventually(t, "the database counts as available again", up("1"))

	p.freeze()
	eventually(t, "the unresponsive database counts as unavailable", up("0"))
	p.thaw()
	eventually(t, "the responsive database counts as available", up("1"))

	s.ready.Store(false)
	s.wantMetrics("queued_database_up 0\n") // the schema may not exist yet
}
