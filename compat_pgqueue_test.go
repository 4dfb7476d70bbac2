package main

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// maskPg replaces the values that differ between runs.
func maskPg(s string) string {
	s = regexp.MustCompile(`"id":\d+`).ReplaceAllString(s, `"id":N`)
	return regexp.MustCompile(`"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"`).ReplaceAllString(s, `"TIME"`)
}

func TestPgQueueRespondsLikePgQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("empty")
	for _, v := range []step{
		{"GET", "/channels", "", 204, ""},
		{"GET", "/queue/abcd", "", 204, ""},
		{"GET", "/queue/empty", "", 204, ""},
		{"GET", "/messages?channel=abcd", "", 204, ""},
		{"POST", "/message", `{"channel":"abcd","message":{"seq": 7.10}}`, 201, `{"status":"Message inserted!","id":N}`},
		{"POST", "/message", `{"message":{"seq":8},"channel":"abcd","more":1}`, 201, `{"status":"Message inserted!","id":N}`},
		{"POST", "/message", `{"channel":"Ab","message":{}}`, 201, `{"status":"Message inserted!","id":N}`},
		{"GET", "/channels", "", 200, `[{"channel":"Ab"},{"channel":"abcd"}]`},
		{"GET", "/messages?channel=abcd", "", 200, `[{"id":N,"channel":"abcd","message":{"seq": 7.10},"created_at":"TIME"},{"id":N,"channel":"abcd","message":{"seq":8},"created_at":"TIME"}]`},
		{"GET", "/messages?channel=abcd&offset=1&limit=1000", "", 200, `[{"id":N,"channel":"abcd","message":{"seq":8},"created_at":"TIME"}]`},
		{"GET", "/queue/abcd", "", 200, `{"id":N,"channel":"abcd","message":{"seq": 7.10},"created_at":"TIME"}`},
		{"GET", "/queue/abcd?wait_seconds=1", "", 200, `{"id":N,"channel":"abcd","message":{"seq":8},"created_at":"TIME"}`},
		{"GET", "/queue/abcd", "", 204, ""},
		{"GET", "/channels", "", 200, `[{"channel":"Ab"}]`},

		{"POST", "/message", ``, 400, `{"status":"Malformed json"}`},
		{"POST", "/message", `{"channel":`, 400, `{"status":"Malformed json"}`},
		{"POST", "/message", `[]`, 400, `{"status":"Field channel not found in json"}`},
		{"POST", "/message", `{"message":{}}`, 400, `{"status":"Field channel not found in json"}`},
		{"POST", "/message", `{"channel":"a"}`, 400, `{"status":"Field message not found in json"}`},
		{"POST", "/message", `{"channel":1,"message":{}}`, 400, `{"status":"Check the field types. Channel must be str and Message must be a json"}`},
		{"POST", "/message", `{"channel":"a","message":"x"}`, 400, `{"status":"Check the field types. Channel must be str and Message must be a json"}`},
		{"POST", "/message", `{"channel":"a","message":null}`, 400, `{"status":"Check the field types. Channel must be str and Message must be a json"}`},
		{"POST", "/message", `{"channel":"a b","message":{}}`, 400, `{"status":"A channel has 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"}`},
		{"GET", "/queue/a%20b", "", 400, `{"status":"A channel has 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"}`},
		{"POST", "/message", `["channel","message"]`, 400, `{"status":"Field channel not found in json"}`},
		{"POST", "/message", `"channel"`, 400, `{"status":"Field channel not found in json"}`},
		{"POST", "/message", `null`, 400, `{"status":"Malformed json"}`},
		{"POST", "/message", `{"channel":"a","message":[]}`, 400, `{"status":"Check the field types. Channel must be str and Message must be a json"}`},
		{"GET", "/messages?channel=Ab&limit=0", "", 204, ""},
		{"GET", "/messages?channel=Ab&limit=%201%20", "", 200, `[{"id":N,"channel":"Ab","message":{},"created_at":"TIME"}]`},
		{"GET", "/messages", "", 422, `{"detail":[{"type":"missing","loc":["query","channel"],"msg":"Field required","input":null}]}`},
		{"GET", "/messages?limit=x&offset=", "", 422, `{"detail":[{"type":"missing","loc":["query","channel"],"msg":"Field required","input":null},` +
			`{"type":"int_parsing","loc":["query","offset"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":""},` +
			`{"type":"int_parsing","loc":["query","limit"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":"x"}]}`},
		{"GET", "/messages?channel=Ab&limit=-1", "", 422, `{"detail":[{"type":"greater_than_equal","loc":["query","limit"],"msg":"Input should be greater than or equal to 0","input":"-1","ctx":{"ge":0}}]}`},
		{"GET", "/queue/abcd?wait_seconds=x", "", 422, `{"detail":[{"type":"float_parsing","loc":["query","wait_seconds"],"msg":"Input should be a valid number, unable to parse string as a number","input":"x"}]}`},
		{"GET", "/queue/abcd?wait_seconds=31", "", 422, `{"detail":[{"type":"less_than_equal","loc":["query","wait_seconds"],"msg":"Input should be less than or equal to 30","input":"31","ctx":{"le":30}}]}`},
	} {
		got := s.do(v.method, v.path, v.body)
		if got.status != v.status || maskPg(got.body) != v.want {
			t.Errorf("%s %s %s\n got %d %s\nwant %d %s", v.method, v.path, v.body, got.status, maskPg(got.body), v.status, v.want)
		}
	}
	s.ready.Store(false)
	if got := s.do("POST", "/message", `{"channel":"a","message":{}}`); got.status != 503 || got.body != `{"status":"database unavailable; try again later"}` {
		t.Errorf("without a database = %d %s", got.status, got.body)
	}
}

func TestPgQueueIDsGrowAndStay(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	var last int64
	for i := range 5 {
		var published, browsed []pgStatus
		body := s.must(201, "POST", "/message", fmt.Sprintf(`{"channel":"c","message":{"n":%d}}`, i))
		mustDecode(t, "["+body+"]", &published)
		if published[0].ID <= last || published[0].ID >= 1<<53 {
			t.Errorf("message %d has the id %d after %d", i, published[0].ID, last)
		}
		last = published[0].ID
		mustDecode(t, s.must(200, "GET", fmt.Sprintf("/messages?channel=c&offset=%d", i), ""), &browsed)
		checkDiff(t, "id in a browse", last, browsed[0].ID)
	}
}

// A reader may wait for a channel that does not exist yet. Each message goes to one
// reader.
func TestPgQueueReadersWait(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	replies := make(chan reply, 2)
	for range 2 {
		go func() {
			v, _ := s.send(context.Background(), "GET", "/queue/c?wait_seconds=20", "")
			replies <- v
		}()
	}
	s.inLine("c", 2)
	for i := range 2 {
		s.must(201, "POST", "/message", fmt.Sprintf(`{"channel":"c","message":{"n":%d}}`, i))
	}
	seen := map[string]bool{}
	for range 2 {
		var v struct{ Message json.RawMessage }
		mustDecode(t, (<-replies).body, &v)
		seen[string(v.Message)] = true
	}
	checkDiff(t, "read", map[string]bool{`{"n":0}`: true, `{"n":1}`: true}, seen)
}

func TestPgQueueMessagesAreThoseOfTheNativeAPI(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/message", `{"channel":"c","message":{"n":1}}`)
	s.must(201, "POST", "/queues/c/messages", `{"data":{"n":2}}`)
	got := s.receive("c", "?limit=1")
	checkDiff(t, "received natively", []int{1}, numbers(got))
	if body := s.must(200, "GET", "/queue/c", ""); !strings.Contains(body, `"message":{"n":2}`) {
		t.Errorf("read after that: %s", body)
	}
	s.must(204, "PUT", "/messages/"+got[0].ID+"/ack", "")
	s.wantMetrics(`queued_messages_acked_total{queue="c"} 2`, `queued_messages_delivered_total{queue="c"} 2`)
	// The settings that a GET returns are accepted by a PUT.
	s.must(200, "PUT", "/queues/c", s.must(200, "GET", "/queues/c", ""))
}

func TestPgQueueRights(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/message", `{"channel":"other","message":{}}`)
	s.useTokens(map[string]string{"poster": `"post":["c"]`, "getter": `"get":["c"]`})
	poster, getter := s.with(secret("poster")), s.with(secret("getter"))
	getter.must(204, "GET", "/queue/c?wait_seconds=1", "") // has no permission to create it
	poster.must(201, "POST", "/message", `{"channel":"c","message":{}}`)
	poster.must(403, "POST", "/message", `{"channel":"d","message":{}}`)
	getter.must(403, "POST", "/message", `{"channel":"c","message":{}}`)
	poster.must(403, "GET", "/messages?channel=c", "")
	getter.must(200, "GET", "/messages?channel=c", "")
	getter.must(403, "GET", "/messages?channel=other", "")
	checkDiff(t, "channels of a token", `[{"channel":"c"}]`, getter.must(200, "GET", "/channels", ""))
	getter.must(200, "GET", "/queue/c", "")
}
