package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// errNotAcked is the error of a publish that could not ack, and so published nothing.
type errNotAcked struct{ items []int } // indexes of messages that are not in flight, or in another lease

func (errNotAcked) Error() string { return "the lease of a message to ack has ended" }

// publishAndAck stores publications and acks their messages in one transaction. A
// publication has no effect, and gets errNotAcked, unless all messages that it acks are in
// flight, in the leases of their tokens.
func (e *engine) publishAndAck(s *pinnedConn, batch []*publication) error {
	if len(batch) == 0 {
		return nil
	}
	began := time.Now()
	var stored [][]message
	var readyAt map[int64]time.Time
	var acked []queueChange
	var able []*publication
	var messages []outgoing
	err := s.transaction(func() (err error) {
		able, messages = nil, nil
		leases, moving, err := s.lockLeases(batch)
		if err != nil {
			return err
		}
		var items []ackItem
		for _, p := range batch {
			if failed := leases.take(p.acks); failed != nil {
				p.err = p.notAcked(failed, moving)
				continue
			}
			able, items, messages = append(able, p), append(items, p.acks...), p.appendOutgoing(messages)
		}
		if len(able) == 0 {
			return nil
		}
		if acked, _, err = s.ack(items); err != nil { // none is moving: they are locked
			return err
		}
		stored, readyAt, err = s.insert(messages)
		return err
	})
	if len(able) == 0 || errors.Is(err, errStale) {
		return err
	}
	// After an error the outcome may be unknown, so the messages count as due.
	if err != nil {
		stored = nil
	}
	e.wakePublished(messages, stored, readyAt)
	if err != nil {
		e.sweepIfUnknown(err)
		return err
	}
	e.finishPublications(able, stored)
	e.countAcks(acked)
	if time.Since(began) > slowPublish {
		e.notifyNow(s)
	}
	return nil
}

// notAcked returns the error of a publication if messages at some indexes of its acks are not
// in flight: errMoving if one of them may be moving.
func (p *publication) notAcked(failed []int, moving []string) error {
	if slices.ContainsFunc(failed, func(i int) bool { return slices.Contains(moving, p.acks[i].id) }) {
		return errMoving
	}
	return errNotAcked{failed}
}

// leases are messages in flight, by id, with the ends of their leases.
type leases map[string]time.Time

// take removes the messages to ack if all are in flight, in the leases of their tokens.
// Otherwise it returns the indexes of the other messages.
func (l leases) take(items []ackItem) (failed []int) {
	for i, item := range items {
		leasedUntil, inFlight := l[item.id]
		if !inFlight || !item.leasedUntil.IsZero() && !item.leasedUntil.Equal(leasedUntil) {
			failed = append(failed, i)
		}
	}
	if failed == nil {
		for _, item := range items {
			delete(l, item.id)
		}
	}
	return failed
}

const lockLeasesSQL = `
SELECT m.id, ` + leaseEndSQL + `
FROM queued.messages m
WHERE m.home = $1
    AND m.id = ANY($2::uuid[])
    AND m.in_flight
ORDER BY m.id
FOR UPDATE`

// lockLeases locks the messages that publications ack, and returns the ones in flight, and the
// ids of those that may be moving.
func (s *pinnedConn) lockLeases(batch []*publication) (all leases, moving []string, err error) {
	var items []ackItem
	for _, p := range batch {
		items = append(items, p.acks...)
	}
	all = make(leases, len(items))
	_, moving, err = inHomesOfItems(s, sortedItems(items), func(home int64, items []ackItem) ([]string, error) {
		ids, _, _ := ackItemArgs(items)
		return read(s, "lock_leases", func(row scanner) (id string, err error) {
			var leasedUntil time.Time
			err = row.Scan(&id, &leasedUntil)
			all[id] = leasedUntil
			return id, err
		}, lockLeasesSQL, home, ids)
	}, func(id string) []string { return []string{id} })
	return all, moving, err
}

// acks decodes the messages that a publish acks.
func (f *form) acks() []ackItem {
	items := f.ackList("ack")
	seen := make(map[string]bool, len(items))
	for i, item := range items {
		if seen[item.id] && item.id != "" {
			f.addMistake("the message is in ack twice", "value_error", "ack", i)
		}
		seen[item.id] = true
	}
	return items
}

// unackedConflict returns mistakes that name the messages of errNotAcked in the body.
func unackedConflict(err errNotAcked, acks []ackItem) error {
	var mistakes conflict
	for _, i := range err.items {
		mistakes = append(mistakes, mistake{
			Loc:  []any{"body", "ack", i},
			Msg:  fmt.Sprintf("message %s is not in flight, or not in the lease of this scheduled_at", acks[i].id),
			Type: "value_error.lease",
		})
	}
	return mistakes
}
