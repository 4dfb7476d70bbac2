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

The handler serves the same requests with the same JSON, using net/http and encoding/json, and keeps messages in memory, so it
is an upper bound. Figures are messages per second. With a separate ack, a cycle is three requests. Client CPU is the client's
share of the machine's CPU time under queued.

| load | clients | handler | queued | ratio | goal | publish p50, p99, ms | %s | client CPU |
|---|---|---|---|---|---|---|---|---|---|
`, costColumns)
	for _, k := range []struct {
		what      string
		consumers bool
		args      []string
		goal      map[int]string
	}{
		{"publish", false, nil, map[int]string{64: "0.55"}},
		{"cycle", true, nil, nil},
		{"cycle with a separate ack", true, []string{"-settle", "separate"}, nil},
	} {
		for _, clients := range []int{8, 16, 64} {
			consumers, shown := 0, strconv.Itoa(clients)
			if k.consumers {
				consumers, shown = clients, fmt.Sprintf("%d + %d", clients, clients)
			}
			args := append(load(clients, consumers, 1, s.seconds), k.args...)
			var without, with, ratio, p50, p99, cpu numbers
			var costs costs
			for range s.rounds {
				a, err := s.bench(nodb, args...)
				if err != nil {
					return err
				}
				b, err := v.bench(args...)
				if err != nil {
					return err
				}
				without, with, ratio = append(without, a.rate()), append(with, b.rate), append(ratio, b.rate/a.rate())
				p50, p99, cpu = append(p50, b.Publish.P50), append(p99, b.Publish.P99), append(cpu, b.ClientCPU)
				costs.add(b)
			}
			s.write("| %s | %s | %v | %v | %v | %s | %.1f, %.1f | %v | %.0f %% |\n", k.what, shown, without, with, ratio, k.goal[clients], p50.median(), p99.median(), costs, 100*cpu.median())
			if clients == 64 {
				s.summarize(k.what+", "+shown+" clients", with.median(), "the handler without a database", ratio.median())
				if k.consumers && k.args == nil {
					s.handlerRate = without.median()
				}
			}
		}
	}
	return nil
}
