package main

import (
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"queued/internal/rawjson"
)

// timestamp is a time in the wire format of the API: UTC without a zone, with six
// digits after the decimal point.
type timestamp struct{ time.Time }

const timestampLayout = "2006-01-02T15:04:05.000000"

func (t timestamp) MarshalJSON() ([]byte, error) {
	return t.appendJSON(nil), nil
}

func (t timestamp) appendJSON(b []byte) []byte {
	b = append(b, '"')
	b = t.UTC().AppendFormat(b, timestampLayout)
	return append(b, '"')
}

func (t *timestamp) Scan(src any) error {
	at, ok := src.(time.Time)
	if !ok {
		return fmt.Errorf("timestamp: cannot scan %T", src)
	}
	t.Time = at
	return nil
}

// message is one message in one queue. A publish stores one copy in each matching
// queue.
type message struct {
	ID               string
	QueueID          string
	Data             []byte // JSON as sent
	Attributes       []byte // JSON as sent; nil if there are none
	DeliveryAttempts int
	ExpiredAt        timestamp
	ScheduledAt      timestamp
	CreatedAt        timestamp
	UpdatedAt        timestamp
	State            string // only in inspections; empty in other responses
	Group            string // empty if it has none

	trace         trace // of the request that published it
	queueKey      int64
	jobID         sql.NullString
	maxDeliveries sql.NullInt64
	groupDelivery *groupDelivery // of a received message with a group
	seq           int64          // order among messages due at the same time
	size          int            // bytes of Data, Attributes and what only SQS's API has
	dueAt         timestamp      // of a received message: when it was due, before it was leased
	consumed      bool           // it was received and deleted at once
	duplicate     bool           // it was not stored, because this copy was published before
	past          *past          // nil if the statement that read the message did not ask for it
}

// past is what the message keeps of earlier deliveries and of SQS's API. Leases read it only
// for that API.
type past struct {
	lastError     sql.NullString
	lastErrorAt   sql.NullTime
	sourceQueueID sql.NullString // in a dead queue: the queue that it came from
	attempts      sql.NullInt64  // its delivery attempts in that queue
	deadAt        sql.NullTime   // when it moved to the dead queue
	leaseEnd      sql.NullTime   // in flight, if it is due only later
	sqs           []byte         // what only SQS's API has; nil for none
	receivedAt    sql.NullTime   // when SQS's API received it first
}

// pastColumnsSQL are the columns of past of a message m.
const pastColumnsSQL = `m.last_error, m.last_error_at, m.source_queue_id, m.source_delivery_attempts, m.dead_at, m.lease_end, m.sqs, m.received_at`

// columns returns the destinations of pastColumnsSQL.
func (p *past) columns() []any {
	return []any{&p.lastError, &p.lastErrorAt, &p.sourceQueueID, &p.attempts, &p.deadAt, &p.leaseEnd, &p.sqs, &p.receivedAt}
}

// columnsWithPast returns the destinations of messageColumnsSQL and pastColumnsSQL, with
// capacity for more.
func (m *message) columnsWithPast() []any {
	m.past = &past{}
	return append(m.columns(), m.past.columns()...)
}

// messageColumnsSQL are the columns of a message m that a statement returns, in the order
// of message.columns. A new column goes into both. If a message keeps it in other queues,
// it also goes into carriedColumnsSQL.
const messageColumnsSQL = `m.id, m.queue_key, m.seq, m.scheduled_at, m.expired_at, m.created_at, m.updated_at, m.bytes, m.delivery_attempts,
       m.max_deliveries, m.group_id, m.job_id, m.trace, m.attributes, m.data`

// columns returns the destinations of messageColumnsSQL for a scan, with capacity for more.
func (m *message) columns() []any {
	return append(make([]any, 0, 28), &m.ID, &m.queueKey, &m.seq, &m.ScheduledAt, &m.ExpiredAt, &m.CreatedAt, &m.UpdatedAt, &m.size, &m.DeliveryAttempts,
		&m.maxDeliveries, (*nullText)(&m.Group), &m.jobID, &m.trace, &m.Attributes, &m.Data)
}

// nullText is a text that is empty if the column is null.
type nullText string

func (t *nullText) Scan(src any) error {
	switch src := src.(type) {
	case nil:
		*t = ""
	case string:
		*t = nullText(src)
	case []byte:
		*t = nullText(src)
	default:
		return fmt.Errorf("text: cannot scan %T", src)
	}
	return nil
}

// shown says which optional members messages have in the wire format. A member without a
// value is left out.
type shown struct{ group, requestID, traceparent, past bool }

// showAll has the members of inspected messages.
var showAll = shown{group: true, requestID: true, traceparent: true, past: true}

// stateConsumed is the state of consumed messages that their queue keeps.
const stateConsumed = "consumed"

// appendJSON appends the message in the wire format. It does not use encoding/json, which
// would validate and reformat the data. The data must stay as it was sent.
func (m *message) appendJSON(b []byte, shows shown) []byte {
	b = append(b, `{"id":"`...)
	b = append(b, m.ID...)
	b = append(b, `","queue_id":"`...)
	b = append(b, m.QueueID...) // needs no escapes
	b = append(b, `","data":`...)
	b = append(b, m.Data...)
	b = append(b, `,"attributes":`...)
	if m.Attributes == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, m.Attributes...)
	}
	b = append(b, `,"delivery_attempts":`...)
	b = strconv.AppendInt(b, int64(m.DeliveryAttempts), 10)
	b = append(b, `,"expired_at":`...)
	b = m.ExpiredAt.appendJSON(b)
	b = append(b, `,"scheduled_at":`...)
	b = m.ScheduledAt.appendJSON(b)
	b = append(b, `,"created_at":`...)
	b = m.CreatedAt.appendJSON(b)
	b = append(b, `,"updated_at":`...)
	b = m.UpdatedAt.appendJSON(b)
	if m.State != "" {
		b = append(b, `,"state":"`...)
		b = append(b, m.State...)
		b = append(b, '"')
	}
	if m.State == stateConsumed {
		b = append(b, `,"consumed_at":`...)
		b = m.UpdatedAt.appendJSON(b) // a consumed message has not changed since
	}
	if m.duplicate {
		b = append(b, `,"duplicate":true`...)
	}
	if shows.group {
		b = appendOptional(b, `,"group":`, m.Group)
	}
	if shows.requestID {
		b = appendOptional(b, `,"request_id":`, m.trace.requestID)
	}
	if shows.traceparent {
		b = appendOptional(b, `,"traceparent":`, m.trace.traceparent)
	}
	if shows.past && m.past != nil {
		b = appendOptional(b, `,"last_error":`, m.past.lastError.String)
		b = appendOptionalTime(b, `,"last_error_at":`, m.past.lastErrorAt)
		b = appendOptional(b, `,"source_queue_id":`, m.past.sourceQueueID.String)
		if m.past.attempts.Valid {
			b = append(b, `,"source_delivery_attempts":`...)
			b = strconv.AppendInt(b, m.past.attempts.Int64, 10)
		}
		b = appendOptionalTime(b, `,"dead_at":`, m.past.deadAt)
		if m.past.sqs != nil {
			b = append(append(b, `,"sqs":`...), m.past.sqs...)
		}
	}
	return append(b, '}')
}

// jsonSize returns an upper bound for the bytes that appendJSON appends, for ids that need
// no escapes.
func (m *message) jsonSize() int {
	return len(m.Data) + len(m.Attributes) + len(m.QueueID) + len(m.Group) + m.trace.size() + m.past.size() + 320
}

// size returns an upper bound for the bytes of the past in the wire format, for a queue id
// and an error that need no escapes.
func (p *past) size() int {
	if p == nil {
		return 0
	}
	n := len(p.sqs) + len(`,"sqs":`)
	if p.lastErrorAt.Valid || p.deadAt.Valid {
		n += len(p.lastError.String) + len(p.sourceQueueID.String) + 180
	}
	return n
}

// appendOptional appends a member of an object unless its text is empty.
func appendOptional(b []byte, name, text string) []byte {
	if text == "" {
		return b
	}
	return append(append(b, name...), rawjson.Quote(text)...)
}

// appendOptionalTime appends a member of an object unless its time is null.
func appendOptionalTime(b []byte, name string, at sql.NullTime) []byte {
	if !at.Valid {
		return b
	}
	return timestamp{at.Time}.appendJSON(append(b, name...))
}
