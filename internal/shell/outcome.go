package shell

import (
	"context"
	"encoding/json"
	"net/http"

	"queued/internal/client"
)

// outcome is the ack or nack of a message whose command has ended.
type outcome struct {
	m      *received
	action string // ack or nack
	nack   nackOptions
}

// nackOptions are the members of a nack.
type nackOptions struct {
	DelaySeconds int    `json:"delay_seconds,omitempty"`
	CountAttempt *bool  `json:"count_attempt,omitempty"`
	Error        string `json:"error,omitempty"`
}

// outcomes are sent with the next receive. While a receive is running they are closed, and
// each outcome is sent on its own, because the receive may wait for long.
type outcomes struct {
	closed  bool
	pending []outcome
}

// report sends an outcome with the next receive, or on its own.
func (w *worker) report(ctx context.Context, o outcome) {
	w.outcomesMu.Lock()
	taken := !w.outcomes.closed
	if taken {
		w.outcomes.pending = append(w.outcomes.pending, o)
	}
	w.outcomesMu.Unlock()
	if !taken {
		w.send(ctx, o)
	}
}

// openOutcomes makes outcomes wait for the next receive.
func (w *worker) openOutcomes() {
	w.outcomesMu.Lock()
	defer w.outcomesMu.Unlock()
	w.outcomes.closed = false
}

// takeOutcomes returns the waiting outcomes. Later ones are sent on their own.
func (w *worker) takeOutcomes() []outcome {
	w.outcomesMu.Lock()
	defer w.outcomesMu.Unlock()
	all := w.outcomes.pending
	w.outcomes = outcomes{closed: true}
	return all
}

// send sends an outcome on its own.
func (w *worker) send(ctx context.Context, o outcome) {
	var body []byte
	if o.action == "nack" {
		body, _ = json.Marshal(o.nack) // cannot fail
	}
	err := w.retryAfterEnd(ctx, func() error { return w.finish(o.m, o.action, body, nil) })
	if client.Status(err) == http.StatusConflict {
		w.logf("message %s: the lease ended before the command did; another consumer may have received the message", o.m.ID)
	} else if err != nil {
		w.logf("message %s: %s failed, it will be delivered again: %v", o.m.ID, o.action, err)
	}
}

// receiveRequest is the body of a receive that acks.
type receiveRequest struct {
	Limit       int       `json:"limit"`
	WaitSeconds float64   `json:"wait_seconds"`
	Fields      []string  `json:"fields"`
	Ack         []ackItem `json:"ack,omitempty"`
	Nack        []ackItem `json:"nack,omitempty"`
}

// ackItem is a message with its lease token and, in a nack, the options.
type ackItem struct {
	ID          string `json:"id"`
	ScheduledAt string `json:"scheduled_at"`
	nackOptions
}

// add adds outcomes to the request.
func (r *receiveRequest) add(all []outcome) {
	for _, o := range all {
		item := ackItem{o.m.ID, o.m.ScheduledAt, o.nack}
		if o.action == "ack" {
			r.Ack = append(r.Ack, item)
		} else {
			r.Nack = append(r.Nack, item)
		}
	}
}
