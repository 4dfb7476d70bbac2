package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// testTraceparent is the one in the examples of W3C Trace Context.
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
		{join("01", traceID, parentID, flags, "what comes later"), false}, // has spaces
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

// requestIDsOf returns the request ids of a response to a request with these headers.
func requestIDsOf(s *testServer, headers ...string) (status int, ids []string) {
	s.t.Helper()
	response := s.raw("GET", "/topics", "", append(headers, "Host: localhost")...)
	return response.StatusCode, response.Header["X-Request-Id"]
}

func TestResponseHasTheRequestIDOfTheClient(t *testing.T) {
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
		status, ids := requestIDsOf(s, "x-REQUEST-id: "+v.id)
		if status != 200 || len(ids) != 1 || (ids[0] == v.id) != v.taken || ids[0] == "" {
			t.Errorf("the response to the request id %q = %d with %q", v.id, status, ids)
		}
	}
	if _, ids := requestIDsOf(s, "X-Request-Id: a", "X-Request-Id: a"); len(ids) != 1 || ids[0] == "a" {
		t.Errorf("the response to two request ids has %q, want a new one", ids)
	}
}

func TestEveryResponseHasARequestID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.handle(native, public, "GET /panic", func(*request) (any, error) { panic("it") })
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
		{s, 200, "GET", "/topics/", "", nil},
		{s, 404, "GET", "//topics", "", nil},
		{s, 307, "GET", "/redoc", "", nil},
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
		created := v.server.raw(v.method, v.path, v.body, headers...)
		if ids := created.Header["X-Request-Id"]; created.StatusCode != v.status || len(ids) != 1 || !isVisibleASCII(ids[0], maxTrace) {
			t.Errorf("%s = %d with request ids %q, want %d and one", what, created.StatusCode, ids, v.status)
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
					seen[id] = isVisibleASCII(id, maxTrace)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	checkDiff(t, "different ids", 2*servers*many, len(seen))
	for id, valid := range seen {
		if !valid {
			t.Fatalf("%q is not a request id", id)
		}
	}
}

func TestLogSaysWhichRequestALineIsAbout(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.handle(native, public, "GET /panic", func(*request) (any, error) { panic("it") })
	s.handle(native, public, "GET /error", func(*request) (any, error) { return nil, fmt.Errorf("it") })
	b := newSyncBuffer()
	s.server.log = newLog(b, slog.LevelDebug, "text")
	logged := func(client *client, path string) (lines []string, id string) {
		before := len(b.String())
		id = client.do("GET", path, "").header.Get("X-Request-Id")
		return strings.Split(strings.TrimSuffix(b.String()[before:], "\n"), "\n"), id
	}
	for path, messages := range map[string][]string{"/livez": {"request"}, "/nosuch": {"request"}, "/panic": {"panic", "request"}, "/error": {`"internal error"`, "request"}} {
		for _, v := range []struct {
			client *client
			want   string
		}{
			{&s.client, ""},
			{s.tracing("mine", ""), ""},
			{s.tracing(`"x=\y`, testTraceparent), " traceparent=" + testTraceparent},
			{s.tracing("", testTraceparent), " traceparent=" + testTraceparent},
			{s.tracing("a b", "00-0"), ""},
		} {
			lines, id := logged(v.client, path)
			if given := v.client.trace.requestID; isVisibleASCII(given, maxTrace) && id != given {
				t.Errorf("the response of GET %s has the request id %q, want %q", path, id, given)
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

const allFields = "?fields=group,request_id,traceparent"

func TestMessageShowsTheTraceOfItsPublishWhereItIsAskedFor(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	c := s.tracing(`a"\`, testTraceparent)
	const usual = `{"id":"UUID","queue_id":"t","data":{},"attributes":null,"delivery_attempts":%d,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"`
	const all = `,"group":"g","request_id":"a\"\\","traceparent":"` + testTraceparent + `"}`
	member := map[string]string{"group": `,"group":"g"`, "request_id": `,"request_id":"a\"\\"`, "traceparent": `,"traceparent":"` + testTraceparent + `"`}
	list := func(attempts int, more string) string {
		return `{"data":[` + fmt.Sprintf(usual, attempts) + more + `]}`
	}
	const one = `{"data":{},"group":"g"}`
	for _, fields := range []string{"group", "request_id", "traceparent"} {
		c.play([]step{{"POST", "/topics/t/messages?fields=" + fields, one, 201, list(0, member[fields]+"}")}})
		s.play([]step{{"GET", "/queues/t/messages?fields=" + fields, "", 200, list(1, member[fields]+"}")}})
	}
	for _, path := range []string{"/topics/t/messages", "/queues/t/messages"} {
		c.play([]step{
			{"POST", path, one, 201, list(0, "}")},
			{"POST", path + "/batch" + allFields, `{"messages":[` + one + `]}`, 201, list(0, all)},
		})
		s.play([]step{ // the receiving request has a trace of its own
			{"GET", "/queues/t/messages?limit=1", "", 200, list(1, "}")},
			{"GET", "/queues/t/messages?fields=traceparent%2Cgroup,request_id,group", "", 200, list(1, all)},
		})
	}
	id := c.messages(c.must(201, "POST", "/queues/t/messages", one))[0].ID
	other := s.tracing("other", strings.Replace(testTraceparent, "00-", "01-", 1))
	peeked := func(state string, attempts int) string {
		return fmt.Sprintf(usual, attempts) + `,"state":"` + state + `"` + all
	}
	other.play([]step{
		{"GET", "/messages/" + id, "", 200, peeked("ready", 0)},
		{"GET", "/queues/t/messages/peek?limit=1", "", 200, `{"data":[` + peeked("ready", 0) + `]}`},
		{"GET", "/queues/t/messages", "", 200, list(1, "}")},
		{"PUT", "/messages/" + id + "/extend", `{"ack_deadline_seconds":60}`, 200, fmt.Sprintf(usual, 1) + "}"},
		{"PUT", "/messages/" + id + "/extend" + allFields, `{"ack_deadline_seconds":60}`, 200, fmt.Sprintf(usual, 1) + all},
	})
}

func TestMessageWithoutATraceShowsNone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	for i, c := range []*client{&s.client, s.tracing("a b", "00-0"), s.tracing("a", "00-0"), s.tracing("a b", testTraceparent)} {
		id := c.messages(c.must(201, "POST", "/topics/t/messages", fmt.Sprintf(`{"data":{"n":%d}}`, i)))[0].ID
		text := s.must(200, "GET", "/messages/"+id, "")
		checkDiff(t, "request_id "+text, i == 2, strings.Contains(text, `"request_id"`))
		checkDiff(t, "traceparent "+text, i == 3, strings.Contains(text, `"traceparent"`))
	}
	checkDiff(t, "rows without a trace of the client", 2, s.count("SELECT count(*) FROM queued.messages WHERE trace IS NULL"))
	checkDiff(t, "received", "0/// 1/// 2//a/ 3///"+testTraceparent, s.traces(s.must(200, "GET", "/queues/t/messages"+allFields, "")))
}

func TestRequestIDIsShownAsItWasSent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const id = `"\\<&'{}` + "`" + `,a`
	s.tracing(id, "").must(201, "POST", "/queues/q/messages", `{"data":{"n":1}}`)
	s.tracing(id, testTraceparent).must(201, "POST", "/queues/q/messages", `{"data":{"n":2},"group":"g"}`)
	text := s.must(200, "GET", "/queues/q/messages"+allFields, "")
	checkDiff(t, "request ids", 2, strings.Count(text, `"request_id":"\"\\\\<&'{}`+"`"+`,a"`))
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	id := s.messages(s.must(201, "POST", "/queues/q/messages", `{"data":{}}`))[0].ID
	const refused = `{"detail":[{"loc":["query","fields"],"msg":"unknown field; allowed: group, request_id, traceparent","type":"value_error"}]}`
	for _, fields := range []string{"", "all", "Group", "group,", ",group", "group,,traceparent", "group,%20traceparent", "group;traceparent", "group,nosuch,nosuch"} {
		s.play([]step{
			{"GET", "/queues/q/messages?fields=" + fields, "", 422, refused},
			{"POST", "/queues/q/messages?fields=" + fields, `{"data":{}}`, 422, refused},
			{"POST", "/queues/q/messages/batch?fields=" + fields, `{"messages":[{"data":{}}]}`, 422, refused},
			{"PUT", "/messages/" + id + "/extend?fields=" + fields, `{"ack_deadline_seconds":60}`, 422, refused},
		})
	}
	checkDiff(t, "stored", 1, s.messagesIn("q"))
}

// Publishes that share a statement keep their own traces.
func TestMessagesOfOneStatementKeepTheirOwnTraces(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.mustTopic("unheard", `"message_filters":{"a":["b"]}`)
	session := newPinnedConn(s.engine.main.db, s.server.metrics)
	defer session.close()
	one := func(n int, group string, of trace) *publication {
		return &publication{queueID: "q", trace: of, messages: []draft{{data: fmt.Appendf(nil, `{"n":%d}`, n), group: group}}}
	}
	later := strings.Replace(testTraceparent, "00-", "01-", 1)
	for _, group := range []string{"", "g"} {
		batch := []*publication{
			one(1, "", trace{}), one(2, "", trace{"b", testTraceparent}), one(3, group, trace{}), one(4, group, trace{requestID: "d"}),
			{topicID: "unheard", trace: trace{"no", testTraceparent}, messages: []draft{{data: []byte("{}")}}},
			one(5, "", trace{traceparent: later}), one(6, "", trace{}),
		}
		if err := s.engine.runPublications(session, batch); err != nil {
			t.Fatal(err)
		}
		checkDiff(t, "with group "+group, fmt.Sprintf("1/// 2//b/%s 3/%s// 4/%[2]s/d/ 5///%s 6///", testTraceparent, group, later), s.tracesIn("q"))
		s.exec("DELETE FROM queued.messages")
	}
}

func TestTraceStaysWithTheMessageWhereverItGoes(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"", "g"} {
		s := newTestServer(t)
		s.mustQueue("dead", keeping)
		s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
		c := s.tracing("a", testTraceparent)
		body := fmt.Sprintf(`{"data":{"n":1},"group":%q}`, group)
		if group == "" {
			body = `{"data":{"n":1}}`
		}
		want := fmt.Sprintf("1/%s/a/%s", group, testTraceparent)
		id := c.messages(c.must(201, "POST", "/queues/q/messages", body))[0].ID
		redrive := func() {
			s.makeGroupsReady()
			s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"q"}`)
			checkDiff(t, "redriven", want, s.tracesIn("q"))
		}

		checkDiff(t, "received", want, s.traces(s.must(200, "GET", "/queues/q/messages"+allFields, "")))
		s.must(204, "PUT", "/messages/"+id+"/nack", "")
		checkDiff(t, "moved by the nack", want, s.tracesIn("dead"))
		redrive()
		s.receive("q", "")
		s.makeDue()
		s.mustCleanUp()
		checkDiff(t, "moved by the cleanup", want, s.tracesIn("dead"))
		checkDiff(t, "received there", want, s.traces(s.must(200, "GET", "/queues/dead/messages"+allFields, "")))
		s.must(204, "PUT", "/messages/"+id+"/nack", "")
		redrive()
		v, err := s.engine.receive(t.Context(), "q", 1, 0)
		if err != nil || len(v.messages) != 1 {
			t.Fatalf("receive = %+v, %v, want one message", v.messages, err)
		}
		s.engine.release("q", v.messages)
		checkDiff(t, "released", want, s.tracesIn("q"))

		s.receive("q", "")
		s.must(204, "PUT", "/messages/"+id+"/nack", "")
		v, err = s.engine.consume(t.Context(), "dead", 1, 0)
		if err != nil || len(v.messages) != 1 {
			t.Fatalf("consume = %+v, %v, want one message", v.messages, err)
		}
		checkDiff(t, "kept as consumed", want, s.traces(s.must(200, "GET", "/queues/dead/messages/consumed", "")))
		s.engine.release("dead", v.messages)
		checkDiff(t, "consumed and released", want, s.tracesIn("dead"))
		s.must(200, "GET", "/out/dead", "")
		checkDiff(t, "consumed again", want, s.traces(s.must(200, "GET", "/queues/dead/messages/consumed", "")))
	}
}

func TestPublishesByOtherAPIsKeepTheirTraces(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", keeping)
	want := "//a/" + testTraceparent
	c := s.tracing("a", testTraceparent)
	c.must(201, "POST", "/message", `{"channel":"q","message":{"n":1}}`)
	c.must(200, "POST", "/in/q", `{"n":2}`)
	c.must(201, "POST", "/message", `{"channel":"new","message":{"n":3}}`)
	checkDiff(t, "of pgQueue and micro-queue", "1"+want+" 2"+want, s.tracesIn("q"))
	checkDiff(t, "in a queue that the publish created", "3"+want, s.tracesIn("new"))

	// A SharQ job that is enqueued again has the trace of the last request.
	job := func(c *client, id string, n int) {
		t.Helper()
		c.must(201, "POST", "/enqueue/sharq/g/", fmt.Sprintf(`{"job_id":%q,"payload":{"n":%d},"interval":1,"requeue_limit":3}`, id, n))
	}
	job(&s.client, "none", 4)
	job(c, "j", 5)
	checkDiff(t, "jobs", "4/g// 5/g/a/"+testTraceparent, s.tracesIn("sharq"))
	job(s.tracing("b", ""), "j", 6)
	checkDiff(t, "a job that was enqueued again", "4/g// 6/g/b/", s.tracesIn("sharq"))
	job(&s.client, "j", 7)
	checkDiff(t, "a job that was enqueued a third time", "4/g// 7/g//", s.tracesIn("sharq"))
	job(c, "none", 8)
	s.must(200, "GET", "/dequeue/sharq/", "")
	s.endLeases()
	checkDiff(t, "jobs after the end of a lease", "7/g// 8/g/a/"+testTraceparent, s.tracesIn("sharq"))
}
