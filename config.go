package main

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"queued/internal/flags"
)

// config is what the flags say.
type config struct {
	listen                 string
	debugListen            string
	databaseURL            string   // for lib/pq; empty: a private PostgreSQL
	ignored                []string // parameters in what was given
	passwordInArguments    bool     // where other users of the machine can read it
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
	f := flags.New("queued", usage, stdout)
	f.Secret = []string{"database-url"}
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
	f.Int64Var(&c.maxInHand, "max-buffered-bytes", defaultMaxInHand, "most `bytes` of requests and answers in memory; beyond them requests are refused,\nand before that those make way that are stalled")
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
	if err := f.Parse(args, getenv); err != nil {
		return nil, err
	}

	l.maxWait = c.maxWait.Seconds()
	for host := range strings.SplitSeq(allowedHosts, ",") {
		if host = strings.ToLower(strings.TrimSpace(host)); host != "" {
			c.allowedHosts = append(c.allowedHosts, host)
		}
	}
	check := func(ok bool, name, what string) {
		if !ok && f.Err == nil {
			f.Err = flags.Errorf("-%s: %s", name, what)
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
		check(!f.SetEmpty(name), name, "set, but empty; "+remedy)
	}
	if c.databaseURL != "" {
		var err error
		c.passwordInArguments = f.Given("database-url") && hasPassword(c.databaseURL)
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
	check(c.maxInHand >= least, "max-buffered-bytes", fmt.Sprintf("must be at least %d, for some of the largest requests", least))
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
	if topologyFile != "" && f.Err == nil {
		c.topology, err = readTopology(topologyFile, l)
		check(err == nil, "topology", fmt.Sprint(err))
	}
	return c, f.Err
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
