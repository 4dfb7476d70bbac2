package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// sqsMovesPerSecond are the bounds of the rate of a move task.
var sqsMovesPerSecond = bounds{1, 500}

// sqsTaskHandle is the content of the handle of a move task, which is its JSON in base64.
type sqsTaskHandle struct {
	TaskID    string `json:"taskId"`
	SourceARN string `json:"sourceArn"`
}

func (r *request) sqsTaskHandle(taskID, sourceID string) string {
	b := appendJSON(nil, sqsTaskHandle{taskID, r.sqsARN(sourceID)})
	return base64.StdEncoding.EncodeToString(b)
}

// queueOfARN reads an ARN and returns the id of its queue, empty if it is missing.
func (in *sqsInput) queueOfARN(name string) (queueID string, err error) {
	arn := in.text(name)
	if err := in.err(); err != nil || arn == "" {
		return "", err
	}
	if queueID = sqsNameOf(arn); !validID(queueID) {
		return "", errNoSQSResource(name)
	}
	return queueID, nil
}

// sourceOfTask reads the source of a move task, which is required.
func (in *sqsInput) sourceOfTask() (queueID string, err error) {
	queueID, err = in.queueOfARN("SourceArn")
	if err == nil && queueID == "" {
		err = sqsMissing("SourceArn")
	}
	return queueID, err
}

// errNoSQSResource is the error for an ARN of a queue that does not exist.
func errNoSQSResource(parameter string) error {
	return sqsResourceNotFound.errorf("The resource that you specified for the %s parameter doesn't exist.", parameter)
}

func (s *server) sqsStartMessageMoveTask(r *request, in *sqsInput) (sqsObject, error) {
	source, err := in.sourceOfTask()
	if err != nil {
		return nil, err
	}
	named, err := in.queueOfARN("DestinationArn")
	if err != nil {
		return nil, err
	}
	var destination *string
	if named != "" {
		destination = &named
	}
	perSecond, err := in.bounded("MaxNumberOfMessagesPerSecond", sqsMovesPerSecond, 0)
	if err != nil {
		return nil, err
	}
	switch {
	case named == source:
		return nil, sqsInvalidParameter.errorf("Source queue arn and destination queue arn cannot be the same.")
	case named != "" && strings.HasSuffix(named, sqsFIFOSuffix) != strings.HasSuffix(source, sqsFIFOSuffix):
		return nil, sqsInvalidParameter.errorf("The source queue and destination queue must be of the same queue type.")
	}
	id, err := s.store.startMoveTask(r.Context(), source, destination, nilIfZero(perSecond))
	switch err = s.logged(r, err, "move task started", "queue", source, "destination", nameOf(destination), "task", id); {
	case errors.Is(err, errQueueNotFound):
		return nil, errNoSQSResource("SourceArn")
	case errors.Is(err, errDestinationNotFound):
		return nil, errNoSQSResource("DestinationArn")
	case errors.Is(err, errNotDeadQueue):
		return nil, sqsInvalidParameter.errorf("Source queue must be configured as a Dead Letter Queue.")
	case errors.Is(err, errTaskExists):
		return nil, sqsInvalidParameter.errorf("There is already a task running. Only one active task is allowed for a source queue arn at a given time.")
	case err != nil:
		return nil, err
	}
	select {
	case s.moves <- struct{}{}:
	default: // the mover looks for tasks anyway
	}
	return sqsObject{{"TaskHandle", r.sqsTaskHandle(id, source)}}, nil
}

func (s *server) sqsListMessageMoveTasks(r *request, in *sqsInput) (sqsObject, error) {
	source, err := in.sourceOfTask()
	if err != nil {
		return nil, err
	}
	limit, err := in.bounded("MaxResults", bounds{1, keptTasks}, 1)
	if err != nil {
		return nil, err
	}
	tasks, err := s.store.moveTasks(r.Context(), source, limit)
	if errors.Is(err, errQueueNotFound) {
		return nil, errNoSQSResource("SourceArn")
	}
	var results []sqsObject
	for _, t := range tasks {
		var v sqsObject
		if t.status == taskRunning {
			v = append(v, sqsMember{"TaskHandle", r.sqsTaskHandle(t.id, source)})
		}
		v = append(v, sqsMember{"Status", t.status}, sqsMember{"SourceArn", r.sqsARN(source)})
		if t.destination != nil {
			v = append(v, sqsMember{"DestinationArn", r.sqsARN(*t.destination)})
		}
		if t.perSecond != nil {
			v = append(v, sqsMember{"MaxNumberOfMessagesPerSecond", *t.perSecond})
		}
		v = append(v, sqsMember{"ApproximateNumberOfMessagesMoved", t.moved}, sqsMember{"ApproximateNumberOfMessagesToMove", t.toMove})
		if t.failure != nil {
			v = append(v, sqsMember{"FailureReason", *t.failure})
		}
		results = append(results, append(v, sqsMember{"StartedTimestamp", int(t.startedAt.UnixMilli())}))
	}
	return sqsObject{{"Results", results}}, err
}

func (s *server) sqsCancelMessageMoveTask(r *request, in *sqsInput) (sqsObject, error) {
	text := in.text("TaskHandle")
	if err := in.err(); err != nil {
		return nil, err
	}
	if text == "" {
		return nil, sqsMissing("TaskHandle")
	}
	var handle sqsTaskHandle
	b, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(b, &handle)
	}
	id, isID := parseID(handle.TaskID)
	source := sqsNameOf(handle.SourceARN)
	if err != nil || !isID || !validID(source) {
		return nil, sqsInvalidParameter.errorf("Value for parameter TaskHandle is invalid.")
	}
	moved, err := s.store.cancelMoveTask(r.Context(), id, source)
	if err = s.logged(r, err, "move task cancelled", "queue", source, "count", moved, "task", id); errors.Is(err, errTaskNotFound) {
		return nil, sqsResourceNotFound.errorf("Task does not exist.")
	}
	return sqsObject{{"ApproximateNumberOfMessagesMoved", moved}}, err
}
