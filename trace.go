package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"queued/internal/rawjson"
)

// trace is the request id and the trace context of a request, which the server logs
// and stores with messages. A field is empty if the header is missing or invalid;
// neither is an error.
type trace struct {
	requestID   string // X-Request-Id
	traceparent string // W3C Trace Context, section 3.2
}

// maxTrace is the maximum length of each of the two, in bytes.
const maxTrace = 128

// readTrace reads the two headers. It ignores a header that is sent more than once.
func readTrace(h http.Header) (t trace) {
	if all := h["X-Request-Id"]; len(all) == 1 && isVisibleASCII(all[0], maxTrace) {
		t.requestID = all[0]
	}
	if all := h["Traceparent"]; len(all) == 1 && validTraceparent(all[0]) {
		t.traceparent = all[0]
	}
	return t
}

// validTraceparent reports whether a text is a traceparent of version 00 or of a
// later one, which starts with the same fields and may have more after a dash.
func validTraceparent(text string) bool {
	const length = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(text) < length || !isVisibleASCII(text, maxTrace) || text[2] != '-' || text[35] != '-' || text[52] != '-' {
		return false
	}
	version, traceID, parentID, flags := text[:2], text[3:35], text[36:52], text[53:length]
	for _, part := range []string{version, traceID, parentID, flags} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return false
		}
	}
	if strings.Trim(traceID, "0") == "" || strings.Trim(parentID, "0") == "" || version == "ff" {
		return false
	}
	return len(text) == length || version != "00" && text[length] == '-'
}

// Scan reads the column trace of a message.
func (t *trace) Scan(src any) error {
	*t = trace{}
	if src == nil {
		return nil
	}
	text, ok := src.([]byte)
	if !ok {
		return fmt.Errorf("trace: cannot scan %T", src)
	}
	rawjson.WalkObject(text, func(key string, value []byte) {
		switch key {
		case "request_id":
			t.requestID = rawjson.Unquote(value)
		case "traceparent":
			t.traceparent = rawjson.Unquote(value)
		}
	})
	return nil
}

// json returns the value for the column trace of a message, or nil if the trace is empty.
func (t trace) json() []byte {
	if t == (trace{}) {
		return nil
	}
	b := appendOptional([]byte{'{'}, `"request_id":`, t.requestID)
	if t.requestID != "" && t.traceparent != "" {
		b = append(b, ',')
	}
	return append(appendOptional(b, `"traceparent":`, t.traceparent), '}')
}

// size returns the number of bytes.
func (t trace) size() int { return len(t.requestID) + len(t.traceparent) }

// requestIDs generates ids for requests that have none.
type requestIDs struct {
	prefix string // random, and therefore unique among servers
	last   atomic.Uint64
}

func newRequestIDs() *requestIDs { return &requestIDs{prefix: rand.Text()[:12] + "-"} }

func (r *requestIDs) next() string {
	b := append(make([]byte, 0, 40), r.prefix...)
	return string(strconv.AppendUint(b, r.last.Add(1), 10))
}
