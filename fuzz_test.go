package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequests sends anything to any route, through the real mux to a real
// database. Whatever it is, the answer is what the API promises: never a 5xx but
// 503, JSON wherever there is a body, and nothing stored by what was refused.
func FuzzRequests(f *testing.F) {
	const queue = `"ack_deadline_seconds":30,"message_retention_seconds":600`
	const id = "01a2070a-637d-779c-bda4-c363025bdbb3"
	for _, seed := range [][4]string{
		{"POST", "/topics", "", `{"id":"a"}`},
		{"GET", "/topics", "offset=0&limit=10", ""},
		{"DELETE", "/topics/gone", "", ""},
		{"POST", "/queues", "", `{"id":"q","topic_id":"t",` + queue + `,"message_filters":{"a":["b",1]}}`},
		{"PUT", "/queues/t", "", `{` + queue + `,"dead_queue_id":"t","message_max_deliveries":3}`},
		{"DELETE", "/queues/gone", "", ""},
		{"GET", "/queues/t/stats", "detail=true", ""},
		{"PUT", "/queues/t/purge", "", ""},
		{"PUT", "/queues/t/redrive", "", `{"destination_queue_id":"t","limit":2}`},
		{"POST", "/topics/t/messages", "", `{"data":{"a":"\ud800\u0000"},"attributes":{"b":1e400},"delay_seconds":"3"}`},
		{"POST", "/queues/t/messages", "", `{"data":{"a":[1,{"b":null}]}}`},
		{"POST", "/topics/t/messages/batch", "", `{"messages":[{"data":{}},{"data":{},"delay_seconds":1}]}`},
		{"GET", "/queues/t/messages", "limit=3&wait_seconds=0.001", ""},
		{"GET", "/queues/t/messages/peek", "offset=1&limit=2", ""},
		{"PUT", "/messages/" + id + "/ack", "scheduled_at=2022-10-05T21:48:24.724341", ""},
		{"PUT", "/messages/" + id + "/nack", "", `{"delay_seconds":5}`},
		{"PUT", "/messages/" + id + "/extend", "", `{"ack_deadline_seconds":5}`},
		{"PUT", "/messages/ack", "", `{"ids":["` + id + `"]}`},
		{"PUT", "/messages/nack", "", `{"messages":[{"id":"` + id + `","scheduled_at":"2022-10-05T21:48:24"}]}`},
		{"GET", "/messages/" + id, "", ""},
		{"GET", "/health", "", ""},
		{"GET", "/metrics", "", ""},
		{"HEAD", "/queues/t/messages", "", ""},
		{"BREW", "//topics/../x/", "%zz;&=", "\xff"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	server := newTestServer(f)
	server.mustTopic("t")
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		s := *server
		s.t = t
		u := &url.URL{Scheme: "http", Host: "localhost", Path: path, RawQuery: query}
		parsed, err := url.ParseRequestURI(u.RequestURI())
		if err != nil || !strings.HasPrefix(path, "/") || strings.ContainsAny(method, " \r\n") || method == "" {
			return // net/http would not let it in
		}
		if strings.Contains(query, "wait_seconds") && len(query) > 60 {
			return // or some of them wait for long
		}
		r, err := http.NewRequest(method, parsed.String(), strings.NewReader(body))
		if err != nil {
			return
		}
		r.Host = "localhost"
		before := s.stored()
		w := httptest.NewRecorder()
		s.server.ServeHTTP(w, r)
		switch {
		case w.Code >= 500 && w.Code != 503, w.Code < 200:
			t.Errorf("%s %q?%q %q = %d %s", method, path, query, body, w.Code, w.Body)
		case w.Code >= 400 && w.Body.Len() == 0, w.Code >= 400 && !json.Valid(w.Body.Bytes()):
			t.Errorf("%s %q?%q %q = %d with %q, which is no JSON", method, path, query, body, w.Code, w.Body)
		case w.Code >= 400 && w.Code != 409 && w.Code != 503 && s.stored() != before:
			t.Errorf("%s %q?%q %q = %d, and something was stored", method, path, query, body, w.Code)
		}
	})
}

// stored is a fingerprint of what is in the database.
func (s *testServer) stored() string {
	s.t.Helper()
	return fmt.Sprint(s.count("SELECT count(*) FROM queued.topics"), s.count("SELECT count(*) FROM queued.queues"),
		s.count("SELECT count(*) FROM queued.messages"))
}
