//go:build unix

package main

import (
	"math"
	"syscall"
)

// maxFiles returns how many files this process may have open. The os package
// has raised the soft limit to the hard one when the program started.
func maxFiles() int {
	var v syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &v) != nil {
		return math.MaxInt
	}
	return int(min(uint64(v.Cur), math.MaxInt))
}
