package shell

import (
	"context"
	"fmt"
	"time"

	"queued/internal/client"
)

// retryAfterEnd is like retry, for acks and nacks, which continue for drainTimeout after
// ctx has ended.
func (w *worker) retryAfterEnd(ctx context.Context, do func() error) error {
	draining, giveUp := context.WithCancel(w.requests)
	defer giveUp()
	stop := context.AfterFunc(ctx, func() {
		sleep(draining, drainTimeout)
		giveUp()
	})
	defer stop()
	return w.retry(draining, do)
}

// retry calls do until it succeeds, it returns an error that a retry cannot resolve, or
// ctx has ended. It logs when the server becomes unavailable and available again.
func (w *worker) retry(ctx context.Context, do func() error) error {
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		err := do()
		if err == nil || !client.Unavailable(err) {
			w.logAvailable()
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		w.logUnavailable(err)
		if !sleep(ctx, wait) {
			return err
		}
	}
}

func (w *worker) logUnavailable(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.unavailable {
		w.unavailable = true
		fmt.Fprintf(w.stderr, "queued: server unavailable: %v; retrying\n", err)
	}
}

func (w *worker) logAvailable() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unavailable {
		w.unavailable = false
		fmt.Fprintf(w.stderr, "queued: server available again: %s\n", w.client.URL)
	}
}

func (w *worker) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.stderr, "queued: "+format+"\n", args...)
}

// sleep waits for d. It returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
