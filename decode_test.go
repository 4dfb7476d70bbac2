package main

import (
	"bytes"
	"encoding/json"
	"queued/internal/rawjson"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// Settings, attributes and data of any client are either refused, with mistakes that
// name the place, or read as encoding/json reads them.
func FuzzForms(f *testing.F) {
	for _, seed := range []string{
		`{"id":"q","topic_id":"t","ack_deadline_seconds":30,"message_retention_seconds":"600","message_filters":{"a":["b",1]}}`,
		`{"data":{"a":"\ud800"},"attributes":{"a":"b","c":-1.5e3}}`,
		`{"data":{},"attributes":{}}`, `{"data":null,"attributes":null}`, `{"ack_deadline_seconds":1e1,"dead_queue_id":"x"}`,
		`{"message_filters":{"a":[],"a":{}}}`, `{"attributes":{"a":nul}}`, `{"id":".."}`, `{"delivery_delay_seconds":1e400}`,
	} {
		f.Add([]byte(seed))
	}
	l := mustTestConfig(f).limits
	f.Fuzz(func(t *testing.T, raw []byte) {
		form := parseBody(raw)
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
		form = parseBody(raw)
		data, attributes := form.object("data", true), form.attributes("attributes")
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

// The responses are those of fastqueue 1.7 with pydantic 1.10. Only the ctx of broken
// JSON differs: fastqueue's contains the whole body.
func TestConversionsAndMistakesAreThoseOfFastqueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.play([]step{
		{"POST", "/topics", `{"id":1}`, 201, `{"id":"1","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":true}`, 201, `{"id":"True","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":-0}`, 201, `{"id":"0","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":1.50}`, 201, `{"id":"1.5","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":1e15}`, 201, `{"id":"1000000000000000.0","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":1e16}`, 422, `{"detail":[{"loc":["body","id"],"msg":"string does not match regex \"^[a-zA-Z0-9-._]+$\"","type":"value_error.str.regex","ctx":{"pattern":"^[a-zA-Z0-9-._]+$"}}]}`},
		{"POST", "/topics", `{"id":0.00001}`, 201, `{"id":"1e-05","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":1e400}`, 201, `{"id":"inf","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":123456789012345678901234567890}`, 201, `{"id":"123456789012345678901234567890","created_at":"TIME"}`},
		{"POST", "/topics", `{"id":[]}`, 422, `{"detail":[{"loc":["body","id"],"msg":"str type expected","type":"type_error.str"}]}`},
		{"POST", "/topics", `[]`, 422, `{"detail":[{"loc":["body","id"],"msg":"field required","type":"value_error.missing"}]}`},
		{"POST", "/topics", `[1]`, 422, `{"detail":[{"loc":["body"],"msg":"value is not a valid dict","type":"type_error.dict"}]}`},
		{"POST", "/topics", `null`, 422, `{"detail":[{"loc":["body"],"msg":"field required","type":"value_error.missing"}]}`},
		{"POST", "/topics", ``, 422, `{"detail":[{"loc":["body"],"msg":"field required","type":"value_error.missing"}]}`},
		{"POST", "/topics", "\ufeff{\"id\":\"mark\"}", 201, `{"id":"mark","created_at":"TIME"}`},
		{"POST", "/topics", "\ufeff\n{\"id\" \"mark\"}", 422, `{"detail":[{"loc":["body",7],"msg":"Expecting ':' delimiter: line 2 column 7 (char 7)","type":"value_error.jsondecode","ctx":{"msg":"Expecting ':' delimiter","pos":7,"lineno":2,"colno":7}}]}`},
		{"POST", "/topics", `{"id":"a b"}`, 422, `{"detail":[{"loc":["body","id"],"msg":"string does not match regex \"^[a-zA-Z0-9-._]+$\"","type":"value_error.str.regex","ctx":{"pattern":"^[a-zA-Z0-9-._]+$"}}]}`},
		{"POST", "/topics", `{"id":"` + strings.Repeat("a", 129) + `"}`, 422, `{"detail":[{"loc":["body","id"],"msg":"ensure this value has at most 128 characters","type":"value_error.any_str.max_length","ctx":{"limit_value":128}}]}`},
		{"POST", "/topics", `{"id":"a",}`, 422, `{"detail":[{"loc":["body",10],"msg":"Expecting property name enclosed in double quotes: line 1 column 11 (char 10)","type":"value_error.jsondecode","ctx":{"msg":"Expecting property name enclosed in double quotes","pos":10,"lineno":1,"colno":11}}]}`},
		{"POST", "/topics", `{"id":"a"`, 422, `{"detail":[{"loc":["body",9],"msg":"Expecting ',' delimiter: line 1 column 10 (char 9)","type":"value_error.jsondecode","ctx":{"msg":"Expecting ',' delimiter","pos":9,"lineno":1,"colno":10}}]}`},
		{"POST", "/topics", `{"é":"a}`, 422, `{"detail":[{"loc":["body",5],"msg":"Unterminated string starting at: line 1 column 6 (char 5)","type":"value_error.jsondecode","ctx":{"msg":"Unterminated string starting at","pos":5,"lineno":1,"colno":6}}]}`},
		{"POST", "/topics", "{\n\"é\":\n \"é\" x}", 422, `{"detail":[{"loc":["body",12],"msg":"Expecting ',' delimiter: line 3 column 6 (char 12)","type":"value_error.jsondecode","ctx":{"msg":"Expecting ',' delimiter","pos":12,"lineno":3,"colno":6}}]}`},
		{"POST", "/topics", `{} {}`, 422, `{"detail":[{"loc":["body",3],"msg":"Extra data: line 1 column 4 (char 3)","type":"value_error.jsondecode","ctx":{"msg":"Extra data","pos":3,"lineno":1,"colno":4}}]}`},
		{"POST", "/topics", `{"id":01}`, 422, `{"detail":[{"loc":["body",7],"msg":"Expecting ',' delimiter: line 1 column 8 (char 7)","type":"value_error.jsondecode","ctx":{"msg":"Expecting ',' delimiter","pos":7,"lineno":1,"colno":8}}]}`},
		{"POST", "/queues", `{"id":"fractions","ack_deadline_seconds":30.7,"message_retention_seconds":"600"}`, 201, `{"id":"fractions","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":30,"message_retention_seconds":600,"message_filters":null,"message_max_deliveries":null,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`},
		{"POST", "/queues", `{"id":"spaces","ack_deadline_seconds":" 30 ","message_retention_seconds":6e2}`, 201, `{"id":"spaces","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":30,"message_retention_seconds":600,"message_filters":null,"message_max_deliveries":null,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`},
		{"POST", "/queues", `{"id":"truth","ack_deadline_seconds":true,"message_retention_seconds":600.99,"message_filters":[]}`, 201, `{"id":"truth","topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":1,"message_retention_seconds":600,"message_filters":{},"message_max_deliveries":null,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`},
		{"POST", "/queues", `{"id":7,"topic_id":1,"ack_deadline_seconds":30,"message_retention_seconds":600,"message_filters":{"a":[1,true,2.0,"x"],"b":[]}}`, 201, `{"id":"7","topic_id":"1","dead_queue_id":null,"ack_deadline_seconds":30,"message_retention_seconds":600,"message_filters":{"a":["1","True","2.0","x"],"b":[]},"message_max_deliveries":null,"delivery_delay_seconds":null,"created_at":"TIME","updated_at":"TIME"}`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":false,"message_retention_seconds":-0.5}`, 422, `{"detail":[{"loc":["body","ack_deadline_seconds"],"msg":"ensure this value is greater than or equal to 1","type":"value_error.number.not_ge","ctx":{"limit_value":1}},{"loc":["body","message_retention_seconds"],"msg":"ensure this value is greater than or equal to 600","type":"value_error.number.not_ge","ctx":{"limit_value":600}}]}`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":"30.0","message_retention_seconds":1e400}`, 422, `{"detail":[{"loc":["body","ack_deadline_seconds"],"msg":"value is not a valid integer","type":"type_error.integer"},{"loc":["body","message_retention_seconds"],"msg":"value is not a valid integer","type":"type_error.integer"}]}`},
		{"POST", "/queues", `{"id":"q","ack_deadline_seconds":[],"message_retention_seconds":99999999999999999999}`, 422, `{"detail":[{"loc":["body","ack_deadline_seconds"],"msg":"value is not a valid integer","type":"type_error.integer"},{"loc":["body","message_retention_seconds"],"msg":"ensure this value is less than or equal to 1209600","type":"value_error.number.not_le","ctx":{"limit_value":1209600}}]}`},
		{"POST", "/queues", `{"id":"q","dead_queue_id":"t","ack_deadline_seconds":30,"message_retention_seconds":600}`, 422, `{"detail":[{"loc":["body","__root__"],"msg":"message_max_deliveries is required for dead queue support","type":"value_error"}]}`},
		{"POST", "/queues", `{"id":"q","message_max_deliveries":5,"ack_deadline_seconds":30,"message_retention_seconds":600}`, 422, `{"detail":[{"loc":["body","__root__"],"msg":"dead_queue_id is required for dead queue support","type":"value_error"}]}`},
		{"POST", "/queues", `{"id":"","dead_queue_id":"t","message_max_deliveries":0}`, 422, `{"detail":[{"loc":["body","id"],"msg":"string does not match regex \"^[a-zA-Z0-9-._]+$\"","type":"value_error.str.regex","ctx":{"pattern":"^[a-zA-Z0-9-._]+$"}},{"loc":["body","ack_deadline_seconds"],"msg":"field required","type":"value_error.missing"},{"loc":["body","message_retention_seconds"],"msg":"field required","type":"value_error.missing"},{"loc":["body","message_max_deliveries"],"msg":"ensure this value is greater than or equal to 1","type":"value_error.number.not_ge","ctx":{"limit_value":1}},{"loc":["body","__root__"],"msg":"message_max_deliveries is required for dead queue support","type":"value_error"}]}`},
		{"PUT", "/queues/t", `{"dead_queue_id":{},"message_max_deliveries":1,"ack_deadline_seconds":30,"message_retention_seconds":600}`, 422, `{"detail":[{"loc":["body","dead_queue_id"],"msg":"str type expected","type":"type_error.str"},{"loc":["body","__root__"],"msg":"dead_queue_id is required for dead queue support","type":"value_error"}]}`},
		{"PUT", "/queues/t", `{"ack_deadline_seconds":601,"message_retention_seconds":599,"message_filters":{"a":[null,"x",{}],"b":"x"},"delivery_delay_seconds":901}`, 422, `{"detail":[{"loc":["body","ack_deadline_seconds"],"msg":"ensure this value is less than or equal to 600","type":"value_error.number.not_le","ctx":{"limit_value":600}},{"loc":["body","message_retention_seconds"],"msg":"ensure this value is greater than or equal to 600","type":"value_error.number.not_ge","ctx":{"limit_value":600}},{"loc":["body","message_filters","a",0],"msg":"none is not an allowed value","type":"type_error.none.not_allowed"},{"loc":["body","message_filters","a",2],"msg":"str type expected","type":"type_error.str"},{"loc":["body","message_filters","b"],"msg":"value is not a valid list","type":"type_error.list"},{"loc":["body","delivery_delay_seconds"],"msg":"ensure this value is less than or equal to 900","type":"value_error.number.not_le","ctx":{"limit_value":900}}]}`},
		{"PUT", "/queues/t/redrive", `{"destination_queue_id":"a b"}`, 404, `{"detail":"Queue not found"}`},
		{"PUT", "/queues/t/redrive", `{"destination_queue_id":7}`, 204, ``},
		{"PUT", "/queues/t/redrive", `{"destination_queue_id":[]}`, 422, `{"detail":[{"loc":["body","destination_queue_id"],"msg":"str type expected","type":"type_error.str"}]}`},
		{"POST", "/topics/t/messages", `{"data":[],"attributes":[]}`, 201, `{"data":[{"id":"UUID","queue_id":"t","data":{},"attributes":{},"delivery_attempts":0,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}]}`},
		{"POST", "/topics/t/messages", `{"data":{"a":[]},"attributes":{"a":true,"b":false,"c":1,"d":1.50,"e":1e2,"f":-0.0,"g":1e-7,"h":"true"}}`, 201, `{"data":[{"id":"UUID","queue_id":"t","data":{"a":[]},"attributes":{"a":"True","b":"False","c":"1","d":"1.5","e":"100.0","f":"-0.0","g":"1e-07","h":"true"},"delivery_attempts":0,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME"}]}`},
		{"POST", "/topics/t/messages", `{"data":[1],"attributes":{"a":null,"b":[],"c":{}}}`, 422, `{"detail":[{"loc":["body","data"],"msg":"value is not a valid dict","type":"type_error.dict"},{"loc":["body","attributes","a"],"msg":"none is not an allowed value","type":"type_error.none.not_allowed"},{"loc":["body","attributes","b"],"msg":"str type expected","type":"type_error.str"},{"loc":["body","attributes","c"],"msg":"str type expected","type":"type_error.str"}]}`},
		{"GET", "/topics?limit=0", "", 200, `{"data":[]}`},
		{"GET", "/queues?limit=0&offset=0", "", 200, `{"data":[]}`},
		{"GET", "/queues/t/messages?limit=0", "", 200, `{"data":[]}`},
		{"GET", "/queues/nope/messages?limit=0", "", 404, `{"detail":"Queue not found"}`},
		{"GET", "/topics?limit=%200%20", "", 200, `{"data":[]}`},
		{"GET", "/topics?limit=1.0&offset=x", "", 422, `{"detail":[{"loc":["query","offset"],"msg":"value is not a valid integer","type":"type_error.integer"},{"loc":["query","limit"],"msg":"value is not a valid integer","type":"type_error.integer"}]}`},
	})
}

func TestFloatsBecomeTextAsPythonWritesThem(t *testing.T) {
	t.Parallel()
	for number, want := range map[string]string{
		"0": "0", "-0": "0", "-7": "-7", "1e0": "1.0", "0.0": "0.0", "-0.0": "-0.0", "0e9": "0.0", "1.50": "1.5", "100.0": "100.0",
		"9999999999999998.0": "9999999999999998.0", "1e16": "1e+16", "123456789012345680000.0": "1.2345678901234568e+20",
		"0.0001": "0.0001", "0.00009": "9e-05", "-1.5E-300": "-1.5e-300", "5e-324": "5e-324", "1e-400": "0.0",
		"0.1": "0.1", "0.30000000000000004": "0.30000000000000004", "1e400": "inf", "-1e400": "-inf",
	} {
		if got := pythonNumber(number); got != want {
			t.Errorf("pythonNumber(%q) = %q, want %q", number, got, want)
		}
	}
}

// The scanner of raw JSON finds the same members as encoding/json.
func FuzzRawJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, ` { "a" : [ 1 , "x" , null ] , "b" : { "c" : true } } `, `{"a":"\"}","b":"{["}`, `{"\u0061":-1e5,"a":2}`,
		`{"a":[[],[[]],{}]}`, `{"x":"\\"}`, `{"a":{"b":{"c":[{"d":1}]}}}`, "{\"a\":\"\U0001F600\"}", `{"a":false,"":""}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		form := parseBody(raw)
		if form.broken {
			if len(form.mistakes) != 1 {
				t.Fatalf("a body that cannot be read has %d mistakes", len(form.mistakes))
			}
			return
		}
		if !json.Valid(raw) || !utf8.Valid(raw) {
			t.Fatalf("accepted %q", raw)
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatalf("accepted %q, which is not an object: %v", raw, err)
		}
		for name, value := range want {
			if strings.ContainsRune(name, utf8.RuneError) {
				return // encoding/json may have replaced a surrogate
			}
			got, has := form.find(name)
			if !has || !bytes.Equal(got, value) {
				t.Errorf("%q of %q is %q, want %q", name, raw, got, value)
			}
			if _, deepest := rawjson.Nesting(raw, bytes.IndexByte(raw, '{')); deepest > maxDepth {
				t.Errorf("accepted %d levels", deepest)
			}
		}
		quoted := quoteScalars(raw)
		if !json.Valid(quoted) {
			t.Errorf("quoteScalars(%q) = %q", raw, quoted)
		}
	})
}
