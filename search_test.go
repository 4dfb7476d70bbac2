package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"queued/internal/rawjson"
)

// searched returns the numbers of the messages that a search finds in all, in order, and the
// number of requests that it takes.
func (s *testServer) searched(queueID, query string) (all []int, requests int) {
	s.t.Helper()
	all = []int{}
	for next := ""; ; requests++ {
		var v struct {
			Data []struct{ Data struct{ N int } }
			Next *string
		}
		mustDecode(s.t, s.must(200, "GET", "/queues/"+queueID+"/messages/peek?"+query+next, ""), &v)
		for _, m := range v.Data {
			all = append(all, m.Data.N)
		}
		if v.Next == nil {
			return all, requests + 1
		}
		next = "&next=" + *v.Next
	}
}

func TestPeekSearches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":3`)
	for _, m := range []string{
		`{"data":{"n":1,"order":{"id":17,"lines":[1,2]}},"attributes":{"country":"es","paid":"yes"}}`,
		`{"data":{"n":2,"order":{"id":18}},"attributes":{"country":"es"},"group":"g"}`,
		`{"data":{"n":3,"text":"Zwölf \u0000 \ud800"},"attributes":{"a\u0000\"":"x\\"}}`,
		`{"data":{"n":4,"huge":1e-20000}}`,
		`{"data":{"n":5,"order":{"id":17.0}},"delay_seconds":600}`,
		`{"data":{"n":6}}`,
	} {
		s.must(201, "POST", "/queues/q/messages", m)
	}
	for _, m := range s.receive("q", "?limit=10") {
		switch {
		case strings.Contains(string(m.Data), `"n":6`):
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", `{"error":"No Paper"}`)
		case !strings.Contains(string(m.Data), `"n":1,`):
			s.must(204, "PUT", "/messages/"+m.ID+"/nack", `{"count_attempt":false}`)
		}
	}
	for _, v := range []struct {
		query string
		want  []int
	}{
		{"state=in_flight", []int{1}},
		{"state=delayed", []int{5}},
		{"state=exhausted", []int{}},
		{"state=ready", []int{2, 3, 4, 6}},
		{"group=g", []int{2}},
		{"group=h", []int{}},
		{"attribute.country=es", []int{1, 2}},
		{"attribute.country=es&attribute.paid=yes", []int{1}},
		{"attribute.country=fr", []int{}},
		{"attribute." + url.QueryEscape("a\x00\"") + "=x", nil},
		{"contains=" + url.QueryEscape(`{"order":{"id":17}}`), []int{1, 5}},
		{"contains=" + url.QueryEscape(`{"order":{"lines":[2]}}`), []int{1}},
		{"contains=" + url.QueryEscape(`{"text":"Zwölf \u0000 \ud800"}`), []int{3}},
		{"contains={}", []int{1, 2, 3, 5, 6}},
		{"q=zw%C3%B6lf", []int{3}},
		{"q=PAID", []int{1}},
		{"q=no+paper", []int{6}},
		{"q=order&state=ready", []int{2}},
		{"before=2100-01-01T00:00:00&after=2000-01-01T00:00:00", []int{1, 2, 3, 4, 5, 6}},
		{"before=2000-01-01T00:00:00", []int{}},
		{"after=2100-01-01T00:00:00Z", []int{}},
	} {
		if v.want == nil {
			s.must(422, "GET", "/queues/q/messages/peek?"+v.query, "")
			continue
		}
		got, _ := s.searched("q", v.query)
		slices.Sort(got)
		checkDiff(t, v.query, v.want, got)
		got, _ = s.searched("q", v.query+"&limit=1")
		slices.Sort(got)
		checkDiff(t, v.query+", one at a time", v.want, got)
	}
	s.must(404, "GET", "/queues/none/messages/peek?q=x", "")
	s.must(422, "GET", "/queues/q/messages/peek?q=x&limit=0", "")
	s.must(422, "GET", "/queues/q/messages/peek?q=x&limit=301", "")
	s.must(422, "GET", "/queues/q/messages/peek?q=x&offset=1", "")
}

// Whatever a parameter of a search contains, the response is a result or an error that names it.
func TestSearchNamesTheParameterItRefuses(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1,"back\\slash":"%_.*("},"attributes":{"a":"(["}}`)
	for _, v := range []struct {
		name, value string
		refused     bool
	}{
		{"state", "gone", true},
		{"state", "", true},
		{"group", "", true},
		{"group", "a\x00b", true},
		{"group", strings.Repeat("g", 257), true},
		{"contains", "", true},
		{"contains", "5", true},
		{"contains", "{", true},
		{"contains", "[{}]", true},
		{"contains", `{"n":1e999999}`, true},
		{"contains", `{"n":` + strings.Repeat("9", 5000) + `}`, false},
		{"contains", "{\"n\":\"\xff\"}", true},
		{"contains", `{"n":"\u0000\ud800"}`, false},
		{"contains", `{"n":` + strings.Repeat("[", 998) + strings.Repeat("]", 998) + "}", false},
		{"contains", strings.Repeat(`{"n":`, 5000) + "1" + strings.Repeat("}", 5000), true},
		{"contains", strings.Repeat(`[`, 20000), true},
		{"contains", "\uFEFF" + ` {"n":1}`, false},
		{"q", "\x00", true},
		{"q", "\xff", true},
		{"q", `%_.*([\E'"; --`, false},
		{"q", "", false},
		{"attribute.a", "\x00", true},
		{"attribute.a\x00", "b", true},
		{"attribute.a", "([", false},
		{"attribute.", "", false},
		{"before", "now", true},
		{"after", "infinity", true},
		{"after", "0000-01-01T00:00:00", true},
		{"after", "0001-01-01T00:00:00", false},
		{"before", "9999-12-31T23:59:59", false},
		{"next", "x", true},
		{"next", "1", true},
		{"next", "1-", true},
		{"next", "-1-1", true},
		{"next", "1-1 ", true},
		{"next", "+1-1", true},
		{"next", "0-9223372036854775807", false},
		{"next", "9223372036854775807-1", true},
		{"next", "1--1", true},
		{"next", "99999999999999999999-1", true},
	} {
		got := s.do("GET", "/queues/q/messages/peek?"+url.Values{v.name: {v.value}}.Encode(), "")
		want := 200
		if v.refused {
			want = 422
		}
		if loc := string(rawjson.Quote(v.name)); got.status != want || v.refused && !strings.Contains(got.body, `"loc":["query",`+loc) {
			t.Errorf("%s=%.40q: %d %.300s, want %d", v.name, v.value, got.status, got.body, want)
		}
	}
}

// A search reads a bounded number of rows, and the next one continues where it ended.
func TestSearchIsBounded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const many = searchRows + 1000
	s.fill("q", many)
	s.analyze("queued.messages")
	got, requests := s.searched("q", "contains="+url.QueryEscape(fmt.Sprintf(`{"n":%d}`, many)))
	checkDiff(t, "found", []int{many}, got)
	if requests < 2 {
		t.Errorf("the search took %d requests, although it has to read %d messages", requests, many)
	}
	got, _ = s.searched("q", "state=ready&limit=300&q=999")
	want := 0
	for n := 1; n <= many; n++ {
		if strings.Contains(fmt.Sprint(n), "999") {
			want++
		}
	}
	checkDiff(t, "found by text", want, len(got))
}
