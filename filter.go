package main

import (
	"bytes"
	"sync"
)

// Bounds of the filters of a queue.
const (
	maxFilterNames  = 100
	maxFilterValues = 1000     // of all names
	maxFilterSize   = 64 << 10 // bytes of JSON
)

// filters says which messages a queue wants, by their attributes: for each
// name the values it accepts. Nil accepts every message.
type filters struct {
	raw     []byte // JSON that decodeFilters accepted
	compile sync.Once
	wanted  []wanted
}

// wanted is an attribute that a message must have, and the values that will do.
type wanted struct {
	name   string
	values map[string]bool
}

// match reports whether a message with these attributes goes to the queue: it
// must have each named attribute with one of the accepted values. A message
// without attributes, nil, matches only where there is no filter, not even the
// empty one; a message with an empty set of them matches the empty filter.
func (f *filters) match(attributes map[string]string) bool {
	if f == nil {
		return true
	}
	if attributes == nil {
		return false
	}
	f.compile.Do(func() { f.wanted = readFilters(f.raw) })
	for _, w := range f.wanted {
		value, has := attributes[w.name]
		if !has || !w.values[value] {
			return false
		}
	}
	return true
}

// equal reports whether the filters are the same text.
func (f *filters) equal(others *filters) bool {
	if f == nil || others == nil {
		return f == others
	}
	return bytes.Equal(f.raw, others.raw)
}

// parseFilters takes filters from the JSON that decodeFilters accepted, which is
// read when the first message is matched. Null and nothing at all are no filters.
func parseFilters(raw []byte) *filters {
	if isNull(raw) {
		return nil
	}
	return &filters{raw: raw}
}

// readFilters reads them: of two equal names the last counts.
func readFilters(raw []byte) (all []wanted) {
	places := make(map[string]int)
	walkObject(raw, func(name string, list []byte) {
		values := make(map[string]bool)
		walkArray(list, func(value []byte) { values[unquote(value)] = true })
		if i, again := places[name]; again {
			all[i].values = values
			return
		}
		places[name] = len(all)
		all = append(all, wanted{name, values})
	})
	return all
}

// parseAttributes reads the attributes of a message from the JSON that
// decodeAttributes accepted, nil for null and for nothing at all.
func parseAttributes(raw []byte) map[string]string {
	if isNull(raw) {
		return nil
	}
	attributes := map[string]string{}
	walkObject(raw, func(name string, value []byte) { attributes[name] = unquote(value) })
	return attributes
}
