package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// report has the values of queued bench -json that the tables show.
type report struct {
	Consumers  int
	Seconds    float64
	Published  float64 `json:"published_per_second"`
	Received   float64 `json:"received_per_second"`
	Acked      float64 `json:"acked_per_second"`
	Publish    latency `json:"publish_milliseconds"`
	Receipt    latency `json:"publish_to_receipt_milliseconds"`
	Errors     map[string]int
	Missing    *int
	Duplicates int64
	ClientCPU  float64 `json:"client_cpu"`
	BySecond   []int64 `json:"received_by_second"`
}

type latency struct{ P50, P95, P99, Max float64 }

// rate returns the acked messages per second, or the published ones if the load has no
// consumers.
func (r *report) rate() float64 {
	if r.Consumers > 0 {
		return r.Acked
	}
	return r.Published
}

// bench runs queued bench against a URL.
func (s *suite) bench(url string, args ...string) (*report, error) {
	return s.benchAround(url, func() {}, func() {}, args...)
}

// benchAround runs queued bench, and calls begin and end when the load begins, after the
// backlog, and when it ends, before the messages that are left are received.
func (s *suite) benchAround(url string, begin, end func(), args ...string) (*report, error) {
	cmd := exec.CommandContext(s.ctx, s.program, append([]string{"bench", "-json", "-url", url}, args...)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	progress, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	last := ""
	for lines := bufio.NewScanner(progress); lines.Scan(); {
		last = lines.Text()
		switch {
		case strings.HasSuffix(last, "the load begins"):
			begin()
		case strings.HasSuffix(last, "the load ends"):
			end()
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("queued bench %s: %w: %s", strings.Join(args, " "), err, last)
	}
	r := &report{}
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		return nil, err
	}
	if len(r.Errors) > 0 || r.Missing != nil && *r.Missing > 0 {
		return nil, fmt.Errorf("queued bench %s: errors %v, missing %v", strings.Join(args, " "), r.Errors, r.Missing)
	}
	fmt.Fprintf(os.Stderr, "   %s: published %.0f/s, acked %.0f/s\n", strings.Join(args, " "), r.Published, r.Acked)
	return r, nil
}

// result is a load on a server, and what it cost PostgreSQL.
type result struct {
	*report         // nil if the load was not queued bench
	rate    float64 // messages per second
	cpu     float64 // microseconds of CPU time per message
	wal     float64 // bytes of WAL per message
}

// newResult returns the result of a load without a report.
func newResult(messages, seconds float64, used cost) *result {
	return &result{rate: messages / seconds, cpu: used.postgres / messages * 1e6, wal: used.wal / messages}
}

// bench runs queued bench against the server, and measures what the load cost PostgreSQL.
func (v *server) bench(args ...string) (*result, error) {
	var before, after cost
	var failed error
	measure := func(c *cost) func() {
		return func() {
			var err error
			if *c, err = v.cost(); err != nil {
				failed = err
			}
		}
	}
	report, err := v.s.benchAround(v.url, measure(&before), measure(&after), args...)
	if err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	r := newResult(report.rate()*report.Seconds, report.Seconds, after.since(before))
	r.report = report
	return r, nil
}

// load returns the flags of a load of single messages or batches. A load without
// consumers only publishes.
func load(producers, consumers, batch int, d time.Duration) []string {
	return []string{"-producers", strconv.Itoa(producers), "-consumers", strconv.Itoa(consumers), "-batch", strconv.Itoa(batch), "-duration", d.String()}
}

// numbers are the results of rounds.
type numbers []float64

func (n numbers) median() float64 {
	if len(n) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(n))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// String shows the median and, if there are several, the range.
func (n numbers) String() string {
	if len(n) < 2 {
		return thousands(n.median())
	}
	return fmt.Sprintf("%s (%s to %s)", thousands(n.median()), thousands(slices.Min(n)), thousands(slices.Max(n)))
}

func thousands(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.2f", v)
	}
	text := strconv.Itoa(int(v))
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
