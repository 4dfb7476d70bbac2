//go:build !unix

package main

import "net/http"

// gone reports whether the client of a request is known to have hung up.
func gone(r *http.Request) bool { return r.Context().Err() != nil }
