//go:build unix

package main

import (
	"math"
	"syscall"
)

// maxFiles returns the maximum number of open files. The os package has raised the soft
// limit to the hard limit at the start of the program.
func maxFiles() int {
	var v syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &v) != nil {
		return math.MaxInt
	}
	return int(min(uint64(v.Cur), math.MaxInt))
}
