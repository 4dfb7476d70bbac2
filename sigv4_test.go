package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The requests and signatures of AWS's test suite (aws-sig-v4-test-suite), except those with
// paths that no client sends: unescaped, or with "..". The signer is the region us-east-1 of
// a service "service" on 2015-08-30.
var awsRequests = []struct {
	name, target string // the target is GET / if empty
	headers      string // after Host and X-Amz-Date
	body         string
	signed       string // names of headers; host and x-amz-date if empty
	signature    string
}{
	{name: "get-vanilla", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "get-vanilla-empty-query-key", target: "GET /?Param1=value1", signature: "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
	{name: "get-vanilla-query-order-key-case", target: "GET /?Param2=value2&Param1=value1", signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
	{name: "get-vanilla-query-order-key", target: "GET /?Param1=value2&Param1=Value1", signature: "eedbc4e291e521cf13422ffca22be7d2eb8146eecf653089df300a15b2382bd1"},
	{name: "get-vanilla-query-order-value", target: "GET /?Param1=value2&Param1=value1", signature: "5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694"},
	{name: "get-vanilla-query-order-encoded", target: "GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1", signature: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
	{name: "get-vanilla-query-unreserved", target: "GET /?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", signature: "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
	{name: "get-vanilla-utf8-query", target: "GET /?\u1234=bar", signature: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
	{name: "get-vanilla-with-session-token", headers: "X-Amz-Security-Token: 6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267", signed: "host;x-amz-date;x-amz-security-token", signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
	{name: "get-unreserved", target: "GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", signature: "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
	{name: "get-special-character", target: "GET /example/$delete", signature: "a853c9b21b528b19643d00910d35b83a10c366a10833ceefb45edd6c80e40f27"},
	{name: "get-header-key-duplicate", headers: "My-Header1:value2\r\nMy-Header1:value2\r\nMy-Header1:value1", signed: "host;my-header1;x-amz-date", signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
	{name: "get-header-value-multiline", headers: "My-Header1:value1\r\n  value2\r\n     value3", signed: "host;my-header1;x-amz-date", signature: "cfd34249e4b1c8d6b91ef74165d41a32e5fab3306300901bb65a51a73575eefd"},
	{name: "get-header-value-order", headers: "My-Header1:value4\r\nMy-Header1:value1\r\nMy-Header1:value3\r\nMy-Header1:value2", signed: "host;my-header1;x-amz-date", signature: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
	{name: "get-header-value-trim", headers: "My-Header1: value1\r\nMy-Header2: \"a   b   c\"", signed: "host;my-header1;my-header2;x-amz-date", signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
	{name: "post-vanilla", target: "POST /", signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	{name: "post-vanilla-query", target: "POST /?Param1=value1", signature: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"},
	{name: "post-header-value-case", target: "POST /", headers: "My-Header1:VALUE1", signed: "host;my-header1;x-amz-date", signature: "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"},
	{name: "post-x-www-form-urlencoded", target: "POST /", headers: "Content-Type:application/x-www-form-urlencoded\r\nContent-Length: 13", body: "Param1=value1", signed: "content-type;host;x-amz-date", signature: "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	{name: "post-sts-header-before", target: "POST /", headers: "X-Amz-Security-Token:AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==", signed: "host;x-amz-date;x-amz-security-token", signature: "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"},
}

const awsSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

var awsDay = time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)

// verifies returns the error of the verification of a request that was signed with awsSecret.
func verifies(t *testing.T, text string, now time.Time) error {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	v, err := parseSignature(r)
	if err == nil {
		err = v.check(r, "service", now)
	}
	if err == nil {
		err = (&accessKey{secret: awsSecret}).verify(v, r, r.Host, r.URL.EscapedPath(), body)
	}
	return err
}

func TestSignaturesOfAWSTestSuiteAreAccepted(t *testing.T) {
	t.Parallel()
	for _, v := range awsRequests {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			v.target, v.signed = cmp.Or(v.target, "GET /"), cmp.Or(v.signed, "host;x-amz-date")
			text := v.target + " HTTP/1.1\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n"
			if v.headers != "" {
				text += v.headers + "\r\n"
			}
			text += "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=" + v.signed + ", Signature=" + v.signature + "\r\n\r\n" + v.body
			if err := verifies(t, text, awsDay); err != nil {
				t.Errorf("%s\n%v", text, err)
			}
			method, _, _ := strings.Cut(v.target, " ")
			header, value, _ := strings.Cut(v.headers, ":")
			digit := "0"
			if v.signature[:1] == digit {
				digit = "1"
			}
			for what, change := range map[string][2]string{
				"method":    {method, "PUT"},
				"path":      {" /", " /x"},
				"query":     {"?", "?a=b&"},
				"host":      {"Host:example", "Host:elsewhere"},
				"header":    {header + ":" + value, header + ":x" + value},
				"body":      {"\r\n\r\nParam1=value1", "\r\n\r\nParam1=value2"},
				"region":    {"us-east-1", "us-west-1"},
				"signature": {"Signature=" + v.signature[:1], "Signature=" + digit},
			} {
				changed := strings.Replace(text, change[0], change[1], 1)
				if changed == text || change[0] == ":" { // the request has no such part
					continue
				}
				if err := verifies(t, changed, awsDay); !isSQSFailure(err, sqsWrongSignature) {
					t.Errorf("with another %s: %v, want %v:\n%s", what, err, sqsWrongSignature.code, changed)
				}
			}
		})
	}
}

// isSQSFailure reports whether an error is of a kind, which is zero for no error.
func isSQSFailure(err error, kind sqsFailure) bool {
	if kind == (sqsFailure{}) {
		return err == nil
	}
	found, ok := errors.AsType[sqsError](err)
	return ok && found.sqsFailure == kind
}

// signWith signs a request for SQS as clients do, in the header or, with expires, in the query.
// It returns the request itself.
func signWith(r *http.Request, id, secret string, at time.Time, expires string, headers ...string) *http.Request {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	at = at.UTC()
	v := &signature{day: at.Format("20060102"), region: "eu-north-1", service: "sqs", signedAt: at.Format(signatureDate), presigned: expires != "", headers: append(headers, "host")}
	credential, signed := id+"/"+v.scope(), strings.Join(v.headers, ";")
	if v.presigned {
		q := r.URL.Query()
		for name, value := range map[string]string{"Algorithm": signatureAlgorithm, "Credential": credential, "Date": v.signedAt, "Expires": expires, "SignedHeaders": signed} {
			q.Set("X-Amz-"+name, value)
		}
		r.URL.RawQuery = q.Encode()
	} else {
		r.Header.Set("X-Amz-Date", v.signedAt)
	}
	k := &accessKey{id: id, secret: secret}
	mac := hex.EncodeToString(hmacSHA256(k.signingKey(v).key, v.stringToSign(v.canonicalRequest(r, r.Host, r.URL.EscapedPath(), hexSHA256(body)))))
	if v.presigned {
		r.URL.RawQuery += "&X-Amz-Signature=" + mac
	} else {
		r.Header.Set("Authorization", signatureAlgorithm+" Credential="+credential+", SignedHeaders="+signed+", Signature="+mac)
	}
	return r
}

func TestSignaturesAreRefusedForWhatIsWrong(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 26, 23, 59, 0, 0, time.UTC)
	const minute = time.Minute
	request := func(at time.Time, expires string, headers ...string) *http.Request {
		r, err := http.NewRequest("POST", "http://queue.example/000000000000/q?Action=SendMessage", strings.NewReader("MessageBody=a"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Target", "AmazonSQS.SendMessage")
		r.Header.Set("Content-Type", "application/x-amz-json-1.0")
		return signWith(r, "AKID", "secret", at, expires, append(headers, "x-amz-target")...)
	}
	replaced := func(old, with string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, with, 1))
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, old, with, 1)
		}
	}
	none := func(*http.Request) {}
	for what, v := range map[string]struct {
		expires string // in the query if it is not empty
		age     time.Duration
		change  func(*http.Request)
		want    sqsFailure // zero if it is valid
		says    string
	}{
		"valid":                          {"", 0, none, sqsFailure{}, ""},
		"15 minutes old":                 {"", 15 * minute, none, sqsFailure{}, ""},
		"older":                          {"", 15*minute + time.Second, none, sqsWrongSignature, "expired: 20261126T234359Z is more than 15 minutes earlier than 20261126T235900Z"},
		"15 minutes ahead, the next day": {"", -15 * minute, none, sqsFailure{}, ""},
		"further ahead":                  {"", -15*minute - time.Second, none, sqsWrongSignature, "not yet current: 20261127T001401Z"},
		"presigned":                      {"60", 0, none, sqsFailure{}, ""},
		"presigned, a minute old":        {"60", minute, none, sqsFailure{}, ""},
		"presigned, older":               {"60", minute + time.Second, none, sqsWrongSignature, "valid for 1m0s from 20261126T235759Z"},
		"presigned, a week":              {"604800", 7 * 24 * time.Hour, none, sqsFailure{}, ""},
		"presigned, more than a week":    {"604801", 0, none, sqsBrokenSignature, "X-Amz-Expires"},
		"presigned, expires at once":     {"0", 0, none, sqsBrokenSignature, "X-Amz-Expires"},
		"presigned, expires never":       {"never", 0, none, sqsBrokenSignature, "X-Amz-Expires"},
		"presigned, ahead":               {"60", -16 * minute, none, sqsWrongSignature, "not yet current"},
		"presigned, another action":      {"60", 0, replaced("SendMessage", "PurgeQueue"), sqsWrongSignature, ""},
		"presigned, longer":              {"60", 0, replaced("Expires=60", "Expires=600"), sqsWrongSignature, ""},
		"presigned for another service":  {"60", 0, replaced("sqs", "sns"), sqsBrokenSignature, `"sns", not "sqs"`},
		"the day before":                 {"", 0, replaced("/20261126/", "/20261125/"), sqsWrongSignature, "day"},
		"another service":                {"", 0, replaced("/sqs/", "/s3/"), sqsBrokenSignature, `"s3", not "sqs"`},
		"another region":                 {"", 0, replaced("eu-north-1", "eu-west-1"), sqsWrongSignature, ""},
		"no host":                        {"", 0, replaced("host", "date"), sqsBrokenSignature, "host"},
		"no target":                      {"", 0, replaced("x-amz-target", "user-agent"), sqsBrokenSignature, "x-amz-target"},
		"a header twice":                 {"", 0, replaced("SignedHeaders=", "SignedHeaders=host;"), sqsBrokenSignature, "twice"},
		"the other protocol":             {"", 0, func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, sqsBrokenSignature, "x-amz-target"},
		"no content type":                {"", 0, func(r *http.Request) { r.Header.Del("Content-Type") }, sqsBrokenSignature, "x-amz-target"},
		"another algorithm":              {"", 0, replaced("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), sqsBrokenSignature, "algorithm"},
		"presigned, another algorithm":   {"60", 0, replaced("AWS4-HMAC", "AWS3-HMAC"), sqsBrokenSignature, "algorithm"},
		"no credential":                  {"", 0, replaced("Credential=", "Credentials="), sqsBrokenSignature, "Credential"},
		"short credential":               {"", 0, replaced("AKID/", ""), sqsBrokenSignature, "Credential"},
		"another end":                    {"", 0, replaced("aws4_request", "aws5_request"), sqsBrokenSignature, "Credential"},
		"no signature":                   {"", 0, replaced("Signature=", "Signed="), sqsBrokenSignature, "Signature"},
		"a short signature":              {"", 0, replaced("Signature=", "Signature=0"), sqsBrokenSignature, "Signature"},
		"no date":                        {"", 0, func(r *http.Request) { r.Header.Del("X-Amz-Date") }, sqsBrokenSignature, "X-Amz-Date"},
		"hash of the body":               {"", 0, func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", hexSHA256([]byte("MessageBody=a"))) }, sqsFailure{}, ""},
		"hash of another body":           {"", 0, func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", hexSHA256(nil)) }, sqsWrongSignature, "x-amz-content-sha256"},
		"unsigned body":                  {"", 0, func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") }, sqsWrongSignature, "x-amz-content-sha256"},
	} {
		r := request(now.Add(-v.age), v.expires)
		v.change(r)
		signature, err := parseSignature(r)
		if err == nil {
			err = signature.check(r, "sqs", now)
		}
		if err == nil {
			err = (&accessKey{id: "AKID", secret: "secret"}).verify(signature, r, r.Host, r.URL.EscapedPath(), []byte("MessageBody=a"))
		}
		if !isSQSFailure(err, v.want) || err != nil && !strings.Contains(err.Error(), v.says) {
			t.Errorf("%s: %v, want %v with %q", what, err, v.want.code, v.says)
		}
		if err != nil && strings.Contains(err.Error(), "secret\"") {
			t.Errorf("%s: the error contains the secret: %v", what, err)
		}
	}
}

func TestSigningKeyChangesWithTheScope(t *testing.T) {
	t.Parallel()
	k := &accessKey{id: "AKID", secret: "secret"}
	for _, at := range []time.Time{awsDay, awsDay.AddDate(0, 0, 1), awsDay, awsDay} {
		r, err := http.NewRequest("GET", "http://queue.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		v, err := parseSignature(signWith(r, "AKID", "secret", at, ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := k.verify(v, r, r.Host, r.URL.EscapedPath(), nil); err != nil {
			t.Errorf("signed at %v: %v", at, err)
		}
		used := k.last.Load()
		v.mac[0] ^= 1
		v.region = "elsewhere"
		if err := k.verify(v, r, r.Host, r.URL.EscapedPath(), nil); !isSQSFailure(err, sqsWrongSignature) {
			t.Errorf("a wrong signature: %v", err)
		}
		if k.last.Load() != used {
			t.Error("a wrong signature replaces the key in use")
		}
	}
}

func TestRegionIsThatOfTheSignature(t *testing.T) {
	t.Parallel()
	request := func() *http.Request {
		r, err := http.NewRequest("GET", "http://queue.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	checkDiff(t, "without a signature", "us-east-1", signingRegion(request()))
	checkDiff(t, "in the header", "eu-north-1", signingRegion(signWith(request(), "a", "b", awsDay, "")))
	checkDiff(t, "in the query", "eu-north-1", signingRegion(signWith(request(), "a", "b", awsDay, "60")))
	r := request()
	r.Header.Set("Authorization", `AWS4-HMAC-SHA256 Credential=a/1/<region>/sqs/aws4_request`)
	checkDiff(t, "an invalid one", "us-east-1", signingRegion(r))
}

// The work for the signature of one request: a small message, signed as SDKs do.
func BenchmarkSignature(b *testing.B) {
	body := []byte(`{"QueueUrl":"http://queue.example/000000000000/q","MessageBody":"` + strings.Repeat("a", 189) + `"}`)
	now := time.Now()
	r, err := http.NewRequest("POST", "http://queue.example/", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.0")
	r.Header.Set("X-Amz-Target", "AmazonSQS.SendMessage")
	signWith(r, "AKID", "secret", now, "", "content-type", "x-amz-date", "x-amz-target")
	k := &accessKey{id: "AKID", secret: "secret"}
	b.ReportAllocs()
	for b.Loop() {
		v, err := parseSignature(r)
		if err == nil {
			err = v.check(r, "sqs", now)
		}
		if err == nil {
			err = k.verify(v, r, r.Host, r.URL.EscapedPath(), body)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if len(body) != 256 {
		b.Fatalf("the body has %d bytes", len(body))
	}
}
