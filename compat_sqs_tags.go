package main

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of the tags of a queue.
const (
	maxSQSTags     = 50
	maxSQSTagKey   = 128 // characters
	maxSQSTagValue = 256 // characters
)

func (s *server) sqsTagQueue(r *request, in *sqsInput) (sqsObject, error) {
	tags := in.pairs("Tags")
	if err := in.err(); err != nil {
		return nil, err
	}
	if len(tags) == 0 {
		return nil, sqsMissing("Tags")
	}
	return nil, s.changeSQSQueue(r, func(q *sqsQueue) error { return q.addTags(tags) })
}

func (s *server) sqsUntagQueue(r *request, in *sqsInput) (sqsObject, error) {
	keys := in.texts("TagKeys")
	if err := in.err(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, sqsMissing("TagKeys")
	}
	return nil, s.changeSQSQueue(r, func(q *sqsQueue) error {
		for _, key := range keys {
			delete(q.SQS.Tags, key)
		}
		return nil
	})
}

func (s *server) sqsListQueueTags(r *request, in *sqsInput) (sqsObject, error) {
	found, err := s.store.queue(r.Context(), r.queueID)
	if err != nil {
		return nil, err
	}
	var tags sqsMap
	for key, value := range found.SQS.Tags {
		tags = append(tags, sqsMember{key, value})
	}
	slices.SortFunc(tags, func(a, b sqsMember) int { return strings.Compare(a.name, b.name) })
	return sqsObject{{"Tags", tags}}, nil
}

// addTags adds tags to the queue, or changes their values.
func (q *sqsQueue) addTags(tags []sqsEntry[string]) error {
	for _, v := range tags {
		if v.key == "" || !isSQSText(v.key) || utf8.RuneCountInString(v.key) > maxSQSTagKey {
			return sqsInvalidParameter.errorf("Tag keys must be between 1 and 128 characters in length.")
		}
		if !isSQSText(v.value) || utf8.RuneCountInString(v.value) > maxSQSTagValue {
			return sqsInvalidParameter.errorf("Tag values must be between 0 and 256 characters in length.")
		}
		if q.SQS.Tags == nil {
			q.SQS.Tags = make(map[string]string)
		}
		q.SQS.Tags[v.key] = v.value
	}
	if len(q.SQS.Tags) > maxSQSTags {
		return sqsInvalidParameter.errorf("Too many tags added for queue %s.", q.ID)
	}
	return nil
}
