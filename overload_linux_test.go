package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// attack is a load of hostile clients, each with a connection of its own.
type attack struct {
	name    string
	clients int
	before  string // a request that each client sends first; it reads the response
	first   string // sent then
	forever string // sent again and again after that; the client reconnects if it fails
}

const (
	attackedConnections = 1000
	attackedBuffered    = 64 << 20
)

var attacks = []attack{
	{name: "no attack, to compare with"},
	{name: "half-open connections", clients: attackedConnections + 500},
	{name: "idle connections", clients: attackedConnections + 500, before: "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{name: "slow headers", clients: attackedConnections + 500, first: "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: "},
	{name: "slow headers of many short lines", clients: attackedConnections, first: "GET /livez HTTP/1.1\r\nHost: localhost\r\n" + shortLines(60<<10)},
	{name: "huge headers", clients: 8, first: "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Huge: ", forever: strings.Repeat("x", 16<<10)},
	{name: "slow bodies", clients: 500, first: "POST /topics/good/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat(" ", 900_000)},
	{name: "bodies that are never sent", clients: attackedConnections + 500, first: "POST /topics/good/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n\r\n{"},
	{name: "bodies without end", clients: 4, first: "POST /topics/good/messages/batch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", forever: "10000\r\n" + strings.Repeat(" ", 1<<16) + "\r\n"},
	{name: "peeks without a reader", clients: 100, first: "GET /queues/large/messages/peek?limit=300 HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{name: "receives without a reader", clients: 100, first: "GET /queues/large/messages?limit=1000&wait_seconds=20 HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{name: "pipelined requests without a reader", clients: 20, first: strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n", 1000)},
}

// shortLines returns short header lines, each different, of this size in total.
func shortLines(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, "%s:\n", strconv.FormatInt(int64(36*36+i), 36))
	}
	return b.String()
}

// begin starts the clients, and returns when each has sent its first bytes. They end
// with ctx.
func (v attack) begin(ctx context.Context, t *testing.T, url string) {
	var began, ended sync.WaitGroup
	t.Cleanup(ended.Wait)
	for range v.clients {
		began.Add(1)
		ended.Go(func() {
			placed := sync.OnceFunc(began.Done)
			defer placed()
			for again := true; again && ctx.Err() == nil; again = v.forever != "" {
				c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
				if err != nil {
					t.Errorf("a client cannot connect: %v", err)
					return
				}
				c.(*net.TCPConn).SetReadBuffer(4 << 10)
				if v.before != "" {
					io.WriteString(c, v.before)
					c.Read(make([]byte, 1000))
				}
				_, err = io.WriteString(c, v.first)
				placed()
				for err == nil && v.forever != "" && ctx.Err() == nil {
					_, err = io.WriteString(c, v.forever)
				}
				if v.forever == "" {
					<-ctx.Done()
				}
				c.Close()
			}
		})
	}
	began.Wait()
}

// Under each attack the server stays within its memory limit, and serves other clients.
// The log of the test says how fast.
func TestOthersAreServedUnderAttack(t *testing.T) {
	t.Parallel()
	program := mustBuild(t) // the race detector would need more memory
	for _, v := range attacks {
		t.Run(v.name, func(t *testing.T) {
			r := startProgram(t, program, "-database-url", newTestDatabase(t, "queued"),
				"-max-connections", strconv.Itoa(attackedConnections), "-max-buffered-bytes", strconv.Itoa(attackedBuffered))
			good := r.client()
			good.mustTopic("good")
			good.mustQueue("large")
			large := fmt.Sprintf(`{"data":{"x":%q}}`, strings.Repeat("x", 1_000_000))
			for range 8 {
				good.must(201, "POST", "/queues/large/messages", large)
			}
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			v.begin(ctx, t, r.url)
			var took []time.Duration
			for n := range 10 {
				http.DefaultClient.CloseIdleConnections()
				began := time.Now()
				eventually(t, "a publish", func() bool { // PostgreSQL shares a busy machine with the attack
					v := good.do("POST", "/topics/good/messages", fmt.Sprintf(`{"data":{"n":%d},"deduplication_id":"%[1]d"}`, n))
					return v.status == 201
				})
				took = append(took, time.Since(began), requestTime(good, 200, "GET", "/livez", ""))
				began = time.Now()
				received := good.receive("good", "?wait_seconds=20")
				took = append(took, time.Since(began))
				checkDiff(t, "received", []int{n}, numbers(received))
				took = append(took, requestTime(good, 204, "PUT", "/messages/"+received[0].ID+"/ack", ""))
			}
			cuts := regexp.MustCompile(`\nqueued_connections_evicted_total (\S+)`).FindStringSubmatch(good.must(200, "GET", "/metrics", ""))
			most := r.peakMemory()
			if bound := memoryLimit(attackedConnections, attackedBuffered); most > bound {
				t.Errorf("the server used %d MiB, want at most %d", most>>20, bound>>20)
			}
			slices.Sort(took)
			t.Logf("%d clients: at most %d MiB; requests of another client take %v (median) and %v (99th percentile); %s connections evicted",
				v.clients, most>>20, took[len(took)/2], took[len(took)*99/100], cuts[1])
		})
	}
}

// requestTime returns the duration of a request, whose response must have this status.
func requestTime(s *client, status int, method, path, body string) time.Duration {
	s.t.Helper()
	began := time.Now()
	s.must(status, method, path, body)
	return time.Since(began)
}

// peakMemory returns the maximum memory that the process has used, in bytes.
func (r *running) peakMemory() int64 {
	r.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		r.t.Fatalf("no VmHWM in %s", status)
	}
	kb, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return kb << 10
}

func TestFewFilesAreEnough(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "queued")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n 200\nexec %s \"$@\"\n", os.Args[0])
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r := startProgram(t, program, "-database-url", newTestDatabase(t, "queued"))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	attack{clients: 400}.begin(ctx, t, r.url)
	r.client().must(201, "POST", "/topics", `{"id":"t"}`)
	r.client().must(200, "GET", "/readyz", "")
	if !strings.Contains(r.output.String(), "open file limit is below -max-connections") {
		t.Errorf("the log does not warn of the open file limit:\n%s", r.output)
	}
}
