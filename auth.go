package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// tokens are who may do what. A server without them is open to everybody.
type tokens []*token

// token is a secret and what its bearer may do.
type token struct {
	name    string
	hash    [sha256.Size]byte // of the secret, which is kept nowhere
	post    names             // topics and queues to publish to
	get     names             // queues to receive from, and whose messages to settle and peek at
	metrics bool
	admin   bool // everything
}

// names are ids of topics and queues: some, those with a prefix, or all.
type names struct {
	all      bool
	exact    []string
	prefixes []string
}

func (n *names) match(id string) bool {
	return n.all || slices.Contains(n.exact, id) ||
		slices.ContainsFunc(n.prefixes, func(prefix string) bool { return strings.HasPrefix(id, prefix) })
}

// permission is what a request needs: of every route it is stated where the route is
// registered.
type permission struct {
	name string // as in the table of docs/configuration.md
	has  func(t *token, r *request) bool
}

// The rights. A token with admin has them all.
var (
	public       = permission{name: "none"} // no token is asked for
	admin        = permission{"admin", func(t *token, r *request) bool { return false }}
	canScrape    = permission{"metrics", func(t *token, r *request) bool { return t.metrics }}
	canPost      = permission{"post", func(t *token, r *request) bool { return t.post.match(r.named()) }}
	canGet       = permission{"get", func(t *token, r *request) bool { return t.get.match(r.named()) }}
	canPostOrGet = permission{"get or post", func(t *token, r *request) bool { return t.get.match(r.named()) || t.post.match(r.named()) }}

	// anyToken is for requests that name no topic or queue: lists show what the
	// token may see, and messages whose queue it may not get from are unknown.
	anyToken = permission{"any", func(t *token, r *request) bool { return true }}
)

// named returns the topic or queue in the path, whatever it is called there.
func (r *request) named() string {
	for _, wildcard := range []string{"topic_id", "queue_id", "channel", "queue", "queue_type"} {
		if id := r.PathValue(wildcard); id != "" {
			return id
		}
	}
	return ""
}

// authorize finds the token of a request, and returns an error unless it has the
// right.
func (s *server) authorize(r *request, need permission) error {
	all := s.tokens.Load()
	if all == nil || need.has == nil {
		return nil
	}
	t, why := all.find(r.Header.Get("Authorization"))
	if t == nil {
		r.w.Header().Set("WWW-Authenticate", `Bearer realm="queued"`)
		if r.api == sharQ { // elsewhere a browser would ask for a password
			r.w.Header().Add("WWW-Authenticate", `Basic realm="queued"`)
		}
		return status{http.StatusUnauthorized, why}
	}
	if !t.admin && !need.has(t, r) {
		return forbidden(need)
	}
	r.token = t
	return nil
}

// forbidden is the error of a request whose token lacks a right.
func forbidden(need permission) error {
	return status{http.StatusForbidden, fmt.Sprintf("the token has no right to do this: it needs %s", need.name)}
}

// What a request without a valid token is told.
const (
	tokenMissing   = "Missing Authorization header. Use 'Authorization: Bearer <token>'."
	tokenMalformed = "Malformed Authorization header. Use 'Authorization: Bearer <token>'."
	tokenInvalid   = "Invalid token"
)

// find returns the token in the header, or why there is none. It compares with
// all of them, hashes with hashes, so that the time it takes tells nothing.
func (all *tokens) find(header string) (found *token, why string) {
	if header == "" {
		return nil, tokenMissing
	}
	secret := bearerToken(header)
	if secret == "" {
		return nil, tokenMalformed
	}
	hash := sha256.Sum256([]byte(secret))
	for _, t := range *all {
		if subtle.ConstantTimeCompare(t.hash[:], hash[:]) == 1 {
			found = t
		}
	}
	if found == nil {
		return nil, tokenInvalid
	}
	return found, ""
}

// bearerToken returns the secret in an Authorization header: what follows Bearer, or
// the password of Basic (RFC 7617), with any user name. It is empty if there is none.
func bearerToken(header string) string {
	scheme, rest, _ := strings.Cut(header, " ")
	rest = strings.TrimSpace(rest)
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return rest
	case strings.EqualFold(scheme, "Basic"):
		if pair, err := base64.StdEncoding.DecodeString(rest); err == nil {
			_, password, _ := strings.Cut(string(pair), ":")
			return password
		}
	}
	return ""
}

// visible returns the topics and queues that a request may see in lists.
func (r *request) visible() *names {
	t := r.token
	if t == nil || t.admin {
		return &names{all: true}
	}
	return &names{
		all:      t.get.all || t.post.all,
		exact:    append(append([]string{}, t.get.exact...), t.post.exact...),
		prefixes: append(append([]string{}, t.get.prefixes...), t.post.prefixes...),
	}
}

// mayGet reports whether a request may have what is in the queue.
func (r *request) mayGet(queueID string) bool {
	return r.token == nil || r.token.admin || r.token.get.match(queueID)
}

// mayPost reports whether a request may publish to the topic or queue.
func (r *request) mayPost(id string) bool {
	return r.token == nil || r.token.admin || r.token.post.match(id)
}

// unknownID is that of no message.
const unknownID = "00000000-0000-0000-0000-000000000000"

// hideForbidden makes the messages unknown that the token of the request may not get.
func (s *server) hideForbidden(r *request, items []ackItem) error {
	if r.token == nil || r.token.admin || r.token.get.all {
		return nil
	}
	var ids idArray
	for _, v := range items {
		ids = append(ids, v.id)
	}
	queues, err := s.store.queuesOf(r.Context(), ids)
	if err != nil {
		return err
	}
	for i := range items {
		if queueID, known := queues[items[i].id]; known && !r.mayGet(queueID) {
			items[i].id = unknownID
		}
	}
	return nil
}

// Bounds of a file of tokens.
const (
	maxTokens = 10_000
	minSecret = 20 // characters
)

// readTokens reads a file of tokens, {"tokens": [{"name": …}, …]}. Its errors name
// the entry, and never a secret.
func readTokens(path string) (*tokens, error) {
	f, err := parseFile(path)
	if err != nil {
		return nil, err
	}
	all := &tokens{}
	named := make(map[string]bool)
	hashes := make(map[[sha256.Size]byte]bool)
	f.only("tokens")
	f.objects("tokens", maxTokens, func(item *form) {
		t := item.token()
		if named[t.name] {
			item.addMistake("is there twice", "value_error", "name")
		}
		if hashes[t.hash] && len(item.mistakes) == 0 {
			item.addMistake("another entry has the same token", "value_error", "token")
		}
		named[t.name], hashes[t.hash] = true, true
		*all = append(*all, t)
	})
	if err := f.err(); err != nil {
		return nil, err
	}
	return all, nil
}

// token reads an entry of the file.
func (f *form) token() *token {
	f.only("name", "token", "token_sha256", "post", "get", "metrics", "admin")
	t := &token{post: f.names("post"), get: f.names("get"), metrics: f.bool("metrics"), admin: f.bool("admin")}
	t.name, _ = f.string("name", true)
	hasHash := f.has("token_sha256")
	if f.has("token") == hasHash {
		f.addMistake("either token or token_sha256 is required", "value_error", "token")
		return t
	}
	if hasHash {
		text, _ := f.string("token_sha256", true)
		if hash, err := hex.DecodeString(text); err != nil || len(hash) != len(t.hash) {
			f.addMistake("value is not 64 hexadecimal digits", "value_error", "token_sha256")
		} else {
			copy(t.hash[:], hash)
		}
		return t
	}
	secret, ok := f.string("token", true)
	if ok && utf8.RuneCountInString(secret) < minSecret {
		f.addMistake(fmt.Sprintf("ensure this value has at least %d characters", minSecret), "value_error.any_str.min_length", "token")
	}
	if strings.TrimSpace(secret) != secret {
		f.addMistake("begins or ends with white space", "value_error", "token")
	}
	t.hash = sha256.Sum256([]byte(secret))
	return t
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

// bool reads true or false; missing is false.
func (f *form) bool(name string) bool {
	raw := f.value(name, false)
	if raw != nil && !bytes.Equal(raw, []byte("true")) && !bytes.Equal(raw, []byte("false")) {
		f.addMistake("value could not be parsed to a boolean", "type_error.bool", name)
	}
	return bytes.Equal(raw, []byte("true"))
}

// names reads an optional list of ids, of prefixes that end in "*", and of "*".
func (f *form) names(name string) (n names) {
	raw := f.value(name, false)
	if raw == nil {
		return n
	}
	if raw[0] != '[' {
		f.addMistake("value is not a valid list", "type_error.list", name)
		return n
	}
	i := 0
	rawjson.WalkArray(raw, func(value []byte) {
		id := ""
		if value[0] == '"' {
			id = rawjson.Unquote(value)
		}
		prefix, isPrefix := strings.CutSuffix(id, "*")
		switch {
		case id == "*":
			n.all = true
		case isPrefix && validID(prefix):
			n.prefixes = append(n.prefixes, prefix)
		case validID(id):
			n.exact = append(n.exact, id)
		default:
			f.addMistake("is no id, no prefix with * behind it, and not *", "value_error", name, i)
		}
		i++
	})
	return n
}
