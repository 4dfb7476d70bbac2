package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the engine.
const (
	publishRows = 2000     // maximum messages per INSERT; a single request may have more
	publishSize = 16 << 20 // maximum bytes per INSERT; the same
	ackRows     = 2000     // maximum messages per ack, nack or extend; the same

	maxReceivers = 100_000 // maximum waiting receivers of all queues
)

// engine executes the frequent operations: publish (publish.go, deduplicate.go), receive (receive.go,
// claim*.go), ack, nack and extend (ack.go, nack.go), and the release of messages that no
// receiver got (release.go). Their statements run on a node (node.go, placement.go).
type engine struct {
	log     *slog.Logger
	metrics *metrics
	homes   *homes
	origin  string // of notifications

	main       *node                      // the server of -database-url
	placements atomic.Pointer[placements] // nil without Citus
	followNow  chan struct{}              // requests a reading of the placements at once

	depth     *depthCollector // set before the first publish
	directory directory
	expiries  expiries
	held      heldIDs

	fullSweep, quickSweep time.Duration // intervals

	distributed chan struct{} // capacity 1; signals that another server has distributed the tables

	mu          sync.Mutex
	dispatchers map[string][]*dispatcher // of queues with waiting receivers, by queue id
	watermarks  map[string]*watermarks   // of recently claimed queues, by queue id
	receivers   int                      // number of waiting receivers
	draining    bool
	dispatching sync.WaitGroup
}

// newEngine starts an engine. The caller ends it with drain and then close.
func newEngine(d *database, log *slog.Logger, m *metrics, fullSweep, quickSweep time.Duration) (_ *engine, err error) {
	e := &engine{
		log:         log,
		metrics:     m,
		homes:       &d.homes,
		origin:      rand.Text(),
		followNow:   make(chan struct{}, 1),
		fullSweep:   fullSweep,
		quickSweep:  quickSweep,
		distributed: make(chan struct{}, 1),
		dispatchers: make(map[string][]*dispatcher),
		watermarks:  make(map[string]*watermarks),
	}
	d.homes.engine = e
	if e.main, err = e.openNode("", d); err != nil {
		return nil, err
	}
	e.startNode(e.main)
	m.observeReceivers(e)
	return e, nil
}

// waiting returns the number of waiting receivers by queue id.
func (e *engine) waiting() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make(map[string]int, len(e.dispatchers))
	for queueID, dispatchers := range e.dispatchers {
		for _, d := range dispatchers {
			all[queueID] += len(d.line)
		}
	}
	return all
}

// drain ends the wait of all receivers with an empty result. Receivers that arrive later
// do not wait.
func (e *engine) drain() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.draining = true
	for _, dispatchers := range e.dispatchers {
		for _, d := range dispatchers {
			for _, r := range d.line {
				d.reply(r, delivery{})
			}
			e.receivers -= len(d.line)
			d.line = nil
			d.signal()
		}
	}
}

// close ends the engine. No other method may be running.
func (e *engine) close() {
	e.drain()
	e.dispatching.Wait()
	for _, n := range e.nodes() {
		n.close()
	}
	if v := e.placements.Load(); v != nil {
		for _, n := range v.left {
			n.close()
		}
	}
}

// sweepIfUnknown starts a full sweep after a statement whose outcome is unknown, because
// it may have made messages due. The periodic sweeps of other servers find these too.
func (e *engine) sweepIfUnknown(err error) {
	if !rejected(err) {
		e.sweepSoon()
	}
}

// announce wakes the receivers of a queue in which a message or group is due at dueAt, by
// the clock of PostgreSQL; the zero time means now. It wakes the receivers of this
// process at once, and those of other servers soon. It is called after the commit.
func (e *engine) announce(queueID string, dueAt time.Time) {
	e.wake(queueID, dueAt)
	e.nodeOfQueue(queueID).notifier.add(queueID, dueAt)
}

// notifyNow sends the pending notifications of all nodes on the connection of one.
func (e *engine) notifyNow(s *pinnedConn) {
	for _, n := range e.nodes() {
		n.notifier.sendNow(s)
	}
}

// Sweeps find due messages without a wake-up.
const (
	defaultFullSweep  = 10 * time.Second // interval of sweeps of whole queues
	defaultQuickSweep = time.Second      // interval of sweeps just below the low-water marks

	// sweepMargin is how far below the mark a quick sweep scans. A published row is due
	// from the start of its statement and visible from its commit, which is at most this
	// later. A full sweep finds older ones, such as released messages.
	sweepMargin = networkTimeout

	// sweepShare limits full sweeps to a twentieth of the time.
	sweepShare = 20
)

// sweepPeriodically wakes receivers for due messages whose wake-up was lost: because a
// notification was lost, because a server died before it sent one, or because a claim
// skipped a locked row. One statement checks all queues of the node that were claimed
// recently. While the listener is not connected, every sweep is a full one.
func (e *engine) sweepPeriodically(ctx context.Context, n *node) {
	s := n.sweeper
	defer s.end()
	next := time.Now().Add(e.fullSweep)
	ticker := time.NewTicker(e.quickSweep)
	defer ticker.Stop()
	for {
		full := true
		select {
		case <-ctx.Done():
			return
		case <-n.sweepNow:
		case <-ticker.C:
			full = !n.notifier.listening() || time.Now().After(next)
		}
		began := time.Now()
		s.exclusive(func() {
			if err := e.sweep(n, s, full); err != nil {
				e.log.Debug("sweep failed", "error", err)
			}
			if full && n == e.main {
				e.noticeDistribution(s)
			}
		})
		if full {
			next = time.Now().Add(max(e.fullSweep, (sweepShare-1)*time.Since(began)))
		}
	}
}

// sweep wakes the receivers of queues of a node with due messages. A full sweep checks whole
// queues; a quick one checks just below the low-water marks.
func (e *engine) sweep(n *node, s *pinnedConn, full bool) error {
	e.mu.Lock()
	maps.DeleteFunc(e.watermarks, func(id string, w *watermarks) bool {
		return len(e.dispatchers[id]) == 0 && time.Since(w.usedAt) > watermarkIdle
	})
	var ids []string
	var since []claimStart
	for id, w := range e.watermarks {
		if e.nodeOfQueue(id) != n {
			continue
		}
		// Queues without a waiting receiver are checked too, because the receivers of a
		// busy queue never wait for long.
		if full {
			ids, since = append(ids, id), append(since, claimStart{})
		} else if !w.messages.at.IsZero() || !w.groups.at.IsZero() {
			ids, since = append(ids, id), append(since, claimStart{w.messages.below(sweepMargin), w.groups.below(sweepMargin)})
		}
	}
	e.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	found, err := s.nextDue(ids, since)
	if err != nil { // the connection may have been lost; the statement only reads, so it may be retried
		if found, err = s.nextDue(ids, since); err != nil {
			return err
		}
	}
	exists := make(map[string]bool, len(found))
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range found {
		exists[v.queueID] = true
		hidden := false
		if w := e.watermarks[v.queueID]; w != nil {
			w.check(v.now)
			inMessages, inGroups := w.messages.recheck(v.dueAt), w.groups.recheck(v.readyAt)
			hidden = inMessages || inGroups
		}
		if !full && !hidden {
			continue
		}
		for _, d := range e.dispatchers[v.queueID] {
			d.clock.set(v.now)
			if next := v.soonest(); !next.IsZero() {
				d.expectAt(next)
			}
		}
	}
	for _, id := range ids {
		for _, d := range e.dispatchers[id] {
			if !exists[id] {
				d.expectAt(time.Time{}) // the next claim finds that the queue was deleted
			}
		}
	}
	return nil
}
