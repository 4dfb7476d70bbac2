package main

import (
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
var errMoving = errors.New("a message may be moving between database servers")

const selectUnfinishedSQL = `
SELECT queued.unfinished()`

// moved returns the homes of messages of which some are not in the homes of their ids, because
// they have moved. If there are several homes, it asks all of them. It is sure if the messages
// that it has not found are not moving.
//
// A search asks one home after the other, so it misses a message that moves in the meantime.
// Another search finds it, once the transactions that were unfinished in between are finished.
func (s *pinnedConn) moved(ids []string) (all movedHomes, sure bool, err error) {
	if !s.homes.areSeveral() || len(ids) == 0 {
		return nil, true, nil
	}
	var before []string // transactions that were unfinished before the first or the second search
	end := time.Now().Add(lockTimeout)
	for search := 1; ; search++ {
		all = make(movedHomes)
		unfinished, err := read(s, "unfinished_transactions", scanTexts, selectUnfinishedSQL)
		if err == nil {
			_, err = read(s, "homes_of_messages", all.scan, selectHomesOfMessagesSQL, idArray(ids))
		}
		if err != nil && !s.begun && errors.Is(asUnavailable(err), errUnavailable) { // maybe only a node is
			return s.foundInEach(ids), false, nil
		}
		if err != nil {
			return nil, false, err
		}
		now := unfinished[0]
		if search <= 2 {
			before = append(before, now...)
		}
		isEarlier := func(id string) bool { return slices.Contains(before, id) }
		switch waits := slices.ContainsFunc(now, isEarlier); {
		case all.hasAll(ids) || search > 1 && !waits:
			return all, true, nil
		case time.Now().After(end):
			return all, false, nil
		case waits:
			time.Sleep(10 * time.Millisecond)
		}
	}
}

const selectMessagesInHomeSQL = `
SELECT id, home
FROM queued.messages
WHERE home = $1
    AND id = ANY($2::uuid[])`

// foundInEach searches messages in one home after the other, and skips homes whose node does not
// respond.
func (s *pinnedConn) foundInEach(ids []string) movedHomes {
	found := make(movedHomes)
	homes, _ := read(s, "homes", scanKey, selectHomesSQL) // nothing is found after an error
	s.homes.each(homes, func(home int64) error {
		_, err := read(s, "messages_in_home", found.scan, selectMessagesInHomeSQL, home, idArray(ids))
		return err
	})
	return found
}

func scanTexts(row scanner) (all []string, err error) {
	all = []string{}
	err = row.Scan(pq.Array(&all))
	return all, err
}

func (m movedHomes) hasAll(ids []string) bool {
	return !slices.ContainsFunc(ids, func(id string) bool { _, found := m[id]; return !found })
}

// ackAttempts is how often messages that are not where they were found are searched again.
const ackAttempts = 5

// ackMoved acks sorted items whose messages a statement has not found in a home: they may have
// moved to another queue. It returns the ids of those that may be moving.
func (s *pinnedConn) ackMoved(home int64, items []ackItem) (all []queueChange, moving []string, err error) {
	searched := make(map[string]int64) // homes of the last attempt, by id
	for attempt := range ackAttempts {
		found, sure, err := s.moved(idsWithoutReceipt(items))
		if err != nil {
			return all, moving, err
		}
		var again []ackItem
		for _, v := range items {
			at, isThere := found[v.id]
			switch {
			case !isThere && !sure && v.receipt.attempts == 0:
				moving = append(moving, v.id)
			case !s.homes.areSeveral():
				again = append(again, v)
				searched[v.id] = home
			case isThere && (attempt == 0 || at != searched[v.id]):
				again = append(again, v)
				searched[v.id] = at
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
		items = slices.DeleteFunc(again, func(v ackItem) bool { return done[v.id] })
		if len(items) == 0 || !s.homes.areSeveral() {
			return all, moving, nil
		}
	}
	return all, append(moving, idsWithoutReceipt(items)...), nil
}
