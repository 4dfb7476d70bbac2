package main

import (
	"cmp"
	"context"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// consumers knows who received from each queue in the last hour. It is in memory: a server
// knows only its own requests, and nothing of the time before its start.
type consumers struct {
	began time.Time // times below are durations since then, so that they are monotonic

	mu     sync.Mutex
	queues map[string]map[consumerID]*consumerState // by queue id
	known  int                                      // number of consumers of all queues
	swept  time.Duration                            // time of the last sweep
}

// consumerID identifies a consumer: by the name of its token or, if the server requires
// none, by the address that it connects from.
type consumerID struct{ token, address string }

// consumerState is what a consumer of one queue has done.
type consumerState struct {
	seen         time.Duration   // end of its last receive
	minute, hour slidingCount    // received messages
	leased       []leasedMessage // its last maxLeased ones, in a ring; nil before the first
	next         int             // index in leased of the oldest one, which the next one replaces
}

// leasedMessage is one delivery of a message, without pointers, because there may be a million.
type leasedMessage struct {
	id       [16]byte
	at       time.Duration
	attempts int32 // including this delivery; 0 for none
}

const (
	maxConsumers      = 10_000 // at which further ones are ignored
	maxQueueConsumers = 100    // of one queue; a further one replaces the one that was seen longest ago
	maxLeased         = 100    // of one consumer; internal/shell and the dashboard know it
	consumerExpiry    = time.Hour
)

func newConsumers() *consumers {
	return &consumers{began: time.Now(), queues: make(map[string]map[consumerID]*consumerState)}
}

// consumer returns who has sent a request.
func (r *request) consumer() consumerID {
	if r.token != nil {
		return consumerID{token: r.token.name}
	}
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	return consumerID{address: address}
}

// received records the end of a receive with messages, maybe none. It does not allocate for a
// consumer that it knows, except for the first messages that it leased.
func (c *consumers) received(queueID string, id consumerID, messages []message, now time.Time) {
	at := now.Sub(c.began)
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.queues[queueID][id]
	if v == nil {
		if v = c.addLocked(queueID, id, at); v == nil {
			return
		}
	}
	v.seen = max(v.seen, at)
	if len(messages) == 0 {
		return
	}
	v.minute.add(at, time.Minute, len(messages))
	v.hour.add(at, time.Hour, len(messages))
	if messages[0].consumed { // then all are
		return
	}
	if v.leased == nil {
		v.leased = make([]leasedMessage, maxLeased)
	}
	for i := max(0, len(messages)-maxLeased); i < len(messages); i++ {
		v.leased[v.next] = leasedMessage{idBytes(messages[i].ID), at, int32(messages[i].DeliveryAttempts)}
		v.next = (v.next + 1) % maxLeased
	}
}

// addLocked adds a consumer, and returns nil if there are too many. The caller holds the
// mutex.
func (c *consumers) addLocked(queueID string, id consumerID, at time.Duration) *consumerState {
	if c.known >= maxConsumers && at-c.swept > time.Minute {
		c.sweepLocked(at)
	}
	all := c.queues[queueID]
	switch {
	case len(all) >= maxQueueConsumers:
		oldest, oldestSeen := consumerID{}, time.Duration(math.MaxInt64)
		for id, v := range all {
			if v.seen < oldestSeen {
				oldest, oldestSeen = id, v.seen
			}
		}
		delete(all, oldest)
		c.known--
	case c.known >= maxConsumers:
		return nil
	case all == nil:
		all = make(map[consumerID]*consumerState)
		c.queues[strings.Clone(queueID)] = all // otherwise the path would stay in memory
	}
	c.known++
	v := &consumerState{seen: at}
	all[consumerID{strings.Clone(id.token), strings.Clone(id.address)}] = v
	return v
}

// sweepLocked forgets the consumers that were seen longer than consumerExpiry ago.
func (c *consumers) sweepLocked(at time.Duration) {
	c.swept, c.known = at, 0
	maps.DeleteFunc(c.queues, func(_ string, all map[consumerID]*consumerState) bool {
		maps.DeleteFunc(all, func(_ consumerID, v *consumerState) bool { return at-v.seen > consumerExpiry })
		c.known += len(all)
		return len(all) == 0
	})
}

// forget forgets the consumers of a deleted queue.
func (c *consumers) forget(queueID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known -= len(c.queues[queueID])
	delete(c.queues, queueID)
}

// consumer is a consumer of a queue in a response.
type consumer struct {
	Token      *string `json:"token"`
	Address    *string `json:"address"`
	SeenAgo    float64 `json:"last_seen_seconds_ago"`
	InFlight   int     `json:"in_flight"` // of leased; 0 before countInFlight
	LastMinute int64   `json:"received_last_minute"`
	LastHour   int64   `json:"received_last_hour"`

	leased []leasedMessage
}

// of returns the consumers of a queue, the one that was seen last first.
func (c *consumers) of(queueID string, now time.Time) []*consumer {
	at := now.Sub(c.began)
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []*consumer{}
	for id, v := range c.queues[queueID] {
		if at-v.seen > consumerExpiry {
			continue
		}
		shown := &consumer{SeenAgo: (at - v.seen).Seconds(), LastMinute: v.minute.sum(at, time.Minute), LastHour: v.hour.sum(at, time.Hour), leased: slices.Clone(v.leased)}
		if id.token != "" {
			shown.Token = &id.token
		} else {
			shown.Address = &id.address
		}
		all = append(all, shown)
	}
	slices.SortFunc(all, func(a, b *consumer) int { return cmp.Compare(a.SeenAgo, b.SeenAgo) })
	return all
}

// slidingSteps is the number of steps of a slidingCount.
const slidingSteps = 12

// slidingCount counts over a span of time that ends now, in steps of a twelfth of it: what
// is older than eleven to twelve steps no longer counts.
type slidingCount struct {
	counts [slidingSteps]int64 // of the steps up to last
	last   int64               // number of the last step
}

func (c *slidingCount) add(at, span time.Duration, n int) {
	c.advance(at, span)
	c.counts[c.last%slidingSteps] += int64(n)
}

func (c *slidingCount) sum(at, span time.Duration) (sum int64) {
	c.advance(at, span)
	for _, n := range c.counts {
		sum += n
	}
	return sum
}

// advance begins the step of a time.
func (c *slidingCount) advance(at, span time.Duration) {
	step := int64(at / (span / slidingSteps))
	if step-c.last >= slidingSteps {
		*c = slidingCount{last: step}
	}
	for c.last < step {
		c.last++
		c.counts[c.last%slidingSteps] = 0
	}
}

// consumerList is the response to GET /queues/{queue_id}/consumers.
type consumerList struct {
	ServerID string      `json:"server_id"`
	Data     []*consumer `json:"data"`
}

// listConsumers returns who received from a queue lately, at this server.
func (s *server) listConsumers(r *request) (any, error) {
	q, err := s.store.queue(r.Context(), r.queueID)
	if err != nil {
		return nil, err
	}
	all := s.consumers.of(r.queueID, time.Now())
	if err := s.store.countInFlight(r.Context(), q.key, all); err != nil {
		return nil, err
	}
	return consumerList{s.id, all}, nil
}

// The statement compares the key of the queue without an equals sign; plans.go says why.
const selectInFlightSQL = `
SELECT m.id, m.delivery_attempts
FROM queued.messages m
WHERE m.home = $1
    AND m.queue_key IS NOT DISTINCT FROM $2
    AND m.id = ANY($3::uuid[])
    AND ` + leasedSQL + `
    AND m.expired_at > now()`

// countInFlight sets how many of the messages that consumers of a queue leased are in flight,
// and have not been delivered again. A redrive resets the delivery attempts of a message, so
// of several consumers the last one has it.
func (s *store) countInFlight(ctx context.Context, queueKey int64, all []*consumer) error {
	type lease struct {
		leasedMessage
		by *consumer
	}
	last := make(map[[16]byte]lease)
	for _, c := range all {
		for _, m := range c.leased {
			if m.attempts > 0 && last[m.id].at <= m.at {
				last[m.id] = lease{m, c}
			}
		}
	}
	if len(last) == 0 {
		return nil
	}
	ids := make(idArray, 0, len(last))
	for id := range last {
		ids = append(ids, formatID(id))
	}
	if err := s.homes.unavailable(homeOf(queueKey)); err != nil {
		return err
	}
	_, err := collect(ctx, s.on("in_flight"), func(row scanner) (any, error) {
		var id string
		var attempts int32
		err := row.Scan(&id, &attempts)
		if v := last[idBytes(id)]; err == nil && v.attempts == attempts {
			v.by.InFlight++
		}
		return nil, err
	}, selectInFlightSQL, homeOf(queueKey), queueKey, ids)
	return err
}
