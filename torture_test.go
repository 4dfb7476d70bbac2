//go:build unix

package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
)

var tortureTime = flag.Duration("torture", 5*time.Second, "how long TestTorture breaks things")

// Clients of two servers on one PostgreSQL publish, receive, ack, nack, redrive and
// disconnect. Meanwhile the test kills, stops and disconnects the servers and PostgreSQL.
// Afterwards it accounts for every message by the rules in torture_checker_test.go.
func TestTorture(t *testing.T) {
	t.Parallel()
	v := newTorture(t)

	var breaking, producing, consuming sync.WaitGroup
	calm, stop := make(chan struct{}), make(chan struct{})
	for _, faults := range [][]fault{v.serverFaults(), v.databaseFaults()} {
		breaking.Go(func() { v.breakThings(faults, calm) })
	}
	breaking.Go(func() { v.searchDoubles(calm) })
	for range 8 {
		producing.Go(func() { v.produce(calm) })
	}
	for range 24 {
		consuming.Go(func() { v.consume(calm, stop) })
	}
	producing.Go(func() { v.redrive(calm) })
	producing.Go(func() { v.feedPipeline(calm) })
	producing.Go(func() { v.returnFIFO(calm) })
	for range 3 {
		producing.Go(func() { v.produceFIFO(calm) })
	}
	for range 6 {
		consuming.Go(func() { v.consumeFIFO(calm, stop) })
	}
	for range 4 {
		consuming.Go(func() { v.movePipeline("first", "second", calm, stop) })
		consuming.Go(func() { v.movePipeline("second", "third", calm, stop) })
	}

	<-v.over.Done()
	eventually(t, "the clients have noticed the faults", v.wasTorture)
	close(calm)
	breaking.Wait()
	producing.Wait()
	v.awaitEmpty()
	close(stop)
	consuming.Wait()
	eventually(t, "the tasks have counted their messages", func() bool { return !v.isReturningFIFO(false) })
	v.endServers()

	v.checkPipeline()
	result := v.history.check()
	v.report(append(v.violations, result.violations...))
	t.Logf("in %v: %d publishes acknowledged, %d without a response, %d of these delivered nevertheless", *tortureTime, result.published, result.unknown, result.recovered)
	t.Logf("%d deliveries, %d of them repeated, %d acked; %d receives without a response, with %d attempts; %d redrives",
		result.delivered, result.repeated, result.acked, len(v.history.unknown), result.missed, len(v.history.redrives))
	t.Logf("%d publishes were repeated with their key until a response, %d of them had been stored before", v.repeated, v.duplicates)
	t.Logf("FIFO queues: %v", &v.history.fifo)
	t.Logf("faults: %v", v.faults)
	t.Logf("responses: %v", v.responses)
}

// endServers stops the servers, which must end without an error.
func (v *torture) endServers() {
	for _, s := range v.servers {
		s.signal(syscall.SIGTERM)
		if err := s.await(); err != nil {
			v.t.Errorf("a server ended after SIGTERM without a fault with %v\n%s", err, lastLines([]byte(s.output.String())))
		}
		for _, sign := range []string{"panic", "level=ERROR"} {
			if i := strings.Index(s.output.String(), sign); i >= 0 {
				v.t.Errorf("a server logged %.2000s", s.output.String()[i:])
			}
		}
	}
}

// report fails the test for each violation, up to a hundred.
func (v *torture) report(violations []string) {
	for i, violation := range violations {
		if i == 100 {
			v.t.Errorf("and %d more", len(violations)-i)
			break
		}
		v.t.Error(violation)
	}
}

// wasTorture reports whether there were faults that clients noticed: some publish got no
// response, and some message was delivered again.
func (v *torture) wasTorture() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	acknowledged, unknown, repeated := false, false, false
	for _, p := range v.history.publishes {
		acknowledged = acknowledged || p.ids != nil
		unknown = unknown || p.ids == nil
	}
	came := map[string]bool{}
	for _, m := range v.history.deliveries {
		repeated = repeated || came[m.id]
		came[m.id] = true
	}
	return acknowledged && unknown && repeated && len(v.faults) > 0
}

// torture is the state that the parts of the test share.
type torture struct {
	t        *testing.T
	dsn      string
	db       *sql.DB // not through a proxy
	database []fault // faults of the database
	servers  []*victim
	client   *http.Client
	over     context.Context // ends when the faults end

	behind     atomic.Bool  // whether the backlog is above its limit
	begun      atomic.Int64 // requests of the clients
	mu         sync.Mutex
	history    history
	next       int            // number of the next message
	repeated   int            // publishes that got a response after they were repeated
	duplicates int            // those of them that had been stored before
	inputs     []bool         // of the pipeline, by number: the publish got a 201
	faults     map[string]int // number by fault
	responses  map[string]int // number of responses by status
	violations []string       // found before the check of the history
}

func newTorture(t *testing.T) *torture {
	v := &torture{
		t:         t,
		client:    &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}},
		faults:    make(map[string]int),
		responses: make(map[string]int),
	}
	var through func() (p *proxy, dsn string)
	if testCluster != nil {
		through = v.useCluster()
	} else {
		through = v.usePrivatePostgres()
	}
	v.db = newTestDB(t, v.dsn)
	v.history.fifo.moved = make(map[int64]int)
	t.Cleanup(v.client.CloseIdleConnections)
	program := mustBuild(t)
	for range 2 {
		p, dsn := through()
		s := &victim{proxy: p, program: program, address: freeAddress(t), output: newSyncBuffer()}
		s.args = []string{"-listen", s.address, "-cleanup-interval", "500ms", "-database-url", dsn}
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.signal(syscall.SIGCONT)
			s.signal(syscall.SIGKILL)
			s.await()
		})
		v.servers = append(v.servers, s)
	}
	c := v.servers[0].client(t)
	eventually(t, "a server is ready", func() bool {
		r, err := c.send(context.Background(), "GET", "/readyz", "")
		return err == nil && r.status == 200
	})
	c.must(201, "POST", "/topics", `{"id":"t"}`)
	pipelineQueues(c)
	createFIFO(c)
	c.mustQueue("dead", `"ack_deadline_seconds":2`)
	c.mustQueue("plain", `"ack_deadline_seconds":2`, `"topic_id":"t"`, `"ordered":true`)
	c.mustQueue("work", `"ack_deadline_seconds":2`, `"topic_id":"t"`, `"dead_queue_id":"dead"`, `"delivery_interval_ms":5`, fmt.Sprintf(`"message_max_deliveries":%d`, tortureDeliveries))
	over, cancel := context.WithTimeout(context.Background(), *tortureTime)
	t.Cleanup(cancel)
	v.over = over
	return v
}

// usePrivatePostgres starts a PostgreSQL to break. It returns a function that connects a
// server to it through a proxy.
func (v *torture) usePrivatePostgres() (through func() (p *proxy, dsn string)) {
	v.t.Helper()
	postgres, err := startPostgres(context.Background(), newDataDir(v.t), slog.New(slog.DiscardHandler), "-cmax_connections=80")
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { postgres.stop(true) })
	if err := postgres.awaitReady(context.Background()); err != nil {
		v.t.Fatal(err)
	}
	v.dsn = postgres.dsn("queued")
	v.database = v.postgresFaults(postgres)
	return func() (*proxy, string) {
		p := newProxy(v.t, "unix", filepath.Join(postgres.socket, socketName))
		host, port, _ := net.SplitHostPort(p.address)
		return p, fmt.Sprintf("host=%s port=%s user=queued dbname=queued", host, port)
	}
}

// victim is a server or a worker, in a process of its own.
type victim struct {
	proxy   *proxy // between a server and PostgreSQL
	address string
	program string
	args    []string
	env     []string // in addition to the environment of the test
	output  *syncBuffer

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // set when it has ended
}

func (s *victim) client(t testing.TB) *client {
	return &client{t: t, url: "http://" + s.address}
}

func (s *victim) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := exec.Command(s.program, s.args...)
	thisRun.adopt(cmd)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stderr = s.output
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	s.cmd, s.ended = cmd, ended
	go func() {
		s.err = cmd.Wait()
		close(ended)
	}()
	return nil
}

func (s *victim) signal(signal os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd.Process.Signal(signal)
}

// await waits until the process has ended.
func (s *victim) await() error {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	<-ended
	return s.err
}

// fault breaks something, and repairs it before it returns.
type fault struct {
	name string
	do   func()
}

// breakThings runs all faults in random order, again and again until calm is closed.
func (v *torture) breakThings(faults []fault, calm <-chan struct{}) {
	for {
		for _, i := range rand.Perm(len(faults)) {
			select {
			case <-calm:
				return
			case <-time.After(rand.N(2 * time.Second)):
			}
			began := time.Now()
			faults[i].do()
			v.mu.Lock()
			v.history.faults = append(v.history.faults, span{"", began, time.Now().Add(aftermath)})
			v.faults[faults[i].name]++
			v.mu.Unlock()
		}
	}
}

func (v *torture) serverFaults() []fault {
	any := func(do func(s *victim)) func() {
		return func() { do(v.servers[rand.IntN(len(v.servers))]) }
	}
	moment := func() { v.awaitRequests(300) }
	end := func(signal os.Signal) func() {
		return any(func(s *victim) {
			s.signal(signal)
			s.await()
			moment()
			if err := s.start(); err != nil {
				v.violate("a server does not start: %v", err)
			}
		})
	}
	pause := func(wait func()) func() {
		return any(func(s *victim) {
			s.signal(syscall.SIGSTOP)
			wait()
			s.signal(syscall.SIGCONT)
		})
	}
	return []fault{
		{"kill -9 a server", end(syscall.SIGKILL)},
		{"terminate a server", end(syscall.SIGTERM)},
		{"pause a server", pause(moment)},
		{"pause a server for longer than a lease", pause(v.awaitLeaseEnds)},
		{"stall a server's connections", any(func(s *victim) {
			s.proxy.freeze()
			moment()
			moment()
			s.proxy.thaw()
		})},
		{"reset a server's connections, again and again", any(func(s *victim) {
			tick := time.Tick(time.Duration(10+rand.IntN(80)) * time.Millisecond)
			for range 20 {
				s.proxy.reset()
				<-tick
			}
		})},
		{"keep a server from the database", any(func(s *victim) {
			s.proxy.refuse(true)
			s.proxy.reset()
			moment()
			s.proxy.refuse(false)
		})},
	}
}

func (v *torture) databaseFaults() []fault {
	return append(v.database, fault{"stall all connections", func() {
		for _, s := range v.servers {
			s.proxy.freeze()
		}
		v.awaitRequests(600)
		for _, s := range v.servers {
			s.proxy.thaw()
		}
	}})
}

func (v *torture) postgresFaults(postgres *privatePostgres) []fault {
	signal := func(signal os.Signal) func() {
		return func() {
			postgres.mu.Lock()
			child, ended := postgres.child, postgres.ended
			postgres.mu.Unlock()
			child.Process.Signal(signal)
			<-ended // the test's privatePostgres restarts it
			v.awaitPostgres()
		}
	}
	const backends = "FROM pg_stat_activity WHERE application_name = 'queued' AND pid <> pg_backend_pid()"
	return []fault{
		{"stop PostgreSQL at once", signal(immediateShutdown)},
		{"kill -9 PostgreSQL", signal(syscall.SIGKILL)},
		{"kill -9 one of PostgreSQL's processes", func() {
			var pid int
			if v.db.QueryRow("SELECT pid "+backends+" ORDER BY random() LIMIT 1").Scan(&pid) == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			v.awaitPostgres()
		}},
		{"terminate connections, again and again", func() {
			tick := time.Tick(time.Duration(10+rand.IntN(80)) * time.Millisecond)
			for range 20 {
				v.db.Exec("SELECT pg_terminate_backend(pid) "+backends+" AND random() < $1", rand.Float64())
				<-tick
			}
		}},
		{"take all connections", func() {
			filler, err := openDB(v.dsn+" application_name=filler", 1000)
			if err != nil {
				v.violate("%v", err)
				return
			}
			defer filler.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			v.db.Exec("SELECT pg_terminate_backend(pid) " + backends)
			for ctx.Err() == nil {
				filler.Conn(ctx) // never returned to the pool
			}
		}},
	}
}

// awaitRequests waits until the clients have begun some more requests, or the faults end.
func (v *torture) awaitRequests(most int64) {
	for end, tick := v.begun.Load()+rand.Int64N(most), time.Tick(pace); v.begun.Load() < end && v.over.Err() == nil; <-tick {
	}
}

// awaitLeaseEnds waits until leases that clients have now are over, or the faults end.
func (v *torture) awaitLeaseEnds() {
	var end time.Time // zero while PostgreSQL is unavailable
	isOver := func() (over bool) {
		if end.IsZero() {
			v.db.QueryRow("SELECT coalesce(max(scheduled_at), now()) FROM queued.messages WHERE in_flight AND scheduled_at < now() + interval '3 s'").Scan(&end)
		}
		return !end.IsZero() && v.db.QueryRow("SELECT now() > $1", end).Scan(&over) == nil && over
	}
	for tick := time.Tick(10 * time.Millisecond); !isOver() && v.over.Err() == nil; <-tick {
	}
}

// recoveryTimeout is the time after which the test gives up waiting for PostgreSQL. After a crash
// it waits for clients that have connected and sent nothing, like those that are paused, up to
// its authentication_timeout, which is a minute.
const recoveryTimeout = 2 * time.Minute

// awaitPostgres waits until PostgreSQL accepts connections.
func (v *torture) awaitPostgres() { v.awaitConnection(v.db) }

func (v *torture) awaitConnection(db *sql.DB) {
	for end, tick := time.Now().Add(recoveryTimeout), time.Tick(10*time.Millisecond); ; <-tick {
		err := db.Ping()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			v.violate("PostgreSQL does not recover: %v", err)
			return
		}
	}
}

// awaitEmpty waits until all messages are acked, or until there is no progress.
func (v *torture) awaitEmpty() {
	least := 0
	for end, tick := time.Now().Add(testTimeout), time.Tick(10*time.Millisecond); ; <-tick {
		var left int
		if err := v.db.QueryRow("SELECT count(*) FROM queued.messages WHERE " + notInPipelineEnd).Scan(&left); err == nil && left == 0 {
			return
		} else if err == nil && (least == 0 || left < least) {
			least, end = left, time.Now().Add(testTimeout)
		}
		if time.Now().After(end) {
			v.violate("%d messages are left, and no consumer receives them", least)
			return
		}
	}
}

// backlog is the number of messages in the queues above which producers pause.
const backlog = 10_000

const differentReadyGroupsSQL = `
SELECT count(*)
FROM (SELECT * FROM queued.groups WHERE ready_at < 'infinity') g
FULL JOIN queued.ready_groups r USING (home, queue_key, ready_at, id)
WHERE g.queue_key IS NULL
    OR r.queue_key IS NULL`

// searchDoubles searches for messages that are in two queues and for groups that claims do
// not find, and measures the backlog.
func (v *torture) searchDoubles(calm <-chan struct{}) {
	for {
		var doubles, all int
		err := v.db.QueryRow("SELECT count(*) FILTER (WHERE n > 1), count(*) FROM (SELECT count(*) AS n FROM queued.messages WHERE "+notInPipelineEnd+" GROUP BY id) AS ids").Scan(&doubles, &all)
		if err == nil && doubles > 0 && v.areInTwoQueues() {
			v.violate("%d messages are in two queues", doubles)
		}
		var different int
		if v.db.QueryRow(differentReadyGroupsSQL).Scan(&different) == nil && different > 0 {
			v.violate("%d rows of ready_groups differ from groups", different)
		}
		v.behind.Store(err == nil && all > backlog)
		select {
		case <-calm:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// areInTwoQueues reports whether messages stay in two queues. Only in a cluster can a statement
// see a part of a transaction, until its commits on all nodes are done.
func (v *torture) areInTwoQueues() bool {
	if testCluster == nil {
		return true
	}
	var ids []string
	const inTwoSQL = "SELECT id FROM queued.messages WHERE " + notInPipelineEnd + " AND ($1::uuid[] IS NULL OR id = ANY ($1)) GROUP BY id HAVING count(*) > 1"
	for end, tick := time.Now().Add(4*testTimeout), time.Tick(100*time.Millisecond); time.Now().Before(end); <-tick {
		found, err := collect(context.Background(), v.db, scanText, inTwoSQL, pq.Array(ids))
		if err == nil && len(found) == 0 {
			return false
		}
		if err == nil {
			ids = found
		}
	}
	return true
}

func (v *torture) violate(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.violations = append(v.violations, fmt.Sprintf(format, args...))
}

// aftermath is how long a request may still change the database after its client or its
// server has lost the connection.
const aftermath = 5 * time.Second

// send sends a request to a random server. It returns 0 if there is no response, or a 503,
// whose outcome is unknown.
func (v *torture) send(ctx context.Context, method, path string, in any) (status int, out []byte) {
	return v.sendKeyed(ctx, method, path, "", in)
}

// sendKeyed is send with an Idempotency-Key, unless the key is empty.
func (v *torture) sendKeyed(ctx context.Context, method, path, key string, in any) (status int, out []byte) {
	header := http.Header{}
	if key != "" {
		header.Set("Idempotency-Key", key)
	}
	return v.exchange(ctx, method, path, header, in, 409)
}

// exchange is send with headers. Responses other than 2xx, 503 and refusal are violations.
func (v *torture) exchange(ctx context.Context, method, path string, header http.Header, in any, refusal int) (status int, out []byte) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			panic(err)
		}
		body = bytes.NewReader(text)
	}
	v.begun.Add(1)
	ctx, cancel := context.WithTimeout(ctx, aftermath)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+v.servers[rand.IntN(len(v.servers))].address+path, body)
	if err != nil {
		panic(err)
	}
	r.Header = header
	response, err := v.client.Do(r)
	if err == nil {
		status = response.StatusCode
		out, err = io.ReadAll(response.Body)
		response.Body.Close()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case err != nil:
		v.responses["none"]++
		return 0, nil
	case status == 503:
		v.responses["503"]++
		return 0, nil
	case status >= 300 && status != refusal:
		v.violations = append(v.violations, fmt.Sprintf("%s %s = %d %s", method, path, status, out))
	}
	v.responses[fmt.Sprint(status)]++
	return status, out
}

// maxRepeats is how often a publish with a key is repeated: for longer than any fault lasts.
const maxRepeats = 1000

// repeatedFor is how long a publish with a key is repeated: for less than the deduplication
// window, after which its messages would be stored again.
const repeatedFor = 4 * time.Minute

// publish publishes a message or a batch to the topic. With a key it repeats the request
// until it gets a response.
func (v *torture) publish(batch, key string, in any) (status int, out []byte) {
	tick, end := time.Tick(10*pace), time.Now().Add(repeatedFor)
	for i := 0; i < maxRepeats && time.Now().Before(end); i++ {
		status, out = v.sendKeyed(context.Background(), "POST", "/topics/t/messages"+batch, key, in)
		if status != 0 || key == "" {
			v.mu.Lock()
			defer v.mu.Unlock()
			if key != "" && i > 0 {
				v.repeated++
				if bytes.Contains(out, []byte(`"duplicate":true`)) {
					v.duplicates++
				}
			}
			return status, out
		}
		<-tick
	}
	v.violate("a publish with a key got no response %d times, or for %v", maxRepeats, repeatedFor)
	return 0, nil
}

// pace is the time between two publishes of a producer, and the time that a consumer waits
// after a failed receive.
const pace = 5 * time.Millisecond

// produce publishes numbered messages until calm. Half of the requests have a key, and half
// of the messages in these have an id of their own.
func (v *torture) produce(calm <-chan struct{}) {
	type item struct {
		ID    string `json:"deduplication_id,omitempty"`
		Group string `json:"group,omitempty"`
		Data  struct {
			N int `json:"n"`
		} `json:"data"`
	}
	for {
		select {
		case <-calm:
			return
		case <-time.After(pace):
		}
		if v.behind.Load() {
			continue
		}
		all := make([]item, 1)
		if rand.IntN(4) == 0 {
			all = make([]item, 1+rand.IntN(5))
		}
		v.mu.Lock()
		first := v.next
		v.next += len(all)
		v.mu.Unlock()
		for i := range all {
			all[i].Data.N, all[i].Group = first+i, tortureGroup(first+i)
		}
		key := ""
		if rand.IntN(2) == 0 {
			key = fmt.Sprintf("key-%d", first)
			for i := range all {
				if rand.IntN(2) == 0 {
					all[i].ID = fmt.Sprint(first + i)
				}
			}
		}
		var status int
		var out []byte
		if len(all) == 1 {
			status, out = v.publish("", key, all[0])
		} else {
			status, out = v.publish("/batch", key, map[string]any{"messages": all})
		}
		ids := make([]map[string]string, len(all)) // by queue
		if status == 201 {
			for _, m := range v.decode(out) {
				i := numbers([]wireMessage{m})[0] - first
				if ids[i] == nil {
					ids[i] = make(map[string]string)
				}
				ids[i][m.QueueID] = m.ID
			}
		}
		v.mu.Lock()
		for i := range all {
			v.history.publishes = append(v.history.publishes, published{first + i, ids[i]})
		}
		v.mu.Unlock()
	}
}

func (v *torture) decode(out []byte) []wireMessage {
	all, err := decodeMessages(string(out))
	if err != nil {
		v.violate("malformed response: %v: %s", err, out)
	}
	return all
}

// consume receives from all queues. Until calm is closed it acks only most of the
// messages, and a tenth of the receives disconnect.
func (v *torture) consume(calm, stop <-chan struct{}) {
	tick := time.Tick(pace)
	var carried []seen // to ack with the next receive
	remember := func(acked bool) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, d := range carried {
			if acked {
				d.ackedAt = time.Now()
			}
			v.history.deliveries = append(v.history.deliveries, d)
		}
		carried = nil
	}
	defer remember(false)
	for !isClosed(stop) {
		isCalm := isClosed(calm)
		queue := []string{"work", "work", "plain", "plain", "dead"}[rand.IntN(5)]
		wait := rand.Float64()
		if isCalm {
			wait = 0.2 // without a wait, the requests would delay the last acks and publishes
		}
		ctx, hangUp := context.WithCancel(context.Background())
		if !isCalm && rand.IntN(10) == 0 {
			time.AfterFunc(rand.N(500*time.Millisecond), hangUp)
		}
		began := time.Now()
		var status int
		var out []byte
		if len(carried) > 0 || rand.IntN(2) == 0 {
			request := map[string]any{"limit": 1 + rand.IntN(10), "wait_seconds": wait}
			var ids []string
			for i := range carried {
				carried[i].ackSentAt = time.Now()
				ids = append(ids, carried[i].id)
			}
			request["ack"] = ids
			status, out = v.send(ctx, "POST", "/queues/"+queue+"/messages/receive", request)
		} else {
			status, out = v.send(ctx, "GET", fmt.Sprintf("/queues/%s/messages?limit=%d&wait_seconds=%.1f", queue, 1+rand.IntN(10), wait), nil)
		}
		hangUp()
		remember(status == 200)
		if status != 200 {
			v.mu.Lock()
			v.history.unknown = append(v.history.unknown, span{queue, began, time.Now().Add(aftermath)})
			v.mu.Unlock()
			<-tick
			continue
		}
		for _, m := range v.decode(out) {
			d := seen{queue: queue, id: m.ID, n: numbers([]wireMessage{m})[0], attempt: m.DeliveryAttempts}
			var failed error
			if d.at, failed = time.Parse(timestampLayout, m.UpdatedAt); failed == nil {
				d.until, failed = time.Parse(timestampLayout, m.ScheduledAt)
			}
			if failed != nil {
				v.violate("%v", failed)
			}
			if !isCalm && rand.IntN(5) == 0 {
				carried = append(carried, d)
				continue
			}
			v.finish(&d, m.ScheduledAt, isCalm)
			v.mu.Lock()
			v.history.deliveries = append(v.history.deliveries, d)
			v.mu.Unlock()
		}
	}
}

// finish acks a message, with or without a lease token, nacks it, or does nothing, like a
// consumer that crashes. When isCalm it acks.
func (v *torture) finish(d *seen, lease string, isCalm bool) {
	background := context.Background()
	what := rand.IntN(10)
	if isCalm {
		what = 9
	}
	if what > 2 {
		d.ackSentAt = time.Now()
	}
	switch what {
	case 0: // crash
	case 1, 2:
		d.nackedAt = time.Now()
		v.send(background, "PUT", "/messages/"+d.id+"/nack?scheduled_at="+lease, map[string]int{"delay_seconds": rand.IntN(2)})
	case 3, 4:
		if status, _ := v.send(background, "PUT", "/messages/"+d.id+"/ack?scheduled_at="+lease, nil); status == 204 {
			d.ackedAt = time.Now()
		}
	default:
		for range 3 { // an ack may be repeated
			if status, _ := v.send(background, "PUT", "/messages/ack", map[string][]string{"ids": {d.id}}); status == 204 {
				d.ackedAt = time.Now()
				break
			}
		}
	}
}

// redrive moves the messages of the dead queue back at random times.
func (v *torture) redrive(calm <-chan struct{}) {
	for {
		select {
		case <-calm:
			return
		case <-time.After(rand.N(time.Second)):
		}
		began := time.Now()
		status, _ := v.send(context.Background(), "PUT", "/queues/dead/redrive", map[string]string{"destination_queue_id": "work"})
		ended := time.Now()
		if status == 0 {
			ended = ended.Add(aftermath)
		}
		v.mu.Lock()
		v.history.redrives = append(v.history.redrives, span{"dead", began, ended})
		v.mu.Unlock()
	}
}
