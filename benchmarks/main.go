// Benchmarks measures queued and references in one run, on one machine, and writes
// BENCHMARKS.md. The references are a handler with the same JSON and no database
// (nodb.go), pgbench with the same statements, and RabbitMQ (rabbitmq.go). It stops
// everything that it starts. Its data is in a temporary folder.
//
//	go run . [-rounds 3] [-seconds 5] [-only name,name] [-o FILE]
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
	"time"
)

// suite is one run.
type suite struct {
	ctx     context.Context
	dir     string // temporary
	program string // queued
	rounds  int
	seconds time.Duration // of one load
	long    time.Duration // of the steady load
	page    strings.Builder

	handlerRate float64 // requests per second of the handler without a database; 0 before it is measured
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
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
	long := flag.Duration("long", 30*time.Minute, "how long the steady load lasts")
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
	s.head()
	var failed error
	for _, section := range []struct {
		name    string
		measure func() error
	}{
		{"handler", s.besideHandler},
		{"profile", s.profile},
		{"rabbitmq", s.besideRabbitMQ},
		{"batches", s.batches},
		{"backlog", s.backlog},
		{"groups", s.groups},
		{"apis", s.apis},
		{"snapshot", s.snapshot},
		{"latency", s.latency},
		{"queues", s.queues},
		{"waiting", s.waiting},
		{"payloads", s.payloads},
		{"idle", s.idle},
		{"steady", s.steady},
	} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), section.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "==", section.name, time.Now().Format(time.TimeOnly))
		if err := section.measure(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", section.name, err))
			s.write("\nThis section was not measured: %v\n", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if *output != "" { // later sections take long
			if err := os.WriteFile(*output, []byte(s.page.String()), 0o644); err != nil {
				return err
			}
		}
	}
	if *output == "" {
		fmt.Print(s.page.String())
	}
	return failed
}

func (s *suite) write(format string, args ...any) { fmt.Fprintf(&s.page, format, args...) }

// head writes the machine and the versions of the measurement.
func (s *suite) head() {
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
	s.write(`# Benchmarks

%[1]smake bench%[1]s wrote this page on %[2]s. Each load ran for %[4]s in each of %[3]d rounds. Figures are the median, with the
range in parentheses.

A *cycle* is a publish, a receive of one message, and its ack. "64 + 64 clients" are 64 producers and 64 consumers.

| | |
|---|---|
| machine | %[5]d cores (%[6]s), shared by client, server and PostgreSQL |
| system | %[7]s |
| Go | %[8]s |
| PostgreSQL | %[9]s, private to queued: fsync on, default settings except max_wal_size and autovacuum_naptime |
| queued | commit %[10]s |
`, "`", time.Now().UTC().Format("2006-01-02"), s.rounds, s.seconds, runtime.NumCPU(), cpu, output("uname", "-sr"),
		strings.TrimPrefix(runtime.Version(), "go"), strings.TrimPrefix(output(postgresProgram("postgres"), "--version"), "postgres (PostgreSQL) "),
		output("git", "rev-parse", "--short", "HEAD"))
}
