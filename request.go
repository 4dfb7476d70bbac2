package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// request is what a handler works on.
type request struct {
	*http.Request
	w     *response
	api   *compatAPI
	token *token // nil if the server is open, or the route to everybody
	body  []byte
}

// Context ends when the connection has failed, and not, as that of http.Request,
// when the client has said all that it had to say and only reads now.
func (r *request) Context() context.Context { return r.w.conn.ctx }

// whileHeard returns the context of http.Request: long polls end with it.
func (r *request) whileHeard() context.Context { return r.Request.Context() }

// withBody calls the handler with the body of the request, as long as there is
// room for it.
func (s *server) withBody(r *request, limit int64, h handler) error {
	if r.ContentLength > limit {
		r.discardBody()
		return errTooLarge
	}
	if err := r.readBody(limit, s.transferTimeout); err != nil {
		return err
	}
	return h(r)
}

// readBody reads the body to its end, also where none is expected: only then
// does net/http notice a client that hangs up. It takes room for what has come,
// and not for what the header says will come.
func (r *request) readBody(limit int64, timeout time.Duration) error {
	if r.ContentLength == 0 {
		return nil
	}
	r.w.controller.SetReadDeadline(time.Now().Add(timeout))
	r.w.conn.beginBody()
	defer r.w.conn.endBody()
	body := http.MaxBytesReader(r.w.ResponseWriter, r.Body, limit)
	most := limit
	if r.ContentLength > 0 {
		most = r.ContentLength
	}
	var b []byte
	var err error
	for err == nil {
		if len(b) == cap(b) {
			size := min(max(firstBody, 4*cap(b)), int(most)+1) // one more, to see the end
			if !r.w.conn.take(int64(size - cap(b))) {
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
		r.body, r.w.bodyRead, err = b, true, nil
	}
	if err == nil {
		r.w.controller.SetReadDeadline(time.Time{})
		return nil
	}
	// Or net/http would wait for the rest before it answers.
	r.w.Header().Set("Connection", "close")
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return errTooLarge
	}
	return status{http.StatusBadRequest, "request body is incomplete or timed out"}
}

// firstBody is the size of the first buffer for a body.
const firstBody = 4 << 10

// unwantedBody is how much net/http reads of a body that no handler wants, after
// which it closes the connection.
const unwantedBody = 256 << 10

// discardRest reads what no handler wanted: net/http would, but after the end of
// the request, and it would look like the header of the next.
func (w *response) discardRest(body io.Reader) {
	if w.bodyRead {
		return
	}
	w.conn.beginBody()
	defer w.conn.endBody()
	io.CopyN(io.Discard, body, unwantedBody)
}

// Bounds of discardBody.
const (
	discardSize    = 64 << 20
	discardTimeout = 5 * time.Second
)

// discardBody reads a body that is not wanted, within bounds, because most
// clients do not look for an answer before they have sent theirs. Those that do
// have asked whether to send it.
func (r *request) discardBody() {
	r.w.Header().Set("Connection", "close")
	if r.Header.Get("Expect") == "" {
		r.w.controller.SetReadDeadline(time.Now().Add(discardTimeout))
		io.CopyN(io.Discard, r.Body, discardSize)
	}
}

var errTooLarge = status{http.StatusRequestEntityTooLarge, "request body is too large; see -max-body"}

// topicID returns the id in the path. One that no topic can have is not found.
func (r *request) topicID() (string, error) {
	return pathID(r.PathValue("topic_id"), errTopicNotFound)
}

func (r *request) queueID() (string, error) {
	return pathID(r.PathValue("queue_id"), errQueueNotFound)
}

// groupID returns the queue and the group in the path.
func (r *request) groupID() (queueID, id string, err error) {
	queueID, err = r.queueID()
	id = r.PathValue("group")
	if msg, _ := groupMistake(id); msg != "" && err == nil {
		err = errGroupNotFound
	}
	return queueID, id, err
}

func pathID(id string, missing error) (string, error) {
	if !validID(id) {
		return "", missing
	}
	return id, nil
}

func (r *request) messageID() (string, error) {
	id, ok := parseID(r.PathValue("message_id"))
	if !ok {
		return "", invalid{{Loc: []any{"path", "message_id"}, Msg: "value is not a valid uuid", Type: "type_error.uuid"}}
	}
	return id, nil
}
