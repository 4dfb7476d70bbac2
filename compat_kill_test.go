//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// consumption is what the clients of one API have sent and received.
type consumption struct {
	publish func(n int) (path, body string)
	receive string
	finish  func(body []byte) string // path of the request that finishes a job; nil if a receive consumes

	next        atomic.Int64
	mu          sync.Mutex
	published   []int       // numbers of messages whose publish succeeded
	uncertain   int         // publishes without a response
	received    map[int]int // how often, by the number of the message
	finished    map[int]int // how often with success
	receives    int         // that returned a message
	interrupted int         // receives without a response
}

var messageNumber = regexp.MustCompile(`"n": ?(\d+)`)

// Clients of two servers use the APIs of SharQ, pgQueue and micro-queue while the test kills
// the servers in turns. No job is lost, and no job comes again after it was finished. A read
// of the other APIs consumes, so a message may be lost with its response, and none comes twice.
func TestCompatibleAPIsKeepEveryMessageWhileServersAreKilled(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "queued")
	program := mustBuild(t)
	var servers []*victim
	for range 2 {
		s := &victim{program: program, address: freeAddress(t), output: newSyncBuffer()}
		s.args = []string{"-listen", s.address, "-database-url", dsn, "-default-ack-deadline-seconds", "1", "-cleanup-interval", "500ms"}
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.signal(syscall.SIGKILL)
			s.await()
		})
		servers = append(servers, s)
	}
	// A client sends a request again if an idle connection is closed, so there is none.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	send := func(s *victim, method, path, body string) (status int, out []byte) {
		r, err := http.NewRequest(method, "http://"+s.address+path, strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		response, err := client.Do(r)
		if err != nil {
			return 0, nil
		}
		defer response.Body.Close()
		if out, err = io.ReadAll(response.Body); err != nil || response.StatusCode == 503 {
			return 0, nil
		}
		return response.StatusCode, out
	}
	awaitReady := func(s *victim) {
		eventually(t, "a server is ready", func() bool {
			status, _ := send(s, "GET", "/readyz", "")
			return status == 200
		})
	}
	anyServer := func() *victim { return servers[rand.IntN(len(servers))] }
	for _, s := range servers {
		awaitReady(s)
	}
	servers[0].client(t).mustQueue("raw")

	all := map[string]*consumption{
		"SharQ": {
			publish: func(n int) (string, string) {
				return fmt.Sprintf("/enqueue/jobs/g%d/", n%3), fmt.Sprintf(`{"job_id":"%d","interval":0,"payload":{"n":%d}}`, n, n)
			},
			receive: "/dequeue/jobs/",
			finish: func(body []byte) string {
				var v sharQReply
				json.Unmarshal(body, &v)
				return "/finish/jobs/" + v.QueueID + "/" + v.JobID + "/"
			},
		},
		"pgQueue": {
			publish: func(n int) (string, string) {
				return "/message", fmt.Sprintf(`{"channel":"channel","message":{"n":%d}}`, n)
			},
			receive: "/queue/channel",
		},
		"micro-queue": {
			publish: func(n int) (string, string) { return "/in/raw", fmt.Sprintf(`{"n":%d}`, n) },
			receive: "/out/raw",
		},
	}
	var producing, consuming sync.WaitGroup
	calm, stop := make(chan struct{}), make(chan struct{})
	for name, v := range all {
		v.received, v.finished = make(map[int]int), make(map[int]int)
		for range 2 {
			producing.Go(func() {
				for !isClosed(calm) {
					n := int(v.next.Add(1))
					path, body := v.publish(n)
					status, out := send(anyServer(), "POST", path, body)
					v.mu.Lock()
					switch status {
					case 0:
						v.uncertain++
					case 200, 201:
						v.published = append(v.published, n)
					default:
						t.Errorf("%s: publish = %d %s", name, status, out)
					}
					v.mu.Unlock()
				}
			})
			consuming.Go(func() {
				for !isClosed(stop) {
					status, out := send(anyServer(), "GET", v.receive+"?wait_seconds=0.5", "")
					number := messageNumber.FindSubmatch(out)
					n := 0
					v.mu.Lock()
					switch {
					case status == 0:
						v.interrupted++
					case status == 200 && number != nil:
						n, _ = strconv.Atoi(string(number[1]))
						if v.finished[n] > 0 {
							t.Errorf("%s: %d came again after it was finished", name, n)
						}
						v.received[n]++
						v.receives++
					case status != 204 && status != 404:
						t.Errorf("%s: receive = %d %s", name, status, out)
					}
					v.mu.Unlock()
					if n > 0 && v.finish != nil {
						if status, out := send(anyServer(), "POST", v.finish(out), ""); status == 200 {
							v.mu.Lock()
							v.finished[n]++
							v.mu.Unlock()
						} else if status != 0 && status != 404 { // 404 after the deadline
							t.Errorf("%s: finish = %d %s", name, status, out)
						}
					}
				}
			})
		}
	}
	for i := range 6 {
		eventually(t, "clients of each API have received more messages", func() bool {
			for _, v := range all {
				v.mu.Lock()
				receives := v.receives
				v.mu.Unlock()
				if receives < 20*(i+1) {
					return false
				}
			}
			return true
		})
		s := servers[i%2]
		s.signal(syscall.SIGKILL)
		s.await()
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		awaitReady(s)
	}
	close(calm)
	producing.Wait()
	db := newTestDB(t, dsn)
	eventually(t, "all messages are consumed", func() bool {
		var left int
		err := db.QueryRow("SELECT count(*) FROM queued.messages").Scan(&left)
		return err == nil && left == 0
	})
	close(stop)
	consuming.Wait()

	for name, v := range all {
		lost := 0
		for _, n := range v.published {
			if v.received[n] == 0 {
				lost++
			}
		}
		t.Logf("%s: %d published, %d uncertain, %d received, %d interrupted, %d lost in responses", name, len(v.published), v.uncertain, v.receives, v.interrupted, lost)
		if v.finish != nil && lost > 0 {
			t.Errorf("%s: %d messages were lost", name, lost)
		}
		if lost > v.interrupted {
			t.Errorf("%s: %d messages were lost, with %d interrupted receives", name, lost, v.interrupted)
		}
		for n, times := range v.received {
			if v.finish == nil && times > 1 || v.finished[n] > 1 {
				t.Errorf("%s: %d was received %d times and finished %d times", name, n, times, v.finished[n])
			}
		}
	}
	v := all["SharQ"]
	for _, s := range servers {
		sum := sumOfCounts(s.client(t), "/metrics/")
		in, out := int(sum[0]), int(sum[1])
		if in < len(v.published) || in > len(v.published)+v.uncertain || out < v.receives || out > v.receives+v.interrupted {
			t.Errorf("%d enqueued and %d dequeued jobs are counted", in, out)
		}
	}
}
