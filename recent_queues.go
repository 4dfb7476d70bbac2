package main

import (
	"context"
	"sync"
	"time"
)

// recentQueues are queues that were read a moment ago.
type recentQueues struct {
	mu   sync.Mutex
	byID map[string]*recentQueue
}

// recentQueue is the result of one lookup. Requests that need it at the same time wait for
// the same lookup.
type recentQueue struct {
	began  time.Time
	lookUp sync.Once
	queue  queue
	err    error
}

// recentFor is the maximum age of a recent queue.
const recentFor = time.Second

// recentQueue returns a queue as it is or, if another server has changed it, as it was up to
// recentFor ago. A publish names the version of these settings in its statement. A change of
// messages reads the queue again if its key differs. A receive may follow settings that are
// recentFor old.
func (s *store) recentQueue(ctx context.Context, id string) (queue, error) {
	v := s.recent.of(id)
	v.lookUp.Do(func() { v.queue, v.err = s.queue(context.WithoutCancel(ctx), id) })
	if v.err != nil {
		s.recent.forget(id, v)
	}
	return v.queue, v.err
}

// of returns a lookup of a queue that is not too old.
func (r *recentQueues) of(id string) *recentQueue {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.byID[id]
	if v == nil || time.Since(v.began) > recentFor {
		if r.byID == nil || len(r.byID) >= settingsKept {
			r.byID = make(map[string]*recentQueue)
		}
		v = &recentQueue{began: time.Now()}
		r.byID[id] = v
	}
	return v
}

// forget forgets a lookup.
func (r *recentQueues) forget(id string, v *recentQueue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[id] == v {
		delete(r.byID, id)
	}
}

// clear forgets all lookups. It is called after each change of settings by this server.
func (r *recentQueues) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID = nil
}
