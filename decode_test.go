package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// Whatever a client sends as settings, attributes and data is refused with
// mistakes that say where, or read as encoding/json reads it.
func FuzzForms(f *testing.F) {
	for _, seed := range []string{
		`{"id":"q","topic_id":"t","ack_deadline_seconds":30,"message_retention_seconds":"600","message_filters":{"a":["b",1]}}`,
		`{"data":{"a":"\ud800"},"attributes":{"a":"b","c":-1.5e3}}`,
		`{"data":{},"attributes":{}}`, `{"data":null,"attributes":null}`, `{"ack_deadline_seconds":1e1,"dead_queue_id":"x"}`,
		`{"message_filters":{"a":[],"a":{}}}`, `{"attributes":{"a":nul}}`, `{"id":".."}`, `{"delivery_delay_seconds":1e400}`,
	} {
		f.Add([]byte(seed))
	}
	l := testLimits()
	f.Fuzz(func(t *testing.T, raw []byte) {
		form := readBody(raw)
		id := form.id("id", true)
		settings := form.queueSettings(&l)
		checkMistakes(t, form)
		if form.err() == nil {
			if !validID(*id) || settings.AckDeadlineSeconds < 1 || settings.AckDeadlineSeconds > 600 ||
				settings.MessageRetentionSeconds < 600 || settings.MessageRetentionSeconds > 1209600 {
				t.Errorf("accepted %+v from %q", settings, raw)
			}
			if filters := parseFilters(settings.MessageFilters); filters == nil != (settings.MessageFilters == nil) {
				t.Errorf("filters %q are read as %v", settings.MessageFilters, filters)
			}
		}
		form = readBody(raw)
		data, attributes := form.data("data"), form.attributes("attributes")
		checkMistakes(t, form)
		if form.err() != nil {
			return
		}
		if !json.Valid(data) || !bytes.Contains(raw, data) {
			t.Errorf("data %q of %q", data, raw)
		}
		parsed := parseAttributes(attributes)
		if attributes == nil {
			if parsed != nil {
				t.Errorf("no attributes are read as %v", parsed)
			}
			return
		}
		var want map[string]string
		if err := json.Unmarshal(attributes, &want); err != nil {
			t.Fatalf("attributes %q: %v", attributes, err)
		}
		if !bytes.Contains(attributes, []byte(`\u`)) && !reflect.DeepEqual(parsed, want) {
			t.Errorf("attributes %q are read as %v, want %v", attributes, parsed, want)
		}
	})
}

func checkMistakes(t *testing.T, f *form) {
	t.Helper()
	if f.broken && len(f.mistakes) == 0 {
		t.Error("a broken body has no mistake")
	}
	for _, m := range f.mistakes {
		if len(m.Loc) == 0 || m.Loc[0] != f.where[0] || m.Msg == "" || m.Type == "" {
			t.Errorf("a mistake without a place or a text: %+v", m)
		}
	}
}

func TestNumbersAreReadAsClientsWriteThem(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{
		"0": 0, "-5": -5, "+7": 7, "30.0": 30, "3e1": 30, "007": 7,
		"9223372036854775807": 9223372036854775807, "9223372036854775808": 9223372036854775807,
	} {
		if got, ok := parseInteger(s); !ok || got != want {
			t.Errorf("parseInteger(%q) = %d, %v, want %d", s, got, ok, want)
		}
	}
	for _, s := range []string{"", " 1", "1 ", "1.5", "0x10", "1_000", "ten", "Inf", "NaN", "--1", "1e", "é"} {
		if got, ok := parseInteger(s); ok {
			t.Errorf("parseInteger(%q) = %d", s, got)
		}
	}
}

func TestNotAllMistakesAreListed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	wrong := `{"data":1,"attributes":{` + strings.TrimSuffix(strings.Repeat(`"a":null,`, 300), ",") + `}}`
	many := `{"messages":[` + strings.TrimSuffix(strings.Repeat(wrong+",", 3), ",") + `]}`
	for path, body := range map[string]string{"/topics/t/messages": wrong, "/topics/t/messages/batch": many} {
		var v struct{ Detail []mistake }
		mustDecode(t, s.must(422, "POST", path, body), &v)
		if len(v.Detail) != maxMistakes {
			t.Errorf("POST %s lists %d mistakes, want %d", path, len(v.Detail), maxMistakes)
		}
	}
}
