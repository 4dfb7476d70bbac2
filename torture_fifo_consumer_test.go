//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// consumeFIFO receives messages until stop. Until calm, a tenth of the receives disconnect,
// and a tenth of the consumers die with what they received.
func (v *torture) consumeFIFO(calm, stop <-chan struct{}) {
	tick := time.Tick(pace)
	for !isClosed(stop) {
		isCalm := isClosed(calm)
		queue, wait := []string{fifoIDs, fifoContent}[rand.IntN(2)], rand.IntN(2)
		if isCalm {
			wait = 0
		}
		if rand.IntN(30) == 0 || isCalm && rand.IntN(3) == 0 {
			queue, wait = fifoDead, 0
		}
		ctx, hangUp := context.WithCancel(context.Background())
		if !isCalm && rand.IntN(10) == 0 {
			time.AfterFunc(rand.N(500*time.Millisecond), hangUp)
		}
		sentAt := time.Now()
		status, out := v.sendSQS(ctx, queue, "ReceiveMessage", map[string]any{
			"MaxNumberOfMessages": 1 + rand.IntN(10), "WaitTimeSeconds": wait, "MessageSystemAttributeNames": []string{"All"}})
		hangUp()
		var all []fifoSeen
		switch status {
		case 0:
			v.mu.Lock()
			v.history.fifo.unknown = append(v.history.fifo.unknown, span{queue, sentAt, time.Now().Add(aftermath)})
			v.mu.Unlock()
		case 200:
			all = v.readFIFO(queue, out, sentAt)
		default:
			v.violate("ReceiveMessage = %d %s", status, out)
		}
		if len(all) == 0 {
			<-tick
			continue
		}
		if isCalm || rand.IntN(10) > 0 {
			v.finishFIFO(all, isCalm)
		}
		v.mu.Lock()
		v.history.fifo.receives = append(v.history.fifo.receives, all)
		v.mu.Unlock()
	}
}

// readFIFO reads the response to a receive that was sent at a time.
func (v *torture) readFIFO(queue string, out []byte, sentAt time.Time) (all []fifoSeen) {
	var in struct {
		Messages []struct {
			MessageId, ReceiptHandle, Body, MD5OfBody string
			Attributes                                map[string]string
		}
	}
	v.decodeSQS(out, &in)
	now, source := time.Now(), ""
	if queue == fifoDead {
		source = fifoARN(fifoContent)
	}
	for _, m := range in.Messages {
		d := fifoSeen{queue: queue, id: m.MessageId, number: m.Attributes["SequenceNumber"], handle: m.ReceiptHandle, sentAt: sentAt, gotAt: now, until: now.Add(fifoLease * time.Second)}
		d.n, _ = strconv.Atoi(m.Body)
		d.attempt, _ = strconv.Atoi(m.Attributes["ApproximateReceiveCount"])
		group := m.Attributes["MessageGroupId"]
		if queue != fifoIDs && group != fifoGroup(d.n) { // see produceFIFO
			d.n++
		}
		if group != fifoGroup(d.n) || m.MD5OfBody != sqsMD5(m.Body) || m.Attributes["DeadLetterQueueSourceArn"] != source {
			v.violate("ReceiveMessage from %s = %+v", queue, m)
		}
		all = append(all, d)
	}
	v.readRows(all)
	return all
}

// readRows sets leasedUntil of messages whose leases have not changed, unless the database is
// down. A response does not tell: its claim may have begun before the request. It also checks
// what else only the rows have: the length of the lease, and how often a dead message had
// been received.
func (v *torture) readRows(all []fifoSeen) {
	var ids idArray
	for _, d := range all {
		ids = append(ids, d.id)
	}
	rows, err := v.db.Query(`
SELECT id, seq, delivery_attempts, updated_at, scheduled_at, coalesce(source_delivery_attempts, 0)
FROM queued.messages
WHERE id = ANY ($1::uuid[])
    AND in_flight`, ids)
	if err != nil {
		return
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var seq int64
		var attempt, died int
		var from, until time.Time
		if rows.Scan(&id, &seq, &attempt, &from, &until, &died) != nil {
			return
		}
		for i := range all {
			d := &all[i]
			if d.id != id || d.number != sqsSequenceNumber(seq) || d.attempt != attempt {
				continue
			}
			if d.leasedUntil = until; until.Sub(from) != fifoLease*time.Second {
				v.violate("FIFO message %d was received with a lease from %v to %v", d.n, from, until)
			}
			if d.queue == fifoDead && died != tortureDeliveries {
				v.violate("FIFO message %d died after %d receives", d.n, died)
			}
		}
	}
}

// finishFIFO deletes messages, one by one or at the end in a batch. Unless isCalm, it makes
// some visible, hides some for another time, or uses a receipt handle after its lease, and it
// always fails on some messages of fifoContent.
func (v *torture) finishFIFO(all []fifoSeen, isCalm bool) {
	var rest, failing, hidden []*fifoSeen
	for i := range all {
		d := &all[i]
		what := rand.IntN(40)
		switch {
		case isCalm:
			rest = append(rest, d)
		case d.queue == fifoContent && d.n/fifoGroups%8 == 0:
			if what < 36 {
				failing = append(failing, d)
			}
		case what == 0: // it dies with the message
		case what == 1:
			v.awaitLeaseEnd(d, rand.IntN(2) == 0)
			if rand.IntN(2) == 0 {
				v.hideFIFO(rand.IntN(3), d)
			} else {
				v.deleteFIFO(d)
			}
		case what < 4:
			if v.hideFIFO(rand.IntN(3), d) && rand.IntN(2) == 0 {
				v.deleteFIFO(d)
			}
		case what < 8:
			hidden = append(hidden, d)
		case what < 20:
			v.deleteFIFO(d)
		default:
			rest = append(rest, d)
		}
	}
	v.hideFIFO(rand.IntN(2), failing...)
	if v.hideFIFO(rand.IntN(4), hidden...) {
		rest = append(rest, hidden...)
	}
	v.deleteFIFO(rest...)
}

// awaitLeaseEnd waits until the lease of a message is over, or until another consumer has it.
// While the database is down it waits, too, but not for long.
func (v *torture) awaitLeaseEnd(d *fifoSeen, received bool) {
	tick := time.Tick(10 * pace)
	for range 200 {
		leased := true
		v.db.QueryRow(`
SELECT count(*) > 0
FROM queued.messages
WHERE id = $1
    AND seq = $2
    AND delivery_attempts = $3
    AND ($4 OR scheduled_at > now())`, d.id, d.number, d.attempt, received).Scan(&leased)
		if !leased {
			return
		}
		<-tick
	}
}

// hideFIFO hides messages of one queue for some seconds from now, and reports whether a
// response said that all are.
func (v *torture) hideFIFO(seconds int, all ...*fifoSeen) bool {
	const over = "is not available for visibility timeout change."
	sentAt := time.Now()
	for _, d := range all { // unless a response says otherwise
		d.leasedUntil = time.Time{}
	}
	failed, status := v.changeFIFO("ChangeMessageVisibility", over, map[string]any{"VisibilityTimeout": seconds}, all)
	length := time.Duration(seconds) * time.Second
	until := time.Now().Add(length)
	for i, d := range all {
		switch {
		case status == 0:
			d.until = until.Add(max(aftermath, d.until.Sub(until)))
		case !failed[i]:
			d.leasedUntil, d.until = sentAt.Add(length), until
		}
	}
	return status != 0 && len(failed) == 0
}

// deleteFIFO deletes messages of one queue. It repeats a request without a response.
func (v *torture) deleteFIFO(all ...*fifoSeen) {
	for _, d := range all {
		d.deleteSentAt = time.Now()
	}
	for range 3 {
		failed, status := v.changeFIFO("DeleteMessage", "The receipt handle has expired.", nil, all)
		if status == 0 {
			continue
		}
		for i, d := range all {
			if d.refused = failed[i]; !failed[i] {
				d.deletedAt = time.Now()
			}
		}
		return
	}
}

// changeFIFO sends an action for messages of one queue, with members for each, and returns
// the indexes of those for which it failed. These must have expired leases, which the text
// over says. The status is 0 if there was no response.
func (v *torture) changeFIFO(action, over string, members map[string]any, all []*fifoSeen) (failed map[int]bool, status int) {
	if len(all) == 0 {
		return nil, 200
	}
	failed = make(map[int]bool)
	var entries []map[string]any
	for i, d := range all {
		entry := map[string]any{"Id": fmt.Sprint(i), "ReceiptHandle": d.handle}
		for name, value := range members {
			entry[name] = value
		}
		entries = append(entries, entry)
	}
	if len(all) == 1 {
		status, out := v.sendSQS(context.Background(), all[0].queue, action, entries[0])
		if status == 400 {
			v.refusedSQS(out, over)
			failed[0] = true
		}
		return failed, status
	}
	status, out := v.sendSQS(context.Background(), all[0].queue, action+"Batch", map[string]any{"Entries": entries})
	if status != 200 {
		return nil, 0
	}
	var response struct {
		Successful []struct{ Id string }
		Failed     []struct {
			Id      int `json:",string"`
			Message string
		}
	}
	v.decodeSQS(out, &response)
	for _, e := range response.Failed {
		if failed[e.Id] = true; !strings.Contains(e.Message, over) {
			v.violate("an entry of %sBatch = %s", action, e.Message)
		}
	}
	if len(response.Successful)+len(response.Failed) != len(all) {
		v.violate("%sBatch of %d entries = %s", action, len(all), out)
	}
	return failed, status
}
