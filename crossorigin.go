package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// refuse returns an error for requests from web pages of other sites. The server is for
// programs, but a browser on the same machine can reach it too.
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

// hostPolicy decides which host names requests may use for the server. On a loopback
// address these are localhost, loopback addresses and the allowed names; "*" allows any
// name. This refuses web pages whose own host name points to 127.0.0.1. On other addresses
// any name is allowed.
type hostPolicy struct {
	onLoopback bool
	allowed    []string
}

// allow reports whether a request addresses the server by an allowed name. A request
// without a name is allowed: it comes from a health check in HTTP/1.0, and not from a
// browser. A final dot is ignored only in allowed names: browsers differ in whether
// "localhost." is this machine, and send Sec-Fetch-Site only if it is.
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
		if err := refuseOtherSites(r); err != nil {
			return nil, err
		}
		return h(r)
	}
}

// refuseOtherSites returns an error for a request of any method from a page of another site.
func refuseOtherSites(r *request) error {
	// WebSockets and older browsers send an Origin, but no Sec-Fetch-Site.
	asPost := *r.Request
	asPost.Method = http.MethodPost
	if err := crossOrigin.Check(&asPost); err != nil {
		return errOtherSite
	}
	return nil
}

// isUnsignedBrowserGet reports whether a browser has sent a GET that no access key has signed.
// It may be for a page of another site: for images, browsers send no Origin, and Sec-Fetch-Site
// only to servers with HTTPS or on the same machine. A page cannot change the name of the
// browser, and all of them begin with Mozilla.
func (r *request) isUnsignedBrowserGet() bool {
	return r.Method == http.MethodGet && r.signature == nil && strings.HasPrefix(r.UserAgent(), "Mozilla/")
}
