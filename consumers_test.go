package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// consumersOf returns the consumers of a queue, in one line each: the token or the address,
// and the messages in flight, of the last minute and of the last hour.
func (s *testServer) consumersOf(c *client, queueID string) (lines []string) {
	s.t.Helper()
	var v consumerList
	mustDecode(s.t, c.must(200, "GET", "/queues/"+queueID+"/consumers", ""), &v)
	checkDiff(s.t, "server", s.server.id, v.ServerID)
	for i, v := range v.Data {
		if v.SeenAgo < 0 || v.SeenAgo > testTimeout.Seconds() {
			s.t.Errorf("consumer %d was seen %g s ago", i, v.SeenAgo)
		}
		name := "no name"
		switch {
		case v.Token != nil && v.Address == nil:
			name = "token " + *v.Token
		case v.Token == nil && v.Address != nil:
			name = *v.Address
		}
		lines = append(lines, fmt.Sprint(name, " ", v.InFlight, " ", v.LastMinute, " ", v.LastHour))
	}
	return lines
}

func TestConsumersAreWhoReceivedThroughAnyAPI(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, v := range []struct {
		name     string
		receive  func(c *client)
		inFlight int
	}{
		{"receive", func(c *client) { c.must(200, "GET", "/queues/q/messages", "") }, 1},
		{"receive and ack", func(c *client) { c.must(200, "POST", "/queues/q/messages/receive", "{}") }, 1},
		{"pgQueue", func(c *client) { c.must(200, "GET", "/queue/q", "") }, 0},
		{"micro-queue", func(c *client) { c.must(200, "GET", "/out/q", "") }, 0},
		{"SharQ", func(c *client) { c.must(200, "GET", "/dequeue/q/", "") }, 1},
	} {
		s.mustQueue("q")
		s.must(200, "GET", "/queues/q/messages/peek", "")
		checkDiff(t, "before a receive", []string(nil), s.consumersOf(&s.client, "q"))
		s.must(201, "POST", "/enqueue/q/g/", `{"job_id":"j","interval":1,"payload":1}`)
		v.receive(&s.client)
		checkDiff(t, v.name, []string{fmt.Sprintf("127.0.0.1 %d 1 1", v.inFlight)}, s.consumersOf(&s.client, "q"))
		s.must(204, "DELETE", "/queues/q", "")
	}
	s.must(404, "GET", "/queues/q/consumers", "")
}

func TestConsumersAreTokensIfTheServerRequiresThem(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("q")
	s.publish("q", 1, 2, 3)
	s.useTokens(map[string]string{"billing": `"get":["q"]`, "mailer": `"get":["*"]`, "poster": `"post":["q"]`, "stranger": `"get":["other"]`})
	s.with(secret("billing")).must(200, "GET", "/queues/q/messages?limit=2", "")
	s.with(secret("mailer")).must(200, "GET", "/queues/q/messages", "")
	s.with(secret("billing")).must(200, "GET", "/queues/q/messages", "") // finds nothing
	s.with(secret("stranger")).must(403, "GET", "/queues/q/messages", "")
	s.with(secret("stranger")).must(403, "GET", "/queues/q/consumers", "")
	checkDiff(t, "consumers", []string{"token billing 2 2 2", "token mailer 1 1 1"}, s.consumersOf(s.with(secret("poster")), "q"))
}

func TestConsumersShowTheirMessagesInFlight(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.mustQueue("dead")
	s.mustQueue("once", `"dead_queue_id":"dead","message_max_deliveries":1`)
	s.useTokens(map[string]string{"a": `"get":["*"]`, "b": `"get":["*"]`, "root": `"admin":true`})
	a, b, root := s.with(secret("a")), s.with(secret("b")), s.with(secret("root"))

	s.fill("q", 3)
	got := a.receive("q", "?limit=3")
	a.must(204, "PUT", "/messages/"+got[0].ID+"/ack", "")
	checkDiff(t, "after an ack", []string{"token a 2 3 3"}, s.consumersOf(root, "q"))
	s.endLeases()
	checkDiff(t, "after the ack deadline", []string{"token a 0 3 3"}, s.consumersOf(root, "q"))
	b.receive("q", "?limit=1")
	checkDiff(t, "one delivered again", []string{"token b 1 1 1", "token a 0 3 3"}, s.consumersOf(root, "q"))
	a.receive("q", "?limit=1")
	checkDiff(t, "one delivered to the same consumer", []string{"token a 1 4 4", "token b 1 1 1"}, s.consumersOf(root, "q"))
	s.fill("q", 120)
	b.receive("q", "?limit=70")
	b.receive("q", "?limit=50")
	checkDiff(t, "more than a server remembers", []string{"token b 100 121 121", "token a 1 4 4"}, s.consumersOf(root, "q"))

	// A redrive resets the delivery attempts.
	s.fill("once", 1)
	id := a.receive("once", "")[0].ID
	a.must(204, "PUT", "/messages/"+id+"/nack", "")
	root.must(204, "PUT", "/queues/dead/redrive", "")
	checkDiff(t, "attempts after a redrive", 1, b.receive("once", "")[0].DeliveryAttempts)
	checkDiff(t, "after a redrive", []string{"token b 1 1 1", "token a 0 1 1"}, s.consumersOf(root, "once"))
}

func TestConsumersAreForgottenAfterAnHour(t *testing.T) {
	t.Parallel()
	c := newConsumers()
	at := func(after time.Duration) time.Time { return c.began.Add(after) }
	a, b := consumerID{address: "a"}, consumerID{address: "b"}
	c.received("q", a, make([]message, 5), at(0))
	c.received("q", b, make([]message, 7), at(30*time.Second))
	c.received("q", a, nil, at(40*time.Second))
	for _, v := range []struct {
		after time.Duration
		want  []string
	}{
		{40 * time.Second, []string{"a 0 s 5 5", "b 10 s 7 7"}},
		{50 * time.Second, []string{"a 10 s 5 5", "b 20 s 7 7"}},
		{65 * time.Second, []string{"a 25 s 0 5", "b 35 s 7 7"}},
		{2 * time.Minute, []string{"a 80 s 0 5", "b 90 s 0 7"}},
		{time.Hour + 20*time.Second, []string{"a 3580 s 0 0", "b 3590 s 0 0"}},
		{time.Hour + 35*time.Second, []string{"a 3595 s 0 0"}},
		{time.Hour + 41*time.Second, nil},
	} {
		var got []string
		for _, v := range c.of("q", at(v.after)) {
			got = append(got, fmt.Sprint(*v.Address, " ", v.SeenAgo, " s ", v.LastMinute, " ", v.LastHour))
		}
		checkDiff(t, v.after.String(), v.want, got)
	}
	c.received("q", a, make([]message, 1), at(3*time.Hour))
	checkDiff(t, "messages of a consumer that has come back", []int64{1, 1}, []int64{c.of("q", at(3*time.Hour))[0].LastMinute, c.of("q", at(3*time.Hour))[0].LastHour})
}

func TestNumberOfConsumersIsBounded(t *testing.T) {
	t.Parallel()
	c := newConsumers()
	at := func(seconds int) time.Time { return c.began.Add(time.Duration(seconds) * time.Second) }
	for i := range maxQueueConsumers + 2 {
		c.received("q", consumerID{token: fmt.Sprint(i)}, make([]message, 1), at(i))
		c.received("q", consumerID{token: "0"}, make([]message, 1), at(i))
	}
	all := c.of("q", at(maxQueueConsumers))
	tokens := make(map[string]bool)
	for _, v := range all {
		tokens[*v.Token] = true
	}
	if len(all) != maxQueueConsumers || !tokens["0"] || tokens["1"] || tokens["2"] || !tokens["3"] {
		t.Errorf("%d consumers: %v", len(all), tokens)
	}
	for i := range maxConsumers {
		c.received(fmt.Sprint("q", i), consumerID{token: "a"}, nil, at(200))
	}
	count := func() (n int) {
		for _, all := range c.queues {
			n += len(all)
		}
		return n
	}
	checkDiff(t, "consumers of all queues", []int{maxConsumers, maxConsumers}, []int{c.known, count()})
	last := fmt.Sprint("q", maxConsumers-1)
	checkDiff(t, "one too many", 0, len(c.of(last, at(200))))
	c.forget("q0")
	c.received(last, consumerID{token: "a"}, nil, at(200))
	checkDiff(t, "after a queue was deleted", 1, len(c.of(last, at(200))))
	c.received("late", consumerID{token: "a"}, nil, at(200+3601))
	checkDiff(t, "after the others have expired", []int{1, 1}, []int{c.known, count()})
}

// BenchmarkReceiveOfAKnownConsumer measures what a receive spends on being shown.
func BenchmarkReceiveOfAKnownConsumer(b *testing.B) {
	c := newConsumers()
	messages := []message{{ID: newID(), DeliveryAttempts: 1}}
	all := make([]request, maxQueueConsumers)
	for i := range all {
		all[i].Request = &http.Request{RemoteAddr: fmt.Sprintf("10.0.0.%d:4711", i)}
		c.received("invoices", all[i].consumer(), messages, c.began)
	}
	now := time.Now()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.received("invoices", all[i%len(all)].consumer(), messages, now)
	}
}
