package main

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

const sqsARNs = "arn:aws:sqs:us-east-1:000000000000:"

// startSQSTask starts a task with these fields of the request, and returns its handle.
func (s *client) startSQSTask(fields string) (handle string) {
	s.t.Helper()
	var v struct{ TaskHandle string }
	s.mustSQS("StartMessageMoveTask", `{`+fields+`}`, &v)
	return v.TaskHandle
}

// sqsTasks returns the response to a list of tasks, with masked handles and times.
func (s *client) sqsTasks(body string) string {
	s.t.Helper()
	v := s.sqs("ListMessageMoveTasks", body)
	text := regexp.MustCompile(`"StartedTimestamp":\d{13}\b`).ReplaceAllString(v.body, `"StartedTimestamp":MS`)
	return regexp.MustCompile(`"TaskHandle":"[A-Za-z0-9+/=]+"`).ReplaceAllString(text, `"TaskHandle":"HANDLE"`)
}

func TestSQSMoveTasks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("other")
	s.mustKill("a", 1, 2, 3)
	handle := s.startSQSTask(`"SourceArn":"` + sqsARNs + `dead","MaxNumberOfMessagesPerSecond":2`)
	content, err := base64.StdEncoding.DecodeString(handle)
	if err != nil || !regexp.MustCompile(`^\{"taskId":"[0-9a-f-]{36}","sourceArn":"`+sqsARNs+`dead"\}$`).Match(content) {
		t.Errorf("the handle is %s, %v", content, err)
	}
	mustMove(t, s.newMover())
	const running = `{"Results":[{"TaskHandle":"HANDLE","Status":"RUNNING","SourceArn":"` + sqsARNs + `dead","MaxNumberOfMessagesPerSecond":2,"ApproximateNumberOfMessagesMoved":2,"ApproximateNumberOfMessagesToMove":3,"StartedTimestamp":MS}]}`
	checkDiff(t, "running", running, s.sqsTasks(`{"SourceArn":"`+sqsARNs+`dead"}`))
	checkDiff(t, "cancelled", `{"ApproximateNumberOfMessagesMoved":2}`, s.sqs("CancelMessageMoveTask", `{"TaskHandle":"`+handle+`"}`).body)
	s.startSQSTask(`"SourceArn":"` + sqsARNs + `dead","DestinationArn":"` + sqsARNs + `other"`)
	mustMove(t, s.newMover())
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":4}}`) // has no home
	s.startSQSTask(`"SourceArn":"` + sqsARNs + `dead"`)
	mustMove(t, s.newMover())
	const (
		failed    = `{"Status":"FAILED","SourceArn":"` + sqsARNs + `dead","ApproximateNumberOfMessagesMoved":0,"ApproximateNumberOfMessagesToMove":1,"FailureReason":"AWS.SimpleQueueService.NonExistentQueue","StartedTimestamp":MS}`
		completed = `{"Status":"COMPLETED","SourceArn":"` + sqsARNs + `dead","DestinationArn":"` + sqsARNs + `other","ApproximateNumberOfMessagesMoved":1,"ApproximateNumberOfMessagesToMove":1,"StartedTimestamp":MS}`
		cancelled = `{"Status":"CANCELLED","SourceArn":"` + sqsARNs + `dead","MaxNumberOfMessagesPerSecond":2,"ApproximateNumberOfMessagesMoved":2,"ApproximateNumberOfMessagesToMove":3,"StartedTimestamp":MS}`
	)
	checkDiff(t, "all", `{"Results":[`+failed+`,`+completed+`,`+cancelled+`]}`, s.sqsTasks(`{"SourceArn":"`+sqsARNs+`dead","MaxResults":10}`))
	checkDiff(t, "the latest", `{"Results":[`+failed+`]}`, s.sqsTasks(`{"SourceArn":"`+sqsARNs+`dead"}`))
	checkDiff(t, "none", `{"Results":[]}`, s.sqsTasks(`{"SourceArn":"`+sqsARNs+`other"}`))
	xml := s.sqsQuery("ListMessageMoveTasks", "SourceArn="+sqsARNs+"dead", "MaxResults=2").body
	if n := strings.Count(xml, "<ListMessageMoveTasksResultEntry><Status>"); n != 2 {
		t.Errorf("%d entries in %s", n, xml)
	}
	checkDiff(t, "in a", []int{1, 2}, numbers(s.receive("a", "")))
	checkDiff(t, "in other", []int{3}, numbers(s.receive("other", "")))
}

func TestSQSRefusesWrongMoveTasks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("dead.fifo")
	s.mustKill("a", 1)
	handle := s.startSQSTask(`"SourceArn":"` + sqsARNs + `dead","MaxNumberOfMessagesPerSecond":500`)
	handleOf := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	const (
		dead     = `"SourceArn":"` + sqsARNs + `dead"`
		invalid  = "com.amazon.coral.service#InvalidParameterValueException"
		missing  = "com.amazon.coral.service#MissingRequiredParameterException"
		notFound = "com.amazonaws.sqs#ResourceNotFoundException"
	)
	for _, v := range []struct {
		action, body string
		want         sqsProblemReply
	}{
		{"StartMessageMoveTask", `{}`, sqsProblemReply{400, missing, "MissingParameter", "The request must contain the parameter SourceArn."}},
		{"StartMessageMoveTask", `{"SourceArn":"` + sqsARNs + `none"}`, sqsProblemReply{404, notFound, "ResourceNotFoundException", "The resource that you specified for the SourceArn parameter doesn't exist."}},
		{"StartMessageMoveTask", `{"SourceArn":"` + sqsARNs + `\u0000"}`, sqsProblemReply{404, notFound, "ResourceNotFoundException", "The resource that you specified for the SourceArn parameter doesn't exist."}},
		{"StartMessageMoveTask", `{` + dead + `,"DestinationArn":"` + sqsARNs + `none"}`, sqsProblemReply{404, notFound, "ResourceNotFoundException", "The resource that you specified for the DestinationArn parameter doesn't exist."}},
		{"StartMessageMoveTask", `{"SourceArn":"` + sqsARNs + `a"}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "Source queue must be configured as a Dead Letter Queue."}},
		{"StartMessageMoveTask", `{` + dead + `,"DestinationArn":"` + sqsARNs + `dead"}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "Source queue arn and destination queue arn cannot be the same."}},
		{"StartMessageMoveTask", `{` + dead + `,"DestinationArn":"` + sqsARNs + `dead.fifo"}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "The source queue and destination queue must be of the same queue type."}},
		{"StartMessageMoveTask", `{` + dead + `}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "There is already a task running. Only one active task is allowed for a source queue arn at a given time."}},
		{"StartMessageMoveTask", `{` + dead + `,"MaxNumberOfMessagesPerSecond":0}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "Value 0 for parameter MaxNumberOfMessagesPerSecond is invalid. Reason: Must be between 1 and 500, if provided."}},
		{"StartMessageMoveTask", `{` + dead + `,"MaxNumberOfMessagesPerSecond":501}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "Value 501 for parameter MaxNumberOfMessagesPerSecond is invalid. Reason: Must be between 1 and 500, if provided."}},
		{"ListMessageMoveTasks", `{}`, sqsProblemReply{400, missing, "MissingParameter", "The request must contain the parameter SourceArn."}},
		{"ListMessageMoveTasks", `{"SourceArn":"` + sqsARNs + `none"}`, sqsProblemReply{404, notFound, "ResourceNotFoundException", "The resource that you specified for the SourceArn parameter doesn't exist."}},
		{"ListMessageMoveTasks", `{` + dead + `,"MaxResults":11}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "Value 11 for parameter MaxResults is invalid. Reason: Must be between 1 and 10, if provided."}},
		{"CancelMessageMoveTask", `{}`, sqsProblemReply{400, missing, "MissingParameter", "The request must contain the parameter TaskHandle."}},
		{"CancelMessageMoveTask", `{"TaskHandle":"%"}`, sqsProblemReply{400, invalid, "InvalidParameterValue", "Value for parameter TaskHandle is invalid."}},
		{"CancelMessageMoveTask", fmt.Sprintf(`{"TaskHandle":%q}`, handleOf(`{}`)), sqsProblemReply{400, invalid, "InvalidParameterValue", "Value for parameter TaskHandle is invalid."}},
		{"CancelMessageMoveTask", fmt.Sprintf(`{"TaskHandle":%q}`, handleOf(`{"taskId":"`+newID()+`"}`)), sqsProblemReply{400, invalid, "InvalidParameterValue", "Value for parameter TaskHandle is invalid."}},
		{"CancelMessageMoveTask", fmt.Sprintf(`{"TaskHandle":%q}`, handleOf(`{"taskId":"`+newID()+`","sourceArn":"`+sqsARNs+`dead"}`)), sqsProblemReply{404, notFound, "ResourceNotFoundException", "Task does not exist."}},
	} {
		checkDiff(t, v.action+" "+v.body, v.want, s.sqsJSONProblem(s.sqs(v.action, v.body)))
	}
	s.mustSQS("CancelMessageMoveTask", `{"TaskHandle":"`+handle+`"}`, nil)
	checkDiff(t, "cancelled again", sqsProblemReply{404, notFound, "ResourceNotFoundException", "Task does not exist."}, s.sqsJSONProblem(s.sqs("CancelMessageMoveTask", `{"TaskHandle":"`+handle+`"}`)))
}

// The mover of the server that starts a task begins at once.
func TestSQSMoveTaskWakesTheMover(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustKill("a", 1)
	for range 2 {
		handle := s.startSQSTask(`"SourceArn":"` + sqsARNs + `dead"`)
		s.mustSQS("CancelMessageMoveTask", `{"TaskHandle":"`+handle+`"}`, nil)
	}
	checkDiff(t, "requests to look for tasks", 1, len(s.moves))
}
