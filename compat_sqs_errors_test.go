package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// asParameters returns the parameters of the Query protocol for a body in JSON.
func asParameters(t *testing.T, action, body string) []string {
	t.Helper()
	var v map[string]any
	decoder := json.NewDecoder(strings.NewReader(body))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return flatten("", action, v)
}

func flatten(prefix, action string, v any) (all []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if list := (&sqsInput{action: action}).parameter(name); list != name {
				switch value := value.(type) {
				case []any:
					for i, item := range value {
						all = append(all, flatten(fmt.Sprintf("%s%s.%d", prefix, list, i+1), action, item)...)
					}
				case map[string]any:
					i := 0
					for key, item := range value {
						i++
						entry := fmt.Sprintf("%s%s.%d.", prefix, list, i)
						all = append(all, entry+sqsKey(name)+"="+key)
						all = append(all, flatten(entry+"Value", action, item)...)
					}
				}
				continue
			}
			all = append(all, flatten(strings.TrimSuffix(prefix, ".")+dot(prefix)+name, action, value)...)
		}
		slices.Sort(all)
		return all
	case []any:
		for i, item := range v {
			all = append(all, flatten(fmt.Sprintf("%s.%d", prefix, i+1), action, item)...)
		}
		return all
	}
	return []string{fmt.Sprintf("%s=%v", prefix, v)}
}

func dot(prefix string) string {
	if prefix == "" {
		return ""
	}
	return "."
}

// Each request fails in the same way in both protocols.
func TestSQSErrors(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q", `"DelaySeconds":"5"`)
	s.createSQS("f.fifo", `"FifoQueue":"true"`)
	const (
		sqsNS   = "com.amazonaws.sqs#"
		coral   = "com.amazon.coral.service#"
		batch   = "AWS.SimpleQueueService."
		noQueue = "The specified queue does not exist."
	)
	invalid := func(text string) sqsProblemReply {
		return sqsProblemReply{400, coral + "InvalidParameterValueException", "InvalidParameterValue", text}
	}
	missing := func(name string) sqsProblemReply {
		return sqsProblemReply{400, coral + "MissingRequiredParameterException", "MissingParameter", "The request must contain the parameter " + name + "."}
	}
	unknownQueue := sqsProblemReply{400, sqsNS + "QueueDoesNotExist", batch + "NonExistentQueue", noQueue}
	unknownAttribute := func(name string) sqsProblemReply {
		return sqsProblemReply{400, sqsNS + "InvalidAttributeName", "InvalidAttributeName", "Unknown Attribute " + name + "."}
	}
	badAttribute := func(text string) sqsProblemReply {
		return sqsProblemReply{400, sqsNS + "InvalidAttributeValue", "InvalidAttributeValue", text}
	}
	entries := func(n int, id func(i int) string) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`{"Id":%q,"MessageBody":"x","ReceiptHandle":"x","VisibilityTimeout":1}`, id(i)))
		}
		return `"Entries":[` + strings.Join(all, ",") + `]`
	}
	numbered := func(i int) string { return fmt.Sprint("id", i) }
	emptyBatch := func(action string) sqsProblemReply {
		return sqsProblemReply{400, sqsNS + "EmptyBatchRequest", batch + "EmptyBatchRequest", "There should be at least one " + action + "RequestEntry in the request."}
	}
	wrongType := "The request include parameter that is not valid for this queue type."
	const badName = "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"

	type row struct {
		action, body string
		want         sqsProblemReply
	}
	rows := []row{
		{"DeleteQueue", `{"QueueUrl":""}`, unknownQueue},
		{"DeleteQueue", `{}`, unknownQueue},
		{"DeleteQueue", `{"QueueUrl":"http://h/000000000000/none"}`, unknownQueue},
		{"GetQueueUrl", `{"QueueName":"none"}`, unknownQueue},
		{"GetQueueUrl", `{"QueueName":"a b"}`, unknownQueue},
		{"GetQueueUrl", `{}`, missing("QueueName")},
		{"GetQueueUrl", `{"QueueName":""}`, missing("QueueName")},
		{"Nonsense", `{"QueueUrl":"q"}`, sqsProblemReply{400, coral + "UnknownOperationException", "InvalidAction", "The action Nonsense is not valid for this endpoint."}},

		{"CreateQueue", `{}`, missing("QueueName")},
		{"CreateQueue", `{"QueueName":""}`, missing("QueueName")},
		{"CreateQueue", `{"QueueName":"a.b"}`, invalid(badName)},
		{"CreateQueue", `{"QueueName":"` + strings.Repeat("x", 81) + `"}`, invalid(badName)},
		{"CreateQueue", `{"QueueName":"g.fifo"}`, invalid(badName)},
		{"CreateQueue", `{"QueueName":"g","Attributes":{"FifoQueue":"true"}}`, invalid("The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length.")},
		{"CreateQueue", `{"QueueName":"g","Attributes":{"FifoQueue":"false"}}`, unknownAttribute("FifoQueue")},
		{"CreateQueue", `{"QueueName":"g","Attributes":{"ContentBasedDeduplication":"true"}}`, unknownAttribute("ContentBasedDeduplication")},
		{"CreateQueue", `{"QueueName":"g","Attributes":{"Nonsense":"1"}}`, unknownAttribute("Nonsense")},
		{"CreateQueue", `{"QueueName":"g","Attributes":{"QueueArn":"1"}}`, unknownAttribute("QueueArn")},
		{"CreateQueue", `{"QueueName":"g","Attributes":{"DelaySeconds":"901"}}`, badAttribute("Invalid value for the parameter DelaySeconds.")},
		{"CreateQueue", `{"QueueName":"q","Attributes":{"DelaySeconds":"6"}}`, sqsProblemReply{400, sqsNS + "QueueNameExists", "QueueAlreadyExists", "A queue already exists with the same name and a different value for attribute DelaySeconds"}},
		{"SetQueueAttributes", `{"QueueUrl":"q"}`, missing("Attributes")},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"Nonsense":"1"}}`, unknownAttribute("Nonsense")},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"FifoQueue":"true"}}`, badAttribute("Modifying queue type is not supported.")},
		{"SetQueueAttributes", `{"QueueUrl":"f.fifo","Attributes":{"FifoQueue":"false"}}`, badAttribute("Modifying queue type is not supported.")},
		{"SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:x:0:none\",\"maxReceiveCount\":1}"}}`,
			invalid(`Value {"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:none","maxReceiveCount":1} for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist.`)},
		{"GetQueueAttributes", `{"QueueUrl":"q","AttributeNames":["Nonsense"]}`, unknownAttribute("Nonsense")},
		{"GetQueueAttributes", `{"QueueUrl":"q","AttributeNames":["FifoQueue"]}`, unknownAttribute("FifoQueue")},
		{"GetQueueAttributes", `{"QueueUrl":"q","AttributeNames":["All","ContentBasedDeduplication"]}`, unknownAttribute("ContentBasedDeduplication")},
		{"ListQueues", `{"MaxResults":0}`, invalid("Value 0 for parameter MaxResults is invalid. Reason: Must be between 1 and 1000, if provided.")},
		{"ListQueues", `{"MaxResults":1001}`, invalid("Value 1001 for parameter MaxResults is invalid. Reason: Must be between 1 and 1000, if provided.")},
		{"ListQueues", `{"NextToken":"%"}`, invalid("Invalid or expired next token.")},
		{"ListDeadLetterSourceQueues", `{"QueueUrl":"q","NextToken":"x"}`, invalid("Invalid or expired next token.")},

		{"SendMessage", `{"QueueUrl":"none","MessageBody":"x"}`, unknownQueue},
		{"SendMessage", `{"QueueUrl":"q"}`, missing("MessageBody")},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":""}`, missing("MessageBody")},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"x","DelaySeconds":901}`, invalid("Value 901 for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900.")},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"x","DelaySeconds":99999999999999999999}`, invalid("Value 99999999999999999999 for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900.")},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"x","MessageDeduplicationId":"d"}`, invalid("Value d for parameter MessageDeduplicationId is invalid. Reason: " + wrongType)},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"x","MessageGroupId":"a b"}`, invalid("Value a b for parameter MessageGroupId is invalid. Reason: MessageGroupId can only include alphanumeric and punctuation characters. 1 to 128 in length.")},
		{"SendMessage", `{"QueueUrl":"f.fifo","MessageBody":"x","MessageDeduplicationId":"d"}`, missing("MessageGroupId")},
		{"SendMessage", `{"QueueUrl":"f.fifo","MessageBody":"x","MessageDeduplicationId":"d","MessageGroupId":""}`, missing("MessageGroupId")},
		{"SendMessage", `{"QueueUrl":"f.fifo","MessageBody":"x","MessageGroupId":"g"}`, invalid("The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")},
		{"SendMessage", `{"QueueUrl":"f.fifo","MessageBody":"x","MessageGroupId":"g","MessageDeduplicationId":"d","DelaySeconds":1}`, invalid("Value 1 for parameter DelaySeconds is invalid. Reason: " + wrongType)},
		{"SendMessage", `{"QueueUrl":"q","MessageBody":"x","MessageSystemAttributes":{"Other":{"DataType":"String","StringValue":"x"}}}`, invalid("Message system attribute name 'Other' is invalid.")},
		{"SendMessageBatch", `{"QueueUrl":"f.fifo","Entries":[{"Id":"a","MessageBody":"x","MessageGroupId":"g","MessageDeduplicationId":"d"},{"Id":"b","MessageBody":"x","MessageDeduplicationId":"d"}]}`, invalid("The request must contain the parameter MessageGroupId.")},
		{"SendMessageBatch", `{"QueueUrl":"f.fifo","Entries":[{"Id":"a","MessageBody":"x","MessageGroupId":"g","MessageDeduplicationId":"d"},{"Id":"b","MessageBody":"x","MessageGroupId":"g"}]}`, invalid("The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")},

		{"ReceiveMessage", `{"QueueUrl":"none"}`, unknownQueue},
		{"ReceiveMessage", `{"QueueUrl":"q","MaxNumberOfMessages":0}`, invalid("Value 0 for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and 10, if provided.")},
		{"ReceiveMessage", `{"QueueUrl":"q","MaxNumberOfMessages":11}`, invalid("Value 11 for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and 10, if provided.")},
		{"ReceiveMessage", `{"QueueUrl":"q","MaxNumberOfMessages":99999999999999999999}`, invalid("Value 99999999999999999999 for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and 10, if provided.")},
		{"ReceiveMessage", `{"QueueUrl":"q","VisibilityTimeout":-99999999999999999999}`, invalid("Value -99999999999999999999 for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200, if provided.")},
		{"ReceiveMessage", `{"QueueUrl":"q","VisibilityTimeout":43201}`, invalid("Value 43201 for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200, if provided.")},
		{"ReceiveMessage", `{"QueueUrl":"q","WaitTimeSeconds":21}`, invalid("Value 21 for parameter WaitTimeSeconds is invalid. Reason: Must be between 0 and 20, if provided.")},
		{"DeleteMessage", `{"QueueUrl":"q"}`, missing("ReceiptHandle")},
		{"DeleteMessage", `{"QueueUrl":"q","ReceiptHandle":"x"}`, sqsProblemReply{404, sqsNS + "ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", `The input receipt handle "x" is not a valid receipt handle.`}},
		{"DeleteMessage", `{"QueueUrl":"none","ReceiptHandle":"x"}`, unknownQueue},
		{"ChangeMessageVisibility", `{"QueueUrl":"q","VisibilityTimeout":1}`, missing("ReceiptHandle")},
		{"ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"` + sqsHandle(unknownID, receipt{queueKey: 1, attempts: 1}) + `"}`, missing("VisibilityTimeout")},
		{"ChangeMessageVisibility", `{"QueueUrl":"q","ReceiptHandle":"x","VisibilityTimeout":1}`, sqsProblemReply{404, sqsNS + "ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", `The input receipt handle "x" is not a valid receipt handle.`}},

		{"TagQueue", `{"QueueUrl":"q"}`, missing("Tags")},
		{"UntagQueue", `{"QueueUrl":"q","TagKeys":[]}`, missing("TagKeys")},
		{"AddPermission", `{"QueueUrl":"q","AWSAccountIds":["1"],"Actions":["*"]}`, missing("Label")},
		{"AddPermission", `{"QueueUrl":"q","Label":"l","Actions":["*"]}`, missing("AWSAccountIds")},
		{"AddPermission", `{"QueueUrl":"q","Label":"l","AWSAccountIds":["1"]}`, missing("Actions")},
		{"AddPermission", `{"QueueUrl":"q","Label":"l","AWSAccountIds":["1"],"Actions":["a","b","c","d","e","f","g","h"]}`, sqsProblemReply{403, sqsNS + "OverLimit", "OverLimit", "8 Actions were found, maximum allowed is 7."}},
		{"RemovePermission", `{"QueueUrl":"q","Label":"l"}`, invalid("Value l for parameter Label is invalid. Reason: can't find label on existing policy.")},
	}
	for _, action := range []string{"SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"} {
		rows = append(rows,
			row{action, `{"QueueUrl":"q","Entries":[]}`, emptyBatch(action)},
			row{action, `{"QueueUrl":"q"}`, emptyBatch(action)},
			row{action, `{"QueueUrl":"q",` + entries(11, numbered) + `}`, sqsProblemReply{400, sqsNS + "TooManyEntriesInBatchRequest", batch + "TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10. You have sent 11."}},
			row{action, `{"QueueUrl":"q",` + entries(4, func(i int) string { return []string{"b", "a", "a", "b"}[i] }) + `}`, sqsProblemReply{400, sqsNS + "BatchEntryIdsNotDistinct", batch + "BatchEntryIdsNotDistinct", "Id a repeated."}},
			row{action, `{"QueueUrl":"q",` + entries(2, func(i int) string { return []string{"a", "b."}[i] }) + `}`, sqsProblemReply{400, sqsNS + "InvalidBatchEntryId", batch + "InvalidBatchEntryId", "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long."}},
			row{action, `{"QueueUrl":"q",` + entries(2, func(i int) string { return strings.Repeat("x", i*81) }) + `}`, sqsProblemReply{400, sqsNS + "InvalidBatchEntryId", batch + "InvalidBatchEntryId", "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long."}},
		)
	}
	before := s.state()
	for _, v := range rows {
		if got := s.sqsJSONProblem(s.sqs(v.action, v.body)); got != v.want {
			t.Errorf("%s %s\n got %+v\nwant %+v", v.action, v.body, got, v.want)
		}
		v.want.Type = ""
		if v.want.Text == noQueue {
			v.want.Text = "The specified queue does not exist for this wsdl version."
		}
		parameters := asParameters(t, v.action, v.body)
		if got := s.sqsXMLProblem(s.sqsQuery(v.action, parameters...)); got != v.want {
			t.Errorf("%s %q\n got %+v\nwant %+v", v.action, parameters, got, v.want)
		}
	}
	checkDiff(t, "state after requests that failed", before, s.state())
	checkDiff(t, "without a target", sqsProblemReply{400, coral + "UnknownOperationException", "InvalidAction", "The action  is not valid for this endpoint."},
		s.sqsJSONProblem(s.sqsSend("POST", "/", "{}", "Content-Type: application/x-amz-json-1.0")))
	checkDiff(t, "with the target of another service", sqsProblemReply{400, coral + "UnknownOperationException", "InvalidAction", "The action DynamoDB_20120810.ListTables is not valid for this endpoint."},
		s.sqsJSONProblem(s.sqsSend("POST", "/", "{}", "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: DynamoDB_20120810.ListTables")))
	checkDiff(t, "with a target without a service", sqsProblemReply{400, coral + "UnknownOperationException", "InvalidAction", "The action ListQueues is not valid for this endpoint."},
		s.sqsJSONProblem(s.sqsSend("POST", "/", "{}", "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: ListQueues")))
}

// An error quotes only the beginning of what a client has sent.
func TestSQSErrorsQuoteALittle(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	const kept = 4096
	long := strings.Repeat("é", 1<<19)
	for _, parameters := range [][]string{
		{"DeleteMessage", "ReceiptHandle="}, {"SendMessage", "MessageBody=x", "MessageGroupId="}, {"AddPermission", "AWSAccountId=1", "ActionName=*", "Label="},
		{"SendMessage", "MessageBody=x", "MessageAttribute.Value.DataType=x", "MessageAttribute.Name="}, {"GetQueueAttributes", "AttributeName="},
		{"SetQueueAttributes", "Attribute.Name=RedrivePolicy", "Attribute.Value="}, {"ReceiveMessage", "WaitTimeSeconds="}, {long},
	} {
		action, parameters := parameters[0], append(parameters[1:], "QueueUrl=q")
		if n := len(parameters); n > 1 {
			parameters[n-2] += strings.ReplaceAll(long, "é", map[bool]string{false: "é\x80", true: "11"}[action == "ReceiveMessage"])
		}
		got := s.sqsQuery(action, parameters...)
		if got.status < 400 || got.status >= 500 || len(got.body) > 2*kept {
			t.Errorf("%.20s %.20q = %d with %d bytes, %.200s", action, parameters, got.status, len(got.body), got.body)
		}
	}
}

// Characters that XML does not have are refused in bodies, also lone surrogates, which Go's
// decoder would replace.
func TestSQSBodiesHaveCharactersOfXML(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	contents := sqsProblemReply{400, "com.amazonaws.sqs#InvalidMessageContents", "InvalidMessageContents", "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF"}
	for _, text := range []string{`\u0000`, `\u0008`, `\u000b`, `\u000c`, `\u000e`, `\u001f`, `\ufffe`, `\uffff`, `\ud800`, `\udfff`, `\ude00\ud83d`, `\ud83d \ude00`} {
		if got := s.sqsJSONProblem(s.sqs("SendMessage", `{"QueueUrl":"q","MessageBody":"a`+text+`b"}`)); got != contents {
			t.Errorf("%s = %+v", text, got)
		}
	}
	contents.Type = ""
	for _, text := range []string{"\x00", "\x0b", "\x1f", "\xff", "\xed\xa0\x80", "\uffff"} {
		if got := s.sqsXMLProblem(s.sqsQuery("SendMessage", "QueueUrl=q", "MessageBody=a"+text+"b")); got != contents {
			t.Errorf("%q = %+v", text, got)
		}
	}
	for _, text := range []string{`\u0009\u000a\u000d `, `\ud7ff\ue000\ufffd\ud83d\ude00`, `\u007f\u0085\u2028`, `\\ud800`} {
		body := json.RawMessage(`"` + text + `"`)
		var sent string
		mustDecode(t, string(body), &sent)
		s.mustSQS("SendMessage", fmt.Sprintf(`{"QueueUrl":"q","MessageBody":%s}`, body), nil)
		var v struct {
			Messages []struct{ Body, MD5OfBody string }
		}
		s.mustSQS("ReceiveMessage", `{"QueueUrl":"q"}`, &v)
		if len(v.Messages) != 1 || v.Messages[0].Body != sent || v.Messages[0].MD5OfBody != sqsMD5(sent) {
			t.Errorf("%q was received as %q", sent, v.Messages)
		}
	}
}
