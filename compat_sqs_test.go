package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sqsSend sends a request to SQS.
func (s *client) sqsSend(method, path, body string, headers ...string) reply {
	s.t.Helper()
	v, err := s.trySQS(context.Background(), method, path, body, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// trySQS is like sqsSend. Any goroutine may call it.
func (s *client) trySQS(ctx context.Context, method, path, body string, headers ...string) (reply, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(out)}, err
}

// sqs sends a request of the JSON protocol.
func (s *client) sqs(action, body string) reply {
	s.t.Helper()
	return s.sqsSend("POST", "/", body, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS."+action)
}

// sqsQuery sends a request of the Query protocol, with parameters such as "QueueName=q".
func (s *client) sqsQuery(action string, parameters ...string) reply {
	s.t.Helper()
	return s.sqsSend("POST", "/", sqsForm(append([]string{"Action=" + action}, parameters...)...), "Content-Type: application/x-www-form-urlencoded")
}

// sqsForm encodes parameters as a form.
func sqsForm(parameters ...string) string {
	var all []string
	for _, v := range parameters {
		name, value, _ := strings.Cut(v, "=")
		all = append(all, url.QueryEscape(name)+"="+url.QueryEscape(value))
	}
	return strings.Join(all, "&")
}

// mustSQS sends a request of the JSON protocol, which must succeed, and returns the body of
// the response. The queue is that of the URL {Q} in the body.
func (s *client) mustSQS(action, body string, into any) {
	s.t.Helper()
	v := s.sqs(action, body)
	if v.status != 200 {
		s.t.Fatalf("%s %s = %d %s", action, body, v.status, v.body)
	}
	if into != nil {
		mustDecode(s.t, v.body, into)
	}
}

// createSQS creates a queue with attributes, such as `"VisibilityTimeout":"5"`.
func (s *client) createSQS(name string, attributes ...string) (queueURL string) {
	s.t.Helper()
	var v struct{ QueueUrl string }
	s.mustSQS("CreateQueue", fmt.Sprintf(`{"QueueName":%q,"Attributes":{%s}}`, name, strings.Join(attributes, ",")), &v)
	return v.QueueUrl
}

// maskSQS replaces the values that differ between runs.
func maskSQS(s *client, body string) string {
	body = strings.ReplaceAll(body, strings.TrimPrefix(s.url, "http://"), "HOST")
	return regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`).ReplaceAllString(body, "UUID")
}

const xmlHead = `<?xml version="1.0"?>`

func TestSQSIsRoutedByItsProtocols(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	const (
		form   = "Content-Type: application/x-www-form-urlencoded"
		urlXML = xmlHead + `<GetQueueUrlResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><GetQueueUrlResult><QueueUrl>http://HOST/000000000000/q</QueueUrl></GetQueueUrlResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></GetQueueUrlResponse>`
		purged = xmlHead + `<PurgeQueueResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></PurgeQueueResponse>`
		noURL  = `<UnknownOperationException/>`
	)
	for _, v := range []struct {
		request []string // method, path, body, headers
		status  int
		want    string
	}{
		{[]string{"POST", "/", `{"QueueName":"q"}`, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS.GetQueueUrl"}, 200, `{"QueueUrl":"http://HOST/000000000000/q"}`},
		{[]string{"POST", "/", `{"QueueName":"q"}`, "Content-Type: APPLICATION/X-AMZ-JSON-1.1; charset=utf-8", "X-Amz-Target: AmazonSQS.GetQueueUrl"}, 200, `{"QueueUrl":"http://HOST/000000000000/q"}`},
		{[]string{"POST", "/000000000000/q", `{"QueueName":"q"}`, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS.GetQueueUrl"}, 200, `{"QueueUrl":"http://HOST/000000000000/q"}`},
		{[]string{"POST", "/", "Action=GetQueueUrl&QueueName=q&Version=2012-11-05", form + "; charset=utf-8"}, 200, urlXML},
		{[]string{"POST", "/?Action=GetQueueUrl&QueueName=q", "", form}, 200, urlXML},
		{[]string{"POST", "/?Version=1&Action=GetQueueUrl&QueueName=q", ""}, 200, urlXML},
		{[]string{"GET", "/?Action=GetQueueUrl&QueueName=q", ""}, 200, urlXML},
		{[]string{"GET", "/?QueueName=q&Action=GetQueueUrl", "", "Accept: text/html"}, 200, urlXML},
		{[]string{"GET", "/123456789012/other?Action=GetQueueUrl&QueueName=q", ""}, 200, urlXML},
		{[]string{"POST", "/123456789012/q", "Action=PurgeQueue", form}, 200, purged},
		{[]string{"POST", "/123456789012/q/", "Action=PurgeQueue", form}, 200, purged},
		{[]string{"POST", "/123456789012/other", "Action=PurgeQueue&QueueUrl=q", form}, 200, purged},
		{[]string{"GET", "/123456789012/q", ""}, 404, noURL},
		{[]string{"POST", "/123456789012/q", "QueueUrl=q", form}, 404, noURL},
		{[]string{"POST", "/", "", form}, 404, noURL},

		{[]string{"GET", "/", ""}, 200, `{"message":"Hello, SharQ!"}`},
		{[]string{"GET", "/?action=x", ""}, 200, `{"message":"Hello, SharQ!"}`},
		{[]string{"POST", "/", "{}", "Content-Type: application/json"}, 404, `{"detail":"Not Found"}`},
		{[]string{"GET", "/12345678901/q", ""}, 404, `{"detail":"Not Found"}`},
		{[]string{"GET", "/1234567890123/q", ""}, 404, `{"detail":"Not Found"}`},
		{[]string{"GET", "/123456789012/", ""}, 404, `{"detail":"Not Found"}`},
	} {
		got := s.sqsSend(v.request[0], v.request[1], v.request[2], v.request[3:]...)
		body := maskSQS(&s.client, got.body)
		if got.status != v.status || body != v.want {
			t.Errorf("%q\n got %d %s\nwant %d %s", v.request, got.status, body, v.status, v.want)
		}
		wantType := map[byte]string{'{': "application/x-amz-json-1.0", '<': "text/xml"}[v.want[0]]
		if isSQSReply := got.header.Get("x-amzn-RequestId") != ""; isSQSReply && got.header.Get("Content-Type") != wantType {
			t.Errorf("%q has content type %q, want %q", v.request, got.header.Get("Content-Type"), wantType)
		}
	}
	for _, method := range []string{"HEAD", "PUT", "DELETE", "OPTIONS"} {
		got := s.sqsSend(method, "/123456789012/q?Action=PurgeQueue", "")
		if got.status != 405 || got.header.Get("Allow") != "GET, POST" {
			t.Errorf("%s = %d, allowed %q", method, got.status, got.header.Get("Allow"))
		}
	}
	if got := s.sqsSend("HEAD", "/?Action=PurgeQueue&QueueUrl=q", ""); got.status != 405 {
		t.Errorf("HEAD with an action = %d", got.status)
	}
}

// Clients send requests to the URL of a queue, so it leads to where they are connected.
func TestSQSQueueURLIsThatOfTheClient(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.hosts.allowed = []string{"queue.example"}
	s.createSQS("q")
	for want, headers := range map[string][2]string{
		"http://queue.example/000000000000/q":       {"queue.example", ""},
		"http://queue.example:8080/000000000000/q":  {"queue.example:8080", "http"},
		"https://queue.example:8443/000000000000/q": {"queue.example:8443", "https"},
	} {
		r := httptest.NewRequest("GET", "/?Action=GetQueueUrl&QueueName=q", nil)
		r.Host = headers[0]
		r.Header.Set("X-Forwarded-Proto", headers[1])
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if !strings.Contains(w.Body.String(), "<QueueUrl>"+want+"</QueueUrl>") {
			t.Errorf("with %q: %s, want %s", headers, w.Body, want)
		}
	}
	r := httptest.NewRequest("GET", "https://queue.example:8443/?Action=GetQueueUrl&QueueName=q", nil) // has a TLS state
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if want := "<QueueUrl>https://queue.example:8443/000000000000/q</QueueUrl>"; !strings.Contains(w.Body.String(), want) {
		t.Errorf("with TLS: %s, want %s", w.Body, want)
	}
}

// With -public-url, the URLs of queues begin with it, whatever a proxy makes of the host and the
// path.
func TestSQSQueueURLIsPublic(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"https://queue.example":         "https://queue.example/000000000000/q",
		"https://queue.example/":        "https://queue.example/000000000000/q",
		"http://queue.example:8080/a/b": "http://queue.example:8080/a/b/000000000000/q",
		"https://[::1]:8443/a%2Fb/":     "https://[::1]:8443/a%2Fb/000000000000/q",
	} {
		s := newTestServer(t)
		var err error
		if s.server.publicURL, err = parsePublicURL(value); err != nil {
			t.Fatal(err)
		}
		checkDiff(t, "URL of a new queue", want, s.createSQS("q"))
		checkDiff(t, "URL of a queue", `{"QueueUrl":"`+want+`"}`, s.sqsSend("POST", "/", `{"QueueName":"q"}`, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS.GetQueueUrl", "X-Forwarded-Proto: https").body)
		checkDiff(t, "list", `{"QueueUrls":["`+want+`"]}`, s.sqs("ListQueues", `{}`).body)
		checkDiff(t, "sources", `{"queueUrls":[]}`, s.sqs("ListDeadLetterSourceQueues", fmt.Sprintf(`{"QueueUrl":%q}`, want)).body)
	}
}

// The id of a request is in a header of every response, and in XML also in the body.
func TestSQSRespondsWithARequestID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, body := range []string{"Action=ListQueues", "Action=Nonsense"} {
		got := s.sqsSend("POST", "/", body, "Content-Type: application/x-www-form-urlencoded")
		id := got.header.Get("x-amzn-RequestId")
		if canonical, ok := parseID(id); !ok || canonical != id || !strings.Contains(got.body, "<RequestId>"+id+"</RequestId>") {
			t.Errorf("%s: id %q in %s", body, id, got.body)
		}
	}
	first, second := s.sqs("ListQueues", "{}").header.Get("x-amzn-RequestId"), s.sqs("Nonsense", "{}").header.Get("x-amzn-RequestId")
	if first == "" || second == "" || first == second {
		t.Errorf("ids of two requests: %q and %q", first, second)
	}
}

// In XML, the response to an action has a result, except for actions that return nothing. In
// JSON, the response to these is an empty object.
func TestSQSActionsWithoutAResult(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("dead")
	s.createSQS("q", `"VisibilityTimeout":"0"`, `"RedrivePolicy":"{\"deadLetterTargetArn\":\"`+sqsARNs+`dead\",\"maxReceiveCount\":9}"`)
	s.sqsPublish("q", "a")
	handle := s.sqsReceive("q")[0].ReceiptHandle
	task := "" // of the action before
	seen := 0
	for _, v := range []struct {
		action, body string
		hasResult    bool
	}{
		{"CreateQueue", `{"QueueName":"q"}`, true},
		{"GetQueueUrl", `{"QueueName":"q"}`, true},
		{"ListQueues", `{}`, true},
		{"ListDeadLetterSourceQueues", `{"QueueUrl":"dead"}`, true},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"DelaySeconds":"0"}}`, false},
		{"GetQueueAttributes", `{"QueueUrl":"q"}`, true},
		{"TagQueue", `{"QueueUrl":"q","Tags":{"a":"b"}}`, false},
		{"ListQueueTags", `{"QueueUrl":"q"}`, true},
		{"UntagQueue", `{"QueueUrl":"q","TagKeys":["a"]}`, false},
		{"AddPermission", `{"QueueUrl":"q","Label":"LABEL","AWSAccountIds":["1"],"Actions":["*"]}`, false},
		{"RemovePermission", `{"QueueUrl":"q","Label":"LABEL"}`, false},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"b"}`, true},
		{"SendMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"x","MessageBody":"b"}]}`, true},
		{"ReceiveMessage", `{"QueueUrl":"dead"}`, true},
		{"ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"` + handle + `","VisibilityTimeout":0}`, false},
		{"ChangeMessageVisibilityBatch", `{"QueueUrl":"q","Entries":[{"Id":"x","ReceiptHandle":"` + handle + `","VisibilityTimeout":0}]}`, true},
		{"DeleteMessage", `{"QueueUrl":"q","ReceiptHandle":"` + handle + `"}`, false},
		{"DeleteMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"x","ReceiptHandle":"` + handle + `"}]}`, true},
		{"StartMessageMoveTask", `{"SourceArn":"` + sqsARNs + `dead"}`, true},
		{"ListMessageMoveTasks", `{"SourceArn":"` + sqsARNs + `dead"}`, true},
		{"CancelMessageMoveTask", `{"TaskHandle":"TASK"}`, true},
		{"PurgeQueue", `{"QueueUrl":"dead"}`, false},
		{"DeleteQueue", `{"QueueUrl":"NAME"}`, false},
	} {
		seen++
		call := func(send func(body string) reply, label, task string) string {
			t.Helper()
			s.createSQS(label)
			got := send(strings.NewReplacer("LABEL", label, "NAME", label, "TASK", task).Replace(v.body))
			if got.status != 200 {
				t.Fatalf("%s %s = %d %s", v.action, v.body, got.status, got.body)
			}
			return got.body
		}
		inXML := call(func(body string) reply { return s.sqsQuery(v.action, asParameters(t, v.action, body)...) }, "in-xml", task)
		if v.action == "StartMessageMoveTask" { // one at a time
			task = regexp.MustCompile(`<TaskHandle>(.*)</TaskHandle>`).FindStringSubmatch(inXML)[1]
			continue
		}
		namespace := ` xmlns="http://queue.amazonaws.com/doc/2012-11-05/">`
		result := "<" + v.action + "Result>"
		if !v.hasResult {
			result = "<ResponseMetadata><RequestId>"
		}
		if want := xmlHead + "<" + v.action + "Response" + namespace + result; !strings.HasPrefix(inXML, want) {
			t.Errorf("%s in XML = %s, want %s", v.action, inXML, want)
		}
		if v.action == "CancelMessageMoveTask" { // it was cancelled
			continue
		}
		if inJSON := call(func(body string) reply { return s.sqs(v.action, body) }, "in-json", ""); !v.hasResult && inJSON != "{}" {
			t.Errorf("%s in JSON = %s", v.action, inJSON)
		}
	}
	checkDiff(t, "actions", len(sqsActions), seen)
}

// Parameters and headers of SDKs that mean nothing here, and items of lists that AWS refuses.
func TestSQSIgnoresWhatHasNoMeaning(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("q")
	s.sqsPublish("q", "a")
	for _, v := range []struct{ action, body, want string }{
		{"GetQueueUrl", `{"QueueName":"q","QueueOwnerAWSAccountId":"123456789012"}`, q},
		{"ReceiveMessage", `{"QueueUrl":"q","VisibilityTimeout":0,"ReceiveRequestAttemptId":"x y"}`, sqsMD5("a")},
	} {
		got := s.sqsSend("POST", "/", v.body, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS."+v.action, "X-Amzn-Query-Mode: true", "Amz-Sdk-Request: attempt=1; max=3")
		if got.status != 200 || !strings.Contains(got.body, v.want) {
			t.Errorf("%s %s = %d %s, want %s", v.action, v.body, got.status, got.body, v.want)
		}
		got = s.sqsQuery(v.action, append(asParameters(t, v.action, v.body), "Version=2009-02-01", "SignatureVersion=2", "Other.1=x")...)
		if got.status != 200 || !strings.Contains(got.body, v.want) {
			t.Errorf("%s %s in XML = %d %s, want %s", v.action, v.body, got.status, got.body, v.want)
		}
	}
	for _, list := range []string{"StringListValue.1=x", "StringListValue=x", "BinaryListValue.1=AA=="} {
		got := s.sqsXMLProblem(s.sqsQuery("SendMessage", "QueueUrl=q", "MessageBody=x", "MessageAttribute.1.Name=a", "MessageAttribute.1.Value.DataType=String", "MessageAttribute.1.Value.StringValue=x", "MessageAttribute.1.Value."+list))
		checkDiff(t, list, sqsProblemReply{400, "", "AWS.SimpleQueueService.UnsupportedOperation", "Message attribute list values in SendMessage operation are not supported."}, got)
	}
}

// Metrics have a label for each action, and none for names that clients make up.
func TestSQSMetricsNameTheAction(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	s.sqsQuery("CreateQueue", "QueueName=q")
	s.sqs("MadeUp", "{}")
	s.sqsSend("GET", "/123456789012/made-up", "")
	s.wantMetrics(`http_requests_total{handler="AmazonSQS.CreateQueue",method="POST",status="2xx"} 2`)
	if got := strings.ToLower(s.must(200, "GET", "/metrics", "")); strings.Contains(got, "made-up") || strings.Contains(got, "madeup") || strings.Contains(got, "123456789012") {
		t.Errorf("a made-up name is in the metrics")
	}
}

func TestSQSMetricsCountMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
	for _, body := range []string{"a", "b", "a"} {
		s.sqsSendFIFO("f.fifo", "g", "", body)
	}
	handle := s.sqsReceive("f.fifo")[0].ReceiptHandle
	s.mustSQS("ChangeMessageVisibility", `{"QueueUrl":"f.fifo","ReceiptHandle":"`+handle+`","VisibilityTimeout":0}`, nil)
	checkDiff(t, "received and deleted", "a b", s.drainSQS("f.fifo"))
	s.wantMetrics(`queued_messages_published_total{queue="f.fifo"} 2`, `queued_messages_duplicate_total{queue="f.fifo"} 1`, `queued_messages_delivered_total{queue="f.fifo"} 3`,
		`queued_messages_acked_total{queue="f.fifo"} 2`, `queued_messages_nacked_total{queue="f.fifo"} 1`)
}

// sqsProblemReply is an error in both protocols.
type sqsProblemReply struct {
	Status int
	Type   string // empty in XML
	Code   string
	Text   string
}

func (s *client) sqsJSONProblem(v reply) sqsProblemReply {
	s.t.Helper()
	var body struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}
	mustDecode(s.t, v.body, &body)
	code, sender, _ := strings.Cut(v.header.Get("x-amzn-query-error"), ";")
	if want := map[bool]string{false: "Sender", true: "Receiver"}[v.status >= 500]; sender != want {
		s.t.Errorf("%d %s has x-amzn-query-error %q, want %s", v.status, v.body, v.header.Get("x-amzn-query-error"), want)
	}
	return sqsProblemReply{v.status, body.Type, code, body.Message}
}

func (s *client) sqsXMLProblem(v reply) sqsProblemReply {
	s.t.Helper()
	var body struct {
		XMLName xml.Name `xml:"http://queue.amazonaws.com/doc/2012-11-05/ ErrorResponse"`
		Error   struct {
			Type, Code, Message string
			Detail              *struct{}
		}
		RequestId string
	}
	if err := xml.Unmarshal([]byte(v.body), &body); err != nil {
		s.t.Fatalf("%v in %s", err, v.body)
	}
	if want := map[bool]string{false: "Sender", true: "Receiver"}[v.status >= 500]; body.Error.Type != want || body.Error.Detail == nil || body.RequestId == "" {
		s.t.Errorf("%d %s: want type %s, a detail and an id", v.status, v.body, want)
	}
	return sqsProblemReply{v.status, "", body.Error.Code, body.Error.Message}
}

// Without a database, and at the limits of memory, clients are told to try again later: all
// SDKs do so after this error.
func TestSQSErrorsOfTheServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	s.server.ready.Store(false)
	got := s.sqs("ListQueues", "{}")
	checkDiff(t, "JSON", sqsProblemReply{503, "com.amazon.coral.service#ServiceUnavailable", "ServiceUnavailable", "database unavailable; try again later"}, s.sqsJSONProblem(got))
	checkDiff(t, "Retry-After", "1", got.header.Get("Retry-After"))
	got = s.sqsQuery("ListQueues")
	checkDiff(t, "XML", sqsProblemReply{503, "", "ServiceUnavailable", "database unavailable; try again later"}, s.sqsXMLProblem(got))
	s.server.ready.Store(true)

	s.exec("ALTER TABLE queued.queues RENAME COLUMN created_at TO other")
	got = s.sqs("GetQueueUrl", `{"QueueName":"q"}`)
	if got.status != 503 { // the schema is broken
		t.Errorf("with a broken schema = %d %s", got.status, got.body)
	}
	s.exec("ALTER TABLE queued.queues RENAME COLUMN other TO created_at")
}

func TestSQSBodyLimit(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	got := s.sqs("ListQueues", `{"QueueNamePrefix":"`+strings.Repeat("x", 8<<20)+`"}`)
	if got.status != 413 || !strings.Contains(got.body, "#") {
		t.Errorf("a body of more than 8 MiB = %d %s", got.status, got.body)
	}
	if got := s.sqs("ListQueues", `{"QueueNamePrefix":"`+strings.Repeat("x", 8<<20-100)+`"}`); got.status != 200 {
		t.Errorf("a body of almost 8 MiB = %d %s", got.status, got.body)
	}
}

// A request for which there is no memory is refused, and can be sent again.
func TestSQSRequestsCountAsBuffered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	limit := func(bytes int64) {
		s.admission.mu.Lock()
		s.admission.maxBuffered = bytes
		s.admission.mu.Unlock()
	}
	long := strings.Repeat("x", 1<<20)
	limit(512 << 10)
	got := s.sqs("SendMessage", `{"QueueUrl":"q","MessageBody":"`+long+`"}`)
	v := s.sqsJSONProblem(got)
	if v.Status != 503 || v.Type != "com.amazon.coral.service#ServiceUnavailable" || v.Code != "ServiceUnavailable" || got.header.Get("Retry-After") == "" {
		t.Errorf("in JSON: %+v, Retry-After %q", v, got.header.Get("Retry-After"))
	}
	got = s.sqsQuery("SendMessage", "QueueUrl=q", "MessageBody="+long)
	if v := s.sqsXMLProblem(got); v.Status != 503 || v.Code != "ServiceUnavailable" || got.header.Get("Retry-After") == "" {
		t.Errorf("in XML: %+v, Retry-After %q", v, got.header.Get("Retry-After"))
	}
	limit(64 << 20)
	s.sqsPublish("q", slices.Repeat([]string{long}, 3)...)
	limit(2 << 20)
	got = s.sqs("ReceiveMessage", `{"QueueUrl":"q","MaxNumberOfMessages":10}`)
	checkDiff(t, "a response that is too large", "ServiceUnavailable", s.sqsJSONProblem(got).Code)
	limit(64 << 20)
	all := s.sqsReceive("q", ten, `"AttributeNames":["ApproximateReceiveCount"]`)
	checkDiff(t, "messages", 3, len(all))
	for _, m := range all {
		checkDiff(t, "receives", "1", m.Attributes["ApproximateReceiveCount"])
	}
	eventually(t, "nothing is buffered", func() bool { return s.buffered() == 0 })
}

// A panic is an InternalFailure.
func TestSQSInternalFailure(t *testing.T) {
	t.Parallel()
	for query, want := range map[bool]string{
		false: `{"__type":"com.amazon.coral.service#InternalFailure","message":"internal error"}`,
		true:  xmlHead + `<ErrorResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><Error><Type>Receiver</Type><Code>InternalFailure</Code><Message>internal error</Message><Detail></Detail></Error><RequestId></RequestId></ErrorResponse>`,
	} {
		hr, err := http.NewRequest("POST", "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &request{Request: hr, api: amazonSQS, sqsJSON: !query}
		r.w.ResponseWriter = &buffer{header: http.Header{}}
		problem := sqsProblem(r, errPanic, 500, "internal error").(withStatus)
		checkDiff(t, "status", 500, problem.status)
		checkDiff(t, "body", want, string(problem.body.(content).bytes))
	}
}

// The message of a body that is no JSON object, and that of a member of another type.
func TestSQSRefusesWrongJSON(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	for action, bodies := range map[string][]string{
		"ListQueues":         {``, ` `, `[]`, `null`, `"x"`, `{`, `{"a":}`, `{} {}`, "{\"a\":\"\xff\"}", `{"MaxResults":"1"}`, `{"MaxResults":1.5}`, `{"MaxResults":true}`, `{"QueueNamePrefix":1}`, `{"NextToken":{}}`},
		"CreateQueue":        {`{"QueueName":1}`, `{"QueueName":"x","Attributes":[]}`, `{"QueueName":"x","Attributes":{"VisibilityTimeout":5}}`, `{"QueueName":"x","tags":{"a":1}}`},
		"GetQueueAttributes": {`{"QueueUrl":1}`, `{"QueueUrl":"q","AttributeNames":"All"}`, `{"QueueUrl":"q","AttributeNames":[1]}`, `{"QueueUrl":"q","AttributeNames":[null]}`, `{"QueueUrl":"q","AttributeNames":{}}`},
		"SendMessage": {`{"QueueUrl":"q","MessageBody":1}`, `{"QueueUrl":"q","MessageBody":"x","DelaySeconds":"1"}`, `{"QueueUrl":"q","MessageBody":"x","MessageAttributes":{"a":"b"}}`,
			`{"QueueUrl":"q","MessageBody":"x","MessageAttributes":{"a":{"DataType":"Binary","BinaryValue":"%"}}}`, `{"QueueUrl":"q","MessageBody":"x","MessageAttributes":{"a":{"DataType":1}}}`},
		"SendMessageBatch":             {`{"QueueUrl":"q","Entries":{}}`, `{"QueueUrl":"q","Entries":[1]}`, `{"QueueUrl":"q","Entries":[{"Id":1}]}`, `{"QueueUrl":"q","Entries":[{"Id":"a","MessageBody":1}]}`, `{"QueueUrl":"q","Entries":[{"Id":"a","MessageBody":"x"},{"Id":"b","MessageBody":"x","DelaySeconds":"1"}]}`},
		"ReceiveMessage":               {`{"QueueUrl":"q","WaitTimeSeconds":"0"}`, `{"QueueUrl":"q","MaxNumberOfMessages":[]}`},
		"DeleteMessage":                {`{"QueueUrl":"q","ReceiptHandle":1}`},
		"ChangeMessageVisibility":      {`{"QueueUrl":"q","ReceiptHandle":"x","VisibilityTimeout":"1"}`},
		"ChangeMessageVisibilityBatch": {`{"QueueUrl":"q","Entries":[{"Id":"a","ReceiptHandle":"x","VisibilityTimeout":"1"}]}`},
		"UntagQueue":                   {`{"QueueUrl":"q","TagKeys":[{}]}`},
	} {
		for _, body := range bodies {
			got := s.sqsJSONProblem(s.sqs(action, body))
			got.Text = ""
			if want := (sqsProblemReply{400, "com.amazon.coral.service#SerializationException", "MalformedInput", ""}); got != want {
				t.Errorf("%s %s = %+v", action, body, got)
			}
		}
	}
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
	many := `{` + strings.Repeat(`"a":1,`, 10_000) + `"QueueName":"q"}`
	if got := s.sqs("GetQueueUrl", many); got.status != 400 {
		t.Errorf("too many members = %d", got.status)
	}
	if got := s.sqsQuery("GetQueueUrl", make([]string, 10_001)...); got.status != 400 {
		t.Errorf("too many parameters = %d", got.status)
	}
	var v json.RawMessage
	s.mustSQS("GetQueueUrl", `{"QueueName":"q","QueueOwnerAWSAccountId":null,"Other":[{}]}`, &v)
	s.mustSQS("ReceiveMessage", `{"QueueUrl":"q","AttributeNames":null,"WaitTimeSeconds":null,"VisibilityTimeout":null,"MaxNumberOfMessages":3.0}`, &v)
}

// Tokens have the same permissions as in the native API.
func TestSQSPermissions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"DelaySeconds":"5"`)
	s.createSQS("hidden")
	s.useTokens(map[string]string{"poster": `"post":["q","new"]`, "getter": `"get":["q"]`, "stranger": `"get":["other"]`, "admin": `"admin":true`})
	const (
		ok     = ""
		denied = "AccessDenied"
		none   = "AWS.SimpleQueueService.NonExistentQueue"
	)
	handle := sqsHandle(unknownID, receipt{queueKey: 1, seq: 1, attempts: 1})
	for _, v := range []struct {
		action, body             string
		poster, getter, stranger string
	}{
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"x"}`, ok, denied, none},
		{"SendMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","MessageBody":"x"}]}`, ok, denied, none},
		{"ReceiveMessage", `{"QueueUrl":"q"}`, denied, ok, none},
		{"DeleteMessage", `{"QueueUrl":"q","ReceiptHandle":"` + handle + `"}`, denied, ok, none},
		{"DeleteMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","ReceiptHandle":"` + handle + `"}]}`, denied, ok, none},
		{"ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"` + handle + `","VisibilityTimeout":1}`, denied, "InvalidParameterValue", none},
		{"ChangeMessageVisibilityBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","ReceiptHandle":"` + handle + `","VisibilityTimeout":1}]}`, denied, ok, none},
		{"GetQueueUrl", `{"QueueName":"q"}`, ok, ok, none},
		{"GetQueueAttributes", `{"QueueUrl":"q","AttributeNames":["All"]}`, ok, ok, none},
		{"ListQueueTags", `{"QueueUrl":"q"}`, ok, ok, none},
		{"ListDeadLetterSourceQueues", `{"QueueUrl":"q"}`, ok, ok, none},
		{"ListQueues", `{}`, ok, ok, ok},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"DelaySeconds":"5"}}`, denied, denied, none},
		{"TagQueue", `{"QueueUrl":"q","Tags":{"a":"b"}}`, denied, denied, none},
		{"UntagQueue", `{"QueueUrl":"q","TagKeys":["a"]}`, denied, denied, none},
		{"AddPermission", `{"QueueUrl":"q","Label":"l","AWSAccountIds":["1"],"Actions":["*"]}`, denied, denied, none},
		{"RemovePermission", `{"QueueUrl":"q","Label":"l"}`, denied, denied, none},
		{"CreateQueue", `{"QueueName":"q","Attributes":{"DelaySeconds":"5"}}`, ok, ok, denied},
		{"CreateQueue", `{"QueueName":"q","Attributes":{"DelaySeconds":"6"}}`, "QueueAlreadyExists", "QueueAlreadyExists", denied},
		{"CreateQueue", `{"QueueName":"new"}`, denied, denied, denied},
		{"PurgeQueue", `{"QueueUrl":"q"}`, denied, denied, none},
		{"DeleteQueue", `{"QueueUrl":"q"}`, denied, denied, none},
	} {
		for who, want := range map[string]string{"poster": v.poster, "getter": v.getter, "stranger": v.stranger, "": denied, "wrong": denied, "admin": ok} {
			if who == "admin" && v.action != "SendMessage" { // the others change the queue
				continue
			}
			client := &s.client
			if who != "" {
				client = s.with(secret(who))
			}
			got := client.sqs(v.action, v.body)
			code, _, _ := strings.Cut(got.header.Get("x-amzn-query-error"), ";")
			if code != want || (got.status == 403) != (want == denied) {
				t.Errorf("%s %s as %q = %d %s, want %q", v.action, v.body, who, got.status, got.body, want)
			}
		}
	}
	for action := range sqsActions {
		if got := s.sqs(action, `{"QueueUrl":"q","QueueName":"q"}`); got.status != 403 {
			t.Errorf("%s without a token = %d %s", action, got.status, got.body)
		}
	}
	checkDiff(t, "queues that a token sees", `{"QueueUrls":["http://HOST/000000000000/q"]}`, maskSQS(&s.client, s.with(secret("getter")).sqs("ListQueues", "{}").body))
	checkDiff(t, "queues that a token sees", `{}`, s.with(secret("stranger")).sqs("ListQueues", "{}").body)
}
