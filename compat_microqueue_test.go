package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

func TestMicroQueueRespondsLikeMicroQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("manager-reload")
	s.mustQueue("fetcher")
	const available = "Available: fetcher, manager-reload\n"
	s.play([]step{
		{"GET", "/out/fetcher", "", 404, "Queue is empty\n"},
		{"GET", "/out/nope", "", 404, "Queue not found: nope. " + available},
		{"GET", "/out/nope?wait_seconds=20", "", 404, "Queue not found: nope. " + available},
		{"POST", "/in/nope", "x", 404, "Queue not found: nope. " + available},
		{"POST", "/in/nope", "", 404, "Queue not found: nope. " + available},
		{"POST", "/in/a%20b", "x", 404, "Queue not found: a b. " + available},
		{"GET", "/out/a%20b", "", 404, "Queue not found: a b. " + available},
		{"GET", "/compact/%00", "", 404, "Queue not found: \x00. " + available},
		{"POST", "/in/fetcher", "", 400, "Cannot enqueue empty job\n"},
		{"POST", "/in/fetcher", "first", 200, ""},
		{"POST", "/in/fetcher", "second", 200, ""},
		{"GET", "/out/manager-reload", "", 404, "Queue is empty\n"},
		{"GET", "/out/fetcher", "", 200, "first"},
		{"GET", "/out/fetcher?wait_seconds=1", "", 200, "second"},
		{"GET", "/out/fetcher", "", 404, "Queue is empty\n"},
		{"GET", "/out/fetcher?wait_seconds=x", "", 422, "[query wait_seconds]: value is not a valid float\n"},
		{"GET", "/compact/fetcher", "", 200, ""},
		{"GET", "/compact/nope", "", 404, "Queue not found: nope. " + available},
		{"PUT", "/in/fetcher", "x", 405, "Invalid method. Use POST to enqueue.\n"},
		{"GET", "/in/fetcher", "", 405, "Invalid method. Use POST to enqueue.\n"},
		{"POST", "/out/fetcher", "x", 405, "Invalid method. Use GET to dequeue.\n"},
		{"DELETE", "/compact/fetcher", "", 405, "Invalid method. Use GET to compact.\n"},
		{"DELETE", "/in/nope", "", 404, "Queue not found: nope. " + available},
		{"OPTIONS", "/in/fetcher", "", 200, "POST: Enqueues a new job. The raw request body (e.g., JSON) is treated as the job payload.\nRequires 'post' permission for this queue.\n"},
		{"OPTIONS", "/out/fetcher", "", 200, "GET: Dequeues, claims, and returns the next job payload from the queue.\nRequires 'get' permission for this queue.\n"},
		{"OPTIONS", "/compact/fetcher", "", 200, "GET: Triggers a background compaction of the queue's log file to remove old data.\nRequires 'admin' permission.\n"},
	})
	s.must(200, "POST", "/in/fetcher", `{"n":1}`)
	got := s.do("GET", "/out/fetcher", "")
	for name, want := range map[string]string{"Content-Type": "application/json", "Content-Security-Policy": "sandbox"} {
		checkDiff(t, name, want, got.header.Get(name))
	}
	checkDiff(t, "type of errors", "text/plain; charset=utf-8", s.do("GET", "/out/fetcher", "").header.Get("Content-Type"))
	for _, method := range []string{"OPTIONS", "POST"} {
		checkDiff(t, "Allow", "GET, OPTIONS", s.do(method, "/out/fetcher", "").header.Get("Allow"))
	}
	for _, path := range []string{"/in/fetcher", "/out/fetcher"} {
		checkDiff(t, "HEAD "+path, 405, s.do("HEAD", path, "").status)
	}
	s.wantMetrics(`http_requests_total{handler="/in/{queue}",method="PUT",status="4xx"} 1`)
}

func TestMicroQueueErrorsOfTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.useTokens(map[string]string{"poster": `"post":["q"]`})
	for path, want := range map[string]string{"/out/q": "Forbidden\n", "/compact/q": "Forbidden\n", "/out/other": "Forbidden\n"} {
		checkDiff(t, path, want, s.with(secret("poster")).must(403, "GET", path, ""))
	}
	checkDiff(t, "another method", "Forbidden\n", s.with(secret("poster")).must(403, "DELETE", "/out/q", ""))
	checkDiff(t, "without a token", tokenMissing+"\n", s.must(401, "GET", "/out/q", ""))
	checkDiff(t, "another method without a token", tokenMissing+"\n", s.must(401, "DELETE", "/out/q", ""))
	checkDiff(t, "with a wrong token", tokenInvalid+"\n", s.with("wrong").must(401, "GET", "/out/q", ""))
	s.with(secret("poster")).must(200, "POST", "/in/q", "x")
}

// A token sees only the names of queues that it has a permission for.
func TestMicroQueueNamesTheQueuesThatATokenMaySee(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"a", "b", "mail-1", "mail-2"} {
		s.mustQueue(id)
	}
	s.useTokens(map[string]string{"some": `"get":["a","mail-2","x"],"post":["mail-*","y"]`, "none": `"get":["x"]`, "all": `"admin":true`})
	for who, want := range map[string]string{"some": "a, mail-1, mail-2", "none": "", "all": "a, b, mail-1, mail-2"} {
		checkDiff(t, who, "Queue not found: x. Available: "+want+"\n", s.with(secret(who)).must(404, "GET", "/out/x", ""))
	}
	help := s.must(200, "OPTIONS", "/out/a", "")
	checkDiff(t, "help on a queue that does not exist", help, s.must(200, "OPTIONS", "/out/x", ""))
}

func TestMicroQueueNamesSomeOfMany(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.exec("INSERT INTO queued.queues (id, ack_deadline_seconds, message_retention_seconds) SELECT 'q' || n, 60, 3600 FROM generate_series(1000, 1999) n")
	got := s.must(404, "GET", "/out/x", "")
	checkDiff(t, "names", microNames, strings.Count(got, ", ")+1)
}

// These are micro-queue's own tests: jobs keep their order over a restart and a
// compaction, until the queue is empty.
func TestMicroQueueKeepsItsOrderOverARestartAndACompaction(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	out := func(s *testServer, want string) {
		t.Helper()
		checkDiff(t, "out", want, s.must(200, "GET", "/out/q", ""))
	}
	s.must(200, "GET", "/compact/q", "")
	for _, job := range []string{"job1", "job-numero-2", "third-job", "jobA", "jobB"} {
		s.must(200, "POST", "/in/q", job)
	}
	out(s, "job1")
	out(s, "job-numero-2")
	s.exec("VACUUM queued.messages")
	out(s, "third-job")
	again := newTestServerOn(t, s.dsn)
	out(again, "jobA")
	out(again, "jobB")
	checkDiff(t, "then", "Queue is empty\n", again.must(404, "GET", "/out/q", ""))
}

// microBodies are bodies that a dequeue returns unchanged, and their data in the native
// API.
var microBodies = map[string]string{
	"text \"with\" <signs>\n\té":      `{"content_type":"text/x","body":"text \"with\" <signs>\n\té"}`,
	" { \"b\" : 1.10, \"a\":[ ] }\n":  " { \"b\" : 1.10, \"a\":[ ] }\n",
	`[1]`:                             `{"content_type":"text/x","body":"[1]"}`,
	`"x"`:                             `{"content_type":"text/x","body":"\"x\""}`,
	"\x00\xff":                        `{"content_type":"text/x","body_base64":"AP8="}`,
	"a\x00b":                          `{"content_type":"text/x","body_base64":"YQBi"}`,
	"\u2028\U0001F600":                "{\"content_type\":\"text/x\",\"body\":\"\\u2028\U0001F600\"}",
	`{"content_type":"a","body":"b"}`: `{"content_type":"text/x","body":"{\"content_type\":\"a\",\"body\":\"b\"}"}`,
	`{"content_type":"a","body_base64":"not base64"}`: `{"content_type":"a","body_base64":"not base64"}`,
	`{"broken"`: `{"content_type":"text/x","body":"{\"broken\""}`,
}

func TestMicroQueueKeepsBodiesToTheByte(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	post := func(body string) {
		t.Helper()
		response := s.raw("POST", "/in/q", body, "Host: localhost", "Content-Type: text/x")
		if response.StatusCode != http.StatusOK {
			t.Fatalf("POST %q = %d", body, response.StatusCode)
		}
	}
	for body, data := range microBodies {
		post(body)
		checkDiff(t, "body", body, s.must(200, "GET", "/out/q", ""))
		post(body)
		got := s.receive("q", "")
		checkDiff(t, "data", strings.TrimSpace(data), string(got[0].Data))
		s.must(204, "PUT", "/messages/"+got[0].ID+"/ack", "")
	}
	s.must(201, "POST", "/queues/q/messages", `{"data":{"native": 1}}`)
	checkDiff(t, "a native message", `{"native": 1}`, s.must(200, "GET", "/out/q", ""))
}

func FuzzMicroQueueBodies(f *testing.F) {
	for body := range microBodies {
		f.Add([]byte(body), "text/plain")
	}
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		data := wrap(body, contentType)
		if v := parseBody(data); v.broken {
			t.Errorf("the data of %q is not an object: %s", body, data)
		}
		if got := unwrap(data); string(got) != string(body) {
			t.Errorf("%q became %q, by %s", body, got, data)
		}
	})
}

// A job whose client has disconnected goes to the next client.
func TestMicroQueueReaderThatDisconnectedTakesNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	ctx, hangUp := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		_, err := s.send(ctx, "GET", "/out/q?wait_seconds=20", "")
		ended <- err
	}()
	s.inLine("q", 1)
	hangUp()
	<-ended
	s.must(200, "POST", "/in/q", "x")
	checkDiff(t, "the next gets", "x", s.must(200, "GET", "/out/q?wait_seconds=20", ""))
}

func TestCompactVacuums(t *testing.T) {
	t.Parallel()
	r := runServer(t, "-database-url", newTestDatabase(t, "template1"))
	c := r.client()
	c.mustQueue("q")
	c.must(200, "GET", "/compact/q", "")
	eventually(t, "the table was vacuumed", func() bool {
		return strings.Contains(c.must(200, "GET", "/metrics", ""), `queued_statement_duration_seconds_count{statement="vacuum"} 1`)
	})
}
