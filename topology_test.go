package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func mustWriteTopology(t testing.TB, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "topology.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTopologyIsCreatedAndUpdatedAtStart(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "template1")
	path := mustWriteTopology(t, `{
		"topics": [{"id": "orders"}, {"id": "users"}],
		"queues": [
			{"id": "mail", "topic_id": "orders", "dead_queue_id": "mail-dead", "message_max_deliveries": 3,
			 "ack_deadline_seconds": 30, "message_retention_seconds": 3600, "message_filters": {"kind": ["new", 1]}},
			{"id": "mail-dead", "dead_queue_id": "mail", "message_max_deliveries": 9, "ack_deadline_seconds": 30, "message_retention_seconds": 3600}
		]}`)
	r := runServer(t, "-database-url", dsn, "-topology", path)
	want := `{"id":"mail","topic_id":"orders","dead_queue_id":"mail-dead","ack_deadline_seconds":30,"message_retention_seconds":3600,` +
		`"message_filters":{"kind":["new","1"]},"message_max_deliveries":3,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`
	first := r.client().must(200, "GET", "/queues/mail", "")
	checkDiff(t, "queue", want, mask(first))
	for _, line := range []string{`"topic created" topic=orders by=topology`, `"queue created" queue=mail by=topology`} {
		checkDiff(t, line, 1, strings.Count(r.output.String(), line+"\n"))
	}
	checkDiff(t, "changes of new queues", 0, strings.Count(r.output.String(), "changed"))
	r.client().mustQueue("made-by-hand")
	r.client().must(201, "POST", "/topics/orders/messages", `{"data":{"n":1},"attributes":{"kind":"new"}}`)
	r.stop()
	if err := r.await(); err != nil {
		t.Error(err)
	}

	r = runServer(t, "-database-url", dsn, "-topology", path)
	checkDiff(t, "queue that did not differ", first, r.client().must(200, "GET", "/queues/mail", ""))
	r.client().must(200, "PUT", "/queues/mail", `{"ack_deadline_seconds":1,"message_retention_seconds":600}`)
	r.stop()
	if err := r.await(); err != nil {
		t.Error(err)
	}

	r = runServer(t, "-database-url", dsn, "-topology", path)
	checkDiff(t, "logged changes", 1, strings.Count(r.output.String(), `"queue changed" queue=mail by=topology`))
	checkDiff(t, "logged creations", 0, strings.Count(r.output.String(), "created"))
	checkDiff(t, "queue that differed", want, mask(r.client().must(200, "GET", "/queues/mail", "")))
	r.client().must(200, "GET", "/queues/made-by-hand", "")
	checkDiff(t, "messages", []int{1}, numbers(r.client().receive("mail", "")))
}

func TestWrongTopologyIsOneClearError(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "template1")
	const rest = `"ack_deadline_seconds":30,"message_retention_seconds":3600`
	for text, want := range map[string]string{
		``:                                   "field required",
		`["a"]`:                              "value is not a valid dict",
		`{"topics":`:                         "Expecting value: line 1 column 11",
		`{"topics":{}}`:                      "topics]: value is not a valid list",
		`{"topics":["a"]}`:                   "topics 0]: value is not a valid dict",
		`{"topics":[{"id":"a b"}]}`:          "topics 0 id]: string does not match regex",
		`{"topics":[{"id":"a"},{"id":"a"}]}`: `topics 1 id]: duplicate id "a"`,
		`{"queues":[{"id":"q"}]}`:            "queues 0 ack_deadline_seconds]: field required",
		`{"data":[]}`:                        "topology.json data]: unexpected field",
		`{"topics":[{"id":"a","retention_seconds":60}]}`:                                                                 "topics 0 retention_seconds]: unexpected field",
		`{"queues":[{"id":"a",` + rest + `},{"id":"q","dead_queue":"a",` + rest + `}]}`:                                  "queues 1 dead_queue]: unexpected field",
		`{"queues":[{"id":"q","delivery_delay_seconds":700,"ack_deadline_seconds":30,"message_retention_seconds":700}]}`: "queues 0 delivery_delay_seconds]: ensure this value is less than message_retention_seconds",
		`{"queues":[{"id":"q","topic_id":"nope",` + rest + `}]}`:                                                         `queue "q": topic not found`,
		`{"queues":[{"id":"q","dead_queue_id":"nope","message_max_deliveries":1,` + rest + `}]}`:                         `queue "q": queue not found`,
	} {
		err := run(context.Background(), []string{"-listen", "127.0.0.1:0", "-database-url", dsn, "-topology", mustWriteTopology(t, text)},
			func(string) string { return "" }, nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "topology") || strings.Contains(err.Error(), "\n") {
			t.Errorf("run with the topology %s = %v, want an error with %q", text, err, want)
		}
	}
	err := run(context.Background(), []string{"-database-url", dsn, "-topology", "/no/such/file"}, func(string) string { return "" }, nil, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-topology") {
		t.Errorf("run with a missing topology file = %v", err)
	}
	if _, err := readTopology(mustWriteTopology(t, `{}`), &limits{}); err != nil {
		t.Errorf("an empty topology = %v", err)
	}
}

// The topics and queues that a server returns, with all settings, are a valid topology.
func TestTopologyAcceptsTheResponsesOfAServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead","message_max_deliveries":3,"message_filters":{"k":["v"]},"delivery_delay_seconds":1,`+
		`"delivery_interval_ms":1,"ordered":true,"consumed_retention_seconds":60,"deduplication_window_seconds":60,"max_messages":9,"retry_backoff_seconds":[1,2],"paused":true`)
	list := func(path string) string {
		return strings.TrimSuffix(strings.TrimPrefix(s.must(200, "GET", path, ""), `{"data":`), "}")
	}
	_, err := readTopology(mustWriteTopology(t, `{"topics":`+list("/topics")+`,"queues":`+list("/queues")+`}`), &s.limits)
	if err != nil {
		t.Error(err)
	}
}
