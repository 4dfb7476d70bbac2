package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// newLog returns a log in text or json format, one line per entry. Repeated errors
// of PostgreSQL are logged once a minute (repeatFilter).
func newLog(w io.Writer, level slog.Level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(printable{w}, options)
	if format == "json" {
		h = slog.NewJSONHandler(printable{w}, options)
	}
	return slog.New(repeatFilter{h, new(sync.Map)})
}

// printable escapes unprintable characters as \uXXXX, which both formats decode to
// the same text. slog does not escape DEL and, in JSON, U+009B (the start of a
// terminal command) and characters that reverse the direction of text.
type printable struct{ w io.Writer }

func (p printable) Write(line []byte) (int, error) {
	text := bytes.TrimSuffix(line, []byte("\n"))
	if bytes.IndexFunc(text, unprintable) < 0 {
		return p.w.Write(line)
	}
	b := make([]byte, 0, 2*len(line))
	for _, r := range string(text) {
		if !unprintable(r) {
			b = utf8.AppendRune(b, r)
		} else if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		} else {
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	if _, err := p.w.Write(append(b, '\n')); err != nil {
		return 0, err
	}
	return len(line), nil
}

// unprintable also reports true for bytes that are not valid UTF-8.
func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
