package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// sqsSendFIFO sends a message to a FIFO queue, and returns its id and sequence number.
func (s *client) sqsSendFIFO(queue, group, id, body string) (messageID, number string) {
	s.t.Helper()
	var v struct{ MessageId, SequenceNumber, MD5OfMessageBody string }
	deduplication := ""
	if id != "" {
		deduplication = fmt.Sprintf(`,"MessageDeduplicationId":%q`, id)
	}
	s.mustSQS("SendMessage", fmt.Sprintf(`{"QueueUrl":%q,"MessageBody":%q,"MessageGroupId":%q%s}`, queue, body, group, deduplication), &v)
	checkDiff(s.t, "sum of the body", sqsMD5(body), v.MD5OfMessageBody)
	return v.MessageId, v.SequenceNumber
}

// drainSQS receives and deletes messages until there are none, and returns their bodies.
func (s *client) drainSQS(queue string) string {
	s.t.Helper()
	var bodies []string
	for {
		all := s.sqsReceive(queue, ten)
		if len(all) == 0 {
			return strings.Join(bodies, " ")
		}
		for _, m := range all {
			bodies = append(bodies, m.Body)
			s.mustSQS("DeleteMessage", fmt.Sprintf(`{"QueueUrl":%q,"ReceiptHandle":%q}`, queue, m.ReceiptHandle), nil)
		}
	}
}

func TestSQSFIFOKeepsTheOrderOfGroups(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
	last := ""
	for _, body := range []string{"a1", "a2", "a3", "b1"} {
		_, number := s.sqsSendFIFO("f.fifo", body[:1], "", body)
		if len(number) != 20 || number <= last || strings.Trim(number, "0123456789") != "" {
			t.Errorf("the sequence number %s follows %s", number, last)
		}
		last = number
	}
	var order []string
	for {
		all := s.sqsReceive("f.fifo", ten, `"AttributeNames":["All"]`)
		if len(all) == 0 {
			break
		}
		for _, m := range all {
			order = append(order, m.Body)
			if m.Attributes["MessageGroupId"] != m.Body[:1] || len(m.Attributes["SequenceNumber"]) != 20 || len(m.Attributes["MessageDeduplicationId"]) != 64 {
				t.Errorf("attributes of %s: %v", m.Body, m.Attributes)
			}
			// While a message of the group is hidden, its successors are not received.
			for _, other := range s.sqsReceive("f.fifo", ten, hid+"0") {
				if other.Body[0] == m.Body[0] && other.Body < m.Body {
					t.Errorf("%s was received after %s", other.Body, m.Body)
				}
			}
			s.mustSQS("DeleteMessage", `{"QueueUrl":"f.fifo","ReceiptHandle":"`+m.ReceiptHandle+`"}`, nil)
		}
	}
	a := strings.Join(order, " ")
	if len(order) != 4 || strings.Index(a, "a1") > strings.Index(a, "a2") || strings.Index(a, "a2") > strings.Index(a, "a3") {
		t.Errorf("received in the order %s", a)
	}

	// A message that is visible again comes before its successors.
	s.sqsSendFIFO("f.fifo", "c", "", "c1")
	s.sqsSendFIFO("f.fifo", "c", "", "c2")
	handle := s.sqsReceive("f.fifo")[0].ReceiptHandle
	s.mustSQS("ChangeMessageVisibility", `{"QueueUrl":"f.fifo","ReceiptHandle":"`+handle+`","VisibilityTimeout":0}`, nil)
	checkDiff(t, "order", "c1 c2", s.drainSQS("f.fifo"))
}

// A receive takes several messages of a group, in order. A message that is hidden holds back
// those after it, and one that is visible again comes before them.
func TestSQSFIFOReceivesSeveralOfAGroup(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
	send := func(bodies ...string) {
		t.Helper()
		for _, body := range bodies {
			s.sqsSendFIFO("f.fifo", body[:1], "", body)
		}
	}
	receive := func(what, want string, members ...string) (handles []string) {
		t.Helper()
		var bodies []string
		for _, m := range s.sqsReceive("f.fifo", members...) {
			bodies, handles = append(bodies, m.Body), append(handles, m.ReceiptHandle)
		}
		checkDiff(t, what, want, strings.Join(bodies, " "))
		return handles
	}
	do := func(action, handle, members string) {
		t.Helper()
		s.mustSQS(action, fmt.Sprintf(`{"QueueUrl":"f.fifo","ReceiptHandle":%q%s}`, handle, members), nil)
	}
	send("a1", "b1", "a2", "a3", "a4")
	held := receive("three messages", "a1 a2 a3", `"MaxNumberOfMessages":3`)
	b := receive("the next group", "b1", ten)
	do("DeleteMessage", held[1], "")
	receive("a1 and a3 are hidden", "", ten)
	do("ChangeMessageVisibility", held[0], `,"VisibilityTimeout":0`)
	again := receive("a1 is visible, a3 is hidden", "a1", ten)
	do("DeleteMessage", again[0], "")
	send("b2", "b3")
	receive("a3 is hidden", "", ten)
	do("DeleteMessage", b[0], "")
	do("ChangeMessageVisibility", held[2], `,"VisibilityTimeout":0`)
	got := s.drainSQS("f.fifo")
	if got != "a3 a4 b2 b3" && got != "b2 b3 a3 a4" {
		t.Errorf("the rest = %q", got)
	}
}

// A change of the delay of a queue does not change the delay of its messages. One that is
// delayed holds back those after it in its group.
func TestSQSFIFODelayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`, `"DelaySeconds":"900"`)
	s.sqsSendFIFO("f.fifo", "a", "", "a1")
	s.mustSQS("SetQueueAttributes", `{"QueueUrl":"f.fifo","Attributes":{"DelaySeconds":"0"}}`, nil)
	s.sqsSendFIFO("f.fifo", "a", "", "a2")
	s.sqsSendFIFO("f.fifo", "b", "", "b1")
	checkDiff(t, "while a1 is delayed", "b1", s.drainSQS("f.fifo"))
	s.makeDue()
	s.makeGroupsReady()
	checkDiff(t, "then", "a1 a2", s.drainSQS("f.fifo"))
}

func TestSQSFIFODeduplicates(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("f.fifo", `"FifoQueue":"true"`)
	s.createSQS("body.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
	s.createSQS("group.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`, `"DeduplicationScope":"messageGroup"`)

	first, number := s.sqsSendFIFO("f.fifo", "a", "id", "one")
	again, sameNumber := s.sqsSendFIFO("f.fifo", "b", "id", "two") // another group and body
	if again != first || sameNumber != number && sameNumber != "" {
		t.Errorf("a duplicate got %s and %s, the first message %s and %s", again, sameNumber, first, number)
	}
	checkDiff(t, "messages", "one", s.drainSQS("f.fifo"))
	again, _ = s.sqsSendFIFO("f.fifo", "a", "id", "one") // after it was deleted
	checkDiff(t, "id of a duplicate", first, again)
	checkDiff(t, "messages", "", s.drainSQS("f.fifo"))
	s.mustSQS("PurgeQueue", `{"QueueUrl":"f.fifo"}`, nil)
	if after, _ := s.sqsSendFIFO("f.fifo", "a", "id", "one"); after == first {
		t.Error("a purge did not forget the deduplication ids")
	}

	s.sqsSendFIFO("body.fifo", "a", "", "same")
	s.sqsSendFIFO("body.fifo", "b", "", "same")
	s.sqsSendFIFO("body.fifo", "a", "x", "same") // an explicit id wins
	s.sqsSendFIFO("body.fifo", "a", "y", "same")
	s.sqsSendFIFO("body.fifo", "a", "y", "other")
	checkDiff(t, "by the body", "same same same", s.drainSQS("body.fifo"))

	s.sqsSendFIFO("group.fifo", "a", "", "same")
	s.sqsSendFIFO("group.fifo", "b", "", "same")
	s.sqsSendFIFO("group.fifo", "a", "", "same")
	checkDiff(t, "by the body within a group", "same same", s.drainSQS("group.fifo"))

	got := s.sqs("SendMessageBatch", `{"QueueUrl":"f.fifo","Entries":[{"Id":"1","MessageBody":"x","MessageGroupId":"g","MessageDeduplicationId":"d"},{"Id":"2","MessageBody":"y","MessageGroupId":"g","MessageDeduplicationId":"d"},
		{"Id":"3","MessageBody":"z","MessageGroupId":"g","MessageDeduplicationId":"e"}]}`)
	var v struct {
		Successful []struct{ Id, MessageId, MD5OfMessageBody string }
	}
	mustDecode(t, got.body, &v)
	if len(v.Successful) != 3 || v.Successful[0].MessageId != v.Successful[1].MessageId || v.Successful[1].MD5OfMessageBody != sqsMD5("y") || v.Successful[2].MessageId == v.Successful[0].MessageId {
		t.Errorf("batch with a duplicate = %s", got.body)
	}
	checkDiff(t, "messages of the batch", "one x z", s.drainSQS("f.fifo"))
}

// The messages of a group have the order of their commits, also if a batch waits for another
// group meanwhile.
func TestSQSFIFONumbersFollowTheOrderOfReceives(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
	s.sqsSendFIFO("f.fifo", "a", "", "a1")
	lock := s.begin("UPDATE queued.groups SET blocked = blocked WHERE id = 'a'")
	sent := make(chan reply, 1)
	go func() {
		sent <- s.sqs("SendMessageBatch", `{"QueueUrl":"f.fifo","Entries":[{"Id":"1","MessageBody":"b1","MessageGroupId":"b"},{"Id":"2","MessageBody":"a2","MessageGroupId":"a"}]}`)
	}()
	s.waitForLocks(1)
	other.sqsSendFIFO("f.fifo", "b", "", "b2")
	all := other.sqsReceive("f.fifo", `"AttributeNames":["All"]`)
	checkDiff(t, "while the batch waits", "b2", bodiesOf(all))
	if err := lock.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "the batch", 200, (<-sent).status)
	for _, m := range s.sqsReceive("f.fifo", ten, `"AttributeNames":["All"]`) {
		if m.Body == "b1" {
			t.Errorf("b1, number %s, was received while b2, number %s, was hidden", m.Attributes["SequenceNumber"], all[0].Attributes["SequenceNumber"])
		}
	}
}

// So do messages that come in another way than by SQS's API.
func TestFIFONumbersOfOtherMessagesFollowTheOrderOfReceives(t *testing.T) {
	t.Parallel()
	for what, come := range map[string]func(s *testServer, ids string){
		"publish": func(s *testServer, ids string) {
			s.must(201, "POST", "/queues/f.fifo/messages/batch", `{"messages":[{"data":{"n":"b1"},"group":"b"},{"data":{"n":"a2"},"group":"a"}]}`)
		},
		"redrive": func(s *testServer, ids string) {
			s.must(204, "PUT", "/queues/from/redrive", `{"destination_queue_id":"f.fifo"}`)
		},
		"redrive by id": func(s *testServer, ids string) {
			s.must(204, "PUT", "/messages/redrive", `{"ids":[`+ids+`],"destination_queue_id":"f.fifo"}`)
		},
		"nack": func(s *testServer, ids string) {
			s.receive("from", "")
			s.must(204, "PUT", "/messages/nack", `{"ids":[`+ids+`]}`)
		},
		"cleanup": func(s *testServer, ids string) {
			s.receive("from", "")
			s.endLeases()
			s.mustCleanUp()
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			other := newTestServerOn(t, s.dsn)
			s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
			s.mustQueue("from", `"message_max_deliveries":1,"dead_queue_id":"f.fifo"`)
			var ids []string
			for _, group := range []string{"b", "a"} {
				ids = append(ids, strconv.Quote(s.messages(s.must(201, "POST", "/queues/from/messages", fmt.Sprintf(`{"data":{"n":"%s1"},"group":%q}`, group, group)))[0].ID))
			}
			s.sqsSendFIFO("f.fifo", "a", "", "a0")
			key := s.count("SELECT key FROM queued.queues WHERE id = 'f.fifo'")
			lock := s.begin("SELECT FROM queued.groups WHERE home = $1 AND queue_key = $2 AND id = 'a' FOR UPDATE", homeOf(int64(key)), key)
			came := make(chan struct{})
			go func() {
				defer close(came)
				come(s, strings.Join(ids, ","))
			}()
			s.waitForLocks(1)
			other.sqsSendFIFO("f.fifo", "b", "", "b2")
			checkDiff(t, "while the others wait", "b2", bodiesOf(other.sqsReceive("f.fifo")))
			if err := lock.Commit(); err != nil {
				t.Fatal(err)
			}
			<-came
			all := bodiesOf(s.sqsReceive("f.fifo", ten))
			if !strings.Contains(all, "a") || strings.Contains(all, "b1") {
				t.Errorf("received while b2 is hidden: %s, want those of group a", all)
			}
		})
	}
}

// The cases of the table of receipt handles for FIFO queues.
func TestSQSFIFODeletesOnlyInTheLease(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("f.fifo", `"FifoQueue":"true"`, `"ContentBasedDeduplication":"true"`)
	remove := func(handle string) reply {
		return s.sqs("DeleteMessage", `{"QueueUrl":"f.fifo","ReceiptHandle":"`+handle+`"}`)
	}
	expired := func(handle string) sqsProblemReply {
		return sqsProblemReply{400, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue",
			"Value " + handle + " for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired."}
	}
	s.sqsSendFIFO("f.fifo", "g", "", "a")
	handle := s.sqsReceive("f.fifo", hid+"0")[0].ReceiptHandle
	checkDiff(t, "after the lease", expired(handle), s.sqsJSONProblem(remove(handle)))
	second := s.sqsReceive("f.fifo")[0].ReceiptHandle
	checkDiff(t, "another receiver has it", expired(handle), s.sqsJSONProblem(remove(handle)))
	checkDiff(t, "in the lease", `{}`, remove(second).body)
	checkDiff(t, "deleted", 200, remove(second).status)
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
}

// Groups of a standard queue take turns, and several messages of one are in flight.
func TestSQSFairQueues(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	for _, body := range []string{"a1", "a2", "a3", "b1"} {
		s.mustSQS("SendMessage", fmt.Sprintf(`{"QueueUrl":"q","MessageBody":%q,"MessageGroupId":%q}`, body, body[:1]), nil)
	}
	var order []string
	for range 4 {
		for _, m := range s.sqsReceive("q", `"AttributeNames":["All"]`) {
			order = append(order, m.Body)
			checkDiff(t, "group", m.Body[:1], m.Attributes["MessageGroupId"])
			checkDiff(t, "sequence number", "", m.Attributes["SequenceNumber"])
		}
	}
	if got := strings.Join(order, " "); got != "a1 b1 a2 a3" {
		t.Errorf("received in the order %s", got)
	}
	checkDiff(t, "no SequenceNumber", `{"MD5OfMessageBody":"`+sqsMD5("x")+`","MessageId":"UUID"}`, maskSQS(&s.client, s.sqs("SendMessage", `{"QueueUrl":"q","MessageBody":"x","MessageGroupId":"..\/g"}`).body))
}

// After maxReceiveCount deliveries a message moves to the dead queue, with its attributes.
func TestSQSDeadQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("dead")
	s.createSQS("q", `"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:dead\",\"maxReceiveCount\":2}"`)
	var sent struct{ MessageId string }
	s.mustSQS("SendMessage", `{"QueueUrl":"q","MessageBody":"x","MessageAttributes":{"n":{"DataType":"Number","StringValue":"1"}}}`, &sent)
	for range 2 {
		s.sqsReceive("q", hid+"0")
	}
	checkDiff(t, "a third time", "", bodiesOf(s.sqsReceive("q")))
	checkDiff(t, "counts", `{"Attributes":{"ApproximateNumberOfMessages":"0","ApproximateNumberOfMessagesNotVisible":"1"}}`, s.sqsAttributesOf("q", "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"))
	s.mustCleanUp()
	all := s.sqsReceive("dead", `"AttributeNames":["All"]`, `"MessageAttributeNames":["All"]`)
	if len(all) != 1 || all[0].MessageId != sent.MessageId || all[0].Attributes["DeadLetterQueueSourceArn"] != "arn:aws:sqs:us-east-1:000000000000:q" ||
		all[0].Attributes["ApproximateReceiveCount"] != "1" || all[0].MessageAttributes["n"].DataType != "Number" {
		t.Errorf("in the dead queue: %+v", all)
	}
}

// A queue that is full refuses messages with an error after which SDKs try again.
func TestSQSFullQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"max_messages":1`)
	s.full("q")
	got := s.sqs("SendMessage", `{"QueueUrl":"q","MessageBody":"b"}`)
	v := s.sqsJSONProblem(got)
	if v.Status != 403 || v.Type != "com.amazonaws.sqs#RequestThrottled" || v.Code != "RequestThrottled" || got.header.Get("Retry-After") == "" {
		t.Errorf("full queue = %+v", v)
	}
}
