package main

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	historyInterval = time.Minute
	historyLength   = 61     // samples, which begin and end the minutes of an hour
	historyQueues   = 10_000 // maximum queues in a sample
	recentTime      = 5 * time.Minute
)

// queueHistory has the state of the queues at each full minute of the last hour, for the
// dashboard. It is in memory: a server knows only its own totals, and nothing of the time
// before its start. It costs requests nothing, because it reads counters that exist.
type queueHistory struct {
	depth   *depthCollector
	metrics *metrics

	mu      sync.Mutex
	samples []historySample // oldest first, at most historyLength
}

// historySample has the queues with messages or totals, by id. All others have zeros.
type historySample struct {
	at        time.Time
	queues    map[string]historyValues
	uncounted map[string]bool // queues whose messages are not known
}

// historyValues are the messages of queues by the last count, and their totals.
type historyValues struct {
	ready, messages int64 // messages are in any state
	overviewTotals
}

// run takes a sample at each full minute until ctx is done.
func (h *queueHistory) run(ctx context.Context) {
	for {
		next := time.Now().Truncate(historyInterval).Add(historyInterval)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
			h.sample(next)
		}
	}
}

// sample adds the current state, and drops the oldest sample if there are too many.
func (h *queueHistory) sample(at time.Time) {
	queues, uncounted := make(map[string]historyValues), make(map[string]bool)
	counted, _ := h.depth.latest()
	for _, q := range counted {
		var v historyValues
		if q.uncounted {
			uncounted[q.queueID] = true
		} else {
			v.ready, v.messages = q.Ready, q.total()
		}
		v.add(h.metrics.totalsOf(q.queueID))
		if v != (historyValues{}) && len(queues) < historyQueues {
			queues[q.queueID] = v
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples = append(h.samples, historySample{at, queues, uncounted})
	if len(h.samples) > historyLength {
		h.samples = append(h.samples[:0:0], h.samples[1:]...)
	}
}

// oldest returns the oldest sample, which never changes. known is false if there is none.
func (h *queueHistory) oldest() (s historySample, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.samples) == 0 {
		return s, false
	}
	return h.samples[0], true
}

// before returns the newest sample that was taken at a time or before. known is false if
// there is none, and the sample then has no queues.
func (h *queueHistory) before(at time.Time) (s historySample, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range slices.Backward(h.samples) {
		if !s.at.After(at) {
			return s, true
		}
	}
	return s, false
}

// minute is a sample in a response.
type minute struct {
	At timestamp `json:"at"`
	// The messages are null if one of the queues was not counted.
	Ready    *int64 `json:"ready"`
	Messages *int64 `json:"messages"` // in any state
	overviewTotals
}

// minutes returns the samples, oldest first, with the sums of the queues that match.
func (h *queueHistory) minutes(match func(queueID string) bool) []minute {
	h.mu.Lock()
	samples := h.samples
	h.mu.Unlock()
	all := make([]minute, len(samples))
	for i, s := range samples {
		all[i].At = timestamp{s.at}
		var ready, messages int64
		for queueID, v := range s.queues {
			if match(queueID) {
				ready += v.ready
				messages += v.messages
				all[i].merge(v.overviewTotals)
			}
		}
		counted := true
		for queueID := range s.uncounted {
			counted = counted && !match(queueID)
		}
		if counted {
			all[i].Ready, all[i].Messages = &ready, &messages
		}
	}
	return all
}

// ready returns the ready messages in each sample of the queues that match, oldest first, nil
// where a queue was not counted. Queues that had none are left out.
func (h *queueHistory) ready(match func(queueID string) bool) map[string][]*int64 {
	h.mu.Lock()
	samples := h.samples
	h.mu.Unlock()
	all := make(map[string][]*int64)
	for _, s := range samples {
		for queueID, v := range s.queues {
			if v.ready > 0 && match(queueID) {
				all[queueID] = make([]*int64, len(samples))
			}
		}
	}
	for queueID, values := range all {
		for i, s := range samples {
			if !s.uncounted[queueID] {
				values[i] = new(s.queues[queueID].ready)
			}
		}
	}
	return all
}

// overviewHistory is the response to GET /overview/history.
type overviewHistory struct {
	ServerID string   `json:"server_id"`
	Data     []minute `json:"data"`
	// Ready is there if it was requested.
	Ready map[string][]*int64 `json:"ready,omitzero"`
}

// overviewHistory returns the samples of one queue, or the sums of all visible queues.
func (s *server) overviewHistory(r *request) (any, error) {
	q := r.query()
	withReady := q.boolean("ready")
	id, _ := q.find("queue_id")
	if err := q.err(); err != nil {
		return nil, err
	}
	visible := r.visible()
	match := visible.match
	if len(id) > 0 {
		match = func(queueID string) bool { return queueID == string(id) && visible.match(queueID) }
	}
	v := overviewHistory{ServerID: s.id, Data: s.history.minutes(match)}
	if withReady {
		v.Ready = s.history.ready(match)
	}
	return v, nil
}
