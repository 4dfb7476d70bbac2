package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/pprof/profile"
)

// besideHandler compares queued with a handler that has no database.
func (s *suite) besideHandler() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l.Close()
	handler := exec.Command(os.Args[0], "-nodb", l.Addr().String())
	if err := handler.Start(); err != nil {
		return err
	}
	defer func() {
		handler.Process.Kill()
		handler.Wait()
	}()
	nodb := "http://" + l.Addr().String()
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	s.write(`
## Compared with a handler without a database

The handler serves the same requests with the same JSON, using net/http and encoding/json, and keeps messages in memory.
Figures are requests per second, of all kinds together. Each client sends one request at a time. Producers stay at most 1000
messages ahead of consumers, so the numbers of published and acked messages are equal. CPU is the client's share of the
machine's CPU time.

| load | clients | handler | queued | ratio | goal | publish p50, p99, ms | CPU |
|---|---|---|---|---|---|---|---|
`)
	for _, k := range []struct {
		what      string
		consumers bool
		goal      map[int]string
	}{{"publish", false, map[int]string{64: "0.7"}}, {"publish, receive one, ack one", true, map[int]string{64: "0.6"}}} {
		for _, clients := range []int{8, 16, 64} {
			consumers, shown := 0, strconv.Itoa(clients)
			if k.consumers {
				consumers, shown = clients, fmt.Sprintf("%d + %d", clients, clients)
			}
			var without, with, ratio, p50, p99, cpu numbers
			for range s.rounds {
				a, err := s.bench(nodb, load(clients, consumers, 1, s.seconds)...)
				if err != nil {
					return err
				}
				b, err := s.bench(v.url, load(clients, consumers, 1, s.seconds)...)
				if err != nil {
					return err
				}
				without, with, ratio = append(without, a.requests()), append(with, b.requests()), append(ratio, b.requests()/a.requests())
				p50, p99, cpu = append(p50, b.Publish.P50), append(p99, b.Publish.P99), append(cpu, b.ClientCPU)
			}
			s.handlerRate = without.median()
			s.write("| %s | %s | %v | %v | %v | %s | %.1f, %.1f | %.0f %% |\n", k.what, shown, without, with, ratio, k.goal[clients], p50.median(), p99.median(), 100*cpu.median())
		}
	}
	return nil
}

// profile measures the CPU time by part of the program.
func (s *suite) profile() error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	v, err := s.start("-debug-listen", address)
	if err != nil {
		return err
	}
	defer v.stop()
	s.write(`
## Where the time goes

CPU time per request with 64 + 64 clients and one message per request. PostgreSQL and the client are separate processes; the
other rows are parts of the server, from its CPU profile.

| part | microseconds per request | share |
|---|---|---|
`)
	var samples []byte
	var took error
	var wg sync.WaitGroup
	before := processTimes(v)
	wg.Go(func() {
		time.Sleep(2 * time.Second)
		response, err := http.Get("http://" + address + "/debug/pprof/profile?seconds=8")
		if err != nil {
			took = err
			return
		}
		defer response.Body.Close()
		samples, took = io.ReadAll(response.Body)
	})
	const d = 12 * time.Second
	r, err := s.bench(v.url, append(load(64, 64, 1, d), "-drain=false")...)
	wg.Wait()
	if err != nil {
		return err
	}
	if took != nil {
		return took
	}
	after := processTimes(v)
	requests := r.requests() * d.Seconds()
	client := r.ClientCPU * float64(runtime.NumCPU()) * d.Seconds()
	server, postgres := after.server-before.server, after.postgres-before.postgres
	p, err := profile.ParseData(samples)
	if err != nil {
		return err
	}
	parts, sum := map[string]float64{}, 0.0
	for _, sample := range p.Sample {
		nanoseconds := float64(sample.Value[1])
		parts[partOf(sample)] += nanoseconds
		sum += nanoseconds
	}
	total := client + server + postgres
	line := func(what string, seconds float64) {
		s.write("| %s | %.1f | %.0f %% |\n", what, seconds/requests*1e6, 100*seconds/total)
	}
	line("PostgreSQL, all its processes", postgres)
	line("client", client)
	for _, part := range []string{"net/http: connections, headers, routing", "JSON and validation of requests, responses", "lib/pq and database/sql", "engine: batchers, dispatchers", "metrics", "garbage collector", "scheduler and the rest of the runtime"} {
		line("server: "+part, server*parts[part]/sum)
	}
	perRequest := float64(runtime.NumCPU()) / s.handlerRate // seconds of the handler, HTTP and JSON on both sides
	ours := (postgres + server*(parts["lib/pq and database/sql"]+parts["engine: batchers, dispatchers"])/sum) / requests
	s.write(`
The total is %.0f microseconds per request. At this rate %d cores have %.0f microseconds per request: they are idle for the
difference, while all clients wait for a commit. The handler without a database takes about %.0f microseconds per request, all of
it for HTTP and JSON. PostgreSQL, its driver and the engine add %.0f. If the cores were never idle, and HTTP took as long as in the
handler, the ratio would be %.2f.
`, total/requests*1e6, runtime.NumCPU(), float64(runtime.NumCPU())*d.Seconds()/requests*1e6, perRequest*1e6, ours*1e6, perRequest/(perRequest+ours))
	return nil
}

// partOf returns the part of the program that a sample of the profile belongs to, by the
// innermost function that belongs to a part.
func partOf(sample *profile.Sample) string {
	for _, location := range sample.Location {
		for _, line := range location.Line {
			name := line.Function.Name
			switch {
			case strings.HasPrefix(name, "runtime.gc"), strings.HasPrefix(name, "runtime.bgsweep"), strings.HasPrefix(name, "runtime.bgscavenge"):
				return "garbage collector"
			case strings.HasPrefix(name, "github.com/lib/pq"), strings.HasPrefix(name, "database/sql"):
				return "lib/pq and database/sql"
			case strings.Contains(name, "prometheus"), strings.Contains(name, "main.(*metrics)"):
				return "metrics"
			case strings.HasPrefix(name, "encoding/json"), strings.HasPrefix(name, "queued/internal/rawjson"), strings.Contains(name, "main.(*form)"), strings.Contains(name, "appendJSON"), strings.Contains(name, "main.parseBody"), strings.Contains(name, "main.(*responseWriter)"), strings.Contains(name, "main.(*messageList)"):
				return "JSON and validation of requests, responses"
			case strings.Contains(name, "main.(*engine)"), strings.Contains(name, "main.(*batcher"), strings.Contains(name, "main.(*pinnedConn)"), strings.Contains(name, "main.read["):
				return "engine: batchers, dispatchers"
			case strings.HasPrefix(name, "net/http"), strings.HasPrefix(name, "main."):
				return "net/http: connections, headers, routing"
			}
		}
	}
	return "scheduler and the rest of the runtime"
}

type times struct{ server, postgres float64 } // seconds of CPU

// processTimes returns the CPU time of a server and of its private PostgreSQL.
func processTimes(v *server) (t times) {
	t.server = cpuOf(v.cmd.Process.Pid)
	pid, _ := os.ReadFile(filepath.Join(v.data, "data", "postgres", "postmaster.pid"))
	first, _, _ := strings.Cut(string(pid), "\n")
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range all {
		text, _ := os.ReadFile(path)
		_, after, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(after); len(fields) > 1 && fields[1] == first {
			n, _ := strconv.Atoi(strings.Split(path, "/")[2])
			t.postgres += cpuOf(n)
		}
	}
	return t
}

func cpuOf(pid int) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100 // ticks of Linux
}

func (s *suite) besideRabbitMQ() error {
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	r, err := s.startRabbit()
	if err != nil {
		return err
	}
	defer r.stop()
	version := "unknown"
	if out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server").Output(); err == nil {
		version = string(out)
	}
	s.write(`
## Compared with RabbitMQ

RabbitMQ is Debian's package %s, with a durable queue and persistent messages of 200 bytes. Publishers wait for the
confirmation of each message. Consumers have a prefetch of one and ack each message. Each client has its own connection. Figures
are messages per second; the server that is not measured is idle.

| load | clients | RabbitMQ | queued | ratio |
|---|---|---|---|---|
`, version)
	for _, clients := range []int{16, 64} {
		for _, consumers := range []int{0, clients} {
			var theirs, ours, ratio numbers
			for range s.rounds {
				published, acked, err := r.load(clients, consumers, 200, s.seconds)
				if err != nil {
					return err
				}
				b, err := s.bench(v.url, load(clients, consumers, 1, s.seconds)...)
				if err != nil {
					return err
				}
				if consumers > 0 {
					theirs, ours, ratio = append(theirs, acked), append(ours, b.Acked), append(ratio, b.Acked/acked)
				} else {
					theirs, ours, ratio = append(theirs, published), append(ours, b.Published), append(ratio, b.Published/published)
				}
			}
			what, shown := "publish", strconv.Itoa(clients)
			if consumers > 0 {
				what, shown = "publish, receive one, ack one", fmt.Sprintf("%d + %d", clients, clients)
			}
			s.write("| %s | %s | %v | %v | %v |\n", what, shown, theirs, ours, ratio)
		}
	}
	return nil
}

// The statements of queued in a form for pgbench: PostgreSQL creates the rows, and ids do
// not leave it.
const pgbenchInsert = `
INSERT INTO queued.messages (id, queue_key, data, bytes, expired_at, scheduled_at, created_at, updated_at)
SELECT gen_random_uuid(), :key, ('{"pad":"' || repeat('a', 190) || '"}')::json, 200, now() + interval '1 h', now(), now(), now()
FROM generate_series(1, 100);
`

const pgbenchCycle = pgbenchInsert + `
WITH due AS MATERIALIZED (
    SELECT ctid AS tid FROM queued.messages
    WHERE queue_key = :key AND group_id IS NULL AND scheduled_at <= now() AND expired_at > now() AND delivery_attempts < 2147483647
    ORDER BY scheduled_at, seq LIMIT 100 FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE queued.messages m
    SET in_flight = true, delivery_attempts = delivery_attempts + 1, scheduled_at = now() + interval '1 min', updated_at = now()
    FROM due WHERE m.ctid = due.tid RETURNING m.id
)
SELECT coalesce(array_agg(id), '{}') AS ids FROM claimed
\gset
DELETE FROM queued.messages WHERE id = ANY(:ids::uuid[]);
`

// pgbench runs a script on the database of a server, with a queue of its own, and returns
// the transactions per second.
func (v *server) pgbench(script string, clients int, d time.Duration) (float64, error) {
	path := filepath.Join(v.data, "pgbench.sql")
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(v.s.ctx, postgresProgram("pgbench"), "-n", "-M", "prepared", "-h", v.data+"/data/run", "-U", "queued", "-D", "key=1000000",
		"-c", strconv.Itoa(clients), "-j", "2", "-T", strconv.Itoa(int(d.Seconds())), "-f", path, "queued")
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off -c jit=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	found := regexp.MustCompile(`tps = ([0-9.]+)`).FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("pgbench: %s", out)
	}
	fmt.Fprintf(os.Stderr, "   pgbench %s/s\n", found[1])
	return strconv.ParseFloat(string(found[1]), 64)
}

func (s *suite) batches() error {
	s.write(`
## Batches of 100

Messages per second with 100 messages in each request and 8 clients of each kind. The reference is pgbench with 8 clients on
the same table, which inserts 100 rows per commit, or inserts, claims and deletes 100 rows in three commits.

| load | pgbench | queued | ratio | goal |
|---|---|---|---|---|
`)
	for _, k := range []struct {
		what, script string
		consumers    int
		goal         string
	}{{"publish", pgbenchInsert, 0, "0.5"}, {"publish, receive, ack", pgbenchCycle, 8, "0.5"}} {
		var theirs, ours, ratio numbers
		for range s.rounds {
			v, err := s.start()
			if err != nil {
				return err
			}
			tps, err := v.pgbench(k.script, 8, s.seconds)
			if err == nil {
				_, err = v.sql("TRUNCATE queued.messages")
			}
			var b *report
			if err == nil {
				b, err = s.bench(v.url, load(8, k.consumers, 100, s.seconds)...)
			}
			v.stop()
			if err != nil {
				return err
			}
			rate := b.Published
			if k.consumers > 0 {
				rate = b.Acked
			}
			theirs, ours, ratio = append(theirs, 100*tps), append(ours, rate), append(ratio, rate/(100*tps))
		}
		s.write("| %s | %v | %v | %v | %s |\n", k.what, theirs, ours, ratio, k.goal)
	}
	return nil
}

// rows inserts messages without the server.
func (v *server) rows(queueID string, many int, scheduledAt string, inFlight bool) error {
	_, err := v.sql(fmt.Sprintf(`INSERT INTO queued.messages (id, queue_key, data, bytes, in_flight, expired_at, scheduled_at, created_at, updated_at)
		SELECT gen_random_uuid(), key, ('{"pad":"' || repeat('a', 190) || '"}')::json, 200, %v, now() + interval '10 h', %s, now(), now()
		FROM queued.queues, generate_series(1, %d) WHERE id = '%s'`, inFlight, scheduledAt, many, queueID))
	return err
}

func (v *server) mustQueue(id string) error {
	response, err := http.Post(v.url+"/queues", "application/json", strings.NewReader(fmt.Sprintf(`{"id":%q,"ack_deadline_seconds":60,"message_retention_seconds":86400}`, id)))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("queue %s: %s", id, response.Status)
	}
	return nil
}

func (s *suite) backlog() error {
	s.write(`
## With a backlog

64 + 64 clients run cycles while other messages are in the database. These were inserted immediately before, so PostgreSQL
has no statistics about them. The ratio is relative to an empty queue in the same round; the goal is 0.9.

| other messages | acked per second | ratio |
|---|---|---|
`)
	const million = 1_000_000
	kinds := []struct {
		what    string
		prepare func(v *server) error
		args    []string
		rounds  int
	}{
		{"none", func(*server) error { return nil }, nil, s.rounds},
		{"a million due in the queue", func(*server) error { return nil }, []string{"-backlog", "1000000", "-drain=false"}, s.rounds},
		{"a million in flight in the queue", func(v *server) error { return v.rows("q", million, "now() + interval '1 h'", true) }, []string{"-queue", "q"}, s.rounds},
		{"a million delayed in the queue", func(v *server) error { return v.rows("q", million, "now() + interval '1 h'", false) }, []string{"-queue", "q"}, s.rounds},
		{"a million due in another queue", func(v *server) error { return v.rows("other", million, "now()", false) }, nil, s.rounds},
		{"ten million due in the queue", func(*server) error { return nil }, []string{"-backlog", "10000000", "-drain=false"}, 1},
	}
	results := make([]numbers, len(kinds))
	ratios := make([]numbers, len(kinds))
	for round := range s.rounds {
		empty := 0.0
		for i, k := range kinds {
			if round >= k.rounds {
				continue
			}
			v, err := s.start()
			if err != nil {
				return err
			}
			var r *report
			for _, id := range []string{"q", "other"} {
				if err == nil {
					err = v.mustQueue(id)
				}
			}
			if err == nil {
				err = k.prepare(v)
			}
			if err == nil {
				r, err = s.bench(v.url, append(load(64, 64, 1, s.seconds), k.args...)...)
			}
			v.stop()
			if err != nil {
				return err
			}
			if i == 0 {
				empty = r.Acked
			}
			results[i], ratios[i] = append(results[i], r.Acked), append(ratios[i], r.Acked/empty)
		}
	}
	for i, k := range kinds {
		s.write("| %s | %v | %v |\n", k.what, results[i], ratios[i])
	}
	s.write("\nThe query plans are the same on an empty, a full and an analyzed table; `go test -v -run HotStatements .` checks and prints them.\n")
	return nil
}

func (s *suite) snapshot() error {
	s.write(`
## While a snapshot is held

A transaction stays open in the database (` + "`BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;`" + `), so PostgreSQL
cannot vacuum acked messages. 64 + 64 clients run cycles, one message per request. The goal is 0.8 of the rate without a
snapshot, and at most twice its 99th percentile.

| | acked per second | in the first and the last tenth | publish p50, p99, ms | ratio | table and indexes before, after |
|---|---|---|---|---|---|
`)
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	base := 0.0
	for _, k := range []struct {
		what string
		d    time.Duration
		held bool
	}{{"no snapshot, 30 s", 30 * time.Second, false}, {"snapshot held for 60 s", time.Minute, true}, {"snapshot held for 5 minutes", 5 * time.Minute, true}} {
		before, err := v.sql("SELECT pg_size_pretty(pg_total_relation_size('queued.messages'))")
		if err != nil {
			return err
		}
		release := func() {}
		if k.held {
			if release, err = v.holdSnapshot(); err != nil {
				return err
			}
		}
		r, err := s.bench(v.url, load(64, 64, 1, k.d)...)
		var after string
		if err == nil {
			after, err = v.sql("SELECT pg_size_pretty(pg_total_relation_size('queued.messages'))")
		}
		release()
		if err != nil {
			return err
		}
		if base == 0 {
			base = r.Acked
		}
		tenth := max(1, len(r.BySecond)/10)
		mean := func(all []int64) float64 {
			sum := int64(0)
			for _, n := range all {
				sum += n
			}
			return float64(sum) / float64(len(all))
		}
		s.write("| %s | %s | %s, %s | %.1f, %.1f | %.2f | %s, %s |\n", k.what, thousands(r.Acked), thousands(mean(r.BySecond[:tenth])),
			thousands(mean(r.BySecond[len(r.BySecond)-tenth:])), r.Publish.P50, r.Publish.P99, r.Acked/base, before, after)
	}
	return nil
}

// holdSnapshot opens a transaction that lasts until release is called.
func (v *server) holdSnapshot() (release func(), err error) {
	cmd := exec.Command(postgresProgram("psql"), "-qAtX", "-h", v.data+"/data/run", "-U", "queued", "-d", "queued")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	fmt.Fprintln(in, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;")
	if _, err := io.ReadFull(out, make([]byte, 2)); err != nil {
		return nil, err
	}
	return func() {
		in.Close()
		cmd.Wait()
	}, nil
}

func (s *suite) latency() error {
	s.write(`
## Latency

16 producers publish 1,000 messages per second in total, and 16 consumers receive them in long polls. Times are in
milliseconds. The time of a publish starts when its request is sent, or when it was due if the previous response came too
late. With two servers, one gets the publishes and the other the receives; both use the same database. Idle means ten
messages per second, with one producer and one consumer.

| load | publish p50, p99, max | publish to receipt p50 | p99 | max | goal |
|---|---|---|---|---|---|
`)
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	other, err := s.startBeside(v)
	if err != nil {
		return err
	}
	defer other.stop()
	d := 3 * s.seconds
	for _, k := range []struct {
		what string
		args []string
		goal string
	}{
		{"1,000/s, one server", append(load(16, 16, 1, d), "-rate", "1000"), ""},
		{"1,000/s, two servers", append(load(16, 16, 1, d), "-rate", "1000", "-receive-url", other.url), ""},
		{"idle, one server", append(load(1, 1, 1, d), "-rate", "10"), "p50 under 3, p99 under 15"},
		{"idle, two servers", append(load(1, 1, 1, d), "-rate", "10", "-receive-url", other.url), "p99 under 20"},
	} {
		var publish50, publish99, publishMax, p50, p99, most numbers
		for range s.rounds {
			r, err := s.bench(v.url, k.args...)
			if err != nil {
				return err
			}
			publish50, publish99, publishMax = append(publish50, r.Publish.P50), append(publish99, r.Publish.P99), append(publishMax, r.Publish.Max)
			p50, p99, most = append(p50, r.Receipt.P50), append(p99, r.Receipt.P99), append(most, r.Receipt.Max)
		}
		s.write("| %s | %.1f, %.1f, %.1f | %v | %v | %v | %s |\n", k.what, publish50.median(), publish99.median(), publishMax.median(), p50, p99, most, k.goal)
	}
	return nil
}

// request sends a request on any connection and reads the response.
func request(client *http.Client, method, url, body string) (status int, response []byte, err error) {
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	a, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	response, err = io.ReadAll(a.Body)
	return a.StatusCode, response, err
}

var firstID = regexp.MustCompile(`"id":"([0-9a-f-]{36})"`)

func (s *suite) queues() error {
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	const many = 1000
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * many}}
	if _, _, err := request(client, "POST", v.url+"/topics", `{"id":"fan"}`); err != nil {
		return err
	}
	for i := range many {
		if err := v.mustQueue(fmt.Sprintf("q%d", i)); err != nil {
			return err
		}
	}
	for i := range 100 {
		status, _, err := request(client, "POST", v.url+"/queues", fmt.Sprintf(`{"id":"fan%d","topic_id":"fan","ack_deadline_seconds":60,"message_retention_seconds":86400}`, i))
		if err != nil || status != 201 {
			return fmt.Errorf("queue: %d, %v", status, err)
		}
	}
	run := func(workers int, work func(worker int) error) (rate float64, err error) {
		var done atomic.Int64
		var failed atomic.Value
		var wg sync.WaitGroup
		end := time.Now().Add(2 * s.seconds)
		for worker := range workers {
			wg.Go(func() {
				for time.Now().Before(end) {
					if err := work(worker); err != nil {
						failed.Store(err)
						return
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		err, _ = failed.Load().(error)
		return float64(done.Load()) / (2 * s.seconds).Seconds(), err
	}
	cycles, err := run(many, func(worker int) error {
		queue := fmt.Sprintf("%s/queues/q%d/messages", v.url, worker)
		if status, response, err := request(client, "POST", queue, `{"data":{"event":"created"}}`); err != nil || status != 201 {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		status, response, err := request(client, "GET", queue+"?wait_seconds=20&limit=1", "")
		id := firstID.FindSubmatch(response)
		if err != nil || id == nil {
			return fmt.Errorf("receive: %d %s, %v", status, response, err)
		}
		if status, response, err := request(client, "PUT", v.url+"/messages/"+string(id[1])+"/ack", ""); err != nil || status != 204 {
			return fmt.Errorf("ack: %d %s, %v", status, response, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	fanOut, err := run(8, func(int) error {
		status, response, err := request(client, "POST", v.url+"/topics/fan/messages", `{"data":{"event":"created"}}`)
		if err != nil || status != 201 {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.write(`
## Many queues

- 1,000 queues, each with a client that runs cycles: %s cycles per second. Publishes, acks and claims of
  queues that wait at the same time share statements.
- A topic with 100 queues, and 8 publishers: %s publishes per second, which are %s copies per second. Batches of 100 to one
  queue do not insert rows any faster (see above).
`, thousands(cycles), thousands(fanOut), thousands(100*fanOut))
	return nil
}

// statements returns the number of statements that the server has run.
func (v *server) statements() (n float64, err error) {
	_, text, err := request(http.DefaultClient, "GET", v.url+"/metrics", "")
	for _, m := range regexp.MustCompile(`(?m)^queued_statement_duration_seconds_count\{[^}]*\} (\S+)`).FindAllSubmatch(text, -1) {
		count, _ := strconv.ParseFloat(string(m[1]), 64)
		n += count
	}
	return n, err
}

func (s *suite) waiting() error {
	s.write(`
## Long polls

10,000 receivers wait in long polls of 20 seconds, each on its own connection. Memory is that of the server. Statements are
all that the server runs on PostgreSQL, including those of the cleanup and of this measurement. The time is from a publish to
its receipt by one of the receivers, over 50 messages. Goals: less than 400 MB, fewer than 5 statements per second.

| queues | memory | statements per second | publish to receipt p50, max, ms |
|---|---|---|---|
`)
	for _, queues := range []int{1, 1000} {
		v, err := s.start()
		if err != nil {
			return err
		}
		err = s.wait(v, queues)
		v.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) wait(v *server, queues int) error {
	const receivers = 10_000
	for i := range queues {
		if err := v.mustQueue(fmt.Sprintf("q%d", i)); err != nil {
			return err
		}
	}
	host := strings.TrimPrefix(v.url, "http://")
	received := make(chan time.Time, receivers)
	conns := make([]net.Conn, receivers)
	for i := range conns {
		c, err := net.Dial("tcp", host)
		if err != nil {
			return err
		}
		defer c.Close()
		conns[i] = c
		poll := fmt.Appendf(nil, "GET /queues/q%d/messages?limit=1&wait_seconds=20 HTTP/1.1\r\nHost: localhost\r\n\r\n", i%queues)
		go func() {
			response := make([]byte, 4096)
			for {
				if _, err := c.Write(poll); err != nil {
					return
				}
				n, err := c.Read(response)
				if err != nil {
					return
				}
				if bytes.Contains(response[:n], []byte(`"delivery_attempts"`)) {
					received <- time.Now()
				}
			}
		}()
	}
	time.Sleep(5 * time.Second)
	before, err := v.statements()
	if err != nil {
		return err
	}
	start := time.Now()
	time.Sleep(30 * time.Second)
	after, err := v.statements()
	if err != nil {
		return err
	}
	rate := (after - before) / time.Since(start).Seconds()
	rss := memory(v.cmd.Process.Pid)
	var took numbers
	for i := range 50 {
		sent := time.Now()
		if status, response, err := request(http.DefaultClient, "POST", fmt.Sprintf("%s/queues/q%d/messages", v.url, i*7%queues), `{"data":{}}`); err != nil || status != 201 {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		select {
		case at := <-received:
			took = append(took, at.Sub(sent).Seconds()*1000)
		case <-time.After(10 * time.Second):
			return fmt.Errorf("a message was not received")
		}
		time.Sleep(20 * time.Millisecond)
	}
	most := 0.0
	for _, v := range took {
		most = max(most, v)
	}
	s.write("| %d | %d MB | %.1f | %.1f, %.1f |\n", queues, rss>>20, rate, took.median(), most)
	return nil
}

func (s *suite) payloads() error {
	s.write(`
## Payloads

16 + 16 clients run cycles with messages of different sizes. Memory is that of the server at the end.

| bytes | acked per second | MB per second | publish p50, p99, ms | memory |
|---|---|---|---|---|
`)
	for _, size := range []int{200, 1 << 10, 10 << 10, 100 << 10} {
		v, err := s.start()
		if err != nil {
			return err
		}
		r, err := s.bench(v.url, append(load(16, 16, 1, 2*s.seconds), "-size", strconv.Itoa(size))...)
		rss := memory(v.cmd.Process.Pid)
		v.stop()
		if err != nil {
			return err
		}
		s.write("| %d | %s | %.1f | %.1f, %.1f | %d MB |\n", size, thousands(r.Acked), r.Acked*float64(size)/1e6, r.Publish.P50, r.Publish.P99, rss>>20)
	}
	return nil
}

func (s *suite) idle() error {
	began := time.Now()
	v, err := s.start()
	if err != nil {
		return err
	}
	fresh := time.Since(began)
	time.Sleep(10 * time.Second)
	rss := memory(v.cmd.Process.Pid)
	began = time.Now()
	other, err := s.startBeside(v)
	if err != nil {
		v.stop()
		return err
	}
	existing := time.Since(began)
	other.stop()
	v.stop()
	info, err := os.Stat(s.program)
	if err != nil {
		return err
	}
	s.write(`
## Idle server

| | measured | goal |
|---|---|---|
| memory | %d MB | under 25 |
| time to ready, existing database | %.2f s | within 1 |
| time to ready, new private PostgreSQL | %.2f s | within 6 |
| static binary | %d MB | under 20 |
`, rss>>20, existing.Seconds(), fresh.Seconds(), info.Size()>>20)
	return nil
}

// steady runs a long load, and measures after every tenth of it.
func (s *suite) steady() error {
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	s.write(`
## Steady load for %s

64 + 64 clients run cycles, one message per request, without a rate limit.

| minute | acked per second | table | indexes | dead rows | memory |
|---|---|---|---|---|---|
`, s.long)
	var r *report
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() { r, failed = s.bench(v.url, load(64, 64, 1, s.long)...) })
	var samples [][]string
	for range 10 {
		time.Sleep(s.long / 10)
		sample, err := v.sql(`SELECT pg_size_pretty(pg_relation_size('queued.messages')), pg_size_pretty(pg_indexes_size('queued.messages')),
			(SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'queued.messages'::regclass)`)
		if err != nil {
			return err
		}
		samples = append(samples, append(strings.Split(sample, "|"), fmt.Sprintf("%d MB", memory(v.cmd.Process.Pid)>>20)))
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	for i, sample := range samples {
		from, to := len(r.BySecond)*i/10, len(r.BySecond)*(i+1)/10
		sum := int64(0)
		for _, n := range r.BySecond[from:to] {
			sum += n
		}
		s.write("| %.0f | %s | %s |\n", (time.Duration(i+1) * s.long / 10).Minutes(), thousands(float64(sum)/float64(to-from)), strings.Join(sample, " | "))
	}
	s.write("\nOver the whole run: publish p50 %.1f ms, p99 %.1f ms, maximum %.1f ms; no message missing, %d duplicates.\n", r.Publish.P50, r.Publish.P99, r.Publish.Max, r.Duplicates)
	return nil
}
