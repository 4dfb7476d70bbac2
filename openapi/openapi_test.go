// Package openapi checks the server's responses against the description of its API.
// It is a separate module because it depends on a validator.
package openapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
)

// reply is a response that the server sent in one of its tests.
type reply struct {
	Method string      `json:"method"`
	Target string      `json:"target"`
	Status int         `json:"status"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// otherAPIs matches the paths of the other servers' APIs, which openapi.json does not
// describe.
var otherAPIs = regexp.MustCompile(`^/(message|messages|channels|(queue|in|out|compact)/[^/]*|((enqueue|dequeue|finish|interval|deletequeue|status|metrics|deepstatus)(/.*)|dequeue|deepstatus)?)/?(\?.*)?$`)

func TestEveryReplyFitsItsSchema(t *testing.T) {
	text, err := os.ReadFile("../openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Errorf("openapi.json: %s: %s %v", e.Message, e.Reason, e.SchemaValidationErrors)
		}
		t.FailNow()
	}

	file, err := os.Open(replies(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 256<<20)
	seen := map[string]bool{}
	statuses := map[int]int{}
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		shape := r.Method + r.Target + http.StatusText(r.Status) + mask(r.Body)
		if r.Method == http.MethodHead || seen[shape] || otherAPIs.MatchString(r.Target) {
			continue
		}
		seen[shape] = true
		statuses[r.Status]++
		r.check(t, v)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{200, 201, 204, 404, 409, 422, 503} {
		if statuses[status] == 0 {
			t.Errorf("no reply has the status %d: is anything recorded?", status)
		}
	}
	t.Logf("%d different responses, by status: %v", len(seen), statuses)
}

// check fails the test unless the description has such a response.
func (r *reply) check(t *testing.T, v validator.Validator) {
	request, err := http.NewRequest(r.Method, "http://localhost"+r.Target, nil)
	if err != nil {
		t.Error(err)
		return
	}
	ok, errs := v.ValidateHttpResponse(request, &http.Response{
		StatusCode: r.Status,
		Header:     r.Header,
		Body:       io.NopCloser(bytes.NewReader(hugeExponent.ReplaceAll(r.Body, []byte("e40")))),
	})
	if ok {
		return
	}
	for _, e := range errs {
		if e.IsPathMissingError() || e.IsOperationMissingError() {
			// An error for an unknown route, or for a route that a test added.
			if r.Status >= 300 {
				continue
			}
		}
		t.Errorf("%s %s = %d %s\n%s: %s %v", r.Method, r.Target, r.Status, excerpt(r.Body), e.Message, e.Reason, e.SchemaValidationErrors)
	}
}

// replies returns the path of a file with the responses that the server sent in its
// tests: the file in QUEUED_TEST_REPLIES if it is set, else that of a new test run.
func replies(t *testing.T) string {
	if path := os.Getenv("QUEUED_TEST_REPLIES"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "replies")
	test := exec.Command("go", "test", "-count=1", ".")
	test.Dir = ".."
	test.Env = append(os.Environ(), "QUEUED_TEST_REPLIES="+path)
	if out, err := test.CombinedOutput(); err != nil {
		t.Fatalf("go test: %v\n%s", err, out)
	}
	return path
}

// hugeExponent matches exponents that the server preserves and the validator rejects.
var hugeExponent = regexp.MustCompile(`e400\b`)

var varying = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+`)

// mask replaces ids and numbers, so that responses of the same shape are equal.
func mask(body []byte) string { return varying.ReplaceAllString(string(body), "#") }

// excerpt returns at most the first 300 bytes of a body.
func excerpt(body []byte) string {
	if len(body) > 300 {
		return strings.ToValidUTF8(string(body[:300]), "") + "…"
	}
	return string(body)
}
