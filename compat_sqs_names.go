package main

import (
	"encoding/base64"
	"net/http"
	"strings"
)

// sqsAccount is the account of all queues in URLs and ARNs.
const sqsAccount = "000000000000"

// validSQSName reports whether SQS allows to create a queue with this name.
func validSQSName(name string) bool {
	return len(name) <= 80 && validSQSWord(strings.TrimSuffix(name, sqsFIFOSuffix))
}

// sqsFIFOSuffix ends the names of FIFO queues.
const sqsFIFOSuffix = ".fifo"

// validSQSWord reports whether a text is 1 to 80 of the characters in names of queues and
// ids of the entries of a batch.
func validSQSWord(text string) bool {
	return validID(text) && len(text) <= 80 && !strings.Contains(text, ".")
}

// sqsNameOf returns the name of the queue in a URL or an ARN, or in a bare name.
func sqsNameOf(text string) string {
	text = strings.TrimRight(text, "/")
	return text[strings.LastIndexAny(text, "/:")+1:]
}

// sqsURL returns the URL of a queue: at -public-url or, without it, at the host that the client
// has used. A proxy in front of the server then keeps the Host header, and says with
// X-Forwarded-Proto whether the client uses HTTPS.
func (s *server) sqsURL(r *request, queueID string) string {
	public := "http://" + r.Host
	switch {
	case s.publicURL != nil:
		public = s.publicURL.String()
	case r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https":
		public = "https://" + r.Host
	}
	return public + "/" + sqsAccount + "/" + queueID
}

// sqsARN returns the ARN of a queue, in the region of the client.
func (r *request) sqsARN(queueID string) string {
	return "arn:aws:sqs:" + signingRegion(r.Request) + ":" + sqsAccount + ":" + queueID
}

// signingRegion returns the region that a request was signed for, whether or not the
// signature is valid, and defaultRegion if it has none.
func signingRegion(r *http.Request) string {
	credential := r.URL.Query().Get("X-Amz-Credential")
	if _, rest, found := strings.Cut(r.Header.Get("Authorization"), "Credential="); found {
		credential, _, _ = strings.Cut(rest, ",")
	}
	scope := strings.Split(credential, "/")
	if n := len(scope) - 3; n > 0 && validID(scope[n]) {
		return scope[n]
	}
	return defaultRegion
}

// defaultRegion is the region in the ARNs of requests that were not signed.
const defaultRegion = "us-east-1"

// sqsToken returns the token for the page of a list after a queue.
func sqsToken(queueID string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(queueID))
}

// sqsPage reads the parameters of a page of a list: the id of the queue that it comes after,
// empty for the first page, and the maximum number of queues.
func (in *sqsInput) sqsPage() (after string, limit int, err error) {
	limit, err = in.bounded("MaxResults", bounds{1, 1000}, 1000)
	if err != nil {
		return "", 0, err
	}
	if token := in.text("NextToken"); token != "" {
		b, err := base64.RawURLEncoding.DecodeString(token)
		if after = string(b); err != nil || !validID(after) {
			return "", 0, sqsInvalidParameter.errorf("Invalid or expired next token.")
		}
	}
	return after, limit, in.err()
}
