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
	backlog := func(groups string) []string {
		return append(load(0, 64, 1, s.seconds), "-backlog", "1000000", "-drain=false", "-groups", groups)
	}
	cycles := func(groups string) []string { return append(load(64, 64, 1, s.seconds), "-groups", groups) }
	return s.compare([]comparison{
		{"a million in ten groups", backlog("10"), true},
		{"a million in 100,000 groups", backlog("100000"), false},
		{"a million without a group", backlog("0"), false},
		{"cycles without groups", cycles("0"), true},
		{"cycles in 1000 groups", cycles("1000"), false},
	})
}

// apis compares the cycles of other servers' APIs with the native one's.
func (s *suite) apis() error {
	s.write(`
## Other servers' APIs

64 + 64 clients run cycles through each API. In the APIs of pgQueue and micro-queue reading a message acks it, so a cycle is
two requests. In SharQ's API a cycle is enqueue, dequeue and finish of a job, in 1000 queue ids with interval 0. The ratio is
relative to the native API in the same round. The goals are 1 for pgQueue and micro-queue, and 0.5 for SharQ, whose requests
do more: an enqueue searches for the same job, the server counts jobs per minute, and a dequeue returns the number of waiting
jobs.

| API | acked per second | ratio |
|---|---|---|
`)
	cycles := func(api, groups string) []string {
		return append(load(64, 64, 1, s.seconds), "-api", api, "-groups", groups)
	}
	return s.compare([]comparison{
		{"native", cycles("native", "0"), true},
		{"pgQueue", cycles("pgqueue", "0"), false},
		{"micro-queue", cycles("micro-queue", "0"), false},
		{"SharQ", cycles("sharq", "1000"), false},
	})
}

// comparison is a load whose acks are compared with those of the last base before it.
type comparison struct {
	what string
	args []string
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
			r, err := s.bench(v.url, c.args...)
			v.stop()
			if err != nil {
				return err
			}
			if c.base {
				base = r.Acked
			}
			results[i], ratios[i] = append(results[i], r.Acked), append(ratios[i], r.Acked/base)
		}
	}
	for i, c := range all {
		s.write("| %s | %v | %v |\n", c.what, results[i], ratios[i])
	}
	return nil
}
