package main

import (
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

func (r *report) requests() float64 { return r.Published + r.Received + r.Acked }

// bench runs queued bench against a URL.
func (s *suite) bench(url string, args ...string) (*report, error) {
	cmd := exec.CommandContext(s.ctx, s.program, append([]string{"bench", "-json", "-url", url}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var failed *exec.ExitError
		if e, ok := err.(*exec.ExitError); ok {
			failed = e
			return nil, fmt.Errorf("queued bench %s: %w: %s", strings.Join(args, " "), err, lastLine(failed.Stderr))
		}
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(out, r); err != nil {
		return nil, err
	}
	if len(r.Errors) > 0 || r.Missing != nil && *r.Missing > 0 {
		return nil, fmt.Errorf("queued bench %s: errors %v, missing %v", strings.Join(args, " "), r.Errors, r.Missing)
	}
	fmt.Fprintf(os.Stderr, "   %s: published %.0f/s, acked %.0f/s\n", strings.Join(args, " "), r.Published, r.Acked)
	return r, nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

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
