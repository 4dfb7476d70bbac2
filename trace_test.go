package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// That of the examples of W3C Trace Context.
const testTraceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceparentIsReadByItsSpecification(t *testing.T) {
	t.Parallel()
	const version, traceID, parentID, flags = "00", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "01"
	join := func(parts ...string) string { return strings.Join(parts, "-") }
	for _, v := range []struct {
		text  string
		valid bool
	}{
		{testTraceparent, true},
		{join(version, traceID, parentID, "00"), true},
		{join(version, traceID, parentID, "ff"), true},
		{join(version, strings.Repeat("0", 31)+"1", strings.Repeat("0", 15)+"1", flags), true},
		{join("01", traceID, parentID, flags), true},
		{join("01", traceID, parentID, flags, "what comes later"), false}, // it has spaces
		{join("01", traceID, parentID, flags, "whatever:=comes/later"), true},
		{join("fe", traceID, parentID, flags, ""), true},
		{join("fe", traceID, parentID, flags, strings.Repeat("a", maxTrace-len(testTraceparent)-1)), true},
		{join("fe", traceID, parentID, flags, strings.Repeat("a", maxTrace-len(testTraceparent))), false},
		{join("01", traceID, parentID, flags, "\u00e4"), false},
		{join("01", traceID, parentID, flags, "\t"), false},
		{join("01", traceID, parentID, flags+"01"), false},
		{"", false},
		{"00", false},
		{join(version, traceID, parentID), false},
		{join(version, traceID, parentID, "1"), false},
		{join(version, traceID, parentID, "001"), false},
		{join(version, traceID, parentID, flags, ""), false},
		{join(version, traceID, parentID, flags, "00"), false},
		{join(version, traceID, parentID, flags) + "," + testTraceparent, false},
		{join("ff", traceID, parentID, flags), false},
		{join("0", traceID, parentID, flags, "0"), false},
		{join("FE", traceID, parentID, flags), false},
		{join("0g", traceID, parentID, flags), false},
		{join(version, strings.ToUpper(traceID), parentID, flags), false},
		{join(version, traceID, strings.ToUpper(parentID), flags), false},
		{join(version, traceID, parentID, "0A"), false},
		{join(version, strings.Repeat("0", 32), parentID, flags), false},
		{join(version, traceID, strings.Repeat("0", 16), flags), false},
		{join(version, traceID[1:]+"g", parentID, flags), false},
		{join(version, traceID, parentID[1:]+"g", flags), false},
		{join(version, traceID, parentID, "0g"), false},
		{join(version, traceID[1:], parentID+"0", flags), false},
		{join(version, traceID+"0", parentID[1:], flags), false},
		{strings.ReplaceAll(testTraceparent, "-", "_"), false},
		{testTraceparent[:2] + "0" + testTraceparent[3:], false},
		{testTraceparent[:35] + "0" + testTraceparent[36:], false},
		{testTraceparent[:52] + "0" + testTraceparent[53:], false},
		{" " + testTraceparent[1:], false},
	} {
		if got := validTraceparent(v.text); got != v.valid {
			t.Errorf("validTraceparent(%q) = %v, want %v", v.text, got, v.valid)
		}
		if got := readTrace(http.Header{"Traceparent": {v.text}}); (got.traceparent == v.text) != v.valid && v.text != "" || got.requestID != "" {
			t.Errorf("readTrace with traceparent %q = %+v", v.text, got)
		}
	}
	checkDiff(t, "two of them", true, readTrace(http.Header{"Traceparent": {testTraceparent, testTraceparent}}) == trace{})
}

// answeredWith returns the request ids of an answer to a request with these headers.
func (s *testServer) answeredWith(headers ...string) (status int, ids []string) {
	s.t.Helper()
	answer := s.raw("GET", "/topics", "", append(headers, "Host: localhost")...)
	return answer.StatusCode, answer.Header["X-Request-Id"]
}

func TestAnswerHasTheRequestIDThatWasGiven(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, v := range []struct {
		id    string
		taken bool
	}{
		{"a", true},
		{"7d9f9ac6-0b5c-4f4e-8a0a-1d7a0c6c3a11", true},
		{`!"#$%&'()*+,-./:;<=>?@[\]^_{|}~` + "`", true},
		{strings.Repeat("a", 128), true},
		{strings.Repeat("a", 129), false},
		{"", false},
		{"a b", false},
		{"a\tb", false},
		{"é", false},
		{"a\x80", false},
		{"\u2028", false},
	} {
		status, ids := s.answeredWith("x-REQUEST-id: " + v.id)
		if status != 200 || len(ids) != 1 || (ids[0] == v.id) != v.taken || ids[0] == "" {
			t.Errorf("request id %q is answered with %d and %q", v.id, status, ids)
		}
	}
	if _, ids := s.answeredWith("X-Request-Id: a", "X-Request-Id: a"); len(ids) != 1 || ids[0] == "a" {
		t.Errorf("two request ids are answered with %q", ids)
	}
}

func TestEveryAnswerHasARequestID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.handle(public, "GET /panic", func(*request) error { panic("it") })
	closed := newTestServer(t)
	closed.ready.Store(false)
	locked := newTestServer(t)
	locked.tokens.Store(&tokens{})
	for _, v := range []struct {
		server             *testServer
		status             int
		method, path, body string
		headers            []string
	}{
		{s, 200, "GET", "/livez", "", nil},
		{s, 200, "GET", "/metrics", "", nil},
		{s, 200, "HEAD", "/queues", "", nil},
		{s, 201, "POST", "/queues/q/messages", `{"data":{}}`, nil},
		{s, 204, "PUT", "/queues/q/purge", "", nil},
		{s, 204, "GET", "/queue/nosuch", "", nil},
		{s, 200, "OPTIONS", "/in/q", "", nil},
		{s, 307, "GET", "/topics/", "", nil},
		{s, 307, "GET", "//topics", "", nil},
		{s, 404, "GET", "/nosuch", "", nil},
		{s, 404, "GET", "/queues/nosuch", "", nil},
		{s, 404, "GET", "/dequeue/nosuch", "", nil},
		{s, 405, "BREW", "/queues", "", nil},
		{s, 405, "HEAD", "/queues/q/messages", "", nil},
		{s, 422, "POST", "/queues/q/messages", "{}", nil},
		{s, 413, "POST", "/queues/q/messages", strings.Repeat(" ", 2<<20), nil},
		{s, 403, "GET", "/queues", "", []string{"Host: evil.example"}},
		{s, 403, "POST", "/queues", "", []string{"Sec-Fetch-Site: cross-site"}},
		{s, 500, "GET", "/panic", "", nil},
		{closed, 503, "GET", "/queues", "", nil},
		{locked, 401, "GET", "/queues", "", nil},
	} {
		what := fmt.Sprint(v.method, " ", v.path, " ", v.headers)
		headers := v.headers
		if len(headers) == 0 || !strings.HasPrefix(headers[0], "Host:") {
			headers = append(headers, "Host: localhost")
		}
		made := v.server.raw(v.method, v.path, v.body, headers...)
		if ids := made.Header["X-Request-Id"]; made.StatusCode != v.status || len(ids) != 1 || !isWord(ids[0]) {
			t.Errorf("%s = %d with request ids %q, want %d and one", what, made.StatusCode, ids, v.status)
		}
		given := v.server.raw(v.method, v.path, v.body, append(headers, "X-Request-Id: mine")...)
		checkDiff(t, what, []string{"mine"}, given.Header["X-Request-Id"])
	}
}

func TestRequestIDsAreDifferent(t *testing.T) {
	t.Parallel()
	const servers, many = 8, 1000
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for range servers {
		r := newRequestIDs()
		for range 2 {
			wg.Go(func() {
				for range many {
					id := r.next()
					mu.Lock()
					seen[id] = isWord(id)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	checkDiff(t, "different ids", 2*servers*many, len(seen))
	for id, valid := range seen {
		if !valid {
			t.Fatalf("%q is no request id", id)
		}
	}
}

func TestLogSaysWhichRequestALineIsAbout(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.handle(public, "GET /panic", func(*request) error { panic("it") })
	s.handle(public, "GET /error", func(*request) error { return fmt.Errorf("it") })
	b := newSyncBuffer()
	s.server.log = newLog(b, slog.LevelDebug, "text")
	logged := func(client *testServer, path string) (lines []string, id string) {
		before := len(b.String())
		id = client.do("GET", path, "").header.Get("X-Request-Id")
		return strings.Split(strings.TrimSuffix(b.String()[before:], "\n"), "\n"), id
	}
	for path, messages := range map[string][]string{"/livez": {"request"}, "/nosuch": {"request"}, "/panic": {"panic", "request"}, "/error": {`"internal error"`, "request"}} {
		for _, v := range []struct {
			client *testServer
			want   string
		}{
			{s, ""},
			{s.tracing("mine", ""), ""},
			{s.tracing(`"x=\y`, testTraceparent), " traceparent=" + testTraceparent},
			{s.tracing("", testTraceparent), " traceparent=" + testTraceparent},
			{s.tracing("a b", "00-0"), ""},
		} {
			lines, id := logged(v.client, path)
			if given := v.client.trace.requestID; isWord(given) && id != given {
				t.Errorf("GET %s is answered with the id %q, want %q", path, id, given)
			}
			if strings.ContainsAny(id, `"=\`) {
				id = fmt.Sprintf("%q", id)
			}
			if len(lines) != len(messages) {
				t.Fatalf("GET %s logs %q", path, lines)
			}
			for i, line := range lines {
				if !strings.Contains(line, " msg="+messages[i]+" ") || !strings.HasSuffix(line, " request_id="+id+v.want) {
					t.Errorf("GET %s logs %s, want a line of %s and the request %s%s", path, line, messages[i], id, v.want)
				}
			}
		}
	}
}
