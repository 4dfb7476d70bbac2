package main

// groups compares messages in few and in many groups with messages without one.
func (s *suite) groups() error {
	s.write(`
## Groups

In the first three rows 64 clients receive and ack single messages from a backlog of a million. In the other rows 64 + 64
clients run cycles. The groups have no delivery interval, so only the server limits the rate. The ratio is relative to ten
groups, or to cycles without groups, in the same round.

`)
	backlog := func(groups string) func(*server) (*result, error) {
		return bench(append(load(0, 64, 1, s.seconds), "-backlog", "1000000", "-drain=false", "-groups", groups)...)
	}
	cycles := func(groups string) func(*server) (*result, error) {
		return bench(append(load(64, 64, 1, s.seconds), "-groups", groups)...)
	}
	return s.compare("load", []comparison{
		{what: "a million in ten groups", load: backlog("10"), base: true},
		{what: "a million in 100,000 groups", load: backlog("100000")},
		{what: "a million without a group", load: backlog("0")},
		{what: "cycles without groups", load: cycles("0"), base: true},
		{what: "cycles in 1,000 groups", load: cycles("1000"), goal: "0.8"},
	})
}
