package main

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// sqsInput is a structure of a request, in JSON or as parameters of the Query protocol. Its
// methods read members by their names in JSON, and keep the first member of a wrong type for
// err. A member that is null is missing, and unknown members are ignored.
type sqsInput struct {
	action  string
	query   bool
	members []sqsParameter
	root    *sqsInput // the structure that keeps the error
	wrong   error
}

// sqsParameter is a member of an object with its JSON, or a parameter with its text.
type sqsParameter struct {
	name  string
	value []byte
}

// maxSQSMembers is the maximum number of members of a structure or list in a request, so
// that a request does not take much more memory than its body.
const maxSQSMembers = 10_000

// sqsParameters has the names of parameters of the Query protocol where they differ from
// those in JSON.
var sqsParameters = map[string]string{
	"Attributes":                  "Attribute",
	"AttributeNames":              "AttributeName",
	"MessageSystemAttributeNames": "MessageSystemAttributeName",
	"MessageAttributeNames":       "MessageAttributeName",
	"MessageAttributes":           "MessageAttribute",
	"MessageSystemAttributes":     "MessageSystemAttribute",
	"tags":                        "Tag",
	"Tags":                        "Tag",
	"TagKeys":                     "TagKey",
	"AWSAccountIds":               "AWSAccountId",
	"Actions":                     "ActionName",
}

// parseSQSJSON reads the body of a request of the JSON protocol.
func parseSQSJSON(action string, body []byte) (*sqsInput, error) {
	in := &sqsInput{action: action}
	in.root = in
	body = body[rawjson.SkipSpace(body, 0):]
	if len(body) == 0 || body[0] != '{' || !json.Valid(body) || !utf8.Valid(body) {
		return nil, sqsSerialization.errorf("The request body is not a JSON object.")
	}
	in.readObject(body)
	return in, in.err()
}

// readObject makes the members of a JSON object those of the structure.
func (in *sqsInput) readObject(object []byte) {
	rawjson.WalkObject(object, func(name string, value []byte) {
		if len(in.members) == maxSQSMembers {
			in.mistake("The request has too many members.")
		} else {
			in.members = append(in.members, sqsParameter{name, value})
		}
	})
}

// parseSQSQuery reads the parameters of the Query protocol, in the query of the URL and in
// the body of a form.
func parseSQSQuery(texts ...string) (*sqsInput, error) {
	in := &sqsInput{query: true}
	in.root = in
	for _, text := range texts {
		for parameter := range strings.SplitSeq(text, "&") {
			if parameter == "" {
				continue
			}
			if len(in.members) == maxSQSMembers {
				return nil, sqsSerialization.errorf("The request has too many parameters.")
			}
			name, value, _ := strings.Cut(parameter, "=")
			in.members = append(in.members, sqsParameter{unescape(name), []byte(unescape(value))})
		}
	}
	in.action = in.text("Action")
	return in, nil
}

// mistake keeps the first error about the form of the request.
func (in *sqsInput) mistake(text string) {
	if in.root.wrong == nil {
		in.root.wrong = sqsSerialization.errorf("%s", text)
	}
}

// wrongType keeps that a member has a wrong type.
func (in *sqsInput) wrongType(name string) {
	in.mistake("The parameter " + name + " has a value of a wrong type.")
}

// err returns the first error about the form of the request, of this structure and those
// inside.
func (in *sqsInput) err() error { return in.root.wrong }

// find returns the value of a member, and false if it is missing. Of several members with
// the same name the last one counts.
func (in *sqsInput) find(name string) ([]byte, bool) {
	for _, m := range slices.Backward(in.members) {
		if m.name == name {
			return m.value, in.query || !rawjson.IsNull(m.value)
		}
	}
	return nil, false
}

// has reports whether a member is there.
func (in *sqsInput) has(name string) bool {
	_, has := in.find(name)
	return has
}

// text reads a string, which is empty if it is missing. It may have any bytes: those of the
// Query protocol as they were sent, and those of JSON as rawjson.Unquote returns them.
func (in *sqsInput) text(name string) string {
	value, has := in.find(name)
	if !has {
		return ""
	}
	return in.asText(name, value)
}

// asText converts the value of a member to a string.
func (in *sqsInput) asText(name string, value []byte) string {
	switch {
	case in.query:
		return string(value)
	case value[0] != '"':
		in.wrongType(name)
		return ""
	}
	return rawjson.Unquote(value)
}

// integer reads a whole number. It returns nil if the member is missing. Numbers outside
// the range of an int become the largest or smallest int.
func (in *sqsInput) integer(name string) *int {
	value, has := in.find(name)
	if !has {
		return nil
	}
	parse := parseInteger
	if in.query {
		parse = parseDigits
	}
	n, ok := parse(string(value))
	if !ok {
		in.wrongType(name)
	}
	return &n
}

// bytes reads binary data in base64.
func (in *sqsInput) bytes(name string) []byte {
	b, err := base64.StdEncoding.DecodeString(in.text(name))
	if err != nil {
		in.wrongType(name)
	}
	return b
}

// texts reads a list of strings.
func (in *sqsInput) texts(name string) (all []string) {
	if in.query {
		for _, item := range in.indexed(in.parameter(name)) {
			all = append(all, item.text(""))
		}
		return all
	}
	in.walkList(name, func(value []byte) {
		all = append(all, in.asText(name, value))
	})
	return all
}

// structures reads a list of structures.
func (in *sqsInput) structures(name string) (all []*sqsInput) {
	if in.query {
		return in.indexed(in.parameter(name))
	}
	in.walkList(name, func(value []byte) {
		all = append(all, in.structure(name, value))
	})
	return all
}

// structure returns the structure in the value of a member in JSON.
func (in *sqsInput) structure(name string, value []byte) *sqsInput {
	item := &sqsInput{action: in.action, root: in.root}
	if value[0] != '{' {
		in.wrongType(name)
		return item
	}
	item.readObject(value)
	return item
}

// walkList calls each with every value of a list in JSON.
func (in *sqsInput) walkList(name string, each func(value []byte)) {
	value, has := in.find(name)
	switch {
	case !has:
		return
	case value[0] != '[':
		in.wrongType(name)
		return
	}
	n := 0
	rawjson.WalkArray(value, func(value []byte) {
		if n++; n > maxSQSMembers {
			in.mistake("The parameter " + name + " has too many values.")
		} else {
			each(value)
		}
	})
}

// sqsEntry is an entry of a map in a request.
type sqsEntry[T any] struct {
	key   string
	value T
}

// pairs reads a map of strings, in the order of the request. Of several entries with the
// same key the last one counts.
func (in *sqsInput) pairs(name string) (all []sqsEntry[string]) {
	if in.query {
		for _, item := range in.indexed(in.parameter(name)) {
			all = append(all, sqsEntry[string]{item.text(sqsKey(name)), item.text("Value")})
		}
		return lastOfEach(all)
	}
	in.walkMap(name, func(key string, value []byte) {
		all = append(all, sqsEntry[string]{key, in.asText(name, value)})
	})
	return lastOfEach(all)
}

// structureMap is like pairs, for a map of structures.
func (in *sqsInput) structureMap(name string) (all []sqsEntry[*sqsInput]) {
	if in.query {
		for _, item := range in.indexed(in.parameter(name)) {
			all = append(all, sqsEntry[*sqsInput]{item.text(sqsKey(name)), item.below("Value.")})
		}
		return lastOfEach(all)
	}
	in.walkMap(name, func(key string, value []byte) {
		all = append(all, sqsEntry[*sqsInput]{key, in.structure(name, value)})
	})
	return lastOfEach(all)
}

// sqsKey returns the name of the key in the entries of a map in the Query protocol.
func sqsKey(name string) string {
	if strings.EqualFold(name, "Tags") {
		return "Key"
	}
	return "Name"
}

// lastOfEach returns the last entry of each key, in the order of the first ones.
func lastOfEach[T any](all []sqsEntry[T]) []sqsEntry[T] {
	place := make(map[string]int, len(all))
	kept := all[:0]
	for _, v := range all {
		if i, has := place[v.key]; has {
			kept[i] = v
			continue
		}
		place[v.key] = len(kept)
		kept = append(kept, v)
	}
	return kept
}

// walkMap calls each with every entry of a map in JSON. Entries that are null are missing.
func (in *sqsInput) walkMap(name string, each func(key string, value []byte)) {
	value, has := in.find(name)
	switch {
	case !has:
		return
	case value[0] != '{':
		in.wrongType(name)
		return
	}
	n := 0
	rawjson.WalkObject(value, func(key string, value []byte) {
		if n++; n > maxSQSMembers {
			in.mistake("The parameter " + name + " has too many entries.")
		} else if !rawjson.IsNull(value) {
			each(key, value)
		}
	})
}

// parameter returns the name of a list or map in the Query protocol.
func (in *sqsInput) parameter(name string) string {
	if name == "Entries" {
		return in.action + "RequestEntry"
	}
	if other := sqsParameters[name]; other != "" {
		return other
	}
	return name
}

// indexed returns the items of a list in the Query protocol, "List.1.Member" and so on, in
// the order of their indexes. Parameters without an index, such as "List" and "List.Member",
// are the first item, as older clients send it. The member of an item that is a string has
// an empty name.
func (in *sqsInput) indexed(list string) (all []*sqsInput) {
	items := make(map[int]*sqsInput)
	var indexes []int
	for _, m := range in.members {
		rest, ok := strings.CutPrefix(m.name, list)
		if !ok || rest != "" && rest[0] != '.' {
			continue
		}
		rest = strings.TrimPrefix(rest, ".")
		index, member, _ := strings.Cut(rest, ".")
		i, err := strconv.ParseUint(index, 10, 31)
		if err != nil {
			i, member = 0, rest
		}
		item := items[int(i)]
		if item == nil {
			item = &sqsInput{action: in.action, query: true, root: in.root}
			items[int(i)] = item
			indexes = append(indexes, int(i))
		}
		item.members = append(item.members, sqsParameter{member, m.value})
	}
	slices.Sort(indexes)
	for _, i := range indexes {
		all = append(all, items[i])
	}
	return all
}

// below returns the structure of the parameters whose names begin with a prefix.
func (in *sqsInput) below(prefix string) *sqsInput {
	item := &sqsInput{action: in.action, query: true, root: in.root}
	for _, m := range in.members {
		if name, ok := strings.CutPrefix(m.name, prefix); ok {
			item.members = append(item.members, sqsParameter{name, m.value})
		}
	}
	return item
}

// bounded reads a whole number within bounds. It returns missing if the member is missing.
func (in *sqsInput) bounded(name string, within bounds, missing int) (int, error) {
	n := in.integer(name)
	switch {
	case n == nil:
		return missing, nil
	case in.err() != nil:
		return 0, in.err()
	case *n < within.min || *n > within.max:
		return 0, sqsInvalidValue(in.number(name), name, "Must be between %d and %d, if provided.", within.min, within.max)
	}
	return *n, nil
}

// number returns a number as it was sent, for an error.
func (in *sqsInput) number(name string) string {
	value, _ := in.find(name)
	return string(value)
}
