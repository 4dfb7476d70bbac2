package main

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/lib/pq"
)

// A message that moves to a queue in another home is deleted on one node and inserted on
// another. These commit one after the other and, after a crash, when Citus finishes the
// transaction. In between, statements find the message on neither node. An ack must not
// succeed then, because the message will be received again.

// errMoving is the error of an ack, nack or extension of a message that may be moving.
var errMoving = errors.New("a message may be moving to another queue")

const (
	selectUnfinishedSQL = `
SELECT queued.unfinished()`

	selectLocationsSQL = `
SELECT id, home, queue_key, seq
FROM queued.messages
WHERE id = ANY($1::uuid[])
    AND expired_at > now()`
)

// location is where a message is now.
type location struct{ home, queueKey, seq int64 }

// locations are those of messages, by id.
type locations map[string]location

func (l locations) scan(row scanner) (any, error) {
	var id string
	var at location
	err := row.Scan(&id, &at.home, &at.queueKey, &at.seq)
	l[id] = at
	return nil, err
}

func (l locations) hasAll(ids []string) bool {
	return !slices.ContainsFunc(ids, func(id string) bool { _, found := l[id]; return !found })
}

// searches is how often a message is searched before it counts as unknown. A search reads one
// home after the other, so it misses a message that moves meanwhile. A move that all searches
// miss is unfinished in between, each time.
const searches = 3

// locate searches messages in all homes. It is sure if those that it does not find are not
// moving, and not on a node that does not respond.
func (s *pinnedConn) locate(ids []string) (all locations, sure bool, err error) {
	if len(ids) == 0 {
		return nil, true, nil
	}
	if s.homes.areSeveral() && !s.homes.allRespond() {
		return s.locateInEach(ids)
	}
	var before []string // transactions that were unfinished before the last search
	end := time.Now().Add(lockTimeout)
	for n := 1; ; n++ {
		all = make(locations)
		_, err := read(s, "locations", all.scan, selectLocationsSQL, idArray(ids))
		if err == nil && (!s.homes.areSeveral() || all.hasAll(ids) || n >= searches) {
			return all, true, nil // where there is one home, a statement sees each message in one queue
		}
		var unfinished [][]string
		if err == nil {
			unfinished, err = read(s, "unfinished_transactions", scanTexts, selectUnfinishedSQL)
		}
		if err != nil && !s.begun && errors.Is(asUnavailable(err), errUnavailable) && s.homes.areSeveral() { // maybe only a node is
			return s.locateInEach(ids)
		}
		if err != nil {
			return nil, false, err
		}
		isEarlier := func(id string) bool { return slices.Contains(before, id) }
		if slices.ContainsFunc(unfinished[0], isEarlier) {
			if time.Now().After(end) {
				return all, false, nil
			}
			n = 0
			time.Sleep(10 * time.Millisecond)
		}
		before = unfinished[0]
	}
}

const selectLocationsInHomeSQL = `
SELECT id, home, queue_key, seq
FROM queued.messages
WHERE home = $1
    AND id = ANY($2::uuid[])
    AND expired_at > now()`

// locateInEach is locate in one home after the other. It skips homes whose node does not
// respond, and homes in which the search fails, unless that has ended a transaction.
func (s *pinnedConn) locateInEach(ids []string) (found locations, sure bool, err error) {
	found = make(locations)
	homes, err := read(s, "homes", scanKey, selectHomesSQL)
	s.homes.each(homes, func(home int64) error {
		_, failed := read(s, "locations_in_home", found.scan, selectLocationsInHomeSQL, home, idArray(ids))
		err = cmp.Or(err, failed)
		return failed
	})
	if !s.begun {
		err = nil
	}
	return found, false, err
}

func scanTexts(row scanner) (all []string, err error) {
	all = []string{}
	err = row.Scan(pq.Array(&all))
	return all, err
}

// ackAttempts is how often messages that are not where they were found are searched again.
const ackAttempts = 5

// ackMoved acks sorted items whose messages a statement has not found in a home: they may have
// moved to another queue. It returns the ids of those that may be moving.
//
// A message is searched until it is acked, or found in no home. With a lease token one attempt
// in a home is enough, because a message that moves loses its lease.
func (s *pinnedConn) ackMoved(home int64, items []ackItem) (all []queueChange, moving []string, err error) {
	searched := make(map[string]int64) // homes of the last attempt, by id
	for _, v := range items {
		searched[v.id] = home
	}
	for range ackAttempts {
		found, sure, err := s.locate(idsWithoutReceipt(items))
		if err != nil {
			return all, moving, err
		}
		var again []ackItem
		for _, v := range items {
			at, isThere := found[v.id]
			switch {
			case v.receipt.attempts > 0:
			case !isThere && !sure:
				moving = append(moving, v.id)
			case isThere && (!v.hasToken() || at.home != searched[v.id]):
				again = append(again, v)
				searched[v.id] = at.home
			}
		}
		before := len(all)
		for at, part := range byHome(again, func(v ackItem) int64 { return searched[v.id] }) {
			acked, err := s.ackIn(at, part)
			if all = append(all, acked...); err != nil {
				return all, moving, err
			}
		}
		done := idsIn(all[before:])
		if items = slices.DeleteFunc(again, func(v ackItem) bool { return done[v.id] }); len(items) == 0 {
			return all, moving, nil
		}
	}
	return all, append(moving, idsWithoutReceipt(items)...), nil
}
