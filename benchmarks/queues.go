package main

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

func (s *suite) queues() error {
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	const many = 1000
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * many}}
	if _, _, err := request(client, "POST", v.url+"/topics", `{"id":"fan"}`); err != nil {
		return err
	}
	for i := range many {
		if err := v.mustQueue(fmt.Sprintf("q%d", i)); err != nil {
			return err
		}
	}
	for i := range 100 {
		status, _, err := request(client, "POST", v.url+"/queues", fmt.Sprintf(`{"id":"fan%d","topic_id":"fan","ack_deadline_seconds":60,"message_retention_seconds":86400}`, i))
		if err != nil || status != 201 {
			return fmt.Errorf("queue: %d, %v", status, err)
		}
	}
	run := func(workers int, work func(worker int) error) (rate float64, err error) {
		var done atomic.Int64
		var failed atomic.Value
		var wg sync.WaitGroup
		end := time.Now().Add(2 * s.seconds)
		for worker := range workers {
			wg.Go(func() {
				for time.Now().Before(end) {
					if err := work(worker); err != nil {
						failed.Store(err)
						return
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		err, _ = failed.Load().(error)
		return float64(done.Load()) / (2 * s.seconds).Seconds(), err
	}
	cycles, err := run(many, func(worker int) error {
		queue := fmt.Sprintf("%s/queues/q%d/messages", v.url, worker)
		if status, response, err := request(client, "POST", queue, `{"data":{"event":"created"}}`); err != nil || status != 201 {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		status, response, err := request(client, "GET", queue+"?wait_seconds=20&limit=1", "")
		id := firstID.FindSubmatch(response)
		if err != nil || id == nil {
			return fmt.Errorf("receive: %d %s, %v", status, response, err)
		}
		if status, response, err := request(client, "PUT", v.url+"/messages/"+string(id[1])+"/ack", ""); err != nil || status != 204 {
			return fmt.Errorf("ack: %d %s, %v", status, response, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	fanOut, err := run(8, func(int) error {
		status, response, err := request(client, "POST", v.url+"/topics/fan/messages", `{"data":{"event":"created"}}`)
		if err != nil || status != 201 {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.write(`
## Many queues

- 1,000 queues, each with a client that runs cycles: %s cycles per second. Publishes, acks and claims of
  queues that wait at the same time share statements.
- A topic with 100 queues, and 8 publishers: %s publishes per second, which are %s copies per second. Batches of 100 to one
  queue do not insert rows any faster (see above).
`, thousands(cycles), thousands(fanOut), thousands(100*fanOut))
	return nil
}
