package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"queued/internal/rawjson"
)

// sharQ is the API of SharQ, a queue with a rate limit for each of many senders: a
// queue type is a queue, created by its first use, and a queue id is a group in it.
var sharQ = &apiStyle{func(_ *request, _ error, status int, detail any) any {
	if status == http.StatusNotFound {
		return sharQStatus{Status: "failure"}
	}
	return sharQStatus{"failure", errorText(detail)}
}}

// sharQStatus is the body of responses without further fields.
type sharQStatus struct {
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
}

func (s *server) handleSharQ() {
	s.handle(sharQ, canPost, "POST /enqueue/{queue_type}/{group}/{$}", sharQChecked(s.sharQEnqueue))
	s.handle(sharQ, anyToken, "GET /dequeue/{$}", consuming(sharQChecked(s.sharQDequeue)))
	s.handle(sharQ, canGet, "GET /dequeue/{queue_type}/{$}", consuming(sharQChecked(s.sharQDequeue)))
	s.handle(sharQ, canGet, "POST /finish/{queue_type}/{group}/{job_id}/{$}", s.sharQFinish)
	s.handle(sharQ, admin, "POST /interval/{queue_type}/{group}/{$}", sharQChecked(s.sharQInterval))
	s.handle(sharQ, admin, "DELETE /deletequeue/{queue_type}/{group}/{$}", sharQChecked(s.sharQDelete))
	s.handle(sharQ, canPostOrGet, "GET /status/{queue_type}/{group}/{job_id}/{$}", s.sharQJob)
	s.handle(sharQ, anyToken, "GET /metrics/{$}", s.sharQQueues) // the path without the slash is Prometheus's
	s.handle(sharQ, canPostOrGet, "GET /metrics/{queue_type}/{$}", sharQChecked(s.sharQGroups))
	s.handle(sharQ, canPostOrGet, "GET /metrics/{queue_type}/{group}/{$}", sharQChecked(s.sharQGroup))
	s.handle(sharQ, public, "GET /deepstatus/{$}", s.sharQDeepStatus).always = true
}

// addSlash adds the slash at the end of a path of SharQ's API that lacks it.
func (s *server) addSlash(r *http.Request) {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch first {
	case "enqueue", "dequeue", "finish", "interval", "deletequeue", "status", "metrics", "deepstatus":
	default:
		return
	}
	if _, pattern := s.mux.Handler(r); strings.HasSuffix(pattern, "/{$}") { // the mux would redirect to it
		r.URL.Path += "/"
		if r.URL.RawPath != "" {
			r.URL.RawPath += "/"
		}
	}
}

// sharQDefault is the queue of a dequeue without a queue type.
const sharQDefault = "default"

// validName reports whether a queue type, queue id or job id is valid in SharQ.
func validName(name string) bool {
	return validID(name) && len(name) <= 100 && !strings.Contains(name, ".")
}

// sharQPath has the names in a path.
type sharQPath struct{ queueID, group, jobID string }

func (r *request) sharQPath() sharQPath {
	return sharQPath{r.PathValue("queue_type"), r.PathValue("group"), r.PathValue("job_id")}
}

// check returns an error for the first name that is invalid in SharQ.
func (p sharQPath) check(pattern string) error {
	for _, v := range []struct{ wildcard, name, value string }{{"{job_id}", "job_id", p.jobID}, {"{group}", "queue_id", p.group}, {"{queue_type}", "queue_type", p.queueID}} { // in SharQ's order
		if strings.Contains(pattern, v.wildcard) && !validName(v.value) {
			return sharQInvalid(v.name)
		}
	}
	return nil
}

// sharQChecked wraps handlers that take only names that are valid in SharQ.
func sharQChecked(h func(r *request, p sharQPath) (any, error)) handler {
	return func(r *request) (any, error) {
		p := r.sharQPath()
		if err := p.check(r.Pattern); err != nil {
			return nil, err
		}
		return h(r, p)
	}
}

func sharQInvalid(name string) error {
	return statusError{http.StatusBadRequest, fmt.Sprintf("`%s` has an invalid value.", name)}
}

// sharQForm reads the fields of a body as SharQ does: after the first mistake, which it
// keeps in err, it reads nothing more and returns zeros.
type sharQForm struct {
	*form
	err error
}

// parseSharQ reads a body that must be an object.
func parseSharQ(body []byte) *sharQForm {
	f := &sharQForm{form: parseBody(body)}
	if f.broken {
		f.err = statusError{http.StatusBadRequest, errorText(f.mistakes)}
	}
	return f
}

// mandatory returns the JSON of a mandatory field.
func (f *sharQForm) mandatory(name string) []byte {
	if f.err != nil {
		return nil
	}
	raw, has := f.find(name)
	if !has {
		f.err = statusError{http.StatusBadRequest, fmt.Sprintf("`%s` is a mandatory parameter.", name)}
	}
	return raw
}

// name reads a mandatory name.
func (f *sharQForm) name(name string) string {
	raw := f.mandatory(name)
	if f.err == nil && (raw[0] != '"' || !validName(rawjson.Unquote(raw))) {
		f.err = sharQInvalid(name)
	}
	if f.err != nil {
		return ""
	}
	return rawjson.Unquote(raw)
}

// integer reads a mandatory whole number.
func (f *sharQForm) integer(name string, within bounds) int {
	raw := f.mandatory(name)
	if f.err != nil {
		return 0
	}
	n, ok := parseInteger(string(raw))
	if !ok || n < within.min || n > within.max {
		f.err = sharQInvalid(name)
	}
	return n
}

// optional is like integer, for a number that may be missing or null.
func (f *sharQForm) optional(name string, within bounds, missing int) int {
	if raw, _ := f.find(name); f.err != nil || rawjson.IsNull(raw) {
		return missing
	}
	return f.integer(name, within)
}

func (s *server) sharQEnqueue(r *request, p sharQPath) (any, error) {
	m, err := s.sharQDraft(r.body, p.group)
	if err != nil {
		return nil, err
	}
	_, err = s.publishTo(r, p.queueID, m)
	if full, ok := errors.AsType[errGroupFull](err); ok {
		return withStatus{http.StatusTooManyRequests, struct {
			sharQStatus
			Length int `json:"current_queue_length"`
		}{sharQStatus{"failure", "Max queue length reached"}, full.waiting}}, nil
	}
	if err != nil {
		return nil, err
	}
	v := struct {
		Status string `json:"status"`
		Length *int   `json:"current_queue_length,omitempty"`
	}{Status: "queued"}
	if m.job.maxWaiting != nil {
		v.Length = &m.job.waiting
	}
	return created(v, nil)
}

// sharQDraft reads the job of an enqueue.
func (s *server) sharQDraft(body []byte, group string) (draft, error) {
	f := parseSharQ(body)
	j := &job{id: f.name("job_id")}
	j.interval = time.Duration(f.integer("interval", bounds{0, maxInterval})) * time.Millisecond
	j.maxDeliveries = f.optional("requeue_limit", bounds{-1, math.MaxInt32 - 1}, s.limits.requeueLimit) + 1
	payload := f.mandatory("payload")
	if f.err != nil {
		return draft{}, f.err
	}
	if payload[0] == '{' {
		inside := &form{}
		inside.read(payload)
		if raw, _ := inside.find("max_queued_length"); !rawjson.IsNull(raw) {
			n, ok := parseNumber(string(raw))
			if !ok {
				return draft{}, sharQInvalid("max_queued_length")
			}
			j.maxWaiting = new(int(min(max(math.Ceil(n), 0), math.MaxInt32)))
		}
	}
	return draft{group: group, job: j, data: wrapPayload(payload)}, nil
}

// wrapPayload returns the data of a message for a payload, which may be any JSON. An object
// is the data itself. Another value becomes {"payload": …}, as does an object of that form.
func wrapPayload(payload []byte) []byte {
	if payload[0] == '{' && unwrapPayload(payload) == nil {
		return payload
	}
	return append(append([]byte(`{"payload":`), payload...), '}')
}

// unwrapPayload returns the payload in data of wrapPayload, nil if it is data itself.
func unwrapPayload(data []byte) []byte {
	f := &form{}
	f.read(data)
	if len(f.all) == 1 && f.all[0].name == "payload" {
		return f.all[0].value
	}
	return nil
}

func (s *server) sharQDequeue(r *request, p sharQPath) (any, error) {
	if p.queueID == "" {
		if p.queueID = sharQDefault; !r.mayGet(p.queueID) {
			return nil, errMessageNotFound
		}
	}
	m, err := s.receiveOne(r, p.queueID, s.creating(r, s.engine.receive))
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, errMessageNotFound
	}
	group := cmp.Or(m.Group, sharQDefault)
	waiting, err := s.engine.countDequeue(r.Context(), groupKey{m.queueKey, group})
	if err != nil {
		return nil, err
	}
	if m.Group == "" {
		waiting = 0
	}
	return rawJSON(m.appendSharQJSON(nil, group, waiting)), nil
}

// appendSharQJSON appends the message in SharQ's format. The job id of a message that
// was published by another API is its id.
func (m *message) appendSharQJSON(b []byte, group string, waiting int64) []byte {
	b = append(append(b, `{"status":"success","queue_id":`...), rawjson.Quote(group)...)
	b = append(b, `,"job_id":"`...)
	if m.jobID.Valid {
		b = append(b, m.jobID.String...)
	} else {
		b = append(b, m.ID...)
	}
	b = append(b, `","payload":`...)
	if payload := unwrapPayload(m.Data); payload != nil {
		b = append(b, payload...)
	} else {
		b = append(b, m.Data...)
	}
	remaining := int64(-1)
	if m.maxDeliveries.Valid {
		remaining = m.maxDeliveries.Int64 - int64(m.DeliveryAttempts)
	}
	b = strconv.AppendInt(append(b, `,"requeues_remaining":`...), remaining, 10)
	b = strconv.AppendInt(append(b, `,"current_queue_length":`...), waiting, 10)
	return append(b, '}')
}

func (s *server) sharQFinish(r *request) (any, error) {
	p := r.sharQPath()
	if validName(p.queueID) && validName(p.group) && validName(p.jobID) {
		done, err := s.engine.finish(r.Context(), p.queueID, p.group, p.jobID)
		if err != nil {
			return nil, err
		}
		if done {
			return sharQStatus{Status: "success"}, nil
		}
		if _, ok := parseID(p.jobID); !ok {
			return nil, errMessageNotFound
		}
	}
	// It may be a message that was published by another API.
	m, err := s.sharQPeek(r)
	if err != nil {
		return nil, err
	}
	if m.State != "in_flight" {
		return nil, errMessageNotFound
	}
	err = s.engine.ack(r.Context(), ackItem{id: m.ID, leasedUntil: m.ScheduledAt.Time})
	if _, ok := errors.AsType[errLeaseEnded](err); ok {
		err = errMessageNotFound
	}
	return sharQStatus{Status: "success"}, err
}

// sharQJob returns the state of a job. SharQ has no such request.
func (s *server) sharQJob(r *request) (any, error) {
	m, err := s.sharQPeek(r)
	return struct {
		Status string `json:"status"`
		State  string `json:"state"`
	}{"success", m.State}, err
}

// sharQPeek returns the job in the path. Names that are invalid in SharQ are an error only
// if there is no such message: a message of another API may be in a group with such a name.
func (s *server) sharQPeek(r *request) (message, error) {
	p := r.sharQPath()
	mistake := p.check(r.Pattern)
	if msg, _ := groupMistake(p.group); msg != "" || !validName(p.queueID) || !validName(p.jobID) {
		return message{}, mistake
	}
	m, err := s.store.job(r.Context(), p.queueID, p.group, p.jobID)
	if errors.Is(err, errMessageNotFound) && mistake != nil {
		err = mistake
	}
	return m, err
}

func (s *server) sharQInterval(r *request, p sharQPath) (any, error) {
	f := parseSharQ(r.body)
	ms := f.integer("interval", bounds{0, maxInterval})
	if f.err != nil {
		return nil, f.err
	}
	g, err := s.store.group(r.Context(), p.queueID, p.group)
	if err == nil && g.State == stateIdle {
		err = errGroupNotFound
	}
	if err != nil {
		return nil, err
	}
	_, err = s.store.setInterval(r.Context(), p.queueID, p.group, &ms, nil)
	if err := s.logged(r, err, "group changed", "queue", p.queueID, "group", p.group); err != nil {
		return nil, err
	}
	s.engine.announce(p.queueID, time.Time{})
	return sharQStatus{Status: "success"}, nil
}

func (s *server) sharQDelete(r *request, p sharQPath) (any, error) {
	all := false
	if len(bytes.TrimSpace(r.body)) > 0 {
		f := parseSharQ(r.body)
		if f.err != nil {
			return nil, f.err
		}
		raw, _ := f.find("purge_all")
		all = truthy(raw)
	}
	removed := 0
	err := s.store.purgeGroup(r.Context(), p.queueID, p.group, true, func(n int) {
		removed += n
		s.metrics.add(messagesPurged, p.queueID, n)
	})
	if err != nil && !errors.Is(err, errQueueNotFound) {
		return nil, err
	}
	result := sharQStatus{"Failure", "No queued calls found"}
	if removed > 0 {
		result = sharQStatus{"Success", "Successfully removed all queued calls"}
	}
	if removed > 0 && all {
		result.Message += " and purged related resources"
		if _, err := s.store.setInterval(r.Context(), p.queueID, p.group, nil, new(false)); err != nil {
			return nil, err
		}
	}
	s.engine.announce(p.queueID, time.Time{})
	return result, s.logged(r, nil, "group purged", "queue", p.queueID, "group", p.group, "count", removed)
}

// truthy reports whether a JSON value is true in Python; a missing one is false.
func truthy(raw []byte) bool {
	switch string(raw) {
	case "", "null", "false", "0", `""`, "[]", "{}":
		return false
	}
	return true
}

// appendCounts appends the two fields of counts per minute to a JSON object.
func appendCounts(b []byte, all []jobCount) []byte {
	for i, name := range []string{"enqueue_counts", "dequeue_counts"} {
		b = fmt.Appendf(b, `,%q:{`, name)
		for j, v := range all {
			if j > 0 {
				b = append(b, ',')
			}
			b = fmt.Appendf(b, `"%d":%d`, v.minute, [...]int64{v.enqueued, v.dequeued}[i])
		}
		b = append(b, '}')
	}
	return b
}

// sharQQueues lists the queues that hold messages with a group.
func (s *server) sharQQueues(r *request) (any, error) {
	ids, err := s.store.grouped(r.Context(), r.visible())
	if err != nil {
		return nil, err
	}
	counts, err := s.store.jobCounts(r.Context(), r.visible(), "")
	b := append([]byte(`{"status":"success","queue_types":`), quoteAll(ids)...)
	return rawJSON(append(appendCounts(b, counts), '}')), err
}

func (s *server) sharQGroups(r *request, p sharQPath) (any, error) {
	ids, err := s.store.groupIDs(r.Context(), p.queueID)
	b := append([]byte(`{"status":"success","queue_ids":`), quoteAll(ids)...)
	return rawJSON(append(b, '}')), err
}

func (s *server) sharQGroup(r *request, p sharQPath) (any, error) {
	g, err := s.store.group(r.Context(), p.queueID, p.group)
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, err
	}
	counts, err := s.store.jobCounts(r.Context(), &names{exact: []string{p.queueID}}, p.group)
	b := fmt.Appendf(nil, `{"status":"success","queue_length":%d`, g.Length)
	return rawJSON(append(appendCounts(b, counts), '}')), err
}

// quoteAll returns texts as a JSON list, up to listSize bytes.
func quoteAll(texts []string) []byte {
	b := []byte{'['}
	for i, text := range texts {
		quoted := rawjson.Quote(text)
		if len(b)+len(quoted) > listSize {
			break
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, quoted...)
	}
	return append(b, ']')
}

func (s *server) sharQDeepStatus(*request) (any, error) {
	if !s.healthy(context.Background()) {
		return nil, errUnavailable
	}
	return sharQStatus{Status: "success"}, nil
}

// sharQGreeting is the body of GET /, which tells SharQ's users that a server runs.
type sharQGreeting struct {
	Message string `json:"message"`
}
