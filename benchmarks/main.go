// Benchmarks measures queued and references in one run, on one machine, and writes
// BENCHMARKS.md. The references are a handler with the same JSON and no database
// (nodb.go), pgbench with the same statements, and RabbitMQ (rabbitmq.go). It stops
// everything that it starts. Its data is in a temporary folder.
//
//	go run . [-rounds 3] [-seconds 5] [-only name,name] [-o FILE]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
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

// postgresProgram returns the path of one of PostgreSQL's programs.
func postgresProgram(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return name
	}
	return found[len(found)-1]
}

// server is a queued with a private PostgreSQL, or with that of another server.
type server struct {
	s    *suite
	cmd  *exec.Cmd
	url  string
	data string
}

// start starts a server on a new, empty database.
func (s *suite) start(args ...string) (*server, error) {
	dir, err := os.MkdirTemp(s.dir, "data-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return s.startOn(dir, append([]string{"-data-dir", filepath.Join(dir, "data")}, args...)...)
}

// startBeside starts another server on the database of this one.
func (s *suite) startBeside(first *server) (*server, error) {
	return s.startOn("", "-database-url", "host="+first.data+"/data/run user=queued dbname=queued sslmode=disable")
}

func (s *suite) startOn(dir string, args ...string) (*server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	v := &server{s: s, url: "http://" + address, data: dir}
	v.cmd = exec.Command(s.program, append([]string{"-listen", address}, args...)...)
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		if response, err := http.Get(v.url + "/readyz"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return v, nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	v.stop()
	return nil, fmt.Errorf("the server is not ready")
}

func (v *server) stop() {
	v.cmd.Process.Signal(os.Interrupt)
	v.cmd.Wait()
	if v.data != "" {
		os.RemoveAll(v.data)
	}
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// sql runs a statement on the database of the server, and returns the output of psql.
func (v *server) sql(statement string) (string, error) {
	out, err := exec.CommandContext(v.s.ctx, postgresProgram("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", v.data+"/data/run", "-U", "queued", "-d", "queued",
		"-c", "SET statement_timeout = 0", "-c", statement).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// memory returns the resident bytes of a process.
func memory(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	kB, _, _ := strings.Cut(strings.TrimSpace(after), " ")
	n, _ := strconv.ParseInt(kB, 10, 64)
	return n * 1024
}

// report has the values of queued bench -json that the tables show.
type report struct {
	Published  float64 `json:"published_per_second"`
	Received   float64 `json:"received_per_second"`
	Acked      float64 `json:"acked_per_second"`
	Publish    latency `json:"publish_milliseconds"`
	Receipt    latency `json:"publish_to_receipt_milliseconds"`
	Errors     map[string]int
	Missing    *int
	Duplicates int64
	ClientCPU  float64 `json:"client_cpu"`
	BySecond   []int64 `json:"received_by_second"`
}

type latency struct{ P50, P95, P99, Max float64 }

func (r *report) requests() float64 { return r.Published + r.Received + r.Acked }

// bench runs queued bench against a URL.
func (s *suite) bench(url string, args ...string) (*report, error) {
	cmd := exec.CommandContext(s.ctx, s.program, append([]string{"bench", "-json", "-url", url}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var failed *exec.ExitError
		if e, ok := err.(*exec.ExitError); ok {
			failed = e
			return nil, fmt.Errorf("queued bench %s: %w: %s", strings.Join(args, " "), err, lastLine(failed.Stderr))
		}
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(out, r); err != nil {
		return nil, err
	}
	if len(r.Errors) > 0 || r.Missing != nil && *r.Missing > 0 {
		return nil, fmt.Errorf("queued bench %s: errors %v, missing %v", strings.Join(args, " "), r.Errors, r.Missing)
	}
	fmt.Fprintf(os.Stderr, "   %s: published %.0f/s, acked %.0f/s\n", strings.Join(args, " "), r.Published, r.Acked)
	return r, nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func load(producers, consumers, batch int, d time.Duration) []string {
	return []string{"-producers", strconv.Itoa(producers), "-consumers", strconv.Itoa(consumers), "-batch", strconv.Itoa(batch), "-duration", d.String()}
}

// numbers are the results of rounds.
type numbers []float64

func (n numbers) median() float64 {
	if len(n) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(n))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// String shows the median and, if there are several, the range.
func (n numbers) String() string {
	if len(n) < 2 {
		return thousands(n.median())
	}
	return fmt.Sprintf("%s (%s to %s)", thousands(n.median()), thousands(slices.Min(n)), thousands(slices.Max(n)))
}

func thousands(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.2f", v)
	}
	text := strconv.Itoa(int(v))
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
