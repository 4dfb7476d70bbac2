package main

import (
	"fmt"
	"io"
	"os/exec"
	"time"
)

// snapshot compares cycles while a transaction is open with cycles without one.
func (s *suite) snapshot() error {
	s.write(`
## While a snapshot is held

A transaction stays open in the database (`+"`BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;`"+`), so PostgreSQL cannot vacuum
acked messages. 64 + 64 clients run cycles, each load on a server of its own and in one round. The ratio is relative to the
load of the same kind without a snapshot. The goal is 0.8, and at most twice the 99th percentile.

| load | seconds | messages per second | in the first and the last tenth | publish p50, p99, ms | ratio | %s | table and indexes before, after |
|---|---|---|---|---|---|---|---|---|
`, costColumns)
	base := 0.0
	for _, k := range []struct {
		what   string
		d      time.Duration
		held   bool
		groups string
	}{
		{"no snapshot", 6 * s.seconds, false, "0"},
		{"snapshot", 12 * s.seconds, true, "0"},
		{"snapshot", 60 * s.seconds, true, "0"},
		{"ten groups, no snapshot", 6 * s.seconds, false, "10"},
		{"ten groups, snapshot", 12 * s.seconds, true, "10"},
	} {
		v, err := s.start()
		if err != nil {
			return err
		}
		r, before, after, err := v.holding(k.held, append(load(64, 64, 1, k.d), "-groups", k.groups)...)
		v.stop()
		if err != nil {
			return err
		}
		if !k.held {
			base = r.rate
		}
		tenth := max(1, len(r.BySecond)/10)
		s.write("| %s | %.0f | %s | %s, %s | %.1f, %.1f | %.2f | %.1f | %.0f | %s, %s |\n", k.what, k.d.Seconds(), thousands(r.rate), thousands(mean(r.BySecond[:tenth])),
			thousands(mean(r.BySecond[len(r.BySecond)-tenth:])), r.Publish.P50, r.Publish.P99, r.rate/base, r.cpu, r.wal, before, after)
	}
	return nil
}

// holding runs a load, with a snapshot held if hold is true. It returns also the size of
// the table and its indexes before and after the load.
func (v *server) holding(hold bool, args ...string) (r *result, before, after string, err error) {
	const size = "SELECT pg_size_pretty(pg_total_relation_size('queued.messages'))"
	if before, err = v.sql(size); err != nil {
		return nil, "", "", err
	}
	if hold {
		release, err := v.holdSnapshot()
		if err != nil {
			return nil, "", "", err
		}
		defer release()
	}
	if r, err = v.bench(args...); err != nil {
		return nil, "", "", err
	}
	after, err = v.sql(size)
	return r, before, after, err
}

func mean(all []int64) float64 {
	sum := int64(0)
	for _, n := range all {
		sum += n
	}
	return float64(sum) / float64(len(all))
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
