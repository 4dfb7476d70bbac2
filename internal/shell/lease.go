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

// finishAll acks messages in one request, or nacks them without counting the attempt.
// Messages whose leases have ended stay as they are, and this is logged.
func (w *worker) finishAll(ctx context.Context, action string, messages []received) error {
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
	if action == "nack" {
		request["count_attempt"] = false
	}
	body, err := json.Marshal(request)
	if err == nil {
		err = w.retryAfterEnd(ctx, func() error {
			return w.client.Call(w.requests, http.MethodPut, "/messages/"+action, body, nil)
		})
	}
	if client.Status(err) == http.StatusConflict {
		w.logf("%v", err)
		return nil
	}
	return err
}

// extendLease extends the lease of a message each time a third of it has passed, until
// ctx ends.
func (w *worker) extendLease(ctx context.Context, m *received) {
	lease := m.lease()
	body := fmt.Appendf(nil, `{"ack_deadline_seconds":%.0f}`, math.Ceil(lease.Seconds()))
	for sleep(ctx, lease/3) {
		err := w.retry(ctx, func() error {
			return w.finish(m, "extend", body, func(response io.Reader) error {
				var now received
				err := json.NewDecoder(response).Decode(&now)
				if err == nil {
					m.ScheduledAt = now.ScheduledAt
				}
				return err
			})
		})
		if err != nil {
			if ctx.Err() == nil {
				w.logf("message %s: cannot extend its lease: %v", m.ID, err)
			}
			return
		}
	}
}

// lease returns the length of the lease, at least the shortest ack deadline, 1 s.
func (m *received) lease() time.Duration {
	from, err := time.Parse(client.TimestampLayout, m.UpdatedAt)
	to, failed := time.Parse(client.TimestampLayout, m.ScheduledAt)
	if err != nil || failed != nil {
		return time.Second
	}
	return max(to.Sub(from), time.Second)
}

// finish acks, nacks or extends a message if its lease is still this worker's. After a
// lost response to an extension, scheduled_at is no longer the lease token. Then the lease
// is this worker's if the message has not been delivered since.
func (w *worker) finish(m *received, action string, body []byte, read func(io.Reader) error) error {
	request := func() error {
		return w.client.Call(w.requests, http.MethodPut, "/messages/"+m.ID+"/"+action+"?scheduled_at="+m.ScheduledAt, body, read)
	}
	err := request()
	if client.Status(err) != http.StatusConflict {
		return err
	}
	var now received
	failed := w.client.Call(w.requests, http.MethodGet, "/messages/"+m.ID, nil, func(response io.Reader) error {
		return json.NewDecoder(response).Decode(&now)
	})
	if failed != nil || now.DeliveryAttempts != m.DeliveryAttempts || now.QueueID != m.QueueID || now.ScheduledAt == m.ScheduledAt {
		return err
	}
	m.ScheduledAt = now.ScheduledAt
	return request()
}
