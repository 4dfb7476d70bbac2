package shell

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"queued/internal/client"
)

// settleAll acks messages at once, or nacks those with which nothing was done, which
// counts no attempt. Those whose leases are over stay as they are, which is said.
func (w *worker) finishAll(ctx context.Context, what string, messages []received) error {
	if len(messages) == 0 {
		return nil
	}
	type item struct {
		ID          string `json:"id"`
		ScheduledAt string `json:"scheduled_at"`
	}
	var items []item
	for _, m := range messages {
		items = append(items, item{m.ID, m.ScheduledAt})
	}
	request := map[string]any{"messages": items}
	if what == "nack" {
		request["count_attempt"] = false
	}
	body, err := json.Marshal(request)
	if err == nil {
		err = w.retryAfterEnd(ctx, func() error {
			return w.client.Call(w.requests, http.MethodPut, "/messages/"+what, body, nil)
		})
	}
	if client.Status(err) == http.StatusConflict {
		w.logf("%v", err)
		return nil
	}
	return err
}

// keep extends the lease of a message, well before its end, until working ends.
func (w *worker) extendLease(working context.Context, m *received) {
	lease := m.lease()
	body := fmt.Appendf(nil, `{"ack_deadline_seconds":%.0f}`, math.Ceil(lease.Seconds()))
	for sleep(working, lease/3) {
		err := w.retry(working, func() error {
			return w.finish(m, "extend", body, func(answer io.Reader) error {
				var now received
				err := json.NewDecoder(answer).Decode(&now)
				if err == nil {
					m.ScheduledAt = now.ScheduledAt
				}
				return err
			})
		})
		if err != nil {
			if working.Err() == nil {
				w.logf("message %s cannot be kept from others while its command runs: %v", m.ID, err)
			}
			return
		}
	}
}

// lease returns how long the lease is, by the clock of the server: at least the
// shortest that there is.
func (m *received) lease() time.Duration {
	from, err := time.Parse(client.TimestampLayout, m.UpdatedAt)
	to, failed := time.Parse(client.TimestampLayout, m.ScheduledAt)
	if err != nil || failed != nil {
		return time.Second
	}
	return max(to.Sub(from), time.Second)
}

// guarded acks, nacks or extends a message that is still in its lease. An answer
// that was lost may have extended it, so a lease is also ours if nobody else has
// received the message since.
func (w *worker) finish(m *received, what string, body []byte, read func(io.Reader) error) error {
	settle := func() error {
		return w.client.Call(w.requests, http.MethodPut, "/messages/"+m.ID+"/"+what+"?scheduled_at="+m.ScheduledAt, body, read)
	}
	err := settle()
	if client.Status(err) != http.StatusConflict {
		return err
	}
	var now received
	failed := w.client.Call(w.requests, http.MethodGet, "/messages/"+m.ID, nil, func(answer io.Reader) error {
		return json.NewDecoder(answer).Decode(&now)
	})
	if failed != nil || now.DeliveryAttempts != m.DeliveryAttempts || now.QueueID != m.QueueID || now.ScheduledAt == m.ScheduledAt {
		return err
	}
	m.ScheduledAt = now.ScheduledAt
	return settle()
}
