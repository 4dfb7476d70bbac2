//go:build unix

package bench

import (
	"syscall"
	"time"
)

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var v syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &v) != nil {
		return 0
	}
	return time.Duration(v.Utime.Nano() + v.Stime.Nano())
}
