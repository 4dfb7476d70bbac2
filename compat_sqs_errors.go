package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// sqsFailure is a kind of error of SQS. It has two names: clients of the JSON protocol
// choose their exception by typ or by code, and those of the Query protocol by code.
type sqsFailure struct {
	status int
	typ    string // __type
	code   string // of the Query protocol
}

// The kinds of errors of SQS.
var (
	sqsQueueDoesNotExist    = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"}
	sqsQueueNameExists      = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#QueueNameExists", "QueueAlreadyExists"}
	sqsInvalidParameter     = sqsFailure{http.StatusBadRequest, "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue"}
	sqsMissingParameter     = sqsFailure{http.StatusBadRequest, "com.amazon.coral.service#MissingRequiredParameterException", "MissingParameter"}
	sqsInvalidAttributeName = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#InvalidAttributeName", "InvalidAttributeName"}
	sqsInvalidAttribute     = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#InvalidAttributeValue", "InvalidAttributeValue"}
	sqsInvalidContents      = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#InvalidMessageContents", "InvalidMessageContents"}
	sqsInvalidHandle        = sqsFailure{http.StatusNotFound, "com.amazonaws.sqs#ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid"}
	sqsEmptyBatch           = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest"}
	sqsTooManyEntries       = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"}
	sqsIDsNotDistinct       = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"}
	sqsInvalidEntryID       = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId"}
	sqsBatchTooLong         = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong"}
	sqsUnsupported          = sqsFailure{http.StatusBadRequest, "com.amazonaws.sqs#UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation"}
	sqsOverLimit            = sqsFailure{http.StatusForbidden, "com.amazonaws.sqs#OverLimit", "OverLimit"}
	sqsThrottled            = sqsFailure{http.StatusForbidden, "com.amazonaws.sqs#RequestThrottled", "RequestThrottled"}
	sqsUnknownOperation     = sqsFailure{http.StatusBadRequest, "com.amazon.coral.service#UnknownOperationException", "InvalidAction"}
	sqsSerialization        = sqsFailure{http.StatusBadRequest, "com.amazon.coral.service#SerializationException", "MalformedInput"}
	sqsAccessDenied         = sqsFailure{http.StatusForbidden, "com.amazon.coral.service#AccessDeniedException", "AccessDenied"}
	sqsUnknownKey           = sqsFailure{http.StatusForbidden, "com.amazon.coral.service#UnrecognizedClientException", "InvalidClientTokenId"}
	sqsWrongSignature       = sqsFailure{http.StatusForbidden, "com.amazon.coral.service#InvalidSignatureException", "SignatureDoesNotMatch"}
	sqsBrokenSignature      = sqsFailure{http.StatusBadRequest, "com.amazon.coral.service#IncompleteSignatureException", "IncompleteSignature"}
	sqsResourceNotFound     = sqsFailure{http.StatusNotFound, "com.amazonaws.sqs#ResourceNotFoundException", "ResourceNotFoundException"}
	sqsUnavailable          = sqsFailure{http.StatusServiceUnavailable, "com.amazon.coral.service#ServiceUnavailable", "ServiceUnavailable"}
	sqsInternal             = sqsFailure{http.StatusInternalServerError, "com.amazon.coral.service#InternalFailure", "InternalFailure"}
)

// sqsError is an error of SQS with its text.
type sqsError struct {
	sqsFailure
	text string
}

func (e sqsError) Error() string { return e.text }

// errorf returns an error of this kind. Texts among the arguments may be what a client has
// sent: they are made UTF-8, and are cut if they are long.
func (v sqsFailure) errorf(format string, args ...any) error {
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = cutText(toUTF8(text), maxSQSQuoted)
		}
	}
	return sqsError{v, fmt.Sprintf(format, args...)}
}

// maxSQSQuoted is the maximum length of a text that an error quotes, in bytes, so that
// responses take much less memory than requests.
const maxSQSQuoted = 4096

// sender returns whose fault an error is, in SQS's word.
func (v sqsFailure) sender() string {
	if v.status >= http.StatusInternalServerError {
		return "Receiver"
	}
	return "Sender"
}

var errSQSNoQueue = sqsQueueDoesNotExist.errorf("The specified queue does not exist.")

// errSQSAction returns the error for an unknown action.
func errSQSAction(name string) error {
	return sqsUnknownOperation.errorf("The action %s is not valid for this endpoint.", name)
}

// sqsMissing returns the error for a required parameter that is missing or empty.
func sqsMissing(parameter string) error {
	return sqsMissingParameter.errorf("The request must contain the parameter %s.", parameter)
}

// sqsInvalidValue returns the error for an invalid value of a parameter.
func sqsInvalidValue(value any, parameter, format string, args ...any) error {
	return sqsInvalidParameter.errorf("Value %v for parameter %s is invalid. Reason: %s", value, parameter, fmt.Sprintf(format, args...))
}

// asSQSError returns the error of SQS for an error, for which explain has the status and
// the detail.
func asSQSError(err error, status int, detail any) sqsError {
	if known, ok := errors.AsType[sqsError](err); ok {
		return known
	}
	v := sqsInvalidParameter
	switch {
	case errors.Is(err, errQueueNotFound):
		return errSQSNoQueue.(sqsError)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		v = sqsAccessDenied
	case status == http.StatusTooManyRequests: // the queue is full
		v = sqsThrottled
	case status == http.StatusServiceUnavailable:
		v = sqsUnavailable
	case status >= http.StatusInternalServerError:
		v = sqsInternal
	case status == http.StatusRequestEntityTooLarge:
		v.status, detail = status, fmt.Sprintf("The request must be shorter than %d bytes.", maxSQSBody)
	case status == http.StatusMethodNotAllowed, status == statusClientClosed:
		v.status = status
	}
	return sqsError{v, errorText(detail)}
}

// sqsProblem returns the response to an error.
func sqsProblem(r *request, err error, status int, detail any) any {
	e := asSQSError(err, status, detail)
	if !r.isSQSQuery() {
		r.w.Header().Set("X-Amzn-Query-Error", e.code+";"+e.sender())
		b := sqsObject{{"__type", e.typ}, {"message", e.text}}.appendJSON(nil)
		return withStatus{e.status, content{mediaType: sqsJSONType, bytes: b}}
	}
	if e.sqsFailure == sqsQueueDoesNotExist {
		e.text = strings.TrimSuffix(e.text, ".") + " for this wsdl version."
	}
	body := sqsObject{
		{"Error", sqsObject{{"Type", e.sender()}, {"Code", e.code}, {"Message", e.text}, {"Detail", sqsObject{}}}},
		{"RequestId", r.sqsRequestID()},
	}
	return withStatus{e.status, content{mediaType: "text/xml", bytes: body.appendXML(nil, "ErrorResponse", "")}}
}
