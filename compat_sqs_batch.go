package main

import (
	"cmp"
	"fmt"
)

// maxSQSBatch is the maximum number of entries in a batch.
const maxSQSBatch = 10

// sqsBatchEntry is an entry of a batch, with its result or its error.
type sqsBatchEntry struct {
	id     string
	in     *sqsInput
	result sqsObject // without the id
	err    error
}

// batch reads the entries of a batch. Errors of single entries are for the handler to find.
func (in *sqsInput) batch() ([]sqsBatchEntry, error) {
	items := in.structures("Entries")
	all := make([]sqsBatchEntry, len(items))
	for i, item := range items {
		all[i] = sqsBatchEntry{id: item.text("Id"), in: item}
	}
	switch {
	case in.err() != nil:
		return nil, in.err()
	case len(all) == 0:
		return nil, sqsEmptyBatch.errorf("There should be at least one %sRequestEntry in the request.", in.action)
	case len(all) > maxSQSBatch:
		return nil, sqsTooManyEntries.errorf("Maximum number of entries per request are %d. You have sent %d.", maxSQSBatch, len(all))
	}
	seen := make(map[string]bool)
	for _, v := range all {
		if !validSQSWord(v.id) {
			return nil, sqsInvalidEntryID.errorf("A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.")
		}
	}
	for _, v := range all {
		if seen[v.id] {
			return nil, sqsIDsNotDistinct.errorf("Id %s repeated.", v.id)
		}
		seen[v.id] = true
	}
	return all, nil
}

// sqsOne returns the handler of an action for one message, of which the parameters are those of
// an entry.
func sqsOne(change func(s *server, r *request, entries []sqsBatchEntry) error) func(s *server, r *request, in *sqsInput) (sqsObject, error) {
	return func(s *server, r *request, in *sqsInput) (sqsObject, error) {
		entries := []sqsBatchEntry{{in: in}}
		err := change(s, r, entries)
		return nil, cmp.Or(err, entries[0].err)
	}
}

// sqsBatch returns the handler of the same action for a batch.
func sqsBatch(change func(s *server, r *request, entries []sqsBatchEntry) error) func(s *server, r *request, in *sqsInput) (sqsObject, error) {
	return func(s *server, r *request, in *sqsInput) (sqsObject, error) {
		entries, err := in.batch()
		if err != nil {
			return nil, err
		}
		if err := change(s, r, entries); err != nil {
			return nil, err
		}
		return s.sqsBatchResult(r, entries)
	}
}

// sqsBatchResult returns the response to a batch. An error that is no client's fault is the
// error of the request.
func (s *server) sqsBatchResult(r *request, all []sqsBatchEntry) (sqsObject, error) {
	var successful, failed []sqsObject
	for _, v := range all {
		id := sqsMember{"Id", v.id}
		if v.err == nil {
			successful = append(successful, append(sqsObject{id}, v.result...))
			continue
		}
		status, detail := s.explain(r, v.err)
		e := asSQSError(v.err, status, detail)
		if e.sender() != "Sender" {
			return nil, fmt.Errorf("entry %s: %w", v.id, v.err)
		}
		failed = append(failed, sqsObject{id, {"SenderFault", true}, {"Code", e.code}, {"Message", e.text}})
	}
	return sqsObject{{"Successful", successful}, {"Failed", failed}}, nil
}
