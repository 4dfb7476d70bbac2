package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

// reloadedFiles are the files that are read at the start and on SIGHUP: the tokens, and
// the certificate for HTTPS with its key.
type reloadedFiles struct {
	tokenFile         string // authentication is off if empty
	certFile, keyFile string // HTTP is served if empty

	tokens      atomic.Pointer[tokens]
	certificate atomic.Pointer[tls.Certificate]
}

// read reads the files. It changes nothing if it returns an error.
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

// watch reads the files on each SIGHUP. Without files, a SIGHUP from a closed terminal
// calls end. A service has no terminal, and nothing to reload then. The caller ends watch
// with stop, which returns when it has ended.
func (v *reloadedFiles) watch(log *slog.Logger, end func()) (stop func()) {
	terminal, err := os.Open("/dev/tty")
	if err == nil {
		terminal.Close()
	}
	onTerminal := err == nil
	signals, ended := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for range signals {
			if v.tokenFile == "" && v.certFile == "" {
				if onTerminal {
					end()
				} else {
					log.Info("nothing to reload")
				}
			} else if err := v.read(); err != nil {
				log.Error("reload failed, keeping the previous tokens and certificate", "error", err)
			} else {
				log.Info("tokens and certificate reloaded")
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-ended
	}
}

// tlsConfig returns the settings of HTTPS, which is HTTP/1.1 with the certificate that
// was read last.
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
