package clients

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	examplesToken     = "the-token-of-the-examples"
	examplesKeyID     = "EXAMPLES"
	examplesSecretKey = "the-secret-key-of-the-examples"
)

// Of the messages that the examples publish, number 1 takes longer than its lease, and
// number 13 always fails.
const (
	exampleMessages = 20
	exampleLease    = "3" // seconds
	exampleSlow     = 1
	examplePoison   = 13
)

// exampleQueue is the queue of a producer and a worker, which has their name.
type exampleQueue struct {
	producer []string
	worker   []string
	sqs      bool // they use an SDK of Amazon SQS, and the queue is ordered
}

// exampleQueues returns the queues of the examples by id.
func exampleQueues(t *testing.T) map[string]exampleQueue {
	packages := npmInstall(t)
	if err := os.CopyFS(packages+"/examples", os.DirFS("../examples/sqs/javascript")); err != nil {
		t.Fatal(err)
	}
	python, boto3 := python(t, ""), python(t, "boto3")
	return map[string]exampleQueue{
		"python":              {[]string{python, "../examples/python/producer.py"}, []string{python, "../examples/python/worker.py"}, false},
		"javascript":          {[]string{"node", "../examples/javascript/producer.mjs"}, []string{"node", "../examples/javascript/worker.mjs"}, false},
		"go":                  {[]string{mustBuild(t, "../examples/go/producer")}, []string{mustBuild(t, "../examples/go/worker")}, false},
		"ruby":                {[]string{"ruby", "../examples/ruby/producer.rb"}, []string{"ruby", "../examples/ruby/worker.rb"}, false},
		"php":                 {[]string{"php", "../examples/php/producer.php"}, []string{"php", "../examples/php/worker.php"}, false},
		"shell":               {[]string{"../examples/shell/producer.sh"}, []string{"../examples/shell/worker.sh"}, false},
		"sqs-python.fifo":     {[]string{boto3, "../examples/sqs/python/producer.py"}, []string{boto3, "../examples/sqs/python/worker.py"}, true},
		"sqs-javascript.fifo": {[]string{"node", packages + "/examples/producer.mjs"}, []string{"node", packages + "/examples/worker.mjs"}, true},
	}
}

// The producers start before the server, lose responses and get a 503, and the server is
// killed while they publish: each message is stored once. One worker of each queue gets
// SIGTERM while it processes a message that takes longer than its lease, and another one
// processes the others: each message is processed once, and the one that always fails is
// in the dead queue.
func TestExamplesLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens.json")
	if err := os.WriteFile(tokens, []byte(`{"tokens": [{"name": "examples", "token": "`+examplesToken+`", "admin": true}, {"name": "sqs", "access_key_id": "`+examplesKeyID+`", "secret_access_key": "`+examplesSecretKey+`", "admin": true}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	queued, dataDir := mustBuild(t, ".."), newDataDir(t)
	first := launch(t, queued, "-data-dir", dataDir, "-token-file", tokens)
	address := strings.TrimPrefix(first.url, "http://")
	faulty := newFaultyProxy(t, first.url)

	producers := map[string]*example{}
	queues := exampleQueues(t)
	for queue, v := range queues {
		createQueue(t, first.url, "dead-"+queue, map[string]any{"ordered": v.sqs})
		createQueue(t, first.url, queue, map[string]any{"ordered": v.sqs, "dead_queue_id": "dead-" + queue, "message_max_deliveries": 2})
		producers[queue] = startExample(t, "http://"+faulty.address, v.producer, queue)
	}
	for queue, p := range producers {
		p.publish(t, exampleMessage, 1, exampleMessages/2)
		if !queues[queue].sqs && !p.errors.Scan() { // an SDK repeats requests in silence
			t.Errorf("%s: no message about the connection that is refused", queue)
		}
	}
	faulty.listen(t)
	for _, p := range producers {
		p.read(t, exampleMessages/2)
	}
	first.kill()
	for _, p := range producers {
		p.publish(t, exampleMessage, exampleMessages/2+1, exampleMessages)
		p.in.Close()
	}
	server := launch(t, queued, "-data-dir", dataDir, "-token-file", tokens, "-listen", address).url
	for queue, p := range producers {
		ids := p.rest(t)
		if len(ids) != exampleMessages/2 {
			t.Errorf("%s: the producer printed %d ids of messages after the restart", queue, len(ids))
		}
	}

	slow, others := map[string]*example{}, map[string]*example{}
	for queue, v := range queues {
		var want []string
		for n := 1; n <= exampleMessages; n++ {
			want = append(want, exampleMessage(n))
		}
		if got := dataOf(t, send(t, http.MethodGet, server+"/queues/"+queue+"/messages/peek", "")); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the queue has\n%q\nwant\n%q", queue, got, want)
		}
		slow[queue] = startExample(t, "http://"+faulty.address, v.worker, queue)
	}
	for queue, worker := range slow {
		if got, want := worker.read(t, 1), addresses(exampleSlow, exampleSlow); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: the worker processes %q, want %q", queue, got, want)
		}
		worker.process.Process.Signal(syscall.SIGTERM)
		others[queue] = startExample(t, "http://"+faulty.address, queues[queue].worker, queue)
	}
	for queue, worker := range others {
		got := worker.read(t, exampleMessages-2)
		want := slices.Concat(addresses(exampleSlow+1, examplePoison-1), addresses(examplePoison+1, exampleMessages))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the second worker processes\n%q\nwant\n%q", queue, got, want)
		}
		dead := server + "/queues/dead-" + queue + "/messages"
		if got, want := dataOf(t, send(t, http.MethodGet, dead+"?wait_seconds=20", "")), []string{exampleMessage(examplePoison)}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the dead queue has %q, want %q", queue, got, want)
		}
		if peeked := send(t, http.MethodGet, dead+"/peek", ""); !queues[queue].sqs && !strings.Contains(peeked, `"last_error":"`) {
			t.Errorf("%s: the message in the dead queue has no error: %s", queue, peeked)
		}
	}
	for queue := range others {
		send(t, http.MethodPost, server+"/queues/"+queue+"/messages", `{"data": {"to": "last@example.com", "seconds": 1}, "group": "last"}`)
	}
	for _, worker := range others {
		worker.read(t, 1)
		worker.process.Process.Signal(syscall.SIGINT)
	}
	for queue := range queues {
		if more := slices.Concat(slow[queue].rest(t), others[queue].rest(t)); len(more) > 0 {
			t.Errorf("%s: after the signals the workers processed %q", queue, more)
		}
		const want = `"messages":{"ready":0,"delayed":0,"in_flight":0,"exhausted":0},"dead_queue_messages":1`
		if got := send(t, http.MethodGet, server+"/queues/"+queue+"/stats?detail=true", ""); !strings.Contains(got, want) {
			t.Errorf("%s: at the end the queue has %s", queue, got)
		}
	}
}

// addresses returns what a worker prints for the messages from first to last.
func addresses(first, last int) []string { return numbered(first, last, "%d@example.com") }

func exampleMessage(n int) string {
	switch n {
	case exampleSlow:
		return fmt.Sprintf(`{"to":"%d@example.com","seconds":4}`, n)
	case examplePoison:
		return fmt.Sprintf(`{"cc":"%d@example.com"}`, n)
	}
	return fmt.Sprintf(`{"to":"%d@example.com"}`, n)
}

// example is a producer or a worker that runs.
type example struct {
	process *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	errors  *bufio.Scanner
}

func startExample(t *testing.T, url string, command []string, queue string) *example {
	t.Helper()
	process := exec.Command(command[0], append(command[1:], queue)...)
	process.Env = append(os.Environ(), "QUEUED_URL="+url, "QUEUED_TOKEN="+examplesToken, "LEASE_SECONDS="+exampleLease,
		"AWS_ENDPOINT_URL_SQS="+url, "AWS_ACCESS_KEY_ID="+examplesKeyID, "AWS_SECRET_ACCESS_KEY="+examplesSecretKey)
	return startCommand(t, process)
}

// startCommand starts a program, which is killed at the end of the test or if it takes too
// long.
func startCommand(t *testing.T, process *exec.Cmd) *example {
	t.Helper()
	in, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errors, err := process.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { process.Process.Kill() }
	deadline := time.AfterFunc(2*testTimeout, kill)
	t.Cleanup(func() {
		deadline.Stop()
		kill()
	})
	return &example{process, in, bufio.NewScanner(out), bufio.NewScanner(io.TeeReader(errors, t.Output()))}
}

// publish gives the producer the messages from first to last.
func (e *example) publish(t *testing.T, message func(n int) string, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		if _, err := fmt.Fprintln(e.in, message(n)); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns the next lines that the example prints.
func (e *example) read(t *testing.T, n int) (lines []string) {
	t.Helper()
	for range n {
		if !e.out.Scan() {
			t.Fatalf("%v ended after %q: %v", e.process.Args, lines, e.out.Err())
		}
		lines = append(lines, e.out.Text())
	}
	return lines
}

// rest returns the lines that the example prints until it exits, with status 0.
func (e *example) rest(t *testing.T) (lines []string) {
	t.Helper()
	for e.out.Scan() {
		lines = append(lines, e.out.Text())
	}
	for e.errors.Scan() {
	}
	if err := e.process.Wait(); err != nil {
		t.Errorf("%v: %v", e.process.Args, err)
	}
	return lines
}

// faultyProxy forwards requests to the server. The third publish to a queue and one
// ack in nineteen get a 503. The responses to the fifth publish to a queue, and to the first
// ack of a worker that stops, are lost. If the server does not respond, the client gets no
// response either.
type faultyProxy struct {
	address   string // refuses connections until listen
	forward   *httputil.ReverseProxy
	acks      atomic.Int32
	mu        sync.Mutex
	publishes map[string]int  // by queue
	stopped   map[string]bool // by queue: a worker has sent its last ack
}

func newFaultyProxy(t *testing.T, server string) *faultyProxy {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	return &faultyProxy{
		address: free.Addr().String(),
		forward: &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.Out.Host = r.In.Host // also in the URLs of queues
			},
			ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		},
		publishes: map[string]int{},
		stopped:   map[string]bool{},
	}
}

func (p *faultyProxy) listen(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: p}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

func (p *faultyProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	request := r.URL.Path + " " + r.Header.Get("X-Amz-Target") + " " + string(body)
	publish, lost := 0, false
	if m := exampleLastAck.FindStringSubmatch(request); m != nil {
		p.mu.Lock()
		lost = !p.stopped[m[1]]
		p.stopped[m[1]] = true
		p.mu.Unlock()
	}
	if m := examplePublish.FindStringSubmatch(request); m != nil {
		p.mu.Lock()
		queue := m[1] + m[2]
		p.publishes[queue]++
		publish = p.publishes[queue]
		p.mu.Unlock()
	}
	if publish == 3 || !lost && exampleAck.MatchString(request) && p.acks.Add(1)%19 == 0 {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if publish == 5 || lost {
		p.forward.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}
	p.forward.ServeHTTP(w, r)
}

var (
	examplePublish = regexp.MustCompile(`^/queues/(.*)/messages |SendMessage\b.*(sqs-\w+\.fifo)`)
	exampleAck     = regexp.MustCompile(`^/queues/.*/messages/receive .*"ack"|DeleteMessage`)
	exampleLastAck = regexp.MustCompile(`^/queues/(.*)/messages/receive .*"limit": ?0`)
)

// createQueue creates a queue with more settings than the required ones.
func createQueue(t *testing.T, server, id string, settings map[string]any) {
	t.Helper()
	body := map[string]any{"id": id, "ack_deadline_seconds": 60, "message_retention_seconds": 3600}
	maps.Copy(body, settings)
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPost, server+"/queues", string(b))
}

// dataOf returns the data of the messages in a response, without spaces.
func dataOf(t *testing.T, response string) (data []string) {
	t.Helper()
	var messages struct {
		Data []struct{ Data json.RawMessage }
	}
	if err := json.Unmarshal([]byte(response), &messages); err != nil {
		t.Fatal(err)
	}
	for _, m := range messages.Data {
		data = append(data, strings.ReplaceAll(string(m.Data), " ", ""))
	}
	return data
}

// send returns the body of the response to a request with the token of the examples.
func send(t *testing.T, method, url, body string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+examplesToken)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode >= 300 {
		t.Fatalf("%s %s = %s %s, %v", method, url, response.Status, b, err)
	}
	return string(b)
}
