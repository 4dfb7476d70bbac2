package shell

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"queued/internal/client"
)

func TestPublishCommandGathersNoMoreThanABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const lines, size = 40, 1_000_000
		line := `{"a":"` + strings.Repeat("a", size-len(`{"a":""}`)-1) + "\"}\n"
		in := strings.NewReader(strings.Repeat(line, lines))
		g := &lineBuffer{publisher: &publisher{}}
		g.changed.L = &g.mu
		go g.read(in)
		taken := 0
		for taken < lines {
			synctest.Wait() // until the reader has read as much as it may
			if held := lines*size - in.Len() - taken*size; held > client.MaxBatchBody+2*size {
				t.Fatalf("%d bytes are read and not taken", held)
			}
			b, err := g.take()
			if size := len(b.body) + len(batchSuffix); err != nil || size > client.MaxBatchBody || len(b.lines) != min(16, lines-taken) {
				t.Fatalf("take = %d lines in %d bytes, %v", len(b.lines), size, err)
			}
			taken += len(b.lines)
		}
		if _, err := g.take(); err != io.EOF {
			t.Errorf("take at the end = %v", err)
		}
	})
}

func TestMessagesWithoutAStartedCommandAreNackedAtTheEnd(t *testing.T) {
	t.Parallel()
	requests := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- r.Method + " " + r.URL.Path + " " + string(body)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(server.Close)
	w := &worker{client: &client.Client{URL: server.URL}, command: "exit 1", stderr: io.Discard, slots: make(chan struct{}, 2), requests: context.Background()}
	if err := w.client.Prepare(io.Discard); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	w.acquireSlots(ctx, 2)
	stop()
	if err := w.work(ctx, []received{{ID: "a", ScheduledAt: "1"}, {ID: "b", ScheduledAt: "2"}}); err != nil || len(w.slots) != 0 {
		t.Errorf("work = %v, and %d slots are taken", err, len(w.slots))
	}
	const want = `PUT /messages/nack {"count_attempt":false,"messages":[{"id":"a","scheduled_at":"1"},{"id":"b","scheduled_at":"2"}]}`
	if got := <-requests; got != want {
		t.Errorf("it requests %s, want %s", got, want)
	}
}

func TestDelayOfFailedCommandsIsBounded(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]time.Duration{0: time.Second, 1: time.Second, 4: 8 * time.Second, 1000: 15 * time.Minute} {
		if got := retryDelay(attempts); got != want {
			t.Errorf("retryDelay(%d) = %v, want %v", attempts, got, want)
		}
	}
}
