// Package openapi holds the description of the API against the answers of the
// server. It is a module of its own because it needs a validator.
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

// reply is an answer that the server gave in one of its tests.
type reply struct {
	Method string      `json:"method"`
	Target string      `json:"target"`
	Status int         `json:"status"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// otherAPIs are the paths of the servers whose API is not described here.
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
	if ok, mistakes := v.ValidateDocument(); !ok {
		for _, m := range mistakes {
			t.Errorf("openapi.json: %s: %s %v", m.Message, m.Reason, m.SchemaValidationErrors)
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
		var a reply
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		shape := a.Method + a.Target + http.StatusText(a.Status) + mask(a.Body)
		if a.Method == http.MethodHead || seen[shape] || otherAPIs.MatchString(a.Target) {
			continue
		}
		seen[shape] = true
		statuses[a.Status]++
		a.check(t, v)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{200, 201, 204, 404, 409, 422, 503} {
		if statuses[status] == 0 {
			t.Errorf("no reply has the status %d: is anything recorded?", status)
		}
	}
	t.Logf("%d different replies, by status: %v", len(seen), statuses)
}

// check fails the test unless the description has such an answer.
func (a *reply) check(t *testing.T, v validator.Validator) {
	r, err := http.NewRequest(a.Method, "http://localhost"+a.Target, nil)
	if err != nil {
		t.Error(err)
		return
	}
	ok, mistakes := v.ValidateHttpResponse(r, &http.Response{
		StatusCode: a.Status,
		Header:     a.Header,
		Body:       io.NopCloser(bytes.NewReader(tooLarge.ReplaceAll(a.Body, []byte("e40")))),
	})
	if ok {
		return
	}
	for _, m := range mistakes {
		if m.IsPathMissingError() || m.IsOperationMissingError() {
			// No route of the description, or one that a test added.
			if a.Status >= 300 {
				continue
			}
		}
		t.Errorf("%s %s = %d %s\n%s: %s %v", a.Method, a.Target, a.Status, cut(a.Body), m.Message, m.Reason, m.SchemaValidationErrors)
	}
}

// replies returns the file that the tests of the server wrote their answers to:
// that in QUEUED_TEST_REPLIES, or else that of a run of them.
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

// tooLarge is in numbers that the server keeps and the validator cannot read.
var tooLarge = regexp.MustCompile(`e400\b`)

var varying = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+`)

// mask replaces what differs between answers of the same shape.
func mask(body []byte) string { return varying.ReplaceAllString(string(body), "#") }

func cut(body []byte) string {
	if len(body) > 300 {
		return strings.ToValidUTF8(string(body[:300]), "") + "…"
	}
	return string(body)
}
