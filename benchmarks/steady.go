package main

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// steady runs a long load, and measures after every tenth of it.
func (s *suite) steady() error {
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	s.write(`
## Steady load for %s

64 + 64 clients run cycles, one message per request, without a rate limit.

| minute | acked per second | table | indexes | dead rows | memory |
|---|---|---|---|---|---|
`, s.long)
	var r *report
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() { r, failed = s.bench(v.url, load(64, 64, 1, s.long)...) })
	var samples [][]string
	for range 10 {
		time.Sleep(s.long / 10)
		sample, err := v.sql(`SELECT pg_size_pretty(pg_relation_size('queued.messages')), pg_size_pretty(pg_indexes_size('queued.messages')),
			(SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'queued.messages'::regclass)`)
		if err != nil {
			return err
		}
		samples = append(samples, append(strings.Split(sample, "|"), fmt.Sprintf("%d MB", memory(v.cmd.Process.Pid)>>20)))
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	for i, sample := range samples {
		from, to := len(r.BySecond)*i/10, len(r.BySecond)*(i+1)/10
		s.write("| %.4g | %s | %s |\n", (time.Duration(i+1) * s.long / 10).Minutes(), thousands(mean(r.BySecond[from:max(from+1, to)])), strings.Join(sample, " | "))
	}
	s.write("\nOver the whole run: publish p50 %.1f ms, p99 %.1f ms, maximum %.1f ms; no message missing, %d duplicates.\n", r.Publish.P50, r.Publish.P99, r.Publish.Max, r.Duplicates)
	return nil
}
