package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestUnquote(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		`""`:                    "",
		`"plain é"`:             "plain é",
		`"\"\\\/\b\f\n\r\t"`:    "\"\\/\b\f\n\r\t",
		`"\u0000\u00e9\u20AC"`:  "\x00é€",
		`"\ud83d\ude00!"`:       "😀!",
		`"\ud83d"`:              "\xed\xa0\xbd",
		`"\ude00\ud83d"`:        "\xed\xb8\x80\xed\xa0\xbd",
		`"\ud83dx\ud83d\u0041"`: "\xed\xa0\xbdx\xed\xa0\xbdA",
		`"\ud83d\ud83d\ude00"`:  "\xed\xa0\xbd😀",
		`"a\\ud83d"`:            `a\ud83d`,
	} {
		if got := unquote([]byte(raw)); got != want {
			t.Errorf("unquote(%s) = %q, want %q", raw, got, want)
		}
	}
}

// What walks raw JSON agrees with encoding/json about what is there.
func FuzzRawJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, ` { "a" : [ 1 , "x" , null ] , "b" : { "c" : true } } `, `{"a":"\"}","b":"{["}`, `{"\u0061":-1e5,"a":2}`,
		`{"a":[[],[[]],{}]}`, `{"x":"\\"}`, `{"a":{"b":{"c":[{"d":1}]}}}`, "{\"a\":\"\U0001F600\"}", `{"a":false,"":""}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		form := readBody(raw)
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
			t.Fatalf("accepted %q, which is no object: %v", raw, err)
		}
		for name, value := range want {
			if strings.ContainsRune(name, utf8.RuneError) {
				return // encoding/json may have put it for a surrogate
			}
			got, has := form.find(name)
			if !has || !bytes.Equal(got, value) {
				t.Errorf("%q of %q is %q, want %q", name, raw, got, value)
			}
			if _, deepest := nesting(raw, bytes.IndexByte(raw, '{')); deepest > maxDepth {
				t.Errorf("accepted %d levels", deepest)
			}
		}
		quoted := quoteScalars(raw)
		if !json.Valid(quoted) {
			t.Errorf("quoteScalars(%q) = %q", raw, quoted)
		}
	})
}
