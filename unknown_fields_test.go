package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

func TestStrictRequestsRefuseUnknownFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	strict := s.strict()
	const settings = `"ack_deadline_seconds":30,"message_retention_seconds":3600`
	mistake := func(loc, similar string) string {
		msg := "unexpected field"
		if similar != "" {
			msg += "; did you mean " + similar + "?"
		}
		return `{"detail":[{"loc":[` + loc + `],"msg":"` + msg + `","type":"value_error.extra"}]}`
	}
	for _, v := range []struct{ method, path, body, loc, similar string }{
		{"POST", "/topics", `{"id":"u","description":"x"}`, `"body","description"`, ""},
		{"POST", "/queues", `{"id":"u","topic":"t",` + settings + `}`, `"body","topic"`, "topic_id"},
		{"POST", "/queues", `{"id":"u","visibility_timeout":30,"message_retention_seconds":3600,"ack_deadline_seconds":30}`, `"body","visibility_timeout"`, ""}, // the field that it means is there
		{"POST", "/queues", `{"id":"u","MaxReceiveCount":3,` + settings + `}`, `"body","MaxReceiveCount"`, "message_max_deliveries"},
		{"PUT", "/queues/t", `{"delay":3,` + settings + `}`, `"body","delay"`, "delivery_delay_seconds"},
		{"POST", "/topics/t/messages", `{"data":{},"delay":5}`, `"body","delay"`, "delay_seconds"},
		{"POST", "/topics/t/messages", `{"data":{},"delaySeconds":5}`, `"body","delaySeconds"`, "delay_seconds"},
		{"POST", "/topics/t/messages", `{"delya_seconds":5,"data":{}}`, `"body","delya_seconds"`, "delay_seconds"},
		{"POST", "/topics/t/messages", `{"group":"g","data":{},"MessageDeduplicationId":"1"}`, `"body","MessageDeduplicationId"`, "deduplication_id"},
		{"POST", "/topics/t/messages", `{"data":{"delay":5},"priority":1}`, `"body","priority"`, ""},
		{"POST", "/topics/t/messages?field=group", `{"data":{}}`, `"query","field"`, "fields"},
		{"POST", "/topics/t/messages/batch", `{"messages":[{"data":{},"group":"g"},{"data":{},"groups":"g"}]}`, `"body","messages",1,"groups"`, "group"},
		{"POST", "/topics/t/messages/batch", `{"messages":[{"data":{},"group":"g"},{"data":{},"attributes":{},"attribute":1}]}`, `"body","messages",1,"attribute"`, ""}, // the second message has attributes
		{"POST", "/topics/t/messages/batch", `{"messages":[{"data":{}}],"attributes":{}}`, `"body","attributes"`, ""},
		{"GET", "/queues/t/messages?wait=1", "", `"query","wait"`, "wait_seconds"},
		{"GET", "/queues/t/messages?Limit=1", "", `"query","Limit"`, "limit"},
		{"GET", "/queues/t/messages/peek?attribute.country=es&status=ready", "", `"query","status"`, "state"},
		{"POST", "/queues/t/messages/receive", `{"visibility_timeout":3}`, `"body","visibility_timeout"`, "ack_deadline_seconds"},
		{"POST", "/queues/t/messages/receive", `{"nack":[{"id":"01a2074b-c9ed-7161-8002-d1ae86de3ff8","reason":"x"}]}`, `"body","nack",0,"reason"`, "error"},
		{"PUT", "/messages/01a2074b-c9ed-7161-8002-d1ae86de3ff8/nack", `{"delay":3}`, `"body","delay"`, "delay_seconds"},
		{"PUT", "/messages/ack", `{"ids":["01a2074b-c9ed-7161-8002-d1ae86de3ff8"],"delay_seconds":3}`, `"body","delay_seconds"`, ""},
		{"PUT", "/queues/t/redrive", `{"destination":"t"}`, `"body","destination"`, "destination_queue_id"},
		{"PUT", "/queues/t/redrive?limit=1", `{}`, `"query","limit"`, ""},
		{"PUT", "/queues/t/purge?limit=1", "", `"query","limit"`, ""},
		{"PUT", "/queues/t/pause?seconds=60", "", `"query","seconds"`, ""},
		{"DELETE", "/queues/t?if_empty=true", "", `"query","if_empty"`, ""},
		{"DELETE", "/messages?dry_run", `{"ids":["01a2074b-c9ed-7161-8002-d1ae86de3ff8"]}`, `"query","dry_run"`, ""},
		{"PUT", "/queues/t/groups/g", `{"delivery_interval_ms":3,"` + strings.Repeat("delivery_interval_ms", 4) + `":3}`, `"body","` + strings.Repeat("delivery_interval_ms", 4) + `"`, ""},
	} {
		r := strict.do(v.method, v.path, v.body)
		what := fmt.Sprint(v.method, " ", v.path, " ", v.body)
		checkDiff(t, what, mistake(v.loc, v.similar), strings.TrimSpace(r.body))
		checkDiff(t, what, "422 handling=strict", fmt.Sprint(r.status, " ", r.header.Get("Preference-Applied")))
	}
	checkDiff(t, "messages", 0, s.messagesIn("t"))

	// Several fields, and other mistakes.
	body := strict.must(422, "POST", "/topics/t/messages", `{"body":{},"bodie":1}`)
	for _, want := range []string{`["body","data"],"msg":"field required"`, `["body","body"],"msg":"unexpected field; did you mean data?"`, `["body","bodie"],"msg":"unexpected field"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the response has no %s: %s", want, body)
		}
	}
}

func TestStrictRequestsAcceptWhatTheServerSends(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("q", `"topic_id":"t","ordered":true`)
	strict := s.strict()
	strict.must(200, "PUT", "/queues/q", s.must(200, "GET", "/queues/q", ""))
	body := strings.Replace(s.must(200, "GET", "/queues/q", ""), `"id":"q"`, `"id":"copy"`, 1)
	strict.must(201, "POST", "/queues", body)
	strict.must(201, "POST", "/topics/t/messages", `{"data":{},"data":{"n":1}}`) // of equal names, the last counts
	strict.must(200, "GET", "/queues/q/messages/peek?attribute.a=b&state=ready", "")
}

func TestOtherRequestsIgnoreUnknownFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("q", `"topic_id":"t"`)
	for _, prefer := range []string{"", "handling=lenient", "handling=lenient, handling=strict", "strict", "handling=\"\"", "respond-async"} {
		c := s.client
		c.prefer = prefer
		r := c.do("POST", "/topics/t/messages?x=1", `{"data":{},"delay":5}`)
		checkDiff(t, prefer, "201 ", fmt.Sprint(r.status, " ", r.header.Get("Preference-Applied")))
	}
	c := s.strict()
	c.prefer = `wait=0; x, Handling="Strict"`
	checkDiff(t, "with other preferences", 422, c.do("GET", "/queues/q/messages?waits=1", "").status)
	s.strict().must(200, "POST", "/in/q?x=1", `{"n":1}`) // micro-queue's API
	s.strict().must(201, "POST", "/message", `{"channel":"q","message":{},"extra":1}`)
}

// The work for unknown fields does not grow with their number times itself: a batch has space
// for hundreds of thousands.
func TestRequestOfUnknownFieldsIsServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	var fields strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&fields, `,"%x":1`, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for status, c := range map[int]*client{201: &s.client, 422: s.strict()} {
		for _, body := range []string{`{"messages":[{"data":{}` + fields.String() + `}]}`, `{"messages":[{"data":{}}]` + fields.String() + `}`} {
			r, err := c.send(ctx, "POST", "/queues/q/messages/batch", body)
			if err != nil || r.status != status || strings.Count(r.body, "value_error.extra") != status/422*maxMistakes {
				t.Errorf("%.30s… = %d %.300s, %v, want %d", body, r.status, r.body, err, status)
			}
		}
	}
	checkDiff(t, "stored", 2, s.messagesIn("q"))
}
