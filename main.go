// Queued is a message queue server: HTTP in front of PostgreSQL.
//
// A message is published to a topic. Every queue that subscribes to the topic,
// and whose filter matches the message's attributes, gets a copy. A consumer
// receives messages from a queue, works, and acks them. A received message is
// hidden from the others until its ack deadline; if it was not acked by then, or
// was nacked, it is delivered again, and after too many deliveries it goes to
// the queue's dead queue, from where it can be redriven.
//
// # The house
//
// A request goes one way through the program:
//
//	request → handle → handler → one call to the store or the engine → one statement → rows → JSON
//
// server.go has the routes of the API. The handlers (handlers.go) decode and check with
// decode.go and internal/rawjson, call, and encode. What is done now and then, like
// making a queue, is a method of the store (store.go) on any connection of the
// pool. What is done thousands of times a second goes through the engine
// (engine.go), because a commit and a round trip cost the same for a hundred
// messages as for one:
//
//   - Publishes, acks, nacks and extensions gather in lanes (batcher.go, publish.go,
//     ack.go): those that wait at the same time share one statement and one
//     commit.
//   - Receivers line up at the dispatcher of their queue (receive.go), which
//     claims messages for all of them at once (claim.go) and hands them out in the order
//     in which they came. When nothing is due it sleeps, which is the long poll,
//     until something is: told by a publish in this process, by a notification
//     from another (notify.go), by the clock, or by a slow look for what nobody
//     told it. watermark.go keeps claims from walking over what is gone. groups.go is
//     how messages of one sender are limited and kept in order.
//
// All state is in PostgreSQL, in the schema that schema.sql describes, so any
// number of these processes can share one database. cleanup.go removes what
// expired and moves what was delivered too often. admission.go bounds connections and
// memory of clients, and says who makes way. pgconn.go makes connections to
// PostgreSQL and cuts them when it does not answer, pinned.go is how one of the
// engine's behaves, topology.go makes queues from a file, metrics.go is what Prometheus
// sees, depth.go how many messages there are, openapi.go the API described. auth.go
// says who may do what, and reload.go reads that and the certificate of HTTPS
// from files. compat.go is how other servers' APIs are spoken: compat_pgqueue.go,
// compat_microqueue.go, and compat_sharq.go with what its jobs need beyond groups in compat_sharq_jobs.go.
// dashboard.go serves the page in dashboard/ to browsers. log.go keeps the log to
// one line an entry, whatever clients send, and trace.go reads which request and
// which trace a request belongs to.
//
// Other commands are programs of their own, which use a running server over HTTP:
// internal/bench is load for it, and internal/shell publishes, shows queues, and receives
// and runs a command for each message.
//
// Without a database, postgres.go starts a PostgreSQL of our own. Tests use the
// same code.
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

	"queued/internal/bench"
	"queued/internal/flags"
	"queued/internal/shell"
)

func main() {
	// It is never stopped: one more signal in the last moment must not change how the
	// program ends.
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	if errors.Is(err, shell.ErrOutputClosed) {
		os.Exit(128 + 13) // as a shell says of what SIGPIPE has ended
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "queued:", err)
		if errors.As(err, new(flags.UsageError)) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// run is the program: it returns when it is done, or after ctx has ended and
// everything it started has.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "version", "-version", "--version":
		return runVersion(args[1:], getenv, stdout)
	case "health":
		return shell.Health(ctx, args[1:], getenv, stdout)
	case "bench":
		return bench.Run(ctx, args[1:], getenv, stdout, stderr)
	case "publish":
		return shell.Publish(ctx, args[1:], getenv, stdin, stdout, stderr)
	case "receive":
		return shell.Receive(ctx, args[1:], getenv, stdout, stderr)
	case "queues":
		return shell.Queues(ctx, args[1:], getenv, stdout, stderr)
	case "stats":
		return shell.Stats(ctx, args[1:], getenv, stdout, stderr)
	case "schema":
		return runSchema(args[1:], getenv, stdout)
	}
	c, err := parseConfig(args, takeLibpqVariables(getenv), stdout)
	if err != nil {
		return err
	}
	return serve(ctx, c, stderr)
}

const versionUsage = `Queued version says which version of the program this is, of which Go, and for
which system.

`

func runVersion(args []string, getenv func(string) string, stdout io.Writer) error {
	f := flags.New("queued version", versionUsage, stdout)
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "queued %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version returns that of the module this program was built from: its tag, or
// the time and the hash of its commit. A build without git has none.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
