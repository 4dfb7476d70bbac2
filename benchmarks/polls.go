package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// longPolls measures receives that wait for a message for a long time.
func (s *suite) longPolls() error {
	s.write(`
## Long polls

10,000 receivers wait in long polls of 20 seconds, each on its own connection. Memory is that of the server. Statements are
all that the server runs on PostgreSQL, including those of the cleanup and of this measurement. The time is from a publish to
its receipt by one of the receivers, over 50 messages. Goals: less than 400 MB, fewer than 5 statements per second.

| queues | memory | statements per second | publish to receipt p50, max, ms |
|---|---|---|---|
`)
	for _, queues := range []int{1, 1000} {
		v, err := s.start()
		if err != nil {
			return err
		}
		err = s.wait(v, queues)
		v.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) wait(v *server, queues int) error {
	const receivers = 10_000
	for i := range queues {
		if err := v.mustQueue(fmt.Sprintf("q%d", i)); err != nil {
			return err
		}
	}
	host := strings.TrimPrefix(v.url, "http://")
	received := make(chan time.Time, receivers)
	conns := make([]net.Conn, receivers)
	for i := range conns {
		c, err := net.Dial("tcp", host)
		if err != nil {
			return err
		}
		defer c.Close()
		conns[i] = c
		poll := fmt.Appendf(nil, "GET /queues/q%d/messages?limit=1&wait_seconds=20 HTTP/1.1\r\nHost: localhost\r\n\r\n", i%queues)
		go func() {
			response := make([]byte, 4096)
			for {
				if _, err := c.Write(poll); err != nil {
					return
				}
				n, err := c.Read(response)
				if err != nil {
					return
				}
				if bytes.Contains(response[:n], []byte(`"delivery_attempts"`)) {
					received <- time.Now()
				}
			}
		}()
	}
	time.Sleep(5 * time.Second)
	before, err := v.statements()
	if err != nil {
		return err
	}
	start := time.Now()
	time.Sleep(30 * time.Second)
	after, err := v.statements()
	if err != nil {
		return err
	}
	rate := (after - before) / time.Since(start).Seconds()
	rss := memory(v.cmd.Process.Pid)
	var took numbers
	for i := range 50 {
		sent := time.Now()
		if status, response, err := request(http.DefaultClient, "POST", fmt.Sprintf("%s/queues/q%d/messages", v.url, i*7%queues), `{"data":{}}`); err != nil || status != 201 {
			return fmt.Errorf("publish: %d %s, %v", status, response, err)
		}
		select {
		case at := <-received:
			took = append(took, at.Sub(sent).Seconds()*1000)
		case <-time.After(10 * time.Second):
			return fmt.Errorf("a message was not received")
		}
		time.Sleep(20 * time.Millisecond)
	}
	most := 0.0
	for _, v := range took {
		most = max(most, v)
	}
	s.write("| %d | %d MB | %.1f | %.1f, %.1f |\n", queues, rss>>20, rate, took.median(), most)
	return nil
}

// shortPolls measures receives that do not wait, of an empty queue.
func (s *suite) shortPolls() error {
	s.write(`
## Short polls

One client receives from an empty queue, 300 times, without waiting. Then 100,000 messages pass through the queue, in batches
of 1,000, while a transaction that was opened before stays open, so PostgreSQL cannot vacuum them. The client then polls again.
The goal is one statement for each poll, and a few milliseconds.

| poll | queue | p50, p99, ms | statements |
|---|---|---|---|
`)
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	if err := v.mustQueue("q"); err != nil {
		return err
	}
	if err := v.shortPolls("new"); err != nil {
		return err
	}
	release, err := v.holdSnapshot()
	if err != nil {
		return err
	}
	defer release()
	if err := v.pass(100_000); err != nil {
		return err
	}
	return v.shortPolls("100,000 messages have passed")
}

// shortPolls writes two lines of the table: for the receive, and for the receive that can
// ack.
func (v *server) shortPolls(queue string) error {
	for _, k := range []struct{ what, method, path, body string }{
		{"GET", "GET", "/queues/q/messages?limit=1", ""},
		{"POST to receive", "POST", "/queues/q/messages/receive", `{"limit":1}`},
	} {
		const polls = 300
		before, err := v.statements()
		if err != nil {
			return err
		}
		var took numbers
		for range polls {
			began := time.Now()
			status, response, err := request(http.DefaultClient, k.method, v.url+k.path, k.body)
			took = append(took, time.Since(began).Seconds()*1000)
			if err != nil || status != http.StatusOK || !bytes.Contains(response, []byte(`"data":[]`)) {
				return fmt.Errorf("%s: %d %s, %v", k.what, status, response, err)
			}
		}
		after, err := v.statements()
		if err != nil {
			return err
		}
		slices.Sort(took)
		v.s.write("| %s | %s | %.2f, %.2f | %.2f |\n", k.what, queue, took.median(), took[polls*99/100], (after-before)/polls)
	}
	return nil
}

// pass publishes messages to the queue q and receives them, in batches of 1000. Each
// receive acks the batch before.
func (v *server) pass(messages int) error {
	batch := `{"messages":[` + strings.TrimSuffix(strings.Repeat(`{"data":{"event":"created"}},`, 1000), ",") + `]}`
	var ids []string
	for done := 0; done < messages || len(ids) > 0; {
		if done < messages {
			if status, response, err := request(http.DefaultClient, "POST", v.url+"/queues/q/messages/batch", batch); err != nil || status != http.StatusCreated {
				return fmt.Errorf("publish: %d %s, %v", status, response, err)
			}
			done += 1000
		}
		acks := strings.Join(ids, ",")
		status, response, err := request(http.DefaultClient, "POST", v.url+"/queues/q/messages/receive", `{"limit":1000,"ack":[`+acks+`]}`)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("receive: %d %s, %v", status, response, err)
		}
		ids = nil
		for _, m := range firstID.FindAllSubmatch(response, -1) {
			ids = append(ids, `"`+string(m[1])+`"`)
		}
	}
	return nil
}
