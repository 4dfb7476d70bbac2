package main

import (
	"fmt"
	"math"
	"net/url"
	"strings"
	"time"
)

// query reads the parameters of a URL.
type query struct{ input }

// parseQuery reads the query of a URL.
func parseQuery(rawQuery string) *query {
	q := &query{input{where: []any{"query"}}}
	for rawQuery != "" {
		var parameter string
		parameter, rawQuery, _ = strings.Cut(rawQuery, "&")
		name, value, _ := strings.Cut(parameter, "=")
		q.all = append(q.all, field{name: unescape(name), value: []byte(unescape(value))})
	}
	q.unread = len(q.all)
	return q
}

// unescape decodes a text. A text with invalid escapes stays as it is, and is invalid for
// every parameter.
func unescape(s string) string {
	if v, err := url.QueryUnescape(s); err == nil {
		return v
	}
	return s
}

// page reads offset and limit of a list.
func (q *query) page(l *limits) (offset, limit int) {
	return q.integer("offset", 0, bounds{0, math.MaxInt}), q.integer("limit", 10, bounds{0, l.maxLimit})
}

// integer reads a whole number.
func (q *query) integer(name string, missing int, within bounds) int {
	text, has := q.find(name)
	if !has {
		return missing
	}
	n, ok := parseDigits(strings.TrimSpace(string(text)))
	if !ok {
		q.addMistake("value is not a valid integer", "type_error.integer", name)
	} else if q.inside(n, within, name) {
		return n
	}
	return missing
}

// boolean reads true or false; missing is false.
func (q *query) boolean(name string) bool {
	text, has := q.find(name)
	switch v := strings.ToLower(string(text)); {
	case !has || v == "false" || v == "0":
		return false
	case v == "true" || v == "1":
		return true
	}
	q.addMistake("value could not be parsed to a boolean", "type_error.bool", name)
	return false
}

// shown reads the names of the optional members of messages, separated by commas.
func (q *query) shown() (v shown) {
	text, has := q.find("fields")
	if !has {
		return v
	}
	for name := range strings.SplitSeq(string(text), ",") {
		if !q.show(name, &v, "fields") {
			break
		}
	}
	return v
}

// show adds an optional member of messages by its name, and reports whether there is
// such a member.
func (in *input) show(name string, v *shown, loc ...any) bool {
	switch name {
	case "group":
		v.group = true
	case "request_id":
		v.requestID = true
	case "traceparent":
		v.traceparent = true
	default:
		in.addMistake("unknown field; allowed: group, request_id, traceparent", "value_error", loc...)
		return false
	}
	return true
}

// waitSeconds decodes the maximum time of a long poll.
func (q *query) waitSeconds(l *limits) time.Duration {
	if text, has := q.find("wait_seconds"); has {
		return q.wait(text, l)
	}
	return 0
}

// wait decodes the text of wait_seconds.
func (in *input) wait(text []byte, l *limits) time.Duration {
	const name = "wait_seconds"
	seconds, ok := parseNumber(string(text))
	switch {
	case !ok:
		in.addMistake("value is not a valid float", "type_error.float", name)
	case seconds < 0:
		in.addMistakeCtx(limitCtx{0}, "ensure this value is greater than or equal to 0", "value_error.number.not_ge", name)
	case seconds > l.maxWait:
		in.addMistakeCtx(limitCtx{l.maxWait}, fmt.Sprintf("ensure this value is less than or equal to %v", l.maxWait), "value_error.number.not_le", name)
	default:
		return time.Duration(seconds * float64(time.Second))
	}
	return 0
}

// leaseBounds are the bounds of the leases of a receive, in seconds.
var leaseBounds = bounds{0, int(maxLease / time.Second)}

// lease reads the length of the leases of a receive.
func (q *query) lease() leaseLength {
	if !q.has("ack_deadline_seconds") {
		return leaseLength{}
	}
	return ownLease(q.integer("ack_deadline_seconds", 0, leaseBounds))
}

// leaseToken reads the scheduled_at of a lease. It returns zero if it is missing.
func (q *query) leaseToken(name string) time.Time {
	text, has := q.find(name)
	if !has {
		return time.Time{}
	}
	return q.time(string(text), name)
}
