package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"queued/internal/client"
	"queued/internal/rawjson"
)

// consume receives and acks until the queue is drained after the load. Each receive
// acks the messages of the one before, unless acks are separate requests.
func (b *bench) consume() {
	var ids []string // received and not acked
	for !b.drained.Load() {
		limit := b.settings.limit
		if b.ended.Load() {
			limit = client.MaxBatch
		}
		var status int
		var response []byte
		var err error
		if b.settings.settle == "separate" {
			status, response, err = request(b.receiver, http.MethodGet, fmt.Sprintf("/queues/%s/messages?limit=%d&wait_seconds=%d", b.settings.queue, limit, waitSeconds), nil)
		} else {
			body := fmt.Appendf(nil, `{"limit":%d,"wait_seconds":%d,"ack":%s}`, limit, waitSeconds, jsonList(ids))
			status, response, err = request(b.receiver, http.MethodPost, "/queues/"+b.settings.queue+"/messages/receive", body)
		}
		if err != nil || status != http.StatusOK {
			b.fail(status, err)
			time.Sleep(pause)
			continue
		}
		b.acked.Add(int64(len(ids)))
		ids = b.check(response)
		if b.settings.settle == "separate" {
			b.ack(ids)
			ids = nil
		}
	}
	b.ack(ids)
}

// ack acks messages in a request of its own.
func (b *bench) ack(ids []string) {
	var status int
	var err error
	switch len(ids) {
	case 0:
		return
	case 1:
		status, _, err = request(b.receiver, http.MethodPut, "/messages/"+ids[0]+"/ack", nil)
	default:
		status, _, err = request(b.receiver, http.MethodPut, "/messages/ack", fmt.Appendf(nil, `{"ids":%s}`, jsonList(ids)))
	}
	if err != nil || status != http.StatusNoContent {
		b.fail(status, err)
		return
	}
	b.acked.Add(int64(len(ids)))
}

// jsonList returns a list of ids, which need no escapes, in JSON.
func jsonList(ids []string) string {
	if len(ids) == 0 {
		return "[]"
	}
	return `["` + strings.Join(ids, `","`) + `"]`
}

// check counts the messages of a receive, and returns the ids of the messages of this run.
func (b *bench) check(response []byte) (ids []string) {
	if !json.Valid(response) {
		b.fail(0, errors.New("the response is not JSON"))
		return nil
	}
	now := time.Now()
	rawjson.WalkObject(response, func(name string, messages []byte) {
		if name != "data" {
			return
		}
		rawjson.WalkArray(messages, func(m []byte) {
			var id, run string
			number := -1
			rawjson.WalkObject(m, func(name string, value []byte) {
				switch name {
				case "id":
					id = rawjson.Unquote(value)
				case "data":
					run, number = readData(value)
				}
			})
			if run != b.run {
				b.foreign.Add(1)
				return
			}
			ids = append(ids, id)
			b.receive(number, now)
		})
	})
	return ids
}

// readData returns the run and the number of a message, or -1 if it has no number.
func readData(data []byte) (run string, number int) {
	number = -1
	rawjson.WalkObject(data, func(name string, value []byte) {
		switch name {
		case "bench":
			run = rawjson.Unquote(value)
		case "n":
			number, _ = strconv.Atoi(string(value))
		}
	})
	return run, number
}

// receive records the receipt of a message.
func (b *bench) receive(number int, now time.Time) {
	b.mu.Lock()
	m := &b.messages[number/blockSize][number%blockSize]
	again, sentAt := m.received, time.Duration(m.sentAt)*tick
	m.received = true
	b.mu.Unlock()
	if again {
		b.duplicates.Add(1)
		return
	}
	b.received.Add(1)
	b.receipt.add(now.Sub(b.began) - sentAt)
}

// awaitDrained waits until every published message was received, or until none was
// received and acked for drainTimeout. It returns the number of missing messages.
func (b *bench) awaitDrained(stderr io.Writer) int {
	last, since := b.counts(), time.Now()
	for {
		missing := b.missing()
		if missing == 0 {
			return 0
		}
		if now := b.counts(); now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > drainTimeout {
			return missing
		}
		fmt.Fprintf(stderr, "       %d messages to drain\n", missing)
		time.Sleep(pause)
	}
}

// missing returns the number of published messages that were not received.
func (b *bench) missing() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, block := range b.messages {
		for _, m := range block {
			if m.published && !m.received {
				n++
			}
		}
	}
	return n
}
