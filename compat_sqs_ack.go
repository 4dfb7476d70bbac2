package main

import (
	"context"
	"errors"
	"time"
)

// deleteSQS deletes the messages of the entries. A message of a standard queue is deleted
// also after its lease, unless another receiver has it, which is no error.
func (s *server) deleteSQS(r *request, entries []sqsBatchEntry) error {
	return s.changeSQSMessages(r, entries, s.engine.ack, "The receipt handle has expired.", func(*sqsInput, *ackItem) error { return nil })
}

// changeSQSVisibility hides the messages of the entries for some time from now, or makes
// them visible.
func (s *server) changeSQSVisibility(r *request, entries []sqsBatchEntry) error {
	return s.changeSQSMessages(r, entries, s.engine.changeVisibility, "Message does not exist or is not available for visibility timeout change.", func(in *sqsInput, item *ackItem) error {
		n, err := in.bounded("VisibilityTimeout", sqsVisibility, -1)
		if err == nil && n < 0 {
			err = sqsMissing("VisibilityTimeout")
		}
		item.after = time.Duration(n) * time.Second
		return err
	})
}

// changeSQSMessages changes the messages whose receipt handles the entries have. ended is
// the text of the error if a lease is over, and read reads further parameters.
func (s *server) changeSQSMessages(r *request, entries []sqsBatchEntry, change func(ctx context.Context, items ...ackItem) error, ended string,
	read func(in *sqsInput, item *ackItem) error) error {
	handles := make([]string, len(entries))
	all := make([]ackItem, len(entries))
	for i, v := range entries {
		handles[i] = v.in.text("ReceiptHandle")
		entries[i].err = read(v.in, &all[i])
		if err := v.in.err(); err != nil {
			return err
		}
	}
	q, err := s.recentSQSQueue(r.Context(), r)
	if err != nil {
		return err
	}
	var items []ackItem
	var indexes []int // of the entries of the items
	for i := range entries {
		id, v, ok := readSQSHandle(handles[i])
		if ok && v.queueKey != q.key { // the queue may have been created anew
			found, err := s.store.queue(r.Context(), r.queueID)
			if err != nil {
				return err
			}
			q = r.sqsQueueOf(found)
		}
		switch {
		case handles[i] == "":
			entries[i].err = sqsMissing("ReceiptHandle")
		case !ok || v.queueKey != q.key:
			entries[i].err = sqsInvalidHandle.errorf(`The input receipt handle "%s" is not a valid receipt handle.`, handles[i])
		case entries[i].err == nil:
			v.inLease = q.isFIFO()
			all[i].id, all[i].receipt = id, v
			items, indexes = append(items, all[i]), append(indexes, i)
		}
	}
	if len(items) == 0 {
		return nil
	}
	err = change(r.Context(), items...)
	over, ok := errors.AsType[errLeaseEnded](err)
	if !ok {
		return err
	}
	for _, i := range over.items {
		entry := indexes[i]
		entries[entry].err = sqsInvalidValue(handles[entry], "ReceiptHandle", "%s", ended)
	}
	return nil
}
