//go:build !unix

package main

import (
	"context"
	"net"
	"net/http"
)

func withConn(ctx context.Context, c net.Conn) context.Context { return ctx }

// gone reports whether the client of a request is known to have hung up.
func gone(r *http.Request) bool { return r.Context().Err() != nil }
