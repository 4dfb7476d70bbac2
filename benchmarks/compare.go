package main

// comparison is a load whose rate is compared with that of the last base before it.
type comparison struct {
	what string
	load func(*server) (*result, error)
	base bool
	goal string
	args []string // of the server
}

// bench returns a load of queued bench.
func bench(args ...string) func(*server) (*result, error) {
	return func(v *server) (*result, error) { return v.bench(args...) }
}

// compare measures each load on a server of its own, round by round, and writes a table.
func (s *suite) compare(head string, all []comparison) error {
	rates, ratios, used := make([]numbers, len(all)), make([]numbers, len(all)), make([]costs, len(all))
	for range s.rounds {
		base := 0.0
		for i, c := range all {
			v, err := s.start(c.args...)
			if err != nil {
				return err
			}
			r, err := c.load(v)
			v.stop()
			if err != nil {
				return err
			}
			if c.base {
				base = r.rate
			}
			rates[i], ratios[i] = append(rates[i], r.rate), append(ratios[i], r.rate/base)
			used[i].add(r)
		}
	}
	s.write("| %s | messages per second | ratio | goal | %s |\n|---|---|---|---|---|---|\n", head, costColumns)
	for i, c := range all {
		s.write("| %s | %v | %v | %s | %v |\n", c.what, rates[i], ratios[i], c.goal, used[i])
	}
	return nil
}
