// Benchmarks measures queued and references in one run, on one machine, and writes
// BENCHMARKS.md. The references are a handler with the same JSON and no database
// (nodb.go), pgbench with the same statements, and RabbitMQ (rabbitmq.go). It stops
// everything that it starts. Its data is in a temporary folder.
//
// Sections are in the order of their importance, so that a run that is interrupted has
// measured the most important ones.
//
//	go run . [-rounds 3] [-seconds 5s] [-long 10m] [-only name,name] [-o FILE]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is one run.
type suite struct {
	ctx     context.Context
	dir     string // temporary
	program string // queued
	rounds  int
	seconds time.Duration   // of one load
	long    time.Duration   // of the steady load
	head    string          // how to read the page, machine and versions
	summary strings.Builder // rows of the first table
	page    strings.Builder // the sections

	handlerRate float64 // cycles per second of the handler without a database with 64 + 64 clients; 0 before it is measured
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	s := &suite{ctx: ctx}
	rounds := flag.Int("rounds", 3, "rounds of each load")
	seconds := flag.Duration("seconds", 5*time.Second, "how long a load lasts")
	long := flag.Duration("long", 10*time.Minute, "how long the steady load lasts")
	only := flag.String("only", "", "sections to measure, separated by commas; all if empty")
	output := flag.String("o", "", "file to write, standard output if empty")
	nodb := flag.String("nodb", "", "serve the handler without a database on this address, and nothing else")
	flag.Parse()
	if *nodb != "" {
		l, err := net.Listen("tcp", *nodb)
		if err != nil {
			return err
		}
		return serveNoDB(l)
	}
	s.rounds, s.seconds, s.long = *rounds, *seconds, *long
	var err error
	if s.dir, err = os.MkdirTemp("", "queued-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	if err := os.Chmod(s.dir, 0o755); err != nil { // PostgreSQL may run as another user
		return err
	}
	s.program = filepath.Join(s.dir, "queued")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", s.program, ".")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	command := "make bench"
	given := ""
	flag.Visit(func(f *flag.Flag) {
		if f.Name != "o" {
			given += " -" + f.Name + " " + f.Value.String()
		}
	})
	if given != "" {
		command = "cd benchmarks && go run ." + given
	}
	s.head = s.describe(command)
	var failed error
	for _, section := range []struct {
		name    string
		measure func() error
	}{
		{"handler", s.besideHandler},
		{"rabbitmq", s.besideRabbitMQ},
		{"batches", s.batches},
		{"groups", s.groups},
		{"deduplication", s.deduplication},
		{"sql", s.fromSQL},
		{"queues", s.queues},
		{"polls", s.shortPolls},
		{"snapshot", s.snapshot},
		{"latency", s.latency},
		{"apis", s.apis},
		{"sqs", s.sqs},
		{"profile", s.profile},
		{"backlog", s.backlog},
		{"waiting", s.longPolls},
		{"payloads", s.payloads},
		{"capacity", s.capacity},
		{"idle", s.idle},
		{"steady", s.steady},
	} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), section.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "==", section.name, time.Now().Format(time.TimeOnly))
		if err := section.measure(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", section.name, err))
			s.write("\nThis section is not complete: %v\n", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if *output != "" { // later sections take long
			if err := os.WriteFile(*output, []byte(s.text()), 0o644); err != nil {
				return err
			}
		}
	}
	if *output == "" {
		fmt.Print(s.text())
	}
	return failed
}

func (s *suite) write(format string, args ...any) { fmt.Fprintf(&s.page, format, args...) }

// summarize adds a row to the table at the top of the page.
func (s *suite) summarize(load string, rate float64, beside string, ratio float64) {
	fmt.Fprintf(&s.summary, "| %s | %s | %.2f of %s |\n", load, thousands(rate), ratio, beside)
}

// text returns the page.
func (s *suite) text() string {
	text := "# Benchmarks\n"
	if s.summary.Len() > 0 {
		text += "\n## In short\n\n| load | messages per second | compared |\n|---|---|---|\n" + s.summary.String()
	}
	return text + s.head + s.page.String()
}

// describe returns the head of the page: how to read it, the machine and the versions.
func (s *suite) describe(command string) string {
	output := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	cpu := "unknown"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, found := strings.Cut(string(info), "model name"); found {
			line, _, _ := strings.Cut(after, "\n")
			cpu = strings.TrimSpace(strings.TrimLeft(line, "\t :"))
		}
	}
	commit := output("git", "rev-parse", "--short", "HEAD")
	if output("git", "status", "--porcelain", "--", ":/", ":(top,exclude)BENCHMARKS.md") != "" {
		commit += ", with uncommitted changes"
	}
	return fmt.Sprintf(`
## How to read this page

- Each load ran for %[3]s in each of %[2]d rounds, unless its section says otherwise. Figures are medians, with the range in parentheses.
- A *cycle* is a publish, a receive of one message and its ack. The next receive acks the message, so a cycle is two requests.
- "64 + 64 clients" are 64 producers and 64 consumers. Each sends one request at a time. Producers are at most 1,000 messages ahead.
- *PostgreSQL CPU* is the time of all its processes, *WAL* what they write to the write-ahead log. Servers on a database share both.
- The two figures of a *ratio* are from the same round. The ratio in a table is the median of the rounds, with its range.
- Client, server and PostgreSQL share the cores of one machine, so a client that needs more CPU time leaves less for the server.

`+"`"+command+"`"+` wrote everything on this page in one run, on %[1]s:

| | |
|---|---|
| machine | %[4]d cores (%[5]s) |
| system | %[6]s |
| Go | %[7]s |
| PostgreSQL | %[8]s, private to queued: fsync on, default settings except max_wal_size and autovacuum_naptime |
| queued | commit %[9]s |
`, time.Now().UTC().Format("2006-01-02"), s.rounds, s.seconds, runtime.NumCPU(), cpu, output("uname", "-sr"),
		strings.TrimPrefix(runtime.Version(), "go"), strings.TrimPrefix(output(postgresProgram("postgres"), "--version"), "postgres (PostgreSQL) "), commit)
}
