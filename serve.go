package main

import (
	"context"
	"crypto/tls"
	"database/sql"
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

const (
	drainTimeout = 15 * time.Second       // for requests to finish
	cutTimeout   = 100 * time.Millisecond // for responses that are being written after that
	closeTimeout = 5 * time.Second        // for statements to finish

	headerTimeout = 10 * time.Second
	maxHeader     = 64 << 10
)

// process is a server with its parts. serve creates them in this order, and ends them in
// the reverse order.
type process struct {
	*config
	log   *slog.Logger
	files *reloadedFiles

	public, profiling net.Listener // profiling is nil without -debug-listen

	postgres   *privatePostgres // nil with -database-url
	temporary  string           // directory to delete at the end; empty without -dev
	database   *database
	db         *sql.DB // pool for requests and the cleanup
	unlimited  *sql.DB // pool for statements without a timeout
	metrics    *metrics
	store      *store
	engine     *engine
	depth      *depthCollector
	history    *queueHistory
	server     *server
	background sync.WaitGroup
	failed     chan error // errors that end the process

	cut bool // the drain was cut short
}

// serve runs the server until ctx is done, and then drains it. When it returns,
// everything that it started has ended, unless its error says otherwise.
func serve(ctx context.Context, c *config, stderr io.Writer) (err error) {
	p := &process{config: c, log: newLog(stderr, c.logLevel, c.logFormat), failed: make(chan error, 3)}
	p.files = &reloadedFiles{tokenFile: c.tokenFile, certFile: c.tlsCert, keyFile: c.tlsKey}
	if err := p.files.read(); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer p.files.watch(p.log, end)()
	if err := p.listen(); err != nil {
		return err
	}
	defer p.closeListeners()
	defer func() { err = errors.Join(err, p.closeDatabases()) }()
	if err := p.openDatabases(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := p.startEngine(); err != nil {
		return err
	}
	return p.run(ctx)
}

// listen opens the ports first, so that one in use ends the process at once.
func (p *process) listen() (err error) {
	if p.public, err = net.Listen("tcp", p.config.listen); err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	if p.debugListen != "" {
		if p.profiling, err = net.Listen("tcp", p.debugListen); err != nil {
			p.public.Close()
			return fmt.Errorf("-debug-listen: %w", err)
		}
	}
	if p.tokenFile == "" && !p.onLoopback() {
		p.log.Warn("authentication is disabled on a non-loopback address, see -token-file", "listen", p.public.Addr().String())
	}
	return nil
}

func (p *process) closeListeners() {
	p.public.Close()
	if p.profiling != nil {
		p.profiling.Close()
	}
}

// onLoopback reports whether only this machine reaches the server.
func (p *process) onLoopback() bool {
	address, ok := p.public.Addr().(*net.TCPAddr)
	return ok && address.IP.IsLoopback()
}

// openDatabases starts the private PostgreSQL if there is no -database-url, and opens the
// pools. It does not connect; prepare waits for the database.
func (p *process) openDatabases(ctx context.Context) (err error) {
	if p.passwordInArguments {
		p.log.Warn("other users can read the database password in the process list", "flag", "-database-url", "remedy", "set QUEUED_DATABASE_URL or a passfile instead")
	}
	if len(p.ignored) > 0 {
		p.log.Info("ignoring connection parameters", "parameters", strings.Join(p.ignored, " "))
	}
	url := p.databaseURL
	if url == "" {
		switch {
		case p.dev:
			if p.temporary, err = makeTemporaryDir(); err != nil {
				return fmt.Errorf("-dev: %w", err)
			}
			p.dataDir = p.temporary
			p.log.Info("messages are kept until exit, because of -dev", "data_dir", p.dataDir)
		case isNewDataDir(p.dataDir):
			p.log.Info("creating a private PostgreSQL", "data_dir", p.dataDir, "alternative", "queued -dev keeps nothing after its exit, -database-url uses a PostgreSQL server")
		}
		if p.postgres, err = startPostgres(ctx, p.dataDir, p.log); err != nil {
			return fmt.Errorf("private PostgreSQL: %w", err)
		}
		url = p.postgres.dsn("queued")
	}
	if p.database, err = newDatabase(url); err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	p.database.connections = shareConnections(p.maxDatabaseConnections)
	p.database.commit = p.commit
	if p.postgres != nil {
		p.database.gate.close() // until the private PostgreSQL is ready
	}
	if p.db, err = p.database.open(p.database.connections.requests); err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	if p.unlimited, err = p.database.openWithoutTimeout(); err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	return nil
}

// closeDatabases closes the pools and the PostgreSQL of openDatabases, also if that failed
// halfway, and deletes the data of -dev.
func (p *process) closeDatabases() error {
	for _, db := range []*sql.DB{p.unlimited, p.db} {
		if db != nil {
			db.Close()
		}
	}
	var err error
	if p.postgres != nil {
		err = p.postgres.stop(p.cut)
	}
	if p.temporary != "" {
		if p.postgres != nil {
			os.RemoveAll(p.postgres.socket) // it may be elsewhere
		}
		err = errors.Join(err, os.RemoveAll(p.temporary))
	}
	return err
}

// startEngine starts the engine and builds the server around it. drain ends it.
func (p *process) startEngine() (err error) {
	p.metrics = newMetrics(p.db)
	p.store = &store{db: p.db, metrics: p.metrics, homes: &p.database.homes}
	if p.engine, err = newEngine(p.database, p.log, p.metrics, defaultFullSweep, defaultQuickSweep); err != nil {
		return fmt.Errorf("-database-url: %w", err)
	}
	p.depth = newDepthCollector(p.db, p.log, p.metrics)
	p.depth.homes = &p.database.homes
	p.history = &queueHistory{depth: p.depth, metrics: p.metrics}
	connections := p.maxConnections
	if most := max(maxFiles()-extraConnections-ownFiles, 1); connections > most {
		p.log.Warn("open file limit is below -max-connections", "limit", most)
		connections = most
	}
	tuneGC(memoryLimit(connections, p.maxBuffered))
	admission := newAdmission(p.log, connections, p.maxBuffered)
	p.metrics.registry.MustRegister(admission)
	p.server = newServer(serverConfig{
		log:             p.log,
		store:           p.store,
		engine:          p.engine,
		metrics:         p.metrics,
		depth:           p.depth,
		history:         p.history,
		limits:          p.limits,
		hosts:           hostPolicy{onLoopback: p.onLoopback(), allowed: p.allowedHosts},
		publicURL:       p.publicURL,
		tokens:          &p.files.tokens,
		admission:       admission,
		place:           p.place(),
		transferTimeout: p.transferTimeout,
	})
	return nil
}

// Memory of the process: see memoryLimit.
const (
	baseMemory       = 256 << 20
	connectionMemory = 32 << 10
)

// memoryLimit returns the memory in bytes that the process should need at most: for the
// engine and its pools, for waiting connections (22 KiB in a long poll), and for the
// buffered bytes.
func memoryLimit(maxConnections int, maxBuffered int64) int64 {
	return baseMemory + int64(maxConnections)*connectionMemory + maxBuffered
}

// gcPercent is the growth of the heap between two garbage collections, in percent. The
// heap of a server is small: with Go's default of 100, collections take a fifth of its CPU
// time.
const gcPercent = 400

// tuneGC sets the targets of the garbage collector, unless GOGC or GOMEMLIMIT in the
// environment set them. The heap grows while a collection runs, and the program itself
// needs memory too, so the target is a tenth below the limit.
func tuneGC(memoryLimit int64) {
	if before := debug.SetGCPercent(gcPercent); before != 100 {
		debug.SetGCPercent(before)
	}
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryLimit - memoryLimit/10)
	}
}

// run serves requests until ctx is done or something fails, and drains.
func (p *process) run(ctx context.Context) (err error) {
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelDebug) // mistakes of clients
	public := &http.Server{
		Handler:           p.server,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       p.idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withConn,
		ErrorLog:          errorLog,
	}
	profiling := &http.Server{Handler: profiles(), ReadHeaderTimeout: headerTimeout, ErrorLog: errorLog}
	backgroundCtx, stopBackground := context.WithCancel(context.Background())
	defer stopBackground()
	p.background.Go(func() {
		var l net.Listener = listener{p.public, p.server.admission, p.tlsCert != ""}
		if p.tlsCert != "" {
			l = tls.NewListener(l, p.files.tlsConfig())
		}
		p.failed <- public.Serve(l)
	})
	if p.profiling != nil {
		p.background.Go(func() {
			if err := profiling.Serve(p.profiling); !errors.Is(err, http.ErrServerClosed) {
				p.log.Error("profiles are no longer served", "error", err)
			}
		})
	}
	p.background.Go(func() {
		if err := p.prepare(backgroundCtx); err != nil {
			if backgroundCtx.Err() == nil {
				p.failed <- err
			}
			return
		}
		p.background.Go(func() { p.history.run(backgroundCtx) })
		p.background.Go(func() { p.depth.run(backgroundCtx) })
		p.cleanUp(backgroundCtx)
	})

	select {
	case err = <-p.failed:
	case <-ctx.Done():
		p.log.Info("draining")
		p.server.draining.Store(true)
	}
	return errors.Join(err, p.drain(err != nil, stopBackground, public, profiling))
}

// prepare waits for the database, migrates its schema, and makes the server ready. It
// returns an error if ctx is done, or if waiting cannot help.
func (p *process) prepare(ctx context.Context) error {
	if p.postgres != nil {
		if err := p.postgres.awaitReady(ctx); err != nil {
			return fmt.Errorf("private PostgreSQL: %w", err)
		}
		p.database.gate.open()
	}
	if err := prepareDatabase(ctx, p.database, p.store, &store{db: p.unlimited, metrics: p.metrics, homes: &p.database.homes}, p.config, p.log); err != nil {
		return err
	}
	if p.database.homes.areSeveral() {
		p.engine.readPlacements(ctx, p.db)
		p.background.Go(func() { p.engine.followPlacements(ctx, p.db) })
	} else {
		p.background.Go(func() {
			select {
			case <-ctx.Done():
			case <-p.engine.distributed:
				p.failed <- errDistributed
			}
		})
	}
	p.metrics.registry.MustRegister(p.depth) // not earlier, because it logs an error without a schema
	p.server.ready.Store(true)
	// On a standby or a read-only database, requests that only read are served meanwhile.
	if err := retry(ctx, p.log, func() error { return p.store.ping(ctx) }); err != nil {
		return err
	}
	if off, err := p.store.undurable(ctx); err == nil && len(off) > 0 {
		p.log.Warn("PostgreSQL can lose committed messages in a crash", "disabled", strings.Join(off, ","))
	}
	p.log.Info("ready", "url", p.files.scheme()+"://"+p.public.Addr().String(), "auth", p.files.auth(), "database", p.place().Location)
	return nil
}

// place returns where the database is.
func (p *process) place() databasePlace {
	if p.postgres != nil {
		return databasePlace{p.postgres.dir, true}
	}
	return databasePlace{describe(p.database.dsn), false}
}

// cleanUp runs the cleanup and the mover until ctx is done.
func (p *process) cleanUp(ctx context.Context) {
	c := &cleanup{store: p.store, log: p.log, announce: p.engine.announce, expiry: p.engine.expiries.take}
	p.background.Go(func() { c.vacuum(ctx, p.unlimited, p.server.compact) })
	m := &mover{store: p.store, log: p.log, announce: p.engine.announce}
	p.background.Go(func() { m.run(ctx, p.server.moves) })
	c.run(ctx, p.cleanupInterval)
}

// drain waits for requests to finish, and ends the goroutines of run. It keeps accepting
// connections for -drain-delay, unless the process has failed. A second signal, or the end
// of drainTimeout, closes all connections and is an error.
func (p *process) drain(failed bool, stopBackground func(), public, profiling *http.Server) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, p.drainDelay+drainTimeout)
	defer cancel()
	if !failed {
		select {
		case <-time.After(p.drainDelay):
		case <-ctx.Done():
		}
	}
	p.engine.drain()
	if shutdown(ctx, public) != nil {
		p.cut = true
		err = errors.New("not all requests finished")
	}
	cancel() // only the profile that is being written finishes
	shutdown(ctx, profiling)
	stopBackground()
	ended := make(chan struct{})
	go func() {
		p.background.Wait()
		p.depth.close()
		p.engine.close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
		err = errors.Join(err, errors.New("not all statements finished"))
	}
	return err
}

// shutdown ends an HTTP server when its requests have finished. If they have not finished
// cutTimeout after the end of ctx, it closes their connections and returns an error.
func shutdown(ctx context.Context, h *http.Server) error {
	if h.Shutdown(ctx) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cutTimeout)
	defer cancel()
	err := h.Shutdown(ctx)
	if err != nil {
		h.Close()
	}
	return err
}

// profiles serves profiles to "go tool pprof".
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
