package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// useKeys makes the server require a token or an access key. Each entry, such as
// `"get":["q"]` by name, has a token as in useTokens, and an access key whose id is the name
// and whose secret is secret(name).
func (s *testServer) useKeys(entries map[string]string) {
	s.t.Helper()
	both := make(map[string]string)
	for name, permissions := range entries {
		both[name] = fmt.Sprintf(`"access_key_id":%q,"secret_access_key":%q,%s`, name, secret(name), permissions)
	}
	s.useTokens(both)
}

// signedSQS sends a request of the JSON protocol that is signed with the access key of a
// name.
func (s *client) signedSQS(who, action, body string) reply {
	s.t.Helper()
	r := s.sqsRequest(action, body)
	return s.mustSend(signWith(r, who, secret(who), time.Now(), "", "content-type", "x-amz-target"))
}

// sqsRequest returns a request of the JSON protocol.
func (s *client) sqsRequest(action, body string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequest("POST", s.url+"/", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.0")
	r.Header.Set("X-Amz-Target", "AmazonSQS."+action)
	return r
}

func (s *client) mustSend(r *http.Request) reply {
	s.t.Helper()
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(body)}
}

func TestSQSAcceptsSignaturesAndTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	if got := s.signedSQS("anyone", "SendMessage", `{"QueueUrl":"q","MessageBody":"a"}`); got.status != 200 {
		t.Errorf("without authentication, a signature = %d %s", got.status, got.body)
	}
	s.useKeys(map[string]string{"poster": `"post":["q"]`, "worker": `"get":["q"]`})
	for range 2 { // the second one with the key that the first one derived
		if got := s.signedSQS("poster", "SendMessage", `{"QueueUrl":"q","MessageBody":"b"}`); got.status != 200 {
			t.Errorf("in the header = %d %s", got.status, got.body)
		}
	}
	if got := s.with(secret("poster")).sqs("SendMessage", `{"QueueUrl":"q","MessageBody":"c"}`); got.status != 200 {
		t.Errorf("a token = %d %s", got.status, got.body)
	}
	form, err := http.NewRequest("POST", s.url+"/000000000000/q", strings.NewReader(sqsForm("Action=SendMessage", "MessageBody=d e+f/g")))
	if err != nil {
		t.Fatal(err)
	}
	form.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	if got := s.mustSend(signWith(form, "poster", secret("poster"), time.Now(), "", "content-type")); got.status != 200 {
		t.Errorf("a form = %d %s", got.status, got.body)
	}
	link, err := http.NewRequest("GET", s.url+"/000000000000/q?"+sqsForm("Action=ReceiveMessage", "MaxNumberOfMessages=10"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := s.mustSend(signWith(link, "worker", secret("worker"), time.Now().Add(-59*time.Second), "60"))
	checkDiff(t, "status of a presigned URL", 200, got.status)
	checkDiff(t, "messages", 5, strings.Count(got.body, "<Message>"))
	if !strings.Contains(got.body, "<Body>d e+f/g</Body>") {
		t.Errorf("the body of a form arrives as %s", got.body)
	}
}

func TestSQSRefusesRequestsWithoutAValidSignature(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	s.useKeys(map[string]string{"worker": `"get":["q"],"post":["q"]`})
	const body = `{"QueueUrl":"q","MessageBody":"a"}`
	signed := func(who, secret string, age time.Duration, change func(*http.Request)) *http.Request {
		r := signWith(s.sqsRequest("SendMessage", body), who, secret, time.Now().Add(-age), "", "x-amz-target")
		if change != nil {
			change(r)
		}
		return r
	}
	replaced := func(old, with string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, with, 1))
		}
	}
	const coral = "com.amazon.coral.service#"
	unsigned := sqsProblemReply{403, coral + "AccessDeniedException", "AccessDenied", "Access to the resource is denied: the request is not signed. Missing Authorization header. Use 'Authorization: Bearer <token>'."}
	different := sqsProblemReply{403, coral + "InvalidSignatureException", "SignatureDoesNotMatch", "The request signature does not match. Check the secret access key, and that proxies keep the header host."}
	for what, v := range map[string]struct {
		request *http.Request
		want    sqsProblemReply
	}{
		"no signature":                    {s.sqsRequest("SendMessage", body), unsigned},
		"no signature and unknown action": {s.sqsRequest("Nonsense", body), unsigned},
		"unknown key":                     {signed("stranger", secret("worker"), 0, nil), sqsProblemReply{403, coral + "UnrecognizedClientException", "InvalidClientTokenId", "The access key id included in the request is unknown."}},
		"another secret":                  {signed("worker", secret("other"), 0, nil), different},
		"no secret":                       {signed("worker", "", 0, nil), different},
		"another body":                    {signed("worker", secret("worker"), 0, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(strings.Replace(body, "a", "b", 1))) }), different},
		"another action":                  {signed("worker", secret("worker"), 0, func(r *http.Request) { r.Header.Set("X-Amz-Target", "AmazonSQS.ListQueues") }), different},
		"host is not signed":              {signed("worker", secret("worker"), 0, replaced(";host", "")), sqsProblemReply{400, coral + "IncompleteSignatureException", "IncompleteSignature", "The header host must be signed."}},
	} {
		got := s.mustSend(v.request)
		checkDiff(t, what, v.want, s.sqsJSONProblem(got))
		if got.header.Get("x-amzn-RequestId") == "" {
			t.Errorf("%s: the response has no request id", what)
		}
	}
	late := s.sqsJSONProblem(s.mustSend(signed("worker", secret("worker"), time.Hour, nil)))
	if late.Status != 403 || late.Code != "SignatureDoesNotMatch" || !strings.Contains(late.Text, "Signature expired: ") {
		t.Errorf("an old signature: %+v", late)
	}
	xml := s.sqsXMLProblem(s.sqsQuery("ListQueues"))
	checkDiff(t, "in XML", sqsProblemReply{403, "", unsigned.Code, unsigned.Text}, xml)
	checkDiff(t, "messages", 0, s.messagesIn("q"))
	if got := s.signedSQS("worker", "SendMessage", body); got.status != 200 {
		t.Errorf("a valid request = %d %s", got.status, got.body)
	}
}

// Behind a proxy that changes the host and removes a part of the path, a signature for
// -public-url is valid, and so is one for the address of the server itself.
func TestSQSAcceptsSignaturesForThePublicURL(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.useKeys(map[string]string{"worker": `"admin":true`})
	proxied := func(public, path, expires string) reply {
		t.Helper()
		r := s.sqsRequest("ListQueues", `{}`)
		r.URL.Path, r.Host = path, public
		signWith(r, "worker", secret("worker"), time.Now(), expires, "content-type", "x-amz-target")
		r.URL.Path, r.Host = "/", ""
		return s.mustSend(r)
	}
	checkDiff(t, "without the setting", "SignatureDoesNotMatch", s.sqsJSONProblem(proxied("queue.example", "/sqs/", "")).Code)
	var err error
	if s.server.publicURL, err = parsePublicURL("https://queue.example/sqs/"); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "for the public URL", 200, proxied("queue.example", "/sqs/", "").status)
	checkDiff(t, "for the public URL without a slash", 200, proxied("queue.example", "/sqs", "").status)
	checkDiff(t, "presigned for the public URL", 200, proxied("queue.example", "/sqs/", "60").status)
	checkDiff(t, "for the server itself", 200, s.signedSQS("worker", "ListQueues", `{}`).status)
	for _, v := range [][2]string{{"other.example", "/sqs/"}, {"queue.example", "/"}, {"queue.example", "/other/"}} {
		checkDiff(t, "for "+v[0]+v[1], "SignatureDoesNotMatch", s.sqsJSONProblem(proxied(v[0], v[1], "")).Code)
	}
}

// A large body of a request without a key is not read.
func TestSQSChecksTheKeyBeforeTheBody(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.useKeys(map[string]string{"worker": `"get":["q"]`})
	for _, header := range []string{"", "Authorization: AWS4-HMAC-SHA256 Credential=stranger/20261126/eu-north-1/sqs/aws4_request, SignedHeaders=host, Signature=" + strings.Repeat("0", 64) + "\r\n"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.ListQueues\r\nContent-Length: 8000000\r\nExpect: 100-continue\r\n%s\r\n", header)
		head := make([]byte, len("HTTP/1.1 403"))
		if _, err := io.ReadFull(conn, head); err != nil || string(head) != "HTTP/1.1 403" {
			t.Errorf("%q: %q, %v", header, head, err)
		}
	}
}

func TestSQSActionsTakeTheRightOfTheirKey(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.useKeys(map[string]string{"admin": `"admin":true`, "getter": `"get":["q*"]`, "poster": `"post":["q*"]`, "stranger": `"get":["other"],"post":["other"]`, "scraper": `"metrics":true`})
	must := func(action, body string) {
		t.Helper()
		if got := s.signedSQS("admin", action, body); got.status != 200 {
			t.Fatalf("%s = %d %s", action, got.status, got.body)
		}
	}
	must("CreateQueue", `{"QueueName":"q"}`)
	must("CreateQueue", `{"QueueName":"q2","Attributes":{"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:q\",\"maxReceiveCount\":3}"}}`)
	must("CreateQueue", `{"QueueName":"other"}`)
	const (
		allowed = ""
		denied  = "AccessDenied"
		unknown = "AWS.SimpleQueueService.NonExistentQueue"
	)
	for _, v := range []struct {
		action, body             string
		getter, poster, stranger string // the code of the error; empty for success, or an error of another kind
	}{
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"a"}`, denied, allowed, unknown},
		{"SendMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","MessageBody":"a"}]}`, denied, allowed, unknown},
		{"ReceiveMessage", `{"QueueUrl":"q","VisibilityTimeout":0}`, allowed, denied, unknown},
		{"DeleteMessage", `{"QueueUrl":"q","ReceiptHandle":"x"}`, allowed, denied, unknown},
		{"DeleteMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","ReceiptHandle":"x"}]}`, allowed, denied, unknown},
		{"ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"x","VisibilityTimeout":0}`, allowed, denied, unknown},
		{"ChangeMessageVisibilityBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","ReceiptHandle":"x","VisibilityTimeout":0}]}`, allowed, denied, unknown},
		{"GetQueueUrl", `{"QueueName":"q"}`, allowed, allowed, unknown},
		{"GetQueueAttributes", `{"QueueUrl":"q","AttributeNames":["All"]}`, allowed, allowed, unknown},
		{"ListQueueTags", `{"QueueUrl":"q"}`, allowed, allowed, unknown},
		{"ListDeadLetterSourceQueues", `{"QueueUrl":"q"}`, allowed, allowed, unknown},
		{"ListQueues", `{}`, allowed, allowed, allowed},
		{"CreateQueue", `{"QueueName":"q"}`, allowed, allowed, denied},
		{"CreateQueue", `{"QueueName":"q3"}`, denied, denied, denied},
		{"DeleteQueue", `{"QueueUrl":"q"}`, denied, denied, unknown},
		{"PurgeQueue", `{"QueueUrl":"q"}`, denied, denied, unknown},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"VisibilityTimeout":"5"}}`, denied, denied, unknown},
		{"TagQueue", `{"QueueUrl":"q","Tags":{"a":"b"}}`, denied, denied, unknown},
		{"UntagQueue", `{"QueueUrl":"q","TagKeys":["a"]}`, denied, denied, unknown},
		{"AddPermission", `{"QueueUrl":"q","Label":"l","AWSAccountIds":["1"],"Actions":["*"]}`, denied, denied, unknown},
		{"RemovePermission", `{"QueueUrl":"q","Label":"l"}`, denied, denied, unknown},
		{"StartMessageMoveTask", `{"SourceArn":"arn:aws:sqs:us-east-1:000000000000:q"}`, denied, denied, denied},
		{"ListMessageMoveTasks", `{"SourceArn":"arn:aws:sqs:us-east-1:000000000000:q"}`, denied, denied, denied},
		{"CancelMessageMoveTask", `{"TaskHandle":"x"}`, denied, denied, denied},
	} {
		for who, want := range map[string]string{"getter": v.getter, "poster": v.poster, "stranger": v.stranger} {
			got, _, _ := strings.Cut(s.signedSQS(who, v.action, v.body).header.Get("x-amzn-query-error"), ";")
			if refused := got == denied || got == unknown; refused != (want != allowed) || refused && got != want {
				t.Errorf("%s %s by %s: error %q, want %q", v.action, v.body, who, got, want)
			}
		}
	}
	for who, want := range map[string]string{"admin": "other q q2", "getter": "q q2", "poster": "q q2", "stranger": "other", "scraper": ""} {
		var list struct{ QueueUrls []string }
		mustDecode(t, s.signedSQS(who, "ListQueues", "{}").body, &list)
		var names []string
		for _, url := range list.QueueUrls {
			names = append(names, sqsNameOf(url))
		}
		checkDiff(t, "queues of "+who, want, strings.Join(names, " "))
	}
}

// An access key is only for SQS's API, and a reload replaces it.
func TestAccessKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.useTokens(map[string]string{"a": `"access_key_id":"A1","secret_access_key":"` + secret("key") + `","admin":true`})
	s.with(secret("a")).must(200, "GET", "/queues", "")
	s.with(secret("key")).must(401, "GET", "/queues", "")
	native, err := http.NewRequest("GET", s.url+"/queues", nil)
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "a signature for the native API", 401, s.mustSend(signWith(native, "A1", secret("key"), time.Now(), "")).status)
	request := func() *http.Request {
		return signWith(s.sqsRequest("ListQueues", "{}"), "A1", secret("key"), time.Now(), "", "x-amz-target")
	}
	checkDiff(t, "the key", 200, s.mustSend(request()).status)
	s.useTokens(map[string]string{"a": `"access_key_id":"A1","secret_access_key":"` + secret("new key") + `","admin":true`})
	checkDiff(t, "after its secret has changed", 403, s.mustSend(request()).status)
}
