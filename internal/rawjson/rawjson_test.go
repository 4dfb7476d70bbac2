package rawjson

import (
	"bytes"
	"encoding/json"
	"testing"
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
		if got := Unquote([]byte(raw)); got != want {
			t.Errorf("Unquote(%s) = %q, want %q", raw, got, want)
		}
	}
}

// quotedByJSON is a reference for Quote.
func quotedByJSON(text string) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		panic(err)
	}
	return b.String()[:b.Len()-1]
}

func TestQuoteEscapesLikeEncodingJSON(t *testing.T) {
	t.Parallel()
	texts := []string{"", "plain", `"\` + "\b\f\n\r\t", "a\u2028b\u2029", "<&>", "\x00\x1f\x7f", "\xff", "é\xc3", "\xed\xa0\xbd", "😀\xf0\x9f\x98", "\ufffd"}
	for c := range rune(0x3000) {
		texts = append(texts, "a"+string(c)+"b")
	}
	for _, text := range texts {
		if got, want := string(Quote(text)), quotedByJSON(text); got != want {
			t.Errorf("Quote(%q) = %s, want %s", text, got, want)
		}
		if got, want := string(AppendQuote([]byte("x"), text)), "x"+quotedByJSON(text); got != want {
			t.Errorf("AppendQuote of %q = %s, want %s", text, got, want)
		}
	}
}
