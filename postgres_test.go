package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mustStartPostgres starts a PostgreSQL, which the caller must stop.
func mustStartPostgres(t testing.TB, dir string) *privatePostgres {
	t.Helper()
	p, err := startPostgres(context.Background(), dir, slog.New(slog.DiscardHandler), "-cfsync=off")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.awaitReady(context.Background()); err != nil {
		p.stop(true)
		t.Fatal(err)
	}
	return p
}

func TestDataFolderThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(t.TempDir(), "closed") // other users cannot access t.TempDir
	if err := os.Mkdir(closed, 0o500); err != nil {
		t.Fatal(err)
	}
	foreign := newDataDir(t)
	if err := os.MkdirAll(filepath.Join(foreign, "postgres"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(foreign, "postgres", "PG_VERSION"), []byte("9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][]string{
		filepath.Join(file, "data"): {"data directory", "not a directory", "QUEUED_DATABASE_URL", "-data-dir"},
		closed:                      {"data directory", "permission denied", "-data-dir"},
		foreign:                     {"created by PostgreSQL 9, whose binaries were not found", "postgresql-9"},
	} {
		p, err := startPostgres(context.Background(), dir, slog.New(slog.DiscardHandler))
		if err == nil {
			p.stop(true)
			t.Errorf("PostgreSQL starts in %s", dir)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
				t.Errorf("start in %s = %v, want an error of one line with %q", dir, err, part)
			}
		}
	}
}

func TestMissingBinariesAreOneClearError(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := findBinaries("", []string{t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "apt-get install postgresql") || !strings.Contains(err.Error(), "-database-url") {
		t.Errorf("findBinaries = %v, want an error with a remedy", err)
	}
}

func TestNewestBinariesAreChosenAndThoseOfTheCluster(t *testing.T) {
	t.Parallel()
	var places []string
	for _, version := range []string{"9", "22", "101beta1"} {
		dir := t.TempDir()
		for name, text := range map[string]string{"initdb": "", "postgres": "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + ".3 (Debian)'\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		places = append(places, dir)
	}
	if b, err := findBinaries("22", places); err != nil || b.dir != places[1] {
		t.Errorf("findBinaries(22) = %v, %v, want %s", b, err, places[1])
	}
	if b, err := findBinaries("101", places); err != nil || b.dir != places[2] {
		t.Errorf("findBinaries(101) = %v, %v, want %s", b, err, places[2])
	}
}

func TestLongDataFolderHasAShortSocket(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newDataDir(t), strings.Repeat("long", 30))
	for range 2 { // the second time the folder of the socket exists
		p := mustStartPostgres(t, dir)
		if strings.HasPrefix(p.socket, dir) {
			t.Errorf("the socket is in %s", p.socket)
		}
		t.Cleanup(func() { os.RemoveAll(p.socket) })
		if err := p.stop(false); err != nil {
			t.Error(err)
		}
	}
}

func TestDataFolderMayHaveAnyName(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newDataDir(t), "a, b 'c' \"d\"")
	if err := mustStartPostgres(t, dir).stop(false); err != nil {
		t.Error(err)
	}
}

func TestInterruptedInitializationIsDoneAgain(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "postgres.new", "base"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := mustStartPostgres(t, dir)
	if err := p.stop(false); err != nil {
		t.Error(err)
	}
}
