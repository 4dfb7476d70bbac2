package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"queued/internal/flags"
)

// reloadedFiles are the files that are read at the start, and again on SIGHUP:
// tokens, and the certificate of HTTPS with its key.
type reloadedFiles struct {
	tokenFile         string // empty: the server is open
	certFile, keyFile string // empty: HTTP

	tokens      atomic.Pointer[tokens]
	certificate atomic.Pointer[tls.Certificate]
}

// read reads the files. If one of them is wrong nothing changes.
func (v *reloadedFiles) read() error {
	var all *tokens
	if v.tokenFile != "" {
		var err error
		if all, err = readTokens(v.tokenFile); err != nil {
			return fmt.Errorf("-token-file: %w", err)
		}
	}
	if v.certFile != "" {
		certificate, err := tls.LoadX509KeyPair(v.certFile, v.keyFile)
		if err != nil {
			return fmt.Errorf("-tls-cert, -tls-key: %w", err)
		}
		v.certificate.Store(&certificate)
	}
	v.tokens.Store(all)
	return nil
}

// watch reads the files on each hang-up, until ctx is done. Without any there is
// nothing to read: then a hang-up is that of the terminal, and ends the server.
func (v *reloadedFiles) watch(ctx context.Context, hangUps <-chan os.Signal, log *slog.Logger, end func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangUps:
		}
		if v.tokenFile == "" && v.certFile == "" {
			end()
		} else if err := v.read(); err != nil {
			log.Error("the files cannot be read again, and what was read before stays in force", "error", err)
		} else {
			log.Info("the files were read again")
		}
	}
}

// tlsConfig serves HTTP/1.1 with the certificate of the moment.
func (v *reloadedFiles) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return v.certificate.Load(), nil
		},
	}
}

func (v *reloadedFiles) scheme() string {
	if v.certFile != "" {
		return "https"
	}
	return "http"
}

// auth returns the kind of authentication: "none" or "tokens".
func (v *reloadedFiles) auth() string {
	if v.tokenFile != "" {
		return "tokens"
	}
	return "none"
}

// hideSecrets starts the program again, as the same process, with its secrets in
// the environment if they are among its arguments: those can be read by every user
// of the machine, the environment by the same user and root. On Windows, where a
// process cannot do that, nobody else can read the arguments either.
func hideSecrets() error {
	args, name, value := withoutSecret(os.Args)
	if name == "" || runtime.GOOS == "windows" {
		return nil
	}
	err := os.Setenv(flags.Variable(name), value)
	if program, failed := os.Executable(); err == nil && failed == nil {
		err = syscall.Exec(program, args, os.Environ())
	}
	if _, failed := os.Stat("/proc/self/exe"); failed == nil { // Linux: also if the file was replaced
		err = syscall.Exec("/proc/self/exe", args, os.Environ())
	}
	return fmt.Errorf("-%s cannot be kept from the list of processes, so put it into $%s: %w", name, flags.Variable(name), err)
}

// withoutSecret takes the flag whose value is secret from the arguments of a
// process, and returns its name, empty if it is not there.
func withoutSecret(args []string) (kept []string, name, value string) {
	secret := "database-url"
	if len(args) > 1 && slices.Contains([]string{"bench", "publish", "receive", "queues", "stats"}, args[1]) {
		secret = "token"
	}
	kept = slices.Clone(args)
	for i := 1; i < len(kept) && kept[i] != "--"; {
		flag, text, hasText := strings.Cut(kept[i], "=")
		switch {
		case flag != "-"+secret && flag != "--"+secret:
			i++
		case hasText:
			kept, name, value = slices.Delete(kept, i, i+1), secret, text
		case i+1 < len(kept):
			name, value = secret, kept[i+1]
			kept = slices.Delete(kept, i, i+2)
		default:
			i++ // the value is missing, which is said later
		}
	}
	return kept, name, value
}
