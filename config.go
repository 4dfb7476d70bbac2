package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"queued/internal/flags"
)

// config holds the values of the flags.
type config struct {
	listen                 string
	debugListen            string
	databaseURL            string   // for lib/pq; a private PostgreSQL if empty
	ignored                []string // connection parameters that have no effect
	passwordInArguments    bool     // other users of the machine can read it there
	commit                 string   // minimum synchronous_commit
	dataDir                string
	dev                    bool // dataDir is a temporary directory that the server creates
	maxDatabaseConnections int
	cleanupInterval        time.Duration
	deduplicationWindow    time.Duration
	maxWait                time.Duration
	drainDelay             time.Duration
	maxConnections         int
	maxBuffered            int64
	transferTimeout        time.Duration
	idleTimeout            time.Duration
	allowedHosts           []string
	publicURL              *url.URL  // nil without -public-url
	topology               *topology // nil without -topology
	tokenFile              string
	tlsCert, tlsKey        string
	logLevel               slog.Level
	logFormat              string
	limits                 limits
}

// parseConfig reads the flags. Their defaults come from the environment. The checks are
// next to their flags. They run in this order after all flags are read, and the first that
// fails is the error.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (*config, error) {
	c := &config{}
	l := &c.limits
	f := &checkedFlags{Set: flags.New("queued", usage(), stdout)}
	f.Secret = []string{"database-url"}

	f.StringVar(&c.listen, "listen", "127.0.0.1:8000", "`address` to listen on; port 0 picks a free port")
	f.check("listen", isAddress(&c.listen))
	f.StringVar(&c.debugListen, "debug-listen", "", "`address` for net/http/pprof; disabled if empty")
	f.check("debug-listen", func() error {
		if c.debugListen == "" {
			return nil
		}
		return isAddress(&c.debugListen)()
	})

	f.StringVar(&c.databaseURL, "database-url", "", "PostgreSQL `URL` or key=value pairs; without it queued runs a private PostgreSQL")
	f.checkNotEmpty("database-url", "name a database, or unset it to run a private PostgreSQL")
	f.check("database-url", func() (err error) {
		if c.databaseURL != "" {
			c.passwordInArguments = f.Given("database-url") && hasPassword(c.databaseURL)
			c.databaseURL, c.ignored, err = readConnection(c.databaseURL, getenv)
		}
		return err
	})
	f.IntVar(&c.maxDatabaseConnections, "max-database-connections", maxServerConnections, fmt.Sprintf("maximum number of `connections` to PostgreSQL, %d to %d", leastConnections, maxServerConnections))
	f.check("max-database-connections", within(&c.maxDatabaseConnections, leastConnections, maxServerConnections))
	f.StringVar(&c.commit, "synchronous-commit", "on", "minimum `level` of synchronous_commit: off, local, remote_write, on or remote_apply")
	f.check("synchronous-commit", oneOf(&c.commit, strings.Split(commitLevels, ",")...))
	f.StringVar(&c.dataDir, "data-dir", defaultDataDir(getenv), "`directory` of the private PostgreSQL; created if missing")
	f.check("data-dir", func() error {
		if c.dataDir == "" && c.databaseURL == "" && !c.dev {
			return errors.New("no home directory; set -data-dir, or -database-url (QUEUED_DATABASE_URL) to use a PostgreSQL server")
		}
		return nil
	})
	f.BoolVar(&c.dev, "dev", false, "keep the data in a temporary directory, deleted at exit, and log at level debug")
	f.check("dev", func() error {
		switch {
		case !c.dev:
			return nil
		case c.databaseURL != "":
			return errors.New("excludes -database-url (QUEUED_DATABASE_URL), because it uses a temporary database")
		case f.Given("data-dir"):
			return errors.New("excludes -data-dir, because it uses a temporary directory")
		}
		return nil
	})
	f.DurationVar(&c.cleanupInterval, "cleanup-interval", 5*time.Second, "`time` between two passes of the cleanup")
	f.check("cleanup-interval", positive(&c.cleanupInterval))
	f.DurationVar(&c.deduplicationWindow, "deduplication-window", 5*time.Minute, "`time` in which a message with the same deduplication id is a duplicate;\n1s to 24h, in whole seconds")
	f.check("deduplication-window", within(&c.deduplicationWindow, time.Second, maxDeduplicationWindow))
	f.check("deduplication-window", func() error {
		if c.deduplicationWindow%time.Second != 0 {
			return errors.New("must be whole seconds")
		}
		return nil
	})

	f.DurationVar(&c.maxWait, "max-wait", 20*time.Second, "maximum `time` a receive may wait for messages (wait_seconds); at most 1h")
	f.check("max-wait", within(&c.maxWait, 0, time.Hour))
	f.Int64Var(&l.maxBody, "max-body", 1<<20, "maximum `bytes` of a request body, and of each message in a batch; at most 67108864")
	f.check("max-body", within(&l.maxBody, 1, 64<<20))
	f.IntVar(&l.maxLimit, "max-limit", 1000, "maximum `number` of items in a list, and of messages in a receive; at most 10000")
	f.check("max-limit", within(&l.maxLimit, 1, 10000))
	f.IntVar(&l.requeueLimit, "requeue-limit", -1, "default requeue `limit` of SharQ jobs; -1 means the queue's message_max_deliveries")
	f.check("requeue-limit", within(&l.requeueLimit, -1, math.MaxInt32-1))

	f.DurationVar(&c.drainDelay, "drain-delay", 0, "`time` to keep accepting connections after SIGTERM")
	f.check("drain-delay", func() error {
		if c.drainDelay < 0 {
			return errors.New("must not be negative")
		}
		return nil
	})
	f.IntVar(&c.maxConnections, "max-connections", 16_000, "maximum open `connections`; at the limit the longest idle or stalled one is closed")
	f.check("max-connections", positive(&c.maxConnections))
	f.Int64Var(&c.maxBuffered, "max-buffered-bytes", 256<<20, "maximum `bytes` of requests and responses in memory; at the limit requests get 503")
	f.check("max-buffered-bytes", func() error {
		if largest := max(l.maxBody, maxBatchBody); c.maxBuffered < 4*largest {
			return fmt.Errorf("must be at least %d, four times the largest request (%d)", 4*largest, largest)
		}
		return nil
	})
	f.DurationVar(&c.transferTimeout, "transfer-timeout", 30*time.Second, "maximum `time` for a client to send a request body or to read a response")
	f.check("transfer-timeout", positive(&c.transferTimeout))
	f.DurationVar(&c.idleTimeout, "idle-timeout", 3*time.Minute, "maximum `time` a connection may stay open without a request")
	f.check("idle-timeout", positive(&c.idleTimeout))

	var allowedHosts string
	f.StringVar(&allowedHosts, "allowed-hosts", "", "comma-separated host `names` to accept on a loopback address, * for all;\nlocalhost and loopback addresses are always accepted")
	var publicURL string
	f.StringVar(&publicURL, "public-url", "", "`URL` before the paths of queues in SQS's API; if empty, as each request names the server")
	f.check("public-url", func() (err error) {
		c.publicURL, err = parsePublicURL(publicURL)
		return err
	})
	f.StringVar(&c.tokenFile, "token-file", "", "JSON `file` of tokens and access keys, reloaded on SIGHUP; without it authentication is off")
	f.checkNotEmpty("token-file", "name a file, or unset it to turn authentication off")
	f.StringVar(&c.tlsCert, "tls-cert", "", "PEM `file` of the certificate for HTTPS, reloaded on SIGHUP; without it HTTP is served")
	f.checkNotEmpty("tls-cert", "name a file, or unset it to serve HTTP")
	f.StringVar(&c.tlsKey, "tls-key", "", "PEM `file` of the private key of -tls-cert, reloaded on SIGHUP")
	f.checkNotEmpty("tls-key", "name a file, or unset it to serve HTTP")
	f.check("tls-key", func() error {
		if (c.tlsCert == "") != (c.tlsKey == "") {
			return errors.New("-tls-cert and -tls-key are required together")
		}
		return nil
	})

	f.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "log `level`: debug (adds a line per request), info, warn or error")
	f.StringVar(&c.logFormat, "log-format", "text", "log `format`: text or json")
	f.check("log-format", oneOf(&c.logFormat, "text", "json"))

	for _, v := range []struct {
		*bounds
		flag, setting, unit string
		min, max            int
	}{
		{&l.ackDeadline, "ack-deadline-seconds", "ack_deadline_seconds", "seconds", 1, 600},
		{&l.messageRetention, "message-retention-seconds", "message_retention_seconds", "seconds", 600, 1209600},
		{&l.maxDeliveries, "message-max-deliveries", "message_max_deliveries", "deliveries", 1, 1000},
		{&l.deliveryDelay, "delivery-delay-seconds", "delivery_delay_seconds", "seconds", 1, 900},
	} {
		f.IntVar(&v.bounds.min, "min-"+v.flag, v.min, "minimum "+v.setting+" of a queue, in `"+v.unit+"`")
		f.check("min-"+v.flag, positive(&v.bounds.min))
		f.IntVar(&v.bounds.max, "max-"+v.flag, v.max, "maximum "+v.setting+" of a queue, in `"+v.unit+"`")
		f.check("max-"+v.flag, func() error {
			if v.bounds.max < v.bounds.min || v.bounds.max > 1<<30 {
				return fmt.Errorf("must be at least -min-%s and at most %d", v.flag, 1<<30)
			}
			return nil
		})
	}
	f.IntVar(&l.defaultAckDeadline, "default-ack-deadline-seconds", 60, "ack deadline in `seconds` of queues created by first use (SharQ and pgQueue APIs);\nwithin the bounds of ack_deadline_seconds")
	f.check("default-ack-deadline-seconds", func() error {
		if l.defaultAckDeadline < l.ackDeadline.min || l.defaultAckDeadline > l.ackDeadline.max {
			return errors.New("must be at least -min-ack-deadline-seconds and at most -max-ack-deadline-seconds")
		}
		return nil
	})

	var topologyFile string
	f.StringVar(&topologyFile, "topology", "", "JSON `file` of topics and queues to create or update at startup")
	f.check("topology", func() (err error) {
		if topologyFile != "" {
			c.topology, err = readTopology(topologyFile, l)
		}
		return err
	})

	f.Group("flags of the server", "listen", "tls-cert", "tls-key", "token-file", "allowed-hosts", "public-url", "topology", "log-level", "log-format", "debug-listen", "dev")
	f.Group("database", "database-url", "data-dir", "max-database-connections", "synchronous-commit", "cleanup-interval")
	f.Group("connections and requests", "max-connections", "max-buffered-bytes", "max-body", "max-limit", "max-wait", "idle-timeout", "transfer-timeout", "drain-delay")
	f.Group("bounds and defaults of the settings of queues", "deduplication-window",
		"min-ack-deadline-seconds", "max-ack-deadline-seconds", "default-ack-deadline-seconds",
		"min-message-retention-seconds", "max-message-retention-seconds",
		"min-message-max-deliveries", "max-message-max-deliveries", "requeue-limit",
		"min-delivery-delay-seconds", "max-delivery-delay-seconds")
	if err := f.Parse(args, getenv); err != nil {
		return nil, err
	}
	if err := f.runChecks(); err != nil {
		return nil, err
	}
	l.maxWait = c.maxWait.Seconds()
	if c.dev && !f.Given("log-level") && getenv(flags.Variable("log-level")) == "" {
		c.logLevel = slog.LevelDebug
	}
	for host := range strings.SplitSeq(allowedHosts, ",") {
		if host = strings.ToLower(strings.TrimSpace(host)); host != "" {
			c.allowedHosts = append(c.allowedHosts, host)
		}
	}
	return c, nil
}

// checkedFlags is a set of flags with checks of their values.
type checkedFlags struct {
	*flags.Set
	checks []func() error
}

// check adds a check. Its error is reported with the name of the flag.
func (f *checkedFlags) check(name string, problem func() error) {
	f.checks = append(f.checks, func() error {
		if err := problem(); err != nil {
			return flags.Errorf("-%s: %w", name, err)
		}
		return nil
	})
}

// checkNotEmpty adds a check that a flag or its variable is not set to an empty value. A
// secret that a deployment failed to provide often is an empty value.
func (f *checkedFlags) checkNotEmpty(name, remedy string) {
	f.check(name, func() error {
		if f.SetEmpty(name) {
			return errors.New("set but empty; " + remedy)
		}
		return nil
	})
}

// runChecks returns the first error of the checks.
func (f *checkedFlags) runChecks() error {
	for _, check := range f.checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func within[T cmp.Ordered](value *T, min, max T) func() error {
	return func() error {
		if *value < min || *value > max {
			return fmt.Errorf("must be %v to %v", min, max)
		}
		return nil
	}
}

func positive[T int | time.Duration](value *T) func() error {
	return func() error {
		if *value <= 0 {
			return errors.New("must be more than 0")
		}
		return nil
	}
}

func oneOf(value *string, allowed ...string) func() error {
	return func() error {
		if !slices.Contains(allowed, *value) {
			return fmt.Errorf("unknown value %q; allowed: %s", *value, strings.Join(allowed, ", "))
		}
		return nil
	}
}

func isAddress(value *string) func() error {
	return func() error {
		if _, _, err := net.SplitHostPort(*value); err != nil {
			return fmt.Errorf("invalid address %q; must look like 127.0.0.1:8000", *value)
		}
		return nil
	}
}

// parsePublicURL returns a URL without a slash at its end, and nil for an empty text.
func parsePublicURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	v, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || v.Scheme != "http" && v.Scheme != "https" || v.Host == "" || v.User != nil || strings.ContainsAny(text, "?# ") {
		return nil, errors.New("must be an http or https URL with a host, such as https://queue.example, and maybe a path")
	}
	return v, nil
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
