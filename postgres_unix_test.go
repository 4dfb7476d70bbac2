//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestForeignProcessIsNotTakenForOurs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// The PostgreSQL that wrote this file died long ago. Its process id now belongs to
	// another process, the test.
	if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pid := leftover(dir); pid != 0 {
		t.Errorf("process %d counts as a PostgreSQL", pid)
	}
	if runsPostgres(os.Getpid(), dir) {
		t.Error("the test counts as a PostgreSQL")
	}
	if runsPostgres(leftover(testPostgres.cluster()), dir) {
		t.Error("a PostgreSQL of another folder counts as the one of this folder")
	}
}

func TestPrivatePostgresKeepsMessagesBetweenRuns(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	r := startProcess(t, "-data-dir", dir)
	if m := readyLine.FindStringSubmatch(r.output.String()); m[2] != dir {
		t.Errorf("the line \"ready\" names the data folder %s, want %s", m[2], dir)
	}
	r.client().mustTopic("t")
	r.client().publish("t", 1)

	var output bytes.Buffer
	err := run(context.Background(), []string{"-listen", "127.0.0.1:0", "-data-dir", dir}, func(string) string { return "" }, nil, io.Discard, &output)
	if err == nil || !strings.Contains(err.Error(), "in use by another queued") {
		t.Errorf("a second server on the same folder = %v", err)
	}

	r.cmd.Process.Signal(os.Interrupt)
	if err := r.await(); err != nil {
		t.Errorf("the server ended with %v after SIGINT:\n%s", err, r.output)
	}
	if pid := leftover(filepath.Join(dir, "postgres")); pid != 0 {
		t.Errorf("PostgreSQL still runs as process %d", pid)
	}
	r = startProcess(t, "-data-dir", dir)
	checkDiff(t, "received", []int{1}, numbers(r.client().receive("t", "")))
}

// Variables of libpq apply only to the database that -database-url names.
func TestPrivatePostgresDoesNotListenToTheEnvironment(t *testing.T) {
	t.Parallel()
	dir, home := newDataDir(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".pgpass"), []byte("*:*:*:*:secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-listen", "127.0.0.1:0", "-data-dir", dir)
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "HOME="+home, "PGSYSCONFDIR="+home, "PGDATA="+home, "PGREALM=x", "SSLPGMINPROTOCOLVERSION=x")
	for _, p := range parameters {
		if p.variable != "" {
			cmd.Env = append(cmd.Env, p.variable+"=127.0.0.1")
		}
	}
	r := startCommand(t, cmd)
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-r.ended
	})
	r.awaitReady()
	c := r.client()
	c.mustTopic("t")
	c.publish("t", 1)
	var stored int
	db := newTestDB(t, (&privatePostgres{socket: filepath.Join(dir, "run")}).dsn("queued"))
	if err := db.QueryRow("SELECT count(*) FROM queued.messages").Scan(&stored); err != nil || stored != 1 {
		t.Errorf("the folder has %d messages, %v, want 1", stored, err)
	}
	if strings.Contains(r.output.String(), "WARN") {
		t.Errorf("the server warns:\n%s", r.output)
	}
}

func TestStartAfterKill(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	r := startProcess(t, "-data-dir", dir)
	r.client().mustTopic("t")
	r.client().publish("t", 1)
	r.cmd.Process.Kill()
	r.await()
	left := leftover(filepath.Join(dir, "postgres"))
	if left == 0 {
		t.Fatal("the killed server left no PostgreSQL running")
	}
	r = startProcess(t, "-data-dir", dir)
	checkDiff(t, "received", []int{1}, numbers(r.client().receive("t", "")))
	if now := leftover(filepath.Join(dir, "postgres")); now == left {
		t.Error("the PostgreSQL of the ended server still runs")
	}
}

// A statement returns no row, which cannot happen, so its batcher panics. The process
// must end, because it cannot work without the batcher.
func TestPanicOfTheEngineEndsTheProcessAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	r := startProcess(t, "-data-dir", dir)
	c := r.client()
	c.mustTopic("t")
	c.mustQueue("other")
	socket := filepath.Join(dir, "run", socketName)
	if err := os.Rename(socket, socket+".moved"); err != nil {
		t.Fatal(err)
	}
	inserts := map[string]bool{} // prepared statements, by connection and name
	dropping := map[int]bool{}   // connections that run one of them
	var armed atomic.Bool
	newWire(t, "unix", socket, socket+".moved", func(conn int, fromClient bool, kind byte, body []byte) bool {
		switch {
		case fromClient && kind == 'P':
			v, _ := fields(body, 2)
			inserts[fmt.Sprint(conn, v[0])] = v[1] == insertMessagesSQL
		case fromClient && kind == 'B':
			v, _ := fields(body, 2)
			dropping[conn] = inserts[fmt.Sprint(conn, v[1])] && armed.Load()
		case !fromClient && kind == 'D':
			return !dropping[conn]
		}
		return true
	})
	c.publish("t", 1)
	armed.Store(true)
	poll := c.poll(context.Background(), "other", "?wait_seconds=20")
	ctx, stop := context.WithTimeout(context.Background(), testTimeout)
	defer stop()
	if got, err := c.send(ctx, "POST", "/topics/t/messages", `{"data":{"n":2}}`); err == nil || ctx.Err() != nil {
		t.Errorf("publish = %d %s, %v, want a closed connection", got.status, got.body, err)
	}
	if p := <-poll; p.err == nil {
		t.Errorf("a long poll at the same server = %d %s, want a closed connection", p.status, p.body)
	}
	var exit *exec.ExitError
	if err := r.await(); !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		t.Errorf("the process ended with %v", err)
	}
	if output := r.output.String(); !strings.Contains(output, "panic: ") || !strings.Contains(output, "goroutine ") || !strings.Contains(output, "batcher.go:") {
		t.Errorf("the output shows no stack:\n%s", output)
	}
	left := leftover(filepath.Join(dir, "postgres"))
	if left == 0 {
		t.Error("the server that panicked left no PostgreSQL running")
	}
	r = startProcess(t, "-data-dir", dir)
	checkDiff(t, "received", []int{1, 2}, numbers(r.client().receive("t", "")))
	if now := leftover(filepath.Join(dir, "postgres")); now == left {
		t.Error("the PostgreSQL of the ended server still runs")
	}
}

func TestPrivatePostgresIsStartedAgainWhenItDies(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	c := startProcess(t, "-data-dir", dir).client()
	c.mustTopic("t")
	c.publish("t", 1)
	syscall.Kill(leftover(filepath.Join(dir, "postgres")), syscall.SIGKILL)
	poll := make(chan polled)
	go func() { // repeats the poll until the message comes
		for {
			p := <-c.poll(context.Background(), "t", "?wait_seconds=10")
			if p.status == 200 && len(p.messages) == 1 {
				poll <- p
				return
			}
		}
	}()
	checkDiff(t, "received", []int{1}, numbers(c.await(poll)))
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	r := startProcess(t, "-data-dir", dir)
	r.beginRequest("/topics", `{"id":"never comes"}`)
	r.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "the server drains", func() bool { return strings.Contains(r.output.String(), "draining") })
	began := time.Now()
	eventually(t, "the server ends", func() bool {
		r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.ended:
			return true
		default:
			return false
		}
	})
	if took := time.Since(began); took > drainTimeout/2 {
		t.Errorf("the server ended %v after the second signal", took)
	}
	if pid := leftover(filepath.Join(dir, "postgres")); pid != 0 {
		t.Errorf("PostgreSQL still runs as process %d", pid)
	}
}

func TestDevelopmentServerCleansUpAfterOneThatWasKilled(t *testing.T) {
	t.Parallel()
	temporary := filepath.Dir(newDataDir(t))
	kept, killed := devServer(t, temporary), devServer(t, temporary)
	dirOf := func(r *running) string { return readyLine.FindStringSubmatch(r.output.String())[2] }
	cluster := filepath.Join(dirOf(killed), "postgres")
	killed.cmd.Process.Kill()
	killed.await()
	if leftover(cluster) == 0 {
		t.Fatal("the PostgreSQL of the killed server has ended; the test needs a PostgreSQL that is left")
	}
	third := devServer(t, temporary)
	want := []string{filepath.Base(dirOf(kept)), filepath.Base(dirOf(third))}
	slices.Sort(want)
	checkDiff(t, "directories", want, mustList(t, temporary))
	if pid := leftover(cluster); pid != 0 {
		t.Errorf("the PostgreSQL of the killed server is process %d", pid)
	}
	for _, r := range []*running{kept, third} {
		r.client().must(200, "GET", "/readyz", "")
		r.cmd.Process.Signal(syscall.SIGTERM)
		r.await()
	}
}
