package main

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
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
type lane[T any] struct {
	// run carries out a batch and leaves each result in its request. An error
	// is that of the statement, and so of all of them.
	run func(s *session, batch []T) error

	sizes   prometheus.Observer // of batches
	calls   chan *call[T]
	maxRows int // of a batch; one request is taken however large it is
	maxSize int // bytes of a batch, likewise
	db      *sql.DB
	metrics *metrics
	working sync.WaitGroup
	workers atomic.Int32
	closing chan struct{}
	closed  chan struct{} // the workers have ended
}

// call is a request in a lane.
type call[T any] struct {
	ctx     context.Context
	request T
	rows    int
	size    int // bytes
	done    chan error
}

// Bounds of a lane.
const (
	laneDepth    = 10000                  // requests that wait before it refuses more
	laneWorkers  = 2                      // one, and another while a statement of the one takes long
	laneRelief   = 250 * time.Millisecond // which is this
	lanePatience = 3 * time.Second        // for members of a batch one by one, while some fail for locks
)

func newLane[T any](name string, db *sql.DB, m *metrics, maxRows, maxSize int, run func(*session, []T) error) *lane[T] {
	l := &lane[T]{
		run:     run,
		sizes:   m.batches.WithLabelValues(name),
		calls:   make(chan *call[T], laneDepth),
		maxRows: maxRows,
		maxSize: maxSize,
		db:      db,
		metrics: m,
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
	}
	l.relieve(nil)
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

// close ends the workers after what waits has been carried out.
func (l *lane[T]) close() {
	close(l.closing)
	l.working.Wait()
	close(l.closed)
}

// relieve starts a worker, unless there are enough.
func (l *lane[T]) relieve(next *call[T]) bool {
	if l.workers.Add(1) > laneWorkers {
		l.workers.Add(-1)
		return false
	}
	l.working.Go(func() {
		defer l.workers.Add(-1)
		l.work(next)
	})
	return true
}

// work carries out what waits until the lane is closed, or until another worker
// has taken its place while a statement took long. It begins with next, which has
// been taken already.
func (l *lane[T]) work(next *call[T]) {
	s := newSession(l.db, l.metrics)
	defer s.close()
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
		relieved := make(chan bool, 1)
		timer := time.AfterFunc(laneRelief, func() { relieved <- l.relieve(next) })
		l.carryOut(s, batch)
		if !timer.Stop() && <-relieved {
			return
		}
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
	if len(batch) > 1 && (rejected(err) && !temporary(err) || locked(err)) {
		began := time.Now()
		err = nil
		for _, c := range batch {
			// Or it would be so for the others too, one after the other.
			if !errors.Is(err, errUnavailable) || locked(err) && time.Since(began) < lanePatience {
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
