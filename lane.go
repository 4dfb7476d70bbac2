package main

import (
	"context"
	"database/sql"
	"errors"

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
// rejects a batch for what is in it, its members are tried one by one and only
// the guilty fail; if it lost against another statement in a deadlock, all are
// tried again. When it is unknown what became of a statement, nothing is tried
// again and all its members fail with errUnavailable.
type lane[T any] struct {
	// run carries out a batch and leaves each result in its request. An error
	// is that of the statement, and so of all of them.
	run func(s *session, batch []T) error

	sizes   prometheus.Observer // of batches
	calls   chan *call[T]
	maxRows int // of a batch; one request is taken however large it is
	maxSize int // bytes of a batch, likewise
	closing chan struct{}
	closed  chan struct{} // the worker has ended
}

// call is a request in a lane.
type call[T any] struct {
	ctx     context.Context
	request T
	rows    int
	size    int // bytes
	done    chan error
}

// laneDepth is how many requests wait in a lane before it refuses more.
const laneDepth = 10000

func newLane[T any](name string, db *sql.DB, m *metrics, maxRows, maxSize int, run func(*session, []T) error) *lane[T] {
	l := &lane[T]{
		run:     run,
		sizes:   m.batches.WithLabelValues(name),
		calls:   make(chan *call[T], laneDepth),
		maxRows: maxRows,
		maxSize: maxSize,
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
	}
	go func() {
		defer close(l.closed)
		l.work(newSession(db, m))
	}()
	return l
}

// do waits until the request was carried out. If ctx ends before its turn
// comes it is not, and if ctx ends later, or the lane is closed, that is unknown.
func (l *lane[T]) do(ctx context.Context, request T, rows, size int) error {
	c := &call[T]{ctx: ctx, request: request, rows: rows, size: size, done: make(chan error, 1)}
	select {
	case l.calls <- c:
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

// close ends the worker after what waits has been carried out.
func (l *lane[T]) close() {
	close(l.closing)
	<-l.closed
}

func (l *lane[T]) work(s *session) {
	defer s.close()
	var next *call[T] // taken, but did not fit into the batch before
	for {
		if next == nil {
			select {
			case next = <-l.calls:
			case <-l.closing:
				select {
				case next = <-l.calls:
				default:
					return
				}
			}
		}
		var batch []*call[T]
		batch, next = l.gather(next)
		l.carryOut(s, batch)
	}
}

// gather takes what waits, up to the bounds of a batch. A call that has been
// taken and does not fit any more is returned as next.
func (l *lane[T]) gather(first *call[T]) (batch []*call[T], next *call[T]) {
	rows, size := 0, 0
	for c := first; ; {
		if c.ctx.Err() == nil {
			if len(batch) > 0 && (rows+c.rows > l.maxRows || size+c.size > l.maxSize) {
				return batch, c
			}
			batch, rows, size = append(batch, c), rows+c.rows, size+c.size
		}
		select {
		case c = <-l.calls:
		default:
			return batch, nil
		}
	}
}

func (l *lane[T]) carryOut(s *session, batch []*call[T]) {
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
	if len(batch) > 1 && rejected(err) && !temporary(err) {
		err = nil
		for _, c := range batch {
			if !errors.Is(err, errUnavailable) { // or it would be so for the others too, one after the other
				err = unknown(l.run(s, []T{c.request}))
			}
			c.done <- err
		}
		return
	}
	for _, c := range batch {
		c.done <- unknown(err)
	}
}
