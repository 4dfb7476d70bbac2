package main

import "queued/internal/rawjson"

// Limits of the filters of a queue.
const (
	maxFilterNames  = 100
	maxFilterValues = 1000     // of all names together
	maxFilterSize   = 64 << 10 // bytes of JSON
)

// filters are the filters of a queue as JSON that form.filters has checked: the
// accepted values of each attribute name. Nil accepts every message.
type filters []byte

// parseFilters returns nil for null and for no JSON.
func parseFilters(raw []byte) filters {
	if rawjson.IsNull(raw) {
		return nil
	}
	return raw
}

// matcher finds the queues whose filters accept a message. It looks up each of the
// message's attributes, so its cost does not depend on the size of the filters.
type matcher struct {
	wanted    []int32                       // by queue: the number of attributes in its filters, or unfiltered
	accepting map[string]map[string][]int32 // by attribute name and value: the queues that accept it
}

// unfiltered is the value of matcher.wanted for a queue without filters.
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
		rawjson.WalkObject(f, func(name string, list []byte) { lists[name] = list }) // of two equal names the last wins
		m.wanted[i] = int32(len(lists))
		for name, list := range lists {
			if m.accepting[name] == nil {
				m.accepting[name] = make(map[string][]int32)
			}
			rawjson.WalkArray(list, func(value []byte) {
				text, queue := rawjson.Unquote(value), int32(i)
				accept := m.accepting[name][text]
				if n := len(accept); n == 0 || accept[n-1] != queue { // otherwise the value is listed twice
					m.accepting[name][text] = append(accept, queue)
				}
			})
		}
	}
	return m
}

// match returns to with the queues appended that accept a message with these attributes,
// which form.attributes has checked. A queue accepts it if the message has every
// attribute in the queue's filters, with one of the accepted values. A message without
// attributes (nil) matches only queues without filters; an empty set of attributes also
// matches empty filters. met is scratch space with one element for each queue.
func (m *matcher) match(attributes []byte, met, to []int32) []int32 {
	clear(met)
	if len(m.accepting) > 0 {
		for name, value := range parseAttributes(attributes) {
			for _, queue := range m.accepting[name][value] {
				met[queue]++
			}
		}
	}
	for queue, wanted := range m.wanted {
		if wanted == unfiltered || !rawjson.IsNull(attributes) && met[queue] == wanted {
			to = append(to, int32(queue))
		}
	}
	return to
}

// parseAttributes returns the values by name; of equal names, the last counts. It returns
// nil for null and for no JSON.
func parseAttributes(raw []byte) map[string]string {
	if rawjson.IsNull(raw) {
		return nil
	}
	attributes := map[string]string{}
	rawjson.WalkObject(raw, func(name string, value []byte) { attributes[name] = rawjson.Unquote(value) })
	return attributes
}
