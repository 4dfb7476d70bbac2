package shell

import (
	"context"
	"fmt"
	"time"

	"queued/internal/client"
)

// insist is retry for what shall be done also after the end of the work, for a
// while.
func (w *worker) retryAfterEnd(ctx context.Context, do func() error) error {
	late, giveUp := context.WithCancel(w.requests)
	defer giveUp()
	stop := context.AfterFunc(ctx, func() {
		sleep(late, drainTimeout)
		giveUp()
	})
	defer stop()
	return w.retry(late, do)
}

// retry calls do until it succeeds, is refused for good, or ctx has ended. The
// first of several failures is said, and that it works again.
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
		fmt.Fprintf(w.stderr, "queued: %v; trying again until it works\n", err)
	}
}

func (w *worker) logAvailable() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unavailable {
		w.unavailable = false
		fmt.Fprintf(w.stderr, "queued: %s works again\n", w.client.URL)
	}
}

func (w *worker) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.stderr, "queued: "+format+"\n", args...)
}

// sleep waits, and reports whether ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
