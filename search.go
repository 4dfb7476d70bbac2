package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// search is a search in the messages of a queue. The fields after limit are conditions; a
// message has to meet all that are set.
type search struct {
	from  *searchPosition // nil for the beginning
	limit int

	state      string
	group      string
	after      time.Time // published then or later
	before     time.Time // published earlier
	attributes []byte    // JSON: the message has these attributes
	data       []byte    // JSON: its data contains this object
	text       string    // in its data, its attributes or its last error, in any case
}

// searchPosition is where a search continues: after the message with this due time, in
// microseconds since the Unix epoch, and seq.
type searchPosition struct{ micros, seq int64 }

func (p *searchPosition) String() string { return fmt.Sprintf("%d-%d", p.micros, p.seq) }

// parseSearchPosition reads the text of a position. It returns nil for any other text.
func parseSearchPosition(text string) *searchPosition {
	var p searchPosition
	if n, err := fmt.Sscanf(text, "%d-%d", &p.micros, &p.seq); n < 2 || err != nil || p.String() != text || p.micros < 0 || p.micros > maxSearchMicros || p.seq < 0 {
		return nil
	}
	return &p
}

// maxSearchMicros is later than the due time of any message, and a time that PostgreSQL has.
const maxSearchMicros = 1e16

// Bounds of a search, besides those of a peek.
const (
	searchRows = 50_000                 // messages that it reads
	searchTime = 100 * time.Millisecond // of the statement
)

const searchSQL = `
SELECT message_id, (extract(epoch FROM nullif(last_at, '-infinity')) * 1000000)::bigint, last_seq, more
FROM queued.search_messages($1, timestamptz 'epoch' + $2::bigint * interval '1 microsecond', $3, $4, $5, $6, make_interval(secs => $7), $8, $9, $10, $11, $12, $13, $14)`

const selectFoundSQL = `
SELECT ` + messageColumnsSQL + `, ` + pastColumnsSQL + `, m.queue_id, m.state
FROM unnest($2::uuid[]) WITH ORDINALITY AS a (id, n)
JOIN queued.live_messages m ON ` + thatOneSQL + ` AND m.queue_key IS NOT DISTINCT FROM $3
ORDER BY a.n`

// errNotComparable is the error of a search for data that jsonb cannot contain.
var errNotComparable = errors.New("the data cannot be compared")

// search returns messages that meet the conditions, oldest due first, and where another
// search continues, nil at the end. It may find no message although there are some later: it
// ends at its bounds.
func (s *store) search(ctx context.Context, queueID string, v search) (all []message, next *searchPosition, err error) {
	queue, err := s.snapshot(ctx, queueID)
	if err != nil {
		return nil, nil, err
	}
	var micros, seq sql.NullInt64
	if v.from != nil {
		micros, seq = sql.NullInt64{Int64: v.from.micros, Valid: true}, sql.NullInt64{Int64: v.from.seq, Valid: true}
	}
	var ids idArray
	_, err = collect(ctx, s.on("search"), func(row scanner) (any, error) {
		var id sql.NullString
		var micros, seq sql.NullInt64
		var more sql.NullBool
		err := row.Scan(&id, &micros, &seq, &more)
		if id.Valid {
			ids = append(ids, id.String)
		} else if more.Bool {
			next = &searchPosition{micros.Int64, seq.Int64}
		}
		return nil, err
	}, searchSQL, queue.key, micros, seq, v.limit, deliverySize, searchRows, searchTime.Seconds(),
		nullable(v.state), nullable(v.group), nullableTime(v.after), nullableTime(v.before), nullable(string(v.attributes)), nullable(string(v.data)), nullable(v.text))
	if atFault(err) {
		return nil, nil, errNotComparable
	}
	if err != nil || len(ids) == 0 {
		return nil, next, err
	}
	all, err = collect(ctx, s.on("found"), scanMessage, selectFoundSQL, homeOf(queue.key), ids, queue.key)
	return all, next, err
}

func nullable(text string) sql.NullString { return sql.NullString{String: text, Valid: text != ""} }

func nullableTime(t time.Time) sql.NullTime { return sql.NullTime{Time: t, Valid: !t.IsZero()} }

// states are the states of messages in a queue.
var states = []string{"ready", "delayed", "in_flight", "exhausted"}

// attributePrefix is the beginning of the parameters for attributes.
const attributePrefix = "attribute."

// isSearch reports whether a peek has a parameter of a search.
func (q *query) isSearch() bool {
	return slices.ContainsFunc(q.all, func(f field) bool {
		switch f.name {
		case "state", "group", "contains", "q", "before", "after", "next":
			return true
		}
		return strings.HasPrefix(f.name, attributePrefix)
	})
}

// search decodes the parameters of a search.
func (q *query) search() (v search) {
	v.limit = q.integer("limit", 25, bounds{1, maxPeek})
	if q.integer("offset", 0, bounds{0, maxPeek}) > 0 {
		q.addMistake("a search has no offset; continue it with next", "value_error", "offset")
	}
	if text, has := q.find("state"); has {
		if v.state = string(text); !slices.Contains(states, v.state) {
			q.addMistake("value is not a state; allowed: "+strings.Join(states, ", "), "value_error", "state")
		}
	}
	if text, has := q.find("group"); has {
		v.group = string(text)
		if msg, kind := groupMistake(v.group); msg != "" {
			q.addMistake(msg, kind, "group")
		}
	}
	if text, has := q.find("after"); has {
		v.after = q.time(string(text), "after")
	}
	if text, has := q.find("before"); has {
		v.before = q.time(string(text), "before")
	}
	if text, has := q.find("contains"); has {
		f := parseBody(text)
		for _, m := range f.mistakes {
			q.addMistake(m.Msg, m.Type, "contains")
		}
		v.data = rawjson.TrimBOM(text)
	}
	if text, has := q.find("q"); has {
		v.text = string(text)
		q.checkSearched(v.text, "q")
	}
	attributes := make(map[string]string)
	for _, f := range q.all {
		if name, is := strings.CutPrefix(f.name, attributePrefix); is {
			q.find(f.name)
			attributes[name] = string(f.value)
			q.checkSearched(name+string(f.value), f.name)
		}
	}
	if len(attributes) > 0 {
		v.attributes, _ = json.Marshal(attributes) // cannot fail
	}
	if text, has := q.find("next"); has {
		if v.from = parseSearchPosition(string(text)); v.from == nil {
			q.addMistake(`value must be the "next" of an earlier response`, "value_error", "next")
		}
	}
	return v
}

// checkSearched adds a mistake for a text that no message can have.
func (q *query) checkSearched(text, name string) {
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		q.addMistake("the text must be UTF-8 without \\u0000", "value_error.unicode", name)
	}
}

// searchResult is the messages that a search has found, as a body with the next position.
type searchResult struct {
	messageList
	next *searchPosition
}

func (l *searchResult) piece(b []byte, item int) ([]byte, int) {
	b, item = l.messageList.piece(b, item)
	if item >= 0 {
		return b, item
	}
	next := []byte("null")
	if l.next != nil {
		next = rawjson.Quote(l.next.String())
	}
	b = append(b[:len(b)-1], `,"next":`...)
	return append(append(b, next...), '}'), -1
}
