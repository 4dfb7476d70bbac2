package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// A page of another site can make a browser send any of these requests, to any path.
// With DNS rebinding, where the name of the site points to this machine, they look like
// requests of the same origin.
func TestNoRouteIsOpenToPagesElsewhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.hosts.allowed = []string{"queue.example"}
	port := s.url[strings.LastIndex(s.url, ":"):]
	here := "Host: 127.0.0.1" + port
	elsewhere := [][]string{
		// Fetch, forms, images and so on, of browsers that send Sec-Fetch-Site.
		{here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"},
		{here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors", "Origin: https://evil.example", "Content-Type: text/plain"},
		{here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-User: ?1", "Origin: null", "Content-Type: application/x-www-form-urlencoded"},
		{here, "Sec-Fetch-Site: same-site", "Origin: http://127.0.0.1:1", "Content-Type: multipart/form-data; boundary=x"},
		{here, "Sec-Fetch-Site: something new"},
		// Of older browsers.
		{here, "Origin: https://evil.example", "Content-Type: text/plain"},
		{here, "Origin: null"},
		{here, "Origin: http://127.0.0.1"},
		{here, "Origin: http://localhost" + port},
		{here, "Origin: http://127.0.0.1" + port + ".evil.example"},
		{here, "Origin: http://evil.example", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="},
	}
	var hosts [][]string // each route gets some of them, because one place refuses them for all routes
	for _, host := range []string{
		"evil.example", "EVIL.example", "evil.example.", "evil.localhost", "localhost.", "localhost.evil.example", "queue.example.evil.example",
		"127.0.0.1.", "127.0.0.1.evil.example", "127.1", "0177.0.0.1", "2130706433",
		"0.0.0.0", "192.0.2.1", "[::]", "[::ffff:192.0.2.1]", "[2001:db8::1]", "[::1].evil.example", "",
	} {
		for _, host := range []string{host, host + port} {
			hosts = append(hosts, []string{"Host: " + host, "Sec-Fetch-Site: same-origin", "Origin: http://" + host})
			if host != "" { // a browser always sends a host
				hosts = append(hosts, []string{"Host: " + host})
			}
		}
	}
	const queue = `{"id":"new","ack_deadline_seconds":60,"message_retention_seconds":3600}`
	bodies := map[string]string{
		"POST /topics":                            `{"id":"new"}`,
		"POST /queues":                            queue,
		"PUT /queues/{queue_id}":                  queue,
		"PUT /queues/{queue_id}/groups/{group}":   `{"delivery_interval_ms":3}`,
		"PUT /queues/{queue_id}/redrive":          `{"destination_queue_id":"u"}`,
		"POST /topics/{topic_id}/messages":        `{"data":{}}`,
		"POST /queues/{queue_id}/messages":        `{"data":{}}`,
		"PUT /messages/{message_id}/extend":       `{"ack_deadline_seconds":600}`,
		"PUT /messages/ack":                       `{"ids":["MESSAGE"]}`,
		"PUT /messages/nack":                      `{"ids":["MESSAGE"]}`,
		"PUT /messages/redrive":                   `{"ids":["WAITING"],"destination_queue_id":"u"}`,
		"DELETE /messages":                        `{"ids":["MESSAGE"]}`,
		"POST /topics/{topic_id}/messages/batch":  `{"messages":[{"data":{}}]}`,
		"POST /queues/{queue_id}/messages/batch":  `{"messages":[{"data":{}}]}`,
		"POST /message":                           `{"channel":"t","message":{}}`,
		"POST /in/{queue}":                        `anything`,
		"POST /enqueue/{queue_type}/{group}/{$}":  `{"job_id":"k","payload":{},"interval":0}`,
		"POST /interval/{queue_type}/{group}/{$}": `{"interval":1}`,
	}
	consumes := map[string]bool{"GET /queues/{queue_id}/messages": true, "GET /queue/{channel}": true, "GET /out/{queue}": true, "GET /dequeue/{$}": true, "GET /dequeue/{queue_type}/{$}": true}
	for n, r := range s.routes {
		route := r.pattern
		asked := slices.Clone(elsewhere)
		for i := n % 8; i < len(hosts); i += 8 {
			asked = append(asked, hosts[i])
		}
		for _, path := range []string{"/topics/t", "/queues/t", "/queues/u", "/topics/new", "/queues/new", "/queues/default"} {
			s.do("DELETE", path, "")
		}
		s.mustQueue("u")
		s.mustTopic("t")
		waiting := s.publish("t", 1, 2)
		s.must(200, "PUT", "/queues/t/groups/g", `{"delivery_interval_ms":2}`)
		for _, path := range []string{"t/g/", "default/g/"} {
			s.must(201, "POST", "/enqueue/"+path, `{"job_id":"j","payload":{},"interval":2}`)
			s.must(201, "POST", "/enqueue/"+path, `{"job_id":"i","payload":{},"interval":2}`)
		}
		s.exec("UPDATE queued.messages SET in_flight = true, scheduled_at = now() + interval '1 h' WHERE job_id = 'j'")
		id := s.receive("t", "?limit=1")[0].ID
		if route == "PUT /queues/{queue_id}/resume" {
			s.must(204, "PUT", "/queues/t/pause", "")
		}
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{topic_id}", "t", "{queue_id}", "t", "{channel}", "t", "{queue}", "t", "{message_id}", id, "{group}", "g", "{queue_type}", "t", "{job_id}", "j", "{file}", "main.js", "{$}", "").Replace(path)
		waiting = slices.DeleteFunc(waiting, func(other string) bool { return other == id })
		body := strings.NewReplacer("MESSAGE", id, "WAITING", waiting[0]).Replace(bodies[route])
		changes := method != "GET" && method != "OPTIONS" || consumes[route]
		before := s.state()
		for _, headers := range asked {
			for _, method := range []string{method, "HEAD", "OPTIONS"} {
				preflight := []string{"Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: content-type", "Access-Control-Request-Private-Network: true"}
				response := s.raw(method, path, body, append(preflight, headers...)...)
				if changes && strings.HasPrefix(route, method) && response.StatusCode != 403 {
					t.Errorf("%s with %q = %d, want 403", route, headers, response.StatusCode)
				}
				for name := range response.Header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s %s with %q grants access: %s", method, path, headers, name)
					}
				}
			}
		}
		checkDiff(t, "state after requests of other sites to "+route, before, s.state())
		response := s.raw(method, path, body, here)
		if changed := s.state() != before; changed != changes {
			t.Errorf("%s = %d changes something: %v; the test needs a body that changes something", route, response.StatusCode, changed)
		}
	}
}

// All actions of SQS can be sent by a form, whose POST needs no preflight, and by a GET.
func TestNoActionOfSQSIsOpenToPagesElsewhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	here := "Host: " + strings.TrimPrefix(s.url, "http://")
	const form = "Content-Type: application/x-www-form-urlencoded"
	elsewhere := [][]string{
		{here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"},
		{here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Origin: null", form},
		{here, "Sec-Fetch-Site: same-site", "Origin: http://127.0.0.1:1", form},
		{here, "Origin: https://evil.example", form},
		{here, "Origin: null", form},
		{"Host: evil.example", form},
		{"Host: evil.example", "Sec-Fetch-Site: same-origin", "Origin: http://evil.example", form},
	}
	s.createSQS("q")
	s.sqsPublish("q", "a", "b")
	handle := s.sqsReceive("q")[0].ReceiptHandle
	parameters := sqsForm("QueueUrl=q", "QueueName=new", "MessageBody=x", "ReceiptHandle="+handle, "VisibilityTimeout=900", "Label=l", "AWSAccountId.1=1", "ActionName.1=*", "Tag.1.Key=a", "Tag.1.Value=b",
		"TagKey.1=a", "Attribute.1.Name=DelaySeconds", "Attribute.1.Value=9")
	before := s.state()
	for action := range sqsActions {
		query := "?Action=" + action + "&" + parameters
		for _, headers := range elsewhere {
			for _, v := range [][3]string{
				{"GET", "/" + query, ""}, {"GET", "/000000000000/q" + query, ""}, {"HEAD", "/" + query, ""},
				{"POST", "/", query[1:]}, {"POST", "/000000000000/q", query[1:]}, {"POST", "/" + query, ""},
			} {
				got := s.raw(v[0], v[1], v[2], headers...)
				if got.StatusCode != 403 && !(v[0] == "HEAD" && got.StatusCode == 405) {
					t.Errorf("%s %s with %q = %d, want 403", v[0], v[1], headers, got.StatusCode)
				}
			}
		}
	}
	checkDiff(t, "state after requests of other sites", before, s.state())
	if got := s.raw("GET", "/?Action=ReceiveMessage&QueueUrl=q", "", here, "Sec-Fetch-Site: none"); got.StatusCode != 200 || s.state() == before {
		t.Errorf("from an address bar = %d", got.StatusCode)
	}
}

// A browser sends neither Sec-Fetch-Site nor Origin with a GET for an image, if the server is
// on another machine and serves HTTP. Links in mails have no site.
func TestNoBrowserChangesQueuesOfSQSByGet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	s.sqsPublish("q", "a")
	const browser = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/144.0.0.0 Safari/537.36"
	parameters := "&" + sqsForm("QueueUrl=q", "QueueName=q", "MessageBody=x", "Tag.1.Key=a", "Tag.1.Value=b", "Attribute.1.Name=DelaySeconds", "Attribute.1.Value=9")
	before := s.state()
	for action := range sqsActions {
		want := 403
		if strings.HasPrefix(action, "Get") || strings.HasPrefix(action, "List") {
			want = 200
		}
		if action == "ListMessageMoveTasks" {
			want = 400 // the source is missing
		}
		for _, headers := range [][]string{{browser}, {browser, "Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"}} {
			if got := s.sqsSend("GET", "/?Action="+action+parameters, "", headers...); got.status != want {
				t.Errorf("%s with %q = %d %s, want %d", action, headers, got.status, got.body, want)
			}
		}
	}
	checkDiff(t, "state", before, s.state())
	checkDiff(t, "a POST of a page of the server", 200, s.sqsSend("POST", "/", "Action=SendMessage"+parameters, "Content-Type: application/x-www-form-urlencoded", browser, "Sec-Fetch-Site: same-origin").status)

	s.useKeys(map[string]string{"worker": `"admin":true`})
	r, err := http.NewRequest("GET", s.url+"/?Action=SendMessage"+parameters, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("User-Agent", strings.TrimPrefix(browser, "User-Agent: "))
	checkDiff(t, "a presigned URL", 200, s.mustSend(signWith(r, "worker", secret("worker"), time.Now(), "60")).status)
}

// HAProxy's "option httpchk GET /readyz" sends no Host, and so do many probes.
func TestProbesWithoutHostAreServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	for _, v := range []struct {
		request string
		status  string
	}{
		{"GET /readyz HTTP/1.0\r\n\r\n", "200"},
		{"GET /health HTTP/1.0\r\n\r\n", "200"},
		{"PUT /queues/q/purge HTTP/1.0\r\n\r\n", "204"},
		{"GET /readyz HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", "200"},
		{"GET /readyz HTTP/1.0\r\nHost: evil.example\r\n\r\n", "403"},
		{"GET /readyz HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n", "403"},
		{"GET /readyz HTTP/1.0\r\nSec-Fetch-Site: same-origin\r\n\r\n", "403"},
	} {
		got := exchangeBytes(s, v.request)
		if _, status, _ := strings.Cut(got, " "); !strings.HasPrefix(status, v.status+" ") {
			t.Errorf("%q = %q, want %s", v.request, got, v.status)
		}
	}
}

// exchangeBytes sends bytes, and returns all bytes that the server sends until it
// closes the connection.
func exchangeBytes(s *testServer, request string) string {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testTimeout))
	fmt.Fprint(conn, request)
	response, err := io.ReadAll(conn)
	if err != nil {
		s.t.Fatalf("%q: %v", request, err)
	}
	return string(response)
}

func TestAllHostsMayBeAllowed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.hosts.allowed = []string{"*"}
	checkDiff(t, "under another name", 200, s.raw("GET", "/readyz", "", "Host: any.example:80").StatusCode)
	checkDiff(t, "from a page of another site", 403, s.raw("POST", "/topics", "", "Host: any.example", "Origin: https://evil.example").StatusCode)
}

func TestPagesOfTheServerAndProgramsAreServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.hosts.allowed = []string{"queue.example"}
	port := s.url[strings.LastIndex(s.url, ":"):]
	s.mustTopic("t")
	for what, headers := range map[string][]string{
		"a program":            {"Host: 127.0.0.1" + port},
		"an address bar":       {"Host: 127.0.0.1" + port, "Sec-Fetch-Site: none"},
		"a page of the server": {"Host: localhost" + port, "Sec-Fetch-Site: same-origin", "Origin: http://localhost" + port},
		"an older browser":     {"Host: 127.0.0.1" + port, "Origin: http://127.0.0.1" + port},
		"another spelling":     {"Host: LOCALHOST", "Sec-Fetch-Site: same-origin"},
		"IPv6":                 {"Host: [::1]" + port, "Sec-Fetch-Site: same-origin"},
		"an allowed name":      {"Host: Queue.Example.:80", "Sec-Fetch-Site: same-origin"},
	} {
		for _, v := range []struct {
			method, path, body string
			status             int
		}{
			{"POST", "/topics/t/messages", `{"data":{}}`, 201},
			{"GET", "/queues/t/messages", "", 200},
			{"PUT", "/queues/t/purge", "", 204},
		} {
			if response := s.raw(v.method, v.path, v.body, headers...); response.StatusCode != v.status {
				t.Errorf("%s: %s %s = %d, want %d", what, v.method, v.path, response.StatusCode, v.status)
			}
		}
	}
}
