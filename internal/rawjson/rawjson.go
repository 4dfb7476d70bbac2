// Package rawjson reads JSON without changing it, so that clients get back the bytes
// that they sent: encoding/json would replace lone surrogates, drop all but one of
// several members with the same name, and lose digits. All functions but SyntaxError
// expect text that json.Valid accepts.
package rawjson

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// IsNull reports whether raw is null or empty.
func IsNull(raw []byte) bool {
	return len(raw) == 0 || raw[0] == 'n'
}

// WalkObject calls each with the name and the value of every member of an object.
func WalkObject(raw []byte, each func(name string, value []byte)) {
	for i := SkipSpace(raw, 1); raw[i] != '}'; {
		end := SkipValue(raw, i)
		name := Unquote(raw[i:end])
		i = SkipSpace(raw, SkipSpace(raw, end)+1) // the colon
		end = SkipValue(raw, i)
		each(name, raw[i:end])
		if i = SkipSpace(raw, end); raw[i] == ',' {
			i = SkipSpace(raw, i+1)
		}
	}
}

// WalkArray calls each with every element of an array.
func WalkArray(raw []byte, each func(value []byte)) {
	for i := SkipSpace(raw, 1); raw[i] != ']'; {
		end := SkipValue(raw, i)
		each(raw[i:end])
		if i = SkipSpace(raw, end); raw[i] == ',' {
			i = SkipSpace(raw, i+1)
		}
	}
}

// TrimBOM returns the text without a leading byte order mark, which some programs
// write although JSON does not allow it (RFC 8259, section 8.1).
func TrimBOM(text []byte) []byte {
	return bytes.TrimPrefix(text, []byte("\ufeff"))
}

// SkipSpace returns the index of the first byte at or after i that is not white space.
func SkipSpace(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\t' || raw[i] == '\n' || raw[i] == '\r') {
		i++
	}
	return i
}

// SkipValue returns the end of the value that starts at i.
func SkipValue(raw []byte, i int) int {
	switch raw[i] {
	case '"':
		return skipString(raw, i)
	case '{', '[':
		end, _ := Nesting(raw, i)
		return end
	}
	for i < len(raw) {
		switch raw[i] {
		case ' ', '\t', '\n', '\r', ',', ']', '}':
			return i
		}
		i++
	}
	return i
}

func skipString(raw []byte, i int) int {
	for i++; raw[i] != '"'; i++ {
		if raw[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// Nesting returns the end of the array or object that starts at i and the depth of its
// nesting, 1 if it contains no arrays or objects.
func Nesting(raw []byte, i int) (end, deepest int) {
	for depth := 0; ; i++ {
		switch raw[i] {
		case '"':
			i = skipString(raw, i) - 1
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1, deepest
			}
		}
	}
}

// Unquote returns the text of a JSON string. Lone surrogates, which UTF-8 cannot
// encode, become the three bytes of their code points (WTF-8), so that different
// strings stay different.
func Unquote(raw []byte) string {
	raw = raw[1 : len(raw)-1]
	plain := true
	for _, c := range raw {
		if c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return string(raw)
	}
	b := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			b = append(b, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r := hexRune(raw[i+1:])
			i += 4
			if utf16.IsSurrogate(r) && i+6 < len(raw) && raw[i+1] == '\\' && raw[i+2] == 'u' {
				if pair := utf16.DecodeRune(r, hexRune(raw[i+3:])); pair != utf8.RuneError {
					r = pair
					i += 6
				}
			}
			if utf16.IsSurrogate(r) {
				b = append(b, 0xe0|byte(r>>12), 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
			} else {
				b = utf8.AppendRune(b, r)
			}
		default: // the quote, the backslash and the slash
			b = append(b, raw[i])
		}
	}
	return string(b)
}

func hexRune(digits []byte) rune {
	n, _ := strconv.ParseUint(string(digits[:4]), 16, 32)
	return rune(n)
}

// Quote returns a text as a JSON string.
func Quote(text string) []byte { return AppendQuote(nil, text) }

// AppendQuote appends a text as a JSON string, with the escapes of encoding/json without
// those for HTML. Bytes that are not UTF-8 become U+FFFD.
func AppendQuote(b []byte, text string) []byte {
	b = append(slices.Grow(b, len(text)+2), '"')
	copied := 0 // bytes of the text
	for i := 0; i < len(text); {
		c, size := rune(text[i]), 1
		if c >= utf8.RuneSelf {
			c, size = utf8.DecodeRuneInString(text[i:])
		}
		plain := c >= ' ' && c != '"' && c != '\\' && c != '\u2028' && c != '\u2029' && (c != utf8.RuneError || size > 1)
		if !plain {
			b = append(append(b, text[copied:i]...), '\\')
			copied = i + size
			switch c {
			case '"', '\\':
				b = append(b, byte(c))
			case '\b':
				b = append(b, 'b')
			case '\f':
				b = append(b, 'f')
			case '\n':
				b = append(b, 'n')
			case '\r':
				b = append(b, 'r')
			case '\t':
				b = append(b, 't')
			default:
				b = fmt.Appendf(b, "u%04x", c)
			}
		}
		i += size
	}
	return append(append(b, text[copied:]...), '"')
}

// SyntaxError returns the mistake in a text that json.Valid rejects, and its index, in
// the words of Python's json module (CPython 3.11, Modules/_json.c), which fastqueue
// returns. msg is empty if the text is only nested too deeply.
func SyntaxError(text []byte) (msg string, at int) {
	is := func(i int, c byte) bool { return i < len(text) && text[i] == c }
	var open []byte // the enclosing brackets, outermost first
	i := SkipSpace(text, 0)
	for {
		if len(open) > 0 && open[len(open)-1] == '{' {
			if !is(i, '"') {
				return "Expecting property name enclosed in double quotes", i
			}
			if i, msg = skipBrokenString(text, i); msg != "" {
				return msg, i
			}
			if i = SkipSpace(text, i); !is(i, ':') {
				return "Expecting ':' delimiter", i
			}
			i = SkipSpace(text, i+1)
		}
		switch {
		case is(i, '{'), is(i, '['):
			end := SkipSpace(text, i+1)
			if !is(end, text[i]+2) { // the closing one
				open = append(open, text[i])
				i = end
				continue
			}
			i = end + 1
		case is(i, '"'):
			if i, msg = skipBrokenString(text, i); msg != "" {
				return msg, i
			}
		default:
			end := skipScalar(text, i)
			if end == i {
				return "Expecting value", i
			}
			i = end
		}
		for i = SkipSpace(text, i); len(open) > 0 && is(i, open[len(open)-1]+2); i = SkipSpace(text, i+1) {
			open = open[:len(open)-1]
		}
		switch {
		case len(open) == 0 && i < len(text):
			return "Extra data", i
		case len(open) == 0:
			return "", 0
		case !is(i, ','):
			return "Expecting ',' delimiter", i
		}
		i = SkipSpace(text, i+1)
	}
}

// skipBrokenString returns the end of the string that starts at i or, with msg, the
// index of its mistake.
func skipBrokenString(text []byte, i int) (end int, msg string) {
	for end = i + 1; end < len(text); end++ {
		switch c := text[end]; {
		case c == '"':
			return end + 1, ""
		case c < ' ':
			return end, "Invalid control character at"
		case c != '\\' || end+1 == len(text):
		case text[end+1] == 'u':
			if end+6 >= len(text) || len(bytes.Trim(text[end+2:end+6], "0123456789abcdefABCDEF")) > 0 {
				return end + 1, "Invalid \\uXXXX escape"
			}
			end += 5
		case bytes.IndexByte([]byte(`"\/bfnrt`), text[end+1]) < 0:
			return end, "Invalid \\escape"
		default:
			end++
		}
	}
	return i, "Unterminated string starting at"
}

// skipScalar returns the end of the longest number or literal that starts at i, and i
// if there is none.
func skipScalar(text []byte, i int) int {
	for _, word := range []string{"null", "true", "false"} {
		if bytes.HasPrefix(text[i:], []byte(word)) {
			return i + len(word)
		}
	}
	is := func(i int, any string) bool { return i < len(text) && strings.IndexByte(any, text[i]) >= 0 }
	skipDigits := func(i int) int {
		for is(i, "0123456789") {
			i++
		}
		return i
	}
	end := i
	if is(end, "-") {
		end++
	}
	switch {
	case !is(end, "0123456789"):
		return i
	case is(end, "0"):
		end++
	default:
		end = skipDigits(end)
	}
	if is(end, ".") && is(end+1, "0123456789") {
		end = skipDigits(end + 1)
	}
	if is(end, "eE") {
		exponent := end + 1
		if is(exponent, "+-") {
			exponent++
		}
		if is(exponent, "0123456789") {
			end = skipDigits(exponent)
		}
	}
	return end
}
