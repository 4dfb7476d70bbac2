package main

import (
	"fmt"
	"strings"
	"testing"
)

// A paused queue delivers nothing, at any server and by any API. Receivers wait on, and
// resume wakes them.
func TestPausedQueueDeliversNothing(t *testing.T) {
	t.Parallel()
	for _, settings := range []string{`"ordered":false`, `"ordered":true`, `"consumed_retention_seconds":600`} {
		for _, group := range []string{`null`, `"g"`} {
			t.Run(settings+group, func(t *testing.T) {
				t.Parallel()
				s := newTestServer(t)
				other := newTestServerOn(t, s.dsn)
				s.mustQueue("q", settings)
				s.mustQueue("r") // its claims share statements with those of q
				publish := func(n int) string {
					return s.messages(s.must(201, "POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"n":%d},"group":%s}`, n, group)))[0].ID
				}
				first := publish(1)
				leased := other.receive("q", "?wait_seconds=30")
				checkDiff(t, "received before", []int{1}, numbers(leased)) // now both servers have cached the queue
				s.receive("q", "")

				s.must(204, "PUT", "/queues/q/pause", "")
				s.must(204, "PUT", "/queues/q/pause", "")
				polls := []<-chan polled{s.poll(t.Context(), "q", "?wait_seconds=30"), other.poll(t.Context(), "q", "?wait_seconds=30")}
				publish(2)
				s.must(200, "PUT", "/messages/"+first+"/extend", `{"ack_deadline_seconds":60}`)
				s.must(204, "PUT", "/messages/"+first+"/nack", "")
				for _, server := range []*testServer{s, other} {
					server.waiting("q", 1)
					checkDiff(t, "received", 0, len(server.receive("q", "")))
					server.must(204, "GET", "/queue/q", "")
					server.must(404, "GET", "/out/q", "")
					server.must(404, "GET", "/dequeue/q/", "")
				}
				s.must(201, "POST", "/queues/r/messages", `{"data":{"n":9}}`)
				checkDiff(t, "received from another queue", []int{9}, numbers(s.receive("r", "?wait_seconds=30")))
				checkDiff(t, "attempts", 2, s.count("SELECT count(*) FROM queued.messages WHERE queue_key = (SELECT key FROM queued.queues WHERE id = 'q') AND NOT in_flight"))
				s.must(204, "PUT", "/messages/"+first+"/ack", "")

				other.must(204, "PUT", "/queues/q/resume", "")
				var got polled
				select {
				case got = <-polls[0]:
				case got = <-polls[1]:
				}
				if got.err != nil || len(got.messages) != 1 || got.messages[0].DeliveryAttempts != 1 {
					t.Errorf("received after the resume: %+v", got)
				}
			})
		}
	}
}

func TestQueueShowsThatItIsPaused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	shows := func() string {
		t.Helper()
		var all []string
		for _, path := range []string{"/queues/q", "/queues", "/overview", "/queues/q/stats?detail=true"} {
			all = append(all, fmt.Sprint(strings.Contains(s.must(200, "GET", path, ""), `"paused":true`)))
		}
		if strings.Contains(s.must(200, "GET", "/queues/q", ""), `"paused":false`) {
			t.Error("the queue shows that it is not paused")
		}
		return strings.Join(all, " ")
	}
	const settings = `{"ack_deadline_seconds":60,"message_retention_seconds":3600`
	checkDiff(t, "at first", "false false false false", shows())
	s.must(204, "PUT", "/queues/q/pause", "")
	checkDiff(t, "paused", "true true true true", shows())
	s.must(200, "PUT", "/queues/q", settings+"}")
	checkDiff(t, "after an update that leaves it out", "true true true true", shows())
	checkDiff(t, "stats", `{"num_undelivered_messages":0,"oldest_unacked_message_age_seconds":0}`, s.must(200, "GET", "/queues/q/stats", ""))
	eventually(t, "the metrics show that the queue is paused", func() bool { // the last count may be older
		return strings.Contains(s.must(200, "GET", "/metrics", ""), `queued_queue_paused{queue="q"} 1`)
	})
	poll := s.poll(t.Context(), "q", "?wait_seconds=30")
	s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1}}`)
	s.waiting("q", 1)
	s.must(200, "PUT", "/queues/q", settings+`,"paused":false}`)
	checkDiff(t, "received", []int{1}, numbers(s.await(poll)))
	checkDiff(t, "after an update", "false false false false", shows())
	s.must(404, "PUT", "/queues/none/pause", "")
	s.must(404, "PUT", "/queues/none/resume", "")
	s.must(201, "POST", "/queues", `{"id":"new","paused":true,"ack_deadline_seconds":60,"message_retention_seconds":3600}`)
	s.must(201, "POST", "/queues/new/messages", `{"data":{}}`)
	checkDiff(t, "received from a queue that was created paused", 0, len(s.receive("new", "")))
	s.must(204, "PUT", "/queues/new/resume", "")
	checkDiff(t, "received after the resume", 1, len(s.receive("new", "")))
}
