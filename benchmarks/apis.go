package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// api is how a load publishes, receives and acks through one of the server's APIs,
// one message per request.
type api struct {
	publish   func(n int, data string) call
	published int                          // status of a publish
	receive   func(received string) call   // received: the id to ack in the same request, may be empty
	empty     int                          // status of a receive without a message
	id        func(response []byte) string // of the received message; nil: a receive acks what it returns
	ack       func(id string) call         // nil: the next receive acks
	acked     int                          // status of an ack
}

// call is a request of an API.
type call struct {
	method, path, body string
	action             string                             // of SQS's API; empty for the others
	sign               func(r *http.Request, body string) // nil if it is not signed
}

// send sends the request to a server. It returns an error if the response has another
// status than those in want.
func (c call) send(client *http.Client, url string, want ...int) (status int, response []byte, err error) {
	r, err := http.NewRequest(c.method, url+c.path, strings.NewReader(c.body))
	if err != nil {
		return 0, nil, err
	}
	if c.action != "" {
		r.Header.Set("Content-Type", "application/x-amz-json-1.0")
		r.Header.Set("X-Amz-Target", "AmazonSQS."+c.action)
	}
	if c.sign != nil {
		c.sign(r, c.body)
	}
	status, response, err = do(client, r)
	if err == nil && !slices.Contains(want, status) {
		err = fmt.Errorf("%s %s %s: %d %s", c.method, c.path, c.action, status, response)
	}
	return status, response, err
}

var (
	sharqGroup = regexp.MustCompile(`"queue_id": ?"([^"]*)"`)
	sharqJob   = regexp.MustCompile(`"job_id": ?"([^"]*)"`)
	sqsHandle  = regexp.MustCompile(`"ReceiptHandle":"([^"]*)"`)
)

// apisOf returns the APIs, with the paths of a queue.
func apisOf(queue string) map[string]api {
	get := func(path string) func(string) call {
		return func(string) call { return call{method: http.MethodGet, path: path} }
	}
	post := func(path, body string) call { return call{method: http.MethodPost, path: path, body: body} }
	sqs := func(action, members string) call {
		return call{method: http.MethodPost, path: "/", action: action, body: `{"QueueUrl":"http://localhost/000000000000/` + queue + `",` + members + `}`}
	}
	quoted := strconv.Quote(payload) // JSON, because the payload is ASCII
	native := api{
		publish: func(_ int, data string) call {
			return post("/queues/"+queue+"/messages", `{"data":`+data+`}`)
		},
		published: http.StatusCreated,
		receive: func(received string) call {
			acks := ""
			if received != "" {
				acks = `"` + received + `"`
			}
			return post("/queues/"+queue+"/messages/receive", `{"limit":1,"wait_seconds":1,"ack":[`+acks+`]}`)
		},
		id: idOf(firstID),
	}
	separate := native
	separate.receive = get("/queues/" + queue + "/messages?limit=1&wait_seconds=1")
	separate.ack = func(id string) call { return call{method: http.MethodPut, path: "/messages/" + id + "/ack"} }
	separate.acked = http.StatusNoContent
	return map[string]api{
		"native":          native,
		"native separate": separate,
		"SQS": {
			publish:   func(int, string) call { return sqs("SendMessage", `"MessageBody":`+quoted) },
			published: http.StatusOK,
			receive:   func(string) call { return sqs("ReceiveMessage", `"MaxNumberOfMessages":1,"WaitTimeSeconds":1`) },
			id:        idOf(sqsHandle),
			ack:       func(id string) call { return sqs("DeleteMessage", `"ReceiptHandle":"`+id+`"`) },
			acked:     http.StatusOK,
		},
		"pgQueue": {
			publish: func(_ int, data string) call {
				return post("/message", fmt.Sprintf(`{"channel":%q,"message":%s}`, queue, data))
			},
			published: http.StatusCreated,
			receive:   get("/queue/" + queue + "?wait_seconds=1"),
			empty:     http.StatusNoContent,
		},
		"micro-queue": {
			publish:   func(_ int, data string) call { return post("/in/"+queue, data) },
			published: http.StatusOK,
			receive:   get("/out/" + queue + "?wait_seconds=1"),
			empty:     http.StatusNotFound,
		},
		"SharQ": {
			publish: func(n int, data string) call {
				return post("/enqueue/"+queue+"/"+strconv.Itoa(n%1000)+"/", fmt.Sprintf(`{"job_id":"%d","interval":0,"payload":%s}`, n, data))
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
			ack:   func(id string) call { return post("/finish/"+queue+"/"+id+"/", "") },
			acked: http.StatusOK,
		},
	}
}

// idOf returns a function that finds an id in a response: what the group of a pattern
// matches, or an empty string.
func idOf(pattern *regexp.Regexp) func(response []byte) string {
	return func(response []byte) string {
		if id := pattern.FindSubmatch(response); id != nil {
			return string(id[1])
		}
		return ""
	}
}

// payload is the data of the messages of load.
var payload = `{"pad":"` + strings.Repeat("a", 190) + `"}`

// clientFor returns a client that keeps as many connections as it has requests at a time.
func clientFor(requests int) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: requests, DisableCompression: true}}
}

// load runs cycles through the API, with as many producers as consumers. Producers are at
// most 1000 messages ahead. It returns an error if a message was not received within 10
// seconds after the last one.
func (a *api) load(v *server, clients int, d time.Duration) (*result, error) {
	before, err := v.cost()
	if err != nil {
		return nil, err
	}
	client := clientFor(2 * clients)
	defer client.CloseIdleConnections()
	var numbers, published, acked atomic.Int64
	var ended, drained atomic.Bool
	failures := make(chan error, 2*clients)
	var producers, consumers sync.WaitGroup
	for range clients {
		producers.Go(func() {
			for !ended.Load() {
				if published.Load()-acked.Load() > 1000 {
					time.Sleep(time.Millisecond)
					continue
				}
				if _, _, err := a.publish(int(numbers.Add(1)), payload).send(client, v.url, a.published); err != nil {
					failures <- err
					return
				}
				published.Add(1)
			}
		})
		consumers.Go(func() {
			received := "" // and not acked
			for !drained.Load() {
				status, response, err := a.receive(received).send(client, v.url, http.StatusOK, a.empty)
				if err != nil {
					failures <- err
					return
				}
				if status == a.empty {
					continue
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
				if _, _, err := a.ack(id).send(client, v.url, a.acked); err != nil {
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
