package main

// groups compares messages in few and in many groups with messages without one.
func (s *suite) groups() error {
	s.write(`
## Groups

In the first three rows 64 clients receive and ack single messages from a backlog of a million. In the other rows 64 + 64
clients run cycles. The groups have no delivery interval, so only the server limits the rate. The ratio is relative to ten
groups, or to cycles without groups, in the same round.

| load | acked per second | ratio |
|---|---|---|
`)
	bench := func(args []string) func(*server) (float64, error) {
		return func(v *server) (float64, error) {
			r, err := s.bench(v.url, args...)
			if err != nil {
				return 0, err
			}
			return r.Acked, nil
		}
	}
	backlog := func(groups string) func(*server) (float64, error) {
		return bench(append(load(0, 64, 1, s.seconds), "-backlog", "1000000", "-drain=false", "-groups", groups))
	}
	cycles := func(groups string) func(*server) (float64, error) {
		return bench(append(load(64, 64, 1, s.seconds), "-groups", groups))
	}
	return s.compare([]comparison{
		{"a million in ten groups", backlog("10"), true},
		{"a million in 100,000 groups", backlog("100000"), false},
		{"a million without a group", backlog("0"), false},
		{"cycles without groups", cycles("0"), true},
		{"cycles in 1000 groups", cycles("1000"), false},
	})
}

// comparison is a load whose acks are compared with the acks of the last base before it.
type comparison struct {
	what string
	load func(*server) (ackedPerSecond float64, err error)
	base bool
}

// compare measures each load on a server of its own, round by round, and writes a
// line of a table for each.
func (s *suite) compare(all []comparison) error {
	results, ratios := make([]numbers, len(all)), make([]numbers, len(all))
	for range s.rounds {
		base := 0.0
		for i, c := range all {
			v, err := s.start()
			if err != nil {
				return err
			}
			acked, err := c.load(v)
			v.stop()
			if err != nil {
				return err
			}
			if c.base {
				base = acked
			}
			results[i], ratios[i] = append(results[i], acked), append(ratios[i], acked/base)
		}
	}
	for i, c := range all {
		s.write("| %s | %v | %v |\n", c.what, results[i], ratios[i])
	}
	return nil
}
