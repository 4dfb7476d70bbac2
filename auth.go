package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"queued/internal/rawjson"
)

// tokens are the entries of a token file. Without a file, authentication is off.
type tokens struct {
	bearers []*token          // those with a bearer token
	keys    map[string]*token // those with an access key, by its id
}

// token is an entry of a token file: a secret, an access key, or both, with its permissions.
type token struct {
	name    string
	hash    [sha256.Size]byte // of the secret, which is not kept
	key     *accessKey        // for SQS's API; nil if it has none
	post    names             // topics and queues that it may publish to
	get     names             // queues whose messages it may receive, ack, nack and peek
	metrics bool
	admin   bool // all permissions
}

// names is a set of ids of topics and queues: exact ids, prefixes, or all.
type names struct {
	all      bool
	exact    []string
	prefixes []string
}

func (n *names) match(id string) bool {
	return n.all || slices.Contains(n.exact, id) ||
		slices.ContainsFunc(n.prefixes, func(prefix string) bool { return strings.HasPrefix(id, prefix) })
}

// permission is a permission that a request requires. Each route is registered with one.
type permission struct {
	name string // as in the table of docs/configuration.md
	has  func(t *token, r *request) bool
}

// The permissions. A token with admin has them all.
var (
	public       = permission{name: "none"} // no token is required
	admin        = permission{"admin", func(t *token, r *request) bool { return false }}
	canScrape    = permission{"metrics", func(t *token, r *request) bool { return t.metrics }}
	canPost      = permission{"post", func(t *token, r *request) bool { return t.post.match(r.named()) }}
	canGet       = permission{"get", func(t *token, r *request) bool { return t.get.match(r.named()) }}
	canPostOrGet = permission{"get or post", func(t *token, r *request) bool { return t.get.match(r.named()) || t.post.match(r.named()) }}

	// anyToken is for requests without a topic or queue in the path. Lists then contain
	// only topics and queues that the token has permissions for, and messages of other
	// queues are not found.
	anyToken = permission{"any", func(t *token, r *request) bool { return true }}
)

// named returns the id of the topic or queue in the path, empty if there is none.
func (r *request) named() string {
	for _, wildcard := range []string{"topic_id", "queue_id", "channel", "queue", "queue_type"} {
		if id := r.PathValue(wildcard); id != "" {
			return id
		}
	}
	return ""
}

// authorize finds the token of a request, and returns an error unless the token has
// the permission.
func (s *server) authorize(r *request, need permission) error {
	all := s.tokens.Load()
	if all == nil || need.has == nil {
		return nil
	}
	t, why := all.find(r.Header.Get("Authorization"))
	if t == nil {
		r.w.Header().Set("WWW-Authenticate", `Bearer realm="queued"`)
		if r.api == sharQ { // on other routes it would make a browser ask for a password
			r.w.Header().Add("WWW-Authenticate", `Basic realm="queued"`)
		}
		return statusError{http.StatusUnauthorized, why}
	}
	if !t.admin && !need.has(t, r) {
		return forbidden(need)
	}
	r.token = t
	return nil
}

// forbidden is the error of a request whose token lacks a permission.
func forbidden(need permission) error {
	return statusError{http.StatusForbidden, fmt.Sprintf("token lacks permission: requires %s", need.name)}
}

// authorizeSQS finds the token of a request to SQS's API, before its body is read: by the
// access key of its signature or, without a signature, as authorize. checkSignature then
// checks the signature, and permit the permission.
func (s *server) authorizeSQS(r *request) error {
	all := s.tokens.Load()
	if all == nil {
		return nil
	}
	v, err := parseSignature(r.Request)
	switch {
	case err != nil:
		return err
	case v == nil:
		t, why := all.find(r.Header.Get("Authorization"))
		if t == nil {
			return sqsAccessDenied.errorf("Access to the resource is denied: the request is not signed. %s", why)
		}
		r.token = t
		return nil
	}
	t := all.keys[v.accessKeyID]
	if t == nil {
		return sqsUnknownKey.errorf("The access key id included in the request is unknown.")
	}
	r.token, r.signature = t, v
	return v.check(r.Request, "sqs", time.Now())
}

// checkSignature returns an error if the request has a signature that is not that of its
// access key, for the server or for its public URL. A proxy turns the path of the public URL
// into a slash, whether or not it ends in one.
func (s *server) checkSignature(r *request) error {
	if r.signature == nil {
		return nil
	}
	path := r.URL.EscapedPath()
	err := r.token.key.verify(r.signature, r.Request, r.Host, path, r.body)
	if s.publicURL != nil {
		path = s.publicURL.EscapedPath() + path
		for _, path := range []string{path, strings.TrimSuffix(path, "/")} {
			if err != nil {
				err = r.token.key.verify(r.signature, r.Request, s.publicURL.Host, path, r.body)
			}
		}
	}
	return err
}

// permit returns an error unless the token of a request to SQS's API has the permission for
// its queue. A queue that the token has no permission for does not exist for it.
func (r *request) permit(need permission) error {
	t := r.token
	switch {
	case t == nil || t.admin || need.has(t, r):
		return nil
	case r.named() != "" && !canPostOrGet.has(t, r):
		return errQueueNotFound
	}
	return sqsAccessDenied.errorf("Access to the resource is denied: the access key lacks permission, requires %s.", need.name)
}

// Errors of a request without a valid token.
const (
	tokenMissing   = "Missing Authorization header. Use 'Authorization: Bearer <token>'."
	tokenMalformed = "Malformed Authorization header. Use 'Authorization: Bearer <token>'."
	tokenInvalid   = "Invalid token"
)

// find returns the token in the header, or an error. It compares the hash of the secret
// with the hashes of all tokens, in constant time.
func (all *tokens) find(header string) (found *token, why string) {
	if header == "" {
		return nil, tokenMissing
	}
	secret := bearerToken(header)
	if secret == "" {
		return nil, tokenMalformed
	}
	hash := sha256.Sum256([]byte(secret))
	for _, t := range all.bearers {
		if subtle.ConstantTimeCompare(t.hash[:], hash[:]) == 1 {
			found = t
		}
	}
	if found == nil {
		return nil, tokenInvalid
	}
	return found, ""
}

// bearerToken returns the secret in an Authorization header: the Bearer token (RFC
// 6750), or the password of Basic (RFC 7617) with any user name. It is empty if there
// is none.
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

// visible returns the topics and queues that lists show to a request.
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

// mayScrape reports whether a request may read metrics.
func (r *request) mayScrape() bool { return r.token == nil || r.token.admin || r.token.metrics }

// mayGet reports whether a request may receive from the queue.
func (r *request) mayGet(queueID string) bool {
	return r.token == nil || r.token.admin || r.token.get.match(queueID)
}

// mayPost reports whether a request may publish to the topic or queue.
func (r *request) mayPost(id string) bool {
	return r.token == nil || r.token.admin || r.token.post.match(id)
}

// unknownID is an id that no message has.
const unknownID = "00000000-0000-0000-0000-000000000000"

// hideForbidden replaces the ids of messages that the token of the request has no
// permission for by unknownID.
func (s *server) hideForbidden(r *request, items []ackItem) error {
	if len(items) == 0 || r.token == nil || r.token.admin || r.token.get.all {
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

// Limits of a token file.
const (
	maxTokens = 10_000
	minSecret = 20 // characters
)

// readTokens reads a token file, {"tokens": [{"name": …}, …]}. Its errors name the
// entry, and never contain a secret.
func readTokens(path string) (*tokens, error) {
	f, err := parseFile(path)
	if err != nil {
		return nil, err
	}
	all := &tokens{keys: make(map[string]*token)}
	named := make(map[string]bool)
	hashes := make(map[[sha256.Size]byte]bool)
	f.only("tokens")
	f.objects("tokens", maxTokens, func(item *form) {
		t := item.token()
		if named[t.name] {
			item.addMistake("duplicate name", "value_error", "name")
		}
		named[t.name] = true
		if len(item.mistakes) > 0 {
			return
		}
		if item.has("token") || item.has("token_sha256") {
			if hashes[t.hash] {
				item.addMistake("duplicate token", "value_error", "token")
			}
			hashes[t.hash] = true
			all.bearers = append(all.bearers, t)
		}
		if t.key != nil {
			if all.keys[t.key.id] != nil {
				item.addMistake("duplicate access key id", "value_error", "access_key_id")
			}
			all.keys[t.key.id] = t
		}
	})
	if err := f.err(); err != nil {
		return nil, err
	}
	return all, nil
}

// token decodes an entry of the file.
func (f *form) token() *token {
	f.only("name", "token", "token_sha256", "access_key_id", "secret_access_key", "post", "get", "metrics", "admin")
	t := &token{post: f.names("post"), get: f.names("get"), metrics: f.boolean("metrics"), admin: f.boolean("admin")}
	t.name, _ = f.string("name", true)
	hasSecret, hasHash, hasKey := f.has("token"), f.has("token_sha256"), f.has("access_key_id") || f.has("secret_access_key")
	switch {
	case hasSecret && hasHash:
		f.addMistake("not allowed with token_sha256", "value_error", "token")
	case hasHash:
		text, _ := f.string("token_sha256", true)
		if hash, err := hex.DecodeString(text); err != nil || len(hash) != len(t.hash) {
			f.addMistake("must be 64 hexadecimal digits", "value_error", "token_sha256")
		} else {
			copy(t.hash[:], hash)
		}
	case hasSecret:
		t.hash = sha256.Sum256([]byte(f.secret("token")))
	case !hasKey:
		f.addMistake("token, token_sha256 or access_key_id is required", "value_error", "token")
	}
	if hasKey {
		t.key = &accessKey{secret: f.secret("secret_access_key")}
		var ok bool
		if t.key.id, ok = f.string("access_key_id", true); ok && !validID(t.key.id) {
			f.addMistake(fmt.Sprintf("must match %s, at most %d characters", idPattern, maxIDLength), "value_error", "access_key_id")
		}
	}
	return t
}

// secret reads a secret, which is long, and has no white space at its ends, where clients
// may remove it.
func (f *form) secret(name string) string {
	secret, ok := f.string(name, true)
	if ok && utf8.RuneCountInString(secret) < minSecret {
		f.addMistake(fmt.Sprintf("ensure this value has at least %d characters", minSecret), "value_error.any_str.min_length", name)
	}
	if strings.TrimSpace(secret) != secret {
		f.addMistake("must not begin or end with white space", "value_error", name)
	}
	return secret
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
			f.addMistake("must be an id, a prefix ending in *, or *", "value_error", name, i)
		}
		i++
	})
	return n
}
