// Package bench loads a running server over HTTP and measures how fast it is.
package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const benchUsage = `Queued bench loads a running server over HTTP and says how fast it is. Producers
publish, consumers receive and ack, each one request after the other. It checks
what it receives: each message once, nothing foreign, and after the load nothing
missing. It makes a queue of its own and removes it afterwards.

`

// bench is one run of load against a server.
type bench struct {
	settings benchSettings
	client   *http.Client
	run      string // marks the messages of this run
	began    time.Time

	mu       sync.Mutex
	messages [][]benchMessage // in blocks of benchBlock; the number of a message is its place
	count    int
	statuses map[string]int // answers that were no success, by status

	published, received, acked atomic.Int64 // messages
	duplicates, foreign        atomic.Int64
	publishing, receipt        latencies   // of a publish; from a publish to its receipt
	ended                      atomic.Bool // the load is over
	drained                    atomic.Bool // and consumers may go
}

type benchSettings struct {
	url       string
	from      string
	queue     string
	token     string
	producers int
	consumers int
	batch     int
	groups    int
	size      int
	rate      float64
	ahead     int
	backlog   int
	duration  time.Duration
	drain     bool
	json      bool
}

// benchMessage is what is known of a message.
type benchMessage struct {
	sentAt    uint32 // in units of benchTick since the run began
	published bool   // answered with 201
	received  bool
}

const (
	benchBlock = 1 << 16
	benchTick  = 10 * time.Microsecond
	benchPause = 100 * time.Millisecond // after an answer that is no success
	benchPoll  = 1                      // wait_seconds
	// benchDrain is for how long nothing may be received before the rest counts as
	// missing.
	benchDrain = 10 * time.Second
)

func Run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	b := &bench{run: rand.Text(), statuses: map[string]int{}}
	v := &b.settings
	f := flags.New("queued bench", benchUsage, stdout)
	f.StringVar(&v.url, "url", "http://127.0.0.1:8000", "`URL` of the server")
	f.StringVar(&v.from, "receive-url", "", "`URL` of the server to receive from, if it is another on the same database")
	f.StringVar(&v.queue, "queue", "", "`queue` to use; it must be empty, and is not removed")
	f.StringVar(&v.token, "token", "", "`token` to send")
	f.IntVar(&v.producers, "producers", 16, "`number` of producers")
	f.IntVar(&v.consumers, "consumers", 16, "`number` of consumers")
	f.IntVar(&v.batch, "batch", 1, "`messages` a request, 1 to 1000")
	f.IntVar(&v.groups, "groups", 0, "`number` of groups that messages belong to in turns, 0 for messages without one")
	f.IntVar(&v.size, "size", 200, "`bytes` of a message's data")
	f.Float64Var(&v.rate, "rate", 0, "`messages` to publish each second, 0 for as many as possible; the latency of a\npublish then counts from when it was due, if the one before was answered too late")
	f.IntVar(&v.ahead, "ahead", 1000, "`messages` that producers may be ahead of consumers, if there are any; 0 for any number")
	f.IntVar(&v.backlog, "backlog", 0, "`messages` to publish before the load begins, which do not count as ahead")
	f.DurationVar(&v.duration, "duration", 10*time.Second, "`time` that the load lasts")
	f.BoolVar(&v.drain, "drain", true, "receive all there is after the load, and look for what is missing")
	f.BoolVar(&v.json, "json", false, "report as JSON, on one line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if v.from == "" {
		v.from = v.url
	}
	isURL := func(s string) bool { return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") }
	for _, check := range []struct {
		ok         bool
		name, what string
	}{
		{isURL(v.url), "url", "must begin with http:// or https://"},
		{isURL(v.from), "receive-url", "must begin with http:// or https://"},
		{v.queue == "" || client.ValidID(v.queue), "queue", "is no id of a queue"},
		{0 <= v.producers && v.producers <= 100_000, "producers", "must be 0 to 100000"},
		{0 <= v.consumers && v.consumers <= 100_000, "consumers", "must be 0 to 100000"},
		{1 <= v.batch && v.batch <= client.MaxBatch, "batch", fmt.Sprintf("must be 1 to %d", client.MaxBatch)},
		{0 <= v.groups && v.groups <= 100_000_000, "groups", "must be 0 to 100000000"},
		{0 <= v.size && v.size <= 16<<20, "size", "must be 0 to 16777216"},
		{v.rate >= 0, "rate", "must not be negative"},
		{v.ahead >= 0, "ahead", "must not be negative"},
		{v.backlog >= 0, "backlog", "must not be negative"},
		{0 < v.duration && v.duration <= 11*time.Hour, "duration", "must be more than 0 and at most 11h"},
	} {
		if !check.ok {
			return flags.Errorf("-%s: %s", check.name, check.what)
		}
	}
	v.url, v.from = strings.TrimSuffix(v.url, "/"), strings.TrimSuffix(v.from, "/")
	conns := v.producers + v.consumers + 1
	b.client = &http.Client{Transport: &http.Transport{MaxIdleConns: conns, MaxIdleConnsPerHost: conns, DisableCompression: true}}
	defer b.client.CloseIdleConnections()
	return b.measure(ctx, stdout, stderr)
}

// measure runs the load and reports on it.
func (b *bench) measure(ctx context.Context, stdout, stderr io.Writer) error {
	if b.settings.queue == "" {
		b.settings.queue = "bench-" + strings.ToLower(b.run[:8])
		status, answer, err := b.request(http.MethodPost, b.settings.url+"/queues", fmt.Appendf(nil,
			`{"id":%q,"ack_deadline_seconds":60,"message_retention_seconds":86400}`, b.settings.queue))
		if err != nil {
			return fmt.Errorf("-url: %w", err)
		}
		if status != http.StatusCreated {
			return fmt.Errorf("cannot make a queue at %s: %d %s", b.settings.url, status, answer)
		}
		defer b.request(http.MethodDelete, b.settings.url+"/queues/"+b.settings.queue, nil)
	}
	b.began = time.Now()
	if err := b.fill(ctx); err != nil {
		return err
	}
	b.publishing, b.receipt = latencies{}, latencies{}
	before, cpuBefore, start := b.counts(), cpuTime(), time.Now()
	var producers, consumers sync.WaitGroup
	var turn atomic.Int64
	for range b.settings.producers {
		producers.Go(func() { b.produce(start, &turn) })
	}
	for range b.settings.consumers {
		consumers.Go(b.consume)
	}
	report := b.watch(ctx, start, before, stderr)
	report.ClientCPU = (cpuTime() - cpuBefore).Seconds() / time.Since(start).Seconds() / float64(runtime.NumCPU())
	report.Publish, report.PublishToReceipt = b.publishing.percentiles(), b.receipt.percentiles()
	b.ended.Store(true)
	producers.Wait()
	if b.settings.consumers > 0 && b.settings.drain {
		report.Missing = new(b.drain(stderr))
	}
	b.drained.Store(true)
	consumers.Wait()
	b.mu.Lock()
	report.Errors = maps.Clone(b.statuses)
	b.mu.Unlock()
	report.Published, report.Received = b.published.Load(), b.received.Load()
	report.Duplicates, report.Foreign = b.duplicates.Load(), b.foreign.Load()
	if err := report.write(stdout, b.settings.json); err != nil {
		return err
	}
	if report.Missing != nil && *report.Missing > 0 {
		return fmt.Errorf("%d messages are missing", *report.Missing)
	}
	return nil
}

// request makes a request and reads the answer to its end.
func (b *bench) request(method, url string, body []byte) (status int, answer []byte, err error) {
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(body)
	}
	r, err := http.NewRequest(method, url, in)
	if err != nil {
		return 0, nil, err
	}
	if b.settings.token != "" {
		r.Header.Set("Authorization", "Bearer "+b.settings.token)
	}
	a, err := b.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	if a.ContentLength > 0 {
		answer = make([]byte, a.ContentLength)
		_, err = io.ReadFull(a.Body, answer)
	} else {
		answer, err = io.ReadAll(a.Body)
	}
	return a.StatusCode, answer, err
}

// failed counts what was no success.
func (b *bench) failed(status int, err error) {
	what := strconv.Itoa(status)
	if err != nil {
		what = "no answer"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.statuses[what]++
}
