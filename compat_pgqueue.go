package main

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"

	"queued/internal/rawjson"
)

// pgQueue is the API of pgQueue, a first-in first-out broker: a channel is a
// queue, created by its first use, and reading a message consumes it.
var pgQueue = &apiStyle{func(_ *request, _ error, _ int, detail any) any {
	if mistakes, ok := detail.(invalid); ok && mistakes[0].Loc[0] == "query" {
		return problem{pgMistakes(mistakes)}
	}
	return pgStatus{Status: errorText(detail)}
}}

// pgMistake is a mistake in a query in the format of pgQueue's framework, FastAPI with
// pydantic 2; fastqueue has pydantic 1.
type pgMistake struct {
	Type  string         `json:"type"`
	Loc   []any          `json:"loc"`
	Msg   string         `json:"msg"`
	Input any            `json:"input"` // as sent; null if it is missing
	Ctx   map[string]any `json:"ctx,omitempty"`
}

func pgMistakes(mistakes invalid) (all []pgMistake) {
	for _, v := range mistakes {
		m := pgMistake{Type: v.Type, Loc: v.Loc, Msg: v.Msg, Input: v.input}
		limit, _ := v.Ctx.(limitCtx)
		switch v.Type {
		case "value_error.missing":
			m.Type, m.Msg = "missing", "Field required"
		case "type_error.integer":
			m.Type, m.Msg = "int_parsing", "Input should be a valid integer, unable to parse string as an integer"
		case "type_error.float":
			m.Type, m.Msg = "float_parsing", "Input should be a valid number, unable to parse string as a number"
		case "value_error.number.not_ge":
			m.Type, m.Ctx = "greater_than_equal", map[string]any{"ge": limit.LimitValue}
			m.Msg = fmt.Sprintf("Input should be greater than or equal to %v", limit.LimitValue)
		case "value_error.number.not_le":
			m.Type, m.Ctx = "less_than_equal", map[string]any{"le": limit.LimitValue}
			m.Msg = fmt.Sprintf("Input should be less than or equal to %v", limit.LimitValue)
		}
		all = append(all, m)
	}
	return all
}

// pgStatus is the body of responses without messages.
type pgStatus struct {
	Status string `json:"status"`
	ID     int64  `json:"id,omitempty"`
}

func (s *server) handlePgQueue() {
	s.handle(pgQueue, anyToken, "POST /message", s.pgPublish)
	s.handle(pgQueue, canGet, "GET /queue/{channel}", consuming(s.pgConsume))
	s.handle(pgQueue, anyToken, "GET /messages", s.pgBrowse)
	s.handle(pgQueue, anyToken, "GET /channels", s.pgChannels)
}

// Errors of invalid messages.
var (
	errPgJSON      = statusError{http.StatusBadRequest, "Malformed json"}
	errPgNoChannel = statusError{http.StatusBadRequest, "Field channel not found in json"}
	errPgNoMessage = statusError{http.StatusBadRequest, "Field message not found in json"}
	errPgTypes     = statusError{http.StatusBadRequest, "Check the field types. Channel must be str and Message must be a json"}
	errPgChannel   = statusError{http.StatusBadRequest, "A channel has 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"}
)

func (s *server) pgPublish(r *request) (any, error) {
	f := parseBody(r.body)
	channel, hasChannel := f.find("channel")
	data, hasMessage := f.find("message")
	switch {
	case f.broken && f.mistakes[0].Type == "type_error.dict": // in Python, a list or a text does not have the key either
		return nil, errPgNoChannel
	case f.broken:
		return nil, errPgJSON
	case !hasChannel:
		return nil, errPgNoChannel
	case !hasMessage:
		return nil, errPgNoMessage
	case channel[0] != '"' || data[0] != '{':
		return nil, errPgTypes
	}
	id := rawjson.Unquote(channel)
	if !validID(id) {
		return nil, errPgChannel
	}
	m, err := s.publishTo(r, id, draft{data: data})
	return created(pgStatus{"Message inserted!", m.seq}, err)
}

func (s *server) pgConsume(r *request) (any, error) {
	channel := r.PathValue("channel")
	if !validID(channel) {
		return nil, errPgChannel
	}
	m, err := s.receiveOne(r, channel, s.creating(r, s.engine.consume))
	if m == nil || err != nil {
		return nil, unlessNotFound(err)
	}
	s.hintConsumed(r, channel, "GET /queue/{channel}")
	return rawJSON(m.appendPgJSON(nil)), nil
}

// unlessNotFound returns nil for errQueueNotFound: a channel that does not exist is
// empty.
func unlessNotFound(err error) error {
	if errors.Is(err, errQueueNotFound) {
		return nil
	}
	return err
}

// appendPgJSON appends the message in pgQueue's format. Its id is the sequence number,
// which grows from one message to the next.
func (m *message) appendPgJSON(b []byte) []byte {
	b = append(b, `{"id":`...)
	b = strconv.AppendInt(b, m.seq, 10)
	b = append(b, `,"channel":"`...)
	b = append(b, m.QueueID...)
	b = append(b, `","message":`...)
	b = append(b, m.Data...)
	b = append(b, `,"created_at":"`...)
	b = m.CreatedAt.UTC().AppendFormat(b, "2006-01-02 15:04:05.000000")
	return append(b, `"}`...)
}

func (s *server) pgBrowse(r *request) (any, error) {
	q := parseQuery(r.URL.RawQuery)
	channel, has := q.find("channel")
	if !has {
		q.addMistake("field required", "value_error.missing", "channel")
	}
	offset := q.integer("offset", 0, bounds{0, math.MaxInt})
	limit := min(q.integer("limit", 25, bounds{0, math.MaxInt}), maxPeek)
	if err := q.err(); err != nil {
		return nil, err
	}
	id := string(channel)
	if !validID(id) {
		return nil, errPgChannel
	}
	if !r.mayGet(id) {
		return nil, forbidden(canGet)
	}
	all, err := s.store.peek(r.Context(), id, offset, limit)
	if len(all) == 0 || err != nil {
		return nil, unlessNotFound(err)
	}
	return pgMessages(all), nil
}

// pgMessages is a body of [message…].
type pgMessages []message

func (all pgMessages) size() int { return (&messageList{messages: all}).size() }

func (all pgMessages) piece(b []byte, item int) ([]byte, int) {
	for i := item; i < len(all); i++ {
		b = append(b, "[,"[min(i, 1)])
		if b = all[i].appendPgJSON(b); len(b) >= pieceSize {
			return b, i + 1
		}
	}
	return append(b, ']'), -1
}

// pgChannels lists the channels that hold messages.
func (s *server) pgChannels(r *request) (any, error) {
	type channel struct {
		Channel string `json:"channel"`
	}
	ids, err := s.store.holding(r.Context(), r.visible())
	if len(ids) == 0 || err != nil {
		return nil, err
	}
	all := make([]channel, len(ids))
	for i, id := range ids {
		all[i].Channel = id
	}
	return all, nil
}
