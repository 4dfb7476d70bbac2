package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"time"
)

// response is a ResponseWriter that knows what was sent. Until a route has
// matched it keeps the answers of the mux, which are not JSON, to itself.
type response struct {
	http.ResponseWriter
	controller *http.ResponseController
	conn       *conn
	timeout    time.Duration // for the client to take the answer
	trace      trace         // of the request
	requestID  string        // that of the trace, or else one of ours
	matched    bool
	bodyRead   bool // to its end
	refused    int  // the status that the mux would have sent
	doubtful   bool // the client may have closed the connection, so that the header is to be sent alone
	lost       bool // it had, and gets no more than the header
	status     int  // 0 before the header is sent
	sent       int64
}

// logged returns attributes of a line of the log, and those that say which request
// it is about.
func (w *response) logged(attributes ...any) []any {
	attributes = append(attributes, "request_id", w.requestID)
	if w.trace.traceparent != "" {
		attributes = append(attributes, "traceparent", w.trace.traceparent)
	}
	return attributes
}

// WriteHeader gives the client its time to take the answer from now on: how long
// the request waited before is no fault of the client's.
func (w *response) WriteHeader(code int) {
	if !w.matched && (code/100 == 3 || code == http.StatusNotFound || code == http.StatusMethodNotAllowed) {
		w.refused = code
		return
	}
	if w.status == 0 && code >= 200 {
		w.status = code
	}
	w.controller.SetWriteDeadline(time.Now().Add(w.timeout))
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(b []byte) (int, error) {
	if w.refused != 0 && w.status == 0 {
		return len(b), nil
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(b) > smallAnswer {
		w.conn.move(transferring)
	}
	if w.lost {
		return 0, net.ErrClosed
	}
	n, err := w.ResponseWriter.Write(b)
	w.sent += int64(n)
	return n, err
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// empty answers with a status alone.
func (w *response) empty(code int) error {
	w.refused = 0
	w.matched = true
	w.Header().Del("Content-Type")
	w.WriteHeader(code)
	return nil
}

// smallAnswer is what net/http has a buffer for. More than that takes room: where
// there is none, the methods below return errOverloaded and answer nothing.
const smallAnswer = 4 << 10

// json answers with a value.
func (w *response) json(code int, v any) error {
	var b bytes.Buffer
	if err := appendJSON(&b, v); err != nil {
		return err
	}
	return w.own(code, b.Bytes())
}

// appendJSON appends a value, with < and the like as they are.
func appendJSON(b *bytes.Buffer, v any) error {
	encoder := json.NewEncoder(b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the newline
	return nil
}

// own answers with JSON that nobody else holds.
func (w *response) own(code int, b []byte) error {
	if len(b) > smallAnswer && !w.conn.take(int64(len(b))) {
		return errOverloaded
	}
	return w.shared(code, b)
}

// shared answers with JSON that is there anyway. That the client may not take it
// is no error of ours.
func (w *response) shared(code int, b []byte) error {
	w.start(code, len(b))
	w.Write(b)
	return nil
}

// text answers with lines of text.
func (w *response) text(code int, lines string) error {
	if len(lines) > smallAnswer && !w.conn.take(int64(len(lines))) {
		return errOverloaded
	}
	w.refused = 0
	w.matched = true
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(lines)))
	w.WriteHeader(code)
	w.Write([]byte(lines))
	return nil
}

// start sends the header of an answer in JSON.
func (w *response) start(code, size int) {
	w.refused = 0
	w.matched = true
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(code)
	if w.doubtful {
		w.controller.Flush()
		w.lost = w.conn.isReset(resetTime)
	}
}

// Sizes of an answer with messages, in bytes.
const (
	messageSize = 512       // of a message, beside its data and attributes
	wholeAnswer = 1 << 20   // up to here it is made in one piece
	answerPiece = 256 << 10 // else in some of about this size
)

// answerSize returns how much an answer takes that has n messages with so many
// bytes of data and attributes, which are held by somebody else.
func answerSize(n, bytes int) int64 {
	return int64(min(bytes, wholeAnswer) + n*messageSize)
}

// takeFor takes the room for an answer with messages that nobody else holds.
func (w *response) takeFor(messages []message) bool {
	size := len(messages) * messageSize
	for _, m := range messages {
		size += len(m.Data) + len(m.Attributes) + m.trace.size()
	}
	return size <= smallAnswer || w.conn.take(int64(size))
}

// messages answers with {"data": [message…]}. The caller has taken the room.
func (w *response) messages(code int, messages []message) error {
	size := 16
	for i := range messages {
		size += len(messages[i].Data) + len(messages[i].Attributes) + len(messages[i].QueueID) + messages[i].trace.size() + 320
	}
	if size > wholeAnswer {
		w.pieces(code, messages)
		return nil
	}
	b := append(make([]byte, 0, size), `{"data":[`...)
	for i := range messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = messages[i].appendJSON(b)
	}
	return w.shared(code, append(b, "]}"...))
}

// pieces is messages for an answer that is too large to be held beside what it
// is made of: copies of a message for many queues share their data.
func (w *response) pieces(code int, messages []message) {
	var b []byte
	size := len(`{"data":[]}`) + len(messages) - 1
	for i := range messages {
		b = messages[i].appendJSON(b[:0])
		size += len(b)
	}
	w.start(code, size)
	b = append(b[:0], `{"data":[`...)
	for i := range messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = messages[i].appendJSON(b)
		if len(b) < answerPiece {
			continue
		}
		if _, err := w.Write(b); err != nil {
			return
		}
		b = b[:0]
	}
	w.Write(append(b, "]}"...))
}

// page is an answer in the making, for handlers that are not ours: nothing waits
// for the client before it is complete.
type page struct {
	header http.Header
	code   int // 0 is 200
	bytes.Buffer
}

func (p *page) Header() http.Header  { return p.header }
func (p *page) WriteHeader(code int) { p.code = code }

// page answers with a page.
func (w *response) page(p *page) error {
	if p.code == http.StatusServiceUnavailable || !w.conn.take(int64(p.Cap())) {
		p.header.Del("Content-Encoding")
		return errOverloaded
	}
	p.header.Set("Content-Length", strconv.Itoa(p.Len()))
	w.WriteHeader(cmp.Or(p.code, http.StatusOK))
	w.Write(p.Bytes())
	return nil
}

// listed is an item of a list. Its size is about how many bytes it takes, here and as
// JSON.
type listed interface{ size() int }

func (t topic) size() int { return 64 + len(t.ID) }
func (q queue) size() int { return queueSize/2 + len(q.MessageFilters) }
func (g group) size() int { return 256 + len(g.QueueID) + len(g.ID) }

// list responds with {"data": [item…]}, with as many of the items as fit into
// listSize, but one in any case.
func list[T listed](w *response, items []T) error {
	return writeList(w, items, func(int) any { return struct{}{} })
}

// writeList is list with the members of one more object, which may depend on how many
// of the items are listed.
func writeList[T listed](w *response, items []T, rest func(n int) any) error {
	size := len(`{"data":[]}`)
	for _, item := range items {
		size += item.size() + 1
	}
	if size > smallAnswer && !w.conn.take(2*int64(size)) {
		return errOverloaded
	}
	var b bytes.Buffer
	b.Grow(size)
	b.WriteString(`{"data":[`)
	n := 0
	for i, item := range items {
		before := b.Len()
		if i > 0 {
			b.WriteByte(',')
		}
		if err := appendJSON(&b, item); err != nil {
			return err
		}
		if i > 0 && b.Len() > listSize {
			b.Truncate(before)
			break
		}
		n++
	}
	b.WriteByte(']')
	end := b.Len()
	if err := appendJSON(&b, rest(n)); err != nil {
		return err
	}
	if b.Bytes()[end+1] == '}' {
		b.Bytes()[end] = '}'
		b.Truncate(end + 1)
	} else {
		b.Bytes()[end] = ','
	}
	if b.Len() > max(size, smallAnswer) {
		w.conn.add(int64(b.Len() - size))
	}
	return w.shared(http.StatusOK, b.Bytes())
}
