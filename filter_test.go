package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// accepts reports whether a queue with these filters gets a message with these
// attributes. The topic has other queues too.
func accepts(rawFilters, rawAttributes []byte) bool {
	m := newMatcher([]filters{[]byte(`{"no":[]}`), parseFilters(rawFilters), nil})
	got := m.match(rawAttributes, []int32{7, 7, 7}, nil)
	return slices.Equal(got, []int32{1, 2})
}

func TestFiltersMatch(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		filters, attributes string
		want                bool
	}{
		{``, ``, true},
		{`null`, `{"a":"b"}`, true},
		{`{}`, ``, false},
		{`{}`, `null`, false},
		{`{}`, `{}`, true},
		{`{}`, `{"a":"b"}`, true},
		{`{"a":["b"]}`, `{"a":"b"}`, true},
		{`{"a":["b"]}`, `{"a":"B"}`, false},
		{`{"a":["b"]}`, `{"A":"b"}`, false},
		{`{"a":["b"]}`, `{}`, false},
		{`{"a":["b"]}`, `null`, false},
		{`{"a":["x","b"]}`, `{"a":"b","c":"d"}`, true},
		{`{"a":["b"],"c":["d"]}`, `{"a":"b"}`, false},
		{`{"a":["b"],"c":["d"]}`, `{"c":"d","a":"b"}`, true},
		{`{"a":[]}`, `{"a":"b"}`, false},
		{`{"a":[""]}`, `{"a":""}`, true},
		{`{"":["b"]}`, `{"":"b"}`, true},
		{`{"a":["\u0062"]}`, `{"\u0061":"b"}`, true},
		{`{"a":["\u0000"]}`, `{"a":"\u0000"}`, true},
		{`{"a":["\ud800"]}`, `{"a":"\ud800"}`, true},
		{`{"a":["\ud800"]}`, `{"a":"\ud801"}`, false},
		{`{"a":["\ud800"]}`, `{"a":"\ufffd"}`, false},
		{`{"a":["b","b"]}`, `{"a":"b"}`, true},
		{`{"a":["b","b"],"c":["d"]}`, `{"a":"b"}`, false},
		{`{"a":["x"],"a":["b"]}`, `{"a":"b"}`, true},
		{`{"a":["x"],"a":["b"]}`, `{"a":"x"}`, false},
		{`{"a":["b"]}`, `{"a":"x","a":"b"}`, true},
		{`{"a":["b"]}`, `{"a":"b","a":"x"}`, false},
	} {
		if got := accepts([]byte(v.filters), []byte(v.attributes)); got != v.want {
			t.Errorf("filter %s, attributes %s = %v, want %v", v.filters, v.attributes, got, v.want)
		}
	}
}

func TestFiltersAreBounded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	values := func(n, size int) string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf("%0*d", size, i)
		}
		return string(quoteAll(all))
	}
	names := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"a%d":["b"]`, i)
		}
		return "{" + b.String()[1:] + "}"
	}
	for i, v := range []struct {
		filters string
		want    string // the error; empty if there is none
	}{
		{`{"a":` + values(maxFilterValues, 1) + `}`, ""},
		{`{"a":` + values(maxFilterValues+1, 1) + `}`, "ensure this value has at most 1000 values in all"},
		{`{"a":` + values(maxFilterValues/2, 1) + `,"b":` + values(maxFilterValues/2+1, 1) + `}`, "ensure this value has at most 1000 values in all"},
		{names(maxFilterNames), ""},
		{names(maxFilterNames + 1), "ensure this value has at most 100 attributes"},
		{`{"a":` + values(100, maxFilterSize/100-4) + `}`, ""},
		{`{"a":` + values(100, maxFilterSize/100) + `}`, "ensure this value has at most 65536 bytes"},
	} {
		body := fmt.Sprintf(`{"id":"q%d","message_filters":%s,"ack_deadline_seconds":60,"message_retention_seconds":3600}`, i, v.filters)
		if v.want == "" {
			s.must(201, "POST", "/queues", body)
			continue
		}
		checkDiff(t, "response", `{"detail":[{"loc":["body","message_filters"],"msg":"`+v.want+`","type":"value_error.size"}]}`, s.must(422, "POST", "/queues", body))
	}
}

// The test compares with fastqueue's rule.
func FuzzFiltersMatch(f *testing.F) {
	f.Add([]byte(`{"a":["b","c"],"d":["e"]}`), []byte(`{"a":"b","d":"e"}`))
	f.Add([]byte(`{}`), []byte(`{}`))
	f.Add([]byte(`{"a":[]}`), []byte(`{"a":""}`))
	f.Fuzz(func(t *testing.T, rawFilters, rawAttributes []byte) {
		var filters map[string][]string
		var attributes map[string]string
		if json.Unmarshal(rawFilters, &filters) != nil || json.Unmarshal(rawAttributes, &attributes) != nil {
			return
		}
		// The decoders pass them in this form.
		rawFilters, _ = json.Marshal(filters)
		rawAttributes, _ = json.Marshal(attributes)
		for _, values := range filters {
			if values == nil {
				return // null is not a list
			}
		}
		want := true
		if filters != nil {
			want = attributes != nil
			for key, values := range filters {
				value, has := attributes[key]
				want = want && has && slices.Contains(values, value)
			}
		}
		if got := accepts(rawFilters, rawAttributes); got != want {
			t.Errorf("filter %s, attributes %s = %v, want %v", rawFilters, rawAttributes, got, want)
		}
	})
}
