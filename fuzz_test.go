package main

import (
	"bufio"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
)

// FuzzRequests sends arbitrary requests to all routes, with a real database. Every
// response is one that the API allows: no 5xx except 503, and JSON in each body. A
// refused request stores nothing. No request leaves a goroutine, a connection or a
// receiver behind.
func FuzzRequests(f *testing.F) {
	const queue = `"ack_deadline_seconds":30,"message_retention_seconds":600`
	const id = "01a2070a-637d-779c-bda4-c363025bdbb3"
	handle := sqsHandle(unknownID, receipt{queueKey: 1, seq: 1, attempts: 1})
	for _, seed := range [][5]string{
		{"POST", "/topics", "", "", `{"id":"a"}`},
		{"GET", "/topics", "offset=0&limit=10", "", ""},
		{"DELETE", "/topics/gone", "", "", ""},
		{"POST", "/queues", "", "", `{"id":"q","topic_id":"t",` + queue + `,"message_filters":{"a":["b",1]}}`},
		{"PUT", "/queues/t", "", "", `{` + queue + `,"dead_queue_id":"t","message_max_deliveries":3}`},
		{"DELETE", "/queues/gone", "", "", ""},
		{"GET", "/queues/t/stats", "detail=true", "", ""},
		{"PUT", "/queues/t/purge", "", "", ""},
		{"PUT", "/queues/t/redrive", "", "", `{"destination_queue_id":"t","limit":2}`},
		{"POST", "/topics/t/messages", "", "", `{"data":{"a":"\ud800\u0000"},"attributes":{"b":1e400},"delay_seconds":"3"}`},
		{"POST", "/queues/t/messages", "", "", `{"data":{"a":[1,{"b":null}]}}`},
		{"POST", "/topics/t/messages/batch", "", "", `{"messages":[{"data":{}},{"data":{},"delay_seconds":1}]}`},
		{"GET", "/queues/t/messages", "limit=3&wait_seconds=0.001", "", ""},
		{"GET", "/queues/t/messages/peek", "offset=1&limit=2", "", ""},
		{"GET", "/queues/t/messages/consumed", "offset=1&limit=2", "", ""},
		{"POST", "/queues/t/messages", "fields=group", "", `{"group":"a\u00e4/ ","data":{}}`},
		{"POST", "/queues/t/messages/batch", "fields=traceparent,request_id", "X-Request-Id: a\"\\\r\nTraceparent: 01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-\"", `{"messages":[{"data":{}},{"group":"a","data":{}}]}`},
		{"POST", "/enqueue/t/a/", "", "X-Request-Id: a\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", `{"job_id":"j","interval":1,"payload":1}`},
		{"GET", "/queues/t/groups", "offset=0&limit=2", "", ""},
		{"GET", "/queues/t/consumers", "", "", ""},
		{"GET", "/queues/t/groups/a%2F", "", "", ""},
		{"PUT", "/queues/t/groups/a%2F", "", "", `{"delivery_interval_ms":5}`},
		{"DELETE", "/queues/t/groups/a", "", "", ""},
		{"PUT", "/queues/t", "", "", `{"ordered":true,"delivery_interval_ms":1,"consumed_retention_seconds":1,"ack_deadline_seconds":1,"message_retention_seconds":600}`},
		{"POST", "/enqueue/t/a/", "", "", `{"job_id":"j","interval":1,"payload":{"max_queued_length":3},"requeue_limit":0}`},
		{"GET", "/dequeue/t/", "wait_seconds=0.001", "", ""},
		{"POST", "/finish/t/a/j/", "", "", ""},
		{"POST", "/interval/t/a/", "", "", `{"interval":5}`},
		{"DELETE", "/deletequeue/t/a/", "", "", `{"purge_all":true}`},
		{"GET", "/status/t/a/" + id, "", "", ""},
		{"GET", "/metrics/t/a/", "", "", ""},
		{"POST", "/message", "", "", `{"channel":"t","message":{}}`},
		{"GET", "/queue/t", "", "", ""},
		{"PUT", "/messages/" + id + "/ack", "scheduled_at=2022-10-05T21:48:24.724341", "", ""},
		{"PUT", "/messages/" + id + "/nack", "", "", `{"delay_seconds":5}`},
		{"PUT", "/messages/" + id + "/extend", "", "", `{"ack_deadline_seconds":5}`},
		{"PUT", "/messages/ack", "", "", `{"ids":["` + id + `"]}`},
		{"PUT", "/messages/nack", "", "", `{"messages":[{"id":"` + id + `","scheduled_at":"2022-10-05T21:48:24"}]}`},
		{"GET", "/messages/" + id, "", "", ""},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.CreateQueue", `{"QueueName":"x.fifo","Attributes":{"FifoQueue":"true","RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:x:0:t\",\"maxReceiveCount\":3}"},"tags":{"a":"b"}}`},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=SendMessage&MessageBody=x&MessageAttribute.1.Name=a&MessageAttribute.1.Value.DataType=Binary&MessageAttribute.1.Value.BinaryValue=AA=="},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.SendMessageBatch", `{"QueueUrl":"t","Entries":[{"Id":"a","MessageBody":"\ud800","DelaySeconds":5},{"Id":"b","MessageBody":"{}","MessageGroupId":"g"}]}`},
		{"GET", "/", "Action=ReceiveMessage&QueueUrl=t&AttributeName=All&MessageAttributeName.1=a.*&VisibilityTimeout=0&MaxNumberOfMessages=10", "", ""},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.ChangeMessageVisibility", `{"QueueUrl":"t","ReceiptHandle":"` + handle + `","VisibilityTimeout":0}`},
		{"POST", "/", "", "Content-Type: application/x-www-form-urlencoded", "Action=DeleteMessageBatch&QueueUrl=t&DeleteMessageBatchRequestEntry.1.Id=a&DeleteMessageBatchRequestEntry.1.ReceiptHandle=" + handle},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.SetQueueAttributes", `{"QueueUrl":"t","Attributes":{"Policy":"{}","MaximumMessageSize":"1024","RedriveAllowPolicy":"{\"redrivePermission\":\"byQueue\"}"}}`},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.AddPermission", `{"QueueUrl":"t","Label":"l","AWSAccountIds":["1"],"Actions":["*"]}`},
		{"GET", "/", "Action=ListQueues&QueueNamePrefix=t&MaxResults=1&NextToken=dA", "", ""},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.RemovePermission", `{"QueueUrl":"t","Label":"l"}`},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=TagQueue&Tag.1.Key=a&Tag.1.Value=b&Tag.2.Key=a"},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=UntagQueue&TagKey.1=a&TagKey=b"},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.GetQueueAttributes", `{"QueueUrl":"http://x/0/t/","AttributeNames":["All"]}`},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.GetQueueUrl", `{"QueueName":"t","QueueOwnerAWSAccountId":null}`},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=ListQueueTags"},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=PurgeQueue"},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=DeleteQueue&QueueUrl=gone"},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=ListDeadLetterSourceQueues&MaxResults=1"},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.ReceiveMessage", `{"QueueUrl":"t","WaitTimeSeconds":1,"MessageSystemAttributeNames":["All"],"MessageAttributeNames":[".*"],"ReceiveRequestAttemptId":"a"}`},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.DeleteMessage", `{"QueueUrl":"t","ReceiptHandle":"` + handle + `"}`},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.ChangeMessageVisibilityBatch", `{"QueueUrl":"t","Entries":[{"Id":"a","ReceiptHandle":"` + handle + `","VisibilityTimeout":1},{"Id":"b","ReceiptHandle":"x"}]}`},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.StartMessageMoveTask", `{"SourceArn":"arn:aws:sqs:x:0:t","DestinationArn":"arn:aws:sqs:x:0:u","MaxNumberOfMessagesPerSecond":1}`},
		{"POST", "/000000000000/t", "", "Content-Type: application/x-www-form-urlencoded", "Action=ListMessageMoveTasks&SourceArn=arn:aws:sqs:x:0:t&MaxResults=10"},
		{"POST", "/", "", "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.CancelMessageMoveTask", `{"TaskHandle":"eyJ0YXNrSWQiOiIwMWEyMDcwYS02MzdkLTc3OWMtYmRhNC1jMzYzMDI1YmRiYjMiLCJzb3VyY2VBcm4iOiJhcm46dCJ9"}`},
		{"GET", "/health", "", "", ""},
		{"GET", "/metrics", "", "", ""},
		{"HEAD", "/queues/t/messages", "", "", ""},
		{"GET", "/queues/t/messages", "", "Sec-Fetch-Site: cross-site\r\nOrigin: null", ""},
		{"POST", "/topics/t/messages", "", "Host: evil.example", `{"data":{}}`},
		{"POST", "/topics/t/messages", "", "Transfer-Encoding: chunked", "b\r\n{\"data\":{}}\r\n0\r\n\r\n"},
		{"BREW", "//topics/../x/", "%zz;&=", "", "\xff"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4])
	}
	server := newPlainTestServer(f)
	server.limits.maxWait = 0.01
	server.mustTopic("t")
	goroutines := runtime.NumGoroutine()
	f.Fuzz(func(t *testing.T, method, path, query, header, body string) {
		s := server.inspector
		s.t = t
		r := rawRequest(method, path, query, header, body)
		if r == nil {
			return
		}
		s.exec(fuzzRows)
		before := rowCounts(&s)
		w := httptest.NewRecorder()
		s.server.ServeHTTP(w, r)
		switch {
		case w.Code >= 500 && w.Code != 503, w.Code < 200:
			t.Errorf("%s %q?%q %q %q = %d %s", method, path, query, header, body, w.Code, w.Body)
		case !isVisibleASCII(w.Header().Get("X-Request-Id"), maxTrace):
			t.Errorf("%s %q?%q %q %q has the request id %q", method, path, query, header, body, w.Header().Get("X-Request-Id"))
		case w.Code >= 400 && w.Body.Len() == 0, w.Code >= 400 && !json.Valid(w.Body.Bytes()) && !(isSQS(r) && isXML(w.Body.Bytes())):
			t.Errorf("%s %q?%q %q %q = %d with %q, which is not JSON", method, path, query, header, body, w.Code, w.Body)
		case strings.HasPrefix(r.Pattern, "GET /dequeue/") && w.Code == 404: // no job, in a queue that it may have created
		case w.Code >= 400 && w.Code != 409 && w.Code != 503 && rowCounts(&s) != before:
			t.Errorf("%s %q?%q %q %q = %d, and topics, queues and messages are %s, not %s", method, path, query, header, body, w.Code, rowCounts(&s), before)
		}
		eventually(t, "nothing is left behind", func() bool {
			return len(s.engine.waiting()) == 0 && s.buffered() == 0 &&
				s.store.db.Stats().InUse == 0 && runtime.NumGoroutine() < goroutines+50 // connection pools may have started some
		})
	})
}

// fuzzRows runs before each request, so that some requests have an effect. It creates a
// topic t with a queue t and a message in flight, and keeps the number of messages
// small.
const fuzzRows = `
DELETE FROM queued.messages WHERE (SELECT count(*) FROM queued.messages) > 100;
INSERT INTO queued.topics (id) VALUES ('t') ON CONFLICT DO NOTHING;
INSERT INTO queued.queues (id, topic_id, ack_deadline_seconds, message_retention_seconds)
VALUES ('t', 't', 30, 600) ON CONFLICT DO NOTHING;
INSERT INTO queued.messages (home, id, queue_key, data, bytes, delivery_attempts, in_flight, scheduled_at, expired_at, created_at, updated_at)
SELECT home, '01a2070a-637d-779c-bda4-c363025bdbb3', key, '{}', 2, 1, true, now() + interval '1 min', now() + interval '1 h', now(), now()
FROM queued.queues
WHERE id = 't'
ON CONFLICT DO NOTHING;`

// rawRequest returns the request that net/http parses from these parts, or nil if it
// refuses them.
func rawRequest(method, path, query, header, body string) *http.Request {
	target := (&url.URL{Path: path, RawQuery: query}).RequestURI()
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(method+query, " \r\n") {
		return nil
	}
	if !strings.Contains(header, "Host:") {
		header = "Host: localhost\r\n" + header
	}
	if !strings.Contains(header, "Transfer-Encoding:") {
		header += fmt.Sprintf("\r\nContent-Length: %d", len(body))
	}
	raw := fmt.Sprintf("%s %s HTTP/1.1\r\n%s\r\n\r\n%s", method, target, strings.TrimPrefix(header, "\r\n"), body)
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
	if err != nil {
		return nil
	}
	return r
}

// isXML reports whether a text is a well-formed document.
func isXML(text []byte) bool {
	var v struct{ XMLName xml.Name }
	return xml.Unmarshal(text, &v) == nil
}

// rowCounts returns the number of rows of each kind, to compare.
func rowCounts(s *inspector) string {
	s.t.Helper()
	return fmt.Sprint(s.count("SELECT count(*) FROM queued.topics"), s.count("SELECT count(*) FROM queued.queues"),
		s.count("SELECT count(*) FROM queued.messages"))
}
