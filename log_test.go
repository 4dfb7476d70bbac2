package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// wantLines checks the number of lines logged since the last call. The lines must be
// valid, and have no characters that control a terminal.
func wantLines(t *testing.T, b *syncBuffer, seen *int, format, what string, want int) {
	t.Helper()
	text := b.String()[*seen:]
	*seen += len(text)
	lines := strings.SplitAfter(text, "\n")
	if n := len(lines) - 1; n != want || lines[n] != "" {
		t.Errorf("%s: %s logs %d lines, want %d: %q", format, what, n, want, text)
	}
	for _, line := range lines[:len(lines)-1] {
		line = strings.TrimSuffix(line, "\n")
		if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 || !utf8.ValidString(line) {
			t.Errorf("%s: %s logs %+q", format, what, line)
		}
		if format == "json" && !json.Valid([]byte(line)) {
			t.Errorf("%s is not logged as JSON: %s", what, line)
		}
		if format == "text" && !strings.HasPrefix(line, "time=") {
			t.Errorf("%s is logged as %s", what, line)
		}
	}
}

func TestNoClientCanWriteLinesIntoTheLog(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.exec(`CREATE FUNCTION public.echo(payload text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', payload; END $$`)
	var payload string
	s.handle(native, public, "POST /panic", func(*request) (any, error) { panic(payload) })
	s.handle(native, public, "POST /panic-error", func(*request) (any, error) { panic(errors.New(payload)) })
	s.handle(native, public, "POST /echo", func(r *request) (any, error) {
		_, err := s.store.db.ExecContext(r.Context(), "SELECT public.echo($1)", payload)
		return nil, err
	})
	const fake = "time=2026-11-23T06:14:05.210Z level=INFO msg=ready"
	for _, format := range []string{"text", "json"} {
		b, seen := newSyncBuffer(), 0
		s.server.log = newLog(b, slog.LevelDebug, format)
		s.server.hints.given = nil // so that they are in each format
		for _, v := range []string{
			"a\n" + fake, "a\r\n" + fake, "\r" + fake, "a\u2028" + fake, "a\u2029b", "a\u0085b", "a\vb\fc", `"} {"level":"INFO"}`, `\n`, `a" msg="b`,
			"a\x1b[2J\x1b[31mb", "a\x1b]0;title\x07", "a\u009b31mb", "a\x7fb", "a\bb", "a\x00b", "\xff\xfe", "a\xc2", "\u202egnol\u202c", "\u2066a\u2069", "\u200b", "\ufeff", "\U000e0041",
		} {
			what := fmt.Sprintf("%+q", v)
			for _, path := range []string{
				"/topics/" + url.PathEscape(v), "/queues/" + url.PathEscape(v) + "/messages?wait_seconds=0", "/messages/" + url.PathEscape(v), "/" + url.PathEscape(v),
				"/queues?offset=" + url.QueryEscape(v),
			} {
				s.raw("GET", path, "", "Host: localhost")
				wantLines(t, b, &seen, format, path, 1)
			}
			s.raw("GET", "/queues?"+url.QueryEscape(v)+"=1", "", "Host: localhost")
			wantLines(t, b, &seen, format, "parameter "+what, 2) // one is a hint
			header := strings.Map(func(r rune) rune {
				if r == '\n' || r == '\r' {
					return ' ' // a line break would begin another header
				}
				return r
			}, v)
			for _, name := range []string{"Authorization", "User-Agent", "Origin", "X-Forwarded-For", "X-Request-Id", "Traceparent", "Host"} {
				headers := []string{"Host: localhost", name + ": " + header}
				if name == "Host" {
					headers = headers[1:]
				}
				s.raw("GET", "/topics", "", headers...)
				logged := 1
				if len(b.String()) == seen { // net/http has refused it
					logged = 0
				}
				wantLines(t, b, &seen, format, name+" "+what, logged)
			}
			id, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			s.do("POST", "/topics", `{"id":`+string(id)+`}`)
			wantLines(t, b, &seen, format, "id "+what, 1)
			payload = v
			s.must(500, "POST", "/panic", "")
			wantLines(t, b, &seen, format, "panic with "+what, 2)
			s.must(500, "POST", "/panic-error", "")
			wantLines(t, b, &seen, format, "panic with an error "+what, 2)
			if utf8.ValidString(v) && !strings.Contains(v, "\x00") { // otherwise the error is the client's, and not logged
				s.must(503, "POST", "/echo", "")
				wantLines(t, b, &seen, format, "error of PostgreSQL "+what, 2)
			}
			slog.NewLogLogger(s.log.Handler(), slog.LevelDebug).Print("http: ", v)
			wantLines(t, b, &seen, format, "net/http "+what, 1)
		}
	}
}

func TestChangesByAdministratorsAreLogged(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	b := newSyncBuffer()
	s.server.log = newLog(b, slog.LevelInfo, "text")
	const settings = `"ack_deadline_seconds":60,"message_retention_seconds":3600`
	s.useTokens(map[string]string{"ann": `"admin":true,"post":["abcd"]`})
	ann := s.with(secret("ann"))
	seen := 0
	for _, v := range []struct{ method, path, body, want string }{
		{"POST", "/topics", `{"id":"t"}`, `msg="topic created" topic=t`},
		{"POST", "/queues", `{"id":"q","topic_id":"t",` + settings + `}`, `msg="queue created" queue=q`},
		{"PUT", "/queues/q", `{` + settings + `,"delivery_interval_ms":1}`, `msg="queue changed" queue=q`},
		{"PUT", "/queues/q/pause", "", `msg="queue paused" queue=q`},
		{"PUT", "/queues/q/resume", "", `msg="queue resumed" queue=q`},
		{"POST", "/queues/q/messages", `{"data":{},"group":"g"}`, ""},
		{"GET", "/queues/q", "", ""},
		{"PUT", "/queues/q/groups/g", `{"delivery_interval_ms":0}`, `msg="group changed" queue=q group=g`},
		{"PUT", "/queues/q/redrive", `{"destination_queue_id":"q"}`, `msg="queue redriven" queue=q destination=q count=1`},
		{"PUT", "/messages/redrive", `{"ids":["` + newID() + `"]}`, `msg="messages redriven" destination=source count=0`},
		{"DELETE", "/messages", `{"ids":["` + newID() + `"]}`, `msg="messages deleted" count=0`},
		{"DELETE", "/queues/q/groups/g", "", `msg="group deleted" queue=q group=g`},
		{"PUT", "/queues/q/purge", "", `msg="queue purged" queue=q count=0`},
		{"DELETE", "/queues/q", "", `msg="queue deleted" queue=q`},
		{"DELETE", "/queues/q", "", ""}, // a 404 changes nothing
		{"DELETE", "/topics/t", "", `msg="topic deleted" topic=t`},
		{"POST", "/message", `{"channel":"abcd","message":{}}`, `msg="queue created" queue=abcd by="first use"`},
		{"POST", "/message", `{"channel":"abcd","message":{}}`, ""},
	} {
		response := ann.do(v.method, v.path, v.body)
		line := b.String()[seen:]
		seen += len(line)
		if v.want == "" && line != "" || !strings.Contains(line, v.want) || v.want != "" && (!strings.Contains(line, " token=ann ") || strings.Count(line, "\n") != 1) {
			t.Errorf("%s %s = %d logs %q, want %s", v.method, v.path, response.status, line, v.want)
		}
	}
}
