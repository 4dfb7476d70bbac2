package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds of the end of the program.
const (
	drainTimeout = 15 * time.Second // after that connections are cut
	closeTimeout = 5 * time.Second  // after that statements are abandoned
)

// serve runs the server until ctx is done, and then drains it: everything that
// was begun is finished, or cut after drainTimeout, or at once by a second signal.
func serve(ctx context.Context, c *config, stderr io.Writer) (err error) {
	log := newLog(stderr, c.logLevel, c.logFormat)
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelDebug) // of net/http: what clients do wrong

	files := &reloadedFiles{tokenFile: c.tokenFile, certFile: c.tlsCert, keyFile: c.tlsKey}
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

	if c.passwordInArguments {
		log.Warn("other users can read the database password in the process list", "flag", "-database-url", "remedy", "set QUEUED_DATABASE_URL or a passfile instead")
	}
	if len(c.ignored) > 0 {
		log.Info("ignoring connection parameters", "parameters", strings.Join(c.ignored, " "))
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
	patient, err := d.openWithoutTimeout()
	if err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	defer patient.Close()
	m := newMetrics(db)
	s := &store{db, m}
	e, err := newEngine(d, log, m, defaultFullSweep, defaultQuickSweep)
	if err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	counter := newDepthCollector(db, log, m)
	v := newServer(log, s, e, m, counter, c.limits)
	v.allowedHosts = c.allowedHosts
	address, _ := outer.Addr().(*net.TCPAddr)
	v.checkHost = address != nil && address.IP.IsLoopback()

	v.tokens = &files.tokens
	if c.tokenFile == "" && !v.checkHost {
		log.Warn("authentication is disabled on a non-loopback address, see -token-file", "listen", outer.Addr().String())
	}
	v.admission = c.newRoom(log)
	v.transferTimeout = c.transferTimeout
	m.registry.MustRegister(v.admission)
	var inner net.Listener = listener{outer, v.admission, c.tlsCert != ""}
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
			log.Warn("PostgreSQL can lose committed messages in a crash", "disabled", strings.Join(off, ","))
		}
		log.Info("ready", "url", files.scheme()+"://"+outer.Addr().String(), "auth", files.auth(), "database", data)
		clean := &cleanup{db: db, log: log, metrics: m, announce: e.announce}
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
		err = errors.Join(err, errors.New("not all requests finished"))
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
		err = errors.Join(err, errors.New("not all statements finished"))
	}
	return err
}

// newRoom returns an admission with as many connections as were asked for and the
// process may have.
func (c *config) newRoom(log *slog.Logger) *admission {
	connections := c.maxConnections
	if most := max(maxFiles()-spareConnections-ownFiles, 1); connections > most {
		log.Warn("open file limit is below -max-connections", "limit", most)
		connections = most
	}
	tuneGC(memoryLimit(connections, c.maxInHand))
	return newAdmission(log, connections, c.maxInHand)
}

// gcPercent is by how much the heap grows between two garbage collections. A server
// has a small heap: with Go's default of 100, collections take a fifth of its CPU.
const gcPercent = 400

// tuneGC sets the targets of the garbage collector, unless GOGC or GOMEMLIMIT in the
// environment set them.
func tuneGC(memoryLimit int64) {
	if before := debug.SetGCPercent(gcPercent); before != 100 {
		debug.SetGCPercent(before)
	}
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryLimit)
	}
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
