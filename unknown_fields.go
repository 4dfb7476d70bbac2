package main

import (
	"slices"
	"strings"
)

// unknownFields are the fields and parameters of a request that no decoder asks for. Forms
// and queries of one request share it.
type unknownFields struct {
	strict bool // they are mistakes

	missing []string // fields that decoders asked for and that the request does not have
	found   int      // number of unknown fields that were looked at
	first   string   // the name of the first one
	similar string   // the field that the client may have meant; empty if there is none
}

// areEnough reports whether no other unknown field matters: a hint names one, and a response
// has maxMistakes.
func (u *unknownFields) areEnough() bool {
	return u.found > 0 && !u.strict || u.found >= maxMistakes
}

// form reads the body of a request to the native API, like parseBody.
func (r *request) form() *form { return r.checked(parseBody(r.body)) }

// optionalForm is like form, for a body that may be missing.
func (r *request) optionalForm() *form { return r.checked(parseOptional(r.body)) }

func (r *request) checked(f *form) *form {
	f.unknown = &r.unknown
	return f
}

// query reads the query of a request to the native API.
func (r *request) query() *query {
	q := parseQuery(r.URL.RawQuery)
	q.unknown = &r.unknown
	return q
}

// withoutQuery returns the handler of a route without parameters, for which all are unknown:
// a limit of a redrive, which belongs in the body, must not get lost in the URL.
func withoutQuery(h handler) handler {
	return func(r *request) (any, error) {
		if r.URL.RawQuery != "" {
			if err := r.query().err(); err != nil {
				return nil, err
			}
		}
		return h(r)
	}
}

// preference returns the value of a preference in the header Prefer (RFC 7240), such as 20
// of "wait=20". Of several, the first counts. Preferences that are unknown or invalid are
// ignored, as the RFC demands.
func (r *request) preference(name string) (value string, has bool) {
	for _, header := range r.Header["Prefer"] {
		for preference := range strings.SplitSeq(header, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			token, text, _ := strings.Cut(preference, "=")
			if strings.EqualFold(strings.TrimSpace(token), name) {
				return strings.Trim(strings.TrimSpace(text), `"`), true
			}
		}
	}
	return "", false
}

// preferStrict makes unknown fields mistakes if the client prefers that.
func (r *request) preferStrict() {
	if handling, _ := r.preference("handling"); strings.EqualFold(handling, "strict") {
		r.unknown.strict = true
		r.w.Header().Add("Preference-Applied", "handling=strict")
	}
}

// skip marks fields as known.
func (f *form) skip(names ...string) {
	for _, name := range names {
		f.find(name)
	}
}

// checkUnknown finds the fields that no decoder has asked for, after all have been decoded.
func (in *input) checkUnknown() {
	u := in.unknown
	if u == nil || in.unread == 0 || u.areEnough() {
		return
	}
	in.unknown = nil
	var known []string // few, however many fields a client sends
	for _, v := range in.all {
		if v.read {
			known = append(known, v.name)
		}
	}
	for _, v := range in.all {
		if u.areEnough() {
			return
		}
		if !v.read && !slices.Contains(known, v.name) {
			u.add(in, v.name)
		}
	}
}

// add adds an unknown field.
func (u *unknownFields) add(in *input, name string) {
	similar := mostSimilar(name, u.missing)
	if known := synonyms[simplify(name)]; similar == "" && slices.Contains(u.missing, known) {
		similar = known
	}
	if u.found++; u.found == 1 {
		u.first, u.similar = name, similar
	}
	if !u.strict {
		return
	}
	msg := "unexpected field"
	if similar != "" {
		msg += "; did you mean " + similar + "?"
	}
	in.addMistake(msg, "value_error.extra", name)
}

// synonyms are names of other servers' APIs for fields of the native API, in the form of
// simplify.
var synonyms = map[string]string{
	"body":                   "data",
	"message":                "data",
	"messagebody":            "data",
	"payload":                "data",
	"headers":                "attributes",
	"messageattributes":      "attributes",
	"properties":             "attributes",
	"tags":                   "attributes",
	"messagegroupid":         "group",
	"orderingkey":            "group",
	"partitionkey":           "group",
	"messagededuplicationid": "deduplication_id",
	"idempotencykey":         "deduplication_id",
	"eta":                    "scheduled_at",
	"countdown":              "delay_seconds",
	"expires":                "retention_seconds",
	"expiration":             "retention_seconds",
	"ttl":                    "retention_seconds",
	"name":                   "id",
	"exchange":               "topic_id",
	"visibilitytimeout":      "ack_deadline_seconds",
	"messageretentionperiod": "message_retention_seconds",
	"dlq":                    "dead_queue_id",
	"deadletterqueue":        "dead_queue_id",
	"deadlettertopic":        "dead_queue_id",
	"maxreceivecount":        "message_max_deliveries",
	"maxdeliveryattempts":    "message_max_deliveries",
	"maxretries":             "message_max_deliveries",
	"deliverylimit":          "message_max_deliveries",
	"delay":                  "delivery_delay_seconds",
	"delayseconds":           "delivery_delay_seconds",
	"filter":                 "message_filters",
	"filterpolicy":           "message_filters",
	"fifo":                   "ordered",
	"maxlength":              "max_messages",
	"backoff":                "retry_backoff_seconds",
	"maxnumberofmessages":    "limit",
	"batchsize":              "limit",
	"prefetch":               "limit",
	"timeout":                "wait_seconds",
	"reason":                 "error",
	"receipthandle":          "scheduled_at",
}

// maxNameLength is the maximum length of a name that is compared with others, in bytes.
const maxNameLength = 64

// mostSimilar returns the name that is most similar to another one, or an empty text if none
// is: "delay_seconds" for "delay", "delaySeconds" and "delya_seconds".
func mostSimilar(name string, all []string) (best string) {
	if len(name) > maxNameLength {
		return ""
	}
	simple := simplify(name)
	least := max(1, len(simple)/3) + 1
	for _, candidate := range all {
		other := simplify(candidate)
		distance := editDistance(simple, other)
		if len(simple) >= 4 && (strings.Contains(other, simple) || strings.Contains(simple, other)) {
			distance = min(distance, 1)
		}
		if distance < least {
			best, least = candidate, distance
		}
	}
	return best
}

// simplify returns a name in lower case and without characters between its words.
func simplify(name string) string {
	return strings.NewReplacer("_", "", "-", "", ".", "").Replace(strings.ToLower(name))
}

// editDistance returns the number of bytes to insert, delete, replace, or exchange with the
// next one to make b of a.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[i][j] = min(replace, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
