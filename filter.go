package main

import "slices"

// filters says which messages a queue wants, by their attributes: for each
// name the values it accepts. Nil accepts every message.
type filters map[string][]string

// match reports whether a message with these attributes goes to the queue: it
// must have each named attribute with one of the accepted values. A message
// without attributes, nil, matches only where there is no filter, not even the
// empty one; a message with an empty set of them matches the empty filter.
func (f filters) match(attributes map[string]string) bool {
	if f == nil {
		return true
	}
	if attributes == nil {
		return false
	}
	for name, accepted := range f {
		value, has := attributes[name]
		if !has || !slices.Contains(accepted, value) {
			return false
		}
	}
	return true
}

// parseFilters reads filters from the JSON that decodeFilters accepted. Null
// and nothing at all are no filters.
func parseFilters(raw []byte) filters {
	if isNull(raw) {
		return nil
	}
	f := filters{}
	walkObject(raw, func(name string, values []byte) {
		accepted := []string{} // the last of two equal names counts
		walkArray(values, func(value []byte) { accepted = append(accepted, unquote(value)) })
		f[name] = accepted
	})
	return f
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
