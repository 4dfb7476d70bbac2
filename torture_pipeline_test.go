//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// A pipeline moves numbered messages from the queue "first" to "second" and to "third"
// by publishes that ack. Each step leaves its input or its output, so every input is in
// "third" once at the end, whatever was broken meanwhile.

// notInPipelineEnd is a condition on messages that workers still have to receive.
const notInPipelineEnd = "queue_key <> (SELECT key FROM queued.queues WHERE id = 'third')"

// feedPipeline publishes inputs until calm.
func (v *torture) feedPipeline(calm <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-calm:
			return
		case <-time.After(10 * pace):
		}
		status, _ := v.send(context.Background(), "POST", "/queues/first/messages", map[string]any{"data": map[string]int{"n": n}})
		v.mu.Lock()
		v.inputs = append(v.inputs, status == 201)
		v.mu.Unlock()
	}
}

// movePipeline receives messages of a queue and publishes each to the next one, until
// stop. Until calm, some of the work is abandoned.
func (v *torture) movePipeline(from, to string, calm, stop <-chan struct{}) {
	tick := time.Tick(pace)
	for !isClosed(stop) {
		isCalm := isClosed(calm)
		status, out := v.send(context.Background(), "GET", "/queues/"+from+"/messages?limit=5&wait_seconds=0.2", nil)
		if status != 200 {
			<-tick
			continue
		}
		for _, m := range v.decode(out) {
			var ack any = m.ID
			if rand.IntN(2) == 0 {
				ack = map[string]string{"id": m.ID, "scheduled_at": m.ScheduledAt}
			}
			if !isCalm && rand.IntN(10) == 0 {
				continue // the worker dies
			}
			request := map[string]any{"data": m.Data, "ack": []any{ack}}
			attempts := 2 // a repeated publish finds that its input was acked
			if rand.IntN(2) == 0 {
				request["deduplication_id"] = m.ID // the response is that of the first publish
				attempts = maxRepeats
			}
			for range attempts {
				if status, _ := v.send(context.Background(), "POST", "/queues/"+to+"/messages", request); status != 0 {
					break
				}
			}
		}
	}
}

// checkPipeline reports inputs that are not in the last queue once.
func (v *torture) checkPipeline() {
	found := map[int]int{}
	rows, err := v.db.Query("SELECT (data->>'n')::integer, count(*) FROM queued.messages WHERE NOT " + notInPipelineEnd + " GROUP BY 1")
	if err != nil {
		v.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var n, count int
		if err := rows.Scan(&n, &count); err != nil {
			v.t.Fatal(err)
		}
		found[n] = count
	}
	if err := rows.Err(); err != nil {
		v.t.Fatal(err)
	}
	acknowledged := 0
	for n, stored := range v.inputs {
		count := found[n]
		delete(found, n)
		switch {
		case count > 1:
			v.violate("input %d of the pipeline is at its end %d times", n, count)
		case count == 0 && stored:
			v.violate("input %d of the pipeline, whose publish got a 201, is not at its end", n)
		}
		if stored {
			acknowledged++
		}
	}
	for n := range found {
		v.violate("message %d at the end of the pipeline was never published", n)
	}
	v.t.Logf("pipeline: %d inputs, %d of them acknowledged, each once at the end", len(v.inputs), acknowledged)
}

// pipelineQueues creates the queues of the pipeline.
func pipelineQueues(c *client) {
	for _, id := range []string{"first", "second", "third"} {
		c.mustQueue(id, fmt.Sprintf(`"ack_deadline_seconds":%d`, 2))
	}
}
