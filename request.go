package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// request is a request as the handlers see it.
type request struct {
	*http.Request
	w     responseWriter
	api   *apiStyle
	token *token // nil without authentication, and on public routes
	body  []byte

	signature *signature // of a request to SQS's API; nil if it was not signed

	// Ids in the path of a route of the native API.
	topicID, queueID, groupID, messageID string

	sqsJSON bool // a request of SQS is one of the JSON protocol

	unsent  unsent
	unknown unknownFields
}

// unsent has the messages received for a response that has not begun.
type unsent struct {
	queueID  string
	messages []message
}

// Context returns a context that ends when the connection has failed. The context of
// http.Request also ends when the client shuts down its side of the connection; such a
// client may still read the response.
func (r *request) Context() context.Context { return r.w.conn.ctx }

// whileHeard returns the context of http.Request, which ends long polls.
func (r *request) whileHeard() context.Context { return r.Request.Context() }

// readBody reads the body to its end, even if the handler ignores it, because only then
// does net/http notice that the client disconnects. The bytes that have arrived count as
// buffered, and not the length in the header.
func (r *request) readBody(limit int64, timeout time.Duration) error {
	if r.ContentLength == 0 {
		return nil
	}
	r.w.conn.move(phaseTransferring)
	defer r.w.conn.move(phaseWorking)
	if r.ContentLength > limit {
		r.discardBody()
		return errTooLarge
	}
	r.w.controller.SetReadDeadline(time.Now().Add(timeout))
	body, most := r.Body, r.ContentLength
	if most < 0 { // not known
		body, most = http.MaxBytesReader(r.w.ResponseWriter, r.Body, limit), limit
	}
	var b []byte
	var err error
	for err == nil {
		if len(b) == cap(b) {
			size := min(max(firstBody, 4*cap(b)), int(most)+1) // one more byte, to notice the end
			if !r.w.conn.take(int64(size-cap(b)), false) {
				r.w.Header().Set("Connection", "close")
				return errOverloaded
			}
			b = append(make([]byte, 0, size), b...)
		}
		var n int
		n, err = body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
	}
	if err == io.EOF {
		r.body, r.w.bodyRead = b, true
		r.w.controller.SetReadDeadline(time.Time{})
		return nil
	}
	r.w.Header().Set("Connection", "close") // so that net/http does not wait for the rest
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return errTooLarge
	}
	return errIncompleteBody
}

var (
	errTooLarge       = statusError{http.StatusRequestEntityTooLarge, "request body is too large; see -max-body"}
	errIncompleteBody = statusError{http.StatusBadRequest, "request body is incomplete or timed out"}
)

// firstBody is the size of the first buffer for a body.
const firstBody = 4 << 10

// unwantedBody is the number of bytes of an unread body that net/http reads; it closes the
// connection if there are more.
const unwantedBody = 256 << 10

// discardRest reads an unread body. Otherwise net/http would read it after the end of the
// request, and its bytes would count as the header of the next request.
func (r *request) discardRest() {
	if r.w.bodyRead || r.ContentLength == 0 || r.Header.Get("Expect") != "" {
		return
	}
	r.w.conn.move(phaseTransferring)
	io.CopyN(io.Discard, r.Body, unwantedBody)
}

// Bounds of discardBody.
const (
	discardSize    = 64 << 20
	discardTimeout = 5 * time.Second
)

// discardBody reads a body that is too large, within bounds, because most clients send
// all of it before they read the response. Clients that send Expect wait for the
// response first.
func (r *request) discardBody() {
	r.w.Header().Set("Connection", "close")
	if r.Header.Get("Expect") == "" {
		r.w.controller.SetReadDeadline(time.Now().Add(discardTimeout))
		io.CopyN(io.Discard, r.Body, discardSize)
	}
}

// readPath reads the ids in the path. For invalid ids of topics, queues and groups it
// returns that they are not found.
func (r *request) readPath() error {
	r.topicID, r.queueID, r.groupID = r.PathValue("topic_id"), r.PathValue("queue_id"), r.PathValue("group")
	if r.topicID != "" && !validID(r.topicID) {
		return errTopicNotFound
	}
	if r.queueID != "" && !validID(r.queueID) {
		return errQueueNotFound
	}
	if msg, _ := groupMistake(r.groupID); r.groupID != "" && msg != "" {
		return errGroupNotFound
	}
	if id := r.PathValue("message_id"); id != "" {
		var ok bool
		if r.messageID, ok = parseID(id); !ok {
			return invalid{{Loc: []any{"path", "message_id"}, Msg: "value is not a valid uuid", Type: "type_error.uuid"}}
		}
	}
	return nil
}

// preferredWait returns the wait of a long poll in the header Prefer, such as "wait=20", at
// most that of the flag. It returns 0 if there is none.
func (r *request) preferredWait(l *limits) time.Duration {
	text, _ := r.preference("wait")
	seconds, ok := parseDigits(text)
	if !ok || seconds < 0 {
		return 0
	}
	r.w.Header().Add("Preference-Applied", "wait="+strconv.Itoa(seconds))
	return time.Duration(min(float64(seconds), l.maxWait) * float64(time.Second))
}
