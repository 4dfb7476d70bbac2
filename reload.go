package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
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
			log.Error("reload failed, keeping the previous tokens and certificate", "error", err)
		} else {
			log.Info("tokens and certificate reloaded")
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
