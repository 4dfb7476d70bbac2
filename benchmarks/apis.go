package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// api is how a load publishes, receives and acks through one of the server's APIs,
// one message per request.
type api struct {
	publish   func(n int, data string) (path, body string)
	published int                                               // status of a publish
	receive   func(received string) (method, path, body string) // received: the id to ack in the same request, may be empty
	empty     int                                               // status of a receive without a message
	id        func(response []byte) string                      // of the received message; nil: a receive acks what it returns
	ack       func(id string) (method, path string)             // nil: the next receive acks
	acked     int                                               // status of an ack
}

var (
	sharqGroup = regexp.MustCompile(`"queue_id": ?"([^"]*)"`)
	sharqJob   = regexp.MustCompile(`"job_id": ?"([^"]*)"`)
)

// apisOf returns the APIs, with the paths of a queue.
func apisOf(queue string) map[string]api {
	get := func(path string) func(string) (string, string, string) {
		return func(string) (string, string, string) { return http.MethodGet, path, "" }
	}
	native := api{
		publish: func(_ int, data string) (string, string) {
			return "/queues/" + queue + "/messages", `{"data":` + data + `}`
		},
		published: http.StatusCreated,
		receive: func(received string) (string, string, string) {
			acks := ""
			if received != "" {
				acks = `"` + received + `"`
			}
			return http.MethodPost, "/queues/" + queue + "/messages/receive", `{"limit":1,"wait_seconds":1,"ack":[` + acks + `]}`
		},
		id: func(response []byte) string {
			if id := firstID.FindSubmatch(response); id != nil {
				return string(id[1])
			}
			return ""
		},
	}
	separate := native
	separate.receive = get("/queues/" + queue + "/messages?limit=1&wait_seconds=1")
	separate.ack = func(id string) (string, string) { return http.MethodPut, "/messages/" + id + "/ack" }
	separate.acked = http.StatusNoContent
	return map[string]api{
		"native":          native,
		"native separate": separate,
		"pgQueue": {
			publish: func(_ int, data string) (string, string) {
				return "/message", fmt.Sprintf(`{"channel":%q,"message":%s}`, queue, data)
			},
			published: http.StatusCreated,
			receive:   get("/queue/" + queue + "?wait_seconds=1"),
			empty:     http.StatusNoContent,
		},
		"micro-queue": {
			publish:   func(_ int, data string) (string, string) { return "/in/" + queue, data },
			published: http.StatusOK,
			receive:   get("/out/" + queue + "?wait_seconds=1"),
			empty:     http.StatusNotFound,
		},
		"SharQ": {
			publish: func(n int, data string) (string, string) {
				return "/enqueue/" + queue + "/" + strconv.Itoa(n%1000) + "/", fmt.Sprintf(`{"job_id":"%d","interval":0,"payload":%s}`, n, data)
			},
			published: http.StatusCreated,
			receive:   get("/dequeue/" + queue + "/?wait_seconds=1"),
			empty:     http.StatusNotFound,
			id: func(response []byte) string {
				group, job := sharqGroup.FindSubmatch(response), sharqJob.FindSubmatch(response)
				if group == nil || job == nil {
					return ""
				}
				return string(group[1]) + "/" + string(job[1])
			},
			ack: func(id string) (string, string) {
				return http.MethodPost, "/finish/" + queue + "/" + id + "/"
			},
			acked: http.StatusOK,
		},
	}
}

// load runs cycles through the API, with as many producers as consumers. Producers are at
// most 1000 messages ahead. It returns an error if a message was not received within 10
// seconds after the last one.
func (a *api) load(v *server, clients int, d time.Duration) (*result, error) {
	before, err := v.cost()
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * clients, DisableCompression: true}}
	defer client.CloseIdleConnections()
	data := `{"pad":"` + strings.Repeat("a", 190) + `"}`
	var numbers, published, acked atomic.Int64
	var ended, drained atomic.Bool
	failures := make(chan error, 2*clients)
	var producers, consumers sync.WaitGroup
	do := func(want int, method, path, body string) error {
		status, response, err := request(client, method, v.url+path, body)
		if err == nil && status != want {
			err = fmt.Errorf("%s %s: %d %s", method, path, status, response)
		}
		return err
	}
	for range clients {
		producers.Go(func() {
			for !ended.Load() {
				if published.Load()-acked.Load() > 1000 {
					time.Sleep(time.Millisecond)
					continue
				}
				path, body := a.publish(int(numbers.Add(1)), data)
				if err := do(a.published, http.MethodPost, path, body); err != nil {
					failures <- err
					return
				}
				published.Add(1)
			}
		})
		consumers.Go(func() {
			received := "" // and not acked
			for !drained.Load() {
				method, path, body := a.receive(received)
				status, response, err := request(client, method, v.url+path, body)
				if err == nil && status == a.empty {
					continue
				}
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("%s %s: %d %s", method, path, status, response)
				}
				if err != nil {
					failures <- err
					return
				}
				if received != "" {
					acked.Add(1)
					received = ""
				}
				if a.id == nil {
					acked.Add(1)
					continue
				}
				id := a.id(response)
				if id == "" {
					continue
				}
				if a.ack == nil {
					received = id
					continue
				}
				method, path = a.ack(id)
				if err := do(a.acked, method, path, ""); err != nil {
					failures <- err
					return
				}
				acked.Add(1)
			}
		})
	}
	select {
	case err = <-failures:
	case <-time.After(d):
	}
	messages := float64(acked.Load())
	after, failed := v.cost()
	err = errors.Join(err, failed)
	ended.Store(true)
	producers.Wait()
	for last, since := acked.Load(), time.Now(); err == nil && acked.Load() < published.Load(); time.Sleep(10 * time.Millisecond) {
		if now := acked.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > 10*time.Second {
			err = fmt.Errorf("%d of %d messages are missing", published.Load()-acked.Load(), published.Load())
		}
	}
	drained.Store(true)
	consumers.Wait()
	if err == nil && len(failures) > 0 {
		err = <-failures
	}
	fmt.Fprintf(os.Stderr, "   acked %.0f/s\n", messages/d.Seconds())
	return newResult(messages, d.Seconds(), after.since(before)), err
}

// apis compares cycles through the APIs of other servers with cycles through the native
// API.
func (s *suite) apis() error {
	s.write(`
## Other servers' APIs

64 + 64 clients run cycles through each API. In the APIs of pgQueue and micro-queue reading a message acks it, so a cycle is
two requests, as in the native API. In SharQ's API a cycle is enqueue, dequeue and finish of a job, in 1,000 queue ids with
interval 0. The ratio is relative to the native API with as many requests, in the same round. SharQ's requests do more: an
enqueue searches for the same job, the server counts jobs per minute, and a dequeue returns the number of waiting jobs.

`)
	const queue = "apis"
	all := apisOf(queue)
	through := func(name string) func(*server) (*result, error) {
		return func(v *server) (*result, error) {
			if err := v.mustQueue(queue); err != nil {
				return nil, err
			}
			a := all[name]
			return a.load(v, 64, s.seconds)
		}
	}
	return s.compare("API", []comparison{
		{what: "native", load: through("native"), base: true},
		{what: "pgQueue", load: through("pgQueue"), goal: "1"},
		{what: "micro-queue", load: through("micro-queue"), goal: "1"},
		{what: "native, with a separate ack", load: through("native separate"), base: true},
		{what: "SharQ", load: through("SharQ"), goal: "0.5"},
	})
}
