package main

import (
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
	name      string
	publish   func(n int, data string) (path, body string)
	published int // status of a publish
	receive   string
	empty     int                                 // status of a receive without a message
	ack       func(response []byte) (path string) // empty path: no message; nil: a receive acks
	method    string                              // of an ack
	acked     int                                 // status of an ack
}

var (
	sharqGroup = regexp.MustCompile(`"queue_id": ?"([^"]*)"`)
	sharqJob   = regexp.MustCompile(`"job_id": ?"([^"]*)"`)
)

// apisOf returns the APIs, with the paths of a queue.
func apisOf(queue string) []api {
	return []api{{
		name: "native",
		publish: func(_ int, data string) (string, string) {
			return "/queues/" + queue + "/messages", `{"data":` + data + `}`
		},
		published: http.StatusCreated,
		receive:   "/queues/" + queue + "/messages?limit=1&wait_seconds=1",
		ack: func(response []byte) string {
			if id := firstID.FindSubmatch(response); id != nil {
				return "/messages/" + string(id[1]) + "/ack"
			}
			return ""
		},
		method: http.MethodPut,
		acked:  http.StatusNoContent,
	}, {
		name: "pgQueue",
		publish: func(_ int, data string) (string, string) {
			return "/message", fmt.Sprintf(`{"channel":%q,"message":%s}`, queue, data)
		},
		published: http.StatusCreated,
		receive:   "/queue/" + queue + "?wait_seconds=1",
		empty:     http.StatusNoContent,
	}, {
		name:      "micro-queue",
		publish:   func(_ int, data string) (string, string) { return "/in/" + queue, data },
		published: http.StatusOK,
		receive:   "/out/" + queue + "?wait_seconds=1",
		empty:     http.StatusNotFound,
	}, {
		name: "SharQ",
		publish: func(n int, data string) (string, string) {
			return "/enqueue/" + queue + "/" + strconv.Itoa(n%1000) + "/", fmt.Sprintf(`{"job_id":"%d","interval":0,"payload":%s}`, n, data)
		},
		published: http.StatusCreated,
		receive:   "/dequeue/" + queue + "/?wait_seconds=1",
		empty:     http.StatusNotFound,
		ack: func(response []byte) string {
			group, job := sharqGroup.FindSubmatch(response), sharqJob.FindSubmatch(response)
			if group == nil || job == nil {
				return ""
			}
			return "/finish/" + queue + "/" + string(group[1]) + "/" + string(job[1]) + "/"
		},
		method: http.MethodPost,
		acked:  http.StatusOK,
	}}
}

// load runs cycles through the API, with as many producers as consumers. Producers are at
// most 1000 messages ahead. It returns the number of acked messages per second, and an
// error if a message was not received within 10 seconds after the last one.
func (a *api) load(v *server, clients int, d time.Duration) (ackedPerSecond float64, err error) {
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
			for !drained.Load() {
				status, response, err := request(client, http.MethodGet, v.url+a.receive, "")
				if err == nil && status == a.empty {
					continue
				}
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("GET %s: %d %s", a.receive, status, response)
				}
				if err != nil {
					failures <- err
					return
				}
				if a.ack != nil {
					path := a.ack(response)
					if path == "" {
						continue
					}
					if err := do(a.acked, a.method, path, ""); err != nil {
						failures <- err
						return
					}
				}
				acked.Add(1)
			}
		})
	}
	select {
	case err = <-failures:
	case <-time.After(d):
	}
	ackedPerSecond = float64(acked.Load()) / d.Seconds()
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
	fmt.Fprintf(os.Stderr, "   %s: acked %.0f/s\n", a.name, ackedPerSecond)
	return ackedPerSecond, err
}

// apis compares cycles through the APIs of other servers with cycles through the native
// API.
func (s *suite) apis() error {
	s.write(`
## Other servers' APIs

64 + 64 clients run cycles through each API. In the APIs of pgQueue and micro-queue reading a message acks it, so a cycle is
two requests. In SharQ's API a cycle is enqueue, dequeue and finish of a job, in 1000 queue ids with interval 0. The ratio is
relative to the native API in the same round. The goals are 1 for pgQueue and micro-queue, and 0.5 for SharQ, whose requests
do more: an enqueue searches for the same job, the server counts jobs per minute, and a dequeue returns the number of waiting
jobs.

| API | acked per second | ratio |
|---|---|---|
`)
	const queue = "apis"
	var all []comparison
	for i, a := range apisOf(queue) {
		all = append(all, comparison{a.name, func(v *server) (float64, error) {
			if err := v.mustQueue(queue); err != nil {
				return 0, err
			}
			return a.load(v, 64, s.seconds)
		}, i == 0})
	}
	return s.compare(all)
}
