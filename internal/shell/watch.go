package shell

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"queued/internal/client"
)

// settingsInterval is the minimum time between two requests for the settings of the queue
// that a worker receives from.
const settingsInterval = time.Minute

// watchedSettings are the settings of a queue that a worker follows.
type watchedSettings struct {
	readAt time.Time // of the last request; zero before the first
	paused bool

	mu    sync.Mutex
	steps []int // retry backoff, in seconds
}

// readSettings reads the settings of the queue, from time to time. It reports when the queue
// is paused. An error changes nothing: the next receive meets it too, and the token may have
// no permission for this request.
func (w *worker) readSettings(ctx context.Context) {
	v := &w.settings
	if !v.readAt.IsZero() && time.Since(v.readAt) < settingsInterval {
		return
	}
	v.readAt = time.Now()
	var queue struct {
		Paused              bool  `json:"paused"`
		RetryBackoffSeconds []int `json:"retry_backoff_seconds"`
	}
	err := w.client.Call(ctx, http.MethodGet, "/queues/"+w.queue, nil, func(body io.Reader) error {
		if json.NewDecoder(body).Decode(&queue) != nil {
			return client.ErrNotQueued
		}
		return nil
	})
	if err != nil {
		return
	}
	if queue.Paused && !v.paused {
		w.logf("queue %q at %s is paused; its messages are delivered after queued resume %s", w.queue, w.client.Server(), w.queue)
	}
	v.paused = queue.Paused
	v.mu.Lock()
	defer v.mu.Unlock()
	v.steps = queue.RetryBackoffSeconds
}

// backoff returns the retry backoff after a number of delivery attempts, and whether the
// queue has one.
func (v *watchedSettings) backoff(attempts int) (time.Duration, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.steps) == 0 {
		return 0, false
	}
	return time.Duration(v.steps[min(max(attempts, 1), len(v.steps))-1]) * time.Second, true
}
