package main

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// sqsObject is a structure of a response: its members in order. It is encoded in JSON or
// in XML, depending on the protocol of the request.
type sqsObject []sqsMember

// sqsMember is a member of a structure, by its name in JSON. The value is a string, an int,
// a bool, bytes, a structure, a map, or a list of strings or structures. A list or map that
// is empty is left out, except for lists in sqsAlways.
type sqsMember struct {
	name  string
	value any
}

// sqsMap has the entries of a map in order. The values are strings or structures.
type sqsMap []sqsMember

// sqsAlways has the lists that a response in JSON has even if they are empty.
var sqsAlways = map[string]bool{"queueUrls": true, "Results": true}

const (
	sqsJSONType  = "application/x-amz-json-1.0"
	sqsNamespace = "http://queue.amazonaws.com/doc/2012-11-05/"
)

// appendJSON appends the structure in JSON.
func (v sqsObject) appendJSON(b []byte) []byte {
	b = append(b, '{')
	first := true
	for _, m := range v {
		if isEmptyList(m.value) && !sqsAlways[m.name] {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(rawjson.AppendQuote(b, m.name), ':')
		b = appendSQSValue(b, m.value)
	}
	return append(b, '}')
}

func isEmptyList(value any) bool {
	switch v := value.(type) {
	case []string:
		return len(v) == 0
	case []sqsObject:
		return len(v) == 0
	case sqsMap:
		return len(v) == 0
	}
	return false
}

func appendSQSValue(b []byte, value any) []byte {
	switch v := value.(type) {
	case string:
		return rawjson.AppendQuote(b, v)
	case []byte:
		b = base64.StdEncoding.AppendEncode(append(b, '"'), v)
		return append(b, '"')
	case int:
		return strconv.AppendInt(b, int64(v), 10)
	case bool:
		return strconv.AppendBool(b, v)
	case sqsObject:
		return v.appendJSON(b)
	case sqsMap:
		return sqsObject(v).appendJSON(b)
	case []string:
		return appendSQSList(b, v)
	case []sqsObject:
		return appendSQSList(b, v)
	}
	panic("sqs: a value of another type")
}

func appendSQSList[T any](b []byte, list []T) []byte {
	b = append(b, '[')
	for i, item := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendSQSValue(b, item)
	}
	return append(b, ']')
}

// sqsElements has the names of elements in XML where they differ from those in JSON. Lists
// and maps are flat: each item is an element, and none encloses them.
var sqsElements = map[string]string{
	"Attributes":        "Attribute",
	"MessageAttributes": "MessageAttribute",
	"Messages":          "Message",
	"QueueUrls":         "QueueUrl",
	"queueUrls":         "QueueUrl",
	"Tags":              "Tag",
	"Failed":            "BatchResultErrorEntry",
}

// appendXML appends the structure as the outermost element of a response to an action.
func (v sqsObject) appendXML(b []byte, element, action string) []byte {
	b = append(b, `<?xml version="1.0"?><`+element+` xmlns="`+sqsNamespace+`">`...)
	for _, m := range v {
		b = appendXMLElement(b, m.name, action, m.value)
	}
	return append(b, "</"+element+">"...)
}

// appendXMLElement appends a member of a structure.
func appendXMLElement(b []byte, name, action string, value any) []byte {
	element := name
	if other := sqsElements[name]; other != "" {
		element = other
	}
	if name == "Successful" || name == "Results" {
		element = action + "ResultEntry"
	}
	switch v := value.(type) {
	case []string:
		for _, item := range v {
			b = appendXMLElement(b, element, action, item)
		}
		return b
	case []sqsObject:
		for _, item := range v {
			b = appendXMLElement(b, element, action, item)
		}
		return b
	case sqsMap:
		key := "Name"
		if name == "Tags" {
			key = "Key"
		}
		for _, m := range v {
			b = appendXMLElement(b, element, action, sqsObject{{key, m.name}, {"Value", m.value}})
		}
		return b
	}
	b = append(b, "<"+element+">"...)
	switch v := value.(type) {
	case string:
		b = appendXMLText(b, v)
	case []byte:
		b = base64.StdEncoding.AppendEncode(b, v)
	case int:
		b = strconv.AppendInt(b, int64(v), 10)
	case bool:
		b = strconv.AppendBool(b, v)
	case sqsObject:
		for _, m := range v {
			b = appendXMLElement(b, m.name, action, m.value)
		}
	default:
		panic("sqs: a value of another type")
	}
	return append(b, "</"+element+">"...)
}

// appendXMLText appends a text in XML. A carriage return is escaped, because parsers turn
// it into a line feed otherwise (XML 1.0, section 2.11), and the checksum of the body would
// not match. Characters that XML does not have become U+FFFD.
func appendXMLText(b []byte, text string) []byte {
	for len(text) > 0 {
		plain := strings.IndexFunc(text, func(c rune) bool {
			return c == '<' || c == '>' || c == '&' || c == '\r' || c == utf8.RuneError || !isSQSCharacter(c)
		})
		if plain < 0 {
			return append(b, text...)
		}
		b = append(b, text[:plain]...)
		c, size := utf8.DecodeRuneInString(text[plain:])
		text = text[plain+size:]
		switch c {
		case '<':
			b = append(b, "&lt;"...)
		case '>':
			b = append(b, "&gt;"...)
		case '&':
			b = append(b, "&amp;"...)
		case '\r':
			b = append(b, "&#13;"...)
		default:
			b = utf8.AppendRune(b, utf8.RuneError)
		}
	}
	return b
}

// isSQSCharacter reports whether a message may have this character: those of XML 1.0.
func isSQSCharacter(c rune) bool {
	return c == '\t' || c == '\n' || c == '\r' || 0x20 <= c && c <= 0xd7ff || 0xe000 <= c && c <= 0xfffd || 0x10000 <= c && c <= 0x10ffff
}

// isSQSText reports whether a text is UTF-8 of characters that a message may have.
func isSQSText(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, func(c rune) bool { return !isSQSCharacter(c) }) < 0
}
