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

// consume receives and acks until the load has ended and all is drained.
func (b *bench) consume() {
	for !b.drained.Load() {
		limit := b.settings.batch
		if b.ended.Load() {
			limit = client.MaxBatch
		}
		status, answer, err := b.request(http.MethodGet, fmt.Sprintf("%s/queues/%s/messages?limit=%d&wait_seconds=%d", b.settings.from, b.settings.queue, limit, benchPoll), nil)
		if err != nil || status != http.StatusOK {
			b.failed(status, err)
			time.Sleep(benchPause)
			continue
		}
		ids := b.check(answer)
		switch {
		case len(ids) == 0:
			continue
		case len(ids) == 1:
			status, _, err = b.request(http.MethodPut, b.settings.from+"/messages/"+ids[0]+"/ack", nil)
		default:
			body := append([]byte(`{"ids":["`), strings.Join(ids, `","`)...)
			status, _, err = b.request(http.MethodPut, b.settings.from+"/messages/ack", append(body, `"]}`...))
		}
		if err != nil || status != http.StatusNoContent {
			b.failed(status, err)
			continue
		}
		b.acked.Add(int64(len(ids)))
	}
}

// check looks at the messages of an answer, and returns the ids of those that
// are of this run.
func (b *bench) check(answer []byte) (ids []string) {
	if !json.Valid(answer) {
		b.failed(0, errors.New("an answer that is not JSON"))
		return nil
	}
	now := time.Now()
	rawjson.WalkObject(answer, func(name string, messages []byte) {
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
					run, number = benchMark(value)
				}
			})
			if run != b.run {
				b.foreign.Add(1)
				return
			}
			ids = append(ids, id)
			b.arrived(number, now)
		})
	})
	return ids
}

// benchMark returns the run and the number in an object of appendMessage.
func benchMark(data []byte) (run string, number int) {
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

// arrived notes that a message was received.
func (b *bench) arrived(number int, now time.Time) {
	b.mu.Lock()
	m := &b.messages[number/benchBlock][number%benchBlock]
	again, sentAt := m.received, time.Duration(m.sentAt)*benchTick
	m.received = true
	b.mu.Unlock()
	if again {
		b.duplicates.Add(1)
		return
	}
	b.received.Add(1)
	b.receipt.add(now.Sub(b.began) - sentAt)
}

// drain waits until all that was published has been received and acked, and
// returns how many messages are missing when nothing comes any more.
func (b *bench) drain(stderr io.Writer) int {
	last, since := b.counts(), time.Now()
	for {
		missing := b.missing()
		if missing == 0 {
			return 0
		}
		if now := b.counts(); now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > benchDrain {
			return missing
		}
		fmt.Fprintf(stderr, "       %d messages to drain\n", missing)
		time.Sleep(benchPause)
	}
}

// missing counts the messages that were published and not received.
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
