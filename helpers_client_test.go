package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// client sends requests to a server.
type client struct {
	t     testing.TB
	url   string
	token string // sent with each request, unless empty
	trace trace  // the same
	key   string // Idempotency-Key, the same

	prefer string // the header Prefer, the same
}

// with returns a client of the same server that sends a token.
func (s *client) with(token string) *client {
	c := *s
	c.token = token
	return &c
}

// tracing returns a client of the same server that sends a request id and a
// traceparent.
func (s *client) tracing(requestID, traceparent string) *client {
	c := *s
	c.trace = trace{requestID, traceparent}
	return &c
}

// keyed returns a client of the same server that sends an Idempotency-Key.
func (s *client) keyed(key string) *client {
	c := *s
	c.key = key
	return &c
}

// strict returns a client of the same server that wants unknown fields to be refused.
func (s *client) strict() *client {
	c := *s
	c.prefer = "handling=strict"
	return &c
}

// reply is the response to a request.
type reply struct {
	status int
	header http.Header
	body   string
}

// send sends a request. Any goroutine may call it.
func (s *client) send(ctx context.Context, method, path, body string) (reply, error) {
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, in)
	if err != nil {
		return reply{}, err
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	if s.trace.requestID != "" {
		r.Header.Set("X-Request-Id", s.trace.requestID)
	}
	if s.trace.traceparent != "" {
		r.Header.Set("Traceparent", s.trace.traceparent)
	}
	if s.key != "" {
		r.Header.Set("Idempotency-Key", s.key)
	}
	if s.prefer != "" {
		r.Header.Set("Prefer", s.prefer)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	if err == nil {
		recordReply(response, out)
	}
	return reply{response.StatusCode, response.Header, string(out)}, err
}

// recordReply appends a response to the file that QUEUED_TEST_REPLIES names. The
// module in openapi/ compares it with the description of the API. It would take long for the
// few large ones, which are lists of more or of larger items than others.
func recordReply(response *http.Response, body []byte) {
	path := os.Getenv("QUEUED_TEST_REPLIES")
	if path == "" || len(body) > 100_000 {
		return
	}
	line, err := json.Marshal(map[string]any{
		"method": response.Request.Method, "target": response.Request.URL.RequestURI(), "status": response.StatusCode,
		"header": response.Header, "body": body,
	})
	if err != nil {
		panic(err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	if _, err := file.Write(append(line, '\n')); err != nil {
		panic(err)
	}
}

func (s *client) do(method, path, body string) reply {
	s.t.Helper()
	v, err := s.send(context.Background(), method, path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// must sends a request and returns the body of the response, which must have this
// status.
func (s *client) must(status int, method, path, body string) string {
	s.t.Helper()
	v := s.do(method, path, body)
	if v.status != status {
		s.t.Fatalf("%s %s %s = %d %s, want %d", method, path, body, v.status, v.body, status)
	}
	return v.body
}

// step is a request, and the response that it must have after mask.
type step struct {
	method, path, body string
	status             int
	want               string
}

func (s *client) play(steps []step) {
	s.t.Helper()
	for _, v := range steps {
		got := s.do(v.method, v.path, v.body)
		if got.status != v.status || mask(got.body) != v.want {
			s.t.Errorf("%s %s %s\n got %d %s\nwant %d %s", v.method, v.path, v.body, got.status, mask(got.body), v.status, v.want)
		}
	}
}

// mustQueue creates a queue. It adds the required settings to the given ones, which
// are members of JSON.
func (s *client) mustQueue(id string, settings ...string) {
	s.t.Helper()
	all := strings.Join(append([]string{fmt.Sprintf("%q:%q", "id", id)}, settings...), ",")
	if !strings.Contains(all, "ack_deadline_seconds") {
		all += `,"ack_deadline_seconds":60`
	}
	s.must(201, "POST", "/queues", "{"+all+`,"message_retention_seconds":3600}`)
}

// mustTopic creates a topic, and a queue of the same name that subscribes to it.
func (s *client) mustTopic(id string, settings ...string) {
	s.t.Helper()
	s.must(201, "POST", "/topics", fmt.Sprintf(`{"id":%q}`, id))
	s.mustQueue(id, append(settings, fmt.Sprintf(`"topic_id":%q`, id))...)
}

// wireMessage is a message as a client sees it.
type wireMessage struct {
	ID               string          `json:"id"`
	QueueID          string          `json:"queue_id"`
	Data             json.RawMessage `json:"data"`
	Attributes       json.RawMessage `json:"attributes"`
	DeliveryAttempts int             `json:"delivery_attempts"`
	ExpiredAt        string          `json:"expired_at"`
	ScheduledAt      string          `json:"scheduled_at"`
	CreatedAt        string          `json:"created_at"`
	UpdatedAt        string          `json:"updated_at"`
	Duplicate        bool            `json:"duplicate"`
}

func decodeMessages(body string) ([]wireMessage, error) {
	var v struct {
		Data      []wireMessage `json:"data"`
		Conflicts []string      `json:"conflicts"` // of a receive that acks
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(&v)
	if err == nil && v.Data == nil {
		err = fmt.Errorf("no data in %s", body)
	}
	return v.Data, err
}

func (s *client) messages(body string) []wireMessage {
	s.t.Helper()
	v, err := decodeMessages(body)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// numbers returns the n of each message.
func numbers(messages []wireMessage) []int {
	all := []int{}
	for _, m := range messages {
		var v struct{ N int }
		if json.Unmarshal(m.Data, &v) != nil {
			v.N = -1
		}
		all = append(all, v.N)
	}
	return all
}

// publish publishes {"n": n} for each of the numbers, one after the other.
func (s *client) publish(topicID string, numbers ...int) (ids []string) {
	s.t.Helper()
	for _, n := range numbers {
		body := s.must(201, "POST", "/topics/"+topicID+"/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
		for _, m := range s.messages(body) {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// receive returns the messages of a receive with this query.
func (s *client) receive(queueID, query string) []wireMessage {
	s.t.Helper()
	return s.messages(s.must(200, "GET", "/queues/"+queueID+"/messages"+query, ""))
}

// publishGroups publishes messages to a queue, without a topic. A message is named
// after its group: "a1" is of group a, and "-1" has no group.
func (s *client) publishGroups(queueID string, names ...string) {
	s.t.Helper()
	for _, name := range names {
		group := fmt.Sprintf(`"group":%q,`, name[:1])
		if name[0] == '-' {
			group = ""
		}
		s.must(201, "POST", "/queues/"+queueID+"/messages", fmt.Sprintf(`{%s"data":{"name":%q}}`, group, name))
	}
}

// namesOf returns the names that publishGroups gave the messages.
func namesOf(messages []wireMessage) string {
	var all []string
	for _, m := range messages {
		all = append(all, strings.TrimSuffix(strings.TrimPrefix(string(m.Data), `{"name":"`), `"}`))
	}
	return strings.Join(all, " ")
}

// receiveNames receives messages and returns the names that publishGroups gave them.
func (s *client) receiveNames(queueID string, limit int) string {
	s.t.Helper()
	return namesOf(s.receive(queueID, fmt.Sprintf("?limit=%d", limit)))
}

type polled struct {
	reply
	messages []wireMessage
	err      error
}

// poll starts a receive in the background and returns a channel for its response.
func (s *client) poll(ctx context.Context, queueID, query string) <-chan polled {
	result := make(chan polled, 1)
	go func() {
		v, err := s.send(ctx, "GET", "/queues/"+queueID+"/messages"+query, "")
		p := polled{reply: v, err: err}
		if err == nil && v.status == 200 {
			p.messages, p.err = decodeMessages(v.body)
		}
		result <- p
	}()
	return result
}

// await returns the messages of a poll, whose response must be a 200.
func (s *client) await(poll <-chan polled) []wireMessage {
	s.t.Helper()
	select {
	case p := <-poll:
		if p.err != nil || p.status != 200 {
			s.t.Fatalf("receive = %d %s, %v", p.status, p.body, p.err)
		}
		return p.messages
	case <-time.After(testTimeout):
		s.t.Fatal("the long poll got no response")
		return nil
	}
}

// peeked returns the messages of a peek.
func (s *client) peeked(queueID string) (all []wireMessage) {
	s.t.Helper()
	var v struct{ Data []wireMessage }
	mustDecode(s.t, s.must(200, "GET", "/queues/"+queueID+"/messages/peek", ""), &v)
	return v.Data
}

// consumed returns the list of consumed messages.
func (s *client) consumed(queueID, query string) (all []wireMessage) {
	s.t.Helper()
	var v struct{ Data []wireMessage }
	mustDecode(s.t, s.must(200, "GET", "/queues/"+queueID+"/messages/consumed"+query, ""), &v)
	return v.Data
}

// consumeOne receives a message by pgQueue's API, and returns its data.
func (s *client) consumeOne(queueID string) json.RawMessage {
	s.t.Helper()
	var v struct{ Message json.RawMessage }
	if body := s.must(200, "GET", "/queue/"+queueID, ""); json.Unmarshal([]byte(body), &v) != nil {
		s.t.Fatalf("not JSON: %s", body)
	}
	return v.Message
}

// tracesIn returns the traces of all messages in a queue, oldest due first.
func (s *client) tracesIn(queueID string) string {
	s.t.Helper()
	return s.traces(s.must(200, "GET", "/queues/"+queueID+"/messages/peek", ""))
}

// traces returns n, group, request id and traceparent of each message in a response,
// separated by slashes.
func (s *client) traces(body string) string {
	s.t.Helper()
	var v struct {
		Data []struct {
			Data        struct{ N int }
			Group       string
			RequestID   string `json:"request_id"`
			Traceparent string
		}
	}
	mustDecode(s.t, body, &v)
	var all []string
	for _, m := range v.Data {
		all = append(all, fmt.Sprintf("%d/%s/%s/%s", m.Data.N, m.Group, m.RequestID, m.Traceparent))
	}
	return strings.Join(all, " ")
}

// raw sends a request as bytes, so that it may have headers that Go's client does not
// send, and returns the response.
func (s *client) raw(method, path, body string, headers ...string) *http.Response {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\n%s\r\nContent-Length: %d\r\n\r\n%s", method, path, strings.Join(headers, "\r\n"), len(body), body)
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		s.t.Fatalf("%s %s with %q: %v", method, path, headers, err)
	}
	response.Body.Close()
	return response
}

// wantMetrics checks that a scrape has lines that begin with these texts.
func (s *client) wantMetrics(lines ...string) {
	s.t.Helper()
	got := s.must(200, "GET", "/metrics", "")
	for _, want := range lines {
		if !strings.Contains(got, "\n"+want) {
			s.t.Errorf("metrics lack %s", want)
		}
	}
}
