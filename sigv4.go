package main

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// This file verifies AWS Signature Version 4, in the Authorization header or, presigned, in
// the query: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

const (
	signatureAlgorithm = "AWS4-HMAC-SHA256"
	signatureEnd       = "aws4_request"     // of each scope
	signatureDate      = "20060102T150405Z" // layout of X-Amz-Date
	signatureSkew      = 15 * time.Minute   // maximum difference of the clocks of client and server
	maxPresigned       = 7 * 24 * time.Hour // maximum X-Amz-Expires
)

// signature is a signature as the client has sent it.
type signature struct {
	accessKeyID          string
	day, region, service string // the scope
	signedAt             string // X-Amz-Date
	expires              time.Duration
	presigned            bool     // it is in the query
	headers              []string // names of the signed headers, in lower case
	mac                  []byte
}

// parseSignature returns the signature of a request, nil if it has none, and an error of the
// kind sqsBrokenSignature if it is not complete.
func parseSignature(r *http.Request) (*signature, error) {
	v := &signature{signedAt: r.Header.Get("X-Amz-Date")}
	var parameter func(name string) string
	algorithm, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if query := r.URL.Query(); strings.HasPrefix(algorithm, "AWS4") {
		parameters := make(map[string]string)
		for part := range strings.SplitSeq(rest, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			parameters[name] = value
		}
		parameter = func(name string) string { return parameters[name] }
	} else if query.Has("X-Amz-Algorithm") && algorithm == "" {
		algorithm, v.presigned, v.signedAt = query.Get("X-Amz-Algorithm"), true, query.Get("X-Amz-Date")
		parameter = func(name string) string { return query.Get("X-Amz-" + name) }
	} else {
		return nil, nil
	}
	if algorithm != signatureAlgorithm {
		return nil, sqsBrokenSignature.errorf("The algorithm of the signature is not %s.", signatureAlgorithm)
	}
	scope := strings.Split(parameter("Credential"), "/")
	n := len(scope) - 4
	if n < 1 || scope[n+3] != signatureEnd {
		return nil, sqsBrokenSignature.errorf("Credential of the signature is not ID/DAY/REGION/SERVICE/%s.", signatureEnd)
	}
	v.accessKeyID = strings.Join(scope[:n], "/")
	v.day, v.region, v.service = scope[n], scope[n+1], scope[n+2]
	v.headers = strings.Split(parameter("SignedHeaders"), ";")
	if len(slices.Compact(slices.Sorted(slices.Values(v.headers)))) < len(v.headers) { // a long header many times would take much memory
		return nil, sqsBrokenSignature.errorf("SignedHeaders has a header twice.")
	}
	var err error
	if v.mac, err = hex.DecodeString(parameter("Signature")); err != nil || len(v.mac) != sha256.Size {
		return nil, sqsBrokenSignature.errorf("Signature is not %d hexadecimal digits.", hex.EncodedLen(sha256.Size))
	}
	if v.presigned {
		seconds, err := strconv.Atoi(parameter("Expires"))
		if v.expires = time.Duration(seconds) * time.Second; err != nil || seconds < 1 || v.expires > maxPresigned {
			return nil, sqsBrokenSignature.errorf("X-Amz-Expires is not 1 to %d.", int(maxPresigned.Seconds()))
		}
	}
	return v, nil
}

// check returns an error unless the signature was made at about the time now, or is presigned
// and has not expired, for the service, and covers what it must cover.
func (v *signature) check(r *http.Request, service string, now time.Time) error {
	at, err := time.Parse(signatureDate, v.signedAt)
	switch {
	case err != nil:
		return sqsBrokenSignature.errorf("X-Amz-Date is missing or not YYYYMMDD'T'HHMMSS'Z'.")
	case v.service != service:
		return sqsBrokenSignature.errorf("Credential of the signature is for the service %q, not %q.", v.service, service)
	case !slices.Contains(v.headers, "host"):
		return sqsBrokenSignature.errorf("The header host must be signed.")
	case r.Header.Get("X-Amz-Target") != "" && !slices.Contains(v.headers, "x-amz-target"):
		return sqsBrokenSignature.errorf("The header x-amz-target must be signed.")
	case r.Header.Get("X-Amz-Target") != "" && !isSQSJSON(r): // some clients do not sign the content type
		return sqsBrokenSignature.errorf("The header x-amz-target requires the content type %s0.", sqsJSONPrefix)
	case v.signedAt[:len("20060102")] != v.day:
		return sqsWrongSignature.errorf("The day of Credential is not that of X-Amz-Date.")
	case at.Sub(now) > signatureSkew:
		return sqsWrongSignature.errorf("Signature not yet current: %s is more than 15 minutes later than %s, the time of the server.", v.signedAt, now.UTC().Format(signatureDate))
	case v.presigned && now.Sub(at) > v.expires:
		return sqsWrongSignature.errorf("Signature expired: it was valid for %v from %s, and the time of the server is %s.", v.expires, v.signedAt, now.UTC().Format(signatureDate))
	case !v.presigned && now.Sub(at) > signatureSkew:
		return sqsWrongSignature.errorf("Signature expired: %s is more than 15 minutes earlier than %s, the time of the server.", v.signedAt, now.UTC().Format(signatureDate))
	}
	return nil
}

// accessKey is an access key as those of AWS, of a token.
type accessKey struct {
	id     string
	secret string // HMAC needs it, and not its hash

	last atomic.Pointer[signingKey] // of the last valid signature; nil before the first one
}

// signingKey is the key that signs the requests of a day.
type signingKey struct {
	scope string
	key   []byte
}

// verify returns an error unless the signature is that of the request with the key. A proxy may
// have changed the host and the path, which are those that the client used, as it sent them.
func (k *accessKey) verify(v *signature, r *http.Request, host, path string, body []byte) error {
	payload := hexSHA256(body)
	if stated := r.Header.Get("X-Amz-Content-Sha256"); stated != "" && stated != payload {
		return sqsWrongSignature.errorf("x-amz-content-sha256 is not the SHA-256 of the body.")
	}
	signing := k.last.Load()
	if signing == nil || signing.scope != v.scope() {
		signing = k.signingKey(v)
	}
	if !hmac.Equal(v.mac, hmacSHA256(signing.key, v.stringToSign(v.canonicalRequest(r, host, path, payload)))) {
		return sqsWrongSignature.errorf("The request signature does not match. Check the secret access key, and that proxies keep the header host.")
	}
	k.last.Store(signing)
	return nil
}

// canonicalRequest is step 1 of the signature. It takes the path and the query as they were
// sent, before net/http decodes them. payload is the hash of the body.
func (v *signature) canonicalRequest(r *http.Request, host, path, payload string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + escapeStrictly(path, "/") + "\n" + v.canonicalQuery(r.URL.RawQuery) + "\n")
	for _, name := range v.headers {
		values := r.Header.Values(name)
		if name == "host" {
			values = []string{host}
		}
		b.WriteString(name + ":")
		for i, value := range values {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strings.Join(strings.Fields(value), " "))
		}
		b.WriteByte('\n')
	}
	b.WriteString("\n" + strings.Join(v.headers, ";") + "\n" + payload)
	return b.String()
}

// canonicalQuery returns the parameters of a query without the signature, each encoded in
// one way, in the order of their names and values.
func (v *signature) canonicalQuery(raw string) string {
	type parameter struct{ name, value string }
	var all []parameter
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		if part == "" || v.presigned && name == "X-Amz-Signature" {
			continue
		}
		all = append(all, parameter{encodeAgain(name), encodeAgain(value)})
	}
	slices.SortFunc(all, func(a, b parameter) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.value, b.value))
	})
	var b strings.Builder
	for i, p := range all {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.name + "=" + p.value)
	}
	return b.String()
}

// scope is the part of Credential after the id of the access key.
func (v *signature) scope() string {
	return strings.Join([]string{v.day, v.region, v.service, signatureEnd}, "/")
}

// stringToSign is step 2.
func (v *signature) stringToSign(canonicalRequest string) string {
	return strings.Join([]string{signatureAlgorithm, v.signedAt, v.scope(), hexSHA256([]byte(canonicalRequest))}, "\n")
}

// signingKey derives the key of step 3, which depends on the scope.
func (k *accessKey) signingKey(v *signature) *signingKey {
	key := []byte("AWS4" + k.secret)
	for _, part := range []string{v.day, v.region, v.service, signatureEnd} {
		key = hmacSHA256(key, part)
	}
	return &signingKey{v.scope(), key}
}

func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hexSHA256(text []byte) string {
	hash := sha256.Sum256(text)
	return hex.EncodeToString(hash[:])
}

// encodeAgain decodes a name or a value of a query and encodes it in the one way that
// signatures use.
func encodeAgain(text string) string {
	if decoded, err := url.QueryUnescape(text); err == nil {
		text = decoded
	}
	return escapeStrictly(text, "")
}

// escapeStrictly percent-encodes all bytes except the unreserved ones of RFC 3986, section
// 2.3, and those in also.
func escapeStrictly(text, also string) string {
	const hexadecimal = "0123456789ABCDEF"
	b := make([]byte, 0, len(text))
	for _, c := range []byte(text) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0, strings.IndexByte(also, c) >= 0:
			b = append(b, c)
		default:
			b = append(b, '%', hexadecimal[c>>4], hexadecimal[c&15])
		}
	}
	return string(b)
}
