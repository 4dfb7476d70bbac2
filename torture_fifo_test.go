//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Clients of FIFO queues send, receive, hide and delete numbered messages by the API of SQS,
// in the torture test. Messages in fifoIDs have deduplication ids. fifoContent derives the
// ids from the bodies, within each group. Its messages move to fifoDead after
// tortureDeliveries receives, and move tasks bring them back. torture_fifo_checker_test.go
// has the rules.
const (
	fifoIDs     = "ids.fifo"
	fifoContent = "content.fifo"
	fifoDead    = "dead.fifo"

	fifoLease = 2 // visibility timeout of the queues, in seconds
)

func createFIFO(c *client) {
	isFIFO, timeout := `"FifoQueue":"true"`, fmt.Sprintf(`"VisibilityTimeout":"%d"`, fifoLease)
	c.createSQS(fifoIDs, isFIFO, timeout)
	c.createSQS(fifoDead, isFIFO, timeout)
	c.createSQS(fifoContent, isFIFO, timeout, `"ContentBasedDeduplication":"true"`, `"DeduplicationScope":"messageGroup"`, `"FifoThroughputLimit":"perMessageGroupId"`,
		fmt.Sprintf(`"RedrivePolicy":"{\"deadLetterTargetArn\":\"%s\",\"maxReceiveCount\":%d}"`, fifoARN(fifoDead), tortureDeliveries))
}

func fifoARN(queue string) string { return "arn:aws:sqs:us-east-1:000000000000:" + queue }

// sendSQS is send for an action of SQS. A refusal is a 400, or the 404 of an unknown task.
func (v *torture) sendSQS(ctx context.Context, queue, action string, in map[string]any) (status int, out []byte) {
	refusal := 400
	if action == "CancelMessageMoveTask" {
		refusal = 404
	}
	in["QueueUrl"] = queue
	header := http.Header{"Content-Type": {"application/x-amz-json-1.0"}, "X-Amz-Target": {"AmazonSQS." + action}}
	return v.exchange(ctx, "POST", "/", header, in, refusal)
}

// refusedSQS checks the reason of a 400 or of a failed entry.
func (v *torture) refusedSQS(out []byte, reason string) {
	if !strings.Contains(string(out), reason) {
		v.violate("SQS's API refused a request with %s", out)
	}
}

func (v *torture) decodeSQS(out []byte, into any) {
	if err := json.Unmarshal(out, into); err != nil {
		v.violate("malformed response: %v: %s", err, out)
	}
}

// fifoEntry is a message in a request to send.
type fifoEntry struct {
	*fifoSend
	body string
}

// produceFIFO sends messages until calm. It repeats half of the requests without a response
// until there is one, some of the others at once, and some later.
func (v *torture) produceFIFO(calm <-chan struct{}) {
	var earlier [][]fifoEntry
	for {
		select {
		case <-calm:
			return
		case <-time.After(4 * pace):
		}
		if v.behind.Load() {
			continue
		}
		var request []fifoEntry
		earlier = slices.DeleteFunc(earlier, func(r []fifoEntry) bool { return time.Since(r[0].sentAt) > 2*time.Minute }) // less than their deduplication window
		if len(earlier) > 0 && rand.IntN(4) == 0 {
			request = sendFIFOAgain(earlier[rand.IntN(len(earlier))])
		} else {
			request = v.newFIFO()
			earlier = append(earlier, request)
		}
		attempts, tick := 1, time.Tick(pace)
		if rand.IntN(2) == 0 {
			attempts = maxRepeats
		}
		for range attempts {
			if v.sendFIFO(request) && rand.IntN(4) > 0 {
				break
			}
			<-tick
		}
		v.mu.Lock()
		for _, s := range request {
			v.history.fifo.sends = append(v.history.fifo.sends, *s.fifoSend)
		}
		v.mu.Unlock()
	}
}

// newFIFO returns a request with one message, or with a batch for two groups in turns, in
// which some messages are invalid or are there twice.
func (v *torture) newFIFO() (request []fifoEntry) {
	n := 1
	if rand.IntN(4) == 0 {
		n = 2 + rand.IntN(7)
	}
	v.mu.Lock()
	first := v.next
	v.next += fifoGroups * n
	v.mu.Unlock()
	queue := []string{fifoIDs, fifoContent}[rand.IntN(2)]
	for i := range n {
		s := &fifoSend{queue: queue, n: first + i/2*fifoGroups + i%2, sentAt: time.Now(), invalid: n > 1 && rand.IntN(8) == 0}
		if i >= 2 {
			s.follows = s.n - fifoGroups
		}
		body := s.n
		if queue == fifoContent {
			body -= i % 2 // the body of the message before it, in another group
		}
		request = append(request, fifoEntry{s, fmt.Sprint(body)})
	}
	if n > 1 && rand.IntN(4) == 0 {
		request = append(request, request[rand.IntN(n)])
	}
	return request
}

// sendFIFOAgain returns the same request for messages that were maybe stored.
func sendFIFOAgain(request []fifoEntry) (again []fifoEntry) {
	for _, s := range request {
		again = append(again, fifoEntry{&fifoSend{queue: s.queue, n: s.n, invalid: s.invalid, again: true}, s.body})
	}
	return again
}

// sendFIFO sends a request, and reports whether there was a response.
func (v *torture) sendFIFO(request []fifoEntry) bool {
	var all []map[string]any
	for i, s := range request {
		in := map[string]any{"Id": fmt.Sprint(i), "MessageBody": s.body, "MessageGroupId": fifoGroup(s.n)}
		if s.queue == fifoIDs {
			in["MessageDeduplicationId"] = fmt.Sprint("id-", s.n)
		}
		if s.invalid {
			in["DelaySeconds"] = 1
		}
		all = append(all, in)
	}
	type result struct {
		Id                                          int `json:",string"`
		MessageId, MD5OfMessageBody, SequenceNumber string
	}
	var response struct {
		Successful []result
		Failed     []struct {
			Id      int `json:",string"`
			Message string
		}
	}
	action, in := "SendMessageBatch", map[string]any{"Entries": all}
	if len(all) == 1 {
		action, in = "SendMessage", all[0]
	}
	status, out := v.sendSQS(context.Background(), request[0].queue, action, in)
	switch {
	case status == 0:
		return false
	case status != 200:
		v.violate("%s = %d %s", action, status, out)
		return true
	case len(all) == 1:
		response.Successful = make([]result, 1)
		v.decodeSQS(out, &response.Successful[0])
	default:
		v.decodeSQS(out, &response)
	}
	now := time.Now()
	for _, r := range response.Successful {
		s := request[r.Id]
		if s.invalid || r.MD5OfMessageBody != sqsMD5(s.body) {
			v.violate("%s of %v = %s", action, all, out)
		}
		if s.doneAt.IsZero() {
			s.doneAt = now
		}
		s.ids = append(s.ids, r.MessageId)
		if r.SequenceNumber != "" {
			s.numbers = append(s.numbers, r.SequenceNumber)
		}
	}
	for _, r := range response.Failed {
		if s := request[r.Id]; !s.invalid || !strings.Contains(r.Message, "not valid for this queue type") {
			v.violate("%s of %v = %s", action, all, out)
		}
	}
	if len(response.Successful)+len(response.Failed) != len(request) {
		v.violate("%s of %v = %s", action, all, out)
	}
	return true
}

// returnFIFO starts tasks that move the messages of the dead queue back, until calm. It
// cancels some.
func (v *torture) returnFIFO(calm <-chan struct{}) {
	for {
		select {
		case <-calm:
			return
		case <-time.After(rand.N(2 * time.Second)):
		}
		in := map[string]any{"SourceArn": fifoARN(fifoDead)}
		if rand.IntN(2) == 0 {
			in["DestinationArn"] = fifoARN(fifoContent)
		}
		if rand.IntN(2) == 0 {
			in["MaxNumberOfMessagesPerSecond"] = 10 + rand.IntN(90)
		}
		task := span{queue: fifoDead, from: time.Now()}
		status, out := v.sendSQS(context.Background(), "", "StartMessageMoveTask", in)
		if status == 400 {
			v.refusedSQS(out, "There is already a task running.")
		}
		for tick := time.Tick(10 * pace); v.isReturningFIFO(rand.IntN(100) == 0); {
			<-tick
		}
		if task.to = time.Now(); status == 0 {
			task.to = task.to.Add(aftermath)
		}
		v.mu.Lock()
		v.history.fifo.tasks = append(v.history.fifo.tasks, task)
		v.mu.Unlock()
	}
}

// isReturningFIFO reports whether a move task is running, or may be. It cancels the task if
// cancels.
func (v *torture) isReturningFIFO(cancels bool) bool {
	status, out := v.sendSQS(context.Background(), "", "ListMessageMoveTasks", map[string]any{"SourceArn": fifoARN(fifoDead), "MaxResults": 10})
	if status != 200 {
		return true
	}
	var list struct {
		Results []struct {
			Status, TaskHandle               string
			ApproximateNumberOfMessagesMoved int
			StartedTimestamp                 int64
		}
	}
	v.decodeSQS(out, &list)
	running := false
	for _, task := range list.Results {
		v.mu.Lock()
		v.history.fifo.moved[task.StartedTimestamp] = task.ApproximateNumberOfMessagesMoved
		v.mu.Unlock()
		switch task.Status {
		case "RUNNING":
			running = true
			if cancels {
				v.sendSQS(context.Background(), "", "CancelMessageMoveTask", map[string]any{"TaskHandle": task.TaskHandle})
			}
		case "COMPLETED", "CANCELLED":
		default:
			v.violate("a move task is %s: %s", task.Status, out)
		}
	}
	return running
}
