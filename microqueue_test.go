package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

func TestMicroQueueAnswersLikeMicroQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.play([]step{
		{"GET", "/out/q", "", 404, "Queue is empty"},
		{"GET", "/out/nope", "", 404, "Unknown queue"},
		{"POST", "/in/nope", "x", 404, "Unknown queue"},
		{"POST", "/in/a%20b", "x", 404, "Unknown queue"},
		{"POST", "/in/q", "", 400, "Cannot enqueue empty job"},
		{"POST", "/in/q", "first", 200, ""},
		{"POST", "/in/q", "second", 200, ""},
		{"GET", "/out/q", "", 200, "first"},
		{"GET", "/out/q?wait_seconds=1", "", 200, "second"},
		{"GET", "/out/q", "", 404, "Queue is empty"},
		{"GET", "/out/q?wait_seconds=x", "", 422, "[query wait_seconds]: value is not a valid float"},
		{"OPTIONS", "/in/q", "", 200, "POST a body of any kind to put it into the queue."},
		{"GET", "/compact/q", "", 200, ""},
		{"GET", "/compact/nope", "", 404, "Unknown queue"},
	})
	s.must(200, "POST", "/in/q", `{"n":1}`)
	got := s.do("GET", "/out/q", "")
	for name, want := range map[string]string{"Content-Type": "application/json", "Content-Security-Policy": "sandbox"} {
		checkDiff(t, name, want, got.header.Get(name))
	}
	checkDiff(t, "Allow", "GET, OPTIONS", s.do("OPTIONS", "/out/q", "").header.Get("Allow"))
	if v := s.do("HEAD", "/out/q", ""); v.status != 405 {
		t.Errorf("HEAD /out/q = %d, want 405", v.status)
	}
}

func TestMicroQueueErrorsOfTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.useTokens(map[string]string{"poster": `"post":["q"]`})
	for path, want := range map[string]string{"/out/q": "Forbidden", "/compact/q": "Forbidden", "/out/other": "Forbidden"} {
		checkDiff(t, path, want, s.with(secret("poster")).must(403, "GET", path, ""))
	}
	checkDiff(t, "without a token", tokenMissing, s.must(401, "GET", "/out/q", ""))
	checkDiff(t, "with a wrong one", tokenInvalid, s.with("wrong").must(401, "GET", "/out/q", ""))
	s.with(secret("poster")).must(200, "POST", "/in/q", "x")
}

// microBodies are bodies that come out as they went in, and what the native API shows of them.
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
		answer := s.raw("POST", "/in/q", body, "Host: localhost", "Content-Type: text/x")
		if answer.StatusCode != http.StatusOK {
			t.Fatalf("POST %q = %d", body, answer.StatusCode)
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
		if v := readBody(data); v.broken {
			t.Errorf("the data of %q is not an object: %s", body, data)
		}
		if got := unwrap(data); string(got) != string(body) {
			t.Errorf("%q became %q, by %s", body, got, data)
		}
	})
}

// A body whose client has hung up goes to the next.
func TestMicroQueueReaderThatIsGoneTakesNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	ctx, hangUp := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		_, err := s.send(ctx, "GET", "/out/q?wait_seconds=20", "")
		ended <- err
	}()
	s.eventually("it waits", func() bool { return s.engine.waiting()["q"] == 1 })
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
	c.eventually("it was vacuumed", func() bool {
		return strings.Contains(c.must(200, "GET", "/metrics", ""), `queued_statement_duration_seconds_count{statement="vacuum"} 1`)
	})
}
