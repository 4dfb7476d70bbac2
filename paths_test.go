package main

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// removeDotSegments removes "." and ".." from a path, as curl and browsers do before
// they send it (RFC 3986, section 5.2.4).
func removeDotSegments(path string) string {
	var kept []string
	segments := strings.Split(path[1:], "/")
	for i, segment := range segments {
		last := i == len(segments)-1
		switch strings.ReplaceAll(strings.ToLower(segment), "%2e", ".") {
		case ".":
		case "..":
			kept = kept[:max(len(kept)-1, 0)]
		default:
			kept = append(kept, segment)
			continue
		}
		if last {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// A client that follows a redirect sends the same method to another path. It could
// delete a queue instead of a group.
func TestOddPathsAreNotRedirectedAndDeleteNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("m")
	s.publish("m", 1)
	s.must(201, "POST", "/queues/m/messages", `{"data":{},"group":"m"}`)
	s.must(201, "POST", "/enqueue/m/m/", `{"job_id":"m","payload":{},"interval":0}`)
	rows := func() (n int) {
		for _, table := range []string{"topics", "queues", "messages"} {
			n += s.count("SELECT count(*) FROM queued." + table)
		}
		return n
	}
	odd := []string{"", ".", "..", "/", "//", "a//b", "../..", "m/..", "%2e%2e", "%2E", "..%2f..", "%2F", "%2f..", "m%2F"}
	for _, r := range s.routes {
		_, pattern, _ := strings.Cut(r.pattern, " ")
		pattern = strings.TrimSuffix(pattern, "{$}")
		var paths []string
		segments := strings.Split(pattern, "/")
		for i, segment := range segments {
			if strings.HasPrefix(segment, "{") {
				for _, text := range odd {
					path := strings.Join(segments[:i], "/") + "/" + text + strings.Join(append([]string{""}, segments[i+1:]...), "/")
					paths = append(paths, path)
				}
			}
		}
		for _, end := range []string{"/", "//", "/.", "/..", "/x/../"} {
			paths = append(paths, strings.TrimSuffix(pattern, "/")+end, "/"+pattern+end)
		}
		var fill []string
		for _, segment := range segments {
			if strings.HasPrefix(segment, "{") {
				fill = append(fill, segment, "m")
			}
		}
		plain := strings.NewReplacer(fill...).Replace(pattern)
		before := rows()
		for _, path := range paths {
			path = strings.NewReplacer(fill...).Replace(path)
			for _, path := range []string{path, removeDotSegments(path)} {
				if path == plain {
					continue
				}
				for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"} {
					response := httptest.NewRecorder()
					s.ServeHTTP(response, httptest.NewRequest(method, "http://localhost"+path, nil))
					if response.Code/100 == 3 || response.Header().Get("Location") != "" {
						t.Errorf("%s %s = %d to %s", method, path, response.Code, response.Header().Get("Location"))
					}
				}
			}
		}
		checkDiff(t, "rows after odd paths of "+r.pattern, before, rows())
	}
}

func TestOneSlashTooManyIsServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	for _, v := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/in/t/", "one", 200, ""},
		{"GET", "/out/t/", "", 200, "one"},
		{"OPTIONS", "/in/t/", "", 200, "POST: Enqueues a new job. The raw request body (e.g., JSON) is treated as the job payload.\nRequires 'post' permission for this queue."},
		{"POST", "/topics/t/messages/?x=/", `{"data":{}}`, 201, ""},
		{"GET", "/queues/t/messages/peek/?limit=1", "", 200, ""},
		{"HEAD", "/topics/t/", "", 200, ""},
		{"POST", "/message/", `{"channel":"t","message":{}}`, 201, ""},
		{"PATCH", "/topics/t/", "", 405, `{"detail":"Method Not Allowed"}`},
		{"PUT", "/queues/t/purge/", "", 404, `{"detail":"Not Found"}`},
		{"DELETE", "/queues/t/", "", 404, `{"detail":"Not Found"}`},
		{"POST", "/in/t//", "one", 404, `{"detail":"Not Found"}`},
		{"POST", "/in//t", "one", 404, `{"detail":"Not Found"}`},
		{"GET", "/queues/t/../t", "", 404, `{"detail":"Not Found"}`},
	} {
		got := s.do(v.method, v.path, v.body)
		if got.status != v.status || v.want != "" && strings.TrimSpace(got.body) != v.want {
			t.Errorf("%s %s = %d %s, want %d %s", v.method, v.path, got.status, got.body, v.status, v.want)
		}
	}
	checkDiff(t, "messages", 2, s.count("SELECT count(*) FROM queued.messages"))
}

// A client or a proxy may turn the path of such a group into another path.
func TestGroupsThatWouldChangeAPathAreRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, group := range []string{".", "..", "/", "a/", "/a", "a//b", "../q", "a/../b", "a/./b", "a/.."} {
		const msg = `"msg":"ensure that no part of this value between slashes is empty, \".\" or \"..\"","type":"value_error"}]}`
		body := fmt.Sprintf(`{"data":{},"group":%q}`, group)
		checkDiff(t, "publish to "+group, `{"detail":[{"loc":["body","group"],`+msg, s.must(422, "POST", "/queues/q/messages", body))
		checkDiff(t, "batch to "+group, `{"detail":[{"loc":["body","messages",0,"group"],`+msg, s.must(422, "POST", "/queues/q/messages/batch", `{"messages":[`+body+`]}`))
		path := "/queues/q/groups/" + strings.NewReplacer("/", "%2F", ".", "%2E").Replace(group)
		if group != "/" { // http.ServeMux does not treat it as a segment
			checkDiff(t, "interval of "+group, `{"detail":[{"loc":["path","group"],`+msg, s.must(422, "PUT", path, `{"delivery_interval_ms":5}`))
		}
		if got := s.do("POST", strings.Replace(path, "/queues/q/groups", "/enqueue/q", 1)+"/", `{"job_id":"j","payload":{},"interval":0}`); got.status != 400 && group != "/" {
			t.Errorf("a job in %s = %d %s, want 400", group, got.status, got.body)
		}
	}
	for _, group := range []string{"a/b", "...", ".a", "a..", "..a/b.", "a b", "%2e%2e"} {
		s.must(201, "POST", "/queues/q/messages", fmt.Sprintf(`{"data":{},"group":%q}`, group))
	}
}

// Earlier versions allowed any text.
func TestGroupsFromBeforeAreDeliveredWhateverTheirID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, group := range []string{"..", "../q", "a//b"} {
		publish := func() {
			s.exec("DELETE FROM queued.groups")
			s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":"before"}`)
			s.exec("UPDATE queued.messages SET group_id = $1", group)
			s.exec("UPDATE queued.groups SET id = $1", group)
			s.exec("UPDATE queued.ready_groups SET id = $1", group)
		}
		publish()
		path := "/queues/q/groups/" + strings.NewReplacer("/", "%2F", ".", "%2E").Replace(group)
		s.must(200, "GET", path, "")
		all := s.receive("q", "")
		checkDiff(t, "received of "+group, []int{1}, numbers(all))
		s.must(204, "PUT", "/messages/"+all[0].ID+"/ack", "")
		publish()
		s.must(204, "DELETE", path, "")
		checkDiff(t, "left of "+group, 0, s.count("SELECT count(*) FROM queued.messages"))
	}
	s.must(200, "GET", "/queues/q", "")
}
