package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
)

// besideHandler compares queued with a handler that has no database.
func (s *suite) besideHandler() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l.Close()
	handler := exec.Command(os.Args[0], "-nodb", l.Addr().String())
	if err := handler.Start(); err != nil {
		return err
	}
	defer func() {
		handler.Process.Kill()
		handler.Wait()
	}()
	nodb := "http://" + l.Addr().String()
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	s.write(`
## Compared with a handler without a database

The handler serves the same requests with the same JSON, using net/http and encoding/json, and keeps messages in memory.
Figures are requests per second, of all kinds together. Each client sends one request at a time. Producers stay at most 1000
messages ahead of consumers, so the numbers of published and acked messages are equal. CPU is the client's share of the
machine's CPU time.

| load | clients | handler | queued | ratio | goal | publish p50, p99, ms | CPU |
|---|---|---|---|---|---|---|---|
`)
	for _, k := range []struct {
		what      string
		consumers bool
		goal      map[int]string
	}{{"publish", false, map[int]string{64: "0.7"}}, {"publish, receive one, ack one", true, map[int]string{64: "0.6"}}} {
		for _, clients := range []int{8, 16, 64} {
			consumers, shown := 0, strconv.Itoa(clients)
			if k.consumers {
				consumers, shown = clients, fmt.Sprintf("%d + %d", clients, clients)
			}
			var without, with, ratio, p50, p99, cpu numbers
			for range s.rounds {
				a, err := s.bench(nodb, load(clients, consumers, 1, s.seconds)...)
				if err != nil {
					return err
				}
				b, err := s.bench(v.url, load(clients, consumers, 1, s.seconds)...)
				if err != nil {
					return err
				}
				without, with, ratio = append(without, a.requests()), append(with, b.requests()), append(ratio, b.requests()/a.requests())
				p50, p99, cpu = append(p50, b.Publish.P50), append(p99, b.Publish.P99), append(cpu, b.ClientCPU)
			}
			s.handlerRate = without.median()
			s.write("| %s | %s | %v | %v | %v | %s | %.1f, %.1f | %.0f %% |\n", k.what, shown, without, with, ratio, k.goal[clients], p50.median(), p99.median(), 100*cpu.median())
		}
	}
	return nil
}
