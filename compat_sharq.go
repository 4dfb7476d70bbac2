package main

import (
	"bytes"
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
// queue type is a queue, made by its first use, and a queue id is a group in it.
var sharQ = &compatAPI{func(w *response, code int, detail any) error {
	answer := sharQStatus{Status: "failure"}
	if code != http.StatusNotFound {
		answer.Message = errorText(detail)
	}
	return w.json(code, answer)
}}

// sharQStatus is the body of answers that have nothing more to say.
type sharQStatus struct {
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
}

func (s *server) handleSharQ() {
	s.handleAs(sharQ, canPost, "POST /enqueue/{queue_type}/{group}/{$}", s.sharQEnqueue)
	s.handleAs(sharQ, anyToken, "GET /dequeue/{$}", consuming(s.sharQDequeue))
	s.handleAs(sharQ, canGet, "GET /dequeue/{queue_type}/{$}", consuming(s.sharQDequeue))
	s.handleAs(sharQ, canGet, "POST /finish/{queue_type}/{group}/{job_id}/{$}", s.sharQFinish)
	s.handleAs(sharQ, admin, "POST /interval/{queue_type}/{group}/{$}", s.sharQInterval)
	s.handleAs(sharQ, admin, "DELETE /deletequeue/{queue_type}/{group}/{$}", s.sharQDelete)
	s.handleAs(sharQ, canPostOrGet, "GET /status/{queue_type}/{group}/{job_id}/{$}", s.sharQJob)
	s.handleAs(sharQ, anyToken, "GET /metrics/{$}", s.sharQQueues) // without the slash it is Prometheus's
	s.handleAs(sharQ, canPostOrGet, "GET /metrics/{queue_type}/{$}", s.sharQGroups)
	s.handleAs(sharQ, canPostOrGet, "GET /metrics/{queue_type}/{group}/{$}", s.sharQGroup)
	s.register(sharQ, public, "GET /deepstatus/{$}", s.limits.maxBody, s.sharQDeepStatus)
}

// addSlash adds the slash that ends all of SharQ's paths to one of them without it.
func (s *server) addSlash(r *http.Request) {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch first {
	case "enqueue", "dequeue", "finish", "interval", "deletequeue", "status", "metrics", "deepstatus":
	default:
		return
	}
	if _, pattern := s.mux.Handler(r); strings.HasSuffix(pattern, "/{$}") { // to which the mux would redirect
		r.URL.Path += "/"
		if r.URL.RawPath != "" {
			r.URL.RawPath += "/"
		}
	}
}

// sharQDefault is the queue of a dequeue that names none.
const sharQDefault = "default"

// validName reports whether SharQ takes a name of a queue type, queue id or job.
func validName(name string) bool {
	return validID(name) && len(name) <= 100 && !strings.Contains(name, ".")
}

// sharQPath is what a path names.
type sharQPath struct{ queueID, group, jobID string }

func (r *request) sharQNames() sharQPath {
	return sharQPath{r.PathValue("queue_type"), r.PathValue("group"), r.PathValue("job_id")}
}

// sharQPath is sharQNames for names that SharQ takes.
func (r *request) sharQPath() (p sharQPath, err error) {
	p = r.sharQNames()
	for _, v := range []struct{ wildcard, name, value string }{{"{job_id}", "job_id", p.jobID}, {"{group}", "queue_id", p.group}, {"{queue_type}", "queue_type", p.queueID}} { // in SharQ's order
		if strings.Contains(r.Pattern, v.wildcard) && !validName(v.value) {
			return p, sharQInvalid(v.name)
		}
	}
	return p, nil
}

func sharQInvalid(name string) error {
	return status{http.StatusBadRequest, fmt.Sprintf("`%s` has an invalid value.", name)}
}

func sharQMandatory(name string) error {
	return status{http.StatusBadRequest, fmt.Sprintf("`%s` is a mandatory parameter.", name)}
}

// sharQInteger reads a whole number. A mandatory one that is missing is an error,
// and so is one that is null; for others that is missing.
func (f *form) sharQInteger(name string, within bounds, missing *int) (int, error) {
	raw, has := f.find(name)
	if !has && missing == nil {
		return 0, sharQMandatory(name)
	}
	if missing != nil && (!has || rawjson.IsNull(raw)) {
		return *missing, nil
	}
	n, ok := parseInteger(string(raw))
	if !ok || n < within.min || n > within.max {
		return 0, sharQInvalid(name)
	}
	return n, nil
}

// sharQBody reads a body that must be an object.
func (r *request) sharQBody() (*form, error) {
	f := parseBody(r.body)
	if f.broken {
		return nil, status{http.StatusBadRequest, errorText(f.mistakes)}
	}
	return f, nil
}

func (s *server) sharQEnqueue(r *request) error {
	p, err := r.sharQPath()
	if err != nil {
		return err
	}
	f, err := r.sharQBody()
	if err != nil {
		return err
	}
	m, err := s.sharQDraft(f, p.group)
	if err != nil {
		return err
	}
	var full errGroupFull
	_, err = s.publishTo(r, p.queueID, m)
	if errors.As(err, &full) {
		return r.w.json(http.StatusTooManyRequests, struct {
			sharQStatus
			Length int `json:"current_queue_length"`
		}{sharQStatus{"failure", "Max queue length reached"}, full.waiting})
	}
	if err != nil {
		return err
	}
	s.jobCounts.add(time.Now(), p.queueID, p.group, jobCount{enqueued: 1})
	answer := struct {
		Status string `json:"status"`
		Length *int   `json:"current_queue_length,omitempty"`
	}{Status: "queued"}
	if m.job.maxWaiting != nil {
		answer.Length = &m.job.waiting
	}
	return r.w.json(http.StatusCreated, answer)
}

// sharQDraft reads a job that is to be enqueued.
func (s *server) sharQDraft(f *form, group string) (m draft, err error) {
	id, has := f.find("job_id")
	if !has {
		return m, sharQMandatory("job_id")
	}
	if id[0] != '"' || !validName(rawjson.Unquote(id)) {
		return m, sharQInvalid("job_id")
	}
	m = draft{group: group, job: &job{id: rawjson.Unquote(id)}}
	ms, err := f.sharQInteger("interval", bounds{0, maxInterval}, nil)
	if err != nil {
		return m, err
	}
	m.job.interval = time.Duration(ms) * time.Millisecond
	limit, err := f.sharQInteger("requeue_limit", bounds{-1, math.MaxInt32 - 1}, &s.limits.requeueLimit)
	if err != nil {
		return m, err
	}
	m.job.maxDeliveries = limit + 1
	payload, has := f.find("payload")
	if !has {
		return m, sharQMandatory("payload")
	}
	if payload[0] == '{' {
		inside := &form{}
		inside.read(payload)
		if raw, bounded := inside.find("max_queued_length"); bounded && !rawjson.IsNull(raw) {
			most, ok := parseNumber(string(raw))
			if !ok {
				return m, sharQInvalid("max_queued_length")
			}
			m.job.maxWaiting = new(int(min(max(math.Ceil(most), 0), math.MaxInt32)))
		}
	}
	m.data = wrapPayload(payload)
	return m, nil
}

// wrapPayload returns the data of a message with any JSON as its payload. An object
// is kept as it is, unless it looks like what anything else becomes: {"payload": …}.
func wrapPayload(payload []byte) []byte {
	if payload[0] == '{' && unwrapPayload(payload) == nil {
		return payload
	}
	return append(append([]byte(`{"payload":`), payload...), '}')
}

// unwrapPayload returns the payload that data was made of, nil if it is data itself.
func unwrapPayload(data []byte) []byte {
	f := &form{}
	f.read(data)
	if len(f.fields) == 1 && f.fields[0].name == "payload" {
		return f.fields[0].value
	}
	return nil
}

func (s *server) sharQDequeue(r *request) error {
	p, err := r.sharQPath()
	if err != nil {
		return err
	}
	if p.queueID == "" {
		if p.queueID = sharQDefault; !r.mayGet(p.queueID) {
			return errMessageNotFound
		}
	}
	return s.receiveOne(r, p.queueID, s.engine.receive, func(all []message) error {
		if len(all) == 0 {
			return errMessageNotFound
		}
		m := &all[0]
		group, waiting := m.Group, int64(0)
		if group == "" {
			group = sharQDefault
		} else if waiting, err = s.engine.waitingIn(r.Context(), m); err != nil {
			return err
		}
		s.jobCounts.add(time.Now(), p.queueID, group, jobCount{dequeued: 1})
		return r.w.shared(http.StatusOK, m.appendSharQJSON(nil, group, waiting))
	})
}

// appendSharQJSON appends the message in SharQ's format. One that did not come by it
// goes by its id.
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

func (s *server) sharQFinish(r *request) error {
	p := r.sharQNames()
	if validName(p.queueID) && validName(p.group) && validName(p.jobID) {
		done, err := s.engine.finish(r.Context(), p.queueID, p.group, p.jobID)
		if err != nil {
			return err
		}
		if done {
			return r.w.json(http.StatusOK, sharQStatus{Status: "success"})
		}
		if _, ok := parseID(p.jobID); !ok {
			return errMessageNotFound
		}
	}
	// It may be a message that did not come by SharQ.
	m, err := s.sharQPeek(r)
	if err != nil {
		return err
	}
	if m.State != "in_flight" {
		return errMessageNotFound
	}
	err = s.engine.ack(r.Context(), ackItem{id: m.ID, leasedUntil: m.ScheduledAt.Time})
	var over errLeaseEnded
	if errors.As(err, &over) {
		return errMessageNotFound
	}
	if err != nil {
		return err
	}
	return r.w.json(http.StatusOK, sharQStatus{Status: "success"})
}

// sharQJob says how a job is, which SharQ cannot.
func (s *server) sharQJob(r *request) error {
	m, err := s.sharQPeek(r)
	if err != nil {
		return err
	}
	return r.w.json(http.StatusOK, struct {
		Status string `json:"status"`
		State  string `json:"state"`
	}{"success", m.State})
}

// sharQPeek looks for the job that the path names. A message that did not come by
// SharQ may be in a group that has a name which SharQ does not take: that is an error
// if there is none.
func (s *server) sharQPeek(r *request) (message, error) {
	p := r.sharQNames()
	_, mistake := r.sharQPath()
	if msg, _ := groupMistake(p.group); msg != "" || !validName(p.queueID) || !validName(p.jobID) {
		return message{}, mistake
	}
	m, err := s.store.job(r.Context(), p.queueID, p.group, p.jobID)
	if errors.Is(err, errMessageNotFound) && mistake != nil {
		err = mistake
	}
	return m, err
}

func (s *server) sharQInterval(r *request) error {
	p, err := r.sharQPath()
	if err != nil {
		return err
	}
	f, err := r.sharQBody()
	if err != nil {
		return err
	}
	ms, err := f.sharQInteger("interval", bounds{0, maxInterval}, nil)
	if err != nil {
		return err
	}
	g, err := s.store.group(r.Context(), p.queueID, p.group)
	if err == nil && g.State == stateIdle {
		err = errGroupNotFound
	}
	if err != nil {
		return err
	}
	if _, err := s.store.setInterval(r.Context(), p.queueID, p.group, &ms, nil); err != nil {
		return err
	}
	s.engine.announce(p.queueID, time.Time{})
	return r.w.json(http.StatusOK, sharQStatus{Status: "success"})
}

func (s *server) sharQDelete(r *request) error {
	p, err := r.sharQPath()
	if err != nil {
		return err
	}
	all := false
	if len(bytes.TrimSpace(r.body)) > 0 {
		f, err := r.sharQBody()
		if err != nil {
			return err
		}
		raw, _ := f.find("purge_all")
		all = truthy(raw)
	}
	removed := 0
	err = s.store.purgeGroup(r.Context(), p.queueID, p.group, true, func(n int) {
		removed += n
		s.metrics.add(messagesPurged, p.queueID, n)
	})
	if err != nil && !errors.Is(err, errQueueNotFound) {
		return err
	}
	answer := sharQStatus{"Failure", "No queued calls found"}
	if removed > 0 {
		answer = sharQStatus{"Success", "Successfully removed all queued calls"}
	}
	if removed > 0 && all {
		answer.Message += " and purged related resources"
		if _, err := s.store.setInterval(r.Context(), p.queueID, p.group, nil, new(false)); err != nil {
			return err
		}
	}
	s.engine.announce(p.queueID, time.Time{})
	return r.w.json(http.StatusOK, answer)
}

// truthy reports whether Python takes a value of JSON, or one that is missing, for true.
func truthy(raw []byte) bool {
	switch string(raw) {
	case "", "null", "false", "0", `""`, "[]", "{}":
		return false
	}
	return true
}

// appendCounts appends the two fields of counts per minute to a JSON object.
func appendCounts(b []byte, all []minuteCount) []byte {
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
func (s *server) sharQQueues(r *request) error {
	ids, err := s.store.grouped(r.Context(), r.visible())
	if err != nil {
		return err
	}
	b := append([]byte(`{"status":"success","queue_types":`), quoteAll(ids)...)
	return r.w.own(http.StatusOK, append(appendCounts(b, s.jobCounts.last(time.Now(), r.visible(), "")), '}'))
}

func (s *server) sharQGroups(r *request) error {
	p, err := r.sharQPath()
	if err != nil {
		return err
	}
	ids, err := s.store.groupIDs(r.Context(), p.queueID)
	if err != nil {
		return err
	}
	return r.w.own(http.StatusOK, append(append([]byte(`{"status":"success","queue_ids":`), quoteAll(ids)...), '}'))
}

func (s *server) sharQGroup(r *request) error {
	p, err := r.sharQPath()
	if err != nil {
		return err
	}
	g, err := s.store.group(r.Context(), p.queueID, p.group)
	if err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	counts := s.jobCounts.last(time.Now(), &names{exact: []string{p.queueID}}, p.group)
	b := fmt.Appendf(nil, `{"status":"success","queue_length":%d`, g.Length)
	return r.w.own(http.StatusOK, append(appendCounts(b, counts), '}'))
}

// quoteAll returns texts as a JSON list, as many as fit into listSize.
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

func (s *server) sharQDeepStatus(r *request) error {
	if !s.healthy(context.Background()) {
		return errUnavailable
	}
	return r.w.json(http.StatusOK, sharQStatus{Status: "success"})
}

// sharQGreeting is at /: what SharQ's users look for to see that a server is there.
func (s *server) sharQGreeting(r *request) error {
	return r.w.json(http.StatusOK, struct {
		Message string `json:"message"`
	}{"Hello, SharQ!"})
}
