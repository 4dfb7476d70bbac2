package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// microQueue is the API of micro-queue. The body of a message is any bytes, which are
// returned unchanged. Reading a message consumes it. Errors are lines of text.
var microQueue = &apiStyle{func(_ *request, _ error, status int, detail any) any {
	if status == http.StatusForbidden {
		detail = "Forbidden"
	}
	return plainText(errorText(detail) + "\n")
}}

func plainText(text string) content {
	return content{mediaType: "text/plain; charset=utf-8", bytes: []byte(text)}
}

func (s *server) handleMicroQueue() {
	for _, v := range []struct {
		method, path string
		need         permission
		handler      handler
		help         string
		otherMethod  string // the error for other methods
	}{
		{"POST", "/in/{queue}", canPost, s.microIn,
			"POST: Enqueues a new job. The raw request body (e.g., JSON) is treated as the job payload.\nRequires 'post' permission for this queue.\n",
			"Invalid method. Use POST to enqueue."},
		{"GET", "/out/{queue}", canGet, consuming(s.microOut),
			"GET: Dequeues, claims, and returns the next job payload from the queue.\nRequires 'get' permission for this queue.\n",
			"Invalid method. Use GET to dequeue."},
		{"GET", "/compact/{queue}", admin, consuming(s.microCompact),
			"GET: Triggers a background compaction of the queue's log file to remove old data.\nRequires 'admin' permission.\n",
			"Invalid method. Use GET to compact."},
	} {
		allowed := v.method + ", OPTIONS"
		s.handle(microQueue, v.need, v.method+" "+v.path, v.handler)
		s.handle(microQueue, public, "OPTIONS "+v.path, func(r *request) (any, error) {
			r.w.Header().Set("Allow", allowed)
			return plainText(v.help), nil
		})
		s.register(&route{api: microQueue, need: v.need, pattern: v.path, maxBody: s.limits.maxBody, handler: func(r *request) (any, error) {
			if err := s.microCheck(r); err != nil {
				return nil, err
			}
			r.w.Header().Set("Allow", allowed)
			return nil, statusError{http.StatusMethodNotAllowed, v.otherMethod}
		}})
	}
}

var (
	errMicroEmptyJob = statusError{http.StatusBadRequest, "Cannot enqueue empty job"}
	errMicroEmpty    = statusError{http.StatusNotFound, "Queue is empty"}
)

// microNames is the maximum number of queues that an error names.
const microNames = 100

// microUnknown returns the error for a queue that does not exist. It names the queues
// that are visible to the token.
func (s *server) microUnknown(r *request) error {
	ids, err := s.store.queueIDs(r.Context(), r.visible(), microNames)
	if err != nil {
		return err
	}
	return statusError{http.StatusNotFound, fmt.Sprintf("Queue not found: %s. Available: %s", r.PathValue("queue"), strings.Join(ids, ", "))}
}

// microCheck returns an error unless the queue in the path exists.
func (s *server) microCheck(r *request) error {
	queueID := r.PathValue("queue")
	if !validID(queueID) {
		return s.microUnknown(r)
	}
	_, err := s.store.queue(r.Context(), queueID)
	if errors.Is(err, errQueueNotFound) {
		return s.microUnknown(r)
	}
	return err
}

func (s *server) microIn(r *request) (any, error) {
	queueID := r.PathValue("queue")
	if len(r.body) == 0 {
		return nil, cmp.Or(s.microCheck(r), error(errMicroEmptyJob))
	}
	if !validID(queueID) {
		return nil, s.microUnknown(r)
	}
	data := wrap(r.body, r.Header.Get("Content-Type"))
	_, err := s.engine.publish(r.Context(), &publication{queueID: queueID, trace: r.w.trace, messages: []draft{{data: data}}})
	if errors.Is(err, errQueueNotFound) {
		err = s.microUnknown(r)
	}
	return withStatus{status: http.StatusOK}, err
}

func (s *server) microOut(r *request) (any, error) {
	queueID := r.PathValue("queue")
	if !validID(queueID) {
		return nil, s.microUnknown(r)
	}
	m, err := s.receiveOne(r, queueID, s.engine.consume)
	switch {
	case errors.Is(err, errQueueNotFound):
		return nil, s.microUnknown(r)
	case err != nil:
		return nil, err
	case m == nil:
		return nil, errMicroEmpty
	}
	s.hintConsumed(r, queueID, "GET /out/{queue}")
	r.w.Header().Set("Content-Security-Policy", "sandbox")
	return rawJSON(unwrap(m.Data)), nil // the body may be any bytes
}

func (s *server) microCompact(r *request) (any, error) {
	if err := s.microCheck(r); err != nil {
		return nil, err
	}
	select {
	case s.compact <- struct{}{}:
	default: // a request is pending
	}
	return withStatus{status: http.StatusOK}, nil
}

// wrap returns the data of a message for any body. A JSON object is the data itself.
// Any other body becomes the member "body", or "body_base64" if it is not text, of an
// object with its "content_type".
func wrap(body []byte, contentType string) []byte {
	if start := rawjson.SkipSpace(body, 0); start < len(body) && body[start] == '{' {
		if f := parseBody(body); !f.broken && !f.isWrapped() {
			return body
		}
	}
	b := append([]byte(`{"content_type":`), rawjson.Quote(toUTF8(contentType))...)
	if isText(body) {
		b = append(append(b, `,"body":`...), rawjson.Quote(string(body))...)
	} else {
		b = append(b, `,"body_base64":"`...)
		b = append(base64.StdEncoding.AppendEncode(b, body), '"')
	}
	return append(b, '}')
}

// unwrap returns the body in data of wrap. The data is of a stored message, so it is JSON.
func unwrap(data []byte) []byte {
	f := &form{}
	if start := rawjson.SkipSpace(data, 0); data[start] == '{' {
		f.read(data[start:])
	}
	if !f.isWrapped() {
		return data
	}
	if text, ok := f.find("body"); ok {
		return []byte(rawjson.Unquote(text))
	}
	text, _ := f.find("body_base64")
	body, _ := base64.StdEncoding.DecodeString(rawjson.Unquote(text))
	return body
}

// isWrapped reports whether an object has the two members that wrap gives it.
func (f *form) isWrapped() bool {
	if len(f.all) != 2 || f.all[0].name != "content_type" || f.all[0].value[0] != '"' || f.all[1].value[0] != '"' {
		return false
	}
	if f.all[1].name == "body_base64" {
		_, err := base64.StdEncoding.DecodeString(rawjson.Unquote(f.all[1].value))
		return err == nil
	}
	return f.all[1].name == "body"
}

// isText reports whether a body is UTF-8 without control characters, other than tab,
// line feed and carriage return.
func isText(body []byte) bool {
	return utf8.Valid(body) && bytes.IndexFunc(body, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f
	}) < 0
}
