package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// refuse returns an error for requests from web pages of other sites. Programs use the
// server; a browser on the same machine can reach it only because it is there.
func (s *server) refuse(r *http.Request) error {
	if !s.hosts.allow(r) {
		return statusError{http.StatusForbidden, fmt.Sprintf("host %q is not allowed; see -allowed-hosts", r.Host)}
	}
	if err := crossOrigin.Check(r); err != nil {
		return errOtherSite
	}
	return nil
}

// crossOrigin checks Sec-Fetch-Site, and Origin if a browser does not send that. It
// allows all GETs; consuming does not.
var crossOrigin = http.NewCrossOriginProtection()

var errOtherSite = statusError{http.StatusForbidden, "cross-site requests are not allowed"}

// hostPolicy decides which names requests may use for the server. On a loopback
// address these are localhost, loopback addresses and the allowed ones, of which "*" is
// any name; this keeps out web pages whose own name points to 127.0.0.1. On other
// addresses it is any name.
type hostPolicy struct {
	onLoopback bool
	allowed    []string
}

// allow reports whether a request addresses the server by an allowed name. A request
// without a name does not come from a browser, but from a health check in HTTP/1.0. A
// final dot is ignored in allowed names only: a browser may not take "localhost." for
// this machine, and sends Sec-Fetch-Site only if it does.
func (p hostPolicy) allow(r *http.Request) bool {
	host := r.Host
	if !p.onLoopback {
		return true
	}
	if host == "" {
		return r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == ""
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || slices.Contains(p.allowed, "*") || slices.Contains(p.allowed, strings.TrimSuffix(host, ".")) {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// consuming wraps a handler of a GET that has side effects. It refuses HEAD, and web
// pages of other sites.
func consuming(h handler) handler {
	return func(r *request) (any, error) {
		if r.Method == http.MethodHead {
			r.w.Header().Set("Allow", http.MethodGet)
			return nil, errMethod
		}
		// WebSockets and older browsers send no Sec-Fetch-Site, but an Origin.
		asPost := *r.Request
		asPost.Method = http.MethodPost
		if err := crossOrigin.Check(&asPost); err != nil {
			return nil, errOtherSite
		}
		return h(r)
	}
}
