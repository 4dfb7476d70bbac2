package main

// deduplication measures what a deduplication id costs a publish.
func (s *suite) deduplication() error {
	s.write(`
## Deduplication ids

Publishes whose messages have a deduplication id each, compared with publishes without. Such a publish is a transaction of four
round trips to PostgreSQL instead of one, and stores a row for each id until its window ends.

`)
	single, batch := load(64, 0, 1, s.seconds), load(8, 0, 100, s.seconds)
	return s.compare("load", []comparison{
		{what: "one message in each request, 64 clients", load: bench(single...), base: true},
		{what: "the same, with ids", load: bench(append(single, "-deduplicate")...)},
		{what: "100 messages in each request, 8 clients", load: bench(batch...), base: true},
		{what: "the same, with ids", load: bench(append(batch, "-deduplicate")...)},
	})
}
