package main

import (
	"context"
	"errors"
	"time"
)

// The defaults of queues that CreateQueue creates, in seconds.
const (
	sqsVisibilityTimeout   = 30
	sqsRetention           = 4 * 24 * 60 * 60
	sqsDeduplicationWindow = 5 * 60 // of FIFO queues
)

func (s *server) sqsCreateQueue(r *request, in *sqsInput) (sqsObject, error) {
	name, values, tags := in.text("QueueName"), in.pairs("Attributes"), in.pairs("tags")
	if err := in.err(); err != nil {
		return nil, err
	}
	fifo, err := checkSQSName(name, values)
	if err != nil {
		return nil, err
	}
	denied := r.permit(admin)
	if denied != nil && !r.mayGet(name) && !r.mayPost(name) {
		return nil, denied
	}
	found, err := s.store.queue(r.Context(), name)
	switch {
	case err == nil:
		return s.sqsExistingQueue(r, r.sqsQueueOf(found), fifo, values)
	case !errors.Is(err, errQueueNotFound):
		return nil, err
	case denied != nil:
		return nil, denied
	}
	q := &sqsQueue{arn: r.sqsARN, queue: queue{ID: name, queueSettings: queueSettings{AckDeadlineSeconds: sqsVisibilityTimeout, MessageRetentionSeconds: sqsRetention}}}
	if fifo {
		q.Ordered = true
		q.DeduplicationWindow = new(sqsDeduplicationWindow)
	}
	if err := q.setAttributes(values); err != nil {
		return nil, err
	}
	if err := s.checkDeadQueue(r.Context(), q); err != nil {
		return nil, err
	}
	if err := q.addTags(tags); err != nil {
		return nil, err
	}
	_, err = s.store.createQueue(r.Context(), name, q.queueSettings)
	if errors.Is(err, errQueueExists) { // another client created it meanwhile
		if found, err = s.store.queue(r.Context(), name); err == nil {
			return s.sqsExistingQueue(r, r.sqsQueueOf(found), fifo, values)
		}
	}
	return sqsObject{{"QueueUrl", s.sqsURL(r, name)}}, s.logged(r, err, "queue created", "queue", name)
}

// checkSQSName checks the name of a new queue, and whether it is to be a FIFO queue: if
// both its name and its attributes say so.
func checkSQSName(name string, values []sqsEntry[string]) (fifo bool, err error) {
	asked := ""
	for _, v := range values {
		if v.key == "FifoQueue" {
			asked = v.value
		}
	}
	fifo = len(name) > len(sqsFIFOSuffix) && name[len(name)-len(sqsFIFOSuffix):] == sqsFIFOSuffix
	switch {
	case name == "":
		return false, sqsMissing("QueueName")
	case !validSQSName(name), fifo && asked == "":
		return false, sqsInvalidParameter.errorf("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	case asked == "true" && !fifo:
		return false, sqsInvalidParameter.errorf("The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length.")
	case asked != "" && !fifo:
		return false, sqsUnknownAttribute("FifoQueue")
	case fifo && asked != "true":
		return false, sqsInvalidAttribute.errorf("Invalid value for the parameter FifoQueue.")
	}
	return fifo, nil
}

// sqsExistingQueue returns the response to CreateQueue for a queue that exists. It is an
// error if the request has other values of attributes.
func (s *server) sqsExistingQueue(r *request, q *sqsQueue, fifo bool, values []sqsEntry[string]) (sqsObject, error) {
	exists := func(attribute string) error {
		return sqsQueueNameExists.errorf("A queue already exists with the same name and a different value for attribute %s", attribute)
	}
	if fifo != q.isFIFO() {
		return nil, exists("FifoQueue")
	}
	asked := *q
	asked.SQS = q.SQS.clone()
	if err := asked.setAttributes(values); err != nil {
		return nil, err
	}
	if name := asked.different(q, values); name != "" {
		return nil, exists(name)
	}
	return sqsObject{{"QueueUrl", s.sqsURL(r, q.ID)}}, nil
}

func (s *server) sqsGetQueueURL(r *request, in *sqsInput) (sqsObject, error) {
	if _, err := s.store.queue(r.Context(), r.queueID); err != nil {
		return nil, err
	}
	return sqsObject{{"QueueUrl", s.sqsURL(r, r.queueID)}}, nil
}

func (s *server) sqsListQueues(r *request, in *sqsInput) (sqsObject, error) {
	prefix := in.text("QueueNamePrefix")
	after, limit, err := in.sqsPage()
	if err != nil {
		return nil, err
	}
	if !isSQSText(prefix) { // no queue has it, and PostgreSQL cannot store it
		return sqsObject{}, nil
	}
	ids, err := s.store.pageOfIDs(r.Context(), r.visible(), queuePage{prefix: prefix, after: after, limit: limit + 1})
	return s.sqsPageOf(r, "QueueUrls", ids, limit), err
}

func (s *server) sqsListDeadLetterSourceQueues(r *request, in *sqsInput) (sqsObject, error) {
	after, limit, err := in.sqsPage()
	if err != nil {
		return nil, err
	}
	if _, err := s.store.queue(r.Context(), r.queueID); err != nil {
		return nil, err
	}
	ids, err := s.store.pageOfIDs(r.Context(), r.visible(), queuePage{deadQueueID: r.queueID, after: after, limit: limit + 1})
	return s.sqsPageOf(r, "queueUrls", ids, limit), err
}

// sqsPageOf returns a page of a list of queues. There are more if there are more ids than
// the limit.
func (s *server) sqsPageOf(r *request, list string, ids []string, limit int) sqsObject {
	var urls []string
	for _, id := range ids[:min(len(ids), limit)] {
		urls = append(urls, s.sqsURL(r, id))
	}
	page := sqsObject{{list, urls}}
	if len(ids) > limit {
		page = append(page, sqsMember{"NextToken", sqsToken(ids[limit-1])})
	}
	return page
}

func (s *server) sqsDeleteQueue(r *request, in *sqsInput) (sqsObject, error) {
	_, err := s.deleteQueue(r)
	return nil, err
}

// sqsPurgeQueue deletes the messages, and forgets the deduplication ids.
func (s *server) sqsPurgeQueue(r *request, in *sqsInput) (sqsObject, error) {
	if _, err := s.purge(r); err != nil {
		return nil, err
	}
	return nil, s.store.forgetDeduplications(r.Context(), r.queueID)
}

func (s *server) sqsSetQueueAttributes(r *request, in *sqsInput) (sqsObject, error) {
	values := in.pairs("Attributes")
	if err := in.err(); err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, sqsMissing("Attributes")
	}
	for _, v := range values {
		if v.key != "RedrivePolicy" {
			continue
		}
		found, err := s.store.queue(r.Context(), r.queueID)
		if err != nil {
			return nil, err
		}
		q := r.sqsQueueOf(found)
		if err := q.setRedrivePolicy(v.value); err != nil {
			return nil, err
		}
		if err := s.checkDeadQueue(r.Context(), q); err != nil {
			return nil, err
		}
	}
	return nil, s.changeSQSQueue(r, func(q *sqsQueue) error { return q.setAttributes(values) })
}

// changeSQSQueue changes the settings of the queue of a request.
func (s *server) changeSQSQueue(r *request, change func(q *sqsQueue) error) error {
	_, err := s.store.changeQueue(r.Context(), r.queueID, func(found queue) (queueSettings, error) {
		q := r.sqsQueueOf(found)
		q.SQS = q.SQS.clone() // changeQueue compares it with what it was
		err := change(q)
		return q.queueSettings, err
	})
	if err := s.logged(r, err, "queue changed", "queue", r.queueID); err != nil {
		return err
	}
	s.engine.announce(r.queueID, time.Time{}) // messages may be due under the new settings
	return nil
}

func (s *server) sqsGetQueueAttributes(r *request, in *sqsInput) (sqsObject, error) {
	names := in.texts("AttributeNames")
	if err := in.err(); err != nil {
		return nil, err
	}
	found, err := s.store.queue(r.Context(), r.queueID)
	if err != nil {
		return nil, err
	}
	all, err := r.sqsQueueOf(found).getAttributes(names, func() (messageCounts, error) {
		return s.queueCounts(r.Context(), found)
	})
	return sqsObject{{"Attributes", all}}, err
}

// recentSQSQueue returns the queue of a request as it was at most a second ago.
func (s *server) recentSQSQueue(ctx context.Context, r *request) (*sqsQueue, error) {
	q, err := s.store.recentQueue(ctx, r.queueID)
	if err != nil {
		return nil, err
	}
	return r.sqsQueueOf(q), nil
}
