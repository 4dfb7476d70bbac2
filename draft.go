package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// draft is a message to publish.
type draft struct {
	data       []byte         // JSON as sent
	attributes []byte         // JSON as sent; nil if there are none
	sqs        []byte         // JSON with what only SQS's API has; nil for nothing
	group      string         // empty if it has none
	delay      *time.Duration // nil for the delay of the queue
	retention  time.Duration  // 0 for that of the queue; a longer one has no effect
	job        *job           // nil if it is not a job; a job is published alone, to a queue

	scheduledAt     time.Time // due time in place of a delay; zero if it has none
	deduplicationID string    // empty if it has none
	mayExpire       bool      // it may expire before it is due
}

// errNeverDue is the error of a message that would expire in a queue before it is due.
type errNeverDue struct {
	message int // index in the publication
	queueID string
	field   string // of the message, that makes it so
}

func (e errNeverDue) Error() string {
	remedy := "use a delay shorter than the queue's retention"
	switch e.field {
	case "scheduled_at":
		remedy = "use a time within the retention"
	case "retention_seconds":
		remedy = "use a retention longer than the delay"
	}
	return fmt.Sprintf("the message would expire in queue %q before it is due; %s", e.queueID, remedy)
}

// in returns the queue with the times of the message: its own delay or due time, and its own
// retention unless that of the queue is shorter.
func (m *draft) in(queue subscription) subscription {
	if m.delay != nil {
		queue.delay = *m.delay
	}
	queue.scheduledAt = m.scheduledAt
	if m.retention > 0 {
		queue.retention = min(queue.retention, m.retention)
	}
	return queue
}

// hasTimes reports whether the times of the message may differ from those of its queues.
func (m *draft) hasTimes() bool {
	return m.delay != nil || m.retention > 0 || !m.scheduledAt.IsZero()
}

// neverDue returns an error if the message would expire in the queue before it is due, and may
// not. now is the clock of PostgreSQL; without it, a scheduledAt is not checked.
func (m *draft) neverDue(i int, queue subscription, now time.Time) error {
	if m.mayExpire || !m.hasTimes() && queue.delay < queue.retention {
		return nil
	}
	to := m.in(queue)
	e := errNeverDue{i, queue.queueID, "delay_seconds"}
	switch {
	case !m.scheduledAt.IsZero():
		if e.field = "scheduled_at"; now.IsZero() || m.scheduledAt.Before(now.Add(to.retention)) {
			return nil
		}
	case to.delay < to.retention:
		return nil
	case to.delay < queue.retention:
		e.field = "retention_seconds"
	}
	return e
}

// draft decodes a message to publish.
func (f *form) draft(l *limits) draft {
	m := draft{data: f.object("data", true), attributes: f.attributes("attributes"), group: f.group("group"), deduplicationID: f.deduplicationID("deduplication_id")}
	if int64(len(m.data)+len(m.attributes)) > l.maxBody {
		f.addMistake(fmt.Sprintf("ensure data and attributes have at most %d bytes", l.maxBody), "value_error.size", "data")
	}
	if n := f.integer("delay_seconds", bounds{0, noExpirySeconds}, false); n != nil {
		delay := time.Duration(*n) * time.Second
		m.delay = &delay
	}
	if raw := f.value("scheduled_at", false); raw != nil {
		if raw[0] != '"' {
			f.addMistake("invalid datetime format", "value_error.datetime", "scheduled_at")
		} else if m.scheduledAt = f.time(rawjson.Unquote(raw), "scheduled_at"); m.delay != nil {
			f.addMistake("scheduled_at and delay_seconds are mutually exclusive", "value_error", "scheduled_at")
		}
	}
	m.retention = f.seconds("retention_seconds", bounds{1, noExpirySeconds}, false)
	return m
}

// maxGroup is the maximum length of the id of a group, in bytes.
const maxGroup = 256

// group reads the id of a group. It returns an empty id if the field is null or missing.
func (f *form) group(name string) string {
	raw := f.value(name, false)
	if raw == nil {
		return ""
	}
	if raw[0] != '"' {
		f.addMistake("str type expected", "type_error.str", name)
		return ""
	}
	id := rawjson.Unquote(raw)
	if msg, kind := groupMistake(id); msg != "" {
		f.addMistake(msg, kind, name)
		return ""
	}
	if msg := pathMistake(id); msg != "" {
		f.addMistake(msg, "value_error", name)
		return ""
	}
	return id
}

// groupMistake returns the mistake in the id of a group with its type, or empty texts.
func groupMistake(id string) (msg, kind string) {
	switch {
	case id == "":
		return "ensure this value has at least 1 characters", "value_error.any_str.min_length"
	case len(id) > maxGroup:
		return fmt.Sprintf("ensure this value has at most %d bytes", maxGroup), "value_error.any_str.max_length"
	case !utf8.ValidString(id) || strings.ContainsRune(id, 0):
		return "the text must be UTF-8 without \\u0000", "value_error.unicode"
	}
	return "", ""
}

// attributes reads an object of strings. It returns the object as it was sent, except for
// values that are converted to strings, and nil if the field is null or missing.
func (f *form) attributes(name string) []byte {
	raw := f.object(name, false)
	if raw == nil {
		return nil
	}
	plain := true
	rawjson.WalkObject(raw, func(key string, value []byte) {
		f.checkText(value, name, key)
		plain = plain && value[0] == '"'
	})
	if plain {
		return raw
	}
	return quoteScalars(raw)
}
