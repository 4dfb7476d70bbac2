package main

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// queues compares one queue for each client with one queue for all, and measures a topic
// with many queues.
func (s *suite) queues() error {
	s.write(`
## Many queues

Each client publishes a message, and then receives one with a request that also acks the one before. The ratio is relative to
1,000 clients on one queue, in the same round.

`)
	if err := s.compare("load", []comparison{
		{what: "1,000 clients, one queue", load: s.cyclesIn(1000, 1), base: true},
		{what: "1,000 clients, each with a queue", load: s.cyclesIn(1000, 1000), goal: "0.7"},
		{what: "64 clients, one queue", load: s.cyclesIn(64, 1)},
	}); err != nil {
		return err
	}
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	client := &http.Client{}
	if status, response, err := request(client, "POST", v.url+"/topics", `{"id":"fan"}`); err != nil || status != http.StatusCreated {
		return fmt.Errorf("topic: %d %s, %v", status, response, err)
	}
	for i := range 100 {
		status, response, err := request(client, "POST", v.url+"/queues", fmt.Sprintf(`{"id":"fan%d","topic_id":"fan","ack_deadline_seconds":60,"message_retention_seconds":86400}`, i))
		if err != nil || status != http.StatusCreated {
			return fmt.Errorf("queue: %d %s, %v", status, response, err)
		}
	}
	r, err := v.repeat(8, s.seconds, func(client *http.Client, _ int) error {
		status, response, err := request(client, "POST", v.url+"/topics/fan/messages", `{"data":{"event":"created"}}`)
		if err != nil || status != http.StatusCreated {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.write("\nA topic with 100 queues, and 8 publishers: %s publishes per second, which are %s copies per second. One round.\n", thousands(r.rate), thousands(100*r.rate))
	return nil
}

// cyclesIn returns a load of cycles by clients that share queues evenly. A cycle is a
// publish, and a receive that acks the message of the cycle before.
func (s *suite) cyclesIn(clients, queues int) func(*server) (*result, error) {
	return func(v *server) (*result, error) {
		for i := range queues {
			if err := v.mustQueue(fmt.Sprintf("q%d", i)); err != nil {
				return nil, err
			}
		}
		received := make([]string, clients) // list of the id to ack, in JSON
		return v.repeat(clients, s.seconds, func(client *http.Client, worker int) error {
			messages := fmt.Sprintf("%s/queues/q%d/messages", v.url, worker%queues)
			if status, response, err := request(client, "POST", messages, `{"data":{"event":"created"}}`); err != nil || status != http.StatusCreated {
				return fmt.Errorf("publish: %d %s, %v", status, response, err)
			}
			status, response, err := request(client, "POST", messages+"/receive", fmt.Sprintf(`{"limit":1,"wait_seconds":20,"ack":[%s]}`, received[worker]))
			id := firstID.FindSubmatch(response)
			if err != nil || id == nil {
				return fmt.Errorf("receive: %d %s, %v", status, response, err)
			}
			received[worker] = `"` + string(id[1]) + `"`
			return nil
		})
	}
}

// repeat calls work in as many goroutines as there are workers, again and again for d. A
// call counts as one message.
func (v *server) repeat(workers int, d time.Duration, work func(client *http.Client, worker int) error) (*result, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers, DisableCompression: true}}
	defer client.CloseIdleConnections()
	before, err := v.cost()
	if err != nil {
		return nil, err
	}
	var done atomic.Int64
	var failed atomic.Value
	var wg sync.WaitGroup
	start := time.Now()
	for worker := range workers {
		wg.Go(func() {
			for time.Since(start) < d {
				if err := work(client, worker); err != nil {
					failed.Store(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	seconds := time.Since(start).Seconds()
	if err, _ := failed.Load().(error); err != nil {
		return nil, err
	}
	after, err := v.cost()
	if err != nil {
		return nil, err
	}
	return newResult(float64(done.Load()), seconds, after.since(before)), nil
}
