package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/prometheus/client_golang/prometheus"
)

// errOverloaded is the error of a request that exceeds a limit of the server.
var errOverloaded = errors.New("too many requests are waiting")

// A batcher combines requests of one kind into one statement and one commit. Its
// worker takes all waiting requests, runs them as one statement and returns the
// results. There is no timer: an idle batcher runs a request at once, and a busy
// one forms batches by itself. A commit costs the same for one row as for a
// hundred, so there is one worker: two would form smaller batches.
//
// A request never hurts another that shares its statement. If PostgreSQL rejects
// a batch because of its content or a row lock, the requests are tried one by one
// and only those at fault fail. After a deadlock, or if a home has moved to
// another node, the whole batch is tried again. If the outcome of a statement is
// unknown, nothing is tried again and all its requests fail with errUnavailable.
// While a statement is slow, a second worker runs the requests that arrive later.
type batcher[T any] struct {
	// run executes a batch and stores each result in its request. It returns the
	// error of the statement, which applies to all requests of the batch.
	run func(s *pinnedConn, batch []T) error

	sizes   prometheus.Observer // of batches
	waiting chan *batchedRequest[T]
	maxRows int // rows of a batch; a single request may have more
	maxSize int // bytes of a batch; the same

	token   chan struct{}      // a worker takes requests only while it has the token, and returns it when its statement is slow
	next    *batchedRequest[T] // taken by the holder of the token, but too large for the previous batch
	closing chan struct{}      // closed by close
	drained chan struct{}      // closed when no request is waiting and no other can arrive
	closed  chan struct{}      // closed when all workers have ended
	working sync.WaitGroup
}

// batchedRequest is a request in a batcher.
type batchedRequest[T any] struct {
	ctx     context.Context
	request T
	rows    int
	size    int // bytes
	done    chan error
}

// Limits of a batcher.
const (
	batcherCapacity   = 10000                  // waiting requests; more are refused
	secondWorkerAfter = 250 * time.Millisecond // until a statement counts as slow
	batchLockTimeouts = 3                      // maximum lock timeouts while the requests of a batch are tried one by one
)

// newBatcher starts a batcher with one worker for each connection: one, and a second one for
// when a statement is slow.
func newBatcher[T any](name string, sessions []*pinnedConn, m *metrics, maxRows, maxSize int, run func(*pinnedConn, []T) error) *batcher[T] {
	b := &batcher[T]{
		run:     run,
		sizes:   m.batches.WithLabelValues(name),
		waiting: make(chan *batchedRequest[T], batcherCapacity),
		maxRows: maxRows,
		maxSize: maxSize,
		token:   make(chan struct{}, 1),
		closing: make(chan struct{}),
		drained: make(chan struct{}),
		closed:  make(chan struct{}),
	}
	b.token <- struct{}{}
	for _, s := range sessions {
		b.working.Go(func() { b.work(s) })
	}
	return b
}

// do blocks until the request has been executed. If ctx ends before a worker takes
// the request, it is not executed; if ctx ends later, or the batcher is closed, the
// outcome is unknown.
func (b *batcher[T]) do(ctx context.Context, request T, rows, size int) error {
	c := &batchedRequest[T]{ctx: ctx, request: request, rows: rows, size: size, done: make(chan error, 1)}
	select {
	case b.waiting <- c:
	default:
		return errOverloaded
	}
	return b.await(c)
}

// doBlocking is do for callers whose number is bounded otherwise. If the batcher is full
// it waits instead of refusing the request.
func (b *batcher[T]) doBlocking(request T, rows, size int) error {
	c := &batchedRequest[T]{ctx: context.Background(), request: request, rows: rows, size: size, done: make(chan error, 1)}
	select {
	case b.waiting <- c:
	case <-b.closed:
		return errUnavailable
	}
	return b.await(c)
}

func (b *batcher[T]) await(c *batchedRequest[T]) error {
	select {
	case err := <-c.done:
		return err
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-b.closed:
		return errUnavailable
	}
}

// close runs the waiting requests and ends the workers.
func (b *batcher[T]) close() {
	close(b.closing)
	b.working.Wait()
	close(b.closed)
}

// work runs waiting requests until the batcher is closed.
func (b *batcher[T]) work(s *pinnedConn) {
	defer s.end()
	hasToken := false
	for {
		if !hasToken {
			select {
			case <-b.token:
				hasToken = true
			case <-b.drained:
				return
			}
		}
		batch := b.gather()
		if batch == nil {
			close(b.drained)
			return
		}
		slow := time.AfterFunc(secondWorkerAfter, func() { b.token <- struct{}{} })
		s.exclusive(func() { b.runBatch(s, batch) })
		hasToken = slow.Stop()
	}
}

// gather blocks until a request is waiting and takes all waiting requests, up to
// the limits of a batch. It returns nil when the batcher is closed and no request
// is waiting, and an empty batch if all the clients have disconnected.
func (b *batcher[T]) gather() []*batchedRequest[T] {
	c := b.next
	b.next = nil
	if c == nil {
		select {
		case c = <-b.waiting:
		case <-b.closing:
			select {
			case c = <-b.waiting:
			default:
				return nil
			}
		}
	}
	batch := make([]*batchedRequest[T], 0, 1)
	rows, size := 0, 0
	for {
		if c.ctx.Err() == nil {
			if len(batch) > 0 && (rows+c.rows > b.maxRows || size+c.size > b.maxSize) {
				b.next = c
				return batch
			}
			batch, rows, size = append(batch, c), rows+c.rows, size+c.size
		}
		select {
		case c = <-b.waiting:
		default:
			return batch
		}
	}
}

// runBatch runs a batch and returns the results to its requests.
func (b *batcher[T]) runBatch(s *pinnedConn, batch []*batchedRequest[T]) {
	if len(batch) == 0 {
		return
	}
	b.sizes.Observe(float64(len(batch)))
	requests := make([]T, len(batch))
	for i, c := range batch {
		requests[i] = c.request
	}
	err := b.run(s, requests)
	if pq.As(err, pqerror.TRDeadlockDetected) != nil || errors.Is(err, errHomeMoved) {
		err = b.run(s, requests)
	}
	if len(batch) > 1 && (blamesOne(err) || locked(err)) {
		lockTimeouts := 0
		err = nil
		for _, c := range batch {
			// Once the database is unavailable, or after batchLockTimeouts lock timeouts, the rest
			// of the batch fails without another try.
			if !errors.Is(err, errUnavailable) || locked(err) && lockTimeouts < batchLockTimeouts {
				err = asUnavailable(b.run(s, []T{c.request}))
				if locked(err) {
					lockTimeouts++
				}
			}
			c.done <- err
		}
		return
	}
	for _, c := range batch {
		c.done <- asUnavailable(err)
	}
}
