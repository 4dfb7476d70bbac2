package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// On Linux all of 127.0.0.0/8 is this machine, so some address has a free port 5432.
func TestCertificateOfTheDatabaseIsVerified(t *testing.T) {
	t.Parallel()
	address := fmt.Sprintf("127.77.%d.%d", os.Getpid()>>8&255, os.Getpid()&255)
	p, err := startPostgres(context.Background(), newDataDir(t), slog.New(slog.DiscardHandler), "-cfsync=off", "-clisten_addresses="+address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop(true) })
	if err := p.awaitReady(context.Background()); err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(p.cluster(), "server.crt"), filepath.Join(p.cluster(), "server.key")
	newCertificate(t, certFile, keyFile)
	for _, file := range []string{certFile, keyFile} {
		if p.runAs == nil {
			break
		}
		if err := os.Chown(file, p.runAs.uid, p.runAs.gid); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(t.TempDir(), "root.crt")
	if err := os.WriteFile(root, []byte(mustRead(t, certFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	db := newTestDB(t, p.dsn("queued"))
	for _, statement := range []string{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	url := "postgres://queued@" + address + "/queued"
	eventually(t, "PostgreSQL offers TLS", func() bool {
		db, err := openDB(url+"?sslmode=require", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		return db.Ping() == nil
	})
	for query, want := range map[string]string{
		"?sslrootcert=system":                              "certificate",
		"?sslmode=verify-ca&sslrootcert=" + root + ".none": "no such file",
		"?sslmode=verify-full&sslrootcert=" + root:         address, // the certificate of another address
	} {
		err := run(context.Background(), []string{"-listen", "127.0.0.1:0", "-database-url", url + query}, testEnv(""), nil, io.Discard, io.Discard)
		if err == nil || !strings.HasPrefix(err.Error(), "database: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("a server with %s = %v, want an error with %q", query, err, want)
		}
	}
	for _, query := range []string{"?ssl=true", "?sslmode=verify-ca&sslrootcert=" + root, "?hostaddr=" + address + "&host=127.0.0.1&sslmode=verify-full&sslrootcert=" + root} {
		r := runServer(t, "-database-url", url+query)
		var encrypted bool
		if err := db.QueryRow("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL").Scan(&encrypted); err != nil || !encrypted {
			t.Errorf("with %s all connections are encrypted: %v, %v; want true", query, encrypted, err)
		}
		r.stop()
		r.await()
	}
}
