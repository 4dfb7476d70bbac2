package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// sqsDelay are the bounds of the delay of a message, in seconds.
var sqsDelay = bounds{0, 900}

// sqsSend is a message to send, with what the response to its sender says.
type sqsSend struct {
	draft      draft
	body       string
	attributes []sqsMessageAttribute
	system     []sqsMessageAttribute
	delay      *int
	group      string
	id         string // for the deduplication
	extra      sqsExtra
	size       int // bytes of the body and the attributes
}

// sqsMessage reads a message to send. It checks what does not depend on the queue.
func (in *sqsInput) sqsMessage(r *request) (m sqsSend, err error) {
	m = sqsSend{body: in.text("MessageBody"), delay: in.integer("DelaySeconds"), group: in.text("MessageGroupId"), id: in.text("MessageDeduplicationId")}
	if m.attributes, err = in.messageAttributes("MessageAttributes"); err != nil {
		return m, err
	}
	if m.system, err = in.systemAttributes(); err != nil {
		return m, err
	}
	m.size = len(m.body)
	for _, a := range m.attributes {
		m.size += a.size()
	}
	switch {
	case in.err() != nil:
		return m, in.err()
	case m.body == "":
		return m, sqsMissing("MessageBody")
	case !isSQSText(m.body):
		return m, sqsInvalidContents.errorf("Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF")
	case m.delay != nil && (*m.delay < sqsDelay.min || *m.delay > sqsDelay.max):
		return m, sqsInvalidValue(in.number("DelaySeconds"), "DelaySeconds", "DelaySeconds must be >= %d and <= %d.", sqsDelay.min, sqsDelay.max)
	}
	for _, v := range []struct{ name, value string }{{"MessageGroupId", m.group}, {"MessageDeduplicationId", m.id}} {
		if v.value != "" && !isVisibleASCII(v.value, 128) {
			return m, sqsInvalidValue(v.value, v.name, "%s can only include alphanumeric and punctuation characters. 1 to 128 in length.", v.name)
		}
	}
	if header := toUTF8(r.Header.Get("X-Amzn-Trace-Id")); len(header) <= maxSQSTraceHeader {
		m.extra.TraceHeader = header
	}
	for _, a := range m.system {
		m.extra.TraceHeader = a.value
	}
	m.draft = draft{data: wrap([]byte(m.body), "text/plain; charset=utf-8"), group: m.group, attributes: m.extra.store(m.attributes), mayExpire: true}
	m.draft.sqs = m.extra.json()
	return m, nil
}

// checkFor checks a message for its queue, and sets what depends on it.
func (m *sqsSend) checkFor(q *sqsQueue) error {
	wrongType := func(value any, parameter string) error {
		return sqsInvalidValue(value, parameter, "The request include parameter that is not valid for this queue type.")
	}
	most := q.number("MaximumMessageSize", maxSQSMessage)
	m.draft.delay, m.draft.deduplicationID = nil, ""
	if m.delay != nil {
		m.draft.delay = new(time.Duration(*m.delay) * time.Second)
	}
	switch {
	case m.size > most:
		return sqsInvalidParameter.errorf("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", most)
	case !q.isFIFO() && m.id != "":
		return wrongType(m.id, "MessageDeduplicationId")
	case !q.isFIFO():
		return nil
	case zeroIfNil(m.delay) > 0:
		return wrongType(*m.delay, "DelaySeconds")
	}
	if err := m.lacks(q); err != nil {
		return err
	}
	m.draft.delay = nil // the delay of the queue applies
	id := m.id
	if id == "" {
		sum := sha256.Sum256([]byte(m.body))
		id = hex.EncodeToString(sum[:])
	}
	m.extra.DeduplicationID = id
	m.draft.sqs = m.extra.json()
	if q.SQS.Attributes["DeduplicationScope"] == "messageGroup" {
		id = deduplicationInGroup(m.group, id)
	}
	m.draft.deduplicationID = id
	return nil
}

// lacks returns an error if a message lacks what a FIFO queue requires: a group, and a
// deduplication id unless the queue makes one of the body.
func (m *sqsSend) lacks(q *sqsQueue) error {
	switch {
	case m.group == "":
		return sqsMissing("MessageGroupId")
	case m.id == "" && q.SQS.Attributes["ContentBasedDeduplication"] != "true":
		return sqsInvalidParameter.errorf("The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	}
	return nil
}

// result returns the members of the response to the sender.
func (m *sqsSend) result(q *sqsQueue, stored *message) sqsObject {
	v := sqsObject{{"MD5OfMessageBody", sqsMD5(m.body)}}
	if sum := sqsAttributesMD5(m.attributes); sum != "" {
		v = append(v, sqsMember{"MD5OfMessageAttributes", sum})
	}
	if sum := sqsAttributesMD5(m.system); sum != "" {
		v = append(v, sqsMember{"MD5OfMessageSystemAttributes", sum})
	}
	v = append(v, sqsMember{"MessageId", stored.ID})
	if q.isFIFO() && stored.seq > 0 {
		v = append(v, sqsMember{"SequenceNumber", sqsSequenceNumber(stored.seq)})
	}
	return v
}

func sqsSequenceNumber(seq int64) string { return fmt.Sprintf("%020d", seq) }

func (s *server) sqsSendMessage(r *request, in *sqsInput) (sqsObject, error) {
	m, err := in.sqsMessage(r)
	if err != nil {
		return nil, err
	}
	var result sqsObject
	err = s.sendSQS(r, func(q *sqsQueue) ([]draft, error) {
		err := m.checkFor(q)
		return []draft{m.draft}, err
	}, func(q *sqsQueue, stored []message) {
		result = m.result(q, &stored[0])
	})
	return result, err
}

// sendSQS publishes messages to the queue of a request. prepare checks them for the queue,
// again if the queue has changed meanwhile.
func (s *server) sendSQS(r *request, prepare func(q *sqsQueue) ([]draft, error), done func(q *sqsQueue, stored []message)) error {
	find := s.store.recentQueue
	for range settingsAttempts {
		found, err := find(r.Context(), r.queueID)
		if err != nil {
			return err
		}
		q := r.sqsQueueOf(found)
		drafts, err := prepare(q)
		if err != nil || len(drafts) == 0 {
			return err
		}
		stored, err := s.engine.publish(r.Context(), &publication{queueID: r.queueID, trace: r.w.trace, messages: drafts, version: q.version})
		if err == nil {
			done(q, stored)
			return nil
		}
		if !errors.Is(err, errSettingsChanged) {
			return err
		}
		find = s.store.queue
	}
	return errUnavailable
}

func (s *server) sqsSendMessageBatch(r *request, in *sqsInput) (sqsObject, error) {
	entries, err := in.batch()
	if err != nil {
		return nil, err
	}
	messages := make([]sqsSend, len(entries))
	size := 0
	for i := range entries {
		messages[i], entries[i].err = entries[i].in.sqsMessage(r)
		size += messages[i].size
	}
	if err := in.err(); err != nil {
		return nil, err
	}
	if size > maxSQSMessage {
		return nil, sqsBatchTooLong.errorf("Batch requests cannot be longer than %d bytes. You have sent %d bytes.", maxSQSMessage, size)
	}
	broken := make([]bool, len(entries)) // apart from what the queue says
	for i := range entries {
		broken[i] = entries[i].err != nil
	}
	var sent []int
	err = s.sendSQS(r, func(q *sqsQueue) (drafts []draft, err error) {
		sent = nil
		for i := range entries {
			if broken[i] {
				continue
			}
			if err := messages[i].lacks(q); q.isFIFO() && err != nil { // one entry fails the request
				return nil, sqsInvalidParameter.errorf("%s", err)
			}
			if entries[i].err = messages[i].checkFor(q); entries[i].err == nil {
				sent = append(sent, i)
				drafts = append(drafts, messages[i].draft)
			}
		}
		return drafts, nil
	}, func(q *sqsQueue, stored []message) {
		for j, i := range sent {
			entries[i].result = messages[i].result(q, &stored[j])
		}
	})
	if err != nil {
		return nil, err
	}
	return s.sqsBatchResult(r, entries)
}
