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
// queue, made by its first use, and reading a message consumes it.
var pgQueue = &compatAPI{func(w *response, code int, detail any) error {
	if mistakes, ok := detail.(invalid); ok && mistakes[0].Loc[0] == "query" {
		return w.json(code, problem{pgMistakes(mistakes)})
	}
	return w.json(code, pgStatus{Status: errorText(detail)})
}}

// pgMistake is a mistake in a query as pgQueue's framework says it: FastAPI with
// pydantic 2, where fastqueue has pydantic 1.
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

// pgStatus is the body of its answers that are not messages.
type pgStatus struct {
	Status string `json:"status"`
	ID     int64  `json:"id,omitempty"`
}

func (s *server) handlePgQueue() {
	s.handleAs(pgQueue, anyToken, "POST /message", s.pgPublish)
	s.handleAs(pgQueue, canGet, "GET /queue/{channel}", consuming(s.pgConsume))
	s.handleAs(pgQueue, anyToken, "GET /messages", s.pgBrowse)
	s.handleAs(pgQueue, anyToken, "GET /channels", s.pgChannels)
}

// What it says of bad messages.
var (
	errPgJSON      = status{http.StatusBadRequest, "Malformed json"}
	errPgNoChannel = status{http.StatusBadRequest, "Field channel not found in json"}
	errPgNoMessage = status{http.StatusBadRequest, "Field message not found in json"}
	errPgTypes     = status{http.StatusBadRequest, "Check the field types. Channel must be str and Message must be a json"}
	errPgChannel   = status{http.StatusBadRequest, "A channel has 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"}
)

func (s *server) pgPublish(r *request) error {
	f := parseBody(r.body)
	channel, hasChannel := f.find("channel")
	data, hasMessage := f.find("message")
	switch {
	case f.broken && f.mistakes[0].Type == "type_error.dict": // a list or a text has no such key in Python either
		return errPgNoChannel
	case f.broken:
		return errPgJSON
	case !hasChannel:
		return errPgNoChannel
	case !hasMessage:
		return errPgNoMessage
	case channel[0] != '"' || data[0] != '{':
		return errPgTypes
	}
	id := rawjson.Unquote(channel)
	if !validID(id) {
		return errPgChannel
	}
	m, err := s.publishTo(r, id, draft{data: data})
	if err != nil {
		return err
	}
	return r.w.json(http.StatusCreated, pgStatus{"Message inserted!", m.seq})
}

func (s *server) pgConsume(r *request) error {
	channel := r.PathValue("channel")
	if !validID(channel) {
		return errPgChannel
	}
	err := s.receiveOne(r, channel, s.engine.consume, func(all []message) error {
		if len(all) == 0 {
			return r.w.empty(http.StatusNoContent)
		}
		return r.w.shared(http.StatusOK, all[0].appendPgJSON(nil))
	})
	if errors.Is(err, errQueueNotFound) {
		return r.w.empty(http.StatusNoContent)
	}
	return err
}

// appendPgJSON appends the message in pgQueue's format. Its id is the number that
// orders messages, which grows from one to the next.
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

func (s *server) pgBrowse(r *request) error {
	f := parseQuery(r.URL.RawQuery)
	channel, has := f.find("channel")
	if !has {
		f.addMistake("field required", "value_error.missing", "channel")
	}
	offset := f.parameter("offset", 0, bounds{0, math.MaxInt})
	limit := min(f.parameter("limit", 25, bounds{0, math.MaxInt}), maxPeek)
	if err := f.err(); err != nil {
		return err
	}
	id := string(channel)
	if !validID(id) {
		return errPgChannel
	}
	if !r.mayGet(id) {
		return forbidden(canGet)
	}
	all, err := s.store.peek(r.Context(), id, offset, limit)
	if err != nil && !errors.Is(err, errQueueNotFound) {
		return err
	}
	if len(all) == 0 {
		return r.w.empty(http.StatusNoContent)
	}
	if !r.w.takeFor(all) {
		return errOverloaded
	}
	b := []byte{'['}
	for i := range all {
		if i > 0 {
			b = append(b, ',')
		}
		b = all[i].appendPgJSON(b)
	}
	return r.w.own(http.StatusOK, append(b, ']'))
}

// pgChannels lists the channels that hold messages.
func (s *server) pgChannels(r *request) error {
	type channel struct {
		Channel string `json:"channel"`
	}
	ids, err := s.store.holding(r.Context(), r.visible())
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return r.w.empty(http.StatusNoContent)
	}
	all := make([]channel, len(ids))
	for i, id := range ids {
		all[i].Channel = id
	}
	return r.w.json(http.StatusOK, all)
}
