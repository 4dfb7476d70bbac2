package main

import (
	"database/sql/driver"
	"strconv"
	"strings"
	"time"
)

// These types are statement arguments in PostgreSQL's text format for arrays
// (PostgreSQL manual, section 8.15). lib/pq has the same for all types, but uses
// reflection and allocates for each element; these are on the path of every message.

// textArray is a text[] of strings that need no quotes, such as ids, except for an id that
// PostgreSQL would read as NULL.
type textArray []string

func (a textArray) Value() (driver.Value, error) {
	return joinArray(a, func(b []byte, s string) []byte {
		if strings.EqualFold(s, "null") {
			return appendQuoted(b, s)
		}
		return append(b, s...)
	}), nil
}

// quotedArray is a text[] of any strings; an empty one is NULL.
type quotedArray []string

// set sets element i to a text, unless the text is empty. Missing elements are NULL,
// because unnest pads the shorter arrays with nulls.
func (a *quotedArray) set(i int, text string) {
	if text != "" {
		*a = append(append(*a, make(quotedArray, i-len(*a))...), text)
	}
}

func (a quotedArray) Value() (driver.Value, error) {
	return joinArray(a, func(b []byte, s string) []byte {
		if s == "" {
			return append(b, "NULL"...)
		}
		return appendQuoted(b, s)
	}), nil
}

// idArray is a uuid[].
type idArray = textArray

// intArray is a bigint[] or an integer[].
type intArray []int64

func (a intArray) Value() (driver.Value, error) {
	return joinArray(a, func(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }), nil
}

// timeArray is a timestamptz[]; the zero time is NULL. The times come from
// PostgreSQL, directly or by way of a client.
type timeArray []time.Time

func (a timeArray) Value() (driver.Value, error) {
	return joinArray(a, func(b []byte, t time.Time) []byte {
		if t.IsZero() {
			return append(b, "NULL"...)
		}
		b = append(b, '"')
		b = t.UTC().AppendFormat(b, "2006-01-02 15:04:05.999999Z07:00")
		return append(b, '"')
	}), nil
}

// jsonArray is a json[] of JSON texts; nil is NULL.
type jsonArray [][]byte

// set sets element i to a text, unless the text is nil, like quotedArray.set.
func (a *jsonArray) set(i int, text []byte) {
	if text != nil {
		*a = append(append(*a, make(jsonArray, i-len(*a))...), text)
	}
}

func (a jsonArray) Value() (driver.Value, error) {
	return joinArray(a, func(b, text []byte) []byte {
		if text == nil {
			return append(b, "NULL"...)
		}
		return appendQuoted(b, text)
	}), nil
}

func appendQuoted[T string | []byte](b []byte, text T) []byte {
	b = append(b, '"')
	for i := range len(text) {
		if c := text[i]; c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, text[i])
	}
	return append(b, '"')
}

func joinArray[T any](elements []T, add func([]byte, T) []byte) []byte {
	b := []byte{'{'}
	for i, e := range elements {
		if i > 0 {
			b = append(b, ',')
		}
		b = add(b, e)
	}
	return append(b, '}')
}
