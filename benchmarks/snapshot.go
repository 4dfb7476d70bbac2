package main

import (
	"fmt"
	"io"
	"os/exec"
	"time"
)

func (s *suite) snapshot() error {
	s.write(`
## While a snapshot is held

A transaction stays open in the database (` + "`BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;`" + `), so PostgreSQL
cannot vacuum acked messages. 64 + 64 clients run cycles, one message per request. The goal is 0.8 of the rate without a
snapshot, and at most twice its 99th percentile.

| | acked per second | in the first and the last tenth | publish p50, p99, ms | ratio | table and indexes before, after |
|---|---|---|---|---|---|
`)
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	base := 0.0
	for _, k := range []struct {
		what string
		d    time.Duration
		held bool
	}{{"no snapshot, 30 s", 30 * time.Second, false}, {"snapshot held for 60 s", time.Minute, true}, {"snapshot held for 5 minutes", 5 * time.Minute, true}} {
		before, err := v.sql("SELECT pg_size_pretty(pg_total_relation_size('queued.messages'))")
		if err != nil {
			return err
		}
		release := func() {}
		if k.held {
			if release, err = v.holdSnapshot(); err != nil {
				return err
			}
		}
		r, err := s.bench(v.url, load(64, 64, 1, k.d)...)
		var after string
		if err == nil {
			after, err = v.sql("SELECT pg_size_pretty(pg_total_relation_size('queued.messages'))")
		}
		release()
		if err != nil {
			return err
		}
		if base == 0 {
			base = r.Acked
		}
		tenth := max(1, len(r.BySecond)/10)
		mean := func(all []int64) float64 {
			sum := int64(0)
			for _, n := range all {
				sum += n
			}
			return float64(sum) / float64(len(all))
		}
		s.write("| %s | %s | %s, %s | %.1f, %.1f | %.2f | %s, %s |\n", k.what, thousands(r.Acked), thousands(mean(r.BySecond[:tenth])),
			thousands(mean(r.BySecond[len(r.BySecond)-tenth:])), r.Publish.P50, r.Publish.P99, r.Acked/base, before, after)
	}
	return nil
}

// holdSnapshot opens a transaction that lasts until release is called.
func (v *server) holdSnapshot() (release func(), err error) {
	cmd := exec.Command(postgresProgram("psql"), "-qAtX", "-h", v.data+"/data/run", "-U", "queued", "-d", "queued")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	fmt.Fprintln(in, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;")
	if _, err := io.ReadFull(out, make([]byte, 2)); err != nil {
		return nil, err
	}
	return func() {
		in.Close()
		cmd.Wait()
	}, nil
}
