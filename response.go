package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// responseWriter is a ResponseWriter that records what was sent. Until a route has
// matched it holds back the responses of the mux, which are not JSON.
type responseWriter struct {
	http.ResponseWriter
	request    *request
	controller http.ResponseController
	conn       *conn
	timeout    time.Duration // for the client to read the response
	trace      trace         // of the request
	requestID  string        // that of the trace, or else generated
	matched    bool
	bodyRead   bool // the body was read to its end
	refused    int  // the status that the mux would have sent
	doubtful   bool // the client may have closed the connection, so the header is sent first, alone
	lost       bool // the client had closed the connection; nothing is sent after the header
	status     int  // 0 before the header is sent
	sent       int64
}

// logged returns attributes of a log entry and those that identify the request.
func (w *responseWriter) logged(attributes ...any) []any {
	attributes = append(attributes, "request_id", w.requestID)
	if w.trace.traceparent != "" {
		attributes = append(attributes, "traceparent", w.trace.traceparent)
	}
	return attributes
}

// WriteHeader starts the time that the client has to read the response.
func (w *responseWriter) WriteHeader(code int) {
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

func (w *responseWriter) Write(b []byte) (int, error) {
	if w.refused != 0 && w.status == 0 {
		return len(b), nil
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(b) > smallResponse {
		w.conn.move(phaseTransferring)
	}
	if w.lost {
		return 0, net.ErrClosed
	}
	for part := range slices.Chunk(b, progressSize) { // each part that the client reads is progress
		n, err := w.ResponseWriter.Write(part)
		w.sent += int64(n)
		if err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// smallResponse is the size of net/http's buffer for a response. Larger responses count as
// buffered.
const smallResponse = 4 << 10

// withStatus is a response with another status than 200. Its body may be nil for none.
type withStatus struct {
	status int
	body   any
}

// created returns the response of a handler that has created a resource.
func created(v any, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return withStatus{http.StatusCreated, v}, nil
}

// content is a body that is sent unchanged.
type content struct {
	mediaType string
	bytes     []byte
	static    bool // the bytes are part of the program, and need no further memory
}

// rawJSON is a body that is already JSON.
func rawJSON(b []byte) content { return content{mediaType: "application/json", bytes: b} }

// encoder is a body with items, in JSON unless it is an sqsBody.
type encoder interface {
	// size estimates the bytes of memory of the items.
	size() int

	// piece appends a part of the body of about pieceSize bytes, beginning with an item.
	// It returns the item that the next part begins with, or -1 at the end.
	piece(b []byte, item int) (piece []byte, next int)
}

// pieceSize is about the number of bytes of a body that are in memory at once.
const pieceSize = 1 << 20

// send responds with the value that a handler has returned: with 204 for nil, and with
// JSON for any other value. If there is no capacity for the response, it sends nothing and
// returns errOverloaded.
func (s *server) send(r *request, v any) error {
	status := http.StatusOK
	if special, ok := v.(withStatus); ok {
		status, v = special.status, special.body
	} else if v == nil {
		status = http.StatusNoContent
	}
	// The messages of a POST are stored, and after an error the client would publish
	// them again. The response is not much larger than the body, which was admitted.
	// Messages that SQS receives with a POST are released.
	must := r.Method == http.MethodPost && (r.api != amazonSQS || len(r.unsent.messages) == 0)
	mediaType := "application/json"
	var b []byte
	next := -1
	body, _ := v.(encoder)
	buffered := true
	switch v := v.(type) {
	case nil:
		mediaType = ""
	case content:
		b, mediaType, buffered = v.bytes, v.mediaType, !v.static
	case encoder:
		if !r.w.take(v.size(), must) {
			return errOverloaded
		}
		b, next = v.piece(nil, 0)
		if v, ok := v.(sqsBody); ok {
			mediaType = v.mediaType
		}
	default:
		b = appendJSON(nil, v)
	}
	if buffered && !r.w.take(cap(b), must) {
		return errOverloaded
	}
	length := len(b)
	if next >= 0 {
		var rest []byte
		for n := next; n >= 0; length += len(rest) {
			rest, n = body.piece(rest[:0], n)
		}
	}
	r.w.start(status, mediaType, length)
	if len(r.unsent.messages) > 0 && !r.w.lost {
		s.countDelivery(r)
	}
	if len(b) == 0 {
		return nil
	}
	_, err := r.w.Write(b)
	for next >= 0 && err == nil {
		b, next = body.piece(b[:0], next)
		_, err = r.w.Write(b)
	}
	return nil
}

// take takes some of the buffered bytes for a response; see conn.take.
func (w *responseWriter) take(n int, must bool) bool {
	return n <= smallResponse || w.conn.take(int64(n), must)
}

// start sends the header of a response.
func (w *responseWriter) start(status int, mediaType string, length int) {
	w.refused, w.matched = 0, true
	header := w.Header()
	if mediaType != "" {
		header.Set("Content-Type", mediaType)
		header.Set("Content-Length", strconv.Itoa(length))
	}
	w.WriteHeader(status)
	if w.doubtful {
		w.controller.Flush()
		w.lost = w.conn.isReset(resetTime)
	}
}

// appendJSON appends a value in JSON, without escaping characters such as <. It panics if
// the value cannot be encoded; no handler returns such a value.
func appendJSON(b []byte, v any) []byte {
	buffer := bytes.NewBuffer(b)
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		panic(err)
	}
	return buffer.Bytes()[:buffer.Len()-1] // without the newline
}

// messageSize is about the number of bytes of memory of a message, without its data and
// attributes.
const messageSize = 512

// messageList is a body of {"data": [message…]}.
type messageList struct {
	messages []message
	shows    shown
	shared   bool // the data is part of the body of the request, which is counted already

	hasConflicts bool     // the body has a member conflicts
	conflicts    []string // ids of messages
}

func (l *messageList) size() int {
	size := len(l.messages) * messageSize
	if !l.shared {
		for i := range l.messages {
			size += len(l.messages[i].Data) + len(l.messages[i].Attributes) + l.messages[i].past.size()
		}
	}
	return size
}

func (l *messageList) piece(b []byte, item int) ([]byte, int) {
	size := len(`{"data":[]}`)
	for i := item; i < len(l.messages) && (i == item || size < pieceSize); i++ {
		size += l.messages[i].jsonSize() + 1
	}
	b = slices.Grow(b, size)
	if item == 0 {
		b = append(b, `{"data":[`...)
	}
	for i := item; i < len(l.messages); i++ {
		if len(b) >= pieceSize {
			return b, i
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = l.messages[i].appendJSON(b, l.shows)
	}
	b = append(b, ']')
	if l.hasConflicts {
		b = append(b, `,"conflicts":[`...)
		for i, id := range l.conflicts {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(append(b, '"'), id...), '"')
		}
		b = append(b, ']')
	}
	return append(b, '}'), -1
}

// listed is an item of a list. Its size is about its number of bytes in memory.
type listed interface{ size() int }

func (t topic) size() int { return 64 + len(t.ID) }
func (q queue) size() int { return queueSize/2 + len(q.MessageFilters) }
func (g group) size() int { return 256 + len(g.QueueID) + len(g.ID) }

// itemList is a body of {"data": [item…]}. It has as many items as fit into listSize, and
// at least one. It also has the members of another object, which may depend on the number
// of items.
type itemList[T listed] struct {
	items []T
	rest  func(n int) any // nil if there are no further members
}

// listOf returns the response of a handler that lists items.
func listOf[T listed](items []T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return itemList[T]{items: items}, nil
}

func (l itemList[T]) size() (size int) {
	for _, item := range l.items {
		size += item.size()
	}
	return size
}

func (l itemList[T]) piece(b []byte, _ int) ([]byte, int) {
	b = append(slices.Grow(b, l.size()+16), `{"data":[`...)
	n := 0
	for i, item := range l.items {
		before := len(b)
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSON(b, item)
		if i > 0 && len(b) > listSize {
			b = b[:before]
			break
		}
		n++
	}
	b = append(b, ']')
	if l.rest != nil {
		end := len(b)
		b = appendJSON(b, l.rest(n))
		b[end] = ','
		return b, -1
	}
	return append(b, '}'), -1
}
