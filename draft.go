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
	group      string         // empty if it has none
	delay      *time.Duration // nil for the delay of the queue
	job        *job           // nil if it is not a job; a job is published alone, to a queue

	deduplicationID string // empty if it has none
}

// errNeverDue is the error of a message that would expire in a queue before it is due.
type errNeverDue struct {
	message int // index in the publication
	queueID string
}

func (e errNeverDue) Error() string {
	return fmt.Sprintf("the message would expire in queue %q before it is due; use a delay shorter than the queue's retention", e.queueID)
}

// delayIn returns the delivery delay of the message in a queue.
func (m *draft) delayIn(queue subscription) time.Duration {
	if m.delay != nil {
		return *m.delay
	}
	return queue.delay
}

// draft decodes a message to publish.
func (f *form) draft(l *limits) draft {
	m := draft{data: f.object("data", true), attributes: f.attributes("attributes"), group: f.group("group"), deduplicationID: f.deduplicationID("deduplication_id")}
	if int64(len(m.data)+len(m.attributes)) > l.maxBody {
		f.addMistake(fmt.Sprintf("ensure data and attributes have at most %d bytes", l.maxBody), "value_error.size", "data")
	}
	if n := f.integer("delay_seconds", bounds{0, l.deliveryDelay.max}, false); n != nil {
		delay := time.Duration(*n) * time.Second
		m.delay = &delay
	}
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
