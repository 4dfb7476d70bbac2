package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

func (s *suite) waiting() error {
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
