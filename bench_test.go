package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestBenchReportsWhatItDidAndRemovesItsQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, args := range []string{
		"-producers 2 -consumers 3 -duration 300ms",
		"-producers 2 -consumers 2 -duration 300ms -batch 50 -backlog 2500 -size 1000",
		"-producers 2 -consumers 2 -duration 300ms -rate 100",
		"-producers 2 -consumers 2 -duration 300ms -groups 10 -backlog 100",
	} {
		var out bytes.Buffer
		err := run(context.Background(), append([]string{"bench", "-json", "-url", s.url}, strings.Fields(args)...), func(string) string { return "" }, nil, &out, io.Discard)
		if err != nil {
			t.Fatalf("bench %s: %v", args, err)
		}
		var r benchReport
		mustDecode(t, out.String(), &r)
		if r.Published == 0 || r.Received != r.Published || r.Missing == nil || *r.Missing != 0 || r.Duplicates != 0 || r.Foreign != 0 || len(r.Errors) != 0 ||
			r.Publish.P50 <= 0 || r.Publish.P50 > r.Publish.P99 || r.Publish.P99 > r.Publish.Max || (r.PublishToReceipt.Max > 0) != (r.ReceivedPerSec > 0) {
			t.Errorf("bench %s = %+v", args, r)
		}
		if strings.Contains(args, "-rate") && r.Published > 100 {
			t.Errorf("bench %s published %d messages", args, r.Published)
		}
	}
	checkDiff(t, "queues", `{"data":[]}`, s.must(200, "GET", "/queues", ""))
}

func TestBenchSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	b := &bench{run: "RUN", began: time.Now(), statuses: map[string]int{}}
	b.number(3, b.began)
	b.messages[0][0].published, b.messages[0][1].published = true, true
	answer := func(messages ...string) []byte { return []byte(`{"data":[` + strings.Join(messages, ",") + `]}`) }
	message := func(run string, n int) string {
		return fmt.Sprintf(`{"id":"id%d","data":{"bench":%q,"n":%d}}`, n, run, n)
	}
	checkDiff(t, "ids", []string{"id1", "id1"}, b.check(answer(message("RUN", 1), message("ANOTHER", 7), message("RUN", 1))))
	if b.received.Load() != 1 || b.duplicates.Load() != 1 || b.foreign.Load() != 1 || b.missing() != 1 {
		t.Errorf("received %d, duplicates %d, foreign %d, missing %d, want one of each", b.received.Load(), b.duplicates.Load(), b.foreign.Load(), b.missing())
	}
	b.check([]byte("{"))
	checkDiff(t, "errors", map[string]int{"no answer": 1}, b.statuses)
}

func TestBenchRefusesWrongSettingsByName(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"url": "localhost", "receive-url": "x", "queue": "a/b", "producers": "-1", "consumers": "x", "batch": "0", "size": "-1",
		"rate": "-1", "ahead": "-1", "groups": "-1", "backlog": "-1", "duration": "0s",
	} {
		err := run(context.Background(), []string{"bench", "-" + name, value}, func(string) string { return "" }, nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "-"+name) {
			t.Errorf("bench -%s %s = %v, want an error that names it", name, value, err)
		}
	}
}

func TestPercentilesAreCloseToWhatTheyCount(t *testing.T) {
	t.Parallel()
	var l latencies
	for us := range 100_000 {
		l.add(time.Duration(us) * time.Microsecond)
	}
	p := l.percentiles()
	for what, v := range map[string][2]milliseconds{"p50": {p.P50, 50}, "p95": {p.P95, 95}, "p99": {p.P99, 99}, "max": {p.Max, 100}} {
		if v[0] < v[1]*0.999 || v[0] > v[1]*1.04 {
			t.Errorf("%s = %v ms, want %v", what, v[0], v[1])
		}
	}
	if text, err := json.Marshal(p); err != nil || !strings.HasPrefix(string(text), `{"p50":`) {
		t.Errorf("as JSON: %s, %v", text, err)
	}
}
