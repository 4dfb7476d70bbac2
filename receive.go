package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"
)

// receiver is a request that wants messages of a queue.
type receiver struct {
	ctx     context.Context // done when the client says no more, and may be gone
	limit   int
	wait    bool          // for something to become due; else one look is enough
	arrival int           // its number among all that came to the dispatcher, from 1
	reply   chan delivery // holds one; who takes the receiver out of the line sends it
}

// delivery is the answer to a receiver: messages, or none after an error or a
// drain.
type delivery struct {
	messages []message
	err      error
	// goodUntil is when the leases may end: the ack deadline after the claim
	// was sent, so before they do, by the clock of this process.
	goodUntil time.Time
}

// Bounds of what one receiver gets, and of for how many of them one statement
// claims, in bytes of data and attributes. A message that is larger goes alone.
const (
	deliverySize = 8 << 20
	claimShares  = 4
	claimRows    = 1000
)

// dispatcher feeds the receivers of one queue, in the order in which they came,
// as long as there are any. One claim serves all that wait. When nothing is due
// it sleeps, and that is the long poll. Receivers that consume have one of their
// own: what they get is deleted, and not leased.
//
// The engine's mutex guards all fields but bell.
type dispatcher struct {
	dispatcherKey
	line        []*receiver
	arrivals    int           // receivers that have come
	served      int           // of these, those who had come before the last claim that did not fail
	nonBlocking int           // receivers in line that do not wait
	woken       bool          // since the last claim began
	clock       clock         // of PostgreSQL
	dueAt       time.Time     // the next time that something becomes due, by that clock; zero if not known
	sleeping    bool          // nothing is due before dueAt, and nothing was announced since that was found
	dueUnknown  bool          // when something becomes due next could not be found out
	signaled    chan struct{} // holds one; rung when the dispatcher should look at its fields
}

// dispatcherKey is where receivers line up.
type dispatcherKey struct {
	queueID  string
	consumes bool
}

func (d *dispatcher) signal() {
	select {
	case d.signaled <- struct{}{}:
	default:
	}
}

// expectAt tells the dispatcher that something is due at that time.
func (d *dispatcher) expectAt(dueAt time.Time) {
	if d.clock.until(dueAt) <= 0 {
		d.woken = true
	} else if d.dueAt.IsZero() || dueAt.Before(d.dueAt) {
		d.dueAt = dueAt
	} else {
		return
	}
	d.signal()
}

// clock tells the time of PostgreSQL: what it was when PostgreSQL last told us,
// and what our monotonic clock has counted since. It is for waiting only; no
// statement sees it.
type clock struct {
	database time.Time
	local    time.Time // of this process
}

func (c *clock) set(told time.Time) {
	c.database, c.local = told, time.Now()
}

// until returns how long it is until t, zero or less if it is past, or if
// either time is not known.
func (c *clock) until(t time.Time) time.Duration {
	if c.database.IsZero() || t.IsZero() {
		return 0
	}
	return t.Sub(c.database) - time.Since(c.local)
}

// receive leases up to limit due messages of the queue, oldest due first: each
// counts one delivery attempt and is hidden until the queue's ack deadline. If
// there is none it waits for one, for at most wait. What it returns may be
// empty; what the caller does not deliver it hands to giveBack. When ctx ends, it
// waits no longer: the client gets what is due already.
func (e *engine) receive(ctx context.Context, queueID string, limit int, wait time.Duration) (delivery, error) {
	return e.take(ctx, dispatcherKey{queueID: queueID}, limit, wait)
}

// consume is receive, but what it returns is deleted, as if it had been acked.
func (e *engine) consume(ctx context.Context, queueID string, limit int, wait time.Duration) (delivery, error) {
	return e.take(ctx, dispatcherKey{queueID: queueID, consumes: true}, limit, wait)
}

func (e *engine) take(ctx context.Context, at dispatcherKey, limit int, wait time.Duration) (delivery, error) {
	r := &receiver{ctx: ctx, limit: limit, wait: wait > 0 && ctx.Err() == nil, reply: make(chan delivery, 1)}
	if err := e.enqueue(at, r); err != nil {
		return delivery{}, err
	}
	var timeout <-chan time.Time // without one the answer comes after one claim
	var ended <-chan struct{}
	if r.wait {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		timeout, ended = timer.C, ctx.Done()
	}
	left := false
	select {
	case v := <-r.reply:
		return v, v.err
	case <-timeout:
		left = e.cancel(at, r)
	case <-ended:
		left = e.endWait(at, r)
	}
	if left {
		return delivery{}, nil
	}
	v := <-r.reply // it is being served
	return v, v.err
}

// enqueue puts a receiver at the end of the line.
func (e *engine) enqueue(at dispatcherKey, r *receiver) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.draining {
		r.reply <- delivery{}
		return nil
	}
	if e.receivers >= maxReceivers {
		return errOverloaded
	}
	e.receivers++
	d := e.dispatchers[at]
	if d == nil {
		d = &dispatcher{dispatcherKey: at, signaled: make(chan struct{}, 1)}
		e.dispatchers[at] = d
		e.dispatching.Go(func() { e.dispatch(d) })
	}
	d.arrivals++
	r.arrival = d.arrivals
	if !r.wait {
		d.nonBlocking++
	}
	d.line = append(d.line, r)
	if !r.wait || !d.sleeping || d.dueUnknown { // else nothing is due, and whoever changes that says so
		d.woken = true
		d.signal()
	}
	return nil
}

// cancel takes a receiver out of the line. It returns false if the receiver is
// not there any more: then its reply is in the channel.
func (e *engine) cancel(at dispatcherKey, r *receiver) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cancelLocked(at, r)
}

// endWait is leave for a receiver that did not want to: if nobody has looked
// whether something is due since it came, it stays for one claim.
func (e *engine) endWait(at dispatcherKey, r *receiver) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.dispatchers[at]
	if d == nil || r.arrival <= d.served || d.sleeping && !d.dueUnknown || !slices.Contains(d.line, r) {
		return e.cancelLocked(at, r)
	}
	r.wait = false
	d.nonBlocking++
	d.woken = true
	d.signal()
	return false
}

func (e *engine) cancelLocked(at dispatcherKey, r *receiver) bool {
	d := e.dispatchers[at]
	if d == nil {
		return false
	}
	i := slices.Index(d.line, r)
	if i < 0 {
		return false
	}
	d.line = slices.Delete(d.line, i, i+1)
	e.receivers--
	if !r.wait {
		d.nonBlocking--
	}
	d.signal()
	return true
}

// release takes messages that their receiver did not get: they are due again as
// if they had never been received, which the next in line is told.
func (e *engine) release(queueID string, messages []message) {
	if len(messages) == 0 {
		return
	}
	// A client that is gone no longer waits for this.
	err := e.releases.do(context.Background(), messages, len(messages), 0)
	if err != nil {
		// They come back when their lease ends.
		e.log.Warn("messages of a receiver that is gone could not be released", "queue", queueID, "count", len(messages), "error", err)
	}
}

// wake tells the receivers of a queue, if there are any, that something in it
// is due at that time.
func (e *engine) wake(queueID string, dueAt time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.watermarks[queueID]; f != nil {
		f.lower(dueAt)
	}
	for _, d := range e.dispatchersOf(queueID) {
		d.expectAt(dueAt)
	}
}

// dispatchersOf returns those of a queue that have receivers. Its caller holds
// the mutex.
func (e *engine) dispatchersOf(queueID string) (all []*dispatcher) {
	for _, consumes := range []bool{false, true} {
		if d := e.dispatchers[dispatcherKey{queueID, consumes}]; d != nil {
			all = append(all, d)
		}
	}
	return all
}

// wakeAll makes every dispatcher look, at the cost of one statement: whatever
// could have been announced was not heard.
func (e *engine) wakeAll() {
	select {
	case e.sweepNow <- struct{}{}:
	default:
	}
}

// dispatch serves the line until it is empty.
func (e *engine) dispatch(d *dispatcher) {
	fruitless := 0 // claims in a row that found nothing although something was due
	for {
		e.mu.Lock()
		if len(d.line) == 0 {
			delete(e.dispatchers, d.dispatcherKey)
			e.mu.Unlock()
			return
		}
		d.woken, d.sleeping, d.dueUnknown, d.dueAt = false, false, false, time.Time{}
		asked, wanted, impatient := d.arrivals, 0, d.nonBlocking > 0
		floors := e.watermarksOf(d.queueID)
		from, groupsFirst := floors.begin(), floors.claims%2 == 0
		shares := min(len(d.line), claimShares)
		for _, r := range d.line {
			if wanted = min(wanted+r.limit, claimRows); wanted == claimRows {
				break
			}
		}
		e.mu.Unlock()

		v := e.claimFor(d.dispatcherKey, from, groupsFirst, wanted, shares*deliverySize)
		if impatient && len(v.messages) == 0 && v.err == nil && from != (claimStart{}) {
			// No look from the front will come in time for those who do not wait.
			v = e.claimFor(d.dispatcherKey, claimStart{}, groupsFirst, wanted, shares*deliverySize)
		}
		left, wait := e.handOut(d, asked, v)
		// Before the next claim, or messages would overtake them.
		e.release(d.queueID, left)
		if errors.Is(v.err, errUnavailable) {
			<-time.After(retryAfterOutage) // for those who go on waiting
			continue
		}
		if !wait || len(v.messages) == wanted {
			continue
		}
		overdue := e.expectNext(d)
		if overdue && len(v.messages) == 0 {
			fruitless++
		} else {
			fruitless = 0
		}
		e.sleep(d, pause(fruitless))
	}
}

// retryAfterOutage is the time between two claims while the database is away.
const retryAfterOutage = 100 * time.Millisecond

// pause returns how long to wait before claiming again what somebody else seems
// to have locked. The first time it may just have become due.
func pause(fruitless int) time.Duration {
	if fruitless <= 1 {
		return 0
	}
	return min(time.Millisecond<<min(fruitless, 10), 100*time.Millisecond)
}

// handOut answers receivers with what was claimed when asked of them had come:
// in the order of the line, each as much as it wants. It returns what nobody
// wants any more, and whether there is reason to wait: receivers that wait, and
// no word of anything due since the claim. Those who were waiting before an outage
// go on waiting, and those who came since are told of it.
func (e *engine) handOut(d *dispatcher, asked int, v delivery) (left []message, wait bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	messages := v.messages
	line := d.line
	d.line = nil
	before := d.served
	patient := 0 // turns of those who have been waiting
	if errors.Is(v.err, errUnavailable) {
		patient = before
	} else {
		d.served = asked
	}
	for i, r := range line {
		if len(messages) == 0 && v.err == nil && d.nonBlocking == 0 {
			if len(d.line) == 0 {
				d.line = line[i:] // ten thousand may wait here
			} else {
				d.line = append(d.line, line[i:]...)
			}
			break
		}
		leaving := r.wait && r.arrival <= before && r.ctx.Err() != nil
		if len(messages) > 0 && !leaving {
			n := share(messages, r.limit)
			d.reply(r, delivery{messages: messages[:n:n], goodUntil: v.goodUntil})
			messages = messages[n:]
		} else if leaving || r.arrival <= asked && (v.err != nil && r.arrival > patient || !r.wait) {
			d.reply(r, delivery{err: v.err})
		} else {
			d.line = append(d.line, r)
		}
	}
	e.receivers -= len(line) - len(d.line)
	return messages, len(d.line) > 0 && !d.woken
}

// reply ends the wait of a receiver that is no longer in the line.
func (d *dispatcher) reply(r *receiver, v delivery) {
	if !r.wait {
		d.nonBlocking--
	}
	r.reply <- v
}

// share returns how many of the messages a receiver gets: at most limit and at
// most deliverySize bytes, but one in any case.
func share(messages []message, limit int) int {
	size := 0
	for n, m := range messages {
		size += m.size
		if n == limit || n > 0 && size > deliverySize {
			return n
		}
	}
	return len(messages)
}

// watermarksOf returns the floors of a queue. Its caller holds the mutex.
func (e *engine) watermarksOf(queueID string) *watermarks {
	f := e.watermarks[queueID]
	if f == nil {
		f = &watermarks{}
		e.watermarks[queueID] = f
	}
	return f
}

// claimFor leases, or consumes, up to limit messages of the queue that are due since
// from, and up to budget bytes: those with a group first, or those without.
func (e *engine) claimFor(at dispatcherKey, from claimStart, groupsFirst bool, limit, budget int) delivery {
	queueID := at.queueID
	s := <-e.claimers
	defer func() { e.claimers <- s }()
	sentAt := time.Now()
	v, err := s.claim(at, from, groupsFirst, limit, budget)
	if errors.Is(err, errQueueNotFound) {
		e.mu.Lock()
		delete(e.watermarks, queueID)
		e.mu.Unlock()
		return delivery{err: err}
	}
	if err != nil {
		// What was locked for a moment, others may have passed over.
		e.announce(queueID, time.Time{})
		return delivery{err: asUnavailable(err)}
	}
	e.mu.Lock()
	e.watermarksOf(queueID).raise(from, v)
	e.mu.Unlock()
	if sizeOf(v.messages) > budget/2 {
		e.announce(queueID, time.Time{}) // likewise, if rows beyond the budget were locked
	}
	if at.consumes {
		v.ackDeadline = noDeadline
	}
	return delivery{messages: v.messages, goodUntil: sentAt.Add(v.ackDeadline)}
}

func sizeOf(messages []message) (size int) {
	for _, m := range messages {
		size += m.size
	}
	return size
}

// noDeadline is for how long what was consumed stays with its receiver.
const noDeadline = 100 * 365 * 24 * time.Hour

// expectNext finds out when the next message of the queue becomes due, and
// reports whether that time is past.
func (e *engine) expectNext(d *dispatcher) (overdue bool) {
	e.mu.Lock()
	f := e.watermarksOf(d.queueID)
	from := claimStart{f.messages.at, f.groups.at}
	e.mu.Unlock()
	s := <-e.claimers
	all, err := s.nextDue([]string{d.queueID}, []claimStart{from})
	e.claimers <- s
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		d.dueUnknown = true
		return false // the slow look goes on trying, and so does whoever comes next
	}
	if len(all) == 0 {
		d.woken = true // the queue is gone, the next claim says so
		return false
	}
	v := all[0]
	d.clock.set(v.now)
	e.watermarksOf(d.queueID).check(v.now)
	if next := v.soonest(); !next.IsZero() && (d.dueAt.IsZero() || next.Before(d.dueAt)) {
		d.dueAt = next
	}
	return !d.dueAt.IsZero() && d.clock.until(d.dueAt) <= 0
}

// sleep returns when the dispatcher should claim again: it was woken, it has
// nobody to wait for any more, or the next message is due, though then not
// before the pause is over.
func (e *engine) sleep(d *dispatcher, pause time.Duration) {
	notBefore := time.Now().Add(pause)
	for {
		e.mu.Lock()
		awake := d.woken || len(d.line) == 0
		wait := time.Duration(math.MaxInt64)
		if !d.dueAt.IsZero() {
			wait = max(d.clock.until(d.dueAt), time.Until(notBefore))
		}
		d.sleeping = !awake && wait > 0
		e.mu.Unlock()
		if !d.sleeping {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-d.signaled:
			timer.Stop()
		case <-timer.C:
			return
		}
	}
}
