package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"
)

// receiver is a request for messages of a queue.
type receiver struct {
	ctx     context.Context // ends when the client may have disconnected
	limit   int
	wait    bool          // a long poll; otherwise one claim is enough
	arrival int           // number in the order of arrival at the dispatcher, from 1
	reply   chan delivery // capacity 1; gets a value when the dispatcher or drain removes the receiver
}

// delivery is the result of a receive: messages, or none after an error or a drain.
type delivery struct {
	messages []message
	err      error
	// goodUntil is the earliest time that the leases may end, by the clock of this
	// process: their length, counted from when the claim was sent.
	goodUntil time.Time
}

// Limits of a claim. Sizes are bytes of data, attributes and what only SQS's API has.
const (
	deliverySize = 8 << 20 // per receiver; a single message may be larger
	claimShares  = 4       // maximum receivers whose deliverySize a claim adds up
	claimRows    = 1000
)

// dispatcher delivers messages to the receivers of one queue whose claims are equal
// (dispatcherKey), in order of arrival. One claim serves all that wait. It exists as
// long as there are receivers, and goes through three states:
//
//	          ┌───────────────────────────────────────┐
//	          ▼                                       │
//	       claiming ── nothing claimed ──► searching ── due now
//	          ▲                                │
//	          │                          due later, or never
//	a wake-up, the due time,                   ▼
//	a receiver that does not wait ◄──────── sleeping
//
// It begins with a claim, or with a search if the last one of the queue found nothing. A
// wake-up during a claim or a search sets woken, which causes another claim. A waiting
// receiver that arrives while the dispatcher sleeps causes no claim, because nothing is
// due.
//
// The mutex of the engine protects all fields except signaled.
type dispatcher struct {
	dispatcherKey
	line        []*receiver   // waiting, in order of arrival
	arrivals    int           // number of receivers so far
	served      int           // the arrival number that the last successful claim or search covers
	nonBlocking int           // number of receivers in line that do not wait
	woken       bool          // there was a wake-up since the last claim began
	clock       clock         // of PostgreSQL
	dueAt       time.Time     // when the next message is due, by that clock; zero if not known
	sleeping    bool          // nothing is due before dueAt
	dueUnknown  bool          // the search for the next due time failed
	signaled    chan struct{} // capacity 1; ends the sleep
}

// dispatcherKey identifies a dispatcher. Receives of a queue share one if their claims are
// equal.
type dispatcherKey struct {
	queueID  string
	consumes bool
	sqs      bool        // for SQS's API: it also reads the past of messages, and records the first receive of each
	runs     bool        // it takes several messages of a group of an ordered queue at once
	lease    leaseLength // the zero value if it consumes
}

// leaseLength is the length of the leases of a receive. The zero value is the ack deadline of
// the queue.
type leaseLength struct {
	seconds int // 0 for messages that can be received again at once
	own     bool
}

// ownLease returns a length that does not depend on the queue.
func ownLease(seconds int) leaseLength { return leaseLength{seconds, true} }

// or returns the length, or the ack deadline of the queue.
func (v leaseLength) or(ackDeadline time.Duration) time.Duration {
	if v.own {
		return time.Duration(v.seconds) * time.Second
	}
	return ackDeadline
}

// signal makes a sleeping dispatcher check its fields.
func (d *dispatcher) signal() {
	select {
	case d.signaled <- struct{}{}:
	default:
	}
}

// expectAt records that a message or group is due at dueAt. It wakes the dispatcher if
// that time is past, or earlier than the due time that the dispatcher knows.
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

// clock estimates the time of PostgreSQL: the time that its last statement returned,
// plus the time since then on the monotonic clock of this process. The estimate is only
// for waiting, and never enters a statement.
type clock struct {
	database time.Time // as PostgreSQL returned it
	local    time.Time // the same moment by the clock of this process
}

func (c *clock) set(database time.Time) {
	c.database, c.local = database, time.Now()
}

// until returns the time until t. It is zero or less if t is past, and zero if t or the
// time of PostgreSQL is not known.
func (c *clock) until(t time.Time) time.Duration {
	if c.database.IsZero() || t.IsZero() {
		return 0
	}
	return t.Sub(c.database) - time.Since(c.local)
}

// receive is take with leases of the queue's ack deadline.
func (e *engine) receive(ctx context.Context, queueID string, limit int, wait time.Duration) (delivery, error) {
	return e.take(ctx, dispatcherKey{queueID: queueID}, limit, wait)
}

// consume is like receive, but deletes the messages that it returns.
func (e *engine) consume(ctx context.Context, queueID string, limit int, wait time.Duration) (delivery, error) {
	return e.take(ctx, dispatcherKey{queueID: queueID, consumes: true}, limit, wait)
}

// take leases or consumes up to limit due messages of a queue, oldest due first. Each counts
// one delivery attempt, and stays hidden until the end of its lease. If none is due, it waits
// for one, at most for wait, and may return no messages. When ctx ends, it stops waiting and
// returns the messages that are due by then. The caller passes messages that it cannot
// deliver to release.
func (e *engine) take(ctx context.Context, key dispatcherKey, limit int, wait time.Duration) (delivery, error) {
	r := &receiver{ctx: ctx, limit: limit, wait: wait > 0 && ctx.Err() == nil, reply: make(chan delivery, 1)}
	if err := e.enqueue(key, r); err != nil {
		return delivery{}, err
	}
	var timeout <-chan time.Time // nil if the receiver does not wait: the next claim ends in a reply
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
		left = e.cancel(key, r)
	case <-ended:
		left = e.endWait(key, r)
	}
	if left {
		return delivery{}, nil
	}
	v := <-r.reply // the dispatcher has already removed the receiver from the line
	return v, v.err
}

// enqueue adds a receiver to the end of the line. It starts a dispatcher if there is
// none.
func (e *engine) enqueue(key dispatcherKey, r *receiver) error {
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
	d := e.dispatcher(key)
	if d == nil {
		d = &dispatcher{dispatcherKey: key, signaled: make(chan struct{}, 1)}
		e.dispatchers[key.queueID] = append(e.dispatchers[key.queueID], d)
		e.dispatching.Go(func() { e.dispatch(d) })
	}
	d.arrivals++
	r.arrival = d.arrivals
	if !r.wait {
		d.nonBlocking++
	}
	d.line = append(d.line, r)
	if !r.wait || !d.sleeping || d.dueUnknown { // otherwise nothing is due until a wake-up
		d.woken = true
		d.signal()
	}
	return nil
}

// cancel removes a receiver from the line. It returns false if the dispatcher has removed
// it already: then the reply is in the channel, or will be in a moment.
func (e *engine) cancel(key dispatcherKey, r *receiver) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cancelLocked(key, r)
}

// endWait is like cancel, for a client that may have disconnected. If no claim has begun
// since the receiver arrived, the receiver stays in line for one claim, and then gets a
// reply even if it is empty.
func (e *engine) endWait(key dispatcherKey, r *receiver) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.dispatcher(key)
	if d == nil || r.arrival <= d.served || d.sleeping && !d.dueUnknown || !slices.Contains(d.line, r) {
		return e.cancelLocked(key, r)
	}
	r.wait = false
	d.nonBlocking++
	d.woken = true
	d.signal()
	return false
}

func (e *engine) cancelLocked(key dispatcherKey, r *receiver) bool {
	d := e.dispatcher(key)
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

// wake notifies the dispatchers of a queue that a message or group is due at dueAt, and
// lowers the low-water mark.
func (e *engine) wake(queueID string, dueAt time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.watermarks[queueID]; w != nil {
		w.lower(dueAt)
	}
	for _, d := range e.dispatchers[queueID] {
		d.expectAt(dueAt)
	}
}

// dispatcher returns a dispatcher, or nil if it does not exist. The caller holds the mutex.
func (e *engine) dispatcher(key dispatcherKey) *dispatcher {
	for _, d := range e.dispatchers[key.queueID] {
		if d.dispatcherKey == key {
			return d
		}
	}
	return nil
}

// forget removes a dispatcher without receivers. The caller holds the mutex.
func (e *engine) forget(d *dispatcher) {
	left := slices.DeleteFunc(e.dispatchers[d.queueID], func(other *dispatcher) bool { return other == d })
	if len(left) == 0 {
		delete(e.dispatchers, d.queueID)
	} else {
		e.dispatchers[d.queueID] = left
	}
}

// knows reports whether a recent claim found the queue.
func (e *engine) knows(queueID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.watermarks[queueID]
	return w != nil && w.found
}

// sweepSoon starts a full sweep of the queues that this server claimed recently. It is
// called after notifications or wake-ups may have been lost.
func (e *engine) sweepSoon() {
	for _, n := range e.nodes() {
		select {
		case n.sweepNow <- struct{}{}:
		default:
		}
	}
}

// dispatch serves the receivers in line until there are none.
func (e *engine) dispatch(d *dispatcher) {
	emptyClaims := 0 // number in a row, although a message was due
	for {
		e.mu.Lock()
		if len(d.line) == 0 {
			e.forget(d)
			e.mu.Unlock()
			return
		}
		d.woken, d.sleeping, d.dueUnknown, d.dueAt = false, false, false, time.Time{}
		arrivals, asked, wanted := d.arrivals, d.arrivals, 0
		w := e.watermarksOf(d.queueID)
		from, groupsFirst, searchFirst := w.begin(), w.claims%2 == 0, w.empty
		w.empty = true // reset below if this claim finds messages, and by wake-ups from now on
		shares := min(len(d.line), claimShares)
		for _, r := range d.line {
			if wanted = min(wanted+r.limit, claimRows); wanted == claimRows || d.runs {
				break
			}
		}
		if d.runs { // a run must not be divided among receivers, because they would overtake each other
			asked, shares = d.line[0].arrival, 1
		}
		e.mu.Unlock()

		var v delivery
		claims := !searchFirst || e.mayHaveDue(d)
		if claims {
			v = e.claimFor(d.dispatcherKey, from, groupsFirst, wanted, shares*deliverySize)
		}
		if len(v.messages) > 0 || v.err != nil {
			e.notEmpty(w)
		}
		if len(v.messages) == 0 {
			asked = arrivals // there is nothing for the others either
		}
		undelivered, wait := e.handOut(d, asked, v)
		e.release(d.queueID, undelivered) // before the next claim, which would deliver newer messages first
		if errors.Is(v.err, errUnavailable) {
			<-time.After(retryAfterOutage)
			continue
		}
		if !wait || len(v.messages) == wanted {
			continue
		}
		overdue := claims && e.expectNext(d)
		if overdue {
			e.notEmpty(w)
		}
		if overdue && len(v.messages) == 0 {
			emptyClaims++
		} else {
			emptyClaims = 0
		}
		e.sleep(d, pause(emptyClaims))
	}
}

// mayHaveDue looks up the due time of the queue's next message. It returns true if that
// message is due, or if its due time could not be found out.
func (e *engine) mayHaveDue(d *dispatcher) bool {
	overdue := e.expectNext(d)
	e.mu.Lock()
	defer e.mu.Unlock()
	return overdue || d.woken || d.dueUnknown
}

// notEmpty makes the next claim of a queue skip the search for the next due message.
func (e *engine) notEmpty(w *watermarks) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.empty = false
}

// retryAfterOutage is the time between two claims while the database is unavailable.
const retryAfterOutage = 100 * time.Millisecond

// pause returns the time to wait before the next claim of messages that other
// transactions seem to have locked. It is zero after the first empty claim, because the
// messages may just have become due.
func pause(emptyClaims int) time.Duration {
	if emptyClaims <= 1 {
		return 0
	}
	return min(time.Millisecond<<min(emptyClaims, 10), 100*time.Millisecond)
}

// handOut replies to receivers with the messages of a claim, in order of arrival, up to
// the limit of each. asked is the number of receivers that had arrived when the claim
// began. handOut returns the messages that are left, and whether to wait: it is true if
// there are waiting receivers, no wake-up has arrived since the claim began, and each receiver
// that does not wait has a reply.
//
// A receiver that gets no messages stays in line if it waits. An error ends its wait. An
// outage of the database ends it only if no earlier claim covered the receiver.
func (e *engine) handOut(d *dispatcher, asked int, v delivery) (undelivered []message, wait bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	messages := v.messages
	line := d.line
	d.line = nil
	covered := d.served // receivers up to this arrival were covered by an earlier claim
	keepsWaiting := func(r *receiver) bool { return false }
	if errors.Is(v.err, errUnavailable) {
		keepsWaiting = func(r *receiver) bool { return r.wait && r.arrival <= covered }
	} else {
		d.served = asked
	}
	for i, r := range line {
		if len(messages) == 0 && v.err == nil && d.nonBlocking == 0 {
			if len(d.line) == 0 {
				d.line = line[i:] // not copied, because thousands may wait
			} else {
				d.line = append(d.line, line[i:]...)
			}
			break
		}
		disconnected := r.wait && r.arrival <= covered && r.ctx.Err() != nil
		claimed := r.arrival <= asked // the claim was for this receiver too
		switch {
		case disconnected:
			d.reply(r, delivery{err: v.err})
		case len(messages) > 0:
			n := share(messages, r.limit)
			d.reply(r, delivery{messages: messages[:n:n], goodUntil: v.goodUntil})
			if messages = messages[n:]; d.runs { // the rest must not overtake these
				undelivered, messages = messages, nil
			}
		case claimed && (!r.wait || v.err != nil && !keepsWaiting(r)):
			d.reply(r, delivery{err: v.err})
		default:
			d.line = append(d.line, r)
		}
	}
	e.receivers -= len(line) - len(d.line)
	if len(messages) > 0 {
		undelivered = messages
	}
	return undelivered, len(d.line) > 0 && !d.woken && d.nonBlocking == 0
}

// reply sends the result to a receiver that was removed from the line.
func (d *dispatcher) reply(r *receiver, v delivery) {
	if !r.wait {
		d.nonBlocking--
	}
	r.reply <- v
}

// share returns the number of messages for a receiver: at most limit, and at most
// deliverySize bytes unless the first message is larger.
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

// watermarksOf returns the low-water marks of a queue. The caller holds the mutex.
func (e *engine) watermarksOf(queueID string) *watermarks {
	w := e.watermarks[queueID]
	if w == nil {
		w = &watermarks{}
		e.watermarks[queueID] = w
	}
	return w
}

// claimFor leases or consumes up to limit messages and budget bytes for a dispatcher. It
// scans from the given times, and begins with the messages that have a group if
// groupsFirst.
func (e *engine) claimFor(key dispatcherKey, from claimStart, groupsFirst bool, limit, budget int) delivery {
	queueID := key.queueID
	v, sentAt, err := e.claimMessages(key, from, groupsFirst, limit, budget)
	if errors.Is(err, errQueueNotFound) {
		e.mu.Lock()
		delete(e.watermarks, queueID)
		e.mu.Unlock()
		return delivery{err: err}
	}
	if err != nil {
		e.announce(queueID, time.Time{}) // other claims may have skipped rows that this one had locked
		return delivery{err: e.nodeOfQueue(queueID).explain(asUnavailable(err))}
	}
	e.mu.Lock()
	w := e.watermarksOf(queueID)
	w.found = true
	w.raise(from, v)
	e.mu.Unlock()
	if sizeOf(v.messages) > budget/2 {
		e.announce(queueID, time.Time{}) // the claim may have locked rows beyond its budget
	}
	if key.consumes || v.ackDeadline == 0 {
		v.ackDeadline = noDeadline
	}
	return delivery{messages: v.messages, goodUntil: sentAt.Add(v.ackDeadline)}
}

// claimMessages claims for a dispatcher, in a batch with claims of other queues if the
// queue leases messages, and has neither groups nor a retry backoff.
func (e *engine) claimMessages(key dispatcherKey, from claimStart, groupsFirst bool, limit, budget int) (v claimResult, sentAt time.Time, err error) {
	n := e.nodeOfQueue(key.queueID)
	if !key.consumes && !e.claimsAlone(key.queueID) {
		r := &claimRequest{dispatcherKey: key, from: from, limit: limit, budget: budget}
		err := n.claims.doBlocking(r, limit, budget)
		if r.done && !r.alone {
			return r.result, r.sentAt, r.err
		}
		if err != nil {
			return claimResult{}, r.sentAt, err
		}
		// The batch found that the queue needs a claim of its own.
	}
	var s *pinnedConn
	select {
	case s = <-n.claimers:
	case <-n.claims.closed: // the node has no home any more
		return claimResult{}, time.Now(), errUnavailable
	}
	defer func() { n.claimers <- s }()
	sentAt = time.Now()
	v, err = s.claim(key, from, groupsFirst, limit, budget)
	if errors.Is(err, errHomeMoved) {
		v, err = s.claim(key, from, groupsFirst, limit, budget)
	}
	if terms, found := s.settings.terms[key.queueID]; found {
		e.homes.learn(key.queueID, terms.queueKey)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watermarksOf(key.queueID).alone = v.alone
	return v, sentAt, err
}

// claimsAlone reports whether the last claim of a queue had to be one of its own.
func (e *engine) claimsAlone(queueID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.watermarksOf(queueID).alone
}

// sizeOf returns the bytes of data, attributes and what only SQS's API has.
func sizeOf(messages []message) (size int) {
	for _, m := range messages {
		size += m.size
	}
	return size
}

// noDeadline is the ack deadline of messages whose response has no deadline: consumed ones,
// which are not redelivered, and those that are due again at once.
const noDeadline = 100 * 365 * 24 * time.Hour

// dueSearch is a search for the next due message of a queue.
type dueSearch struct {
	queueID string
	from    claimStart
	found   bool // whether the queue exists
	next    nextDue
}

// runSearches runs a batch of searches.
func (e *engine) runSearches(s *pinnedConn, batch []*dueSearch) error {
	ids, since := make([]string, len(batch)), make([]claimStart, len(batch))
	for i, v := range batch {
		ids[i], since[i] = v.queueID, v.from
	}
	all, err := s.nextDue(ids, since)
	if err != nil {
		return err
	}
	byID := make(map[string]nextDue, len(all))
	for _, next := range all {
		byID[next.queueID] = next
	}
	for _, v := range batch {
		v.next, v.found = byID[v.queueID]
	}
	return nil
}

// expectNext looks up the due time of the queue's next message, and reports whether that
// time is past.
func (e *engine) expectNext(d *dispatcher) (overdue bool) {
	e.mu.Lock()
	w := e.watermarksOf(d.queueID)
	from := claimStart{w.messages.at, w.groups.at}
	e.mu.Unlock()
	search := &dueSearch{queueID: d.queueID, from: from}
	err := e.nodeOfQueue(d.queueID).searches.doBlocking(search, 1, 0)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		d.dueUnknown = true
		return false // the next sweep or receiver causes another search
	}
	if !search.found {
		d.woken = true // the queue was deleted; the next claim returns the error
		return false
	}
	v := search.next
	d.clock.set(v.now)
	e.watermarksOf(d.queueID).check(v.now)
	if next := v.soonest(); !next.IsZero() && (d.dueAt.IsZero() || next.Before(d.dueAt)) {
		d.dueAt = next
	}
	return !d.dueAt.IsZero() && d.clock.until(d.dueAt) <= 0
}

// sleep blocks until the dispatcher is woken, its line is empty, or the next message is
// due and the pause is over.
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
