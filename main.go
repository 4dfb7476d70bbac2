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
// handlers.go has the routes of the API. Its handlers decode and check with
// decode.go and rawjson.go, call, and encode. What is done now and then, like
// making a queue, is a method of the store (store.go) on any connection of the
// pool. What is done thousands of times a second goes through the engine
// (engine.go), because a commit and a round trip cost the same for a hundred
// messages as for one:
//
//   - Publishes, acks, nacks and extensions gather in lanes (lane.go, publish.go,
//     settle.go): those that wait at the same time share one statement and one
//     commit.
//   - Receivers line up at the dispatcher of their queue (receive.go), which
//     claims messages for all of them at once and hands them out in the order
//     in which they came. When nothing is due it sleeps, which is the long poll,
//     until something is: told by a publish in this process, by a notification
//     from another (notify.go), by the clock, or by a slow look for what nobody
//     told it. floor.go keeps claims from walking over what is gone. groups.go is
//     how messages of one sender are limited and kept in order.
//
// All state is in PostgreSQL, in the schema that schema.sql describes, so any
// number of these processes can share one database. cleanup.go removes what
// expired and moves what was delivered too often. room.go bounds connections and
// memory of clients, and says who makes way. database.go makes connections to
// PostgreSQL and cuts them when it does not answer, session.go is how one of the
// engine's behaves, topology.go makes queues from a file, metrics.go is what Prometheus
// sees, count.go how many messages there are, docs.go the API described. auth.go
// says who may do what, and secrets.go reads that and the certificate of HTTPS
// from files. dialect.go is how other servers' APIs are spoken: pgqueue.go,
// microqueue.go, and sharq.go with what its jobs need beyond groups in jobs.go.
// dashboard.go serves the page in dashboard/ to browsers. log.go keeps the log to
// one line an entry, whatever clients send, and trace.go reads which request and
// which trace a request belongs to.
//
// Other commands are programs of their own, which use a running server over HTTP:
// bench.go is load for it, client.go publishes and shows queues from a shell, and
// worker.go receives, and runs a command for each message.
//
// Without a database, postgres.go starts a PostgreSQL of our own. Tests use the
// same code.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if err := hideSecrets(); err != nil {
		fmt.Fprintln(os.Stderr, "queued:", err)
		os.Exit(1)
	}
	// It is never stopped: one more signal in the last moment must not change how the
	// program ends.
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	if errors.Is(err, errOutputClosed) {
		os.Exit(128 + 13) // as a shell says of what SIGPIPE has ended
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "queued:", err)
		if errors.As(err, new(usageError)) {
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
		return runHealth(ctx, args[1:], getenv, stdout)
	case "bench":
		return runBench(ctx, args[1:], getenv, stdout, stderr)
	case "publish":
		return runPublish(ctx, args[1:], getenv, stdin, stdout)
	case "receive":
		return runReceive(ctx, args[1:], getenv, stdout, stderr)
	case "queues":
		return runQueues(ctx, args[1:], getenv, stdout)
	case "stats":
		return runStats(ctx, args[1:], getenv, stdout)
	case "schema":
		return runSchema(args[1:], getenv, stdout)
	}
	c, err := parseConfig(args, takeLibpqVariables(getenv), stdout)
	if err != nil {
		return err
	}
	return serve(ctx, c, stderr)
}

// usageError is a mistake in the arguments or the environment.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// config is what the flags say.
type config struct {
	listen                 string
	debugListen            string
	databaseURL            string   // for lib/pq; empty: a private PostgreSQL
	ignored                []string // parameters in what was given
	commit                 string   // the least synchronous_commit
	dataDir                string
	maxDatabaseConnections int
	cleanupInterval        time.Duration
	maxWait                time.Duration
	drainDelay             time.Duration
	maxConnections         int
	maxInHand              int64
	transferTimeout        time.Duration
	idleTimeout            time.Duration
	allowedHosts           []string
	topology               *topology // nil if there is none
	tokenFile              string
	tlsCert, tlsKey        string
	logLevel               slog.Level
	logFormat              string
	limits                 limits
}

const usage = `Queued is a message queue server over PostgreSQL.

usage: queued [flags]                   serve
       queued publish [flags] TOPIC     publish what is in a file, or comes by a pipe
       queued receive [flags] QUEUE     print messages, or run a command for each
       queued queues [flags]            list the queues of a server
       queued stats [flags] QUEUE       say how many messages a queue has
       queued health [flags]            ask a server whether it is alive, or ready
       queued schema [flags]            print the SQL that creates the schema, for a DBA
       queued bench [flags]             load a server and say how fast it is
       queued version                   say which version this is

"queued publish -help" lists the flags of publish, and so on; these serve.

Each flag has an environment variable as its default, QUEUED_LISTEN for -listen
and so on. Durations are like 500ms, 20s or 1m30s. The program exits with 1 if it
fails, and with 2 if a flag or an argument is wrong.

`

// parseConfig reads the flags, and the environment where a flag is not given.
// It checks all it can, so that a mistake shows at the start.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (*config, error) {
	c := &config{}
	var allowedHosts, topologyFile string
	l := &c.limits
	f := newFlagSet("queued", usage, stdout)
	f.StringVar(&c.listen, "listen", "127.0.0.1:8000", "`address` to serve on; port 0 is any free one")
	f.StringVar(&c.debugListen, "debug-listen", "", "`address` to serve profiles of the program on, see net/http/pprof; on none if empty")
	f.StringVar(&c.databaseURL, "database-url", "", "PostgreSQL to use, as a `URL` (postgres://user:password@host/database) or as\nkey=value pairs; without it queued runs a private PostgreSQL in -data-dir")
	f.IntVar(&c.maxDatabaseConnections, "max-database-connections", maxServerConnections, fmt.Sprintf("maximum number of `connections` to PostgreSQL, %d to %d; with fewer, more requests share one", leastConnections, maxServerConnections))
	f.StringVar(&c.commit, "synchronous-commit", "on", "minimum `level` of PostgreSQL's synchronous_commit: off, local, remote_write, on or\nremote_apply; a higher one of the role or the database stays")
	f.StringVar(&c.dataDir, "data-dir", defaultDataDir(getenv), "`folder` of the private PostgreSQL, made if it is not there")
	f.DurationVar(&c.cleanupInterval, "cleanup-interval", 5*time.Second, "`time` between two passes of the cleanup")
	f.DurationVar(&c.maxWait, "max-wait", 20*time.Second, "longest `time` that a receive may ask to wait (wait_seconds)")
	f.Int64Var(&l.maxBody, "max-body", 1<<20, "most `bytes` in the body of a request")
	f.IntVar(&l.maxLimit, "max-limit", 1000, "most `items` in a list, and messages in a receive")
	f.IntVar(&l.defaultAckDeadline, "default-ack-deadline-seconds", defaultAckDeadline, "`ack_deadline_seconds` of a queue that is created by its first use, as SharQ's and\npgQueue's are")
	f.IntVar(&l.requeueLimit, "requeue-limit", defaultRequeueLimit, "how many `times` a job that was enqueued by SharQ's API comes back, if it does not say\nso itself; -1 for as often as its queue allows")
	f.DurationVar(&c.drainDelay, "drain-delay", 0, "`time` between SIGTERM and the end of new connections, for load balancers to notice")
	f.IntVar(&c.maxConnections, "max-connections", defaultMaxConnections, "most open `connections`; beyond them those make way that are idle or slow the longest")
	f.Int64Var(&c.maxInHand, "max-in-hand", defaultMaxInHand, "most `bytes` of requests and answers in memory; beyond them requests are refused,\nand before that those make way that are stalled")
	f.DurationVar(&c.transferTimeout, "transfer-timeout", defaultTransferTimeout, "longest `time` for a client to send a body, or to take an answer")
	f.DurationVar(&c.idleTimeout, "idle-timeout", defaultIdleTimeout, "longest `time` of a connection without a request")
	f.StringVar(&allowedHosts, "allowed-hosts", "", "`names`, separated by commas, that requests may use for this server besides\nlocalhost and loopback addresses, or * for all; checked when it listens on a loopback address")
	f.StringVar(&topologyFile, "topology", "", "JSON `file` of topics and queues to make or update at the start")
	f.StringVar(&c.tokenFile, "token-file", "", "JSON `file` of tokens and what each may do, read again on SIGHUP; without it\neverybody may do everything")
	f.StringVar(&c.tlsCert, "tls-cert", "", "PEM `file` of the certificate to serve HTTPS with, read again on SIGHUP")
	f.StringVar(&c.tlsKey, "tls-key", "", "PEM `file` of its key")
	f.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "`level` of the log: debug (also a line a request), info, warn or error")
	f.StringVar(&c.logFormat, "log-format", "text", "`format` of the log: text or json")
	for _, b := range []struct {
		bounds   *bounds
		name     string
		min, max int
		what     string
	}{
		{&l.ackDeadline, "ack-deadline-seconds", 1, 600, "ack_deadline_seconds"},
		{&l.messageRetention, "message-retention-seconds", 600, 1209600, "message_retention_seconds"},
		{&l.maxDeliveries, "message-max-deliveries", 1, 1000, "message_max_deliveries"},
		{&l.deliveryDelay, "delivery-delay-seconds", 1, 900, "delivery_delay_seconds"},
	} {
		f.IntVar(&b.bounds.min, "min-"+b.name, b.min, "smallest "+b.what+" of a queue")
		f.IntVar(&b.bounds.max, "max-"+b.name, b.max, "largest "+b.what+" of a queue")
	}
	if err := f.parse(args, getenv); err != nil {
		return nil, err
	}

	l.maxWait = c.maxWait.Seconds()
	for host := range strings.SplitSeq(allowedHosts, ",") {
		if host = strings.ToLower(strings.TrimSpace(host)); host != "" {
			c.allowedHosts = append(c.allowedHosts, host)
		}
	}
	check := func(ok bool, name, what string) {
		if !ok && f.err == nil {
			f.err = usageError{fmt.Errorf("-%s: %s", name, what)}
		}
	}
	_, _, err := net.SplitHostPort(c.listen)
	check(err == nil, "listen", fmt.Sprintf("%q is not an address like 127.0.0.1:8000", c.listen))
	if c.debugListen != "" {
		_, _, err := net.SplitHostPort(c.debugListen)
		check(err == nil, "debug-listen", fmt.Sprintf("%q is not an address like 127.0.0.1:6060", c.debugListen))
	}
	for name, remedy := range map[string]string{
		"database-url": "name a database, or leave it out for a private PostgreSQL",
		"token-file":   "name a file, or leave it out to let everybody do everything",
		"tls-cert":     "name a file, or leave it out to serve HTTP",
		"tls-key":      "name a file, or leave it out to serve HTTP",
	} {
		// As a secret looks that is missing where the server was deployed.
		check(!f.setEmpty(name), name, "set, but empty; "+remedy)
	}
	if c.databaseURL != "" {
		var err error
		c.databaseURL, c.ignored, err = readConnection(c.databaseURL, getenv)
		check(err == nil, "database-url", fmt.Sprint(err))
	} else {
		check(c.dataDir != "", "data-dir", "no home folder to put it in; name a folder, or set -database-url (QUEUED_DATABASE_URL) to a PostgreSQL server")
	}
	check(leastConnections <= c.maxDatabaseConnections && c.maxDatabaseConnections <= maxServerConnections, "max-database-connections", fmt.Sprintf("must be %d to %d", leastConnections, maxServerConnections))
	check(slices.Contains(strings.Split(commitLevels, ","), c.commit), "synchronous-commit", fmt.Sprintf("%q is none of off, local, remote_write, on and remote_apply", c.commit))
	check(c.cleanupInterval > 0, "cleanup-interval", "must be more than 0")
	check(-1 <= l.requeueLimit && l.requeueLimit < math.MaxInt32, "requeue-limit", "must be -1 to 2147483646")
	check(c.maxWait >= 0 && c.maxWait <= time.Hour, "max-wait", "must be 0 to 1h")
	check(l.maxBody > 0 && l.maxBody <= 64<<20, "max-body", "must be 1 to 67108864")
	check(l.maxLimit > 0 && l.maxLimit <= 10000, "max-limit", "must be 1 to 10000")
	check(c.drainDelay >= 0, "drain-delay", "must not be negative")
	check(c.maxConnections > 0, "max-connections", "must be more than 0")
	least := 4 * max(l.maxBody, maxBatchBody)
	check(c.maxInHand >= least, "max-in-hand", fmt.Sprintf("must be at least %d, for some of the largest requests", least))
	check(c.transferTimeout > 0, "transfer-timeout", "must be more than 0")
	check(c.idleTimeout > 0, "idle-timeout", "must be more than 0")
	check(c.logFormat == "text" || c.logFormat == "json", "log-format", fmt.Sprintf("%q is neither text nor json", c.logFormat))
	for name, b := range map[string]bounds{
		"ack-deadline-seconds":      l.ackDeadline,
		"message-retention-seconds": l.messageRetention,
		"message-max-deliveries":    l.maxDeliveries,
		"delivery-delay-seconds":    l.deliveryDelay,
	} {
		check(b.min > 0, "min-"+name, "must be more than 0")
		check(b.max >= b.min && b.max <= 1<<30, "max-"+name, fmt.Sprintf("must be at least -min-%s and at most %d", name, 1<<30))
	}
	check(l.ackDeadline.min <= l.defaultAckDeadline && l.defaultAckDeadline <= l.ackDeadline.max, "default-ack-deadline-seconds", "must be at least -min-ack-deadline-seconds and at most -max-ack-deadline-seconds")
	check((c.tlsCert == "") == (c.tlsKey == ""), "tls-key", "goes together with -tls-cert")
	if topologyFile != "" && f.err == nil {
		c.topology, err = readTopology(topologyFile, l)
		check(err == nil, "topology", fmt.Sprint(err))
	}
	return c, f.err
}

// flagSet is a flag.FlagSet whose defaults come from the environment.
type flagSet struct {
	*flag.FlagSet
	help            func()
	err             error // the first
	withoutVariable []string
	least, most     int // arguments after the flags
	arguments       string
}

// takes says how many arguments come after the flags, none otherwise, and what
// they are.
func (f *flagSet) takes(least, most int, what string) {
	f.least, f.most, f.arguments = least, most, what
}

// DurationVar is that of flag.FlagSet, but its error says what a duration is like.
func (f *flagSet) DurationVar(d *time.Duration, name string, value time.Duration, usage string) {
	*d = value
	f.Var((*duration)(d), name, usage)
}

type duration time.Duration

func (d *duration) Set(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("it must be like 500ms, 20s or 1m30s")
	}
	*d = duration(v)
	return nil
}

func (d *duration) String() string { return (*time.Duration)(d).String() }

// optionalDuration is a duration that may be left out.
type optionalDuration struct {
	d     time.Duration
	given bool
}

func (o *optionalDuration) Set(text string) error {
	o.given = true
	return (*duration)(&o.d).Set(text)
}

func (o *optionalDuration) String() string {
	if o == nil || !o.given {
		return ""
	}
	return o.d.String()
}

// newFlagSet returns a set whose -help prints usage and the flags to stdout.
// Errors are returned, and print nothing.
func newFlagSet(name, usage string, stdout io.Writer) *flagSet {
	f := &flagSet{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.help = func() {
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	return f
}

func variable(flagName string) string {
	return "QUEUED_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// setEmpty reports whether the flag, or else its variable, is set to nothing, or to
// nothing but white space.
func (f *flagSet) setEmpty(name string) bool {
	given := false
	f.Visit(func(v *flag.Flag) { given = given || v.Name == name })
	text, set := os.LookupEnv(variable(name)) // which getenv cannot tell
	return strings.TrimSpace(f.Lookup(name).Value.String()) == "" && (given || set && strings.TrimSpace(text) == "")
}

func (f *flagSet) parse(args []string, getenv func(string) string) error {
	f.VisitAll(func(v *flag.Flag) {
		if slices.Contains(f.withoutVariable, v.Name) {
			return
		}
		name := variable(v.Name)
		v.Usage += " [$" + name + "]"
		if value := getenv(name); value != "" && f.err == nil {
			if err := v.Value.Set(value); err != nil {
				f.err = usageError{fmt.Errorf("$%s (-%s): invalid value %q: %w", name, v.Name, masked(v.Name, value), err)}
			}
		}
	})
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.help()
			return err
		}
		return usageError{fmt.Errorf("%w, see %s -help", err, f.Name())}
	}
	switch {
	case f.NArg() < f.least:
		return usageError{fmt.Errorf("%s is missing, see %s -help", f.arguments, f.Name())}
	case f.NArg() > f.most && f.most > 0:
		return usageError{fmt.Errorf("more arguments than %s, see %s -help", f.arguments, f.Name())}
	case f.NArg() > f.most:
		if strings.ContainsAny(f.Arg(0), "=:@") { // a connection string whose flag was forgotten?
			return usageError{fmt.Errorf("there is an argument without a flag, see %s -help", f.Name())}
		}
		return usageError{fmt.Errorf("unknown argument %q, see %s -help", f.Arg(0), f.Name())}
	}
	for _, argument := range f.Args() {
		if len(argument) > 1 && argument[0] == '-' {
			return usageError{fmt.Errorf("flags go before the arguments: %s", argument)}
		}
	}
	return f.err
}

// masked keeps secrets out of errors.
func masked(flagName, value string) string {
	if flagName == "database-url" {
		return "…"
	}
	return value
}

// defaultDataDir follows the XDG base directory specification, version 0.8.
func defaultDataDir(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/var/lib/queued"
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "queued")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "state", "queued")
	}
	return ""
}

// Bounds of the end of the program.
const (
	drainTimeout = 15 * time.Second // after that connections are cut
	closeTimeout = 5 * time.Second  // after that statements are abandoned
)

const ballastSize = 16 << 20

// serve runs the server until ctx is done, and then drains it: everything that
// was begun is finished, or cut after drainTimeout, or at once by a second signal.
func serve(ctx context.Context, c *config, stderr io.Writer) (err error) {
	log := newLog(stderr, c.logLevel, c.logFormat)
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelDebug) // of net/http: what clients do wrong

	files := &secretFiles{tokenFile: c.tokenFile, certFile: c.tlsCert, keyFile: c.tlsKey}
	if err := files.read(); err != nil {
		return err
	}
	hangUps := make(chan os.Signal, 1)
	signal.Notify(hangUps, syscall.SIGHUP)
	defer signal.Stop(hangUps)
	ctx, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	watching.Go(func() { files.watch(ctx, hangUps, log, end) })

	// The garbage collector works when the heap has doubled: beside this, which is
	// never touched and takes no memory, not as often as the small heap of a server
	// would make it.
	ballast := make([]byte, ballastSize)
	defer runtime.KeepAlive(ballast)

	outer, err := net.Listen("tcp", c.listen)
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	defer outer.Close()

	if c.debugListen != "" {
		l, err := net.Listen("tcp", c.debugListen)
		if err != nil {
			return fmt.Errorf("-debug-listen: %w", err)
		}
		defer l.Close()
		go (&http.Server{Handler: profiles(), ErrorLog: errorLog}).Serve(l)
	}

	if len(c.ignored) > 0 {
		log.Info("connection parameters are ignored", "names", strings.Join(c.ignored, " "))
	}
	databaseURL := c.databaseURL
	atOnce := false // the drain was cut short
	var postgres *privatePostgres
	if databaseURL == "" {
		postgres, err = startPostgres(ctx, c.dataDir, log)
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("private PostgreSQL: %w", err)
		}
		defer func() { err = errors.Join(err, postgres.stop(atOnce)) }()
		databaseURL = postgres.dsn("queued")
	}
	d, err := newDatabase(databaseURL)
	if err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	d.connections = shareConnections(c.maxDatabaseConnections)
	d.commit = c.commit
	if postgres != nil {
		d.gate.close()
	}
	db, err := d.open(d.connections.requests)
	if err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	defer db.Close()
	patient, err := d.openPatient()
	if err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	defer patient.Close()
	m := newMetrics(db)
	s := &store{db, m}
	e, err := newEngine(d, log, m, defaultSlowLook, defaultQuickLook)
	if err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	counter := newQueueCounter(db, log, m)
	v := newServer(log, s, e, m, counter, c.limits)
	v.allowedHosts = c.allowedHosts
	address, _ := outer.Addr().(*net.TCPAddr)
	v.checkHost = address != nil && address.IP.IsLoopback()

	v.tokens = &files.tokens
	if c.tokenFile == "" && !v.checkHost {
		log.Warn("everybody who can reach this address may do everything, see -token-file", "listen", outer.Addr().String())
	}
	v.room = c.newRoom(log)
	v.transferTimeout = c.transferTimeout
	m.registry.MustRegister(v.room)
	var inner net.Listener = listener{outer, v.room, c.tlsCert != ""}
	if c.tlsCert != "" {
		inner = tls.NewListener(inner, files.tlsConfig())
	}
	h := &http.Server{
		Handler:           v,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       c.idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withConn,
		ErrorLog:          errorLog,
	}
	data := describe(d.dsn)
	if postgres != nil {
		data = postgres.dir
	}
	failed := make(chan error, 2) // of the two that can fail: the migration and the listener
	var background sync.WaitGroup
	backgroundCtx, stopBackground := context.WithCancel(context.Background())
	background.Go(func() {
		if postgres != nil {
			if err := postgres.awaitReady(backgroundCtx); err != nil {
				failed <- fmt.Errorf("private PostgreSQL: %w", err)
				return
			}
			d.gate.open()
		}
		if err := prepareUntilDone(backgroundCtx, d, s, &store{patient, m}, c.topology, log); err != nil {
			failed <- err
			return
		}
		if backgroundCtx.Err() != nil {
			return
		}
		m.registry.MustRegister(counter) // before, it would count in vain, and say so
		v.ready.Store(true)
		// A standby, or a database that is read-only, can be looked at meanwhile.
		if err := tryUntilDone(backgroundCtx, log, func() error { return s.ping(backgroundCtx) }); err != nil {
			failed <- err
			return
		}
		if backgroundCtx.Err() != nil {
			return
		}
		if off, err := s.undurable(backgroundCtx); err == nil && len(off) > 0 {
			log.Warn("PostgreSQL can lose committed messages in a crash", "off", strings.Join(off, ","))
		}
		log.Info("ready", "url", files.scheme()+"://"+outer.Addr().String(), "access", files.access(), "data", data)
		clean := &cleanup{db: db, log: log, metrics: m, announce: e.announce}
		background.Go(func() { v.tally.run(backgroundCtx, tallyInterval) })
		background.Go(func() { clean.vacuum(backgroundCtx, patient, v.compact) })
		clean.run(backgroundCtx, c.cleanupInterval)
	})
	background.Go(func() { failed <- h.Serve(inner) })

	select {
	case err = <-failed:
	case <-ctx.Done():
		log.Info("draining")
		v.draining.Store(true)
	}

	// A second signal ends all this at once.
	hurry, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hurry, cancel := context.WithTimeout(hurry, c.drainDelay+drainTimeout)
	defer cancel()
	if err == nil {
		select {
		case <-time.After(c.drainDelay):
		case <-hurry.Done():
		}
	}
	e.drain()
	if h.Shutdown(hurry) != nil && shutdownNow(h) != nil {
		h.Close()
		atOnce = true
		err = errors.Join(err, errors.New("not all requests were finished"))
	}
	stopBackground()
	ended := make(chan struct{})
	go func() {
		background.Wait()
		counter.close()
		e.close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
		err = errors.Join(err, errors.New("not all statements were finished"))
	}
	return err
}

// newRoom returns a room with as many connections as were asked for and the
// process may have, and has the garbage collector see to the memory that they
// take, unless $GOMEMLIMIT does (package runtime).
func (c *config) newRoom(log *slog.Logger) *room {
	connections := c.maxConnections
	if most := max(maxFiles()-spareConnections-ownFiles, 1); connections > most {
		log.Warn("the limit of open files allows fewer than -max-connections", "connections", most)
		connections = most
	}
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryLimit(connections, c.maxInHand))
	}
	return newRoom(log, connections, c.maxInHand)
}

// profiles serves what go tool pprof asks for.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// shutdownNow gives answers that are being written right now a moment.
func shutdownNow(h *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	return h.Shutdown(ctx)
}

const versionUsage = `Queued version says which version of the program this is, of which Go, and for
which system.

`

func runVersion(args []string, getenv func(string) string, stdout io.Writer) error {
	f := newFlagSet("queued version", versionUsage, stdout)
	if err := f.parse(args, getenv); err != nil {
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

const healthUsage = `Queued health asks a server whether it is alive (GET /livez), for the health check of a container:
a server is alive without its database, and to restart it would not bring that back. With
-ready it asks whether the server is ready for requests (GET /readyz).

`

// runHealth asks the server that the same settings would start.
func runHealth(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var listen, url, cert string
	var ready bool
	f := newFlagSet("queued health", healthUsage, stdout)
	f.BoolVar(&ready, "ready", false, "ask whether the server is ready for requests, with a database that can be written")
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "`address` of the server, as given to it")
	f.StringVar(&url, "url", "", "`URL` of the server, in place of -listen")
	f.StringVar(&cert, "tls-cert", "", "PEM `file` of its certificate, as given to it")
	if err := f.parse(args, getenv); err != nil {
		return err
	}
	if url == "" {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			return usageError{fmt.Errorf("-listen: %w", err)}
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		url = "http://" + net.JoinHostPort(host, port)
		if cert != "" {
			url = "https://" + net.JoinHostPort(host, port)
		}
	}
	client := http.DefaultClient
	if cert != "" {
		config, err := trusting(cert)
		if err != nil {
			return fmt.Errorf("-tls-cert: %w", err)
		}
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	}
	path := "/livez"
	if ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+path, nil)
	if err != nil {
		return fmt.Errorf("-url: %w", err)
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
	fmt.Fprintln(stdout, string(body))
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return nil
}

// trusting returns settings for a client that trusts the server with the
// certificate in a file, and no other, whatever name it has: the client knows
// the server by its address.
func trusting(certFile string) (*tls.Config, error) {
	text, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no certificate in PEM")
	}
	return &tls.Config{
		InsecureSkipVerify: true,
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			if len(certificates) == 0 || !bytes.Equal(certificates[0], block.Bytes) {
				return errors.New("the server has another certificate")
			}
			return nil
		},
	}, nil
}
