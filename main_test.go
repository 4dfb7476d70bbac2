package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"queued/internal/flags"
)

// running is a running program, in this process or in one of its own.
type running struct {
	t      testing.TB
	output *syncBuffer
	url    string
	ended  chan struct{}
	err    error // set when it has ended
	stop   context.CancelFunc
	cmd    *exec.Cmd // nil in this process
}

// runServer calls run, and waits until the server is ready.
func runServer(t testing.TB, args ...string) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, output: newSyncBuffer(), ended: make(chan struct{}), stop: stop}
	go func() {
		r.err = run(ctx, append([]string{"-listen", "127.0.0.1:0"}, args...), func(string) string { return "" }, nil, io.Discard, r.output)
		close(r.ended)
	}()
	t.Cleanup(func() {
		stop()
		<-r.ended
	})
	r.awaitReady()
	return r
}

// startProcess starts the test binary as a server, in a process of its own.
func startProcess(t testing.TB, args ...string) *running {
	t.Helper()
	return startProgram(t, os.Args[0], args...)
}

// mustBuild builds the program without the tests and the race detector.
func mustBuild(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "queued")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

func startProgram(t testing.TB, program string, args ...string) *running {
	t.Helper()
	cmd := exec.Command(program, append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1")
	r := startCommand(t, cmd)
	t.Cleanup(func() {
		r.cmd.Process.Signal(syscall.SIGTERM)
		<-r.ended
	})
	r.awaitReady()
	return r
}

// startCommand starts a command. It is killed at the end of the test.
func startCommand(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{t: t, output: newSyncBuffer(), ended: make(chan struct{}), cmd: cmd}
	cmd.Stderr = r.output
	cmd.WaitDelay = testTimeout // processes that it has started may keep its output open
	if cmd.SysProcAttr == nil {
		thisRun.adopt(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.err = cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-r.ended
	})
	return r
}

var readyLine = regexp.MustCompile(`msg=ready url=(\S+) auth=\S+ database="?([^"\n]+)`)

func (r *running) awaitReady() {
	r.t.Helper()
	eventually(r.t, "the server is ready", func() bool {
		select {
		case <-r.ended:
			r.t.Fatalf("the server has ended: %v\n%s", r.err, r.output)
		default:
		}
		m := readyLine.FindStringSubmatch(r.output.String())
		if m != nil {
			r.url = m[1]
		}
		return m != nil
	})
}

// await waits until the program has ended.
func (r *running) await() error {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(2 * testTimeout):
		r.t.Fatalf("the server does not end:\n%s", r.output)
	}
	return r.err
}

// beginRequest sends the header of a POST, and returns when the server waits for the
// body.
func (r *running) beginRequest(path, body string) (net.Conn, *bufio.Reader) {
	r.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", path, len(body))
	response := bufio.NewReader(conn)
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} {
		if got, err := response.ReadString('\n'); got != want || err != nil {
			r.t.Fatalf("the server sent %q, %v, want %q", got, err, want)
		}
	}
	return conn, response
}

func (r *running) client() *client { return &client{t: r.t, url: r.url} }

func TestRunServesLongPollsAndDrains(t *testing.T) {
	t.Parallel()
	r := runServer(t, "-database-url", newTestDatabase(t, "template1"))
	c := r.client()
	c.mustTopic("t")
	published := c.poll(context.Background(), "t", "?wait_seconds=20")
	c.publish("t", 1)
	checkDiff(t, "received", []int{1}, numbers(c.await(published)))

	waiting := c.poll(context.Background(), "t", "?wait_seconds=20")
	eventually(t, "the second receive waits", func() bool {
		return strings.Contains(c.must(200, "GET", "/metrics", ""), `http_requests_total{handler="/queues/{queue_id}/messages",method="GET",status="2xx"} 1`)
	})
	conn, response := r.beginRequest("/topics/t/messages", `{"data":{}}`)
	r.stop()
	checkDiff(t, "received at the drain", []int{}, numbers(c.await(waiting)))
	eventually(t, "the server accepts no new connections", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	fmt.Fprint(conn, `{"data":{}}`)
	if status, err := response.ReadString('\n'); err != nil || !strings.Contains(status, " 201 ") {
		t.Errorf("the request that had begun = %q, %v, want a 201", status, err)
	}
	if err := r.await(); err != nil {
		t.Errorf("run = %v", err)
	}
}

func TestServersShareADatabase(t *testing.T) {
	t.Parallel()
	for range 3 {
		if receivesByNotification(t) {
			return
		}
	}
	t.Error("each time a sweep found the message, and not a notification")
}

// receivesByNotification publishes at one server and receives at another. It returns
// false if the other server has looked up the next due time meanwhile, as it does after
// a sweep. A sweep may also run by chance.
func receivesByNotification(t *testing.T) bool {
	dsn := newTestDatabase(t, "template1")
	a, b := runServer(t, "-database-url", dsn).client(), runServer(t, "-database-url", dsn).client()
	db := newTestDB(t, dsn)
	for _, c := range []*client{a, b} { // the first one creates the tables
		eventually(t, "a server is ready", func() bool { return c.do("GET", "/readyz", "").status == 200 })
	}
	eventually(t, "both servers listen", func() bool {
		var listening int
		err := db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()").Scan(&listening)
		return err == nil && listening == 2
	})
	a.mustTopic("t")
	poll := b.poll(context.Background(), "t", "?wait_seconds=20")
	searches := func() string {
		return regexp.MustCompile(`queued_statement_duration_seconds_count\{statement="next_due"\} .*`).FindString(b.must(200, "GET", "/metrics", ""))
	}
	eventually(t, "the receiver waits", func() bool { return searches() != "" })
	before := searches()
	a.publish("t", 1)
	checkDiff(t, "received", []int{1}, numbers(b.await(poll)))
	return searches() == before
}

func TestDatabaseThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	p := mustStartPostgres(t, dir)
	if err := p.stop(false); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, output: newSyncBuffer(), ended: make(chan struct{}), stop: stop}
	listen := freeAddress(t)
	go func() {
		r.err = run(ctx, []string{"-listen", listen, "-database-url", p.dsn("queued")}, func(string) string { return "" }, nil, io.Discard, r.output)
		close(r.ended)
	}()
	r.url = "http://" + listen
	c := r.client()
	eventually(t, "it listens", func() bool {
		v, err := c.send(context.Background(), "GET", "/topics", "")
		return err == nil && v.status == 503 && v.header.Get("Retry-After") != ""
	})
	c.must(500, "GET", "/health", "")
	if v := c.do("GET", "/", ""); v.status != 503 || v.header.Get("Retry-After") == "" {
		t.Errorf("GET / = %d %s, want 503 with Retry-After", v.status, v.body)
	}
	p = mustStartPostgres(t, dir)
	t.Cleanup(func() { p.stop(true) })
	eventually(t, "it is ready", func() bool { return c.do("GET", "/topics", "").status == 200 })
	c.must(200, "GET", "/health", "")
	stop()
	if err := r.await(); err != nil {
		t.Errorf("run = %v", err)
	}
}

var freeAddresses atomic.Int64

// freeAddress returns an address that no other server listens on, now or later. On Linux
// all of 127.0.0.0/8 is this machine, and each call uses another part of it.
func freeAddress(t testing.TB) string {
	t.Helper()
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.%d", 128+os.Getpid()>>8&63, os.Getpid()&255, 1+freeAddresses.Add(1)%254)
	}
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestHopelessDatabaseEndsTheProgram(t *testing.T) {
	t.Parallel()
	latin := newTestDatabase(t, "template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
	newer := newTestDatabase(t, "queued")
	if _, err := newTestDB(t, newer).Exec("INSERT INTO queued.schema_version (version) VALUES (999)"); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(newProxy(t, "unix", filepath.Join(testPostgres.socket, socketName)).address)
	tcp := "host=" + host + " port=" + port
	for dsn, want := range map[string]string{
		testPostgres.dsn("nosuch"): "does not exist",
		strings.Replace(testPostgres.dsn("queued"), "user=queued", "user=unknown password=secret", 1):                 "unknown",
		testPostgres.dsn("queued") + " options='-c nosuch=1'":                                                         `unrecognized configuration parameter "nosuch"`,
		testPostgres.dsn("queued") + " options='-c work_mem=much'":                                                    `invalid value for parameter "work_mem"`,
		testPostgres.dsn("queued") + " options=-x":                                                                    "invalid command-line argument",
		testPostgres.dsn("queued") + " " + tcp + " sslmode=require":                                                   "SSL is not enabled on the server",
		testPostgres.dsn("queued") + " " + tcp + " sslmode=verify-full sslrootcert=/nowhere/ca.crt password='secret'": "/nowhere/ca.crt: no such file",
		latin: "encoding must be UTF8, not LATIN1",
		newer: "newer schema: version 999",
	} {
		var output bytes.Buffer
		err := run(context.Background(), []string{"-listen", "127.0.0.1:0", "-database-url", dsn}, func(string) string { return "" }, nil, io.Discard, &output)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("run with %s = %v, want an error with %q", dsn, err, want)
		}
		if strings.Contains(fmt.Sprint(err)+output.String(), "secret") {
			t.Errorf("the password is shown: %v\n%s", err, output.String())
		}
	}
}

// A secret that a deployment fails to provide often becomes an empty variable.
func TestEmptyVariablesAreNoPrivatePostgresAndNoOpenServer(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		args     []string
		variable string
		want     string
	}{
		{nil, "QUEUED_DATABASE_URL=", "-database-url: set but empty"},
		{nil, "QUEUED_DATABASE_URL= \n", "-database-url: set but empty"},
		{[]string{"-database-url", ""}, "A=", "-database-url: set but empty"},
		{[]string{"-database-url="}, "A=", "-database-url: set but empty"},
		{[]string{"-database-url", "dbname=q"}, "QUEUED_TOKEN_FILE=", "-token-file: set but empty"},
		{[]string{"-database-url", "dbname=q"}, "QUEUED_TLS_CERT=", "-tls-cert: set but empty"},
	} {
		cmd := exec.Command(os.Args[0], append(v.args, "-listen", "127.0.0.1:0")...)
		cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", v.variable)
		r := startCommand(t, cmd)
		r.await()
		if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(r.output.String(), v.want) {
			t.Errorf("queued %v with %s exits %d, want 2 and %s:\n%s", v.args, v.variable, cmd.ProcessState.ExitCode(), v.want, r.output)
		}
	}
}

func TestReadOnlyDatabaseIsNotReady(t *testing.T) {
	t.Parallel()
	dsn := newPlainDatabase(t, "queued")
	name := mustConfig(t, dsn).Database
	admin := newTestDB(t, testPostgres.dsn("postgres"))
	if _, err := admin.Exec("ALTER DATABASE " + name + " SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, output: newSyncBuffer(), ended: make(chan struct{}), stop: stop}
	listen := freeAddress(t)
	go func() {
		r.err = run(ctx, []string{"-listen", listen, "-database-url", dsn}, func(string) string { return "" }, nil, io.Discard, r.output)
		close(r.ended)
	}()
	t.Cleanup(func() {
		stop()
		<-r.ended
	})
	r.url = "http://" + listen
	c := r.client()
	eventually(t, "the log says that the database is read-only", func() bool { return strings.Contains(r.output.String(), "database unavailable: read-only") })
	c.must(200, "GET", "/queues", "")
	c.must(503, "GET", "/readyz", "")
	if strings.Contains(r.output.String(), "msg=ready") {
		t.Errorf("a server on a read-only database logs that it is ready:\n%s", r.output)
	}
	if _, err := admin.Exec("ALTER DATABASE " + name + " RESET default_transaction_read_only"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name); err != nil {
		t.Fatal(err)
	}
	r.awaitReady()
	eventually(t, "it is ready", func() bool { return c.do("GET", "/readyz", "").status == 200 })
}

func TestPasswordOverTCPAndUnixSocket(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	p := mustStartPostgres(t, dir)
	t.Cleanup(func() { p.stop(true) })
	db := newTestDB(t, p.dsn("queued"))
	if _, err := db.Exec("CREATE ROLE app LOGIN PASSWORD 's3cret p/w'; GRANT CREATE ON DATABASE queued TO app"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.cluster(), "pg_hba.conf"), []byte("local all queued trust\nlocal all app scram-sha-256\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(p.socket, socketName)
	tcp := newProxy(t, "unix", socket).address
	for _, database := range []string{
		"postgres://app:s3cret%20p%2Fw@" + tcp + "/queued",
		"host=" + p.socket + " user=app password='s3cret p/w' dbname=queued",
	} {
		r := runServer(t, "-database-url", database)
		r.client().do("POST", "/topics", `{"id":"t"}`)
		r.client().must(200, "GET", "/topics/t", "")
		if strings.Contains(r.output.String(), "s3cret") || !strings.Contains(r.output.String(), `database="queued `) {
			t.Errorf("the log shows the password, or not the database:\n%s", r.output)
		}
		overview := r.client().must(200, "GET", "/overview", "")
		if strings.Contains(overview, "s3cret") || !strings.Contains(overview, `"location":"queued `) || !strings.Contains(overview, `"private":false`) {
			t.Errorf("overview = %s", overview)
		}
	}
	var out bytes.Buffer
	err := run(context.Background(), []string{"-listen", "127.0.0.1:0", "-database-url", "postgres://app:wr0ng@" + tcp + "/queued"}, func(string) string { return "" }, nil, &out, &out)
	if err == nil || !strings.Contains(err.Error(), "password authentication failed") || strings.Contains(err.Error()+out.String(), "wr0ng") {
		t.Errorf("run with a wrong password = %v\n%s", err, out.String())
	}
}

func TestWrongSettingsAreRefusedByName(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		args []string
		env  string
		want string
	}{
		{args: []string{"-listen", "8000"}, want: "-listen"},
		{args: []string{"-listen", "203.0.113.1:0", "-database-url", "dbname=x"}, want: "-listen"},
		{args: []string{"-database-url", "postgres://me:secret@host:port/"}, want: "-database-url"},
		{args: []string{"-database-url", "nonsense"}, want: "-database-url"},
		{args: []string{"-cleanup-interval", "0"}, want: "-cleanup-interval"},
		{args: []string{"-cleanup-interval", "5"}, want: "-cleanup-interval: must be a duration such as 500ms, 20s"},
		{args: []string{"-deduplication-window", "0s"}, want: "-deduplication-window: must be 1s to 24h0m0s"},
		{args: []string{"-deduplication-window", "25h"}, want: "-deduplication-window: must be 1s to 24h0m0s"},
		{args: []string{"-deduplication-window", "1500ms"}, want: "-deduplication-window: must be whole seconds"},
		{args: []string{"-max-wait", "-1s"}, want: "-max-wait"},
		{args: []string{"-max-body", "0"}, want: "-max-body"},
		{args: []string{"-max-limit", "x"}, want: "-max-limit"},
		{args: []string{"-drain-delay", "-1s"}, want: "-drain-delay"},
		{args: []string{"-max-database-connections", "7"}, want: "-max-database-connections: must be 8 to 36"},
		{args: []string{"-max-connections", "0"}, want: "-max-connections"},
		{args: []string{"-max-buffered-bytes", "1000000"}, want: "-max-buffered-bytes: must be at least 67108864, four times the largest request (16777216)"},
		{args: []string{"-max-buffered-bytes", "100000000", "-max-body", "30000000"}, want: "-max-buffered-bytes: must be at least 120000000"},
		{args: []string{"-transfer-timeout", "0s"}, want: "-transfer-timeout"},
		{args: []string{"-idle-timeout", "-1s"}, want: "-idle-timeout"},
		{args: []string{"-public-url", "queue.example"}, want: "-public-url: must be an http or https URL with a host, such as https://queue.example"},
		{args: []string{"-public-url", "ftp://queue.example"}, want: "-public-url: must be"},
		{args: []string{"-public-url", "https:///q"}, want: "-public-url: must be"},
		{args: []string{"-public-url", "https://me:secret@queue.example"}, want: "-public-url: must be"},
		{args: []string{"-public-url", "https://queue.example/?a=b"}, want: "-public-url: must be"},
		{args: []string{"-public-url", "https://queue.example/#a"}, want: "-public-url: must be"},
		{args: []string{"-public-url", "https://queue.example/a b"}, want: "-public-url: must be"},
		{args: []string{"-public-url", "https://%zz"}, want: "-public-url: must be"},
		{args: []string{"-log-level", "loud"}, want: "-log-level"},
		{args: []string{"-log-format", "xml"}, want: "-log-format"},
		{args: []string{"-min-ack-deadline-seconds", "0"}, want: "-min-ack-deadline-seconds"},
		{args: []string{"-max-ack-deadline-seconds", "0"}, want: "-max-ack-deadline-seconds: "},
		{args: []string{"-max-delivery-delay-seconds", "0", "-max-ack-deadline-seconds", "0", "-idle-timeout", "0"}, want: "-idle-timeout"}, // the first check that fails
		{args: []string{"-default-ack-deadline-seconds", "700"}, want: "-default-ack-deadline-seconds: must be at least -min-ack-deadline-seconds and at most -max-ack-deadline-seconds"},
		{args: []string{"-default-ack-deadline-seconds", "0"}, want: "-default-ack-deadline-seconds: "},
		{args: []string{"-no-such-flag"}, want: "-no-such-flag"},
		{args: []string{"serve"}, want: `"serve"`},
		{args: []string{"-database-url", ""}, want: "-database-url: set but empty; name a database, or unset it"},
		{args: []string{"-token-file", ""}, want: "-token-file: set but empty"},
		{args: []string{"-tls-cert", "", "-tls-key", ""}, want: "-tls-"},
		{args: []string{"-database-url", "postgres://me:p@secret/w#rd@db.example/q"}, want: "-database-url: malformed URL"},
		{args: []string{"-database-url", "postgres://me:secret@a/q?sslmod=require"}, want: "-database-url: sslmod: unknown parameter"},
		{args: []string{"-dev", "-database-url", "dbname=x"}, want: "-dev: excludes -database-url"},
		{args: []string{"-dev", "-data-dir", "/x"}, want: "-dev: excludes -data-dir"},
		{env: "QUEUED_DATABASE_URL=dbname=x", args: []string{"-dev"}, want: "-dev: excludes -database-url (QUEUED_DATABASE_URL)"},
		{env: "PGCHANNELBINDING=require", args: []string{"-database-url", "dbname=q"}, want: "$PGCHANNELBINDING (channel_binding): not supported"},
		{env: "QUEUED_MAX_WAIT=20", want: "$QUEUED_MAX_WAIT (-max-wait)"},
		{env: "QUEUED_LOG_FORMAT=xml", want: "-log-format"},
		{env: "QUEUED_DATABASE_URL=postgres://me:secret@host:port/", want: "-database-url"},
		{args: []string{"health", "-listen", "x"}, want: "-listen"},
		{args: []string{"health", "now"}, want: `"now"`},
	} {
		name, value, _ := strings.Cut(v.env, "=")
		getenv := func(key string) string {
			if key == name {
				return value
			}
			return map[string]string{"HOME": "/home/user"}[key]
		}
		var out bytes.Buffer
		err := run(context.Background(), v.args, getenv, nil, &out, &out)
		if out.Len() > 0 {
			t.Errorf("queued %v prints more than its error: %s", v.args, out.String())
		}
		if err == nil || !strings.Contains(err.Error(), v.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("queued %v with %q = %v, want an error that names %s", v.args, v.env, err, v.want)
		}
	}
}

// devServer starts a server with -dev whose temporary directory is in dir.
func devServer(t *testing.T, dir string) *running {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-dev", "-listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "TMPDIR="+dir, "QUEUED_DATA_DIR=/dev/null/none")
	r := startCommand(t, cmd)
	r.awaitReady()
	return r
}

// mustList returns the names in a directory.
func mustList(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestDevelopmentServerKeepsNothing(t *testing.T) {
	t.Parallel()
	temporary := filepath.Dir(newDataDir(t))
	r := devServer(t, temporary)
	c := r.client()
	c.mustTopic("t")
	c.publish("t", 1)
	checkDiff(t, "received", []int{1}, numbers(c.receive("t", "")))
	if names := mustList(t, temporary); len(names) != 1 || !strings.HasPrefix(names[0], "queued-dev-") {
		t.Errorf("the temporary directory has %q", names)
	}
	r.cmd.Process.Signal(syscall.SIGTERM)
	if err := r.await(); err != nil {
		t.Errorf("it ends with %v\n%s", err, r.output)
	}
	checkDiff(t, "left in the temporary directory", []string(nil), mustList(t, temporary))
	for _, want := range []string{`msg="messages are kept until exit, because of -dev" data_dir=` + temporary, "level=DEBUG msg=request"} {
		if !strings.Contains(r.output.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, r.output)
		}
	}
}

func TestNewDatabaseIsAnnounced(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	const announcement = `msg="creating a private PostgreSQL" data_dir=`
	for _, want := range []int{1, 0} {
		r := runServer(t, "-data-dir", dir)
		checkDiff(t, "announcements", want, strings.Count(r.output.String(), announcement+dir))
		r.stop()
		if err := r.await(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSettingsComeFromFlagsAndThenTheEnvironment(t *testing.T) {
	t.Parallel()
	env := map[string]string{"QUEUED_MAX_WAIT": "7s", "QUEUED_MAX_BODY": "5", "QUEUED_MIN_ACK_DEADLINE_SECONDS": "3", "QUEUED_ALLOWED_HOSTS": " A.example, b "}
	c, err := parseConfig([]string{"-max-wait", "8s", "-database-url", "dbname=x"}, func(name string) string { return env[name] }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "settings", []any{8.0, int64(5), 3, []string{"a.example", "b"}, "127.0.0.1:8000"},
		[]any{c.limits.maxWait, c.limits.maxBody, c.limits.ackDeadline.min, c.allowedHosts, c.listen})
}

func TestHelpNamesEveryFlagAndVariable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := run(context.Background(), []string{"-help"}, func(string) string { return "" }, nil, &out, io.Discard)
	if !errors.Is(err, flag.ErrHelp) {
		t.Errorf("run -help = %v", err)
	}
	for _, name := range []string{
		"listen", "debug-listen", "dev", "database-url", "data-dir", "cleanup-interval", "max-wait", "max-body", "max-limit", "drain-delay", "allowed-hosts", "public-url",
		"max-connections", "max-database-connections", "max-buffered-bytes", "transfer-timeout", "idle-timeout",
		"log-level", "log-format", "topology", "token-file", "tls-cert", "tls-key", "min-ack-deadline-seconds", "max-ack-deadline-seconds", "min-message-retention-seconds",
		"max-message-retention-seconds", "min-message-max-deliveries", "max-message-max-deliveries", "min-delivery-delay-seconds", "max-delivery-delay-seconds",
	} {
		if !regexp.MustCompile(`(?m)^  -`+name+`\b`).MatchString(out.String()) || !strings.Contains(out.String(), "[$"+flags.Variable(name)+"]") {
			t.Errorf("-help does not explain -%s and its variable", name)
		}
	}
	page := mustRead(t, "docs/configuration.md")
	for _, m := range regexp.MustCompile(`(?m)^  -(\S+)`).FindAllStringSubmatch(out.String(), -1) {
		if !strings.Contains(page, "`-"+m[1]+"`") {
			t.Errorf("docs/configuration.md does not list -%s", m[1])
		}
	}
}

func TestExitCodesDistinguishWrongUseFromFailure(t *testing.T) {
	t.Parallel()
	closed := "http://" + freeAddress(t)
	for args, want := range map[string]int{
		"version":               0,
		"bench -help":           0,
		"health -url " + closed: 1,
		"bench -url " + closed:  1,
		"health -no-such":       2,
		"bench -batch 0":        2,
		"bench now":             2,
		"-max-wait 5":           2,
		"-max-wait -5s":         2,
	} {
		cmd := exec.Command(os.Args[0], strings.Fields(args)...)
		cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1")
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("queued %s exits with %d, want %d: %v\n%s", args, got, want, err, out)
		}
	}
}

// .ci/run checks that the version of a release names its commit.
func TestVersionNamesGoAndTheSystem(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"version", "-version", "--version"} {
		var out bytes.Buffer
		err := run(context.Background(), []string{name}, func(string) string { return "" }, nil, &out, io.Discard)
		want := fmt.Sprintf("queued %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		if err != nil || out.String() != want || version() == "" {
			t.Errorf("queued %s = %v, prints %q, want %q", name, err, out.String(), want)
		}
	}
}

func TestHealthCommand(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	check := func(want bool, args ...string) {
		t.Helper()
		var out bytes.Buffer
		err := run(context.Background(), append([]string{"health"}, args...), func(string) string { return "" }, nil, &out, io.Discard)
		if (err == nil) != want || want && out.String() != "{\"success\":true}\n" {
			t.Errorf("queued health %q = %v, prints %q; want success: %v", args, err, out.String(), want)
		}
	}
	listen := "0.0.0.0:" + s.url[strings.LastIndex(s.url, ":")+1:]
	check(true, "-url", s.url)
	check(true, "-url", s.url, "-ready")
	check(true, "-listen", listen)
	check(true, "-listen", listen, "-ready")
	s.ready.Store(false) // as while the database is unavailable
	check(true, "-url", s.url)
	check(false, "-url", s.url, "-ready")
	check(false, "-listen", freeAddress(t))
	check(false, "-listen", freeAddress(t), "-ready")
}

func TestLogIsQuietButForDebug(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "queued")
	for level, want := range map[string]bool{"info": false, "debug": true} {
		r := runServer(t, "-database-url", dsn, "-log-level", level)
		r.client().must(404, "GET", "/topics/one-of-a-kind", "")
		r.stop()
		if err := r.await(); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(r.output.String(), "one-of-a-kind"); got != want {
			t.Errorf("at level %s a request is logged: %v", level, got)
		}
	}
	r := &running{t: t, output: newSyncBuffer()}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if err := run(ctx, []string{"-listen", "127.0.0.1:0", "-database-url", dsn, "-log-format", "json"}, func(string) string { return "" }, nil, io.Discard, r.output); err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.output.String(), `"msg":"draining"`) {
		t.Errorf("-log-format json logs %s", r.output)
	}
}

// Private PostgreSQL

// newDataDir returns a folder that the user of PostgreSQL can access.
func newDataDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "queued-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

func TestFirstStartWarnsOfNothingWhileItIsScraped(t *testing.T) {
	t.Parallel()
	listen := freeAddress(t)
	dir := newDataDir(t)
	cmd := exec.Command(os.Args[0], "-listen", listen, "-data-dir", dir)
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1")
	r := startCommand(t, cmd)
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-r.ended
	})
	r.url = "http://" + listen
	c := r.client()
	eventually(t, "it is ready", func() bool {
		c.send(context.Background(), "GET", "/metrics", "") // refused at first
		return strings.Contains(r.output.String(), "msg=ready")
	})
	if strings.Contains(r.output.String(), "WARN") {
		t.Errorf("the server warns:\n%s", r.output)
	}
	c.wantMetrics("queued_database_up 1\n")
	if v := overviewOf(c, "").Server.Database; v == nil || !v.Private || v.Location != dir {
		t.Errorf("database = %+v, want the private one in %s", v, dir)
	}
}

func TestVariablesOfLibpqCompleteTheDatabaseURL(t *testing.T) {
	t.Parallel()
	c := mustConfig(t, newPlainDatabase(t, "queued"))
	for _, v := range []struct {
		variable string
		want     string // empty if the server starts
	}{
		{"PGGSSENCMODE=disable", ""},
		{"PGOPTIONS=-c work_mem=1MB", ""},
		{"PGDATESTYLE=German", ""},
		{"PGPORT=", ""},
		{"PGGSSENCMODE=require", "-database-url: $PGGSSENCMODE (gssencmode): not supported"},
		{"PGPORT=x", "-database-url: $PGPORT (port): must be a number"},
		{"PGSERVICE=nosuch", `service "nosuch" not found`},
	} {
		cmd := exec.Command(os.Args[0], "-listen", "127.0.0.1:0", "-database-url", "user=queued")
		cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "PGHOST="+c.Host, "PGDATABASE="+c.Database, v.variable)
		r := startCommand(t, cmd)
		if v.want == "" {
			r.awaitReady()
			if want := fmt.Sprintf("database=%q", c.Database+" in "+c.Host); !strings.Contains(r.output.String(), want) {
				t.Errorf("with %s the log lacks %s:\n%s", v.variable, want, r.output)
			}
			continue
		}
		r.await()
		if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(r.output.String(), v.want) {
			t.Errorf("with %s it exits %d, want 2 and %s:\n%s", v.variable, cmd.ProcessState.ExitCode(), v.want, r.output)
		}
	}
}

func TestDrainDelayServesWhileReadyzSaysNo(t *testing.T) {
	t.Parallel()
	r := startProcess(t, "-database-url", newTestDatabase(t, "template1"), "-drain-delay", "1h")
	c := r.client()
	c.must(200, "GET", "/readyz", "")
	r.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "the server is no longer ready", func() bool { return c.do("GET", "/readyz", "").status == 503 })
	c.must(201, "POST", "/topics", `{"id":"t"}`) // clients may not have noticed yet
	response, err := http.Get(r.url + "/topics/t")
	if err != nil || !response.Close {
		t.Errorf("a draining server keeps the connection open: %+v, %v", response, err)
	}
	response.Body.Close()
	c.must(200, "GET", "/livez", "")
	r.cmd.Process.Signal(syscall.SIGTERM)
	if err := r.await(); err != nil {
		t.Errorf("the server ended with %v:\n%s", err, r.output)
	}
}

func TestProfilesAreServedOnlyWhereAskedFor(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	r := runServer(t, "-database-url", newTestDatabase(t, "queued"), "-debug-listen", address)
	response, err := http.Get("http://" + address + "/debug/pprof/goroutine?debug=1") // no part of the API
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	profile, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || !bytes.Contains(profile, []byte("goroutine profile")) {
		t.Errorf("profile = %d %s, %v", response.StatusCode, profile, err)
	}
	r.client().must(404, "GET", "/debug/pprof/goroutine", "")
}

func TestConnectionsForProfilesEndWithTheServer(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	r := runServer(t, "-database-url", newTestDatabase(t, "queued"), "-debug-listen", address)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /debug/pprof/ HTTP/1.1\r\n") // an incomplete request
	r.stop()
	if err := r.await(); err != nil {
		t.Errorf("run = %v", err)
	}
	conn.SetReadDeadline(time.Now().Add(testTimeout))
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("the connection is still open: %v", err)
	}
}
