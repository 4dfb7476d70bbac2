package main

import (
	"net/http"
	"slices"
	"strings"
)

// amazonSQS is the API of Amazon SQS, in both of its protocols: JSON, where a header names
// the action, and Query, where a parameter of a form or of the URL does. A request names its
// queue by a URL, of which only the last segment counts.
var amazonSQS = &apiStyle{sqsProblem}

// maxSQSBody is the maximum size of the body of a request of SQS, in bytes. A message of 1
// MiB can take six times as much in JSON, and three times in a form.
const maxSQSBody = 8 << 20

// sqsAction is an action of SQS.
type sqsAction struct {
	name   string
	need   permission // for the queue
	queue  string     // the parameter that names the queue; empty if none does
	handle func(s *server, r *request, in *sqsInput) (sqsObject, error)
}

// reads reports whether the action changes nothing.
func (a *sqsAction) reads() bool {
	return strings.HasPrefix(a.name, "Get") || strings.HasPrefix(a.name, "List")
}

// sqsActions are the actions by name. The result of a handler is nil if the action has none,
// and otherwise it may be empty.
var sqsActions = func() map[string]*sqsAction {
	all := make(map[string]*sqsAction)
	for _, v := range []sqsAction{
		{"CreateQueue", anyToken, "", (*server).sqsCreateQueue},
		{"GetQueueUrl", canPostOrGet, "QueueName", (*server).sqsGetQueueURL},
		{"ListQueues", anyToken, "", (*server).sqsListQueues},
		{"ListDeadLetterSourceQueues", canPostOrGet, "QueueUrl", (*server).sqsListDeadLetterSourceQueues},
		{"DeleteQueue", admin, "QueueUrl", (*server).sqsDeleteQueue},
		{"PurgeQueue", admin, "QueueUrl", (*server).sqsPurgeQueue},
		{"SetQueueAttributes", admin, "QueueUrl", (*server).sqsSetQueueAttributes},
		{"GetQueueAttributes", canPostOrGet, "QueueUrl", (*server).sqsGetQueueAttributes},
		{"SendMessage", canPost, "QueueUrl", (*server).sqsSendMessage},
		{"SendMessageBatch", canPost, "QueueUrl", (*server).sqsSendMessageBatch},
		{"ReceiveMessage", canGet, "QueueUrl", (*server).sqsReceiveMessage},
		{"DeleteMessage", canGet, "QueueUrl", sqsOne((*server).deleteSQS)},
		{"DeleteMessageBatch", canGet, "QueueUrl", sqsBatch((*server).deleteSQS)},
		{"ChangeMessageVisibility", canGet, "QueueUrl", sqsOne((*server).changeSQSVisibility)},
		{"ChangeMessageVisibilityBatch", canGet, "QueueUrl", sqsBatch((*server).changeSQSVisibility)},
		{"TagQueue", admin, "QueueUrl", (*server).sqsTagQueue},
		{"UntagQueue", admin, "QueueUrl", (*server).sqsUntagQueue},
		{"ListQueueTags", canPostOrGet, "QueueUrl", (*server).sqsListQueueTags},
		{"AddPermission", admin, "QueueUrl", (*server).sqsAddPermission},
		{"RemovePermission", admin, "QueueUrl", (*server).sqsRemovePermission},
		{"StartMessageMoveTask", admin, "", (*server).sqsStartMessageMoveTask},
		{"ListMessageMoveTasks", admin, "", (*server).sqsListMessageMoveTasks},
		{"CancelMessageMoveTask", admin, "", (*server).sqsCancelMessageMoveTask},
	} {
		all[v.name] = &v
	}
	return all
}()

// isSQS reports whether a request is one of SQS. No other route has such a path, except for
// GET /, which is SQS's only with an action.
func isSQS(r *http.Request) bool {
	if r.URL.Path != "/" {
		return isSQSPath(r.URL.Path)
	}
	if strings.HasPrefix(r.URL.RawQuery, "Action=") || strings.Contains(r.URL.RawQuery, "&Action=") {
		return r.Method == http.MethodPost || r.Method == http.MethodGet || r.Method == http.MethodHead
	}
	return r.Method == http.MethodPost && (isSQSJSON(r) || hasMediaType(r, "application/x-www-form-urlencoded"))
}

// isSQSJSON reports whether a request of SQS is one of the JSON protocol.
func isSQSJSON(r *http.Request) bool { return hasMediaType(r, sqsJSONPrefix) }

func hasMediaType(r *http.Request, prefix string) bool {
	return strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), prefix)
}

// sqsJSONPrefix begins the content type of requests of the JSON protocol.
const sqsJSONPrefix = "application/x-amz-json-1."

// isSQSPath reports whether a path is that of the URL of a queue, /{12 digits}/{queue}.
func isSQSPath(path string) bool {
	account, name, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return len(account) == len(sqsAccount) && strings.Trim(account, "0123456789") == "" && name != ""
}

// isSQSQuery reports whether a request of SQS is one of the Query protocol.
func (r *request) isSQSQuery() bool { return !r.sqsJSON }

// callSQS decodes a request of SQS, calls the handler of its action and returns the
// response.
func (s *server) callSQS(r *request) (any, error) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		r.w.Header().Set("Allow", "GET, POST")
		return nil, errMethod
	}
	if err := refuseOtherSites(r); err != nil {
		return nil, err
	}
	if err := s.authorizeSQS(r); err != nil {
		return nil, err
	}
	if err := r.readBody(maxSQSBody, s.transferTimeout); err != nil {
		return nil, err
	}
	if err := s.checkSignature(r); err != nil {
		return nil, err
	}
	if err := s.serving(r); err != nil {
		return nil, err
	}
	in, err := r.sqsInput()
	if err != nil {
		return nil, err
	}
	if in.action == "" && r.isSQSQuery() {
		return withStatus{http.StatusNotFound, content{mediaType: "text/xml", bytes: []byte("<UnknownOperationException/>")}}, nil
	}
	action := sqsActions[in.action]
	if action == nil {
		return nil, errSQSAction(in.action)
	}
	r.Pattern = "AmazonSQS." + action.name // for the metrics
	if r.queueID, err = r.sqsQueue(action, in); err != nil {
		return nil, err
	}
	r.SetPathValue("queue_id", r.queueID) // for the permission
	if err := r.permit(action.need); err != nil {
		return nil, err
	}
	if !action.reads() && r.isUnsignedBrowserGet() {
		return nil, sqsAccessDenied.errorf("Access to the resource is denied: a browser cannot send %s with GET, unless the URL is signed.", action.name)
	}
	result, err := action.handle(s, r, in)
	if err != nil {
		return nil, err
	}
	return r.sqsResponse(action, result), nil
}

// sqsInput decodes the parameters of a request.
func (r *request) sqsInput() (*sqsInput, error) {
	if !r.isSQSQuery() {
		action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
		if !ok {
			return nil, errSQSAction(action)
		}
		if sqsActions[action] == nil { // known before the body is decoded
			return &sqsInput{action: action}, nil
		}
		return parseSQSJSON(action, r.body)
	}
	form := ""
	if r.Method == http.MethodPost {
		form = string(r.body)
	}
	return parseSQSQuery(r.URL.RawQuery, form)
}

// sqsQueue returns the id of the queue that a request is about, empty if it is about none.
func (r *request) sqsQueue(action *sqsAction, in *sqsInput) (string, error) {
	if action.queue == "" {
		return "", nil
	}
	name := in.text(action.queue)
	if action.queue == "QueueName" {
		if name == "" {
			return "", sqsMissing("QueueName")
		}
	} else {
		if !in.has(action.queue) && in.query {
			name = r.URL.Path
		}
		name = sqsNameOf(name)
	}
	if err := in.err(); err != nil {
		return "", err
	}
	if !validID(name) {
		return "", errSQSNoQueue
	}
	return name, nil
}

// sqsResponse returns the response to an action.
func (r *request) sqsResponse(action *sqsAction, result sqsObject) any {
	held := 0
	for _, m := range r.unsent.messages {
		held += messageSize + len(m.Data) + len(m.Attributes) + len(m.past.sqs)
	}
	if !r.isSQSQuery() {
		return sqsBody{sqsJSONType, held, result.appendJSON}
	}
	body := make(sqsObject, 0, 2)
	if result != nil {
		body = append(body, sqsMember{action.name + "Result", result})
	}
	body = append(body, sqsMember{"ResponseMetadata", sqsObject{{"RequestId", r.sqsRequestID()}}})
	return sqsBody{"text/xml", held, func(b []byte) []byte { return body.appendXML(b, action.name+"Response", action.name) }}
}

// sqsBody is the body of a response. It is encoded once there is capacity for the messages
// in it.
type sqsBody struct {
	mediaType string
	held      int // bytes of memory of the messages
	encode    func(b []byte) []byte
}

func (v sqsBody) size() int { return v.held }

func (v sqsBody) piece(b []byte, _ int) ([]byte, int) {
	return v.encode(slices.Grow(b, v.held+firstSQSBody)), -1
}

// firstSQSBody is the size of the first buffer for a response, apart from the messages in it.
const firstSQSBody = 256

// setSQS makes a request one of SQS, whose responses have an id of their own.
func (r *request) setSQS() {
	r.api = amazonSQS
	r.sqsJSON = isSQSJSON(r.Request)
	r.w.Header().Set("X-Amzn-Requestid", newID())
}

func (r *request) sqsRequestID() string { return r.w.Header().Get("X-Amzn-Requestid") }
