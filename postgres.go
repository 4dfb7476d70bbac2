package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// privatePostgres is a PostgreSQL server for this process alone: for a queued
// that was given no database, and for the tests. It runs as a child, listens on
// a unix socket in a folder that only its user can enter, and keeps its data
// between runs. If it dies it is started again.
//
// Its folder holds:
//
//	lock          held while a queued uses the folder
//	postgres/     the cluster, made by initdb
//	postgres.log  what PostgreSQL said since its last start; postgres.log.1 before
//	run/          the socket, unless no socket can have that path
type privatePostgres struct {
	log      *slog.Logger
	dir      string
	socket   string // folder
	binaries binaries
	settings []string // more command-line arguments
	runAs    *account // nil: the user that we are

	lock     *os.File
	stopping chan struct{}
	watching sync.WaitGroup

	mu    sync.Mutex // guards what follows
	child *exec.Cmd
	ended chan struct{} // closed when child has ended
}

// account is the user that PostgreSQL runs as, because it refuses to be root.
type account struct {
	name     string
	uid, gid int
}

// binaries is an installation of PostgreSQL.
type binaries struct {
	dir   string
	major string // version, like "15"
}

const (
	postgresStop = 30 * time.Second // how long we wait until we stop it harder

	// What to do where there is no place for a private PostgreSQL, as in a container.
	otherPlace = "set -database-url (QUEUED_DATABASE_URL) to a PostgreSQL server, or -data-dir (QUEUED_DATA_DIR) to a writable directory, such as a volume"

	maxSocketPath = 103 // bytes; Linux takes 107 (unix(7)), macOS 103
	socketName    = ".s.PGSQL.5432"
)

// startPostgres starts the private PostgreSQL in a folder, which it makes, with
// a new cluster, if it is not there. The caller then calls awaitReady. More
// settings are like "-cfsync=off".
func startPostgres(ctx context.Context, dir string, log *slog.Logger, settings ...string) (_ *privatePostgres, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	p := &privatePostgres{log: log, dir: dir, settings: settings, stopping: make(chan struct{})}
	if p.runAs, err = postgresAccount(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		err := os.MkdirAll(dir, p.dirMode())
		if err == nil {
			err = os.Chmod(dir, p.dirMode()) // whatever the umask
		}
		if err != nil {
			return nil, fmt.Errorf("data directory: %w; %s", err, otherPlace)
		}
	}
	if p.lock, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.lock.Close()
		}
	}()
	if p.binaries, err = findBinaries(p.clusterVersion(), usualPlaces()); err != nil {
		return nil, err
	}
	if err := stopLeftovers(p.cluster()); err != nil {
		return nil, err
	}
	if p.clusterVersion() == "" {
		if err := p.initialize(ctx); err != nil {
			return nil, err
		}
	}
	if err := p.makeSocketFolder(); err != nil {
		return nil, err
	}
	if err := p.launch(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *privatePostgres) cluster() string { return filepath.Join(p.dir, "postgres") }
func (p *privatePostgres) logFile() string { return filepath.Join(p.dir, "postgres.log") }

// dirMode is that of the data folder: PostgreSQL must be able to pass through
// it also if it runs as another user.
func (p *privatePostgres) dirMode() os.FileMode {
	if p.runAs != nil {
		return 0o755
	}
	return 0o700
}

// dsn returns the connection string of a database in the cluster.
func (p *privatePostgres) dsn(database string) string {
	// There is no password, so no file with some is read, and complained about.
	return fmt.Sprintf("host='%s' port=5432 user=queued dbname=%s sslmode=disable passfile=/dev/null/none",
		strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(p.socket), database)
}

// clusterVersion returns the major version of the cluster, empty if there is none.
func (p *privatePostgres) clusterVersion() string {
	b, err := os.ReadFile(filepath.Join(p.cluster(), "PG_VERSION"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// initialize makes the cluster under another name first, so that one that was
// interrupted is not taken for whole.
func (p *privatePostgres) initialize(ctx context.Context) error {
	fresh := filepath.Join(p.dir, "postgres.new")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := p.makeFolder(fresh); err != nil {
		return err
	}
	cmd := p.command(ctx, "initdb", "-D", fresh, "-U", "queued", "-A", "trust", "-E", "UTF8", "--locale=C",
		"--data-checksums", "--no-instructions")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb in %s: %w%s", p.dir, explain(err), lastLines(out))
	}
	return os.Rename(fresh, p.cluster())
}

// makeFolder makes a folder for PostgreSQL's user alone.
func (p *privatePostgres) makeFolder(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if p.runAs != nil {
		return os.Chown(path, p.runAs.uid, p.runAs.gid)
	}
	return nil
}

// makeSocketFolder makes the folder of the socket, in /tmp if the path would be
// too long, or be taken for two because of a comma. There it must not be
// somebody else's.
func (p *privatePostgres) makeSocketFolder() error {
	p.socket = filepath.Join(p.dir, "run")
	if len(filepath.Join(p.socket, socketName)) > maxSocketPath || strings.Contains(p.socket, ",") {
		h := fnv.New64a()
		h.Write([]byte(p.dir))
		p.socket = fmt.Sprintf("/tmp/queued-%x", h.Sum64())
	}
	err := p.makeFolder(p.socket)
	if errors.Is(err, os.ErrExist) {
		uid := os.Getuid()
		if p.runAs != nil {
			uid = p.runAs.uid
		}
		return checkPrivate(p.socket, uid)
	}
	return err
}

// command returns a command that runs one of PostgreSQL's programs as the right
// user, in the data folder.
func (p *privatePostgres) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.binaries.dir, program), args...)
	cmd.Dir = p.dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") }), "LC_ALL=C")
	cmd.SysProcAttr = childAttributes(p.runAs)
	return cmd
}

// launch starts the server, which then takes a moment to be ready.
func (p *privatePostgres) launch() error {
	os.Rename(p.logFile(), p.logFile()+".1") // so that it does not grow for ever
	output, err := os.Create(p.logFile())
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := p.command(context.Background(), "postgres", append([]string{
		"-D", p.cluster(),
		"-c", "listen_addresses=",
		"-c", "unix_socket_directories=" + strconv.Quote(p.socket),
		"-c", "unix_socket_permissions=0700",
		"-c", "port=5432",
		"-c", "logging_collector=off",
		"-c", "log_min_messages=log", // no errors: what a client does wrong is told to the client
		"-c", "log_min_error_statement=panic",
		"-c", "log_checkpoints=off", // or the file would grow for ever
		// A checkpoint writes and syncs all that changed, and commits wait for the disk
		// meanwhile: under load the default of 1 GB makes one every few seconds.
		"-c", "max_wal_size=4GB",
		"-c", "autovacuum_naptime=10s", // in a minute a busy queue leaves a million dead rows
	}, p.settings...)...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start PostgreSQL: %w", explain(err))
	}
	ended := make(chan struct{})
	p.mu.Lock()
	p.child, p.ended = cmd, ended
	p.mu.Unlock()
	go func() {
		cmd.Wait()
		close(ended)
	}()
	return nil
}

// watch starts the server again whenever it ends by itself.
func (p *privatePostgres) watch() {
	for {
		p.mu.Lock()
		ended := p.ended
		p.mu.Unlock()
		select {
		case <-p.stopping:
			return
		case <-ended:
		}
		p.log.Error("private PostgreSQL exited, restarting", "log_file", p.logFile())
		select {
		case <-p.stopping:
			return
		case <-time.After(time.Second):
		}
		if err := p.launch(); err != nil {
			p.log.Error("private PostgreSQL did not start", "error", err)
		}
	}
}

// awaitReady waits until the server takes connections, and makes our database.
// After a crash, recovery takes the time it takes. From then on the server is
// started again whenever it ends by itself.
func (p *privatePostgres) awaitReady(ctx context.Context) error {
	db, err := openDB(p.dsn("postgres"), 1)
	if err != nil {
		return err
	}
	defer db.Close()
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	for {
		var there bool
		err := db.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'queued')").Scan(&there)
		if err == nil && !there {
			_, err = db.ExecContext(ctx, "CREATE DATABASE queued")
		}
		if err == nil {
			p.watching.Go(p.watch)
			return nil
		}
		select {
		case <-ended:
			out, _ := os.ReadFile(p.logFile())
			return fmt.Errorf("PostgreSQL did not start in %s%s", p.dir, lastLines(out))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop ends the server and gives the folder free. It first lets transactions
// end, unless at once: then the next start has to recover, and loses nothing.
func (p *privatePostgres) stop(atOnce bool) error {
	close(p.stopping)
	p.watching.Wait()
	defer p.lock.Close()
	p.mu.Lock()
	child, ended := p.child, p.ended
	p.mu.Unlock()
	if !atOnce {
		// Not SIGTERM, which waits for clients to leave.
		child.Process.Signal(os.Interrupt)
		select {
		case <-ended:
			return nil
		case <-time.After(postgresStop):
		}
	}
	child.Process.Signal(immediateShutdown)
	select {
	case <-ended:
		return nil
	case <-time.After(postgresStop):
		return fmt.Errorf("PostgreSQL (process %d) did not stop", child.Process.Pid)
	}
}

// usualPlaces returns the folders of installations that PATH does not lead to.
func usualPlaces() (dirs []string) {
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian
		"/usr/pgsql-*/bin",          // Red Hat
		"/usr/local/pgsql/bin",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	return dirs
}

// findBinaries finds an installation of PostgreSQL: of the major version of the
// cluster, or any if there is none yet. PATH comes first, then the other places,
// the newest version first.
func findBinaries(major string, places []string) (binaries, error) {
	var all []binaries
	for _, dir := range places {
		if b, err := inspect(dir); err == nil {
			all = append(all, b)
		}
	}
	slices.SortStableFunc(all, func(a, b binaries) int {
		x, _ := strconv.Atoi(a.major)
		y, _ := strconv.Atoi(b.major)
		return y - x
	})
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			if b, err := inspect(filepath.Dir(path)); err == nil {
				all = append([]binaries{b}, all...)
			}
		}
	}
	for _, b := range all {
		if major == "" || b.major == major {
			return b, nil
		}
	}
	if major != "" {
		return binaries{}, fmt.Errorf("data directory was created by PostgreSQL %s, whose binaries were not found; install them (Debian: apt-get install postgresql-%s) or set another -data-dir", major, major)
	}
	return binaries{}, errors.New("PostgreSQL binaries (initdb and postgres) not found in PATH or /usr/lib/postgresql/*/bin; install them (make setup, or Debian: apt-get install postgresql), or set -database-url (QUEUED_DATABASE_URL) to a PostgreSQL server")
}

// inspect looks for an installation in a folder.
func inspect(dir string) (binaries, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return binaries{}, err
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return binaries{}, err
	}
	// postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1), or 18beta1
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return binaries{}, fmt.Errorf("%s/postgres --version: unexpected output %q", dir, out)
	}
	end := strings.IndexFunc(fields[2], func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(fields[2])
	}
	return binaries{dir: dir, major: fields[2][:end]}, nil
}

// lastLines returns the end of what a program printed, if it did, as the end of
// an error in one line.
func lastLines(out []byte) string {
	text := strings.TrimSpace(string(bytes.ToValidUTF8(out, nil)))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return ": " + strings.Join(lines[max(0, len(lines)-5):], " / ")
}
