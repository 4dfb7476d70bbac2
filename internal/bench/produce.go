package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"queued/internal/client"
)

// publishBacklog publishes the backlog.
func (b *bench) publishBacklog(ctx context.Context) error {
	var left atomic.Int64
	left.Store(int64(b.settings.backlog))
	var publishers sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for ctx.Err() == nil {
				n := min(left.Add(-client.MaxBatch)+client.MaxBatch, client.MaxBatch)
				if n <= 0 {
					return
				}
				b.publish(int(n), time.Now())
			}
		})
	}
	publishers.Wait()
	if len(b.errors) > 0 {
		return fmt.Errorf("cannot publish the backlog: %v", b.errors)
	}
	return ctx.Err()
}

// produce publishes until the load has ended. With a rate, turn counts the publishes
// that producers have begun.
func (b *bench) produce(start time.Time, turn *atomic.Int64) {
	v := &b.settings
	for !b.ended.Load() {
		var due time.Time
		if v.rate > 0 {
			due = start.Add(time.Duration(float64(turn.Add(1)-1) * float64(v.batch) / v.rate * float64(time.Second)))
			if due.Sub(start) > v.duration {
				return
			}
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
				due = time.Now() // a long sleep must not count as latency of the server
			}
		}
		for v.maxLag > 0 && v.consumers > 0 && b.published.Load()-b.received.Load() > int64(v.maxLag+v.backlog) && !b.ended.Load() {
			time.Sleep(time.Millisecond)
		}
		if v.rate == 0 {
			due = time.Now()
		}
		if !b.publish(v.batch, due) {
			time.Sleep(pause)
		}
	}
}

// publish publishes n messages, and reports whether that succeeded. The latency
// counts from due.
func (b *bench) publish(n int, due time.Time) bool {
	first := b.number(n, due)
	body := make([]byte, 0, n*(b.settings.size+128)+32)
	path := "/queues/" + b.settings.queue + "/messages"
	if n == 1 {
		body = b.appendMessage(body, first)
	} else {
		path += "/batch"
		body = append(body, `{"messages":[`...)
		for i := range n {
			if i > 0 {
				body = append(body, ',')
			}
			body = b.appendMessage(body, first+i)
		}
		body = append(body, "]}"...)
	}
	status, _, err := request(b.server, http.MethodPost, path, body)
	if err != nil || status != http.StatusCreated {
		b.fail(status, err)
		return false
	}
	b.publishing.add(time.Since(due))
	b.mu.Lock()
	for i := first; i < first+n; i++ {
		b.messages[i/blockSize][i%blockSize].published = true
	}
	b.mu.Unlock()
	b.published.Add(int64(n))
	return true
}

// number adds n messages, and returns the number of the first.
func (b *bench) number(n int, sentAt time.Time) (first int) {
	at := uint32(max(0, sentAt.Sub(b.began)/tick))
	b.mu.Lock()
	defer b.mu.Unlock()
	first = b.count
	b.count += n
	for len(b.messages)*blockSize < b.count {
		b.messages = append(b.messages, make([]message, blockSize))
	}
	for i := first; i < b.count; i++ {
		b.messages[i/blockSize][i%blockSize].sentAt = at
	}
	return first
}

// appendMessage appends a message whose data has the size in the settings, or more if the
// number needs it.
func (b *bench) appendMessage(body []byte, number int) []byte {
	body = append(body, '{')
	if groups := b.settings.groups; groups > 0 {
		body = append(body, `"group":"`...)
		body = strconv.AppendInt(body, int64(number%groups), 10)
		body = append(body, `",`...)
	}
	if b.settings.deduplicate {
		body = append(body, `"deduplication_id":"`...)
		body = append(body, b.run...)
		body = append(body, '-')
		body = strconv.AppendInt(body, int64(number), 10)
		body = append(body, `",`...)
	}
	body = append(body, `"data":`...)
	start := len(body)
	body = append(body, `{"bench":"`...)
	body = append(body, b.run...)
	body = append(body, `","n":`...)
	body = strconv.AppendInt(body, int64(number), 10)
	body = append(body, `,"pad":"`...)
	const end = `"}`
	if pad := b.settings.size - (len(body) - start) - len(end); pad > 0 {
		body = append(body, bytes.Repeat([]byte{'a'}, pad)...)
	}
	return append(append(body, end...), '}')
}
