package main

import (
	"context"
	"sync"
	"time"
)

const (
	historyInterval = time.Minute
	historyLength   = 61     // samples, which begin and end the minutes of an hour
	historyQueues   = 10_000 // maximum queues in a sample
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
	at     time.Time
	queues map[string]historyValues
}

// historyValues are the messages of queues by the last count, and their totals.
type historyValues struct {
	Ready    int64 `json:"ready"`
	Messages int64 `json:"messages"` // in any state
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
	queues := make(map[string]historyValues)
	counted, _ := h.depth.latest()
	for _, q := range counted {
		v := historyValues{Ready: q.ready, Messages: q.ready + q.delayed + q.inFlight + q.exhausted}
		v.add(h.metrics.totalsOf(q.queueID))
		if v != (historyValues{}) && len(queues) < historyQueues {
			queues[q.queueID] = v
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples = append(h.samples, historySample{at, queues})
	if len(h.samples) > historyLength {
		h.samples = append(h.samples[:0:0], h.samples[1:]...)
	}
}

// oldest returns the number of messages of each queue in the oldest sample. known is false
// if there is no sample.
func (h *queueHistory) oldest() (queues map[string]historyValues, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.samples) == 0 {
		return nil, false
	}
	return h.samples[0].queues, true // never changed
}

// minute is a sample in a response.
type minute struct {
	At timestamp `json:"at"`
	historyValues
}

// minutes returns the samples, oldest first, with the sums of the queues that match.
func (h *queueHistory) minutes(match func(queueID string) bool) []minute {
	h.mu.Lock()
	samples := h.samples
	h.mu.Unlock()
	all := make([]minute, len(samples))
	for i, s := range samples {
		all[i].At = timestamp{s.at}
		for queueID, v := range s.queues {
			if match(queueID) {
				all[i].Ready += v.Ready
				all[i].Messages += v.Messages
				all[i].merge(v.overviewTotals)
			}
		}
	}
	return all
}

// ready returns the ready messages in each sample of the queues that match, oldest first.
// Queues that had none are left out.
func (h *queueHistory) ready(match func(queueID string) bool) map[string][]int64 {
	h.mu.Lock()
	samples := h.samples
	h.mu.Unlock()
	all := make(map[string][]int64)
	for i, s := range samples {
		for queueID, v := range s.queues {
			if v.Ready == 0 || !match(queueID) {
				continue
			}
			if all[queueID] == nil {
				all[queueID] = make([]int64, len(samples))
			}
			all[queueID][i] = v.Ready
		}
	}
	return all
}

// overviewHistory is the response to GET /overview/history.
type overviewHistory struct {
	ServerID string   `json:"server_id"`
	Data     []minute `json:"data"`
	// Ready is there if it was requested.
	Ready map[string][]int64 `json:"ready,omitzero"`
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
