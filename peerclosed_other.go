//go:build !unix

package main

import (
	"net/http"
	"time"
)

// peerClosed reports whether net/http has noticed that the client of a request has
// disconnected. This system cannot tell whether the client still reads.
func peerClosed(r *http.Request) (ended, failed bool) {
	ended = r.Context().Err() != nil
	return ended, ended
}

func (c *conn) isReset(time.Duration) bool { return c.ctx.Err() != nil }
