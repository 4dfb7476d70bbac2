package main

import "time"

// watermarks are those of a queue.
type watermarks struct {
	messages watermark // by when they are due; of those without a group
	groups   watermark // by when they are ready
	claims   int       // that have begun
	usedAt   time.Time // by the clock of this process
}

// begin returns where a claim begins.
func (f *watermarks) begin() (from claimStart) {
	f.claims, f.usedAt = f.claims+1, time.Now()
	return claimStart{f.messages.begin(), f.groups.begin()}
}

// claimStart is where a claim begins: zero is the very front.
type claimStart struct{ messages, groups time.Time }

// raise ends a claim that began at from.
func (f *watermarks) raise(from claimStart, v claimResult) {
	f.messages.raise(from.messages, v.ungrouped)
	f.groups.raise(from.groups, v.grouped)
}

// lower makes room for something that became due at that time; zero is any time.
func (f *watermarks) lower(dueAt time.Time) {
	f.messages.lower(dueAt)
	f.groups.lower(dueAt) // which is ready then, or later
}

func (f *watermarks) check(now time.Time) {
	f.messages.check(now)
	f.groups.check(now)
}

// watermark is where the claims of a queue begin: a due time below which nothing is
// left. Without one a claim walks over the rows at the front of the queue that
// are gone, but that PostgreSQL cannot remove as long as a transaction somewhere
// may still see them, and so takes longer and longer.
//
// It is a hint. Every wake names the earliest time that something became due,
// and lowers the floor to it. What nobody named, because a row was locked when a
// claim passed it, or because a notification was lost, is found by the looks of
// engine.sweepPeriodically: by the quick one within a second if it became due lately.
type watermark struct {
	at      time.Time // by the clock of PostgreSQL; zero: the very front
	lowest  time.Time // what wakes have named since the last claim began; zero: the very front
	lowered bool      // there was such a wake
}

const (
	// watermarkMargin is how long a publish may take to commit, and so to show rows that
	// are due since it began, without a claim passing them. One that takes longer
	// lowers the floors of other servers before it is answered.
	watermarkMargin = 50 * time.Millisecond

	// watermarkIdle is for how long the floor of a queue is kept when nobody claims.
	watermarkIdle = 10 * time.Second
)

// begin returns where a claim begins.
func (f *watermark) begin() (from time.Time) {
	f.lowered = false
	return f.at
}

// lower makes room for something that became due at that time; zero is any time.
func (f *watermark) lower(dueAt time.Time) {
	if !f.lowered || dueAt.Before(f.lowest) {
		f.lowered, f.lowest = true, dueAt
	}
	if dueAt.Before(f.at) {
		f.at = dueAt
	}
}

// recheck is told what is due next as a look has seen it; zero is nothing. It
// reports whether that was hidden below the floor, which it is not any more.
func (f *watermark) recheck(dueAt time.Time) bool {
	hidden := !dueAt.IsZero() && dueAt.Before(f.at)
	if hidden {
		f.lower(dueAt)
	}
	return hidden
}

// below returns a time that is so far below the floor; zero if there is none.
func (f *watermark) below(by time.Duration) time.Time {
	if f.at.IsZero() {
		return f.at
	}
	return f.at.Add(-by)
}

// raise ends a claim that began at from.
func (f *watermark) raise(from time.Time, v claimPart) {
	if v.last.IsZero() {
		return
	}
	f.at = v.last.Add(-watermarkMargin)
	if f.at.Before(from) {
		f.at = from
	}
	if f.lowered && f.lowest.Before(f.at) {
		f.at = f.lowest
	}
	f.check(v.now)
}

// check resets a floor that the clock of PostgreSQL has not reached: it was set
// back.
func (f *watermark) check(now time.Time) {
	if now.Before(f.at) {
		f.at = time.Time{}
	}
}
