//go:build !unix

package main

import (
	"net/http"
	"time"
)

// peerClosed reports whether the client of a request is known to have hung up. Whether
// it still reads cannot be found out here.
func peerClosed(r *http.Request) (ended, failed bool) {
	ended = r.Context().Err() != nil
	return ended, ended
}

func (c *conn) isReset(time.Duration) bool { return c.ctx.Err() != nil }
