package main

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/profile"
)

// profile measures the CPU time by part of the program.
func (s *suite) profile() error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	v, err := s.start("-debug-listen", address)
	if err != nil {
		return err
	}
	defer v.stop()
	s.write(`
## Where the time goes

CPU time per cycle, with 64 + 64 clients, for 12 s in one round. PostgreSQL and the client are separate processes; the other
rows are parts of the server, from its CPU profile.

| part | microseconds per cycle | share |
|---|---|---|
`)
	var samples []byte
	var took error
	var wg sync.WaitGroup
	before, err := v.cost()
	if err != nil {
		return err
	}
	wg.Go(func() {
		time.Sleep(2 * time.Second)
		response, err := http.Get("http://" + address + "/debug/pprof/profile?seconds=8")
		if err != nil {
			took = err
			return
		}
		defer response.Body.Close()
		samples, took = io.ReadAll(response.Body)
	})
	const d = 12 * time.Second
	r, err := s.bench(v.url, append(load(64, 64, 1, d), "-drain=false")...)
	wg.Wait()
	if err != nil {
		return err
	}
	if took != nil {
		return took
	}
	after, err := v.cost()
	if err != nil {
		return err
	}
	used := after.since(before)
	cycles := r.Acked * d.Seconds()
	client := r.ClientCPU * float64(runtime.NumCPU()) * d.Seconds()
	p, err := profile.ParseData(samples)
	if err != nil {
		return err
	}
	parts, sum := map[string]float64{}, 0.0
	for _, sample := range p.Sample {
		nanoseconds := float64(sample.Value[1])
		parts[partOf(sample)] += nanoseconds
		sum += nanoseconds
	}
	total := client + used.server + used.postgres
	line := func(what string, seconds float64) {
		s.write("| %s | %.1f | %.0f %% |\n", what, seconds/cycles*1e6, 100*seconds/total)
	}
	line("PostgreSQL, all its processes", used.postgres)
	line("client", client)
	for _, part := range []string{"net/http: connections, headers, routing", "JSON and validation of requests, responses", "lib/pq and database/sql", "engine: batchers, dispatchers", "metrics", "garbage collector", "scheduler and the rest of the runtime"} {
		line("server: "+part, used.server*parts[part]/sum)
	}
	s.write("\nThe total is %.0f microseconds per cycle. At this rate %d cores have %.0f microseconds per cycle: they are idle for the difference,\nwhile all clients wait for a commit.\n",
		total/cycles*1e6, runtime.NumCPU(), float64(runtime.NumCPU())*d.Seconds()/cycles*1e6)
	if s.handlerRate == 0 {
		return nil
	}
	perCycle := float64(runtime.NumCPU()) / s.handlerRate // seconds of the handler, HTTP and JSON on both sides
	ours := (used.postgres + used.server*(parts["lib/pq and database/sql"]+parts["engine: batchers, dispatchers"])/sum) / cycles
	s.write(`
The handler without a database takes about %.0f microseconds per cycle, all of it for HTTP and JSON. PostgreSQL, its driver and the
engine add %.0f. If the cores were never idle, and HTTP took as long as in the handler, the ratio would be %.2f.
`, perCycle*1e6, ours*1e6, perCycle/(perCycle+ours))
	return nil
}

// partOf returns the part of the program that a sample of the profile belongs to, by the
// innermost function that belongs to a part.
func partOf(sample *profile.Sample) string {
	for _, location := range sample.Location {
		for _, line := range location.Line {
			name := line.Function.Name
			switch {
			case strings.HasPrefix(name, "runtime.gc"), strings.HasPrefix(name, "runtime.bgsweep"), strings.HasPrefix(name, "runtime.bgscavenge"):
				return "garbage collector"
			case strings.HasPrefix(name, "github.com/lib/pq"), strings.HasPrefix(name, "database/sql"):
				return "lib/pq and database/sql"
			case strings.Contains(name, "prometheus"), strings.Contains(name, "main.(*metrics)"):
				return "metrics"
			case strings.HasPrefix(name, "encoding/json"), strings.HasPrefix(name, "queued/internal/rawjson"), strings.Contains(name, "main.(*form)"), strings.Contains(name, "appendJSON"), strings.Contains(name, "main.parseBody"), strings.Contains(name, "main.(*responseWriter)"), strings.Contains(name, "main.(*messageList)"):
				return "JSON and validation of requests, responses"
			case strings.Contains(name, "main.(*engine)"), strings.Contains(name, "main.(*batcher"), strings.Contains(name, "main.(*pinnedConn)"), strings.Contains(name, "main.read["):
				return "engine: batchers, dispatchers"
			case strings.HasPrefix(name, "net/http"), strings.HasPrefix(name, "main."):
				return "net/http: connections, headers, routing"
			}
		}
	}
	return "scheduler and the rest of the runtime"
}
