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

// mistake is one invalid part of a request. Its loc is the path to it, which starts with
// "body", "query" or "path". The msg and type are those of fastqueue (pydantic 1), on
// which clients may depend.
type mistake struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
	Ctx  any    `json:"ctx,omitempty"` // what msg is made of

	input any // the text of a query's parameter; nil if it is missing
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

// limits are the bounds of what a request may ask for.
type limits struct {
	ackDeadline        bounds // seconds
	messageRetention   bounds // seconds
	maxDeliveries      bounds
	deliveryDelay      bounds  // seconds
	defaultAckDeadline int     // seconds; of queues that are created by their first use
	requeueLimit       int     // of SharQ's jobs that say nothing of it
	maxLimit           int     // items in a response
	maxWait            float64 // seconds of a long poll
	maxBody            int64   // bytes of a message's request
}

type bounds struct{ min, max int }

// maxDepth is how deep JSON may nest. Go stops at 10,000 levels, but PostgreSQL
// somewhere before that, where its stack ends.
const maxDepth = 1000

// idPattern is what the error says; validID is what is checked.
const idPattern = "^[a-zA-Z0-9-._]+$"

const maxIDLength = 128

// validID reports whether an id can be that of a topic or queue. "." and ".."
// cannot: no URL can name them.
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

// input is what a request holds by name, and the mistakes that were found in it.
type input struct {
	where    []any // where loc starts: "body" or "query", and the way to an object inside
	all      []field
	mistakes invalid
}

// field is a member of a JSON object, or a parameter of a query.
type field struct {
	name  string
	value []byte // JSON, or text
}

// form reads the members of a JSON object; a query reads the parameters of a URL.
type form struct {
	input
	broken bool // it is no object, which is one of the mistakes
}

// maxMistakes is how many mistakes of a request are listed.
const maxMistakes = 100

func (in *input) addMistake(msg, kind string, loc ...any) {
	in.addMistakeCtx(nil, msg, kind, loc...)
}

// addMistakeCtx is addMistake with a context.
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

// err returns all mistakes so far, nil if there are none.
func (in *input) err() error {
	if len(in.mistakes) > 0 {
		return in.mistakes
	}
	return nil
}

// find returns the value of a field: of equal names, the last counts.
func (in *input) find(name string) ([]byte, bool) {
	for i := len(in.all) - 1; i >= 0; i-- {
		if in.all[i].name == name {
			return in.all[i].value, true
		}
	}
	return nil, false
}

func (in *input) has(name string) bool {
	_, has := in.find(name)
	return has
}

// parseBody reads a body that must be a JSON object, whatever its content type. A
// byte order mark before it is skipped. Unknown fields are ignored.
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

// wrongSyntax says what is wrong with a text that is not JSON.
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

// maxFileSize bounds the files that the server reads, in bytes.
const maxFileSize = 16 << 20

// parseFile is parseBody for a file, which mistakes name.
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

// only notes a mistake for each field that has none of these names. It is for
// files, where a misspelt field would silently be a missing setting.
func (f *form) only(names ...string) {
	for _, v := range f.all {
		if !slices.Contains(names, v.name) {
			f.addMistake("unexpected field", "value_error.extra", v.name)
		}
	}
}

// read takes the members of an object for the fields.
func (f *form) read(object []byte) {
	rawjson.WalkObject(object, func(name string, value []byte) {
		f.all = append(f.all, field{name, value})
	})
}

// objects decodes a list of 1 to most objects, each with a form of its own.
func (f *form) objects(name string, most int, each func(item *form)) {
	f.list(name, most, func(i int, value []byte) { f.element(name, i, value, each) })
}

// optionalObjects is objects for a list that may be empty, null or missing.
func (f *form) optionalObjects(name string, most int, each func(item *form)) {
	f.optionalList(name, most, func(i int, value []byte) { f.element(name, i, value, each) })
}

// element decodes an object in a list.
func (f *form) element(name string, i int, value []byte, each func(item *form)) {
	item := &form{input: input{where: slices.Concat(f.where, []any{name, i})}}
	if value = asObject(value); value == nil {
		item.broken = true
		item.addMistake("value is not a valid dict", "type_error.dict")
	} else {
		item.read(value)
		each(item)
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
// returns the number of values, -1 if there is no list.
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

// value returns the JSON of a field, nil if the field is null or missing. Then
// it notes a mistake if the field is required.
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

// object reads an object, as sent; nil if it is null or missing.
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

// text reads a string, or what fastqueue takes for one; nil if it is null or missing.
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

// id reads the id of a topic or queue; nil if it is null or missing.
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

// integer reads a whole number, or what fastqueue takes for one, within bounds;
// nil if it is null or missing.
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
	if !f.inside(n, within, name) {
		return nil
	}
	return &n
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

// asInteger returns what fastqueue makes of a value where an integer is wanted: a
// number without its decimals, the number in a string of digits, 1 and 0 of true
// and false. Numbers too large for an int become the largest or smallest one.
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

// truncate returns the integer of a number, or the largest or smallest there is.
func truncate(x float64) int {
	return int(max(math.MinInt64, min(x, math.MaxInt64/2)))
}

// parseDigits reads a whole number in digits. Numbers too large for an int
// become the largest or smallest one.
func parseDigits(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}

// parseInteger reads a whole number as JSON may have it, also like 3.0 or 3e1.
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

// parseNumber reads a decimal number; not the hexadecimal ones, the underscores,
// the infinities and so on that strconv takes too.
func parseNumber(s string) (float64, bool) {
	if strings.Trim(s, "0123456789+-.eE") != "" {
		return 0, false
	}
	x, err := strconv.ParseFloat(s, 64)
	return x, err == nil || errors.Is(err, strconv.ErrRange)
}

// asText returns what fastqueue makes of a value where a string is wanted, as a
// string of JSON: numbers and booleans become their text as Python writes it. It
// is nil for null, objects and arrays.
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

// pythonNumber returns a number of JSON as Python writes it: an integer with all
// its digits, another one as the float that it is read as, with the fewest digits
// that tell it from others.
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

// asObject returns what fastqueue makes of a value where an object is wanted: PHP
// writes an empty one as []. It is nil for any other value.
func asObject(raw []byte) []byte {
	switch {
	case raw[0] == '{':
		return raw
	case raw[0] == '[' && raw[rawjson.SkipSpace(raw, 1)] == ']':
		return []byte("{}")
	}
	return nil
}

// pathMistake says what is wrong with an id that would change the path of which it
// is a segment: clients and proxies remove "." and ".." from paths and merge
// slashes, some of them after they have decoded %2F. Nothing new gets such an id;
// groups that have one from before are still delivered.
func pathMistake(id string) string {
	for part := range strings.SplitSeq(id, "/") {
		if part == "" || part == "." || part == ".." {
			return `ensure that no part of this value between slashes is empty, "." or ".."`
		}
	}
	return ""
}

// checkText notes a mistake unless the value is a string, or becomes one.
func (f *form) checkText(value []byte, loc ...any) {
	switch value[0] {
	case 'n':
		f.addMistake("none is not an allowed value", "type_error.none.not_allowed", loc...)
	case '{', '[':
		f.addMistake("str type expected", "type_error.str", loc...)
	}
}

// quoteScalars returns the JSON with its numbers and booleans as strings (asText)
// and without insignificant white space.
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

// optionalBody reads a body that may as well not be there. fastqueue's clients
// may send anything where it looks for nothing.
func optionalBody(body []byte) *form {
	f := parseBody(body)
	if f.broken {
		f.mistakes = nil
	}
	return f
}

// seconds reads a duration in whole seconds; 0 if it is null or missing.
func (f *form) seconds(name string, within bounds, required bool) time.Duration {
	if n := f.integer(name, within, required); n != nil {
		return time.Duration(*n) * time.Second
	}
	return 0
}

// time reads a time as the API shows it, or with the zone UTC.
func (in *input) time(text string, loc ...any) time.Time {
	at, err := time.Parse(timestampLayout[:len("2006-01-02T15:04:05")], strings.TrimSuffix(strings.TrimSuffix(text, "Z"), "+00:00"))
	if err != nil || at.Year() < 1 {
		in.addMistake("invalid datetime format", "value_error.datetime", loc...)
		return time.Time{}
	}
	return at
}
