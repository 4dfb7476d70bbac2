package main

import (
	"context"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
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
	db := newTestDB(t, newTestDatabase(t, "template1")+" options='-c statement_timeout=0 -c enable_sort=on'")
	for name, want := range map[string]string{"statement_timeout": "15s", "lock_timeout": "1s", "enable_sort": "off", "timezone": "UTC", "plan_cache_mode": "force_generic_plan"} {
		var got string
		if err := db.QueryRow("SELECT current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %s, %v, want %s", name, got, err, want)
		}
	}
}

// A pooler that gives a connection away between two statements shows when two
// clients have the same.
func TestPoolerBetweenStatementsIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	ctx := context.Background()
	if err := checkSessions(ctx, s); err != nil {
		t.Errorf("connections of our own: %v", err)
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := checkDistinct(ctx, conn, conn); !hopeless(err) {
		t.Errorf("one connection for two clients: %v, want that to be hopeless", err)
	}
}

// newProxiedDatabase makes a database, and returns a way to it that leads through a
// proxy and on which TLS is asked for, and not offered.
func newProxiedDatabase(t testing.TB) (dsn string, p *proxy) {
	t.Helper()
	dsn = newTestDatabase(t, "queued")
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
	return newTestServerOn(t, dsn), p
}

// lib/pq leaves connections alone without closing them.
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
	checkDiff(t, "links", 0, len(d.links))
	d.mu.Unlock()
	s := testServer{t: t}
	s.eventually("no connection is open", func() bool { return p.open() == 0 })
}

// It takes longer to connect than an answer may take, and nobody is in trouble.
func TestSlowWayToTheDatabaseIsNoSilence(t *testing.T) {
	t.Parallel()
	dsn, p := newProxiedDatabase(t)
	p.slow(150 * time.Millisecond)
	output := newSyncBuffer()
	d := mustDatabase(t, dsn)
	m := newMetrics(mustOpen(t, d))
	e, err := newEngine(d, newLog(output, slog.LevelInfo, "text"), m, time.Hour, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	s := testServer{t: t}
	s.eventually("it listens", e.notifier.listening)
	for range 5 {
		if err := e.ack(context.Background(), settlement{id: newID()}); err != nil {
			t.Error(err)
		}
	}
	if d.silent.Load() || strings.Contains(output.String(), "does not answer") {
		t.Errorf("a slow database is taken for a silent one:\n%s", output)
	}
}

// What waits for a PostgreSQL that says nothing, and whatever comes then, is told
// so, long before a connection times out; who waits for a message goes on waiting.
func TestSilentDatabase(t *testing.T) {
	t.Parallel()
	s, p := newProxiedServer(t)
	s.mustTopic("t")
	s.mustQueue("other")
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	ctx, cancel := context.WithTimeout(context.Background(), networkTimeout/2)
	defer cancel()
	poll := s.poll(ctx, "other", fmt.Sprintf("?wait_seconds=%v", testTimeout.Seconds()))
	s.waiting("other", 1)
	goroutines := runtime.NumGoroutine()

	p.freeze()
	for range 3 {
		answers := make(chan error)
		requests := [][3]string{
			{"POST", "/topics/t/messages", `{"data":{}}`},
			{"POST", "/queues/t/messages/batch", `{"messages":[{"data":{}}]}`},
			{"GET", "/queues/t/messages", ""},
			{"GET", "/queues/t/messages?wait_seconds=20", ""},
			{"GET", "/queues/other/messages", ""}, // where somebody waits already
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
				answers <- err
			}()
		}
		for range requests {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		s.must(200, "GET", "/livez", "")
	}
	s.eventually("goroutines do not pile up", func() bool { return runtime.NumGoroutine() < goroutines+200 })

	p.thaw()
	s.eventually("it answers again", func() bool { return s.do("GET", "/readyz", "").status == 200 })
	s.must(201, "POST", "/queues/other/messages", `{"data":{"n":2}}`)
	checkDiff(t, "received by who waited", []int{2}, numbers(s.await(poll)))
	s.eventually("notifications come again", s.engine.notifier.listening)
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
}

// A connection that is dead while others live stops only what waits for it.
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
	s.eventually("it publishes again", func() bool {
		return s.do("POST", "/topics/t/messages", `{"data":{"n":1}}`).status == 201
	})
	checkDiff(t, "received by who waited", []int{1}, numbers(s.await(poll)))
	s.eventually("notifications come again", s.engine.notifier.listening)
}

func TestMetricsTellWhetherTheDatabaseIsThere(t *testing.T) {
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
	s.eventually("it is seen to be away", up("0"))
	p.refuse(false)
	s.eventually("it is seen to be back", up("1"))

	p.freeze()
	s.eventually("it is seen to be silent", up("0"))
	p.thaw()
	s.eventually("it is heard again", up("1"))

	s.ready.Store(false)
	s.wantMetrics("queued_database_up 0\n") // no schema yet
}
