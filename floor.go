package main

import "time"

// floor is where the claims of a queue begin: a due time below which nothing is
// left. Without one a claim walks over the rows at the front of the queue that
// are gone, but that PostgreSQL cannot remove as long as a transaction somewhere
// may still see them, and so takes longer and longer.
//
// It is a hint. Every wake names the earliest time that something became due,
// and lowers the floor to it. What nobody named, because a row was locked when a
// claim passed it, or because a notification was lost, is found by the looks of
// engine.lookAround: by the quick one within a second if it became due lately.
type floor struct {
	at     time.Time // by the clock of PostgreSQL; zero: the very front
	lowest time.Time // what wakes have named since the last claim began; zero: the very front
	named  bool      // there was such a wake
	usedAt time.Time // by ours
}

const (
	// floorMargin is how long a publish may take to commit, and so to show rows that
	// are due since it began, without a claim passing them. One that takes longer
	// lowers the floors of other servers before it is answered.
	floorMargin = 50 * time.Millisecond

	// floorIdle is for how long the floor of a queue is kept when nobody claims.
	floorIdle = 10 * time.Second
)

// begin returns where a claim begins.
func (f *floor) begin() (from time.Time) {
	f.named, f.usedAt = false, time.Now()
	return f.at
}

// lower makes room for something that became due at that time; zero is any time.
func (f *floor) lower(dueAt time.Time) {
	if !f.named || dueAt.Before(f.lowest) {
		f.named, f.lowest = true, dueAt
	}
	if dueAt.Before(f.at) {
		f.at = dueAt
	}
}

// raise ends a claim that began at from and took all that was due until last, at
// a time that PostgreSQL's clock calls now.
func (f *floor) raise(from, last, now time.Time) {
	f.at = last.Add(-floorMargin)
	if f.at.Before(from) {
		f.at = from
	}
	if f.named && f.lowest.Before(f.at) {
		f.at = f.lowest
	}
	f.check(now)
}

// check resets a floor that the clock of PostgreSQL has not reached: it was set
// back.
func (f *floor) check(now time.Time) {
	if now.Before(f.at) {
		f.at = time.Time{}
	}
}
