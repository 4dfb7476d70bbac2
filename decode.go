package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// mistake is an invalid part of a request. loc is the path to that part, beginning with
// "body", "query" or "path". msg and type are those of fastqueue (pydantic 1), because
// clients may depend on them.
type mistake struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
	Ctx  any    `json:"ctx,omitempty"` // the values in msg

	input any // the text of a parameter of a query; nil if it is missing
}

// The ctx of mistakes, as in fastqueue.
type (
	limitCtx struct {
		LimitValue any `json:"limit_value"`
	}
	patternCtx struct {
		Pattern string `json:"pattern"`
	}
	jsonCtx struct {
		Msg    string `json:"msg"`
		Pos    int    `json:"pos"` // characters before it
		LineNo int    `json:"lineno"`
		ColNo  int    `json:"colno"`
	}
)

// invalid is an error that lists all mistakes of a request.
type invalid []mistake

func (v invalid) Error() string {
	var parts []string
	for _, m := range v {
		parts = append(parts, fmt.Sprint(m.Loc, ": ", m.Msg))
	}
	return strings.Join(parts, "; ")
}

// limits are the bounds of the values in requests.
type limits struct {
	ackDeadline        bounds // seconds
	messageRetention   bounds // seconds
	maxDeliveries      bounds
	deliveryDelay      bounds  // seconds
	defaultAckDeadline int     // seconds, for queues that are created by their first use
	requeueLimit       int     // of SharQ's jobs without a limit of their own
	maxLimit           int     // items in a response
	maxWait            float64 // seconds of a long poll
	maxBody            int64   // bytes of a message's request
}

type bounds struct{ min, max int }

// maxDepth is the maximum nesting of JSON. Go's limit is 10,000 levels, and PostgreSQL's
// is lower, where its stack ends.
const maxDepth = 1000

// idPattern is the pattern in errors. validID does the check.
const idPattern = "^[a-zA-Z0-9-._]+$"

const maxIDLength = 128

// validID reports whether a topic or queue may have an id. "." and ".." are invalid,
// because a URL cannot contain them.
func validID(id string) bool {
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return 0 < len(id) && len(id) <= maxIDLength && id != "." && id != ".."
}

// input has the fields of a request, and the mistakes found in them.
type input struct {
	where    []any // the beginning of loc: "body" or "query", and the path to an object inside
	all      []field
	mistakes invalid

	unknown *unknownFields // nil if unknown fields are ignored
	unread  int            // number of fields that no decoder has asked for yet
}

// field is a member of a JSON object, or a parameter of a query.
type field struct {
	name  string
	value []byte // JSON, or text
	read  bool   // a decoder has asked for it
}

// form reads the members of a JSON object; a query reads the parameters of a URL.
type form struct {
	input
	broken bool // the text is not an object, which is one of the mistakes

	unchanged map[string]int // integers that are valid whatever their bounds
}

// maxMistakes is the maximum number of mistakes in a response.
const maxMistakes = 100

func (in *input) addMistake(msg, kind string, loc ...any) {
	in.addMistakeCtx(nil, msg, kind, loc...)
}

// addMistakeCtx is like addMistake, with a ctx.
func (in *input) addMistakeCtx(ctx any, msg, kind string, loc ...any) {
	if len(in.mistakes) >= maxMistakes {
		return
	}
	m := mistake{Loc: slices.Concat(in.where, loc), Msg: msg, Type: kind, Ctx: ctx}
	if in.where[0] == "query" {
		if text, has := in.find(loc[0].(string)); has {
			m.input = string(text)
		}
	}
	in.mistakes = append(in.mistakes, m)
}

// err returns all mistakes, or nil if there are none. It is called after all fields have been
// decoded.
func (in *input) err() error {
	in.checkUnknown()
	if len(in.mistakes) > 0 {
		return in.mistakes
	}
	return nil
}

// find returns the value of a field: of equal names, the last counts.
func (in *input) find(name string) ([]byte, bool) {
	for i := len(in.all) - 1; i >= 0; i-- {
		if in.all[i].name == name {
			if !in.all[i].read {
				in.all[i].read = true
				in.unread--
			}
			return in.all[i].value, true
		}
	}
	if in.unknown != nil && in.unread > 0 {
		if in.unknown.missing == nil {
			in.unknown.missing = make([]string, 0, 16)
		}
		in.unknown.missing = append(in.unknown.missing, name)
	}
	return nil, false
}

func (in *input) has(name string) bool {
	_, has := in.find(name)
	return has
}

// parseBody reads a body that must be a JSON object, whatever its content type. A
// byte order mark before it is skipped.
func parseBody(body []byte) *form {
	f := &form{input: input{where: []any{"body"}}, broken: true}
	if len(body) == 0 {
		f.addMistake("field required", "value_error.missing")
		return f
	}
	body = rawjson.TrimBOM(body)
	if !utf8.Valid(body) {
		f.addMistake("the body is not valid UTF-8", "value_error.unicode", invalidUTF8(body))
		return f
	}
	if !json.Valid(body) {
		f.wrongSyntax(body)
		return f
	}
	body = body[rawjson.SkipSpace(body, 0):]
	if rawjson.IsNull(body) {
		f.addMistake("field required", "value_error.missing")
		return f
	}
	if body = asObject(body); body == nil {
		f.addMistake("value is not a valid dict", "type_error.dict")
		return f
	}
	if _, deepest := rawjson.Nesting(body, 0); deepest > maxDepth {
		f.wrongDepth()
		return f
	}
	f.broken = false
	f.read(body)
	return f
}

// wrongSyntax returns the mistake in a text that is not JSON.
func (f *form) wrongSyntax(text []byte) {
	msg, at := rawjson.SyntaxError(text)
	if msg == "" {
		f.wrongDepth()
		return
	}
	before := text[:at]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	ctx := jsonCtx{msg, utf8.RuneCount(before), bytes.Count(before, []byte("\n")) + 1, utf8.RuneCount(line) + 1}
	f.addMistakeCtx(ctx, fmt.Sprintf("%s: line %d column %d (char %d)", msg, ctx.LineNo, ctx.ColNo, ctx.Pos), "value_error.jsondecode", ctx.Pos)
}

func (f *form) wrongDepth() {
	f.addMistake(fmt.Sprintf("nested deeper than %d levels", maxDepth), "value_error.depth")
}

// maxFileSize is the maximum size of a file that the server reads, in bytes.
const maxFileSize = 16 << 20

// parseFile is like parseBody, for a file. The mistakes name the file.
func parseFile(path string) (*form, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFileSize {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFileSize)
	}
	f := parseBody(text)
	f.where = []any{path}
	for i := range f.mistakes {
		f.mistakes[i].Loc[0] = path
	}
	return f, nil
}

// only adds a mistake for each field with another name. It is for files, in which a
// misspelt field would silently be a missing setting.
func (f *form) only(names ...string) {
	for _, v := range f.all {
		if !slices.Contains(names, v.name) {
			f.addMistake("unexpected field", "value_error.extra", v.name)
		}
	}
}

// read makes the members of an object the fields.
func (f *form) read(object []byte) {
	rawjson.WalkObject(object, func(name string, value []byte) {
		f.all = append(f.all, field{name: name, value: value})
	})
	f.unread = len(f.all)
}

// objects decodes a list of 1 to most objects. Each object has a form of its own.
func (f *form) objects(name string, most int, each func(item *form)) {
	f.list(name, most, func(i int, value []byte) { f.element(name, i, value, each) })
}

// optionalObjects is like objects, for a list that may be empty, null or missing.
func (f *form) optionalObjects(name string, most int, each func(item *form)) {
	f.optionalList(name, most, func(i int, value []byte) { f.element(name, i, value, each) })
}

// element decodes an object in a list.
func (f *form) element(name string, i int, value []byte, each func(item *form)) {
	item := &form{input: input{where: slices.Concat(f.where, []any{name, i}), unknown: f.unknown}}
	asked := 0
	if f.unknown != nil {
		asked = len(f.unknown.missing)
	}
	if value = asObject(value); value == nil {
		item.broken = true
		item.addMistake("value is not a valid dict", "type_error.dict")
	} else {
		item.read(value)
		each(item)
		item.checkUnknown()
		if f.unknown != nil {
			f.unknown.missing = f.unknown.missing[:asked]
		}
	}
	f.mistakes = append(f.mistakes, item.mistakes[:min(len(item.mistakes), maxMistakes-len(f.mistakes))]...)
}

// list decodes a list of 1 to most values.
func (f *form) list(name string, most int, each func(i int, value []byte)) {
	if f.value(name, true) == nil {
		return
	}
	if n := f.optionalList(name, most, each); n == 0 {
		f.addMistakeCtx(limitCtx{1}, "ensure this value has at least 1 items", "value_error.list.min_items", name)
	}
}

// optionalList decodes a list of at most most values, which may be null or missing. It
// returns the number of values, or -1 if there is no list.
func (f *form) optionalList(name string, most int, each func(i int, value []byte)) int {
	raw := f.value(name, false)
	if raw == nil {
		return 0
	}
	if raw[0] != '[' {
		f.addMistake("value is not a valid list", "type_error.list", name)
		return -1
	}
	var all [][]byte
	rawjson.WalkArray(raw, func(value []byte) {
		if len(all) <= most {
			all = append(all, value)
		}
	})
	if len(all) > most {
		f.addMistakeCtx(limitCtx{most}, fmt.Sprintf("ensure this value has at most %d items", most), "value_error.list.max_items", name)
		return -1
	}
	for i, value := range all {
		each(i, value)
	}
	return len(all)
}

func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(b)
}

// value returns the JSON of a field, or nil if the field is null or missing. It adds a
// mistake then if the field is required.
func (f *form) value(name string, required bool) []byte {
	value, has := f.find(name)
	switch {
	case f.broken:
		return nil
	case has && !rawjson.IsNull(value):
		return value
	case has && required:
		f.addMistake("none is not an allowed value", "type_error.none.not_allowed", name)
	case required:
		f.addMistake("field required", "value_error.missing", name)
	}
	return nil
}

// object returns an object as it was sent, or nil if it is null or missing.
func (f *form) object(name string, required bool) []byte {
	raw := f.value(name, required)
	if raw == nil {
		return nil
	}
	object := asObject(raw)
	if object == nil {
		f.addMistake("value is not a valid dict", "type_error.dict", name)
	}
	return object
}

// text reads a string, or a value that fastqueue converts to one. It returns nil if the
// field is null or missing.
func (f *form) text(name string, required bool) *string {
	raw := f.value(name, required)
	if raw == nil {
		return nil
	}
	text := asText(raw)
	if text == nil {
		f.addMistake("str type expected", "type_error.str", name)
		return nil
	}
	return new(rawjson.Unquote(text))
}

// string reads a string that is not empty.
func (f *form) string(name string, required bool) (string, bool) {
	raw := f.value(name, required)
	if raw == nil {
		return "", false
	}
	if raw[0] != '"' {
		f.addMistake("str type expected", "type_error.str", name)
		return "", false
	}
	text := rawjson.Unquote(raw)
	if text == "" {
		f.addMistake("must not be empty", "value_error", name)
	}
	return text, text != ""
}

// boolean reads true or false; missing is false.
func (f *form) boolean(name string) bool {
	raw := f.value(name, false)
	if raw != nil && !bytes.Equal(raw, []byte("true")) && !bytes.Equal(raw, []byte("false")) {
		f.addMistake("value could not be parsed to a boolean", "type_error.bool", name)
	}
	return bytes.Equal(raw, []byte("true"))
}

// id reads the id of a topic or queue. It returns nil if the field is null or missing.
func (f *form) id(name string, required bool) *string {
	id := f.text(name, required)
	switch {
	case id == nil:
		return nil
	case utf8.RuneCountInString(*id) > maxIDLength:
		f.addMistakeCtx(limitCtx{maxIDLength}, fmt.Sprintf("ensure this value has at most %d characters", maxIDLength), "value_error.any_str.max_length", name)
	case !validID(*id):
		f.addMistakeCtx(patternCtx{idPattern}, fmt.Sprintf("string does not match regex %q", idPattern), "value_error.str.regex", name)
	default:
		return id
	}
	return nil
}

// integer reads a whole number within bounds, or a value that fastqueue converts to one. It
// returns nil if the field is null or missing.
func (f *form) integer(name string, within bounds, required bool) *int {
	raw := f.value(name, required)
	if raw == nil {
		return nil
	}
	n, ok := asInteger(raw)
	if !ok {
		f.addMistake("value is not a valid integer", "type_error.integer", name)
		return nil
	}
	if !f.isUnchanged(name, n) && !f.inside(n, within, name) {
		return nil
	}
	return &n
}

// isUnchanged reports whether an integer is the one that may be kept, whatever its bounds.
func (f *form) isUnchanged(name string, n int) bool {
	kept, has := f.unchanged[name]
	return has && n == kept
}

func (in *input) inside(n int, within bounds, name string) bool {
	switch {
	case n < within.min:
		in.addMistakeCtx(limitCtx{within.min}, fmt.Sprintf("ensure this value is greater than or equal to %d", within.min), "value_error.number.not_ge", name)
	case n > within.max:
		in.addMistakeCtx(limitCtx{within.max}, fmt.Sprintf("ensure this value is less than or equal to %d", within.max), "value_error.number.not_le", name)
	default:
		return true
	}
	return false
}

// asInteger converts a value to an integer as fastqueue does: a number loses its decimals,
// a string of digits becomes its number, and true and false become 1 and 0. Numbers outside
// the range of an int become the largest or smallest int.
func asInteger(raw []byte) (int, bool) {
	switch raw[0] {
	case '"':
		return parseDigits(strings.TrimSpace(rawjson.Unquote(raw)))
	case 't':
		return 1, true
	case 'f':
		return 0, true
	case '{', '[':
		return 0, false
	}
	if n, ok := parseDigits(string(raw)); ok {
		return n, true
	}
	x, _ := parseNumber(string(raw))
	return truncate(x), !math.IsInf(x, 0)
}

// truncate returns a number without its decimals, or the largest or smallest int.
func truncate(x float64) int {
	return int(max(math.MinInt64, min(x, math.MaxInt64/2)))
}

// parseDigits parses a whole number in digits. Numbers outside the range of an int become
// the largest or smallest int.
func parseDigits(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}

// parseInteger parses a whole number in any form of JSON, such as 3, 3.0 or 3e1.
func parseInteger(s string) (int, bool) {
	if n, ok := parseDigits(s); ok {
		return n, true
	}
	x, ok := parseNumber(s)
	if !ok || x != math.Trunc(x) {
		return 0, false
	}
	return truncate(x), true
}

// parseNumber parses a decimal number. Unlike strconv, it refuses hexadecimal numbers,
// underscores and infinities.
func parseNumber(s string) (float64, bool) {
	if strings.Trim(s, "0123456789+-.eE") != "" {
		return 0, false
	}
	x, err := strconv.ParseFloat(s, 64)
	return x, err == nil || errors.Is(err, strconv.ErrRange)
}

// asText converts a value to a JSON string as fastqueue does: numbers and booleans become
// their text in Python. It returns nil for null, objects and arrays.
func asText(raw []byte) []byte {
	switch raw[0] {
	case '"':
		return raw
	case 't':
		return []byte(`"True"`)
	case 'f':
		return []byte(`"False"`)
	case 'n', '{', '[':
		return nil
	}
	return fmt.Appendf(nil, `"%s"`, pythonNumber(string(raw)))
}

// pythonNumber returns a number of JSON as Python writes it: an integer with all its
// digits, and any other number as a float with the fewest digits that identify it.
func pythonNumber(s string) string {
	if !strings.ContainsAny(s, ".eE") {
		if s == "-0" {
			return "0"
		}
		return s
	}
	x, _ := parseNumber(s)
	switch size := math.Abs(x); {
	case math.IsInf(x, 0):
		return strings.ToLower(strings.TrimPrefix(strconv.FormatFloat(x, 'f', -1, 64), "+"))
	case size != 0 && size < 1e-4 || size >= 1e16:
		return strconv.FormatFloat(x, 'e', -1, 64)
	}
	s = strconv.FormatFloat(x, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// asObject converts a value to an object as fastqueue does: [] becomes an empty object,
// because PHP writes it so. It returns nil for other values that are not objects.
func asObject(raw []byte) []byte {
	switch {
	case raw[0] == '{':
		return raw
	case raw[0] == '[' && raw[rawjson.SkipSpace(raw, 1)] == ']':
		return []byte("{}")
	}
	return nil
}

// pathMistake returns the mistake in an id that would change the path that contains it:
// clients and proxies remove "." and ".." from paths and merge slashes, some of them after
// they have decoded %2F. New ids must not be like this. Existing groups with such an id are
// still delivered.
func pathMistake(id string) string {
	for part := range strings.SplitSeq(id, "/") {
		if part == "" || part == "." || part == ".." {
			return `ensure that no part of this value between slashes is empty, "." or ".."`
		}
	}
	return ""
}

// checkText adds a mistake unless the value is a string, or fastqueue converts it to one.
func (f *form) checkText(value []byte, loc ...any) {
	switch value[0] {
	case 'n':
		f.addMistake("none is not an allowed value", "type_error.none.not_allowed", loc...)
	case '{', '[':
		f.addMistake("str type expected", "type_error.str", loc...)
	}
}

// quoteScalars returns the JSON with its numbers and booleans as strings (asText), and
// without insignificant white space.
func quoteScalars(raw []byte) []byte {
	b := make([]byte, 0, len(raw)+16)
	for i := 0; i < len(raw); {
		switch raw[i] {
		case '{', '}', '[', ']', ',', ':':
			b = append(b, raw[i])
			i++
		case ' ', '\t', '\n', '\r':
			i++
		default:
			end := rawjson.SkipValue(raw, i)
			if raw[i] == 'n' {
				b = append(b, raw[i:end]...)
			} else {
				b = append(b, asText(raw[i:end])...)
			}
			i = end
		}
	}
	return b
}

// parseOptional is parseBody for a body that may be missing.
func parseOptional(body []byte) *form {
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	return parseBody(body)
}

// ignoreBroken ignores a body that is missing or not JSON, because fastqueue ignores the bodies of
// these requests.
func (f *form) ignoreBroken() *form {
	if f.broken {
		f.mistakes = nil
	}
	return f
}

// seconds reads a duration in whole seconds. It returns 0 if the field is null or missing.
func (f *form) seconds(name string, within bounds, required bool) time.Duration {
	if n := f.integer(name, within, required); n != nil {
		return time.Duration(*n) * time.Second
	}
	return 0
}

// time parses a time in the format of the API, with or without the zone UTC.
func (in *input) time(text string, loc ...any) time.Time {
	at, err := time.Parse(timestampLayout[:len("2006-01-02T15:04:05")], strings.TrimSuffix(strings.TrimSuffix(text, "Z"), "+00:00"))
	if err != nil || at.Year() < 1 {
		in.addMistake("invalid datetime format", "value_error.datetime", loc...)
		return time.Time{}
	}
	return at
}

// cutText returns the beginning of a text in UTF-8: at most that many bytes, up to the
// end of a character.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// toUTF8 replaces the bytes that are not UTF-8.
func toUTF8(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// isVisibleASCII reports whether a text is 1 to most bytes of printable ASCII without
// spaces.
func isVisibleASCII(text string, most int) bool {
	for _, c := range []byte(text) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return 0 < len(text) && len(text) <= most
}
