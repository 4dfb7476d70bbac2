package main

import (
	"errors"
	"fmt"
	"time"
)

// errQueueFull is the error of a publish to a queue with too many messages.
type errQueueFull struct {
	queueID string
	max     int64
}

func (e errQueueFull) Error() string {
	return fmt.Sprintf("queue %q is full: it has %d messages or more (max_messages); try again later", e.queueID, e.max)
}

// isFull reports whether err is errQueueFull.
func isFull(err error) bool { return errors.As(err, new(errQueueFull)) }

// checkCapacity returns errQueueFull if a queue of a publication has its maximum number of
// messages, by the last count of all queues and what this server has changed since. A count
// in the database for each publish would be slow, and a counter would be a row that every
// publish has to lock.
func (e *engine) checkCapacity(p *publication) error {
	checked := make(map[int32]bool, len(p.address.to.queues))
	for _, places := range p.address.queues {
		for _, place := range places {
			queue := &p.address.to.queues[place]
			if queue.max == 0 || checked[place] {
				continue
			}
			checked[place] = true
			if n, counted := e.depth.estimate(queue.queueID); counted && n >= queue.max {
				return errQueueFull{queue.queueID, queue.max}
			}
		}
	}
	return nil
}

const selectVersionSQL = `
SELECT version
FROM queued.settings`

// checkCurrent returns errStale if the cached settings have changed. A batch that refuses
// publications calls it, because no statement of theirs has checked the version.
func (s *pinnedConn) checkCurrent() error {
	versions, err := read(s, "settings_version", scanKey, selectVersionSQL)
	if err != nil {
		return err
	}
	if versions[0] != s.settings.version {
		return errStale
	}
	return nil
}

// isPublishedAgain reports whether all copies of a publication are duplicates, so that it
// stores nothing.
func (s *pinnedConn) isPublishedAgain(p *publication) (bool, error) {
	firsts := make(map[deduplicationKey]*firstCopy)
	for _, key := range p.deduplicationKeys() {
		firsts[key] = &firstCopy{}
	}
	if err := s.readDeduplications(firsts); err != nil {
		return false, err
	}
	for i, m := range p.messages {
		for _, place := range p.address.queues[i] {
			first := firsts[deduplicationKey{p.address.to.queues[place].queueKey, m.deduplicationID}]
			if first == nil || !first.earlier {
				return false, nil
			}
		}
	}
	return true, nil
}

// estimate returns the number of messages in a queue: those of the last count, and the ones
// that this server has published to it minus those that it has removed since. It starts a
// count if one is due, and does not wait for it. It returns false before the first count.
func (c *depthCollector) estimate(queueID string) (n int64, counted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startLocked()
	if c.countedAt.IsZero() {
		return 0, false
	}
	return max(c.totals[queueID]+c.metrics.netOf(queueID)-c.nets[queueID], 0), true
}

// netOf returns the number of messages that this server has published to a queue, minus
// those that it has removed.
func (m *metrics) netOf(queueID string) int64 {
	totals := m.totalsOf(queueID)
	if totals == nil {
		return 0
	}
	n := totals[messagesPublished].Load()
	for _, removed := range []messageCounter{messagesAcked, messagesExpired, messagesDeadLettered, messagesRedriven, messagesPurged, messagesDropped} {
		n -= totals[removed].Load()
	}
	return n
}

// nets returns netOf for all queues.
func (m *metrics) nets() map[string]int64 {
	all := make(map[string]int64)
	for queueID := range m.messages.Range {
		all[queueID.(string)] = m.netOf(queueID.(string))
	}
	return all
}

const markFullSQL = `
UPDATE queued.queues
SET full_until = now() + make_interval(secs => CASE WHEN $3 THEN $4::double precision END)
WHERE id = $1
    AND max_messages = $2`

// markFull marks the queues that a count has found full for the SQL functions, and removes
// the marks of the others. The marks last until the next counts. They are in the table of
// queues, which all nodes have, so they cannot change while a node does not respond.
func (c *depthCollector) markFull(counted []queueDepth, took time.Duration) error {
	lasts := 2*time.Minute + 2*countShare*took
	for _, q := range counted {
		full := q.max > 0 && q.total() >= q.max
		if q.uncounted || full && !q.markExpires || !full && !q.marked {
			continue
		}
		err := c.homes.needAllNodes()
		if err == nil {
			_, err = c.metrics.timed("mark_full", c.db).ExecContext(c.ctx, markFullSQL, q.queueID, q.max, full, lasts.Seconds())
		}
		if err != nil {
			return asNeedsAllNodes(err)
		}
	}
	return nil
}
