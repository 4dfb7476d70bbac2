package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// A receive whose response exceeds the limit releases its messages, as if they had
// never been received.
func TestReceiveWithoutMemoryReleases(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(201, "POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"n":1,"x":%q}}`, strings.Repeat("x", 10_000)))
	restore := s.setCapacity(10_000)
	for _, path := range []string{"/queues/q/messages", "/queues/q/messages/peek"} {
		got := s.do("GET", path, "")
		if got.status != 503 || got.header.Get("Retry-After") == "" {
			t.Errorf("GET %s without capacity = %d %s, want 503 with Retry-After", path, got.status, got.body)
		}
	}
	if n := s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND NOT in_flight"); n != 1 {
		t.Errorf("%d messages are unchanged, want 1", n)
	}
	s.wantMetrics(`http_requests_total{handler="/queues/{queue_id}/messages",method="GET",status="5xx"} 1`)
	checkDiff(t, "consumers", []string{"127.0.0.1 0 0 0"}, s.consumersOf(&s.client, "q"))
	restore()
	received := s.receive("q", "")
	checkDiff(t, "received", []int{1}, numbers(received))
	checkDiff(t, "attempts", 1, received[0].DeliveryAttempts)
	eventually(t, "nothing is buffered", func() bool { return s.buffered() == 0 })
}

// A publish is refused before it stores anything, because the client repeats it after
// the error.
func TestPublishWithoutMemoryStoresNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	body := fmt.Sprintf(`{"data":{"x":%q}}`, strings.Repeat("x", 10_000))
	restore := s.setCapacity(int64(len(body)) - 1)
	if got := s.do("POST", "/queues/q/messages", body); got.status != 503 || s.count("SELECT count(*) FROM queued.messages") != 0 {
		t.Errorf("a publish without capacity = %d, or a message is stored; want 503 and none", got.status)
	}
	restore()
	s.setCapacity(int64(len(body)) + 1) // for the end of the body, and not for the response
	s.must(201, "POST", "/queues/q/messages", body)
}

// The copies of a message share their data, so a response may be larger than its
// request by a multiple.
func TestLargeResponseIsWhole(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	for i := range 4 {
		s.mustQueue(fmt.Sprint("q", i), `"topic_id":"t"`)
	}
	got := s.do("POST", "/topics/t/messages", fmt.Sprintf(`{"data":{"n":7,"x":%q}}`, strings.Repeat("x", 500_000)))
	if got.status != 201 || got.header.Get("Content-Length") != fmt.Sprint(len(got.body)) {
		t.Errorf("publish = %d with %d bytes of %s", got.status, len(got.body), got.header.Get("Content-Length"))
	}
	checkDiff(t, "stored", []int{7, 7, 7, 7}, numbers(s.messages(got.body)))
}

// While all connections are busy, some more are admitted for health checks and for
// responses that say so.
func TestHealthChecksAreAdmittedAtTheLimit(t *testing.T) {
	t.Parallel()
	c := newTestServer(t)
	c.mustTopic("t")
	var polls []<-chan polled
	for i := range 4 {
		polls = append(polls, c.poll(context.Background(), "t", "?wait_seconds=20"))
		c.waiting("t", i+1)
	}
	c.admission.mu.Lock()
	c.admission.maxConnections = 4
	c.admission.mu.Unlock()
	got := c.do("GET", "/topics", "")
	if got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("GET /topics at the limit = %d %v, want 503 with Retry-After", got.status, got.header)
	}
	c.must(200, "GET", "/livez", "")
	c.must(200, "GET", "/readyz", "")

	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 * extraConnections { // the first of them are evicted
		other, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
	}
	c.must(200, "GET", "/livez", "")
	fmt.Fprint(conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if response, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
		t.Errorf("an idle connection gets %q at the limit, want it evicted", response)
	}
	for _, poll := range polls {
		select {
		case v := <-poll:
			t.Errorf("a long poll was evicted: %d %s, %v", v.status, v.body, v.err)
		default:
		}
	}
}

// newAdmittedConn returns an admitted connection and its other end.
func newAdmittedConn(t *testing.T, r *admission) (*conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c, err := listener{Listener: l, admission: r}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*conn), client
}

func TestStalledConnectionsAreEvicted(t *testing.T) {
	t.Parallel()
	r := newAdmission(slog.New(slog.DiscardHandler), 10, 1<<20)
	var all []*conn
	for range 4 {
		c, _ := newAdmittedConn(t, r)
		c.begin(nil)
		c.move(phaseTransferring)
		all = append(all, c)
	}
	take := func(c *conn, n int64, want bool) {
		t.Helper()
		if got := c.take(n, false); got != want {
			t.Errorf("take(%d) = %v with %d of %d bytes buffered, want %v", n, got, r.buffered, r.maxBuffered, want)
		}
	}
	take(all[0], 400<<10, true)
	take(all[1], 400<<10, true)
	take(all[2], 200<<10, false) // large
	take(all[2], 50<<10, true)
	all[0].since = time.Now().Add(-time.Hour)
	all[1].since = time.Now().Add(-time.Hour)
	all[1].progress(progressSize)
	take(all[2], 200<<10, true)
	for i, want := range []bool{true, false, false, false} {
		if all[i].closed != want {
			t.Errorf("connection %d is evicted: %v, want %v", i, all[i].closed, want)
		}
	}
	if _, err := all[0].Read(make([]byte, 1)); err == nil {
		t.Error("an evicted connection can be read")
	}
	take(all[0], 1, false)
	for _, c := range all {
		c.move(phaseWaiting)
		c.Close()
	}
	checkDiff(t, "admitted after all have closed", []any{int64(0), 0, 0, 0}, []any{r.buffered, r.open, r.idle.Len(), r.moving.Len()})
}

// A body that is too large is read to its end, but does not keep its connection open.
func TestConnectionWithATooLargeBodyCanBeEvicted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(200, "GET", "/livez", "")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /topics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n{")
	eventually(t, "the connection can be evicted", func() bool {
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		return s.admission.evictFirst(&s.admission.moving)
	})
	if response, err := io.ReadAll(conn); err == nil && len(response) > 0 {
		t.Errorf("the evicted connection got %q, want no response", response)
	}
}

func TestHeadersCountAsBuffered(t *testing.T) {
	t.Parallel()
	r := newAdmission(slog.New(slog.DiscardHandler), 10, 1<<20)
	c, client := newAdmittedConn(t, r)
	b := make([]byte, 100<<10)
	send := func(n int) (err error) {
		if _, err := client.Write(b[:n]); err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadFull(c, b[:n])
		return err
	}
	if err := send(500); err != nil || r.buffered != 0 {
		t.Errorf("a small header counts %d, %v", r.buffered, err)
	}
	if err := send(1000); err != nil || r.buffered != 0 {
		t.Errorf("a possible end of a header counts %d, %v", r.buffered, err)
	}
	if err := send(1); err != nil || r.buffered < 16*1000 {
		t.Errorf("a header counts %d while it is read, %v", r.buffered, err)
	}
	c.begin(map[string][]string{"A": {"1", "2"}})
	checkDiff(t, "a small header counts", int64(0), r.buffered)
	c.begin(map[string][]string{"A": {strings.Repeat("1", 1000), "2"}})
	checkDiff(t, "a complete header counts", int64(1003+2*lineCost), r.buffered)
	c.move(phaseWaiting)
	checkDiff(t, "buffered after the request", int64(0), r.buffered)
	if send(60<<10) == nil && send(1) == nil {
		t.Error("a header above the limit can be read")
	}
	checkDiff(t, "buffered afterwards", int64(0), r.buffered)
}

// The part of an unwanted body that a client has sent is not the header of its next
// request.
func TestUnwantedBodyLeavesNothingBuffered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.admission.mu.Lock()
	s.admission.maxBuffered = 4 << 20
	s.admission.mu.Unlock()
	for range 3 {
		if got := s.do("POST", "/nowhere", strings.Repeat("x", 200_000)); got.status != 404 {
			t.Errorf("POST /nowhere = %d %s, want 404", got.status, got.body)
		}
	}
	eventually(t, "nothing is buffered", func() bool { return s.buffered() == 0 })
}

// The large header of a waiting request counts as buffered, also if it arrived together
// with another request. Other requests still get memory.
func TestLargeHeadersCountAsBuffered(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
		s := newTestServer(t)
		s.mustQueue("q")
		const most = 512 << 10
		s.admission.mu.Lock()
		s.admission.maxBuffered = most
		s.admission.mu.Unlock()
		request := first + "GET /queues/q/messages?wait_seconds=30 HTTP/1.1\r\nHost: localhost\r\n"
		for i := range 100 {
			request += fmt.Sprintf("x%d:\r\n", i)
		}
		refused := false
		for i := 0; i < 200 && !refused; i++ {
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			before := s.engine.waiting()["q"]
			fmt.Fprint(conn, request+"\r\n")
			response := bufio.NewReader(conn)
			if first != "" {
				_, err := io.ReadFull(response, make([]byte, 100)) // of the response to the first
				if errors.Is(err, io.EOF) {
					continue // on a busy machine the connection is evicted before its request has arrived
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "it waits, is refused, or its header times out on a busy machine", func() bool {
				if s.engine.waiting()["q"] > before {
					return true
				}
				conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				rest, err := io.ReadAll(response)
				refused = refused || strings.Contains(string(rest), "503")
				return refused || !errors.Is(err, os.ErrDeadlineExceeded)
			})
		}
		if !refused || s.buffered() > most {
			t.Errorf("after %q: %d receivers wait with large headers, and %d bytes are buffered", first, s.engine.waiting()["q"], s.buffered())
		}
		if got := s.do("POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"x":%q}}`, strings.Repeat("x", 10_000))); got.status != 201 {
			t.Errorf("another client's publish = %d", got.status)
		}
	}
}

// HTTPS writes small records, and each of them is progress.
func TestResponseReadInSmallPiecesIsProgress(t *testing.T) {
	t.Parallel()
	r := newAdmission(slog.New(slog.DiscardHandler), 10, 1<<20)
	c, client := newAdmittedConn(t, r)
	go io.Copy(io.Discard, client)
	c.begin(nil)
	c.move(phaseTransferring)
	long := time.Now().Add(-time.Hour)
	c.since = long
	for range 2 * progressSize / (16 << 10) {
		if _, err := c.Write(make([]byte, 16<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if c.since.Equal(long) {
		t.Error("a client that takes its response looks as if it did not move")
	}
}

// Filters may be large, and an older server allowed larger ones.
func TestListsAreCutAndGoOn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.limits.maxLimit = 10_000
	var queues []string
	for i := range 14 {
		queues = append(queues, fmt.Sprintf("q%02d", i))
		s.mustQueue(queues[i])
	}
	s.exec("UPDATE queued.queues SET message_filters = json_build_object('a', json_build_array(repeat('x', CASE WHEN id = 'q05' THEN 9000000 ELSE 1500000 END)))")
	var groups []string
	for i := range 6000 {
		groups = append(groups, fmt.Sprintf("%04d", i)+strings.Repeat("\x01", 252)) // six bytes each in JSON
	}
	s.exec("INSERT INTO queued.groups (home, queue_key, id, ready_at, keep_interval) SELECT home, key, g, 'infinity', true FROM queued.queues, unnest($1::text[]) AS g WHERE queues.id = 'q00'", quotedArray(groups))
	for _, v := range []struct {
		path string
		want []string
	}{{"/queues", queues}, {"/queues/q00/groups", groups}, {"/overview", queues}} {
		var got []string
		pages := 0
		for {
			body := s.must(200, "GET", fmt.Sprintf("%s?limit=10000&offset=%d", v.path, len(got)), "")
			var page struct {
				Data []struct {
					ID    string
					Group string
				}
				NextOffset *int `json:"next_offset"`
			}
			mustDecode(t, body, &page)
			if len(page.Data) == 0 {
				break
			}
			if len(body) > listSize+1000 && len(page.Data) > 1 {
				t.Errorf("a page of %s has %d bytes in %d items", v.path, len(body), len(page.Data))
			}
			for _, item := range page.Data {
				got = append(got, item.Group+item.ID)
			}
			pages++
			if v.path == "/overview" && (page.NextOffset == nil) != (len(got) == len(v.want)) {
				t.Errorf("after %d queues the next offset is %v", len(got), page.NextOffset)
			}
		}
		checkDiff(t, "items of "+v.path, v.want, got)
		if pages < 2 {
			t.Errorf("%s has %d pages", v.path, pages)
		}
	}
}

func TestListWithoutMemoryIsRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for i := range 3 {
		s.mustQueue(fmt.Sprint("q", i))
	}
	s.exec("UPDATE queued.queues SET message_filters = json_build_object('a', json_build_array(repeat('x', 1000000)))")
	restore := s.setCapacity(5_000_000) // the rows take 3 MB, and so does their JSON
	for _, path := range []string{"/queues", "/overview"} {
		if got := s.do("GET", path, ""); got.status != 503 {
			t.Errorf("GET %s without capacity = %d with %d bytes", path, got.status, len(got.body))
		}
	}
	restore()
	s.must(200, "GET", "/queues", "")
}
