package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// sqs compares cycles and publishes through SQS's API with those through the native API.
func (s *suite) sqs() error {
	s.write(`
## Amazon SQS's API

64 + 64 clients run cycles of SendMessage, ReceiveMessage and DeleteMessage in the JSON protocol, unsigned, and 64 clients run
SendMessage alone. The native API is used with a separate ack, so a cycle is three requests too. All use the same client,
which does not check the sums in SQS's responses.

`)
	const queue = "sqs"
	all := apisOf(queue)
	through := func(name string, load func(*api, *server, int, time.Duration) (*result, error)) func(*server) (*result, error) {
		return func(v *server) (*result, error) {
			if err := v.mustQueue(queue); err != nil {
				return nil, err
			}
			a := all[name]
			return load(&a, v, 64, s.seconds)
		}
	}
	return s.compare("load", []comparison{
		{what: "cycle, native with a separate ack", load: through("native separate", (*api).load), base: true},
		{what: "cycle, SQS", load: through("SQS", (*api).load), goal: "0.85"},
		{what: "publish, native", load: through("native separate", (*api).loadPublishes), base: true},
		{what: "publish, SQS", load: through("SQS", (*api).loadPublishes), goal: "0.85"},
	})
}

// loadPublishes publishes through the API.
func (a *api) loadPublishes(v *server, clients int, d time.Duration) (*result, error) {
	before, err := v.cost()
	if err != nil {
		return nil, err
	}
	client := clientFor(clients)
	defer client.CloseIdleConnections()
	var published atomic.Int64
	failures := make(chan error, clients)
	var producers sync.WaitGroup
	end := time.Now().Add(d)
	for range clients {
		producers.Go(func() {
			for time.Now().Before(end) {
				if _, _, err := a.publish(int(published.Load()), payload).send(client, v.url, a.published); err != nil {
					failures <- err
					return
				}
				published.Add(1)
			}
		})
	}
	producers.Wait()
	if len(failures) > 0 {
		return nil, <-failures
	}
	after, err := v.cost()
	messages := float64(published.Load())
	fmt.Fprintf(os.Stderr, "   published %.0f/s\n", messages/d.Seconds())
	return newResult(messages, d.Seconds(), after.since(before)), err
}
