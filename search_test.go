package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
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
		`{"data":{"n":4,"huge":1e999999}}`,
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
	for _, query := range []string{"state=gone", "contains=5", "contains={", "before=now", "after=now", "next=x", "next=1", "q=%00", "q=%ff", "q=x&limit=0", "q=x&limit=301", "q=x&offset=1"} {
		s.must(422, "GET", "/queues/q/messages/peek?"+query, "")
	}
}

// A search reads a bounded number of rows, and the next one continues where it ended.
func TestSearchIsBounded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const many = searchRows + 1000
	s.fill("q", many)
	s.exec("ANALYZE queued.messages")
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
