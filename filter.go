package main

import "queued/internal/rawjson"

// Bounds of the filters of a queue.
const (
	maxFilterNames  = 100
	maxFilterValues = 1000     // of all names
	maxFilterSize   = 64 << 10 // bytes of JSON
)

// filters are the filters of a queue, as JSON that decodeFilters accepted: for each
// name of an attribute the values that will do. Nil accepts every message.
type filters []byte

// parseFilters takes null, and nothing at all, for no filters.
func parseFilters(raw []byte) filters {
	if rawjson.IsNull(raw) {
		return nil
	}
	return raw
}

// matcher finds the queues whose filters accept a message. It goes by the message's
// attributes and not by the queues: that costs an addition for each attribute and
// each queue that accepts its value, whatever else their filters hold.
type matcher struct {
	wanted    []int32                       // by queue: how many attributes it wants; unfiltered
	accepting map[string]map[string][]int32 // by name and value: the queues that accept it
}

// unfiltered is in place of the number of attributes where there are no filters.
const unfiltered = -1

// newMatcher returns a matcher of queues with these filters.
func newMatcher(queues []filters) *matcher {
	m := &matcher{make([]int32, len(queues)), make(map[string]map[string][]int32)}
	for i, f := range queues {
		if f == nil {
			m.wanted[i] = unfiltered
			continue
		}
		lists := make(map[string][]byte)
		rawjson.WalkObject(f, func(name string, list []byte) { lists[name] = list }) // of two equal names the last counts
		m.wanted[i] = int32(len(lists))
		for name, list := range lists {
			if m.accepting[name] == nil {
				m.accepting[name] = make(map[string][]int32)
			}
			rawjson.WalkArray(list, func(value []byte) {
				text, queue := rawjson.Unquote(value), int32(i)
				accept := m.accepting[name][text]
				if n := len(accept); n == 0 || accept[n-1] != queue { // else it is there twice
					m.accepting[name][text] = append(accept, queue)
				}
			})
		}
	}
	return m
}

// match appends the queues that a message with these attributes goes to: those
// whose filters find each attribute that they name, with a value that they accept. A
// message without attributes, nil, goes only where there are no filters, not even
// empty ones; one with an empty set of them goes to empty filters. It counts in met,
// which has a place for each queue.
func (m *matcher) match(attributes map[string]string, met, to []int32) []int32 {
	clear(met)
	for name, value := range attributes {
		for _, queue := range m.accepting[name][value] {
			met[queue]++
		}
	}
	for queue, wanted := range m.wanted {
		if wanted == unfiltered || attributes != nil && met[queue] == wanted {
			to = append(to, int32(queue))
		}
	}
	return to
}

// parseAttributes reads the attributes of a message from the JSON that
// decodeAttributes accepted, nil for null and for nothing at all.
func parseAttributes(raw []byte) map[string]string {
	if rawjson.IsNull(raw) {
		return nil
	}
	attributes := map[string]string{}
	rawjson.WalkObject(raw, func(name string, value []byte) { attributes[name] = rawjson.Unquote(value) })
	return attributes
}
