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

// newLog returns a log in a format, text or json, that is written line by line,
// and says only once in a while what PostgreSQL refuses.
func newLog(w io.Writer, level slog.Level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(printable{w}, options)
	if format == "json" {
		h = slog.NewJSONHandler(printable{w}, options)
	}
	return slog.New(repeatFilter{h, new(sync.Map)})
}

// printable writes lines with all that is not printable as \uXXXX, which both
// formats read as the same: slog lets DEL through, and JSON also U+009B, which
// some terminals take for the start of a command, and what turns the direction of
// writing around.
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

// unprintable is also true for bytes that are no UTF-8.
func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
