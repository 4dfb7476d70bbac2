// Queued is a message queue server: HTTP in front of PostgreSQL.
//
// A client publishes a message to a topic. Every queue that subscribes to the topic,
// and whose filters match the message's attributes, gets a copy. A consumer receives
// messages from a queue, processes them and acks them. A received message is leased:
// hidden from other consumers until its ack deadline. If it is not acked by then, or
// is nacked, it is delivered again. After too many attempts it moves to the queue's
// dead queue, from where it can be redriven.
//
// All state is in PostgreSQL (schema.sql), so any number of servers can share one
// database. A request takes one way through the program:
//
//	HTTP request
//	     │   server.go: admission, authentication, routes
//	     ▼
//	  handler    handlers.go, compat_*.go: decode, check, one call, encode
//	     │
//	     ├────────────► store     store.go: topics, queues, lookups
//	     ▼                │
//	  engine              │       publish.go, receive.go, ack.go: frequent operations
//	     │                │
//	     ▼                ▼
//	statement, commit, fsync
//
// cleanup.go runs beside the requests: it deletes expired messages, and moves those that
// were never acked to their dead queues.
//
// A commit and a round trip cost the same for one message as for a hundred. So the
// engine combines requests: publishes, acks and other requests that wait at the same time
// share a statement (batcher.go), and a dispatcher for each queue claims messages for all
// its receivers (receive.go). When nothing is due, the dispatcher sleeps until a publish,
// a notification of another server (notify.go) or the clock wakes it. That is the long
// poll.
//
// Each file is named for its subject. docs/inside.md follows a message through the files,
// and lists the invariants.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"queued/internal/flags"
	"queued/internal/shell"
)

func main() {
	// Notifications stay on: a signal in the last moment must not change how the program
	// ends.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, stop := context.WithCancelCause(context.Background())
	go func() { stop(stopSignal{<-signals}) }()
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	// A program that a signal ends has the status that a shell would report.
	var stopped stopSignal
	switch {
	case errors.Is(err, shell.ErrOutputClosed):
		os.Exit(128 + 13) // SIGPIPE
	case errors.As(context.Cause(ctx), &stopped) && errors.Is(err, context.Canceled):
		os.Exit(128 + int(stopped.Signal.(syscall.Signal)))
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "queued:", err)
		if errors.As(err, new(flags.UsageError)) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// stopSignal is the cause of the end of a context that a signal has ended. It is
// context.Canceled for code that does not ask for the cause.
type stopSignal struct{ os.Signal }

func (s stopSignal) Error() string      { return s.String() }
func (stopSignal) Is(target error) bool { return target == context.Canceled }

// run is the program. It returns when it is done, or when ctx and everything that it
// started have ended.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	c, rest, err := findCommand(args)
	if err != nil {
		return err
	}
	return c.Run(ctx, rest, getenv, stdin, stdout, stderr)
}

func runServe(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	c, err := parseConfig(args, takeLibpqVariables(getenv), stdout)
	if err != nil {
		return err
	}
	return serve(ctx, c, stderr)
}

const versionUsage = `queued version prints the version of the program, its Go version and its platform.

usage: queued version

`

func runVersion(_ context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, _ io.Writer) error {
	f := flags.New("queued version", versionUsage, stdout)
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "queued %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version returns the version of the module: its tag, or the time and the hash of its
// commit. A build without git has no version.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
