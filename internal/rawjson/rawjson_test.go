package rawjson

import "testing"

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
