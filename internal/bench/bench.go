// Package bench loads a running server over HTTP and measures how fast it is.
package bench

import (
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

const benchUsage = `queued bench puts load on a running server and measures its throughput and latency.
Producers publish; consumers receive and ack. Each producer and each consumer sends
one request at a time. It checks that each message is received once, that none comes
from another run and, after the load, that none is missing. It creates a queue and
deletes it afterwards.

usage: queued bench [flags]

examples:

  queued bench
  queued bench -producers 64 -consumers 64 -duration 1m
  queued bench -rate 1000 -batch 10 -json

`

// bench is one run of the load on a server.
type bench struct {
	settings settings
	server   *client.Client // to publish to
	receiver *client.Client // to receive from
	run      string         // marks the messages of this run
	began    time.Time

	mu       sync.Mutex
	messages [][]message    // in blocks of blockSize; the index of a message is its number
	count    int            // of messages
	errors   map[string]int // number of failed requests by status

	published, received, acked atomic.Int64 // messages
	duplicates, foreign        atomic.Int64
	publishing, receipt        latencies   // of a publish; from a publish to its receipt
	ended                      atomic.Bool // the load is over
	drained                    atomic.Bool // the consumers may stop
}

type settings struct {
	queue       string
	producers   int
	consumers   int
	batch       int
	limit       int
	groups      int
	deduplicate bool
	size        int
	rate        float64
	maxLag      int
	backlog     int
	settle      string
	duration    time.Duration
	drain       bool
	json        bool
}

// message is the state of a message.
type message struct {
	sentAt    uint32 // in units of tick since the run began
	published bool   // the response was 201
	received  bool
}

const (
	blockSize    = 1 << 16 // messages
	tick         = 10 * time.Microsecond
	pause        = 100 * time.Millisecond // after a failed request
	waitSeconds  = 1                      // of a long poll
	drainTimeout = 10 * time.Second       // without a receipt, after which messages count as missing
)

// Run runs the load that the arguments describe, and prints the report. It returns an
// error if messages are missing.
func Run(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	b := &bench{server: &client.Client{}, run: rand.Text(), errors: map[string]int{}}
	v := &b.settings
	var receiveURL string
	f := flags.New("queued bench", benchUsage, stdout)
	b.server.Flags(f)
	f.StringVar(&receiveURL, "receive-url", "", "`URL` of another server on the same database to receive from; -url if empty")
	f.StringVar(&v.queue, "queue", "", "`queue` to use, which must be empty and is not deleted; a new one if empty")
	f.IntVar(&v.producers, "producers", 16, "`number` of producers")
	f.IntVar(&v.consumers, "consumers", 16, "`number` of consumers")
	f.IntVar(&v.batch, "batch", 1, "`messages` per publish, 1 to 1000")
	f.IntVar(&v.limit, "limit", 0, "maximum `messages` per receive, up to 1000; -batch if 0")
	f.IntVar(&v.groups, "groups", 0, "`number` of groups of the messages; no groups if 0")
	f.BoolVar(&v.deduplicate, "deduplicate", false, "give each message a deduplication id of its own")
	f.IntVar(&v.size, "size", 200, "size of a message's data in `bytes`")
	f.Float64Var(&v.rate, "rate", 0, "`messages` to publish per second; 0 is unlimited. With a rate, the latency of a\npublish counts from its scheduled time if the publish before it was late")
	f.IntVar(&v.maxLag, "max-lag", 1000, "maximum `messages` that consumers may lag behind producers; 0 is unlimited")
	f.IntVar(&v.backlog, "backlog", 0, "`messages` to publish before the load, not counted by -max-lag")
	f.StringVar(&v.settle, "settle", "combined", "`mode` of acks: combined with the next receive, or separate requests")
	f.DurationVar(&v.duration, "duration", 10*time.Second, "`duration` of the load")
	f.BoolVar(&v.drain, "drain", true, "receive all messages after the load, and count the missing ones")
	f.BoolVar(&v.json, "json", false, "print the report as JSON, on one line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	f.Check(v.queue == "" || client.ValidID(v.queue), "queue", "must be a valid queue id")
	f.Check(0 <= v.producers && v.producers <= 100_000, "producers", "must be 0 to 100000")
	f.Check(0 <= v.consumers && v.consumers <= 100_000, "consumers", "must be 0 to 100000")
	f.Check(1 <= v.batch && v.batch <= client.MaxBatch, "batch", fmt.Sprintf("must be 1 to %d", client.MaxBatch))
	f.Check(0 <= v.limit && v.limit <= client.MaxBatch, "limit", fmt.Sprintf("must be 0 to %d", client.MaxBatch))
	f.Check(0 <= v.groups && v.groups <= 100_000_000, "groups", "must be 0 to 100000000")
	f.Check(0 <= v.size && v.size <= 16<<20, "size", "must be 0 to 16777216")
	f.Check(v.rate >= 0, "rate", "must not be negative")
	f.Check(v.maxLag >= 0, "max-lag", "must not be negative")
	f.Check(v.backlog >= 0, "backlog", "must not be negative")
	f.Check(v.settle == "combined" || v.settle == "separate", "settle", "must be combined or separate")
	f.Check(0 < v.duration && v.duration <= 11*time.Hour, "duration", "must be more than 0 and at most 11h")
	if err := f.Err(); err != nil {
		return err
	}
	if err := b.server.Prepare(stderr); err != nil {
		return err
	}
	defer b.server.HTTP.CloseIdleConnections()
	if v.limit == 0 {
		v.limit = v.batch
	}
	b.receiver = b.server
	if receiveURL != "" {
		b.receiver = &client.Client{URL: receiveURL, Token: b.server.Token, Cert: b.server.Cert}
		if err := b.receiver.Prepare(stderr); err != nil {
			return flags.Errorf("-receive-url: %s", strings.TrimPrefix(err.Error(), "-url: "))
		}
		defer b.receiver.HTTP.CloseIdleConnections()
	}
	return b.measure(ctx, stdout, stderr)
}

// measure runs the load and prints the report.
func (b *bench) measure(ctx context.Context, stdout, stderr io.Writer) error {
	if b.settings.queue == "" {
		b.settings.queue = "bench-" + strings.ToLower(b.run[:8])
		status, response, err := request(b.server, http.MethodPost, "/queues", fmt.Appendf(nil,
			`{"id":%q,"ack_deadline_seconds":60,"message_retention_seconds":86400}`, b.settings.queue))
		if err != nil {
			return fmt.Errorf("-url: %w", err)
		}
		if status != http.StatusCreated {
			return fmt.Errorf("cannot create a queue at %s: %d %s", b.server.URL, status, response)
		}
		defer request(b.server, http.MethodDelete, "/queues/"+b.settings.queue, nil)
	}
	b.began = time.Now()
	if err := b.publishBacklog(ctx); err != nil {
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
		report.Missing = new(b.awaitDrained(stderr))
	}
	b.drained.Store(true)
	consumers.Wait()
	b.mu.Lock()
	report.Errors = maps.Clone(b.errors)
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

// request sends a request and reads the whole response.
func request(c *client.Client, method, path string, body []byte) (status int, response []byte, err error) {
	r, err := c.Do(context.Background(), method, path, body)
	if err != nil {
		return 0, nil, err
	}
	defer r.Body.Close()
	if r.ContentLength > 0 {
		response = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, response)
	} else {
		response, err = io.ReadAll(r.Body)
	}
	return r.StatusCode, response, err
}

// fail counts a failed request.
func (b *bench) fail(status int, err error) {
	what := strconv.Itoa(status)
	if err != nil {
		what = "no response"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errors[what]++
}
