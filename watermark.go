package main

import "time"

// watermarks are the low-water marks of a queue.
type watermarks struct {
	messages watermark // due times of messages without a group
	groups   watermark // ready times of groups
	claims   int       // number of claims so far
	found    bool      // a claim found the queue
	alone    bool      // the last claim had to be one of its own
	empty    bool      // the last claim or search found no message, and there was no wake-up since
	usedAt   time.Time // time of the last claim, by the clock of this process
}

// begin starts a claim and returns where it scans from.
func (w *watermarks) begin() (from claimStart) {
	w.claims, w.usedAt = w.claims+1, time.Now()
	return claimStart{w.messages.begin(), w.groups.begin()}
}

// claimStart is where a claim scans from; the zero time is the front of the queue.
type claimStart struct{ messages, groups time.Time }

// raise records the result of a claim that scanned from the given times.
func (w *watermarks) raise(from claimStart, v claimResult) {
	w.messages.raise(from.messages, v.ungrouped)
	w.groups.raise(from.groups, v.grouped)
}

// lower makes the next claim find a message that is due at dueAt. The zero time means that
// its due time is not known.
func (w *watermarks) lower(dueAt time.Time) {
	w.empty = false
	w.messages.lower(dueAt)
	w.groups.lower(dueAt) // the group of the message is ready then or later
}

// check resets the marks if the clock of PostgreSQL was set back.
func (w *watermarks) check(now time.Time) {
	w.messages.check(now)
	w.groups.check(now)
}

// watermark is a low-water mark: the due time that claims of a queue scan from. No due
// message should be left below it. Without it, a claim walks over the deleted rows at the
// front of the queue. PostgreSQL cannot remove these while an old transaction may see
// them, so each claim would take longer than the one before.
//
// The mark is a hint. A wake-up has the earliest due time of the changed messages, and
// lowers the mark to it. A message may get no wake-up, because its row was locked during a
// claim or because a notification was lost. A sweep finds it (engine.sweepPeriodically):
// within a second if it became due recently.
type watermark struct {
	at      time.Time // by the clock of PostgreSQL; zero: the front of the queue
	lowest  time.Time // the earliest wake-up since the last claim began; zero: the front
	lowered bool      // there was such a wake-up
}

const (
	// watermarkMargin is the distance of the mark below the last claimed message. The
	// messages of a publish that commits within this time are never below the mark.
	watermarkMargin = 50 * time.Millisecond

	// slowPublish is the time after which a publish sends its notification before it
	// returns, and does not leave that to the notifier: a claim at another server may
	// have passed its messages. Half of the margin leaves time for the commit, whose end
	// the server sees late.
	slowPublish = watermarkMargin / 2

	// watermarkIdle is how long the marks of a queue are kept without a claim.
	watermarkIdle = 10 * time.Second
)

// begin starts a claim and returns where it scans from.
func (w *watermark) begin() (from time.Time) {
	w.lowered = false
	return w.at
}

// lower makes the next claim find a message that is due at dueAt, zero if not known.
func (w *watermark) lower(dueAt time.Time) {
	if !w.lowered || dueAt.Before(w.lowest) {
		w.lowered, w.lowest = true, dueAt
	}
	if dueAt.Before(w.at) {
		w.at = dueAt
	}
}

// recheck gets the earliest due time that a sweep has found, zero if none. If the time is
// below the mark, recheck lowers the mark and returns true.
func (w *watermark) recheck(dueAt time.Time) bool {
	hidden := !dueAt.IsZero() && dueAt.Before(w.at)
	if hidden {
		w.lower(dueAt)
	}
	return hidden
}

// below returns the time of the mark minus by, or zero if there is no mark.
func (w *watermark) below(by time.Duration) time.Time {
	if w.at.IsZero() {
		return w.at
	}
	return w.at.Add(-by)
}

// raise moves the mark after a claim that scanned from the time from.
func (w *watermark) raise(from time.Time, v claimPart) {
	if v.last.IsZero() {
		return
	}
	w.at = v.last.Add(-watermarkMargin)
	if w.at.Before(from) {
		w.at = from
	}
	if w.lowered && w.lowest.Before(w.at) {
		w.at = w.lowest
	}
	w.check(v.now)
}

// check resets a mark that is in the future: the clock of PostgreSQL was set back.
func (w *watermark) check(now time.Time) {
	if now.Before(w.at) {
		w.at = time.Time{}
	}
}
