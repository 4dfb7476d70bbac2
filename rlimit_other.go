//go:build !unix

package main

import "math"

// maxFiles returns how many files this process may have open: as many as it likes.
func maxFiles() int { return math.MaxInt }
