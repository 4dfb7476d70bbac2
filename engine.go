package main

import (
	"context"
	"database/sql"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Bounds of the engine.
const (
	publishRows = 2000     // messages stored by a statement, but for a single request that makes more
	publishSize = 16 << 20 // bytes
	ackRows     = 2000     // messages settled by a statement, likewise

	maxReceivers = 100_000 // waiting, in all queues
)

// engine carries out what is done a thousand times a second: publish, receive,
// ack, nack and extend, each in a file of its own.
type engine struct {
	log     *slog.Logger
	metrics *metrics
	db      *sql.DB

	publications *batcher[*publication]
	acks         *batcher[*ackRequest]
	nacks        *batcher[*ackRequest]
	extensions   *batcher[*ackRequest]
	releases     *batcher[[]message]
	finishes     *batcher[*finishing]
	measurings   *batcher[*measuring]
	claimers     chan *pinnedConn // idle ones

	directory directory

	notifier     *notifier
	sweepNow     chan struct{} // asks for a slow look at once
	countsWanted chan struct{} // holds one: another server asks for what the tally has not written yet

	mu          sync.Mutex
	dispatchers map[dispatcherKey]*dispatcher // that have receivers
	watermarks  map[string]*watermarks        // of queues that were claimed from lately, by queue id
	receivers   int                           // waiting, in all of them
	draining    bool
	dispatching sync.WaitGroup
	stop        context.CancelFunc // of what runs in the background
	background  sync.WaitGroup
}

// newEngine starts an engine on connections of its own, so that slow requests
// of other kinds cannot take them. The caller ends it with drain and then close.
func newEngine(d *database, log *slog.Logger, m *metrics, slowLook, quickLook time.Duration) (*engine, error) {
	db, err := d.openForEngine()
	if err != nil {
		return nil, err
	}
	pulse, err := d.openPing()
	if err != nil {
		return nil, err
	}
	m.observePool(db, "engine")
	claimers := d.connections.claimers
	shared := newPinnedConns(db, m, d.connections.batchers)
	n := len(shared)
	ctx, stop := context.WithCancel(context.Background())
	e := &engine{
		log:          log,
		metrics:      m,
		db:           db,
		claimers:     make(chan *pinnedConn, claimers),
		sweepNow:     make(chan struct{}, 1),
		countsWanted: make(chan struct{}, 1),
		dispatchers:  make(map[dispatcherKey]*dispatcher),
		watermarks:   make(map[string]*watermarks),
		stop:         stop,
	}
	// With as many sessions as there are workers, each has one of its own. With fewer,
	// those that are wanted at the same time are apart: the two workers of a lane, and
	// lanes that follow each other here.
	workers := func(lane int) []*pinnedConn { return []*pinnedConn{shared[lane%n], shared[(lane+n/2)%n]} }
	e.publications = newBatcher("publish", workers(0), m, publishRows, publishSize, e.runPublications)
	e.acks = newBatcher("ack", workers(1), m, ackRows, publishSize, e.runAcks)
	e.nacks = newBatcher("nack", workers(2), m, ackRows, publishSize, e.runNacks)
	e.extensions = newBatcher("extend", workers(3), m, ackRows, publishSize, e.runExtensions)
	e.finishes = newBatcher("finish", workers(4), m, ackRows, publishSize, e.runFinishes)
	e.measurings = newBatcher("waiting", workers(5), m, ackRows, publishSize, e.runMeasurings)
	e.releases = newBatcher("release", workers(6), m, ackRows, publishSize, e.runReleases)
	for _, s := range newPinnedConns(db, m, claimers) {
		e.claimers <- s
	}
	e.notifier = newNotifier(shared[n-1], log)
	e.background.Go(func() { e.notifier.send(ctx) })
	e.background.Go(func() { e.notifier.listen(ctx, d, e.onNotification, e.wakeAll) })
	e.background.Go(func() { e.sweepPeriodically(ctx, shared[n/2-1], slowLook, quickLook) })
	e.background.Go(func() {
		defer pulse.Close()
		d.watch(ctx, pulse, log, e.wakeAll)
	})
	m.observeReceivers(e)
	return e, nil
}

// waiting returns how many receivers wait, by queue.
func (e *engine) waiting() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make(map[string]int, len(e.dispatchers))
	for at, d := range e.dispatchers {
		all[at.queueID] += len(d.line)
	}
	return all
}

// drain lets all receivers go with nothing, and those that come later too.
func (e *engine) drain() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.draining = true
	for _, d := range e.dispatchers {
		for _, r := range d.line {
			d.reply(r, delivery{})
		}
		e.receivers -= len(d.line)
		d.line = nil
		d.signal()
	}
}

// close ends the engine once nobody calls it any more.
func (e *engine) close() {
	e.drain()
	e.dispatching.Wait()
	e.publications.close()
	e.acks.close()
	e.nacks.close()
	e.extensions.close()
	e.releases.close()
	e.finishes.close()
	e.measurings.close()
	e.stop()
	e.background.Wait()
	for range cap(e.claimers) {
		(<-e.claimers).end()
	}
	e.db.Close()
}

// runReleases undoes deliveries.
func (e *engine) runReleases(s *pinnedConn, batch [][]message) error {
	all, err := s.undoDeliveries(slices.Concat(batch...))
	if err != nil {
		e.wakeIfUnknown(err)
		return err
	}
	for _, t := range all {
		e.announce(t.queueID, t.dueAt)
	}
	return nil
}

// wakeIfUnknown is for statements that make messages due: one that failed may have
// been carried out, and for which queues that was is unknown.
func (e *engine) wakeIfUnknown(err error) {
	if !rejected(err) {
		e.wakeAll()
	}
}

// announce says that something in the queue becomes due at that time, by the
// clock of PostgreSQL: to the receivers in this process at once, to those in
// others soon. The zero time is now. It is called after the commit.
func (e *engine) announce(queueID string, dueAt time.Time) {
	e.wake(queueID, dueAt)
	e.notifier.add(queueID, dueAt)
}

// onNotification is called for each queue that another server announces, and with wantCounts.
func (e *engine) onNotification(queueID string, dueAt time.Time) {
	if queueID != wantCounts {
		e.wake(queueID, dueAt)
		return
	}
	select {
	case e.countsWanted <- struct{}{}:
	default:
	}
}

// How often the engine looks for what no notification told it of, and how often
// while none can come, or at queues that are being claimed from.
const (
	defaultFullSweep  = 10 * time.Second
	defaultQuickSweep = time.Second

	// sweepMargin is how far below the floor of a queue the quick look goes: rows that
	// are due since a statement began show within its time.
	sweepMargin = networkTimeout

	// sweepShare bounds the time that slow looks take: one part in so many.
	sweepShare = 20
)

// sweepPeriodically wakes the receivers of queues in which something is due without
// their having been told: a notification was lost, or a server died before it
// sent one, or the claims of a queue have passed it. One statement looks at all
// queues that have receivers here, or had some lately.
func (e *engine) sweepPeriodically(ctx context.Context, s *pinnedConn, slowLook, quickLook time.Duration) {
	defer s.end()
	next := time.Now().Add(slowLook) // slow look
	ticker := time.NewTicker(quickLook)
	defer ticker.Stop()
	for {
		slow := true
		select {
		case <-ctx.Done():
			return
		case <-e.sweepNow:
		case <-ticker.C:
			slow = !e.notifier.listening() || time.Now().After(next)
		}
		began := time.Now()
		s.exclusive(func() {
			if err := e.sweep(s, slow); err != nil {
				e.log.Debug("look for what is due", "error", err)
			}
		})
		if slow {
			next = time.Now().Add(max(slowLook, (sweepShare-1)*time.Since(began)))
		}
	}
}

// sweep looks at all queues that have receivers or had some lately, or only a bit
// below the floors of those that have one.
func (e *engine) sweep(s *pinnedConn, slow bool) error {
	e.mu.Lock()
	maps.DeleteFunc(e.watermarks, func(id string, f *watermarks) bool {
		return len(e.dispatchersOf(id)) == 0 && time.Since(f.usedAt) > watermarkIdle
	})
	var ids []string
	var since []claimStart
	for id, f := range e.watermarks {
		// Also where nobody waits right now: a busy queue may never be seen with a line.
		if slow {
			ids, since = append(ids, id), append(since, claimStart{})
		} else if !f.messages.at.IsZero() || !f.groups.at.IsZero() {
			ids, since = append(ids, id), append(since, claimStart{f.messages.below(sweepMargin), f.groups.below(sweepMargin)})
		}
	}
	e.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	found, err := s.nextDue(ids, since)
	if err != nil { // perhaps a connection that was lost: a look can be repeated
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
		if f := e.watermarks[v.queueID]; f != nil {
			f.check(v.now)
			inMessages, inGroups := f.messages.recheck(v.dueAt), f.groups.recheck(v.readyAt)
			hidden = inMessages || inGroups
		}
		if !slow && !hidden {
			continue
		}
		for _, d := range e.dispatchersOf(v.queueID) {
			d.clock.set(v.now)
			if next := v.soonest(); !next.IsZero() {
				d.expectAt(next)
			}
		}
	}
	for _, id := range ids {
		for _, d := range e.dispatchersOf(id) {
			if !exists[id] {
				d.expectAt(time.Time{}) // the claim will find that the queue is gone
			}
		}
	}
	return nil
}
