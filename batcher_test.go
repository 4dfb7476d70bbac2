package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	nodeBatchers   = 10 // batchers of a node
	batcherWorkers = 2  // of each batcher
)

// A batch has one request for each outcome. Its statement returns the errors in order,
// and then succeeds.
func TestBatcherRetriesOnlyWhatDidNothing(t *testing.T) {
	t.Parallel()
	failure := func(code pqerror.Code) error { return &pq.Error{Severity: "ERROR", Code: code} }
	poison, held, lost := failure("22P02"), failure("55P03"), driver.ErrBadConn
	for what, v := range map[string]struct {
		failures    []error
		wantBatches []int // their sizes
		want        []error
	}{
		"success":                 {nil, []int{3}, []error{nil, nil, nil}},
		"one waits for a lock":    {[]error{held, nil, held}, []int{3, 1, 1, 1}, []error{nil, errUnavailable, nil}},
		"two wait for a lock":     {[]error{held, held, nil, held}, []int{5, 1, 1, 1, 1, 1}, []error{errUnavailable, nil, errUnavailable, nil, nil}},
		"three wait for a lock":   {[]error{held, held, nil, held, held}, []int{5, 1, 1, 1, 1}, []error{errUnavailable, nil, errUnavailable, errUnavailable, errUnavailable}},
		"one is rejected":         {[]error{poison, nil, poison}, []int{3, 1, 1, 1}, []error{nil, poison, nil}},
		"deadlock":                {[]error{failure("40P01")}, []int{3, 3}, []error{nil, nil, nil}},
		"deadlock, again":         {[]error{failure("40P01"), failure("40P01")}, []int{3, 3}, []error{errUnavailable, errUnavailable, errUnavailable}},
		"out of disk":             {[]error{failure("53100")}, []int{3}, []error{errUnavailable, errUnavailable, errUnavailable}},
		"unknown outcome":         {[]error{lost}, []int{3}, []error{errUnavailable, errUnavailable, errUnavailable}},
		"lost while one by one":   {[]error{poison, nil, lost}, []int{3, 1, 1}, []error{nil, errUnavailable, errUnavailable}},
		"shutdown is not refusal": {[]error{failure("57P01")}, []int{3}, []error{errUnavailable, errUnavailable, errUnavailable}},
	} {
		var batches []int
		failures := v.failures
		l := &batcher[int]{sizes: prometheus.NewHistogram(prometheus.HistogramOpts{}), run: func(_ *pinnedConn, batch []int) (err error) {
			batches = append(batches, len(batch))
			if len(failures) > 0 {
				err, failures = failures[0], failures[1:]
			}
			return err
		}}
		var batch []*batchedRequest[int]
		for range v.want {
			batch = append(batch, &batchedRequest[int]{ctx: context.Background(), done: make(chan error, 1)})
		}
		l.runBatch(nil, batch)
		checkDiff(t, what+": batches", v.wantBatches, batches)
		for i, c := range batch {
			if err := <-c.done; !errors.Is(err, v.want[i]) {
				t.Errorf("%s: member %d has %v, want %v", what, i, err, v.want[i])
			}
		}
	}
}

// There may be more queues with receivers than requests that a batcher refuses.
func TestFullBatcherRefusesRequestsOrLetsThemWait(t *testing.T) {
	t.Parallel()
	l := &batcher[int]{waiting: make(chan *batchedRequest[int], 1), closed: make(chan struct{})}
	l.waiting <- &batchedRequest[int]{} // it is full
	if err := l.do(context.Background(), 0, 1, 0); !errors.Is(err, errOverloaded) {
		t.Errorf("do = %v, want %v", err, errOverloaded)
	}
	result := make(chan error, 1)
	go func() { result <- l.doBlocking(0, 1, 0) }()
	<-l.waiting
	select { // as a worker, unless the request was refused
	case c := <-l.waiting:
		c.done <- nil
	case err := <-result:
		t.Fatalf("doBlocking = %v, want it to wait", err)
	}
	if err := <-result; err != nil {
		t.Errorf("doBlocking = %v", err)
	}
}

func TestClosedBatcherLeavesNoRequestWaiting(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	l := newBatcher("test", newPinnedConns(s.db, newMetrics(s.db), batcherWorkers), newMetrics(s.db), 10, 10, func(*pinnedConn, []int) error { return nil })
	if err := l.do(context.Background(), 1, 1, 1); err != nil {
		t.Error(err)
	}
	l.close()
	if err := l.do(context.Background(), 1, 1, 1); !errors.Is(err, errUnavailable) {
		t.Errorf("a request to a closed batcher = %v, want errUnavailable", err)
	}
}

func TestBatcherStartsASecondWorkerForSlowStatements(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	began := make(chan int)
	ends := make([]chan bool, 2)
	l := newBatcher("test", newPinnedConns(s.db, newMetrics(s.db), batcherWorkers), newMetrics(s.db), 1, 10, func(_ *pinnedConn, batch []int) error {
		if n := batch[0]; n < len(ends) {
			began <- n
			<-ends[n]
		}
		return nil
	})
	defer l.close()
	done := make(chan error)
	do := func(n int) { done <- l.do(context.Background(), n, 1, 1) }
	for n := range ends {
		ends[n] = make(chan bool)
	}
	quick := func() {
		t.Helper()
		if err := l.do(context.Background(), 9, 1, 1); err != nil {
			t.Error(err)
		}
	}
	go do(0)
	<-began
	quick()
	go do(1)
	<-began // now both workers run a statement
	close(ends[0])
	if err := <-done; err != nil {
		t.Error(err)
	}
	quick() // by the first worker, which is idle
	close(ends[1])
	if err := <-done; err != nil {
		t.Error(err)
	}
	quick()
}
