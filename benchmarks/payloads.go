package main

import (
	"strconv"
)

func (s *suite) payloads() error {
	s.write(`
## Payloads

16 + 16 clients run cycles with messages of different sizes, in one round. Memory is that of the server at the end. The
data is a repeated letter, which PostgreSQL compresses.

| bytes | messages per second | MB per second | publish p50, p99, ms | memory | %s |
|---|---|---|---|---|---|---|
`, costColumns)
	for _, size := range []int{200, 1 << 10, 10 << 10, 100 << 10} {
		v, err := s.start()
		if err != nil {
			return err
		}
		r, err := v.bench(append(load(16, 16, 1, s.seconds), "-size", strconv.Itoa(size))...)
		rss := memory(v.cmd.Process.Pid)
		v.stop()
		if err != nil {
			return err
		}
		s.write("| %d | %s | %.1f | %.1f, %.1f | %d MB | %.1f | %.0f |\n", size, thousands(r.rate), r.rate*float64(size)/1e6, r.Publish.P50, r.Publish.P99, rss>>20, r.cpu, r.wal)
	}
	return nil
}
