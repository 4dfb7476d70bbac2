package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"queued/internal/rawjson"
)

// receiveAck is a request that receives messages, and acks and nacks earlier ones.
type receiveAck struct {
	queueID string
	limit   int
	wait    time.Duration
	lease   leaseLength
	shows   shown
	acks    []ackItem
	nacks   []ackItem
}

// receiveAck decodes the body of a receive that acks. The body and all its members are
// optional.
func (f *form) receiveAck(l *limits) receiveAck {
	v := receiveAck{limit: 10, shows: f.shownInBody()}
	if n := f.integer("limit", bounds{0, math.MaxInt}, false); n != nil {
		v.limit = *n
	}
	v.limit = min(v.limit, l.maxLimit)
	if raw := f.value("wait_seconds", false); raw != nil {
		v.wait = f.wait(raw, l)
	}
	if n := f.integer("ack_deadline_seconds", leaseBounds, false); n != nil {
		v.lease = ownLease(*n)
	}
	v.acks = f.ackList("ack")
	f.optionalObjects("nack", maxBatch, func(item *form) {
		v.nacks = append(v.nacks, item.nack().of(item.ackItem()))
	})
	if n := len(v.acks) + len(v.nacks); n > maxBatch {
		f.addMistakeCtx(limitCtx{maxBatch}, fmt.Sprintf("ensure ack and nack have at most %d items together", maxBatch), "value_error.list.max_items", "ack")
	}
	acked := make(map[string]bool, len(v.acks))
	for _, a := range v.acks {
		acked[a.id] = true
	}
	for i, a := range v.nacks {
		if acked[a.id] {
			f.addMistake("the message is also in ack", "value_error", "nack", i, "id")
		}
	}
	return v
}

// ackList decodes an optional list of messages to ack. Each item is an id, or an object
// with an id and a lease token.
func (f *form) ackList(name string) (items []ackItem) {
	f.optionalList(name, maxBatch, func(i int, raw []byte) {
		if raw[0] == '"' {
			items = append(items, ackItem{id: f.messageID(raw, name, i)})
			return
		}
		f.element(name, i, raw, func(item *form) { items = append(items, item.ackItem()) })
	})
	return items
}

// shownInBody is like shown, for a list of names in a body.
func (f *form) shownInBody() (v shown) {
	f.optionalList("fields", 10, func(i int, raw []byte) {
		if raw[0] != '"' {
			f.addMistake("str type expected", "type_error.str", "fields", i)
			return
		}
		f.show(rawjson.Unquote(raw), &v, "fields", i)
	})
	return v
}

// receiveAck receives messages, and acks and nacks others at the same time. It returns
// the received messages, and the ids of the others whose lease tokens did not match. The
// acks and nacks do not wait for messages, and are done even if the client disconnects.
// If they fail, the received messages are released. The end of heard ends the long poll.
func (e *engine) receiveAck(heard context.Context, v receiveAck) (d delivery, conflicts []string, err error) {
	ctx, stopWaiting := context.WithCancel(heard)
	defer stopWaiting()
	var ackErr error
	acked := make(chan struct{})
	go func() {
		defer close(acked)
		if conflicts, ackErr = e.ackAll(v.acks, v.nacks); ackErr != nil {
			stopWaiting()
		}
	}()
	if v.limit > 0 {
		d, err = e.take(ctx, dispatcherKey{queueID: v.queueID, lease: v.lease}, v.limit, v.wait)
	}
	<-acked
	if v.limit > 0 && err == nil && ackErr == nil && len(d.messages) == 0 && v.wait == 0 && len(v.acks)+len(v.nacks) > 0 {
		// The next message of an ordered group may have waited for an ack.
		d, err = e.take(ctx, dispatcherKey{queueID: v.queueID, lease: v.lease}, v.limit, 0)
	}
	if ackErr != nil {
		e.release(v.queueID, d.messages)
		return delivery{}, nil, ackErr
	}
	return d, conflicts, err
}

// ackAll acks and nacks messages at the same time, and returns the ids whose lease
// tokens did not match.
func (e *engine) ackAll(acks, nacks []ackItem) (conflicts []string, err error) {
	ctx := context.Background() // acks and nacks are done even if the client disconnects
	var nackErr error
	nacked := make(chan struct{})
	if len(nacks) > 0 {
		go func() {
			defer close(nacked)
			nackErr = e.nack(ctx, nacks...)
		}()
	} else {
		close(nacked)
	}
	if len(acks) > 0 {
		err = e.ack(ctx, acks...)
	}
	<-nacked
	for _, part := range []struct {
		items []ackItem
		err   error
	}{{acks, err}, {nacks, nackErr}} {
		ended, ok := errors.AsType[errLeaseEnded](part.err)
		if part.err != nil && !ok {
			return nil, part.err
		}
		for _, i := range ended.items {
			conflicts = append(conflicts, part.items[i].id)
		}
	}
	return conflicts, nil
}
