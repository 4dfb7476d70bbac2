package main

import (
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// sqsMessageAttribute is a message attribute. Messages have them sorted by name.
type sqsMessageAttribute struct {
	name     string
	dataType string // "String", "Number" or "Binary", with a label after a dot, if it has one
	value    string // text, or the bytes of Binary
}

// Limits of message attributes.
const (
	maxSQSAttributes    = 10
	maxSQSAttributeName = 256 // characters of a name or a type
)

// sqsTraceHeader is the system attribute that a sender can set. It does not count as part of
// the message, so it has a limit of its own, in bytes: load balancers of AWS pass on 7 KB.
const (
	sqsTraceHeader    = "AWSTraceHeader"
	maxSQSTraceHeader = 8 << 10
)

// isBinary reports whether the value is bytes.
func (a *sqsMessageAttribute) isBinary() bool {
	kind, _, _ := strings.Cut(a.dataType, ".")
	return kind == "Binary"
}

// size returns the number of bytes that count as part of the message.
func (a *sqsMessageAttribute) size() int { return len(a.name) + len(a.dataType) + len(a.value) }

// messageAttributes reads and checks message attributes. It returns them sorted by name.
func (in *sqsInput) messageAttributes(name string) ([]sqsMessageAttribute, error) {
	entries := in.structureMap(name)
	if len(entries) > maxSQSAttributes {
		return nil, sqsInvalidParameter.errorf("Number of message attributes [%d] exceeds the allowed maximum [%d].", len(entries), maxSQSAttributes)
	}
	var all []sqsMessageAttribute
	for _, v := range entries {
		a, err := v.value.messageAttribute(v.key)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	sortSQSAttributes(all)
	return all, nil
}

func sortSQSAttributes(all []sqsMessageAttribute) {
	slices.SortFunc(all, func(a, b sqsMessageAttribute) int { return strings.Compare(a.name, b.name) })
}

// messageAttribute reads and checks a message attribute.
func (in *sqsInput) messageAttribute(name string) (sqsMessageAttribute, error) {
	a := sqsMessageAttribute{name: name, dataType: in.text("DataType"), value: in.text("StringValue")}
	if a.isBinary() {
		a.value = string(in.bytes("BinaryValue"))
	}
	kind, _, _ := strings.Cut(a.dataType, ".")
	switch {
	case in.err() != nil:
		return a, in.err()
	case in.hasList("StringListValues", "StringListValue"), in.hasList("BinaryListValues", "BinaryListValue"):
		return a, sqsUnsupported.errorf("Message attribute list values in SendMessage operation are not supported.")
	case name == "":
		return a, sqsInvalidParameter.errorf("The request must contain non-empty message attribute name.")
	case !validSQSAttributeName(name):
		return a, sqsInvalidParameter.errorf("Invalid attribute name parameter.")
	case a.dataType == "":
		return a, sqsInvalidParameter.errorf("The message attribute '%s' must contain non-empty message attribute type.", name)
	case kind != "String" && kind != "Number" && kind != "Binary", !isSQSText(a.dataType), utf8.RuneCountInString(a.dataType) > maxSQSAttributeName:
		return a, sqsInvalidParameter.errorf("The message attribute '%s' has an invalid message attribute type, the set of supported type prefixes is Binary, Number, and String.", name)
	case a.value == "":
		return a, sqsInvalidParameter.errorf("The message attribute '%s' must contain non-empty message attribute value for message attribute type '%s'.", name, kind)
	case kind == "Number" && !isNumber(a.value):
		return a, sqsInvalidParameter.errorf("Could not cast message attribute '%s' value to number.", name)
	case kind == "String" && !isSQSText(a.value):
		return a, sqsInvalidParameter.errorf("The message attribute '%s' contains characters that are not allowed.", name)
	}
	return a, nil
}

func isNumber(text string) bool {
	_, ok := parseNumber(text)
	return ok
}

// hasList reports whether a list has items: in JSON by its name, and in the Query protocol
// by that of its parameters.
func (in *sqsInput) hasList(name, parameter string) bool {
	if in.query {
		return len(in.indexed(parameter)) > 0
	}
	return len(in.texts(name)) > 0
}

// validSQSAttributeName reports whether a message attribute may have a name: letters,
// digits, underscores, hyphens, and single dots inside.
func validSQSAttributeName(name string) bool {
	lower := strings.ToLower(name)
	switch {
	case !utf8.ValidString(name), utf8.RuneCountInString(name) > maxSQSAttributeName,
		strings.HasPrefix(lower, "aws."), strings.HasPrefix(lower, "amazon."):
		return false
	}
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || strings.ContainsFunc(part, func(c rune) bool {
			return !unicode.IsLetter(c) && (c < '0' || c > '9') && c != '_' && c != '-'
		}) {
			return false
		}
	}
	return true
}

// systemAttributes reads and checks the system attributes of a message to send. There is
// only the trace header, which is a string.
func (in *sqsInput) systemAttributes() ([]sqsMessageAttribute, error) {
	all, err := in.messageAttributes("MessageSystemAttributes")
	for _, a := range all {
		if a.name != sqsTraceHeader || a.dataType != "String" {
			return nil, sqsInvalidParameter.errorf("Message system attribute name '%s' is invalid.", a.name)
		}
		if len(a.value) > maxSQSTraceHeader {
			return nil, sqsInvalidParameter.errorf("Message system attribute '%s' must be shorter than %d bytes.", a.name, maxSQSTraceHeader)
		}
	}
	return all, err
}

// sqsMD5 returns the MD5 of a text in hexadecimal digits.
func sqsMD5(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// sqsAttributesMD5 returns the MD5 of message attributes, which must be sorted by name: of
// the name, type and value of each, with lengths before them, and with 1 before a text and
// 2 before bytes. It is empty if there are no attributes.
func sqsAttributesMD5(all []sqsMessageAttribute) string {
	if len(all) == 0 {
		return ""
	}
	sum := md5.New()
	for _, a := range all {
		writeSQSText(sum, a.name)
		writeSQSText(sum, a.dataType)
		kind := byte(1)
		if a.isBinary() {
			kind = 2
		}
		sum.Write([]byte{kind})
		writeSQSText(sum, a.value)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func writeSQSText(sum hash.Hash, text string) {
	sum.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text))))
	sum.Write([]byte(text))
}

// sqsExtra is what the database keeps of a message of SQS besides its data and attributes,
// as JSON.
type sqsExtra struct {
	Types           map[string]string `json:"types,omitempty"`  // of the attributes that are not of type String
	Binary          map[string][]byte `json:"binary,omitempty"` // attributes that are bytes
	TraceHeader     string            `json:"trace_header,omitempty"`
	DeduplicationID string            `json:"deduplication_id,omitempty"`
}

// store returns the attributes of a message as the database keeps them: the texts as
// attributes, which the native API shows too, and the rest as part of extra.
func (extra *sqsExtra) store(all []sqsMessageAttribute) (attributes []byte) {
	for _, a := range all {
		if a.dataType != "String" {
			if extra.Types == nil {
				extra.Types = make(map[string]string)
			}
			extra.Types[a.name] = a.dataType
		}
		if a.isBinary() {
			if extra.Binary == nil {
				extra.Binary = make(map[string][]byte)
			}
			extra.Binary[a.name] = []byte(a.value)
			continue
		}
		attributes = append(attributes, `{,`[min(len(attributes), 1)])
		attributes = append(rawjson.AppendQuote(attributes, a.name), ':')
		attributes = rawjson.AppendQuote(attributes, a.value)
	}
	if attributes != nil {
		attributes = append(attributes, '}')
	}
	return attributes
}

// json returns the JSON of extra, or nil if it is empty.
func (extra *sqsExtra) json() []byte {
	if extra.Types == nil && extra.Binary == nil && extra.TraceHeader == "" && extra.DeduplicationID == "" {
		return nil
	}
	return appendJSON(nil, extra)
}

// readSQSExtra returns the extra in its JSON, which may be nil.
func readSQSExtra(text []byte) (extra sqsExtra) {
	if text != nil {
		json.Unmarshal(text, &extra) // the server has written it
	}
	return extra
}

// attributes returns the attributes of a message that was stored by store, or published by
// the native API, sorted by name.
func (extra *sqsExtra) attributes(stored []byte) (all []sqsMessageAttribute) {
	if stored != nil {
		rawjson.WalkObject(stored, func(name string, value []byte) {
			text := string(value) // SQL can store a number
			if value[0] == '"' {
				text = rawjson.Unquote(value)
			}
			a := sqsMessageAttribute{toUTF8(name), "String", toUTF8(text)}
			if other := extra.Types[a.name]; other != "" {
				a.dataType = other
			}
			all = append(all, a)
		})
	}
	for name, value := range extra.Binary {
		all = append(all, sqsMessageAttribute{name, extra.Types[name], string(value)})
	}
	sortSQSAttributes(all)
	return all
}

// sqsBodyOf returns the body of a message: the text that SQS has sent, or else its data.
func sqsBodyOf(data []byte) string {
	if body := unwrap(data); utf8.Valid(body) {
		return string(body)
	}
	return toUTF8(string(data))
}

// chosenSQSAttributes returns the attributes that a receiver asks for: by name, by the text
// before ".*", or all.
func chosenSQSAttributes(all []sqsMessageAttribute, names []string) (chosen []sqsMessageAttribute) {
	for _, a := range all {
		if slices.ContainsFunc(names, func(name string) bool {
			prefix, isPrefix := strings.CutSuffix(name, ".*")
			return name == "All" || name == a.name || isPrefix && strings.HasPrefix(a.name, prefix)
		}) {
			chosen = append(chosen, a)
		}
	}
	return chosen
}

// sqsAttributeResults returns the attributes as the member of a response.
func sqsAttributeResults(all []sqsMessageAttribute) (v sqsMap) {
	for _, a := range all {
		var value sqsObject
		if a.isBinary() {
			value = sqsObject{{"DataType", a.dataType}, {"BinaryValue", []byte(a.value)}}
		} else {
			value = sqsObject{{"DataType", a.dataType}, {"StringValue", a.value}}
		}
		v = append(v, sqsMember{a.name, value})
	}
	return v
}
