//go:build !unix

package main

import "math"

// maxFiles returns the maximum number of open files, which is unlimited.
func maxFiles() int { return math.MaxInt }
