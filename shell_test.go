package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"queued/internal/flags"
)

// shell runs a command of the program against this server.
func (s *client) shell(stdin io.Reader, command string, args ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	out, errors := newSyncBuffer(), newSyncBuffer() // several goroutines may write
	getenv := func(name string) string { return map[string]string{"QUEUED_URL": s.url, "QUEUED_TOKEN": s.token}[name] }
	err = run(context.Background(), append([]string{command}, args...), getenv, stdin, out, errors)
	return out.String(), errors.String(), err
}

// mustShell is like shell, for a command that must succeed. It returns the output.
func (s *client) mustShell(stdin, command string, args ...string) string {
	s.t.Helper()
	out, errors, err := s.shell(strings.NewReader(stdin), command, args...)
	if err != nil || errors != "" {
		s.t.Fatalf("queued %s %v = %v\n%s", command, args, err, errors)
	}
	return out
}

// Programs on Windows write a byte order mark before JSON. It is skipped in request
// bodies, in the input of queued publish, and in files.
func TestByteOrderMarkBeforeJSONIsSkipped(t *testing.T) {
	t.Parallel()
	const mark = "\ufeff"
	s := newTestServer(t)
	s.must(201, "POST", "/topics", mark+`{"id":"t"}`)
	s.mustQueue("q", `"topic_id":"t"`)
	s.must(201, "POST", "/topics/t/messages", mark+` {"data":{"n":1}}`)
	s.must(201, "POST", "/queues/q/messages/batch", mark+`{"messages":[{"data":{"n":2}}]}`)
	s.must(201, "POST", "/message", mark+`{"channel":"q","message":{"n":3}}`)
	s.mustShell(mark+`{"n":4}`+"\r\n", "publish", "t")
	s.mustShell(mark+`{"n":5}`+"\r\n"+mark+`{"n":6}`+"\r\n"+mark, "publish", "-lines", "t")
	checkDiff(t, "messages", []int{1, 2, 3, 4, 5, 6}, numbers(s.receive("q", "")))

	s.must(200, "POST", "/in/q", mark+`{"n":7}`) // micro-queue returns bodies unchanged
	checkDiff(t, "body", mark+`{"n":7}`, s.must(200, "GET", "/out/q", ""))

	path := filepath.Join(t.TempDir(), "tokens.json")
	if err := os.WriteFile(path, []byte(mark+`{"tokens":[{"name":"a","token":"secret-secret-secret","admin":true}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := readTokens(path); err != nil || len(all.bearers) != 1 {
		t.Errorf("a file of tokens = %v, %v", all, err)
	}
	if v, err := readTopology(mustWriteTopology(t, mark+`{"topics":[{"id":"t"}]}`), &s.server.limits); err != nil || len(v.topics) != 1 {
		t.Errorf("a topology = %v, %v", v, err)
	}
}

// copies returns the lines that queued publish prints for these messages.
func copies(messages []wireMessage) string {
	var out strings.Builder
	for _, m := range messages {
		fmt.Fprintln(&out, m.ID, m.QueueID)
	}
	return out.String()
}

func TestPublishCommandPublishesAnObject(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`)
	const data = `{"b": 1.10, "a": "\u0000<", "b": {}}`
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		args       []string
		queues     string
		attributes string
		shown      string // further fields in the output
	}{
		{[]string{"t"}, "t u", "null", ""},
		{[]string{"t", "-"}, "t u", "null", ""},
		{[]string{"t", file}, "t u", "null", ""},
		{[]string{"-to-queue", "u"}, "u", "null", ""},
		{[]string{"-to-queue", "-attr", `k="v=`, "-attr", "é=", "-group", "a\"b", "-delay", "2m", "u", file}, "u", `{"k":"\"v=","é":""}`, `"group":"a\"b"`},
		{[]string{"-delay", "0s", "t"}, "t u", "null", ""},
	} {
		printed := s.mustShell(data+"\n", "publish", v.args...)
		var stored []wireMessage
		for line := range strings.Lines(printed) {
			text := s.must(200, "GET", "/messages/"+strings.Fields(line)[0], "")
			var m wireMessage
			mustDecode(t, text, &m)
			stored = append(stored, m)
			if string(m.Data) != data || string(m.Attributes) != v.attributes || !strings.Contains(text, v.shown) ||
				strings.Contains(text, `"state":"delayed"`) != (v.shown != "") {
				t.Errorf("publish %v stores %s", v.args, text)
			}
		}
		checkDiff(t, fmt.Sprint(v.args), copies(stored), printed)
		var queues []string
		for _, m := range stored {
			queues = append(queues, m.QueueID)
		}
		checkDiff(t, fmt.Sprint(v.args), v.queues, strings.Join(queues, " "))
	}
}

func TestPublishCommandSetsTimesAndADeduplicationID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	in := time.Now().Add(20 * time.Minute).Truncate(time.Second)
	publish := func(scheduledAt string) string {
		return s.mustShell("{}", "publish", "-to-queue", "-scheduled-at", scheduledAt, "-retention", "30m", "-deduplication-id", "a\"b", "q")
	}
	printed := publish(in.UTC().Format("2006-01-02T15:04:05"))
	var m struct {
		ScheduledAt string `json:"scheduled_at"`
		ExpiredAt   string `json:"expired_at"`
		CreatedAt   string `json:"created_at"`
	}
	mustDecode(t, s.must(200, "GET", "/messages/"+strings.Fields(printed)[0], ""), &m)
	checkDiff(t, "due", in.UTC().Format(timestampLayout), m.ScheduledAt)
	created, _ := time.Parse(timestampLayout, m.CreatedAt)
	expired, _ := time.Parse(timestampLayout, m.ExpiredAt)
	checkDiff(t, "retention", 30*time.Minute, expired.Sub(created))
	checkDiff(t, "the same id again, with a time in a zone", printed, publish(in.In(time.FixedZone("", 3600)).Format(time.RFC3339)))
	checkDiff(t, "stored", 1, s.messagesIn("q"))
}

func TestPublishCommandSendsTheTraceOfItsEnvironment(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for i, v := range []struct{ traceparent, kept string }{
		{testTraceparent, testTraceparent},
		{"", ""},
		{testTraceparent + "\n", ""},
		{testTraceparent[1:], ""},
		{strings.ToUpper(testTraceparent), ""},
	} {
		queueID := fmt.Sprintf("q%d", i)
		s.mustQueue(queueID)
		getenv := func(name string) string {
			return map[string]string{"QUEUED_URL": s.url, "TRACEPARENT": v.traceparent}[name]
		}
		for stdin, args := range map[string][]string{`{"n":1}`: nil, "{\"n\":2}\n{\"n\":3}": {"-lines"}} {
			args = slices.Concat([]string{"publish", "-to-queue"}, args, []string{queueID})
			if err := run(context.Background(), args, getenv, strings.NewReader(stdin), io.Discard, io.Discard); err != nil {
				t.Errorf("%q with the traceparent %q = %v", args, v.traceparent, err)
			}
		}
		got := strings.Fields(s.tracesIn(queueID))
		slices.Sort(got)
		checkDiff(t, fmt.Sprintf("of the traceparent %q", v.traceparent), []string{"1///" + v.kept, "2///" + v.kept, "3///" + v.kept}, got)
	}
}

func TestPublishCommandPublishesNothingWrong(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	for stdin, want := range map[string]string{
		"":                 "not a single JSON object",
		"[]":               "not a single JSON object",
		"{}{}":             "not a single JSON object; use -lines",
		`{},"group":"g"`:   "not a single JSON object",
		"{\"a\":\"\xff\"}": "not a single JSON object",
		`{"a":"` + strings.Repeat("a", 2<<20) + `"}`: "returned 413",
	} {
		if out, _, err := s.shell(strings.NewReader(stdin), "publish", "t"); err == nil || out != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("publish of %.20s = %v, want %q", stdin, err, want)
		}
	}
	unused := "http://" + freeAddress(t)
	for args, want := range map[string]string{
		"nosuch":                          "returned 404: Topic not found",
		"-to-queue nosuch":                "returned 404: Queue not found",
		"-delay 1h t":                     "body delay_seconds: the message would expire in queue",
		"t /no/such/file":                 "no such file",
		"-retry 0s -url " + unused + " t": "refused",
	} {
		if out, _, err := s.shell(strings.NewReader("{}"), "publish", strings.Fields(args)...); err == nil || out != "" || !strings.Contains(err.Error(), want) || errors.As(err, new(flags.UsageError)) {
			t.Errorf("publish %s = %v, want %q", args, err, want)
		}
	}
	checkDiff(t, "stored", 0, s.count("SELECT count(*) FROM queued.messages"))
}

func TestPublishCommandTakesLinesInBatches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	p := newProxy(t, "tcp", strings.TrimPrefix(s.url, "http://"))
	p.freeze()
	in := newStream()
	published := make(chan string)
	go func() {
		out, _, err := s.shell(in, "publish", "-url", "http://"+p.address, "-lines", "-attr", "k=v", "t")
		published <- out + fmt.Sprint(err)
	}()
	var want []int
	for n := range 1001 {
		want = append(want, n)
		in.text <- fmt.Sprintf("\r\n {\"n\":%d} ", n) // the first batch does not wait for the rest
	}
	close(in.text)
	<-in.read
	p.thaw()
	printed := <-published
	messages := s.receive("t", "?limit=1000")
	messages = append(messages, s.receive("t", "?limit=1000")...)
	checkDiff(t, "data", want, numbers(messages))
	checkDiff(t, "printed", copies(messages)+"<nil>", printed)
	checkDiff(t, "attributes", `{"k":"v"}`, string(messages[1000].Attributes))
	s.wantMetrics(`http_requests_total{handler="/topics/{topic_id}/messages/batch",method="POST",status="2xx"} 2`)
}

// stream is a reader of the texts sent to it.
type stream struct {
	text chan string
	left string
	read chan bool // has a value when the end was read
}

func newStream() *stream { return &stream{text: make(chan string), read: make(chan bool, 2)} }

func (s *stream) Read(p []byte) (int, error) {
	if s.left == "" {
		text, ok := <-s.text
		if !ok {
			s.read <- true
			return 0, io.EOF
		}
		s.left = text
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestPublishCommandNamesTheLineThatIsWrong(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	long := `{"a":"` + strings.Repeat("a", 1<<20) + `"}`
	for i, v := range []struct {
		input  string
		stored int // number of lines before it
		want   string
	}{
		{"{}\n\n{}\n{\n{}\n", 2, "line 4: not a JSON object; lines from 4 on were not published"},
		{"{}\nnull", 1, "line 2: not a JSON object"},
		{"{}\n{} {}\n", 1, "line 2: not a JSON object"},
		{"{}\n" + strings.Repeat(" ", maxBatchBody) + "{}\n", 1, "line 2: longer than the maximum batch"},
		{long, 0, "line 1: queue \"q4\": server " + s.url + " returned 422: body messages 0 data: ensure data and attributes have at most 1048576 bytes; lines from 1 on were not published"},
	} {
		queue := fmt.Sprint("q", i)
		s.mustQueue(queue)
		out, _, err := s.shell(strings.NewReader(v.input), "publish", "-lines", "-to-queue", queue)
		if err == nil || !strings.Contains(err.Error(), v.want) || strings.Count(out, "\n") != v.stored {
			t.Errorf("publish -lines of %.20q = %v, prints %s, want %q and %d lines", v.input, err, out, v.want, v.stored)
		}
		checkDiff(t, "stored", v.stored, s.count("SELECT count(*) FROM queued.messages JOIN queued.queues ON queues.key = queue_key WHERE queues.id = $1", queue))
	}
}

// The response to the first request is lost after the publish, and the second request gets
// a 503.
func TestPublishCommandRepeatsARequestWithoutStoringItTwice(t *testing.T) {
	t.Parallel()
	for _, lines := range []bool{true, false} {
		s := newTestServer(t)
		s.mustTopic("t")
		to, err := url.Parse(s.url)
		if err != nil {
			t.Fatal(err)
		}
		forward := httputil.NewSingleHostReverseProxy(to)
		var requests atomic.Int64
		lossy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch requests.Add(1) {
			case 1:
				forward.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			case 2:
				http.Error(w, `{"detail":"database unavailable"}`, http.StatusServiceUnavailable)
			default:
				forward.ServeHTTP(w, r)
			}
		}))
		t.Cleanup(lossy.Close)
		in := "{\"n\":1}\n"
		if lines {
			in += "{\"n\":2}\n"
		}
		out, stderr, err := s.shell(strings.NewReader(in), "publish", "-url", lossy.URL, fmt.Sprintf("-lines=%v", lines), "t")
		if err != nil || strings.Count(stderr, "retrying") != 1 {
			t.Fatalf("publish = %v, %q", err, stderr)
		}
		checkDiff(t, "printed", copies(s.receive("t", "")), out)
		checkDiff(t, "stored", strings.Count(in, "\n"), s.messagesIn("t"))
		s.must(204, "PUT", "/queues/t/purge", "")
		s.mustShell(in, "publish", fmt.Sprintf("-lines=%v", lines), "t") // another command, another message
		checkDiff(t, "stored by the next command", strings.Count(in, "\n"), s.messagesIn("t"))
	}
}

func TestPublishCommandNamesUnpublishedLinesWithoutAServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	_, _, err := s.shell(strings.NewReader("{}\n"), "publish", "-url", "http://"+freeAddress(t), "-retry", "0s", "-lines", "-to-queue", "q")
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "lines from 1 on were not published") {
		t.Errorf("publish without a server = %v", err)
	}
}

func TestPublishCommandEndsWhileItReads(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, lines := range []bool{true, false} {
		ctx, stop := context.WithCancel(context.Background())
		in := newStream()
		t.Cleanup(func() { close(in.text) })
		ended := make(chan error)
		go func() {
			ended <- run(ctx, []string{"publish", "-url", s.url, fmt.Sprintf("-lines=%v", lines), "-to-queue", "q"}, func(string) string { return "" }, in, io.Discard, io.Discard)
		}()
		in.text <- "{}\n"
		if lines {
			eventually(t, "the first line is published before the next is read", func() bool { return s.count("SELECT count(*) FROM queued.messages") == 1 })
		}
		stop()
		if err := <-ended; err == nil || lines && !strings.Contains(err.Error(), "lines from 2 on were not published") {
			t.Errorf("interrupted publish with -lines=%v = %v", lines, err)
		}
	}
}

// Neither a redirect nor a page of a proxy is a response of the server.
func TestShellCommandsRejectResponsesOfOtherServers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	redirect := httptest.NewServer(http.RedirectHandler(s.url+"/queues/t/messages", http.StatusMovedPermanently))
	t.Cleanup(redirect.Close)
	// A proxy responds with a login page, except to receives.
	login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/messages") {
			response := s.do("GET", r.URL.RequestURI(), "")
			fmt.Fprint(w, response.body)
			return
		}
		if strings.Contains(r.URL.Path, "/stats") {
			fmt.Fprint(w, `{"message":"Log in"}`)
			return
		}
		fmt.Fprint(w, "<html>Log in</html>")
	}))
	t.Cleanup(login.Close)
	for args, want := range map[string]string{
		"publish -url " + redirect.URL + " -to-queue t": "301: redirect to " + s.url + "/queues/t/messages; check -url",
		"publish -url " + login.URL + " t":              "the response is not from a queued server; check -url",
		"receive -url " + login.URL + " -count 1 t":     "the response is not from a queued server; check -url",
		"queues -url " + login.URL:                      "the response is not from a queued server; check -url",
		"stats -url " + login.URL + " t":                "the response is not from a queued server; check -url",
		"stats -json -url " + login.URL + " t":          "the response is not from a queued server; check -url",
	} {
		command, rest, _ := strings.Cut(args, " ")
		if out, _, err := s.shell(strings.NewReader("{}"), command, strings.Fields(rest)...); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(out, "t\n") {
			t.Errorf("queued %s = %v, prints %s, want %q", args, err, out, want)
		}
	}
	checkDiff(t, "stored", 1, s.count("SELECT count(*) FROM queued.messages"))
}

func TestQueuesAndStatsCommandsShowAll(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	if printed := s.mustShell("", "queues", "-json"); printed != "" {
		t.Errorf("queues of a server without any = %s", printed)
	}
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.mustQueue("a-dead")
	s.mustQueue("a", `"topic_id":"t"`, `"dead_queue_id":"a-dead"`, `"message_max_deliveries":3`, `"delivery_delay_seconds":90`, `"ack_deadline_seconds":90`, `"max_messages":1000`, `"retry_backoff_seconds":[5,30,300]`)
	checkDiff(t, "queues", `
QUEUE   TOPIC  DEAD QUEUE  ACK DEADLINE  RETENTION  MAX DELIVERIES  DELAY  RETRY BACKOFF  MAX MESSAGES
a       t      a-dead      1m30s         1h         3               1m30s  5s,30s,5m      1000
a-dead  -      -           1m            1h         -               -      -              -
`, "\n"+s.mustShell("", "queues", "-settings"))

	for _, body := range []string{`{"data":{},"delay_seconds":0}`, `{"data":{},"delay_seconds":0}`, `{"data":{}}`} {
		s.must(201, "POST", "/queues/a/messages", body)
	}
	s.receive("a", "?limit=1")
	s.publish("t")
	s.must(201, "POST", "/queues/a-dead/messages", `{"data":{}}`)
	s.changeMessages(shift("created_at", "-3661 s"))
	checkDiff(t, "stats", "READY  DELAYED  IN FLIGHT  EXHAUSTED  DEAD QUEUE  OLDEST", strings.Split(s.mustShell("", "stats", "a"), "\n")[0])
	checkDiff(t, "stats", "1 1 1 0 1", strings.Join(strings.Fields(strings.Split(s.mustShell("", "stats", "a"), "\n")[1])[:5], " "))
	checkDiff(t, "stats of a queue without a dead queue", "1 0 0 0 -", strings.Join(strings.Fields(strings.Split(s.mustShell("", "stats", "a-dead"), "\n")[1])[:5], " "))
	if printed := s.mustShell("", "stats", "a"); !strings.Contains(printed, "  1h1m") {
		t.Errorf("stats does not show the age: %s", printed)
	}
	eventually(t, "the counts are those of now", func() bool {
		printed := s.mustShell("", "queues")
		return regexp.MustCompile(`(?m)^a +t +1 +1 +1 +0 +1h1m\S* +- +a-dead$`).MatchString(printed) && regexp.MustCompile(`(?m)^a-dead +- +1 +0 +0 +0 +1h1m\S* +- +-$`).MatchString(printed)
	})
	checkDiff(t, "stats -json", maskAge(s.must(200, "GET", "/queues/a/stats?detail=true", "")+"\n"), maskAge(s.mustShell("", "stats", "-json", "a")))

	s.exec("INSERT INTO queued.queues (id, ack_deadline_seconds, message_retention_seconds, created_at, updated_at) SELECT 'q' || n, 1, 600, now(), now() FROM generate_series(1, 210) n")
	for _, maxLimit := range []int{1000, 50} {
		s.limits.maxLimit = maxLimit
		seen := map[string]bool{}
		for line := range strings.Lines(s.mustShell("", "queues", "-json")) {
			var q struct{ ID string }
			if err := json.Unmarshal([]byte(line), &q); err != nil {
				t.Fatal(err)
			}
			seen[q.ID] = true
		}
		checkDiff(t, "queues of all pages", 212, len(seen))
	}
	if _, _, err := s.shell(nil, "stats", "nosuch"); err == nil || !strings.Contains(err.Error(), "Queue not found") {
		t.Errorf("stats of an unknown queue = %v", err)
	}
}

func TestShellCommandsWarnOfATokenInTheArguments(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, args := range [][]string{{"publish", "-token", "secret", "-to-queue", "q"}, {"queues", "-token", "secret"}, {"stats", "-token=secret", "q"}, {"receive", "-token", "secret", "-wait", "0", "q"}} {
		_, stderr, err := s.shell(strings.NewReader("{}"), args[0], args[1:]...)
		if err != nil || strings.Count(stderr, "$QUEUED_TOKEN") != 1 || strings.Contains(stderr, "secret") {
			t.Errorf("%v = %v, %q", args, err, stderr)
		}
	}
}

func TestShellCommandsSendTheToken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.useTokens(map[string]string{"user": `"post":["q"],"get":["q"]`})
	for _, args := range [][]string{{"publish", "-to-queue", "q"}, {"queues"}, {"stats", "q"}, {"receive", "-wait", "0s", "q"}} {
		if _, _, err := s.with(secret("user")).shell(strings.NewReader("{}"), args[0], args[1:]...); err != nil {
			t.Errorf("%v = %v", args, err)
		}
		if _, _, err := s.shell(strings.NewReader("{}"), args[0], args[1:]...); err == nil || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "$QUEUED_TOKEN") {
			t.Errorf("%v without a token = %v", args, err)
		}
	}
}

func TestShellCommandsRefuseWrongUse(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"publish":                      "missing argument: TOPIC [FILE]; see queued publish -help",
		"publish a/b":                  `"a/b" is not a valid`,
		"publish t f g":                "too many arguments",
		"publish t -lines":             "flags must precede the arguments: -lines",
		"publish -attr k t":            "-attr",
		"publish -delay 1 t":           "-delay",
		"publish -delay -1s t":         "-delay",
		"publish -delay 1ms t":         "-delay",
		"publish -group \xff t":        "-group",
		"publish -retry -1s t":         "-retry",
		"publish -url localhost t":     "-url",
		"publish -url http://[ t":      "-url",
		"publish -url http://a?b t":    "-url",
		"publish -tls-cert /no/such t": "-tls-cert",
		"publish -scheduled-at soon t": "-scheduled-at",
		"publish -delay 1s -scheduled-at 2026-12-24T18:00:00 t": "-scheduled-at",
		"publish -retention 1ms t":                              "-retention",
		"publish -lines -deduplication-id i t":                  "-deduplication-id",
		"peek -after yesterday q":                               "-after",
		"peek -before -1h q":                                    "-before",
		"peek -attr a q":                                        "-attr",
		"peek -consumed -q a q":                                 "-consumed",
		"create queue -max-messages -1 q":                       "-max-messages",
		"create queue -retry-backoff 5 q":                       "-retry-backoff",
		"create queue -retry-backoff 5s,,6s q":                  "-retry-backoff",
		"receive":                                               "missing argument: QUEUE",
		"receive a/b":                                           `"a/b" is not a valid`,
		"receive -parallel 0 q":                                 "-parallel",
		"receive -count -1 q":                                   "-count",
		"receive -wait -1s q":                                   "-wait",
		"receive -wait 1 q":                                     "-wait",
		"receive q r":                                           "too many arguments",
		"queues q":                                              `unexpected argument "q"; see queued queues -help`,
		"stats":                                                 "missing argument: QUEUE",
		"stats a/b":                                             `"a/b" is not a valid`,
	} {
		err := run(context.Background(), strings.Fields(args), func(string) string { return "" }, strings.NewReader("{}"), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, new(flags.UsageError)) {
			t.Errorf("queued %s = %v, want wrong use: %s", args, err, want)
		}
	}
}

func TestHelpOfShellCommandsIsComplete(t *testing.T) {
	t.Parallel()
	for command, names := range map[string]string{
		"publish":        "url token tls-cert to-queue lines retry attr* group* delay* scheduled-at* retention* deduplication-id*",
		"receive":        "url token tls-cert exec parallel count wait",
		"queues":         "url token tls-cert json settings* watch*",
		"stats":          "url token tls-cert json",
		"consumers":      "url token tls-cert json*",
		"peek":           "url token tls-cert json* limit* consumed* state* group* attr* contains* q* after* before*",
		"message":        "url token tls-cert json*",
		"ack":            "url token tls-cert yes*",
		"nack":           "url token tls-cert delay* error*",
		"create topic":   "url token tls-cert json*",
		"create queue":   "url token tls-cert json* topic* filter* dead-queue* max-deliveries* ack-deadline* retention* delay* delivery-interval* ordered* paused* consumed-retention* deduplication-window* max-messages* retry-backoff*",
		"delete topic":   "url token tls-cert yes*",
		"delete queue":   "url token tls-cert yes*",
		"purge":          "url token tls-cert yes*",
		"delete message": "url token tls-cert yes*",
		"pause":          "url token tls-cert",
		"resume":         "url token tls-cert",
		"topics":         "url token tls-cert json*",
		"redrive":        "url token tls-cert to* limit* ids* yes*",
		"completion":     "",
		"help":           "",
		"schema":         "role*",
		"version":        "",
	} {
		var out, all bytes.Buffer
		getenv := func(string) string { return "" }
		err := run(context.Background(), append(strings.Fields(command), "-help"), getenv, nil, &out, io.Discard)
		run(context.Background(), []string{"-help"}, getenv, nil, &all, io.Discard)
		if !errors.Is(err, flag.ErrHelp) || !strings.Contains(all.String(), "queued "+command) {
			t.Errorf("%s -help = %v, or queued -help does not list it", command, err)
		}
		var again bytes.Buffer
		if err := run(context.Background(), append([]string{"help"}, strings.Fields(command)...), getenv, nil, &again, io.Discard); err != nil {
			t.Errorf("queued help %s = %v", command, err)
		}
		checkDiff(t, "help "+command, out.String(), again.String())
		if command != "version" && !strings.Contains(out.String(), "\nexamples:\n\n  ") {
			t.Errorf("%s -help has no examples", command)
		}
		checkDiff(t, "flags of "+command, len(strings.Fields(names)), strings.Count(out.String(), "\n  -"))
		for _, name := range strings.Fields(names) {
			name, own := strings.CutSuffix(name, "*")
			if !strings.Contains(out.String(), "\n  -"+name) || strings.Contains(out.String(), "[$"+flags.Variable(name)+"]") == own {
				t.Errorf("%s -help does not explain -%s with its variable, if it has one", command, name)
			}
		}
	}
}
