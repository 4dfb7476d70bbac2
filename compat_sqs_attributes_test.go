package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// sqsAttributesOf returns the attributes of a queue with these names, as text in JSON.
func (s *client) sqsAttributesOf(queueURL string, names ...string) string {
	s.t.Helper()
	v := s.sqs("GetQueueAttributes", fmt.Sprintf(`{"QueueUrl":%q,"AttributeNames":["%s"]}`, queueURL, strings.Join(names, `","`)))
	if v.status != 200 {
		s.t.Fatalf("GetQueueAttributes of %s = %d %s", queueURL, v.status, v.body)
	}
	return v.body
}

func TestSQSQueueHasAttributes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("q")
	created := fmt.Sprint(s.count("SELECT floor(extract(epoch FROM created_at))::bigint FROM queued.queues WHERE id = 'q'"))
	const defaults = `"VisibilityTimeout":"30","DelaySeconds":"0","MessageRetentionPeriod":"345600","ReceiveMessageWaitTimeSeconds":"0","MaximumMessageSize":"1048576"`
	rest := `"SqsManagedSseEnabled":"true","QueueArn":"arn:aws:sqs:us-east-1:000000000000:NAME","CreatedTimestamp":"` + created + `","LastModifiedTimestamp":"` + created + `",` +
		`"ApproximateNumberOfMessages":"0","ApproximateNumberOfMessagesNotVisible":"0","ApproximateNumberOfMessagesDelayed":"0"`
	checkDiff(t, "all attributes", `{"Attributes":{`+defaults+`,`+strings.ReplaceAll(rest, "NAME", "q")+`}}`, s.sqsAttributesOf(q, "All"))
	s.exec("UPDATE queued.queues SET created_at = to_timestamp($1), updated_at = to_timestamp($1)", created)
	f := s.createSQS("f.fifo", `"FifoQueue":"true"`)
	s.exec("UPDATE queued.queues SET created_at = to_timestamp($1), updated_at = to_timestamp($1)", created)
	checkDiff(t, "all attributes of a FIFO queue", `{"Attributes":{`+defaults+`,"FifoQueue":"true","ContentBasedDeduplication":"false","DeduplicationScope":"queue","FifoThroughputLimit":"perQueue",`+
		strings.ReplaceAll(rest, "NAME", "f.fifo")+`}}`, s.sqsAttributesOf(f, "All"))

	checkDiff(t, "two attributes", `{"Attributes":{"DelaySeconds":"0","QueueArn":"arn:aws:sqs:us-east-1:000000000000:q"}}`, s.sqsAttributesOf(q, "QueueArn", "DelaySeconds", "Policy", "RedrivePolicy"))
	checkDiff(t, "no attributes", `{}`, s.sqs("GetQueueAttributes", `{"QueueUrl":"q"}`).body)
	checkDiff(t, "no attributes", `{}`, s.sqs("GetQueueAttributes", `{"QueueUrl":"q","AttributeNames":[]}`).body)
	checkDiff(t, "attributes that are not set", `{}`, s.sqsAttributesOf(q, "RedriveAllowPolicy", "KmsMasterKeyId"))

	region := s.sqsSend("POST", "/", `{"QueueUrl":"q","AttributeNames":["QueueArn"]}`, "Content-Type: application/x-amz-json-1.0", "X-Amz-Target: AmazonSQS.GetQueueAttributes",
		"Authorization: AWS4-HMAC-SHA256 Credential=x/20261126/eu-west-3/sqs/aws4_request, SignedHeaders=host, Signature=00")
	checkDiff(t, "ARN in the region of the client", `{"Attributes":{"QueueArn":"arn:aws:sqs:eu-west-3:000000000000:q"}}`, region.body)
}

func TestSQSAttributesAreSet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("q")
	f := s.createSQS("f.fifo", `"FifoQueue":"true"`)
	s.createSQS("dead")
	const bad = "" // the value is refused
	policy := `{ "Version":"2012-10-17","Statement":[] }`
	long := strings.Repeat("9", 30)
	for _, v := range []struct {
		queue, name, value string
		want               string
	}{
		{q, "VisibilityTimeout", "0", "0"}, {q, "VisibilityTimeout", "43200", "43200"}, {q, "VisibilityTimeout", "007", "7"},
		{q, "VisibilityTimeout", "43201", bad}, {q, "VisibilityTimeout", "-1", bad}, {q, "VisibilityTimeout", "x", bad}, {q, "VisibilityTimeout", "", bad}, {q, "VisibilityTimeout", "1.5", bad}, {q, "VisibilityTimeout", long, bad},
		{q, "DelaySeconds", "900", "900"}, {q, "DelaySeconds", "0", "0"}, {q, "DelaySeconds", "901", bad}, {q, "DelaySeconds", "-1", bad},
		{q, "MessageRetentionPeriod", "60", "60"}, {q, "MessageRetentionPeriod", "1209600", "1209600"}, {q, "MessageRetentionPeriod", "59", bad}, {q, "MessageRetentionPeriod", "1209601", bad},
		{q, "ReceiveMessageWaitTimeSeconds", "20", "20"}, {q, "ReceiveMessageWaitTimeSeconds", "0", "0"}, {q, "ReceiveMessageWaitTimeSeconds", "21", bad}, {q, "ReceiveMessageWaitTimeSeconds", "-1", bad},
		{q, "MaximumMessageSize", "1024", "1024"}, {q, "MaximumMessageSize", "1048576", "1048576"}, {q, "MaximumMessageSize", "1023", bad}, {q, "MaximumMessageSize", "1048577", bad},
		{q, "Policy", policy, policy}, {q, "Policy", "x", bad}, {q, "Policy", "[]", bad}, {q, "Policy", `{"a":"` + strings.Repeat("x", 64<<10) + `"}`, bad},
		{q, "KmsMasterKeyId", "alias/aws/sqs", "alias/aws/sqs"}, {q, "KmsDataKeyReusePeriodSeconds", "0300", "300"}, {q, "KmsDataKeyReusePeriodSeconds", "59", bad}, {q, "KmsDataKeyReusePeriodSeconds", "x", bad},
		{q, "SqsManagedSseEnabled", "false", "false"}, {q, "SqsManagedSseEnabled", "TRUE", "true"}, {q, "SqsManagedSseEnabled", "1", bad}, {q, "SqsManagedSseEnabled", "", bad},
		{q, "RedriveAllowPolicy", `{"redrivePermission":"denyAll"}`, `{"redrivePermission":"denyAll"}`},
		{q, "RedriveAllowPolicy", `{"redrivePermission":"byQueue","sourceQueueArns":["arn:aws:sqs:x:1:a"]}`, `{"redrivePermission":"byQueue","sourceQueueArns":["arn:aws:sqs:x:1:a"]}`},
		{q, "RedrivePolicy", `{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:123456789012:dead","maxReceiveCount":"1000"}`, `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":1000}`},
		{q, "RedrivePolicy", ` {"maxReceiveCount":1,"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead"}`, `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":1}`},
		{f, "ContentBasedDeduplication", "true", "true"}, {f, "ContentBasedDeduplication", "false", "false"}, {f, "ContentBasedDeduplication", "x", bad},
		{f, "DeduplicationScope", "messageGroup", "messageGroup"}, {f, "DeduplicationScope", "queue", "queue"}, {f, "DeduplicationScope", "x", bad},
		{f, "FifoThroughputLimit", "perMessageGroupId", "perMessageGroupId"}, {f, "FifoThroughputLimit", "x", bad},
		{f, "FifoQueue", "true", "true"},
	} {
		before := s.sqsAttributesOf(v.queue, v.name)
		got := s.sqs("SetQueueAttributes", fmt.Sprintf(`{"QueueUrl":%q,"Attributes":{%q:%q}}`, v.queue, v.name, v.value))
		after := s.sqsAttributesOf(v.queue, v.name)
		if v.want == bad {
			if want := (sqsProblemReply{400, "com.amazonaws.sqs#InvalidAttributeValue", "InvalidAttributeValue", "Invalid value for the parameter " + v.name + "."}); s.sqsJSONProblem(got) != want || after != before {
				t.Errorf("%s %q = %d %s, and now %s", v.name, v.value, got.status, got.body, after)
			}
			continue
		}
		want := string(sqsObject{{"Attributes", sqsMap{{v.name, v.want}}}}.appendJSON(nil))
		if got.status != 200 || got.body != "{}" || after != want {
			t.Errorf("%s %q = %d %s, and now %s, want %s", v.name, v.value, got.status, got.body, after, want)
		}
	}
	for _, name := range []string{"RedrivePolicy", "RedriveAllowPolicy", "Policy", "KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds"} {
		s.mustSQS("SetQueueAttributes", fmt.Sprintf(`{"QueueUrl":%q,"Attributes":{%q:""}}`, q, name), nil)
		checkDiff(t, name+" after an empty value", `{}`, s.sqsAttributesOf(q, name))
	}
	// All or none.
	before := s.sqsAttributesOf(q, "All")
	if got := s.sqs("SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"VisibilityTimeout":"77","DelaySeconds":"901"}}`); got.status != 400 {
		t.Errorf("one bad attribute of two = %d", got.status)
	}
	checkDiff(t, "attributes", before, s.sqsAttributesOf(q, "All"))
}

func TestSQSChecksPoliciesForDeadQueues(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("q")
	s.createSQS("f.fifo", `"FifoQueue":"true"`)
	s.createSQS("dead")
	s.createSQS("dead.fifo", `"FifoQueue":"true"`)
	for name, allow := range map[string]string{
		"allows":  `{\"redrivePermission\":\"allowAll\"}`,
		"denies":  `{\"redrivePermission\":\"denyAll\"}`,
		"for-q":   `{\"redrivePermission\":\"byQueue\",\"sourceQueueArns\":[\"arn:aws:sqs:us-east-1:000000000000:q\"]}`,
		"not-for": `{\"redrivePermission\":\"byQueue\",\"sourceQueueArns\":[\"arn:aws:sqs:us-east-1:000000000000:x\"]}`,
	} {
		s.createSQS(name, `"RedriveAllowPolicy":"`+allow+`"`)
	}
	policy := func(name, count string) string {
		return `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:` + name + `","maxReceiveCount":` + count + `}`
	}
	for _, v := range []struct {
		queue, attribute, value string
		valid                   bool
	}{
		{"q", "RedrivePolicy", policy("dead", "3"), true},
		{"q", "RedrivePolicy", policy("allows", `"3"`), true},
		{"q", "RedrivePolicy", policy("for-q", "3"), true},
		{"f.fifo", "RedrivePolicy", policy("dead.fifo", "3"), true},
		{"q", "RedrivePolicy", policy("denies", "3"), false},
		{"q", "RedrivePolicy", policy("not-for", "3"), false},
		{"q", "RedrivePolicy", policy("none", "3"), false},
		{"q", "RedrivePolicy", policy("dead.fifo", "3"), false},
		{"f.fifo", "RedrivePolicy", policy("dead", "3"), false},
		{"q", "RedrivePolicy", policy("dead", "0"), false},
		{"q", "RedrivePolicy", policy("dead", "1001"), false},
		{"q", "RedrivePolicy", policy("dead", `"x"`), false},
		{"q", "RedrivePolicy", policy("dead", "null"), false},
		{"q", "RedrivePolicy", policy("dead", "{}"), false},
		{"q", "RedrivePolicy", `{"deadLetterTargetArn":"dead","maxReceiveCount":1}`, false},
		{"q", "RedrivePolicy", `{"deadLetterTargetArn":1,"maxReceiveCount":1}`, false},
		{"q", "RedrivePolicy", `{"maxReceiveCount":1}`, false},
		{"q", "RedrivePolicy", `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead"}`, false},
		{"q", "RedrivePolicy", `[]`, false},
		{"q", "RedrivePolicy", `x`, false},
		{"q", "RedriveAllowPolicy", `{"redrivePermission":"allowAll"}`, true},
		{"q", "RedriveAllowPolicy", `{"redrivePermission":"allowAll","sourceQueueArns":["arn:aws:sqs:x:1:a"]}`, false},
		{"q", "RedriveAllowPolicy", `{"redrivePermission":"byQueue"}`, false},
		{"q", "RedriveAllowPolicy", `{"redrivePermission":"byQueue","sourceQueueArns":[` + strings.Repeat(`"arn:aws:sqs:x:1:a",`, 10) + `"arn:aws:sqs:x:1:a"]}`, false},
		{"q", "RedriveAllowPolicy", `{"redrivePermission":"x"}`, false},
		{"q", "RedriveAllowPolicy", `{}`, false},
		{"q", "RedriveAllowPolicy", `x`, false},
	} {
		got := s.sqs("SetQueueAttributes", fmt.Sprintf(`{"QueueUrl":%q,"Attributes":{%q:%q}}`, v.queue, v.attribute, v.value))
		switch {
		case v.valid && got.status != 200:
			t.Errorf("%s of %s %s = %d %s", v.attribute, v.queue, v.value, got.status, got.body)
		case !v.valid && s.sqsJSONProblem(got).Code != "InvalidParameterValue":
			t.Errorf("%s of %s %s = %d %s, want InvalidParameterValue", v.attribute, v.queue, v.value, got.status, got.body)
		}
	}
	// The policy of a dead queue is asked only when a source sets its own.
	s.mustSQS("SetQueueAttributes", `{"QueueUrl":"for-q","Attributes":{"RedriveAllowPolicy":"{\"redrivePermission\":\"denyAll\"}"}}`, nil)
	s.mustSQS("SetQueueAttributes", fmt.Sprintf(`{"QueueUrl":%q,"Attributes":{"DelaySeconds":"1"}}`, q), nil)
	checkDiff(t, "policy", `{"Attributes":{"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:for-q\",\"maxReceiveCount\":3}"}}`, s.sqsAttributesOf(q, "RedrivePolicy"))
}

// CreateQueue of a queue that exists compares the given attributes by their values.
func TestSQSCreateQueueComparesAttributes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("dead")
	policy := `"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:dead\",\"maxReceiveCount\":3}"`
	q := s.createSQS("q", `"VisibilityTimeout":"5"`, policy, `"Policy":"{\"a\": 1, \"b\":2}"`, `"KmsDataKeyReusePeriodSeconds":"300"`)
	f := s.createSQS("f.fifo", `"FifoQueue":"true"`, `"DeduplicationScope":"messageGroup"`)
	for _, attributes := range []string{
		``, `"VisibilityTimeout":"5"`, `"VisibilityTimeout":"05"`, `"DelaySeconds":"0"`, `"SqsManagedSseEnabled":"true"`, `"MaximumMessageSize":"1048576"`,
		strings.Replace(policy, "3}", `\"3\"}`, 1), `"Policy":"{\"b\":2,\"a\":1}"`, `"KmsDataKeyReusePeriodSeconds":"0300"`,
	} {
		checkDiff(t, "URL with "+attributes, q, s.createSQS("q", attributes))
	}
	checkDiff(t, "URL with other tags", q, func() string {
		var v struct{ QueueUrl string }
		s.mustSQS("CreateQueue", `{"QueueName":"q","tags":{"a":"b"}}`, &v)
		return v.QueueUrl
	}())
	checkDiff(t, "URL", f, s.createSQS("f.fifo", `"FifoQueue":"true"`))
	for attributes, want := range map[string]string{
		`"VisibilityTimeout":"6"`:              "VisibilityTimeout",
		`"DelaySeconds":"1"`:                   "DelaySeconds",
		`"MaximumMessageSize":"1024"`:          "MaximumMessageSize",
		`"RedrivePolicy":""`:                   "RedrivePolicy",
		`"Policy":"{\"a\":1}"`:                 "Policy",
		strings.Replace(policy, "3}", "4}", 1): "RedrivePolicy",
	} {
		got := s.sqsJSONProblem(s.sqs("CreateQueue", `{"QueueName":"q","Attributes":{`+attributes+`}}`))
		checkDiff(t, "with "+attributes, sqsProblemReply{400, "com.amazonaws.sqs#QueueNameExists", "QueueAlreadyExists", "A queue already exists with the same name and a different value for attribute " + want}, got)
	}
	checkDiff(t, "attribute", `{"Attributes":{"VisibilityTimeout":"5"}}`, s.sqsAttributesOf(q, "VisibilityTimeout"))
}

// Queues of the native API are queues of SQS, and the other way round.
func TestSQSAndNativeAPIShareQueues(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("dead")
	s.mustQueue("native.q", `"message_max_deliveries":7`, `"dead_queue_id":"dead"`, `"delivery_delay_seconds":9`)
	checkDiff(t, "attributes", `{"Attributes":{"VisibilityTimeout":"60","DelaySeconds":"9","RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:dead\",\"maxReceiveCount\":7}"}}`,
		s.sqsAttributesOf("native.q", "VisibilityTimeout", "DelaySeconds", "RedrivePolicy"))
	s.createSQS("q", `"VisibilityTimeout":"0"`, `"MaximumMessageSize":"2048"`, `"MessageRetentionPeriod":"60"`)
	body := s.must(200, "GET", "/queues/q", "")
	if !strings.Contains(body, `"ack_deadline_seconds":0`) || strings.Contains(body, "2048") {
		t.Errorf("native queue = %s", body)
	}
	s.must(200, "PUT", "/queues/q", `{"ack_deadline_seconds":0,"message_retention_seconds":60}`) // unchanged values
	s.must(200, "PUT", "/queues/q", `{"ack_deadline_seconds":44,"message_retention_seconds":700}`)
	checkDiff(t, "attributes", `{"Attributes":{"VisibilityTimeout":"44","MessageRetentionPeriod":"700","MaximumMessageSize":"2048"}}`,
		s.sqsAttributesOf("q", "VisibilityTimeout", "MessageRetentionPeriod", "MaximumMessageSize"))
}

// A native update that does not name what SQS's API has set keeps it, and so does a topology
// file. A FIFO queue stays one.
func TestNativeUpdateKeepsAttributesOfSQS(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("x.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`, `"MaximumMessageSize":"2048"`, `"Policy":"{\"a\":1}"`)
	s.mustSQS("TagQueue", `{"QueueUrl":"x.fifo","Tags":{"a":"b"}}`, nil)
	const kept = `{"Attributes":{"MaximumMessageSize":"2048","FifoQueue":"true","ContentBasedDeduplication":"true","Policy":"{\"a\":1}"}}`
	check := func(after string) {
		t.Helper()
		checkDiff(t, "attributes after "+after, kept, s.sqsAttributesOf(q, "FifoQueue", "ContentBasedDeduplication", "MaximumMessageSize", "Policy"))
		checkDiff(t, "tags after "+after, `{"Tags":{"a":"b"}}`, s.sqs("ListQueueTags", `{"QueueUrl":"x.fifo"}`).body)
		checkDiff(t, "deduplication window after "+after, 300, s.count("SELECT deduplication_window_seconds FROM queued.queues WHERE id = 'x.fifo'"))
	}
	const settings = `"ack_deadline_seconds":44,"message_retention_seconds":700`
	s.must(200, "PUT", "/queues/x.fifo", `{`+settings+`}`)
	check("a native update")
	s.must(204, "PUT", "/queues/x.fifo/pause", "")
	s.must(204, "PUT", "/queues/x.fifo/resume", "")
	check("a pause")
	file, err := readTopology(mustWriteTopology(t, `{"queues":[{"id":"x.fifo","ack_deadline_seconds":45,"message_retention_seconds":700}]}`), &s.server.limits)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	for range 2 { // the second time it does not differ
		if err := file.apply(context.Background(), s.store, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
			t.Fatal(err)
		}
		check("a topology file")
	}
	checkDiff(t, "changes in the log", 1, strings.Count(log.String(), "queue changed"))
}

// As in AWS, a queue may be its own dead-letter queue. A message then returns to it with a
// receive count that starts anew.
func TestSQSQueueCanBeItsOwnDeadQueue(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"q", "q.fifo"} {
		s := newTestServer(t)
		attributes, message := []string(nil), `{"QueueUrl":"q","MessageBody":"a"}`
		if name == "q.fifo" {
			attributes, message = []string{`"FifoQueue":"true"`}, `{"QueueUrl":"q.fifo","MessageBody":"a","MessageGroupId":"g","MessageDeduplicationId":"d"}`
		}
		s.createSQS(name, attributes...)
		s.mustSQS("SetQueueAttributes", `{"QueueUrl":"`+name+`","Attributes":{"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:`+name+`\",\"maxReceiveCount\":1}"}}`, nil)
		s.mustSQS("SendMessage", message, nil)
		for range 2 {
			got := s.sqsReceive(name, `"AttributeNames":["ApproximateReceiveCount"]`)
			if len(got) != 1 || got[0].Attributes["ApproximateReceiveCount"] != "1" {
				t.Fatalf("received %+v", got)
			}
			s.endLeases()
			s.mustCleanUp()
			s.makeGroupsReady()
		}
		s.startSQSTask(`"SourceArn":"` + sqsARNs + name + `"`)
		for range 3 {
			mustMove(t, s.newMover())
		}
		checkDiff(t, "task", `{"Results":[{"Status":"COMPLETED","SourceArn":"`+sqsARNs+name+`","ApproximateNumberOfMessagesMoved":1,"ApproximateNumberOfMessagesToMove":1,"StartedTimestamp":MS}]}`, s.sqsTasks(`{"SourceArn":"`+sqsARNs+name+`"}`))
		s.makeGroupsReady()
		got := s.sqsReceive(name, `"AttributeNames":["DeadLetterQueueSourceArn"]`)
		if len(got) != 1 || got[0].Attributes["DeadLetterQueueSourceArn"] != "" {
			t.Errorf("received after the task: %+v", got)
		}
	}
}

func TestSQSListsQueues(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	checkDiff(t, "no queues", `{}`, s.sqs("ListQueues", `{}`).body)
	checkDiff(t, "no queues", xmlHead+`<ListQueuesResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ListQueuesResult></ListQueuesResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></ListQueuesResponse>`, maskSQS(&s.client, s.sqsQuery("ListQueues").body))
	for _, name := range []string{"b-2", "a", "b-1", "B", "b_", "b.fifo"} {
		if strings.HasSuffix(name, ".fifo") {
			s.createSQS(name, `"FifoQueue":"true"`)
		} else {
			s.createSQS(name)
		}
	}
	list := func(body string) string {
		t.Helper()
		var names []string
		for {
			var v struct {
				QueueUrls []string
				NextToken string
			}
			s.mustSQS("ListQueues", body, &v)
			for _, u := range v.QueueUrls {
				names = append(names, sqsNameOf(u))
			}
			if v.NextToken == "" {
				return strings.Join(names, " ")
			}
			names = append(names, "|")
			body = body[:len(body)-1] + `,"NextToken":"` + v.NextToken + `"}`
			body = strings.Replace(body, `{,`, `{`, 1)
		}
	}
	all := list(`{}`)
	if len(strings.Fields(all)) != 6 {
		t.Errorf("all queues: %s", all)
	}
	checkDiff(t, "pages of two", 2, strings.Count(list(`{"MaxResults":2}`), "|"))
	checkDiff(t, "in pages", all, strings.ReplaceAll(list(`{"MaxResults":2}`), "| ", ""))
	checkDiff(t, "with a prefix", "b-1 b-2", list(`{"QueueNamePrefix":"b-"}`))
	checkDiff(t, "with the prefix %", "", list(`{"QueueNamePrefix":"%"}`))
	checkDiff(t, "with the prefix b_", "b_", list(`{"QueueNamePrefix":"b_"}`))
	checkDiff(t, "with a prefix that is no text", "", list(`{"QueueNamePrefix":"\ud800\u0000"}`))
	checkDiff(t, "with an empty prefix", all, list(`{"QueueNamePrefix":""}`))

	s.createSQS("dead")
	for _, name := range []string{"a", "b-1", "b-2"} {
		s.mustSQS("SetQueueAttributes", `{"QueueUrl":"`+name+`","Attributes":{"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:dead\",\"maxReceiveCount\":3}"}}`, nil)
	}
	checkDiff(t, "sources", `{"queueUrls":["http://HOST/000000000000/a","http://HOST/000000000000/b-1"],"NextToken":"`+sqsToken("b-1")+`"}`, maskSQS(&s.client, s.sqs("ListDeadLetterSourceQueues", `{"QueueUrl":"dead","MaxResults":2}`).body))
	checkDiff(t, "the last source", `{"queueUrls":["http://HOST/000000000000/b-2"]}`, maskSQS(&s.client, s.sqs("ListDeadLetterSourceQueues", `{"QueueUrl":"dead","MaxResults":2,"NextToken":"`+sqsToken("b-1")+`"}`).body))
	checkDiff(t, "no sources", `{"queueUrls":[]}`, s.sqs("ListDeadLetterSourceQueues", `{"QueueUrl":"a"}`).body)
	checkDiff(t, "sources in XML", xmlHead+`<ListDeadLetterSourceQueuesResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ListDeadLetterSourceQueuesResult><QueueUrl>http://HOST/000000000000/b-2</QueueUrl></ListDeadLetterSourceQueuesResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></ListDeadLetterSourceQueuesResponse>`,
		maskSQS(&s.client, s.sqsQuery("ListDeadLetterSourceQueues", "QueueUrl=dead", "NextToken="+sqsToken("b-1")).body))
}

func TestSQSTags(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustSQS("CreateQueue", `{"QueueName":"q","tags":{"a":"1","é ":""}}`, nil)
	tags := func() string { return s.sqs("ListQueueTags", `{"QueueUrl":"q"}`).body }
	checkDiff(t, "tags", `{"Tags":{"a":"1","é ":""}}`, tags())
	checkDiff(t, "response", `{}`, s.sqs("TagQueue", `{"QueueUrl":"q","Tags":{"A":"2","a":"3"}}`).body)
	checkDiff(t, "tags", `{"Tags":{"A":"2","a":"3","é ":""}}`, tags())
	checkDiff(t, "response", `{}`, s.sqs("UntagQueue", `{"QueueUrl":"q","TagKeys":["A","none","é "]}`).body)
	checkDiff(t, "tags", `{"Tags":{"a":"3"}}`, tags())
	s.sqsQuery("TagQueue", "QueueUrl=q", "Tag.1.Key=x y", "Tag.1.Value=<>")
	checkDiff(t, "tags in XML", xmlHead+`<ListQueueTagsResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ListQueueTagsResult><Tag><Key>a</Key><Value>3</Value></Tag><Tag><Key>x y</Key><Value>&lt;&gt;</Value></Tag></ListQueueTagsResult><ResponseMetadata><RequestId>UUID</RequestId></ResponseMetadata></ListQueueTagsResponse>`,
		maskSQS(&s.client, s.sqsQuery("ListQueueTags", "QueueUrl=q").body))
	s.sqsQuery("UntagQueue", "QueueUrl=q", "TagKey.1=x y", "TagKey.2=a")
	checkDiff(t, "no tags", `{}`, tags())

	var many []string
	for n := range 50 {
		many = append(many, fmt.Sprintf(`"k%d":"v"`, n))
	}
	s.mustSQS("TagQueue", `{"QueueUrl":"q","Tags":{`+strings.Join(many, ",")+`}}`, nil)
	full := tags()
	checkDiff(t, "one tag too many", sqsProblemReply{400, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue", "Too many tags added for queue q."},
		s.sqsJSONProblem(s.sqs("TagQueue", `{"QueueUrl":"q","Tags":{"more":"v"}}`)))
	for _, tag := range []string{`"":"x"`, `"` + strings.Repeat("x", 129) + `":""`, `"k1":"` + strings.Repeat("x", 257) + `"`, `"k1":"\u0000"`, `"\ud800":""`} {
		if got := s.sqsJSONProblem(s.sqs("TagQueue", `{"QueueUrl":"q","Tags":{`+tag+`}}`)); got.Code != "InvalidParameterValue" {
			t.Errorf("%s = %+v", tag, got)
		}
	}
	checkDiff(t, "tags", full, tags())
}

func TestSQSPermissionsChangeThePolicy(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("q")
	policy := func() string {
		var v struct{ Attributes struct{ Policy string } }
		mustDecode(t, s.sqsAttributesOf(q, "Policy"), &v)
		return v.Attributes.Policy
	}
	s.mustSQS("AddPermission", `{"QueueUrl":"q","Label":"one","AWSAccountIds":["111122223333"],"Actions":["SendMessage"]}`, nil)
	const one = `{"Sid":"one","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"SQS:SendMessage","Resource":"arn:aws:sqs:us-east-1:000000000000:q"}`
	const head = `{"Version":"2008-10-17","Id":"arn:aws:sqs:us-east-1:000000000000:q/SQSDefaultPolicy","Statement":[`
	checkDiff(t, "policy", head+one+`]}`, policy())
	s.sqsQuery("AddPermission", "QueueUrl=q", "Label=two", "AWSAccountId.1=1", "AWSAccountId.2=2", "ActionName.1=*", "ActionName.2=ReceiveMessage")
	const two = `{"Sid":"two","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::1:root","arn:aws:iam::2:root"]},"Action":["SQS:*","SQS:ReceiveMessage"],"Resource":"arn:aws:sqs:us-east-1:000000000000:q"}`
	checkDiff(t, "policy", head+one+`,`+two+`]}`, policy())
	checkDiff(t, "a label twice", sqsProblemReply{400, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue", "Value one for parameter Label is invalid. Reason: Already exists."},
		s.sqsJSONProblem(s.sqs("AddPermission", `{"QueueUrl":"q","Label":"one","AWSAccountIds":["1"],"Actions":["*"]}`)))
	s.mustSQS("RemovePermission", `{"QueueUrl":"q","Label":"one"}`, nil)
	checkDiff(t, "policy", head+two+`]}`, policy())
	s.mustSQS("RemovePermission", `{"QueueUrl":"q","Label":"two"}`, nil)
	checkDiff(t, "no policy", `{}`, s.sqsAttributesOf(q, "Policy"))

	s.mustSQS("SetQueueAttributes", `{"QueueUrl":"q","Attributes":{"Policy":"{\"Version\":\"2012-10-17\",\"Statement\":{\"Sid\":\"own\",\"Effect\":\"Deny\"}, \"Other\":[1.0]}"}}`, nil)
	s.mustSQS("AddPermission", `{"QueueUrl":"q","Label":"one","AWSAccountIds":["111122223333"],"Actions":["SendMessage"]}`, nil)
	checkDiff(t, "policy", `{"Version":"2012-10-17","Other":[1.0],"Statement":[{"Sid":"own","Effect":"Deny"},`+one+`]}`, policy())
	s.mustSQS("RemovePermission", `{"QueueUrl":"q","Label":"own"}`, nil)
	accounts := strings.Repeat(`"`+strings.Repeat("1", 120)+`",`, 600) + `"1"`
	checkDiff(t, "a policy that is too long", "OverLimit", s.sqsJSONProblem(s.sqs("AddPermission", `{"QueueUrl":"q","Label":"long","AWSAccountIds":[`+accounts+`],"Actions":["*"]}`)).Code)
	for range 2 {
		got := s.sqs("RemovePermission", `{"QueueUrl":"q","Label":"one"}`)
		if got.status != 200 {
			checkDiff(t, "unknown label", "InvalidParameterValue", s.sqsJSONProblem(got).Code)
		}
	}
}

// A queue that was deleted can be created again at once, and is a new one.
func TestSQSDeleteAndPurgeQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	q := s.createSQS("q")
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"x"}`, nil)
	s.mustSQS("PurgeQueue", fmt.Sprintf(`{"QueueUrl":%q}`, q), nil)
	checkDiff(t, "after a purge", `{"Attributes":{"ApproximateNumberOfMessages":"0"}}`, s.sqsAttributesOf(q, "ApproximateNumberOfMessages"))
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"x"}`, nil)
	checkDiff(t, "a message", `{"Attributes":{"ApproximateNumberOfMessages":"1"}}`, s.sqsAttributesOf(q, "ApproximateNumberOfMessages"))
	checkDiff(t, "response", `{}`, s.sqs("DeleteQueue", fmt.Sprintf(`{"QueueUrl":%q}`, q)).body)
	checkDiff(t, "deleted", "AWS.SimpleQueueService.NonExistentQueue", s.sqsJSONProblem(s.sqs("SendMessage", `{"QueueUrl":"q","MessageBody":"x"}`)).Code)
	checkDiff(t, "deleted", "AWS.SimpleQueueService.NonExistentQueue", s.sqsJSONProblem(s.sqs("DeleteQueue", `{"QueueUrl":"q"}`)).Code)
	s.createSQS("q", `"DelaySeconds":"900"`)
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"x"}`, nil)
	checkDiff(t, "created again", `{"Attributes":{"ApproximateNumberOfMessages":"0","ApproximateNumberOfMessagesDelayed":"1"}}`, s.sqsAttributesOf(q, "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"))
}
