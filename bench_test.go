package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"queued/internal/bench"
)

func TestBenchReportsWhatItDidAndRemovesItsQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, v := range []struct {
		args string
		most int64 // maximum number of published messages; 0 is unlimited
	}{
		{"-producers 2 -consumers 3 -duration 300ms", 0},
		{"-producers 2 -consumers 2 -duration 300ms -batch 50 -backlog 2500 -size 1000", 0},
		{"-producers 2 -consumers 2 -duration 300ms -rate 100", 100},
		{"-producers 2 -consumers 2 -duration 300ms -groups 10 -backlog 100 -deduplicate", 0},
	} {
		var out bytes.Buffer
		err := run(context.Background(), append([]string{"bench", "-json", "-url", s.url}, strings.Fields(v.args)...), func(string) string { return "" }, nil, &out, io.Discard)
		if err != nil {
			t.Fatalf("bench %s: %v", v.args, err)
		}
		var r bench.Report
		mustDecode(t, out.String(), &r)
		if r.Published == 0 || r.Received != r.Published || r.Missing == nil || *r.Missing != 0 || r.Duplicates != 0 || r.Foreign != 0 || len(r.Errors) != 0 ||
			r.PublishedPerSec > 0 && r.Publish.P50 == 0 || r.ReceivedPerSec > 0 && r.PublishToReceipt.Max == 0 || // a busy machine may publish none in time
			r.Publish.P50 > r.Publish.P99 || r.Publish.P99 > r.Publish.Max {
			t.Errorf("bench %s = %+v", v.args, r)
		}
		if v.most > 0 && r.Published > v.most {
			t.Errorf("bench %s published %d messages, want at most %d", v.args, r.Published, v.most)
		}
	}
	checkDiff(t, "queues", `{"data":[]}`, s.must(200, "GET", "/queues", ""))
}

func TestBenchReceivesAsManyMessagesAsItsLimitSays(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	target, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	for _, v := range []struct{ args, limit string }{
		{"-batch 5", "5"},
		{"-batch 5 -limit 7", "7"},
		{"-batch 5 -limit 7 -settle separate", "7"},
	} {
		var mu sync.Mutex
		limits := map[string]bool{}
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if found := regexp.MustCompile(`"?limit"?[:=](\d+)`).FindStringSubmatch(r.URL.RawQuery + string(body)); found != nil {
				mu.Lock()
				limits[found[1]] = true
				mu.Unlock()
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			forward.ServeHTTP(w, r)
		}))
		args := append([]string{"bench", "-url", proxy.URL, "-producers", "1", "-consumers", "1", "-duration", "200ms"}, strings.Fields(v.args)...)
		err := run(context.Background(), args, func(string) string { return "" }, nil, io.Discard, io.Discard)
		proxy.Close()
		if err != nil {
			t.Fatalf("bench %s: %v", v.args, err)
		}
		delete(limits, "1000") // after the load
		checkDiff(t, "limits of bench "+v.args, map[string]bool{v.limit: true}, limits)
	}
}

func TestBenchRefusesWrongSettingsByName(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"url": "localhost", "receive-url": "x", "queue": "a/b", "producers": "-1", "consumers": "x", "batch": "0", "limit": "1001", "size": "-1",
		"rate": "-1", "max-lag": "-1", "groups": "-1", "backlog": "-1", "duration": "0s",
	} {
		err := run(context.Background(), []string{"bench", "-" + name, value}, func(string) string { return "" }, nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "-"+name) {
			t.Errorf("bench -%s %s = %v, want an error that names it", name, value, err)
		}
	}
}
