// Package bench loads a running server over HTTP and measures how fast it is.
package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
	"queued/internal/rawjson"
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

// Report is what a run comes to. Rates are per second of the duration,
// latencies in milliseconds.
type Report struct {
	URL              string         `json:"url"`
	Producers        int            `json:"producers"`
	Consumers        int            `json:"consumers"`
	Batch            int            `json:"batch"`
	Size             int            `json:"size"`
	Seconds          float64        `json:"seconds"`
	PublishedPerSec  float64        `json:"published_per_second"`
	ReceivedPerSec   float64        `json:"received_per_second"`
	AckedPerSec      float64        `json:"acked_per_second"`
	Publish          percentiles    `json:"publish_milliseconds"`
	PublishToReceipt percentiles    `json:"publish_to_receipt_milliseconds"`
	Errors           map[string]int `json:"errors"`
	Published        int64          `json:"published"`
	Received         int64          `json:"received"`
	Duplicates       int64          `json:"duplicates"`
	Foreign          int64          `json:"foreign"`
	Missing          *int           `json:"missing"`    // null if nothing was drained
	ClientCPU        float64        `json:"client_cpu"` // part of the machine's CPU time that the client took, 0 to 1
	ReceivedBySec    []int64        `json:"received_by_second"`
	PublishedBySec   []int64        `json:"published_by_second"`
}

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

// fill publishes the backlog.
func (b *bench) fill(ctx context.Context) error {
	var left atomic.Int64
	left.Store(int64(b.settings.backlog))
	var fillers sync.WaitGroup
	for range 4 {
		fillers.Go(func() {
			for ctx.Err() == nil {
				n := min(left.Add(-client.MaxBatch)+client.MaxBatch, client.MaxBatch)
				if n <= 0 {
					return
				}
				b.publish(int(n), time.Now())
			}
		})
	}
	fillers.Wait()
	if len(b.statuses) > 0 {
		return fmt.Errorf("cannot publish the backlog: %v", b.statuses)
	}
	return ctx.Err()
}

type benchCounts struct{ published, received, acked int64 }

func (b *bench) counts() benchCounts {
	return benchCounts{b.published.Load(), b.received.Load(), b.acked.Load()}
}

// watch writes a line each second until the load is over.
func (b *bench) watch(ctx context.Context, start time.Time, before benchCounts, stderr io.Writer) *Report {
	v := &b.settings
	report := &Report{URL: v.url, Producers: v.producers, Consumers: v.consumers, Batch: v.batch, Size: v.size}
	end := time.NewTimer(v.duration)
	defer end.Stop()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := before
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-end.C:
			over = true
		case <-ticker.C:
			now := b.counts()
			report.PublishedBySec = append(report.PublishedBySec, now.published-last.published)
			report.ReceivedBySec = append(report.ReceivedBySec, now.received-last.received)
			fmt.Fprintf(stderr, "%4.0fs  published %7d  received %7d  acked %7d  publish p99 %s\n", time.Since(start).Seconds(),
				now.published-last.published, now.received-last.received, now.acked-last.acked, b.publishing.percentiles().P99)
			last = now
		}
	}
	now := b.counts()
	report.Seconds = time.Since(start).Seconds()
	report.PublishedPerSec = float64(now.published-before.published) / report.Seconds
	report.ReceivedPerSec = float64(now.received-before.received) / report.Seconds
	report.AckedPerSec = float64(now.acked-before.acked) / report.Seconds
	return report
}

// drain waits until all that was published has been received and acked, and
// returns how many messages are missing when nothing comes any more.
func (b *bench) drain(stderr io.Writer) int {
	last, since := b.counts(), time.Now()
	for {
		missing := b.missing()
		if missing == 0 {
			return 0
		}
		if now := b.counts(); now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > benchDrain {
			return missing
		}
		fmt.Fprintf(stderr, "       %d messages to drain\n", missing)
		time.Sleep(benchPause)
	}
}

// missing counts the messages that were published and not received.
func (b *bench) missing() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, block := range b.messages {
		for _, m := range block {
			if m.published && !m.received {
				n++
			}
		}
	}
	return n
}

// produce publishes until the load has ended. With a rate, producers take turns.
func (b *bench) produce(start time.Time, turn *atomic.Int64) {
	v := &b.settings
	for !b.ended.Load() {
		var due time.Time
		if v.rate > 0 {
			due = start.Add(time.Duration(float64(turn.Add(1)-1) * float64(v.batch) / v.rate * float64(time.Second)))
			if due.Sub(start) > v.duration {
				return
			}
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
				due = time.Now() // that the sleep took longer is not the server's fault
			}
		}
		for v.ahead > 0 && v.consumers > 0 && b.published.Load()-b.received.Load() > int64(v.ahead+v.backlog) && !b.ended.Load() {
			time.Sleep(time.Millisecond)
		}
		if v.rate == 0 {
			due = time.Now()
		}
		if !b.publish(v.batch, due) {
			time.Sleep(benchPause)
		}
	}
}

// publish publishes n messages, whose latency counts from due.
func (b *bench) publish(n int, due time.Time) bool {
	first := b.number(n, due)
	body := make([]byte, 0, n*(b.settings.size+64)+32)
	path := "/queues/" + b.settings.queue + "/messages"
	if n == 1 {
		body = b.appendMessage(body, first)
	} else {
		path += "/batch"
		body = append(body, `{"messages":[`...)
		for i := range n {
			if i > 0 {
				body = append(body, ',')
			}
			body = b.appendMessage(body, first+i)
		}
		body = append(body, "]}"...)
	}
	status, _, err := b.request(http.MethodPost, b.settings.url+path, body)
	if err != nil || status != http.StatusCreated {
		b.failed(status, err)
		return false
	}
	b.publishing.add(time.Since(due))
	b.mu.Lock()
	for i := first; i < first+n; i++ {
		b.messages[i/benchBlock][i%benchBlock].published = true
	}
	b.mu.Unlock()
	b.published.Add(int64(n))
	return true
}

// number takes the numbers of n messages.
func (b *bench) number(n int, sentAt time.Time) (first int) {
	at := uint32(max(0, sentAt.Sub(b.began)/benchTick))
	b.mu.Lock()
	defer b.mu.Unlock()
	first = b.count
	b.count += n
	for len(b.messages)*benchBlock < b.count {
		b.messages = append(b.messages, make([]benchMessage, benchBlock))
	}
	for i := first; i < b.count; i++ {
		b.messages[i/benchBlock][i%benchBlock].sentAt = at
	}
	return first
}

// appendMessage appends a message whose data has the size in the settings, if that
// is enough for the number.
func (b *bench) appendMessage(body []byte, number int) []byte {
	body = append(body, '{')
	if groups := b.settings.groups; groups > 0 {
		body = append(body, `"group":"`...)
		body = strconv.AppendInt(body, int64(number%groups), 10)
		body = append(body, `",`...)
	}
	body = append(body, `"data":`...)
	start := len(body)
	body = append(body, `{"bench":"`...)
	body = append(body, b.run...)
	body = append(body, `","n":`...)
	body = strconv.AppendInt(body, int64(number), 10)
	body = append(body, `,"pad":"`...)
	const end = `"}`
	if pad := b.settings.size - (len(body) - start) - len(end); pad > 0 {
		body = append(body, bytes.Repeat([]byte{'a'}, pad)...)
	}
	return append(append(body, end...), '}')
}

// consume receives and acks until the load has ended and all is drained.
func (b *bench) consume() {
	for !b.drained.Load() {
		limit := b.settings.batch
		if b.ended.Load() {
			limit = client.MaxBatch
		}
		status, answer, err := b.request(http.MethodGet, fmt.Sprintf("%s/queues/%s/messages?limit=%d&wait_seconds=%d", b.settings.from, b.settings.queue, limit, benchPoll), nil)
		if err != nil || status != http.StatusOK {
			b.failed(status, err)
			time.Sleep(benchPause)
			continue
		}
		ids := b.check(answer)
		switch {
		case len(ids) == 0:
			continue
		case len(ids) == 1:
			status, _, err = b.request(http.MethodPut, b.settings.from+"/messages/"+ids[0]+"/ack", nil)
		default:
			body := append([]byte(`{"ids":["`), strings.Join(ids, `","`)...)
			status, _, err = b.request(http.MethodPut, b.settings.from+"/messages/ack", append(body, `"]}`...))
		}
		if err != nil || status != http.StatusNoContent {
			b.failed(status, err)
			continue
		}
		b.acked.Add(int64(len(ids)))
	}
}

// check looks at the messages of an answer, and returns the ids of those that
// are of this run.
func (b *bench) check(answer []byte) (ids []string) {
	if !json.Valid(answer) {
		b.failed(0, errors.New("an answer that is not JSON"))
		return nil
	}
	now := time.Now()
	rawjson.WalkObject(answer, func(name string, messages []byte) {
		if name != "data" {
			return
		}
		rawjson.WalkArray(messages, func(m []byte) {
			var id, run string
			number := -1
			rawjson.WalkObject(m, func(name string, value []byte) {
				switch name {
				case "id":
					id = rawjson.Unquote(value)
				case "data":
					run, number = benchMark(value)
				}
			})
			if run != b.run {
				b.foreign.Add(1)
				return
			}
			ids = append(ids, id)
			b.arrived(number, now)
		})
	})
	return ids
}

// benchMark returns the run and the number in an object of appendMessage.
func benchMark(data []byte) (run string, number int) {
	number = -1
	rawjson.WalkObject(data, func(name string, value []byte) {
		switch name {
		case "bench":
			run = rawjson.Unquote(value)
		case "n":
			number, _ = strconv.Atoi(string(value))
		}
	})
	return run, number
}

// arrived notes that a message was received.
func (b *bench) arrived(number int, now time.Time) {
	b.mu.Lock()
	m := &b.messages[number/benchBlock][number%benchBlock]
	again, sentAt := m.received, time.Duration(m.sentAt)*benchTick
	m.received = true
	b.mu.Unlock()
	if again {
		b.duplicates.Add(1)
		return
	}
	b.received.Add(1)
	b.receipt.add(now.Sub(b.began) - sentAt)
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

func (r *Report) write(stdout io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(stdout).Encode(r)
	}
	missing := "not looked for"
	if r.Missing != nil {
		missing = strconv.Itoa(*r.Missing)
	}
	_, err := fmt.Fprintf(stdout, `
%d producers, %d consumers, %d a request, %d bytes of data, %.1f s

published  %9.0f messages/s
received   %9.0f
acked      %9.0f

milliseconds          p50      p95      p99      max
publish          %8s %8s %8s %8s
to receipt       %8s %8s %8s %8s

errors      %s
duplicates  %d
foreign     %d
missing     %s of %d
client      %.0f %% of the CPU time of this machine
`, r.Producers, r.Consumers, r.Batch, r.Size, r.Seconds, r.PublishedPerSec, r.ReceivedPerSec, r.AckedPerSec,
		r.Publish.P50, r.Publish.P95, r.Publish.P99, r.Publish.Max,
		r.PublishToReceipt.P50, r.PublishToReceipt.P95, r.PublishToReceipt.P99, r.PublishToReceipt.Max,
		describeErrors(r.Errors), r.Duplicates, r.Foreign, missing, r.Published, 100*r.ClientCPU)
	return err
}

func describeErrors(errors map[string]int) string {
	var parts []string
	for _, status := range slices.Sorted(maps.Keys(errors)) {
		parts = append(parts, fmt.Sprintf("%d of %s", errors[status], status))
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// latencies counts durations in buckets that are a thirtieth of their value wide.
type latencies struct {
	buckets [2048]atomic.Int64
	max     atomic.Int64 // microseconds
}

func (l *latencies) add(d time.Duration) {
	us := uint64(max(0, d.Microseconds()))
	i := int(us)
	if us >= 64 {
		shift := bits.Len64(us) - 6
		i = shift*32 + int(us>>shift)
	}
	l.buckets[min(i, len(l.buckets)-1)].Add(1)
	for {
		most := l.max.Load()
		if int64(us) <= most || l.max.CompareAndSwap(most, int64(us)) {
			return
		}
	}
}

// milliseconds are shown with a precision that suits them.
type milliseconds float64

func (m milliseconds) String() string {
	if m < 10 {
		return fmt.Sprintf("%.2f", float64(m))
	}
	return fmt.Sprintf("%.0f", float64(m))
}

type percentiles struct {
	P50 milliseconds `json:"p50"`
	P95 milliseconds `json:"p95"`
	P99 milliseconds `json:"p99"`
	Max milliseconds `json:"max"`
}

// percentiles returns the upper bounds of the buckets that they are in.
func (l *latencies) percentiles() (p percentiles) {
	var total int64
	for i := range l.buckets {
		total += l.buckets[i].Load()
	}
	p.Max = milliseconds(float64(l.max.Load()) / 1000)
	var seen int64
	for i := range l.buckets {
		n := l.buckets[i].Load()
		if n == 0 {
			continue
		}
		seen += n
		upper := float64(i)
		if i >= 64 {
			shift := i/32 - 1
			upper = float64((i%32+33)<<shift - 1)
		}
		value := min(milliseconds(upper/1000), p.Max)
		for _, v := range []struct {
			at   *milliseconds
			part int64
		}{{&p.P50, 50}, {&p.P95, 95}, {&p.P99, 99}} {
			if *v.at == 0 && seen*100 >= total*v.part {
				*v.at = value
			}
		}
	}
	return p
}
