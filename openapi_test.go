package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// description has the parts of openapi.json that the tests check.
type description struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Parameters map[string]describedParameter
	}
}

type describedParameter struct {
	Ref     string `json:"$ref"`
	Name    string
	In      string
	Example any
}

type describedOperation struct {
	OperationID string
	Parameters  []describedParameter
	RequestBody struct {
		Content map[string]struct{ Example json.RawMessage }
	}
	Responses map[string]json.RawMessage
}

func TestEveryRouteIsDescribedAndNothingElse(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	var d description
	mustDecode(t, s.must(200, "GET", "/openapi.json", ""), &d)
	var described []string
	for path, item := range d.Paths {
		for method := range item {
			if method != "parameters" {
				described = append(described, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(described)
	var routes []string
	for _, r := range s.routes {
		if r.api == native {
			routes = append(routes, r.pattern)
		}
	}
	slices.Sort(routes)
	checkDiff(t, "routes", routes, described)
}

// A user of /docs can send every example in order: each is a request that succeeds with
// a described status. No field in them is unknown.
func TestDescribedExamplesWork(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	var d description
	if err := json.Unmarshal(openapiJSON, &d); err != nil {
		t.Fatal(err)
	}
	const exampleID = "01a2074b-c9ed-7161-8002-d1ae86de3ff8"
	try := func(method, path string) {
		var op describedOperation
		mustDecode(t, string(d.Paths[path][method]), &op)
		var shared []describedParameter
		if raw := d.Paths[path]["parameters"]; raw != nil {
			mustDecode(t, string(raw), &shared)
		}
		target, query := path, url.Values{}
		for _, p := range append(shared, op.Parameters...) {
			if p.Ref != "" {
				p = d.Components.Parameters[p.Ref[strings.LastIndex(p.Ref, "/")+1:]]
			}
			if p.In == "path" {
				target = strings.Replace(target, "{"+p.Name+"}", fmt.Sprint(p.Example), 1)
			} else if p.In == "query" && p.Example != nil {
				query.Set(p.Name, strings.ReplaceAll(strings.Trim(fmt.Sprint(p.Example), "[]"), " ", ",")) // a list is separated by commas
			}
		}
		body := string(op.RequestBody.Content["application/json"].Example)
		if strings.Contains(target+body, exampleID) { // a message that was just received
			s.must(204, "PUT", "/queues/invoices/purge", "")
			s.must(204, "PUT", "/queues/invoices/resume", "")
			s.must(201, "POST", "/queues/invoices/messages", `{"data":{}}`)
			id := s.receive("invoices", "?wait_seconds=20")[0].ID
			target, body = strings.Replace(target, exampleID, id, 1), strings.Replace(body, exampleID, id, 1)
		}
		got := s.strict().do(strings.ToUpper(method), target+"?"+query.Encode(), body)
		if got.status >= 300 || op.Responses[fmt.Sprint(got.status)] == nil && op.Responses["307"] == nil { // a redirect is followed
			t.Errorf("%s: %s %s %s = %d", op.OperationID, method, target, body, got.status)
		}
	}
	try("post", "/topics")
	try("post", "/queues")
	try("put", "/queues/{queue_id}/groups/{group}") // creates the group
	last := []string{"/queues/{queue_id}/groups/{group}", "/queues/{queue_id}", "/topics/{topic_id}"}
	for path, item := range d.Paths {
		for method := range item {
			if method != "parameters" && method != "delete" && path != "/topics" && path != "/queues" {
				try(method, path)
			}
		}
	}
	for _, path := range last {
		try("delete", path)
	}
}

func TestDocsPageLoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, path := range []string{"/docs", "/redoc"} { // the client follows the redirect
		page := s.do("GET", path, "")
		if page.status != 200 || page.header.Get("Content-Type") != "text/html; charset=utf-8" || page.body != docsHTML {
			t.Errorf("GET %s = %d %s, want the page", path, page.status, page.header)
		}
		policy := page.header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'sha256-") {
			t.Errorf("GET %s has the policy %q", path, policy)
		}
		if found := regexp.MustCompile(`(?i)https?://|\bsrc=|\son[a-z]+=|style="`).FindString(page.body); found != "" {
			t.Errorf("GET %s contains %q, which the content policy forbids or the network may lack", path, found)
		}
	}
}
