package main

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// newID returns a new UUID of version 7 (RFC 9562, section 5.7). These sort by their
// time in milliseconds, so new rows go to the right edge of the index.
func newID() string {
	var u [16]byte
	rand.Read(u[6:]) // never fails
	ms := time.Now().UnixMilli()
	for i := range 6 {
		u[i] = byte(ms >> (40 - 8*i))
	}
	u[6] = u[6]&0x0f | 0x70
	u[8] = u[8]&0x3f | 0x80
	return formatID(u)
}

// newIDIn returns a new id of a message in a home of several, which is in its last six bits.
func newIDIn(home int64) string {
	id := []byte(newID())
	const digits = "0123456789abcdef"
	id[35] = digits[home&0xf]
	id[34] = digits[hexDigit(id[34])&0xc|byte(home>>4&0x3)]
	return string(id)
}

// homeInID returns the home in an id of newIDIn.
func homeInID(id string) int64 {
	return int64(hexDigit(id[34])&0x3)<<4 | int64(hexDigit(id[35]))
}

func hexDigit(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

// parseID parses a UUID, in upper or lower case, with or without hyphens, and returns
// its canonical form: lower case with hyphens.
func parseID(s string) (id string, ok bool) {
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		s = s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	}
	var u [16]byte
	if len(s) != 32 {
		return "", false
	}
	if _, err := hex.Decode(u[:], []byte(s)); err != nil {
		return "", false
	}
	return formatID(u), true
}

// idBytes returns the bytes of a UUID in canonical form.
func idBytes(id string) (u [16]byte) {
	n := 0 // digits
	for i := range len(id) {
		if c := id[i]; c != '-' {
			u[n/2] = u[n/2]<<4 | hexDigit(c)
			n++
		}
	}
	return u
}

func formatID(u [16]byte) string {
	b := make([]byte, 0, 36)
	for i, part := range [][]byte{u[:4], u[4:6], u[6:8], u[8:10], u[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return string(b)
}
