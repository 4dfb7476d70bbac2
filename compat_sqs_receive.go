package main

import (
	"slices"
	"strconv"
	"time"
)

// The bounds of a receive.
var (
	sqsReceives   = bounds{1, 10}    // messages
	sqsVisibility = bounds{0, 43200} // seconds
	sqsWait       = bounds{0, 20}    // seconds
)

func (s *server) sqsReceiveMessage(r *request, in *sqsInput) (sqsObject, error) {
	system := append(in.texts("AttributeNames"), in.texts("MessageSystemAttributeNames")...)
	names := in.texts("MessageAttributeNames")
	limit, err := in.bounded("MaxNumberOfMessages", sqsReceives, 1)
	if err != nil {
		return nil, err
	}
	visibility, err := in.bounded("VisibilityTimeout", sqsVisibility, -1)
	if err != nil {
		return nil, err
	}
	wait, err := in.bounded("WaitTimeSeconds", sqsWait, -1)
	if err != nil {
		return nil, err
	}
	if err := in.err(); err != nil {
		return nil, err
	}
	q, err := s.recentSQSQueue(r.Context(), r)
	if err != nil {
		return nil, err
	}
	key := dispatcherKey{queueID: r.queueID, sqs: true, runs: q.isFIFO()}
	if visibility >= 0 {
		key.lease = ownLease(visibility)
	}
	if wait < 0 {
		wait = q.number("ReceiveMessageWaitTimeSeconds", 0)
	}
	longest := time.Duration(min(float64(wait), s.limits.maxWait) * float64(time.Second))
	v, err := s.engine.take(r.whileHeard(), key, limit, longest)
	if err != nil {
		return nil, err
	}
	var all []sqsObject
	for _, m := range s.deliver(r, r.queueID, v) {
		all = append(all, q.received(&m, system, names))
	}
	return sqsObject{{"Messages", all}}, nil
}

// received returns a received message, with the attributes of these names.
func (q *sqsQueue) received(m *message, system, names []string) sqsObject {
	body := sqsBodyOf(m.Data)
	extra := readSQSExtra(m.past.sqs)
	v := sqsObject{
		{"MessageId", m.ID},
		{"ReceiptHandle", sqsHandleOf(m)},
		{"MD5OfBody", sqsMD5(body)},
		{"Body", body},
		{"Attributes", q.systemAttributes(m, &extra, system)},
	}
	if len(names) > 0 {
		chosen := chosenSQSAttributes(extra.attributes(m.Attributes), names)
		if sum := sqsAttributesMD5(chosen); sum != "" {
			v = append(v, sqsMember{"MessageAttributes", sqsAttributeResults(chosen)}, sqsMember{"MD5OfMessageAttributes", sum})
		}
	}
	return v
}

// systemAttributes returns the system attributes of a message that a receiver asks for.
func (q *sqsQueue) systemAttributes(m *message, extra *sqsExtra, names []string) (all sqsMap) {
	if len(names) == 0 {
		return nil
	}
	milliseconds := func(at time.Time) string { return strconv.FormatInt(at.UnixMilli(), 10) }
	source := ""
	if m.past.sourceQueueID.Valid {
		source = q.arn(m.past.sourceQueueID.String)
	}
	number := ""
	if q.isFIFO() {
		number = sqsSequenceNumber(m.seq)
	}
	for _, a := range []struct{ name, value string }{
		{"SenderId", sqsAccount},
		{"SentTimestamp", milliseconds(m.CreatedAt.Time)},
		{"ApproximateReceiveCount", strconv.Itoa(m.DeliveryAttempts)},
		{"ApproximateFirstReceiveTimestamp", milliseconds(m.past.receivedAt.Time)},
		{sqsTraceHeader, extra.TraceHeader},
		{"MessageGroupId", m.Group},
		{"MessageDeduplicationId", extra.DeduplicationID},
		{"SequenceNumber", number},
		{"DeadLetterQueueSourceArn", source},
	} {
		if a.value != "" && (slices.Contains(names, "All") || slices.Contains(names, a.name)) {
			all = append(all, sqsMember{a.name, a.value})
		}
	}
	return all
}
