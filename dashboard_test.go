package main

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// getAs sends a GET with this Accept header.
func getAs(s *testServer, accept, path string) reply {
	s.t.Helper()
	r, err := http.NewRequest("GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(text)}
}

func TestHomeIsTheDashboardForBrowsersAndTheGreetingForOthers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	index, err := dashboardFiles.ReadFile("dashboard/index.html")
	if err != nil {
		t.Fatal(err)
	}
	for accept, isPage := range map[string]bool{
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": true,
		"text/html":        true,
		"":                 false,
		"*/*":              false,
		"application/json": false,
	} {
		got := getAs(s, accept, "/")
		if got.status != 200 || (got.body == string(index)) != isPage || (got.body == `{"message":"Hello, SharQ!"}`) == isPage || got.header.Get("Server") != "queued "+version() || got.header.Get("Vary") != "Accept" {
			t.Errorf("GET / as %q = %d %v %.60s", accept, got.status, got.header, got.body)
		}
	}
}

func TestDashboardLoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.ready.Store(false) // the dashboard has to load while the database is unavailable
	files, err := fs.Glob(dashboardFiles, "dashboard/*")
	if err != nil || len(files) < 5 {
		t.Fatalf("files = %v, %v", files, err)
	}
	for _, file := range files {
		got := s.do("GET", "/"+file, "")
		if got.status != 200 || got.header.Get("Content-Type") == "" {
			t.Errorf("GET /%s = %d as %q", file, got.status, got.header.Get("Content-Type"))
		}
		policy := got.header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; style-src 'self';") || strings.Contains(policy, "unsafe") {
			t.Errorf("GET /%s has the policy %q", file, policy)
		}
		text := regexp.MustCompile(`xmlns="http://www.w3.org/2000/svg"|'http://www.w3.org/2000/svg'`).ReplaceAllString(got.body, "")
		if found := regexp.MustCompile(`(?i)https?://[a-z]|(src|href)="(//|[^/#])|\son[a-z]+="|style="|innerHTML =|insertAdjacentHTML|document\.write`).FindString(text); found != "" {
			t.Errorf("GET /%s contains %q, which the content policy forbids or the network may lack", file, found)
		}
		for _, m := range regexp.MustCompile(`(?:from '\./|"/dashboard/)([^'"]+)`).FindAllStringSubmatch(text, -1) {
			if got := s.do("GET", "/dashboard/"+m[1], ""); got.status != 200 {
				t.Errorf("%s loads %s, which is %d", file, m[1], got.status)
			}
		}
	}
	for _, path := range []string{"/dashboard/nosuch.js", "/dashboard/..%2Fmain.go", "/dashboard/%2e%2e", "/dashboard/.", "/dashboard/"} {
		if got := s.do("GET", path, ""); got.status != 404 {
			t.Errorf("GET %s = %d", path, got.status)
		}
	}
}

func TestOverviewDescribesTheDatabaseToWhomMetricsAreShown(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	check := func(c *client) {
		t.Helper()
		v := overviewOf(c, "").Server.Database
		want := fmt.Sprint(s.count("SELECT current_setting('server_version_num')::integer / 10000"))
		if v == nil || !strings.HasPrefix(v.Version, want) || v.Location != "queued at 127.0.0.1:5432" || v.Private || v.Latency <= 0 {
			t.Errorf("database = %+v", v)
		}
	}
	check(&s.client)
	s.useTokens(map[string]string{"worker": `"get":["*"]`, "scraper": `"metrics":true`, "operator": `"admin":true`})
	check(s.with(secret("scraper")))
	check(s.with(secret("operator")))
	if v := overviewOf(s.with(secret("worker")), "").Server.Database; v != nil {
		t.Errorf("a worker sees the database %+v", v)
	}
}

// overviewSeen has the fields of an overview that the tests check.
type overviewSeen struct {
	Server struct {
		ID      string
		Uptime  float64  `json:"uptime_seconds"`
		Counted *float64 `json:"counted_seconds_ago"`
		Recent  float64  `json:"recent_seconds"`

		Database *overviewDatabase
	}
	Token *overviewToken
	Data  []struct {
		ID        string
		TopicID   *string `json:"topic_id"`
		Ordered   bool
		Messages  *messageCounts
		Oldest    float64 `json:"oldest_message_age_seconds"`
		HourAgo   *int64  `json:"messages_hour_ago"`
		Receivers int     `json:"waiting_receivers"`
		overviewTotals
		Recent recentTotals
	}
	Totals overviewTotals
	Next   *int `json:"next_offset"`
}

func overviewOf(s *client, query string) (v overviewSeen) {
	s.t.Helper()
	mustDecode(s.t, s.must(200, "GET", "/overview"+query, ""), &v)
	return v
}

func TestOverviewShowsQueuesAndWhatIsInThem(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"ordered":true`)
	s.mustQueue("u")
	ids := s.publish("t", 1, 2, 3)
	s.receive("t", "?limit=2")
	s.must(204, "PUT", "/messages/"+ids[0]+"/ack", "")
	s.must(201, "POST", "/queues/t/messages", `{"data":{},"delay_seconds":60}`)
	s.changeMessages(shift("created_at", "-90 s"))
	s.poll(t.Context(), "u", "?wait_seconds=20")
	s.waiting("u", 1)
	var v overviewSeen
	eventually(t, "all messages are counted", func() bool {
		v = overviewOf(&s.client, "")
		return len(v.Data) == 2 && v.Data[1].Messages != nil && v.Data[0].Messages != nil && *v.Data[0].Messages == messageCounts{Ready: 1, Delayed: 1, InFlight: 1}
	})
	q := v.Data[0]
	if q.ID != "t" || *q.TopicID != "t" || !q.Ordered || q.Oldest < 90 || q.Oldest > 150 || q.Receivers != 0 || q.Published != 4 || q.Delivered != 2 || q.Acked != 1 {
		t.Errorf("overview = %+v", q)
	}
	if u := v.Data[1]; u.ID != "u" || u.Receivers != 1 || u.Published != 0 || *u.Messages != (messageCounts{}) {
		t.Errorf("overview = %+v", u)
	}
	if v.Token != nil || v.Next != nil || v.Server.ID != s.server.id || v.Server.Uptime <= 0 || v.Server.Counted == nil {
		t.Errorf("overview = %+v", v)
	}
	checkDiff(t, "totals of all queues", q.overviewTotals, v.Totals)
	s.must(204, "DELETE", "/queues/t", "")
	s.mustQueue("t")
	if q := overviewOf(&s.client, "").Data[0]; q.Published != 0 {
		t.Errorf("a queue created again has %d publishes", q.Published)
	}
}

func TestOverviewCountsWhatFails(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("dead")
	s.mustTopic("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	ids := s.publish("q", 1, 2)
	s.receive("q", "?limit=1")
	s.must(204, "PUT", "/messages/"+ids[0]+"/nack", "")
	s.receive("q", "?limit=2")
	s.must(204, "PUT", "/messages/"+ids[0]+"/nack", "")
	s.must(204, "PUT", "/messages/"+ids[1]+"/ack", "")
	s.publish("dead", 3)
	s.expire()
	c := &cleanup{store: s.store, log: slog.New(slog.DiscardHandler), announce: s.engine.announce}
	if err := c.once(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := overviewTotals{Published: 2, Delivered: 3, Redelivered: 1, Acked: 1, Nacked: 2, DeadLettered: 1}
	v := overviewOf(&s.client, "")
	checkDiff(t, "totals of the queue", want, v.Data[1].overviewTotals)
	checkDiff(t, "totals of its dead queue", overviewTotals{Published: 1, Expired: 2}, v.Data[0].overviewTotals)
	want.Published, want.Expired = 3, 2
	checkDiff(t, "totals of all queues", want, v.Totals)

	s.useTokens(map[string]string{"worker": `"get":["dead"]`})
	v = overviewOf(s.with(secret("worker")), "")
	checkDiff(t, "totals of the queues of a token", overviewTotals{Published: 1, Expired: 2}, v.Totals)
}

func TestOverviewHasWhatHappenedRecently(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("idle")
	s.mustTopic("q")
	fail := func() {
		t.Helper()
		s.must(204, "PUT", "/messages/"+s.receive("q", "")[0].ID+"/nack", "")
	}
	check := func(want recentTotals, seconds float64) {
		t.Helper()
		v := overviewOf(&s.client, "")
		if got := v.Server.Recent; got < seconds || got > seconds+100 {
			t.Errorf("recent numbers of %v s, not of %v s", got, seconds)
		}
		checkDiff(t, "of a queue without messages", recentTotals{}, v.Data[0].Recent)
		checkDiff(t, "of the other queue", want, v.Data[1].Recent)
	}
	s.publish("q", 1)
	fail()
	check(recentTotals{Delivered: 1, Nacked: 1}, 0)
	eventually(t, "the queues are counted", func() bool { counted, _ := s.depth.latest(); return len(counted) == 2 })
	s.server.history.sample(time.Now().Add(-7 * time.Minute))
	fail()
	check(recentTotals{Delivered: 1, Redelivered: 1, Nacked: 1}, 420)
	s.server.history.sample(time.Now().Add(-6 * time.Minute))
	s.server.history.sample(time.Now())
	check(recentTotals{}, 360)
	s.must(204, "PUT", "/messages/"+s.receive("q", "")[0].ID+"/ack", "")
	check(recentTotals{Delivered: 1, Redelivered: 1, Acked: 1}, 360)

	s.must(204, "DELETE", "/queues/q", "")
	s.mustTopic("q2")
	check(recentTotals{}, 360)
	if body := s.must(200, "GET", "/overview", ""); strings.Contains(string(body), `"recent":`) {
		t.Errorf("zeros are shown: %s", body)
	}
}

func TestHistoryHasTheMinutesOfAnHour(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("a")
	s.mustTopic("b")
	// A sample is in one line: its minute, the ready messages, all messages, publishes, deliveries.
	history := func(s *client, query string) (lines []string) {
		t.Helper()
		var v struct {
			ServerID string `json:"server_id"`
			Data     []struct {
				At              string
				Ready, Messages int64
				overviewTotals
			}
		}
		mustDecode(t, s.must(200, "GET", "/overview/history"+query, ""), &v)
		if v.ServerID == "" {
			t.Error("no id of the server")
		}
		for _, m := range v.Data {
			lines = append(lines, fmt.Sprint(m.At[14:16], " ", m.Ready, m.Messages, m.Published, m.Delivered))
		}
		return lines
	}
	if lines := history(&s.client, ""); lines != nil {
		t.Errorf("history of a new server = %q", lines)
	}
	if q := overviewOf(&s.client, "").Data[0]; q.HourAgo != nil {
		t.Errorf("messages an hour ago, at a new server: %d", *q.HourAgo)
	}
	at := func(n int) time.Time { return time.Date(2026, 1, 2, 3, n, 0, 0, time.UTC) }
	sample := func(n, messages int) {
		t.Helper()
		eventually(t, "the messages are counted", func() bool {
			counted, _ := s.depth.latest()
			sum := int64(0)
			for _, q := range counted {
				sum += q.Ready + q.InFlight
			}
			return sum == int64(messages)
		})
		s.server.history.sample(at(n))
	}
	s.publish("a", 1, 2)
	sample(0, 2)
	s.publish("b", 3)
	s.receive("b", "")
	sample(1, 3)
	checkDiff(t, "all queues", []string{"00 2 2 2 0", "01 2 3 3 1"}, history(&s.client, ""))
	checkDiff(t, "one queue", []string{"00 2 2 2 0", "01 2 2 2 0"}, history(&s.client, "?queue_id=a"))
	ready := func(s *client, query string) map[string][]int64 {
		t.Helper()
		var v struct{ Ready map[string][]int64 }
		mustDecode(t, s.must(200, "GET", "/overview/history"+query, ""), &v)
		return v.Ready
	}
	checkDiff(t, "ready messages, not requested", map[string][]int64(nil), ready(&s.client, ""))
	checkDiff(t, "ready messages of the queues that had some", map[string][]int64{"a": {2, 2}}, ready(&s.client, "?ready=true"))
	s.must(422, "GET", "/overview/history?ready=perhaps", "")
	v := overviewOf(&s.client, "")
	if a, b := v.Data[0].HourAgo, v.Data[1].HourAgo; a == nil || *a != 2 || b == nil || *b != 0 {
		t.Errorf("messages an hour ago: %v and %v", a, b)
	}

	s.useTokens(map[string]string{"worker": `"get":["b"]`})
	worker := s.with(secret("worker"))
	checkDiff(t, "queues of a token", []string{"00 0 0 0 0", "01 0 1 1 1"}, history(worker, ""))
	checkDiff(t, "a queue that the token may not see", []string{"00 0 0 0 0", "01 0 0 0 0"}, history(worker, "?queue_id=a"))
	checkDiff(t, "ready messages of the queues of a token", map[string][]int64{}, ready(worker, "?ready=true"))
	for n := range 60 {
		s.server.history.sample(at(2 + n))
	}
	if lines := history(worker, ""); len(lines) != 61 || lines[0][:2] != "01" || lines[60][:2] != "01" {
		t.Errorf("the history has %d samples: %q", len(lines), lines)
	}
}

func TestOverviewHasPagesAndWhatTheTokenMaySee(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for n := range 5 {
		s.mustQueue(fmt.Sprint("q", n))
	}
	s.limits.maxLimit = 2
	var got []string
	for next := new(0); next != nil; {
		v := overviewOf(&s.client, fmt.Sprint("?offset=", *next))
		for _, q := range v.Data {
			got = append(got, q.ID)
		}
		next = v.Next
	}
	checkDiff(t, "queues of all pages", []string{"q0", "q1", "q2", "q3", "q4"}, got)
	s.must(422, "GET", "/overview?offset=-1", "")

	s.useTokens(map[string]string{"worker": `"get":["q3"]`, "operator": `"admin":true`})
	v := overviewOf(s.with(secret("worker")), "")
	if len(v.Data) != 1 || v.Data[0].ID != "q3" || *v.Token != (overviewToken{"worker", false}) {
		t.Errorf("overview of a worker = %+v", v)
	}
	if v := overviewOf(s.with(secret("operator")), ""); len(v.Data) != 2 || *v.Token != (overviewToken{"operator", true}) {
		t.Errorf("overview of an operator = %+v", v)
	}
}
