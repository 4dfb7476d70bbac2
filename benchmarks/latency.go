package main

func (s *suite) latency() error {
	d := 2 * s.seconds
	s.write(`
## Latency

16 producers publish 1,000 messages per second in total, and 16 consumers receive them in long polls that also ack, for %s in
each round. Times are in milliseconds. The time of a publish starts when its request is sent, or when it was due if the previous
response came too late. With two servers, one gets the publishes and the other the receives; both use the same database. Idle
means ten messages per second, with one producer and one consumer.

| load | publish p50, p99, max | publish to receipt p50 | p99 | max | goal |
|---|---|---|---|---|---|
`, d)
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	other, err := s.startBeside(v)
	if err != nil {
		return err
	}
	defer other.stop()
	for _, k := range []struct {
		what string
		args []string
		goal string
	}{
		{"1,000/s, one server", append(load(16, 16, 1, d), "-rate", "1000"), ""},
		{"1,000/s, two servers", append(load(16, 16, 1, d), "-rate", "1000", "-receive-url", other.url), ""},
		{"idle, one server", append(load(1, 1, 1, d), "-rate", "10"), "p50 under 3, p99 under 15"},
		{"idle, two servers", append(load(1, 1, 1, d), "-rate", "10", "-receive-url", other.url), "p99 under 20"},
	} {
		var publish50, publish99, publishMax, p50, p99, most numbers
		for range s.rounds {
			r, err := s.bench(v.url, k.args...)
			if err != nil {
				return err
			}
			publish50, publish99, publishMax = append(publish50, r.Publish.P50), append(publish99, r.Publish.P99), append(publishMax, r.Publish.Max)
			p50, p99, most = append(p50, r.Receipt.P50), append(p99, r.Receipt.P99), append(most, r.Receipt.Max)
		}
		s.write("| %s | %.1f, %.1f, %.1f | %v | %v | %v | %s |\n", k.what, publish50.median(), publish99.median(), publishMax.median(), p50, p99, most, k.goal)
	}
	return nil
}
