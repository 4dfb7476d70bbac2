package main

import (
	"maps"
	"strings"
	"sync"
	"time"
)

// jobCounts counts the jobs that this server enqueues and dequeues, per minute, for
// SharQ's metrics. The counts are in memory only: a restart resets them, and other
// servers have their own. metrics.go has the counters for monitoring.
type jobCounts struct {
	mu      sync.Mutex
	minutes map[int64]map[countKey]*jobCount // by minute since 1970
}

// countKey is a group, or a queue if the group is empty.
type countKey struct{ queueID, group string }

type jobCount struct{ enqueued, dequeued int64 }

const (
	countedMinutes = 10
	maxCountKeys   = 10_000 // in a minute; further groups and queues are not counted
)

func newJobCounts() *jobCounts {
	return &jobCounts{minutes: make(map[int64]map[countKey]*jobCount)}
}

func minuteOf(at time.Time) int64 { return at.Unix() / 60 }

// add adds to the counts of a group and of its queue.
func (c *jobCounts) add(at time.Time, queueID, group string, n jobCount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := minuteOf(at)
	counts := c.minutes[now]
	if counts == nil {
		maps.DeleteFunc(c.minutes, func(minute int64, _ map[countKey]*jobCount) bool {
			return minute <= now-countedMinutes || minute > now // a later minute is from before the clock was set back
		})
		counts = make(map[countKey]*jobCount)
		c.minutes[now] = counts
	}
	for _, key := range []countKey{{queueID, ""}, {queueID, group}} {
		count := counts[key]
		if count == nil {
			if len(counts) == maxCountKeys {
				continue
			}
			count = new(jobCount)
			// The names are parts of a path, which would stay in memory as long as the map.
			counts[countKey{strings.Clone(queueID), strings.Clone(key.group)}] = count
		}
		count.enqueued += n.enqueued
		count.dequeued += n.dequeued
	}
}

// minuteCount has the counts of one minute.
type minuteCount struct {
	minute int64 // milliseconds since 1970, when it began
	jobCount
}

// last returns the counts of a group in each of the last countedMinutes, oldest first. For
// an empty group it returns the sums over the queues that visible matches.
func (c *jobCounts) last(at time.Time, visible *names, group string) []minuteCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]minuteCount, countedMinutes)
	for i := range all {
		minute := minuteOf(at) - countedMinutes + 1 + int64(i)
		all[i].minute = minute * 60_000
		for key, count := range c.minutes[minute] {
			if key.group == group && visible.match(key.queueID) {
				all[i].enqueued += count.enqueued
				all[i].dequeued += count.dequeued
			}
		}
	}
	return all
}
