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

// errOverloaded says that too much is waiting already.
var errOverloaded = errors.New("too many requests are waiting")

// A lane is where requests of one kind gather to share a statement. Its worker
// takes all that wait, runs them as one statement, commits, and answers
// everyone: there is no timer, so an idle lane runs a request at once, and a
// busy one makes batches by itself. A commit costs the same for one row as for
// a hundred, which is why there is one worker: two make smaller batches.
//
// A request never hurts another that shares its statement: if PostgreSQL
// rejects a batch for what is in it, or because somebody else holds the lock of
// one of its rows, its members are tried one by one and only the guilty fail; if
// it lost against another statement in a deadlock, all are tried again. When it
// is unknown what became of a statement, nothing is tried again and all its
// members fail with errUnavailable. A statement that takes long stops nobody who
// comes later: another worker goes on.
type batcher[T any] struct {
	// run carries out a batch and leaves each result in its request. An error
	// is that of the statement, and so of all of them.
	run func(s *pinnedConn, batch []T) error

	sizes   prometheus.Observer // of batches
	waiting chan *batchedRequest[T]
	maxRows int // of a batch; one request is taken however large it is
	maxSize int // bytes of a batch, likewise

	// turn holds what a worker must have to take requests. It gives it away while its
	// statement takes long.
	token   chan struct{}
	next    *batchedRequest[T] // of who has the turn: taken, but did not fit into the batch before
	closing chan struct{}
	drained chan struct{} // nothing waits any more, and nothing will
	closed  chan struct{} // the workers have ended
	working sync.WaitGroup
}

// batchedRequest is a request in a lane.
type batchedRequest[T any] struct {
	ctx     context.Context
	request T
	rows    int
	size    int // bytes
	done    chan error
}

// Bounds of a lane.
const (
	batcherCapacity   = 10000                  // requests that wait before it refuses more
	batcherWorkers    = 2                      // of a lane: one, and another while a statement of the one takes long
	secondWorkerAfter = 250 * time.Millisecond // that is this
	batchLockTimeouts = 3                      // members of a batch, one by one, that may wait in vain for a lock
)

// newBatcher starts a lane with a worker for each of the sessions.
func newBatcher[T any](name string, sessions []*pinnedConn, m *metrics, maxRows, maxSize int, run func(*pinnedConn, []T) error) *batcher[T] {
	l := &batcher[T]{
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
	l.token <- struct{}{}
	for _, s := range sessions {
		l.working.Go(func() { l.work(s) })
	}
	return l
}

// do waits until the request was carried out. If ctx ends before its turn
// comes it is not, and if ctx ends later, or the lane is closed, that is unknown.
func (l *batcher[T]) do(ctx context.Context, request T, rows, size int) error {
	c := &batchedRequest[T]{ctx: ctx, request: request, rows: rows, size: size, done: make(chan error, 1)}
	select {
	case l.waiting <- c:
	default:
		return errOverloaded
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closed:
		return errUnavailable
	}
}

// close ends the workers after what waits has been carried out.
func (l *batcher[T]) close() {
	close(l.closing)
	l.working.Wait()
	close(l.closed)
}

// work carries out what waits until the lane is closed.
func (l *batcher[T]) work(s *pinnedConn) {
	defer s.end()
	mine := false // the turn
	for {
		if !mine {
			select {
			case <-l.token:
				mine = true
			case <-l.drained:
				return
			}
		}
		batch := l.gather()
		if batch == nil {
			close(l.drained)
			return
		}
		relief := time.AfterFunc(secondWorkerAfter, func() { l.token <- struct{}{} })
		s.exclusive(func() { l.runBatch(s, batch) })
		mine = relief.Stop()
	}
}

// gather waits for a request, and takes what waits then, up to the bounds of a
// batch. It returns nil when the lane is closed and nothing waits. A batch may be
// empty, if all who waited have gone.
func (l *batcher[T]) gather() []*batchedRequest[T] {
	c := l.next
	l.next = nil
	if c == nil {
		select {
		case c = <-l.waiting:
		case <-l.closing:
			select {
			case c = <-l.waiting:
			default:
				return nil
			}
		}
	}
	batch := make([]*batchedRequest[T], 0, 1)
	rows, size := 0, 0
	for {
		if c.ctx.Err() == nil {
			if len(batch) > 0 && (rows+c.rows > l.maxRows || size+c.size > l.maxSize) {
				l.next = c
				return batch
			}
			batch, rows, size = append(batch, c), rows+c.rows, size+c.size
		}
		select {
		case c = <-l.waiting:
		default:
			return batch
		}
	}
}

func (l *batcher[T]) runBatch(s *pinnedConn, batch []*batchedRequest[T]) {
	if len(batch) == 0 {
		return
	}
	l.sizes.Observe(float64(len(batch)))
	requests := make([]T, len(batch))
	for i, c := range batch {
		requests[i] = c.request
	}
	err := l.run(s, requests)
	if pq.As(err, pqerror.TRDeadlockDetected) != nil {
		err = l.run(s, requests)
	}
	if len(batch) > 1 && (blamesOne(err) || locked(err)) {
		waits := 0
		err = nil
		for _, c := range batch {
			// Or it would be so for the others too, one after the other.
			if !errors.Is(err, errUnavailable) || locked(err) && waits < batchLockTimeouts {
				err = asUnavailable(l.run(s, []T{c.request}))
				if locked(err) {
					waits++
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
