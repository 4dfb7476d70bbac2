package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// sqsReceived is a message of SQS as a client sees it.
type sqsReceived struct {
	MessageId, ReceiptHandle, MD5OfBody, Body string
	Attributes                                map[string]string
	MessageAttributes                         map[string]struct {
		DataType, StringValue string
		BinaryValue           []byte
	}
	MD5OfMessageAttributes string
}

// sqsReceive returns the messages of a ReceiveMessage with these parameters in JSON.
func (s *client) sqsReceive(queue string, parameters ...string) []sqsReceived {
	s.t.Helper()
	var v struct{ Messages []sqsReceived }
	s.mustSQS("ReceiveMessage", fmt.Sprintf(`{"QueueUrl":%q%s}`, queue, strings.Join(append([]string{""}, parameters...), ",")), &v)
	return v.Messages
}

// bodiesOf returns the bodies of messages, separated by spaces.
func bodiesOf(messages []sqsReceived) string {
	var all []string
	for _, m := range messages {
		all = append(all, m.Body)
	}
	return strings.Join(all, " ")
}

// sqsPublish sends a message with each of the bodies.
func (s *client) sqsPublish(queue string, bodies ...string) {
	s.t.Helper()
	for _, body := range bodies {
		s.mustSQS("SendMessage", fmt.Sprintf(`{"QueueUrl":%q,"MessageBody":%q}`, queue, body), nil)
	}
}

const (
	ten = `"MaxNumberOfMessages":10`
	hid = `"VisibilityTimeout":`
)

func TestSQSMessageComesBackAsSent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	var sent struct{ MessageId, MD5OfMessageBody, MD5OfMessageAttributes, MD5OfMessageSystemAttributes, SequenceNumber string }
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"{\"a\": 1.0,\r\n\"a\":2}","MessageAttributes":{
		"General":{"DataType":"String","StringValue":"Kenobi"},"Hello":{"DataType":"String","StringValue":"There"},"Help.Me":{"DataType":"String","StringValue":"Me"}},
		"MessageSystemAttributes":{"AWSTraceHeader":{"DataType":"String","StringValue":"Root=1-x"}}}`, &sent)
	if _, ok := parseID(sent.MessageId); !ok || sent.SequenceNumber != "" || sent.MD5OfMessageBody != sqsMD5("{\"a\": 1.0,\r\n\"a\":2}") ||
		sent.MD5OfMessageAttributes != "4c360f3fdafd970e05fae2f149d997f5" || sent.MD5OfMessageSystemAttributes != sqsAttributesMD5([]sqsMessageAttribute{{"AWSTraceHeader", "String", "Root=1-x"}}) {
		t.Errorf("sent: %+v", sent)
	}
	got := s.sqsReceive("q", `"MessageAttributeNames":["All"]`, `"AttributeNames":["All"]`)
	if len(got) != 1 {
		t.Fatalf("received %+v", got)
	}
	m := got[0]
	if m.MessageId != sent.MessageId || m.Body != "{\"a\": 1.0,\r\n\"a\":2}" || m.MD5OfBody != sent.MD5OfMessageBody || m.MD5OfMessageAttributes != "4c360f3fdafd970e05fae2f149d997f5" || len(m.MessageAttributes) != 3 {
		t.Errorf("received %+v", m)
	}
	checkDiff(t, "system attributes", map[string]string{
		"SenderId": "000000000000", "ApproximateReceiveCount": "1", "AWSTraceHeader": "Root=1-x",
		"SentTimestamp":                    fmt.Sprint(s.count("SELECT floor(extract(epoch FROM created_at) * 1000)::bigint FROM queued.messages")),
		"ApproximateFirstReceiveTimestamp": fmt.Sprint(s.count("SELECT floor(extract(epoch FROM received_at) * 1000)::bigint FROM queued.messages")),
	}, m.Attributes)
	first := m.Attributes["ApproximateFirstReceiveTimestamp"]

	// Once more: another handle, and the same time of the first receive.
	s.endLeases()
	again := s.sqsReceive("q", `"MessageAttributeNames":["Hello"]`, `"MessageSystemAttributeNames":["ApproximateReceiveCount","ApproximateFirstReceiveTimestamp","Nonsense"]`)[0]
	checkDiff(t, "system attributes", map[string]string{"ApproximateReceiveCount": "2", "ApproximateFirstReceiveTimestamp": first}, again.Attributes)
	if again.ReceiptHandle == m.ReceiptHandle || again.MD5OfMessageAttributes != "a311262e065454b75da111d535b8dacd" {
		t.Errorf("received again %+v", again)
	}
	s.endLeases()
	if plain := s.sqsReceive("q", `"AttributeNames":[]`)[0]; plain.Attributes != nil || plain.MessageAttributes != nil || plain.MD5OfMessageAttributes != "" {
		t.Errorf("received without attributes %+v", plain)
	}
	checkDiff(t, "no messages", `{}`, s.sqs("ReceiveMessage", `{"QueueUrl":"q"}`).body)
}

// The trace header of a message is its system attribute or else a header of the request. It
// does not count as part of the message, and has a limit of its own.
func TestSQSTraceHeaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"MaximumMessageSize":"1024"`)
	attribute := func(value string) string {
		return `"MessageSystemAttributes":{"AWSTraceHeader":{"DataType":"String","StringValue":"` + value + `"}}`
	}
	send := func(action, body, header string) reply {
		t.Helper()
		return s.sqsSend("POST", "/", body, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS."+action, "X-Amzn-Trace-Id: "+header)
	}
	longest := strings.Repeat("x", 8<<10)
	tooLong := sqsProblemReply{400, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue", "Message system attribute 'AWSTraceHeader' must be shorter than 8192 bytes."}
	for _, v := range []struct {
		attribute, header string
		want              string // empty if the message has none
	}{
		{"", "", ""},
		{"", "Root=1-h;Sampled=1", "Root=1-h;Sampled=1"},
		{attribute("Root=1-a"), "", "Root=1-a"},
		{attribute("Root=1-a"), "Root=1-h", "Root=1-a"},
		{attribute(longest), longest + "x", longest},
		{"", longest, longest},
		{"", longest + "x", ""},
	} {
		body := `{"QueueUrl":"q","MessageBody":"x"}`
		if v.attribute != "" {
			body = `{"QueueUrl":"q","MessageBody":"x",` + v.attribute + `}`
		}
		if got := send("SendMessage", body, v.header); got.status != 200 {
			t.Fatalf("%.50q with the header %.50q = %d %s", v.attribute, v.header, got.status, got.body)
		}
		got := s.sqsReceive("q", `"MessageSystemAttributeNames":["AWSTraceHeader"]`)
		if len(got) != 1 || got[0].Attributes["AWSTraceHeader"] != v.want {
			t.Errorf("after %.50q with the header %.50q, %d messages were received, want one with %.50q", v.attribute, v.header, len(got), v.want)
		}
	}
	checkDiff(t, "too long", tooLong, s.sqsJSONProblem(send("SendMessage", `{"QueueUrl":"q","MessageBody":"x",`+attribute(longest+"x")+`}`, "")))
	checkDiff(t, "too long in a batch", `{"Successful":[{"Id":"b","MD5OfMessageBody":"`+sqsMD5("y")+`","MessageId":"UUID"}],"Failed":[{"Id":"a","SenderFault":true,"Code":"InvalidParameterValue","Message":"`+tooLong.Text+`"}]}`,
		maskSQS(&s.client, send("SendMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","MessageBody":"x",`+attribute(longest+"x")+`},{"Id":"b","MessageBody":"y"}]}`, "Root=1-h").body))
	got := s.sqsReceive("q", `"AttributeNames":["All"]`)
	if len(got) != 1 || got[0].Attributes["AWSTraceHeader"] != "Root=1-h" {
		t.Errorf("%d messages of the batch were received, want one with the header of the request", len(got))
	}
}

func TestSQSMessageInXML(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	got := s.sqsQuery("SendMessage", "QueueUrl=q", "MessageBody=<a>\r\n&", "MessageAttribute.1.Name=n", "MessageAttribute.1.Value.DataType=Number.int", "MessageAttribute.1.Value.StringValue=1",
		"MessageAttribute.2.Name=b", "MessageAttribute.2.Value.DataType=Binary", "MessageAttribute.2.Value.BinaryValue=AP8=")
	attributes := sqsAttributesMD5([]sqsMessageAttribute{{"b", "Binary", "\x00\xff"}, {"n", "Number.int", "1"}})
	checkDiff(t, "sent", xmlHead+`<SendMessageResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><SendMessageResult><MD5OfMessageBody>`+sqsMD5("<a>\r\n&")+
		`</MD5OfMessageBody><MD5OfMessageAttributes>`+attributes+`</MD5OfMessageAttributes><MessageId>UUID</MessageId></SendMessageResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></SendMessageResponse>`, maskSQS(&s.client, got.body))
	got = s.sqsQuery("ReceiveMessage", "QueueUrl=q", "AttributeName=ApproximateReceiveCount", "MessageAttributeName.1=All", "VisibilityTimeout=0")
	var v struct {
		Messages []struct {
			Body, ReceiptHandle string
		} `xml:"ReceiveMessageResult>Message"`
	}
	if err := xml.Unmarshal([]byte(got.body), &v); err != nil || len(v.Messages) != 1 {
		t.Fatalf("%v in %s", err, got.body)
	}
	checkDiff(t, "body", "<a>\r\n&", v.Messages[0].Body)
	checkDiff(t, "received", xmlHead+`<ReceiveMessageResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ReceiveMessageResult><Message><MessageId>UUID</MessageId><ReceiptHandle>HANDLE</ReceiptHandle><MD5OfBody>`+
		sqsMD5("<a>\r\n&")+`</MD5OfBody><Body>&lt;a&gt;&#13;`+"\n"+`&amp;</Body><Attribute><Name>ApproximateReceiveCount</Name><Value>1</Value></Attribute>`+
		`<MessageAttribute><Name>b</Name><Value><DataType>Binary</DataType><BinaryValue>AP8=</BinaryValue></Value></MessageAttribute>`+
		`<MessageAttribute><Name>n</Name><Value><DataType>Number.int</DataType><StringValue>1</StringValue></Value></MessageAttribute>`+
		`<MD5OfMessageAttributes>`+attributes+`</MD5OfMessageAttributes></Message></ReceiveMessageResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></ReceiveMessageResponse>`,
		maskSQS(&s.client, strings.Replace(got.body, v.Messages[0].ReceiptHandle, "HANDLE", 1)))
	checkDiff(t, "deleted", xmlHead+`<DeleteMessageResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></DeleteMessageResponse>`,
		maskSQS(&s.client, s.sqsQuery("DeleteMessage", "QueueUrl=q", "ReceiptHandle="+v.Messages[0].ReceiptHandle).body))
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
	checkDiff(t, "no messages", xmlHead+`<ReceiveMessageResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ReceiveMessageResult></ReceiveMessageResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></ReceiveMessageResponse>`,
		maskSQS(&s.client, s.sqsQuery("ReceiveMessage", "QueueUrl=q").body))
}

// Consumers of the native API see the texts of SQS, and the other way round.
func TestSQSAndNativeAPIShareMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"plain","MessageAttributes":{"n":{"DataType":"Number","StringValue":"01"},"b":{"DataType":"Binary","BinaryValue":"AA=="}}}`, nil)
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":" {\"n\": 1}"}`, nil)
	const extra = `,"sqs":{"types":{"b":"Binary","n":"Number"},"binary":{"b":"AA=="}}}`
	if peeked := s.must(200, "GET", "/queues/q/messages/peek", ""); strings.Count(peeked, extra) != 1 || strings.Count(peeked, "sqs") != 1 {
		t.Errorf("peek = %s, want %s once", peeked, extra)
	}
	if found := s.must(200, "GET", "/messages/"+s.idOf("q"), ""); !strings.HasSuffix(strings.TrimSpace(found), extra) {
		t.Errorf("lookup = %s, want %s", found, extra)
	}
	got := s.receive("q", "?limit=2")
	checkDiff(t, "data", `{"content_type":"text/plain; charset=utf-8","body":"plain"}`, string(got[0].Data))
	checkDiff(t, "attributes", `{"n":"01"}`, string(got[0].Attributes))
	checkDiff(t, "data", ` {"n": 1}`, " "+string(got[1].Data))
	s.must(204, "PUT", "/queues/q/purge", "")

	s.must(201, "POST", "/queues/q/messages", `{"data":{"x":  [1.0]},"attributes":{"a":"b"},"group":"a/b"}`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{"content_type":"x","body":"é\u0001"}}`)
	s.must(200, "POST", "/in/q", "\xff\xfe")
	var bodies []string
	all := s.sqsReceive("q", ten, `"MessageAttributeNames":["All"]`, `"AttributeNames":["MessageGroupId"]`)
	all = append(all, s.sqsReceive("q", ten, `"MessageAttributeNames":["All"]`, `"AttributeNames":["MessageGroupId"]`)...)
	for _, m := range all {
		bodies = append(bodies, m.Body)
		if m.MD5OfBody != sqsMD5(m.Body) {
			t.Errorf("the sum of %q is wrong", m.Body)
		}
		if strings.HasPrefix(m.Body, `{"x"`) && (m.MessageAttributes["a"].StringValue != "b" || m.Attributes["MessageGroupId"] != "a/b") {
			t.Errorf("received %+v", m)
		}
	}
	slices.Sort(bodies)
	checkDiff(t, "bodies", []string{`{"content_type":"","body_base64":"//4="}`, `{"x":  [1.0]}`, "é\x01"}, bodies)
}

func TestSQSSizeCountsBodyAndAttributes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("small", `"MaximumMessageSize":"1024"`)
	s.createSQS("q")
	tooLong := func(n int) sqsProblemReply {
		return sqsProblemReply{400, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue", fmt.Sprintf("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", n)}
	}
	send := func(queue, body, attributes string) reply {
		return s.sqs("SendMessage", `{"QueueUrl":"`+queue+`","MessageBody":"`+body+`","MessageAttributes":{`+attributes+`}}`)
	}
	const attribute = `"name":{"DataType":"Number","StringValue":"123"},"bin":{"DataType":"Binary","BinaryValue":"AAAA"}` // 4+6+3, and 3+6+3 bytes
	for _, v := range []struct {
		queue, body, attributes string
		limit                   int // 0 if it is sent
	}{
		{"small", strings.Repeat("x", 1024), "", 0},
		{"small", strings.Repeat("x", 1025), "", 1024},
		{"small", strings.Repeat("é", 512), "", 0},
		{"small", strings.Repeat("é", 513), "", 1024},
		{"small", strings.Repeat("x", 1024-25), attribute, 0},
		{"small", strings.Repeat("x", 1024-24), attribute, 1024},
		{"q", strings.Repeat("x", 1<<20), "", 0},
		{"q", strings.Repeat(`\u003c`, 1<<20), "", 0},
		{"q", strings.Repeat("x", 1<<20+1), "", 1 << 20},
	} {
		got := send(v.queue, v.body, v.attributes)
		if v.limit == 0 {
			checkDiff(t, "sent", 200, got.status)
		} else {
			checkDiff(t, "error", tooLong(v.limit), s.sqsJSONProblem(got))
		}
	}
	if got := s.sqsReceive("q", ten); len(got) != 2 || got[1].Body != strings.Repeat("<", 1<<20) {
		t.Errorf("received %d messages of 1 MiB", len(got))
	}

	half := strings.Repeat("x", 1<<19)
	entry := func(id, body string) string { return `{"Id":"` + id + `","MessageBody":"` + body + `"}` }
	checkDiff(t, "batch of 1 MiB", 200, s.sqs("SendMessageBatch", `{"QueueUrl":"q","Entries":[`+entry("a", half)+`,`+entry("b", half)+`]}`).status)
	checkDiff(t, "batch of more", sqsProblemReply{400, "com.amazonaws.sqs#BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong", "Batch requests cannot be longer than 1048576 bytes. You have sent 1048577 bytes."},
		s.sqsJSONProblem(s.sqs("SendMessageBatch", `{"QueueUrl":"q","Entries":[`+entry("a", half)+`,`+entry("b", half+"x")+`]}`)))
}

func TestSQSDelays(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"DelaySeconds":"900"`)
	s.sqsPublish("q", "queue's")
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"at-once","DelaySeconds":0}`, nil)
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"own","DelaySeconds":900}`, nil)
	checkDiff(t, "due", "at-once", bodiesOf(s.sqsReceive("q", ten)))
	checkDiff(t, "counts", `{"Attributes":{"ApproximateNumberOfMessages":"0","ApproximateNumberOfMessagesNotVisible":"1","ApproximateNumberOfMessagesDelayed":"2"}}`,
		s.sqsAttributesOf("q", "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"))
	s.makeDue()
	checkDiff(t, "later", 3, len(s.sqsReceive("q", ten)))
}

// As in AWS, a message whose delay is as long as the retention of its queue is accepted, and
// expires before it is visible.
func TestSQSDelayMayReachTheRetention(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"MessageRetentionPeriod":"60"`)
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"own","DelaySeconds":900}`, nil)
	s.mustSQS("SendMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"a","MessageBody":"own","DelaySeconds":60},{"Id":"b","MessageBody":"at-once"}]}`, nil)
	s.mustSQS("SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"DelaySeconds":"60"}}`, nil)
	s.sqsPublish("q", "queue's")
	checkDiff(t, "due", "at-once", bodiesOf(s.sqsReceive("q", ten, hid+"0")))
	s.exec("UPDATE queued.messages SET " + shift("scheduled_at", "-60 s") + ", " + shift("expired_at", "-60 s"))
	checkDiff(t, "received after the retention", "", bodiesOf(s.sqsReceive("q", ten)))
	checkDiff(t, "counts", `{"Attributes":{"ApproximateNumberOfMessages":"0","ApproximateNumberOfMessagesDelayed":"0"}}`,
		s.sqsAttributesOf("q", "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"))
	s.must(422, "POST", "/queues/q/messages", `{"data":{},"delay_seconds":60}`) // the native API refuses it
}

// The cases of the table of receipt handles for standard queues.
func TestSQSDeletesOnlyWhatItsReceiverHas(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	s.createSQS("other")
	remove := func(handle string) reply {
		return s.sqs("DeleteMessage", `{"QueueUrl":"q","ReceiptHandle":"`+handle+`"}`)
	}
	left := func() int { return s.count("SELECT count(*) FROM queued.messages") }

	s.sqsPublish("q", "a") // in its lease
	handle := s.sqsReceive("q")[0].ReceiptHandle
	checkDiff(t, "DeleteMessage", `{}`, remove(handle).body)
	checkDiff(t, "left", 0, left())
	checkDiff(t, "again", 200, remove(handle).status)

	s.sqsPublish("q", "b") // after a change of its visibility
	handle = s.sqsReceive("q")[0].ReceiptHandle
	s.mustSQS("ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"`+handle+`","VisibilityTimeout":600}`, nil)
	checkDiff(t, "DeleteMessage", 200, remove(handle).status)
	checkDiff(t, "left", 0, left())

	s.sqsPublish("q", "c") // after its lease, and no other receiver has it
	handle = s.sqsReceive("q", hid+"0")[0].ReceiptHandle
	checkDiff(t, "DeleteMessage", 200, remove(handle).status)
	checkDiff(t, "left", 0, left())

	s.sqsPublish("q", "d") // another receiver has it
	handle = s.sqsReceive("q", hid+"0")[0].ReceiptHandle
	second := s.sqsReceive("q")[0].ReceiptHandle
	checkDiff(t, "DeleteMessage", 200, remove(handle).status)
	checkDiff(t, "left", 1, left())
	wrong := sqsProblemReply{404, "com.amazonaws.sqs#ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", `The input receipt handle "` + second + `" is not a valid receipt handle.`}
	checkDiff(t, "handle of another queue", wrong, s.sqsJSONProblem(s.sqs("DeleteMessage", `{"QueueUrl":"other","ReceiptHandle":"`+second+`"}`)))
	checkDiff(t, "DeleteMessage", 200, remove(second).status)
	checkDiff(t, "left", 0, left())

	s.sqsPublish("q", "e") // of a queue that was deleted and created again
	handle = s.sqsReceive("q")[0].ReceiptHandle
	s.mustSQS("DeleteQueue", `{"QueueUrl":"q"}`, nil)
	s.createSQS("q")
	checkDiff(t, "handle of a deleted queue", "ReceiptHandleIsInvalid", s.sqsJSONProblem(remove(handle)).Code)
}

func TestSQSChangesVisibility(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	change := func(handle string, seconds int) reply {
		return s.sqs("ChangeMessageVisibility", fmt.Sprintf(`{"QueueUrl":"q","ReceiptHandle":%q,"VisibilityTimeout":%d}`, handle, seconds))
	}
	left := func() int { // seconds of the lease
		return s.count("SELECT round(extract(epoch FROM coalesce(lease_end, scheduled_at) - now()))::int FROM queued.messages")
	}
	refused := func(handle string) sqsProblemReply {
		return sqsProblemReply{400, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue",
			"Value " + handle + " for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change."}
	}
	near := func(what string, want, got int) {
		t.Helper()
		if got < want-testMargin || got > want+testMargin {
			t.Errorf("%s: %d s left, want %d", what, got, want)
		}
	}
	s.sqsPublish("q", "a")
	handle := s.sqsReceive("q", hid+"7000")[0].ReceiptHandle
	near("receive", 7000, left())
	checkDiff(t, "longer", `{}`, change(handle, 43200).body)
	near("longer", 43200, left())
	checkDiff(t, "shorter", 200, change(handle, 1000).status)
	near("shorter", 1000, left())

	checkDiff(t, "visible at once", 200, change(handle, 0).status)
	checkDiff(t, "again", 200, change(handle, 0).status) // nothing to do
	checkDiff(t, "hidden again", 200, change(handle, 2000).status)
	near("hidden again", 2000, left())
	checkDiff(t, "nothing due", "", bodiesOf(s.sqsReceive("q")))
	checkDiff(t, "visible at once", 200, change(handle, 0).status)
	second := s.sqsReceive("q")[0].ReceiptHandle
	checkDiff(t, "another receiver has it", refused(handle), s.sqsJSONProblem(change(handle, 10)))
	checkDiff(t, "another receiver has it", refused(handle), s.sqsJSONProblem(change(handle, 0)))
	near("of the other receiver", 30, left())
	s.mustSQS("DeleteMessage", `{"QueueUrl":"q","ReceiptHandle":"`+second+`"}`, nil)
	checkDiff(t, "deleted", refused(second), s.sqsJSONProblem(change(second, 10)))
	checkDiff(t, "too long", "InvalidParameterValue", s.sqsJSONProblem(change(second, 43201)).Code)
	checkDiff(t, "negative", "InvalidParameterValue", s.sqsJSONProblem(change(second, -1)).Code)
}

// testMargin is by how many seconds a lease may differ on a slow machine.
const testMargin = 60

func TestSQSReceiveHidesAsLongAsItAsks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"VisibilityTimeout":"0"`)
	s.sqsPublish("q", "a")
	for n := range 3 { // the queue's, and its own
		got := s.sqsReceive("q", `"AttributeNames":["ApproximateReceiveCount"]`)
		if len(got) != 1 || got[0].Attributes["ApproximateReceiveCount"] != fmt.Sprint(n+1) {
			t.Fatalf("receive %d = %+v", n, got)
		}
	}
	checkDiff(t, "own", "a", bodiesOf(s.sqsReceive("q", hid+"100")))
	checkDiff(t, "hidden", "", bodiesOf(s.sqsReceive("q")))
}

func TestSQSLongPolls(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"ReceiveMessageWaitTimeSeconds":"20"`)
	poll := func(parameters string) <-chan reply {
		result := make(chan reply, 1)
		go func() {
			v, err := s.trySQS(context.Background(), "POST", "/", `{"QueueUrl":"q"`+parameters+`}`, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS.ReceiveMessage")
			if err != nil {
				v.body = err.Error()
			}
			result <- v
		}()
		return result
	}
	checkDiff(t, "without a wait", `{}`, s.sqs("ReceiveMessage", `{"QueueUrl":"q","WaitTimeSeconds":0}`).body)
	waits := func(n int) { eventually(t, "receivers wait", func() bool { return s.engine.waiting()["q"] == n }) }
	first := poll(``) // the wait of the queue
	waits(1)
	second := poll(`,"WaitTimeSeconds":20,"VisibilityTimeout":100`)
	waits(2)
	s.sqsPublish("q", "a", "b")
	for _, v := range []<-chan reply{first, second} {
		got := <-v
		if got.status != 200 || !strings.Contains(got.body, `"Body":"`) {
			t.Errorf("long poll = %d %s", got.status, got.body)
		}
	}
	checkDiff(t, "leases", 1, s.count("SELECT count(*) FROM queued.messages WHERE coalesce(lease_end, scheduled_at) > now() + interval '45 s'"))

	// A message that is made visible wakes a receiver.
	s.mustSQS("PurgeQueue", `{"QueueUrl":"q"}`, nil)
	s.sqsPublish("q", "c")
	handle := s.sqsReceive("q", hid+"600")[0].ReceiptHandle
	third := poll(``)
	waits(1)
	s.mustSQS("ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"`+handle+`","VisibilityTimeout":0}`, nil)
	if got := <-third; !strings.Contains(got.body, `"Body":"c"`) {
		t.Errorf("long poll = %d %s", got.status, got.body)
	}

	// A queue that is deleted ends the wait.
	fourth := poll(``)
	waits(1)
	s.mustSQS("DeleteQueue", `{"QueueUrl":"q"}`, nil)
	checkDiff(t, "after the queue was deleted", "AWS.SimpleQueueService.NonExistentQueue", s.sqsJSONProblem(<-fourth).Code)
}

func TestSQSBatches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"MaximumMessageSize":"1024"`)
	got := s.sqs("SendMessageBatch", `{"QueueUrl":"q","Entries":[
		{"Id":"z","MessageBody":"first"},{"Id":"empty","MessageBody":""},{"Id":"large","MessageBody":"`+strings.Repeat("x", 1025)+`"},
		{"Id":"delay","MessageBody":"x","DelaySeconds":901},{"Id":"chars","MessageBody":"\ud800"},{"Id":"attribute","MessageBody":"x","MessageAttributes":{"a":{"DataType":"Number","StringValue":"x"}}},
		{"Id":"dedup","MessageBody":"x","MessageDeduplicationId":"d"},{"Id":"a","MessageBody":"second","MessageAttributes":{"Hello":{"DataType":"String","StringValue":"There"}}}]}`)
	checkDiff(t, "batch", `{"Successful":[{"Id":"z","MD5OfMessageBody":"`+sqsMD5("first")+`","MessageId":"UUID"},{"Id":"a","MD5OfMessageBody":"`+sqsMD5("second")+`","MD5OfMessageAttributes":"a311262e065454b75da111d535b8dacd","MessageId":"UUID"}],"Failed":[`+
		`{"Id":"empty","SenderFault":true,"Code":"MissingParameter","Message":"The request must contain the parameter MessageBody."},`+
		`{"Id":"large","SenderFault":true,"Code":"InvalidParameterValue","Message":"One or more parameters are invalid. Reason: Message must be shorter than 1024 bytes."},`+
		`{"Id":"delay","SenderFault":true,"Code":"InvalidParameterValue","Message":"Value 901 for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900."},`+
		`{"Id":"chars","SenderFault":true,"Code":"InvalidMessageContents","Message":"Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF"},`+
		`{"Id":"attribute","SenderFault":true,"Code":"InvalidParameterValue","Message":"Could not cast message attribute 'a' value to number."},`+
		`{"Id":"dedup","SenderFault":true,"Code":"InvalidParameterValue","Message":"Value d for parameter MessageDeduplicationId is invalid. Reason: The request include parameter that is not valid for this queue type."}]}`, maskSQS(&s.client, got.body))
	received := s.sqsReceive("q", ten)
	checkDiff(t, "received", "first second", bodiesOf(received))

	first, second := received[0].ReceiptHandle, received[1].ReceiptHandle
	got = s.sqs("ChangeMessageVisibilityBatch", `{"QueueUrl":"q","Entries":[{"Id":"1","ReceiptHandle":"`+first+`","VisibilityTimeout":600},{"Id":"2","ReceiptHandle":"x","VisibilityTimeout":1},
		{"Id":"3","ReceiptHandle":"`+second+`"},{"Id":"4","VisibilityTimeout":1},{"Id":"5","ReceiptHandle":"`+second+`","VisibilityTimeout":43201}]}`)
	checkDiff(t, "batch", `{"Successful":[{"Id":"1"}],"Failed":[`+
		`{"Id":"2","SenderFault":true,"Code":"ReceiptHandleIsInvalid","Message":"The input receipt handle \"x\" is not a valid receipt handle."},`+
		`{"Id":"3","SenderFault":true,"Code":"MissingParameter","Message":"The request must contain the parameter VisibilityTimeout."},`+
		`{"Id":"4","SenderFault":true,"Code":"MissingParameter","Message":"The request must contain the parameter ReceiptHandle."},`+
		`{"Id":"5","SenderFault":true,"Code":"InvalidParameterValue","Message":"Value 43201 for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200, if provided."}]}`, got.body)
	got = s.sqs("DeleteMessageBatch", `{"QueueUrl":"q","Entries":[{"Id":"`+strings.Repeat("x", 80)+`","ReceiptHandle":"`+first+`"},{"Id":"2"}]}`)
	checkDiff(t, "batch", `{"Successful":[{"Id":"`+strings.Repeat("x", 80)+`"}],"Failed":[{"Id":"2","SenderFault":true,"Code":"MissingParameter","Message":"The request must contain the parameter ReceiptHandle."}]}`, got.body)
	xmlGot := s.sqsQuery("DeleteMessageBatch", "QueueUrl=q", "DeleteMessageBatchRequestEntry.1.Id=a", "DeleteMessageBatchRequestEntry.1.ReceiptHandle="+second, "DeleteMessageBatchRequestEntry.2.Id=b")
	checkDiff(t, "batch in XML", xmlHead+`<DeleteMessageBatchResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><DeleteMessageBatchResult><DeleteMessageBatchResultEntry><Id>a</Id></DeleteMessageBatchResultEntry>`+
		`<BatchResultErrorEntry><Id>b</Id><SenderFault>true</SenderFault><Code>MissingParameter</Code><Message>The request must contain the parameter ReceiptHandle.</Message></BatchResultErrorEntry></DeleteMessageBatchResult>`+
		`<ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></DeleteMessageBatchResponse>`, maskSQS(&s.client, xmlGot.body))
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
}
