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

// privatePostgres is a PostgreSQL server for this process alone: for a server without
// -database-url, and for the tests. It is a child process, listens on a unix socket in a
// directory that only its user can enter, and keeps its data between runs. It is started
// again when it ends.
//
// Its directory contains:
//
//	lock          locked while a queued uses the directory
//	postgres/     the cluster, created by initdb
//	postgres.log  the output of PostgreSQL since its last start; postgres.log.1: before
//	run/          the socket, unless the path is too long for one
type privatePostgres struct {
	log      *slog.Logger
	dir      string
	socket   string // directory
	binaries binaries
	settings []string // additional command-line arguments
	runAs    *account // nil for the user of this process

	lock     *os.File
	stopping chan struct{}
	watching sync.WaitGroup

	mu    sync.Mutex // protects child and ended
	child *exec.Cmd
	ended chan struct{} // closed when child has ended
}

// account is a user that PostgreSQL runs as; it refuses to run as root.
type account struct {
	name     string
	uid, gid int
}

// binaries is an installation of PostgreSQL.
type binaries struct {
	dir   string
	major string // major version, such as "15"
}

const (
	postgresStop = 30 * time.Second // for PostgreSQL to end after a signal

	// The remedy if there is no place for the data, as in a container.
	otherPlace = "set -database-url (QUEUED_DATABASE_URL) to a PostgreSQL server, or -data-dir (QUEUED_DATA_DIR) to a writable directory, such as a volume"

	maxSocketPath = 103 // bytes; the limit of Linux is 107 (unix(7)), and that of macOS is 103
	socketName    = ".s.PGSQL.5432"
)

// startPostgres starts the private PostgreSQL in a directory. If there is none, it
// creates it with a new cluster. The caller then calls awaitReady. Settings are
// arguments such as "-cfsync=off".
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
			err = os.Chmod(dir, p.dirMode()) // independent of the umask
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
	if err := p.makeSocketDir(); err != nil {
		return nil, err
	}
	if err := p.launch(); err != nil {
		return nil, err
	}
	return p, nil
}

const temporaryPrefix = "queued-dev-"

// makeTemporaryDir creates a data directory in the directory for temporary files. It deletes
// those of servers that were killed.
func makeTemporaryDir() (string, error) {
	runAs, err := postgresAccount()
	if err != nil {
		return "", err
	}
	uid := os.Getuid()
	if runAs != nil {
		uid = runAs.uid
	}
	removeDeadDirs(uid)
	dir, err := os.MkdirTemp("", temporaryPrefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, (&privatePostgres{runAs: runAs}).dirMode())
}

// removeDeadDirs stops PostgreSQL in the temporary directories whose servers have ended, and
// deletes the directories. Only those count whose PostgreSQL runs as the user with this uid.
func removeDeadDirs(uid int) {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), temporaryPrefix+"*", "lock"))
	for _, path := range locks {
		dead := privatePostgres{dir: filepath.Dir(path)}
		if checkPrivate(dead.cluster(), uid) != nil {
			continue
		}
		lock, err := lockFile(path)
		if err != nil {
			continue // the server is running
		}
		if stopLeftovers(dead.cluster()) == nil {
			os.RemoveAll(dead.dir)
		}
		lock.Close()
	}
}

// isNewDataDir reports whether a private PostgreSQL has no data in a directory yet.
func isNewDataDir(dir string) bool { return (&privatePostgres{dir: dir}).clusterVersion() == "" }

func (p *privatePostgres) cluster() string { return filepath.Join(p.dir, "postgres") }
func (p *privatePostgres) logFile() string { return filepath.Join(p.dir, "postgres.log") }

// dirMode returns the mode of the data directory, which PostgreSQL must be able to
// enter also if it runs as another user.
func (p *privatePostgres) dirMode() os.FileMode {
	if p.runAs != nil {
		return 0o755
	}
	return 0o700
}

// dsn returns the connection string of a database in the cluster.
func (p *privatePostgres) dsn(database string) string {
	// A password file is not needed, and its mode could be an error.
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

// initialize creates the cluster under another name first, so that it has its name
// only if it is complete.
func (p *privatePostgres) initialize(ctx context.Context) error {
	fresh := filepath.Join(p.dir, "postgres.new")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := p.makeDir(fresh); err != nil {
		return err
	}
	cmd := p.command(ctx, "initdb", "-D", fresh, "-U", "queued", "-A", "trust", "-E", "UTF8", "--locale=C",
		"--data-checksums", "--no-instructions")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb in %s: %w%s", p.dir, explainAccess(err), lastLines(out))
	}
	return os.Rename(fresh, p.cluster())
}

// makeDir creates a directory for PostgreSQL's user alone.
func (p *privatePostgres) makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if p.runAs != nil {
		return os.Chown(path, p.runAs.uid, p.runAs.gid)
	}
	return nil
}

// makeSocketDir creates the directory of the socket. It is in /tmp if the path is too
// long, or has a comma, which PostgreSQL reads as two paths. There it must not belong to
// another user.
func (p *privatePostgres) makeSocketDir() error {
	p.socket = filepath.Join(p.dir, "run")
	if len(filepath.Join(p.socket, socketName)) > maxSocketPath || strings.Contains(p.socket, ",") {
		h := fnv.New64a()
		h.Write([]byte(p.dir))
		p.socket = fmt.Sprintf("/tmp/queued-%x", h.Sum64())
	}
	err := p.makeDir(p.socket)
	if errors.Is(err, os.ErrExist) {
		uid := os.Getuid()
		if p.runAs != nil {
			uid = p.runAs.uid
		}
		return checkPrivate(p.socket, uid)
	}
	return err
}

// command returns a command that runs one of PostgreSQL's programs as PostgreSQL's
// user, in the data directory.
func (p *privatePostgres) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.binaries.dir, program), args...)
	cmd.Dir = p.dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") }), "LC_ALL=C")
	cmd.SysProcAttr = childAttributes(p.runAs)
	return cmd
}

// launch starts PostgreSQL, and returns before it is ready.
func (p *privatePostgres) launch() error {
	os.Rename(p.logFile(), p.logFile()+".1") // which bounds its size
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
		"-c", "log_min_messages=log", // without the errors of clients, which get them as responses
		"-c", "log_min_error_statement=panic",
		"-c", "log_checkpoints=off", // would grow without bound
		// Commits wait for the disk during a checkpoint, which writes all that has
		// changed. Under load the default of 1 GB causes one every few seconds.
		"-c", "max_wal_size=4GB",
		"-c", "autovacuum_naptime=10s", // a busy queue leaves a million dead rows in a minute
	}, p.settings...)...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start PostgreSQL: %w", explainAccess(err))
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

// watch starts PostgreSQL again whenever it ends by itself.
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
		if os.Getpid() == 1 {
			reapOrphans()
		}
		if err := p.launch(); err != nil {
			p.log.Error("private PostgreSQL did not start", "error", err)
		}
	}
}

// awaitReady waits until PostgreSQL accepts connections, which takes long if it has to
// recover, and creates the database. From then on PostgreSQL is started again whenever
// it ends by itself.
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

// stop ends PostgreSQL and unlocks the directory. Unless atOnce, PostgreSQL shuts down
// in order; otherwise its next start has to recover, which loses nothing.
func (p *privatePostgres) stop(atOnce bool) error {
	close(p.stopping)
	p.watching.Wait()
	defer p.lock.Close()
	p.mu.Lock()
	child, ended := p.child, p.ended
	p.mu.Unlock()
	if !atOnce {
		// Not SIGTERM, after which PostgreSQL waits for its clients to disconnect.
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

// usualPlaces returns the directories of installations outside PATH.
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

// findBinaries returns an installation of a major version of PostgreSQL, or of any if
// major is empty. It searches PATH, and then the places, newest version first.
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

// inspect returns the installation in a directory.
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

// lastLines returns the last lines of a program's output in one line, for the end of an
// error; empty if there is no output.
func lastLines(out []byte) string {
	text := strings.TrimSpace(string(bytes.ToValidUTF8(out, nil)))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return ": " + strings.Join(lines[max(0, len(lines)-5):], " / ")
}
