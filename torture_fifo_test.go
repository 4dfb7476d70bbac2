//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Clients of the FIFO queue torture.fifo send, receive and delete numbered messages by the
// API of SQS. torture_fifo_checker_test.go has the rules.

// fifoLease is the visibility timeout of the queue, in seconds.
const fifoLease = 2

func createFIFO(c *client) {
	c.createSQS("torture.fifo", `"FifoQueue":"true"`, fmt.Sprintf(`"VisibilityTimeout":"%d"`, fifoLease))
}

// sendSQS is send for an action of SQS on the queue. A refusal is a 400.
func (v *torture) sendSQS(ctx context.Context, action string, in map[string]any) (status int, out []byte) {
	in["QueueUrl"] = "torture.fifo"
	header := http.Header{"Content-Type": {"application/x-amz-json-1.0"}, "X-Amz-Target": {"AmazonSQS." + action}}
	return v.exchange(ctx, "POST", "/", header, in, 400)
}

// produceFIFO sends messages until calm. It repeats half of those without a response until
// there is one, and some of the others too.
func (v *torture) produceFIFO(calm <-chan struct{}) {
	for {
		select {
		case <-calm:
			return
		case <-time.After(4 * pace):
		}
		if v.behind.Load() {
			continue
		}
		v.mu.Lock()
		s := fifoSend{n: v.next, sentAt: time.Now()}
		v.next++
		v.mu.Unlock()
		attempts, tick := 1, time.Tick(pace)
		if rand.IntN(2) == 0 {
			attempts = maxRepeats
		}
		for range attempts {
			status, out := v.sendSQS(context.Background(), "SendMessage", map[string]any{
				"MessageBody": fmt.Sprint(s.n), "MessageGroupId": fifoGroup(s.n), "MessageDeduplicationId": fmt.Sprint("id-", s.n)})
			if status == 200 {
				var sent struct{ MessageId string }
				v.decodeSQS(out, &sent)
				if s.ids = append(s.ids, sent.MessageId); s.doneAt.IsZero() {
					s.doneAt = time.Now()
				}
				if rand.IntN(4) > 0 {
					break
				}
			} else if status != 0 {
				v.violate("SendMessage = %d %s", status, out)
			}
			<-tick
		}
		v.mu.Lock()
		v.history.fifo.sends = append(v.history.fifo.sends, s)
		v.mu.Unlock()
	}
}

// consumeFIFO receives messages until stop. Until calm, a tenth of the receives disconnect,
// and a tenth of the consumers die with what they received.
func (v *torture) consumeFIFO(calm, stop <-chan struct{}) {
	tick := time.Tick(pace)
	for !isClosed(stop) {
		isCalm := isClosed(calm)
		wait := rand.IntN(2)
		if isCalm {
			wait = 0
		}
		ctx, hangUp := context.WithCancel(context.Background())
		if !isCalm && rand.IntN(10) == 0 {
			time.AfterFunc(rand.N(500*time.Millisecond), hangUp)
		}
		sentAt := time.Now()
		status, out := v.sendSQS(ctx, "ReceiveMessage", map[string]any{
			"MaxNumberOfMessages": 1 + rand.IntN(10), "WaitTimeSeconds": wait, "MessageSystemAttributeNames": []string{"All"}})
		gotAt := time.Now()
		hangUp()
		var in struct {
			Messages []struct {
				MessageId, ReceiptHandle, Body string
				Attributes                     map[string]string
			}
		}
		if status == 200 {
			v.decodeSQS(out, &in)
		} else if status != 0 {
			v.violate("ReceiveMessage = %d %s", status, out)
		}
		if len(in.Messages) == 0 {
			<-tick
			continue
		}
		all := make([]fifoSeen, len(in.Messages))
		handles := make(map[*fifoSeen]string)
		for i, m := range in.Messages {
			d := fifoSeen{id: m.MessageId, number: m.Attributes["SequenceNumber"], sentAt: sentAt, gotAt: gotAt, until: gotAt.Add(fifoLease * time.Second)}
			d.n, _ = strconv.Atoi(m.Body)
			d.attempt, _ = strconv.Atoi(m.Attributes["ApproximateReceiveCount"])
			all[i] = d
			handles[&all[i]] = m.ReceiptHandle
		}
		if isCalm || rand.IntN(10) > 0 {
			v.finishFIFO(all, handles, isCalm)
		}
		v.mu.Lock()
		v.history.fifo.receives = append(v.history.fifo.receives, all)
		v.mu.Unlock()
	}
}

// finishFIFO deletes messages, one by one or at the end in a batch. Unless isCalm, it gives
// some back, hides some for another time, or waits until the leases are over.
func (v *torture) finishFIFO(all []fifoSeen, handles map[*fifoSeen]string, isCalm bool) {
	var rest []*fifoSeen
	for i := range all {
		d := &all[i]
		what := rand.IntN(40)
		switch {
		case isCalm:
			rest = append(rest, d)
		case what == 0: // it dies with the message
		case what == 1:
			v.awaitLeaseEnd(d)
			v.deleteFIFO(handles, d)
		case what < 4:
			if v.hideFIFO(handles, d, 0) && rand.IntN(2) == 0 {
				v.deleteFIFO(handles, d)
			}
		case what < 8:
			if v.hideFIFO(handles, d, 1+rand.IntN(3)) {
				rest = append(rest, d)
			}
		case what < 20:
			v.deleteFIFO(handles, d)
		default:
			rest = append(rest, d)
		}
	}
	if len(rest) > 0 {
		v.deleteFIFO(handles, rest...)
	}
}

// awaitLeaseEnd waits until the lease of a message is over, or another consumer has it. While
// the database is down it waits, too.
func (v *torture) awaitLeaseEnd(d *fifoSeen) {
	for tick, leased := time.Tick(10*pace), true; leased; <-tick {
		err := v.db.QueryRow(`
SELECT EXISTS (
    SELECT
    FROM queued.messages
    WHERE id = $1
        AND in_flight
        AND delivery_attempts = $2
        AND scheduled_at > now()
)`, d.id, d.attempt).Scan(&leased)
		leased = leased || err != nil
	}
}

// hideFIFO hides a message for some seconds from now, and reports whether a response said so.
func (v *torture) hideFIFO(handles map[*fifoSeen]string, d *fifoSeen, seconds int) bool {
	status, out := v.sendSQS(context.Background(), "ChangeMessageVisibility", map[string]any{"ReceiptHandle": handles[d], "VisibilityTimeout": seconds})
	until := time.Now().Add(time.Duration(seconds) * time.Second)
	switch status {
	case 200:
		d.until = until
	case 0: // it may still happen
		d.until = until.Add(max(aftermath, d.until.Sub(until)))
	default:
		v.refusedSQS(out, "is not available for visibility timeout change.")
	}
	return status == 200
}

// deleteFIFO deletes messages. It repeats a request without a response.
func (v *torture) deleteFIFO(handles map[*fifoSeen]string, all ...*fifoSeen) {
	var entries []map[string]any
	for i, d := range all {
		d.deleteSentAt = time.Now()
		entries = append(entries, map[string]any{"Id": fmt.Sprint(i), "ReceiptHandle": handles[d]})
	}
	const expired = "The receipt handle has expired."
	for range 3 {
		if len(all) == 1 {
			status, out := v.sendSQS(context.Background(), "DeleteMessage", map[string]any{"ReceiptHandle": handles[all[0]]})
			switch status {
			case 200:
				all[0].deletedAt = time.Now()
				return
			case 400:
				v.refusedSQS(out, expired)
				all[0].refused = true
				return
			}
			continue
		}
		status, out := v.sendSQS(context.Background(), "DeleteMessageBatch", map[string]any{"Entries": entries})
		if status != 200 {
			continue
		}
		var result struct {
			Successful []struct {
				Id int `json:",string"`
			}
			Failed []struct {
				Id      int `json:",string"`
				Message string
			}
		}
		v.decodeSQS(out, &result)
		for _, e := range result.Successful {
			all[e.Id].deletedAt = time.Now()
		}
		for _, e := range result.Failed {
			if !strings.Contains(e.Message, expired) {
				v.violate("an entry of DeleteMessageBatch = %s", e.Message)
			}
			all[e.Id].refused = true
		}
		return
	}
}

// refusedSQS checks the reason of a 400.
func (v *torture) refusedSQS(out []byte, reason string) {
	if !strings.Contains(string(out), reason) {
		v.violate("the queue torture.fifo refused a request with %s", out)
	}
}

func (v *torture) decodeSQS(out []byte, into any) {
	if err := json.Unmarshal(out, into); err != nil {
		v.violate("malformed response: %v: %s", err, out)
	}
}
