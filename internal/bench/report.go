package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Report is the result of a run. Rates are averages over the duration of the load.
type Report struct {
	URL              string         `json:"url"`
	Producers        int            `json:"producers"`
	Consumers        int            `json:"consumers"`
	Batch            int            `json:"batch"`
	Limit            int            `json:"limit"`
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
	Missing          *int           `json:"missing"`    // null without -drain
	ClientCPU        float64        `json:"client_cpu"` // the client's share of the machine's CPU time, 0 to 1
	ReceivedBySec    []int64        `json:"received_by_second"`
	PublishedBySec   []int64        `json:"published_by_second"`
}

// watch prints a line when the load begins, every second, and when it ends, and returns
// its rates.
func (b *bench) watch(ctx context.Context, start time.Time, before counts, stderr io.Writer) *Report {
	v := &b.settings
	report := &Report{URL: b.server.URL, Producers: v.producers, Consumers: v.consumers, Batch: v.batch, Limit: v.limit, Size: v.size}
	end := time.NewTimer(v.duration)
	defer end.Stop()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := before
	fmt.Fprintln(stderr, "   0s  the load begins")
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
	fmt.Fprintf(stderr, "%4.0fs  the load ends\n", report.Seconds)
	report.PublishedPerSec = float64(now.published-before.published) / report.Seconds
	report.ReceivedPerSec = float64(now.received-before.received) / report.Seconds
	report.AckedPerSec = float64(now.acked-before.acked) / report.Seconds
	return report
}

type counts struct{ published, received, acked int64 }

func (b *bench) counts() counts {
	return counts{b.published.Load(), b.received.Load(), b.acked.Load()}
}

func (r *Report) write(stdout io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(stdout).Encode(r)
	}
	missing := "not counted"
	if r.Missing != nil {
		missing = strconv.Itoa(*r.Missing)
	}
	_, err := fmt.Fprintf(stdout, `
%d producers, %d consumers, %d messages per publish, %d per receive, %d bytes of data, %.1f s

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
client CPU  %.0f %% of this machine
`, r.Producers, r.Consumers, r.Batch, r.Limit, r.Size, r.Seconds, r.PublishedPerSec, r.ReceivedPerSec, r.AckedPerSec,
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
