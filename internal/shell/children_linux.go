package shell

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"
)

// children runs commands and reaps orphaned processes, which this process inherits if
// it is the first process of a container or a subreaper (prctl(2)).
type children struct {
	inherits bool // set by inherit

	mu   sync.Mutex
	ours map[int]bool // process ids that run waits for
}

// run is like cmd.Run.
func (c *children) run(cmd *exec.Cmd) error {
	if !c.inherits {
		return cmd.Run()
	}
	c.mu.Lock() // so that the process is in ours before it can be reaped
	err := cmd.Start()
	if err == nil {
		c.ours[cmd.Process.Pid] = true
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	err = cmd.Wait()
	c.mu.Lock()
	delete(c.ours, cmd.Process.Pid)
	c.mu.Unlock()
	c.reap() // other ended children may come after this one
	return err
}

// inherit reaps inherited processes until stop is called.
func (c *children) inherit() (stop func()) {
	if c.inherits = os.Getpid() == 1 || isSubreaper(); !c.inherits {
		return func() {}
	}
	c.ours = make(map[int]bool)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	var reaping sync.WaitGroup
	reaping.Go(func() {
		for range ended {
			c.reap()
		}
	})
	return func() {
		signal.Stop(ended)
		close(ended)
		reaping.Wait()
	}
}

// reap reaps the children that have ended, up to one of ours: run reaps that one, and
// then calls reap again.
func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		pid := endedChild()
		if pid == 0 || c.ours[pid] {
			return
		}
		if _, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); err != nil {
			return
		}
	}
}

// endedChild returns the process id of a child that has ended, or 0 if there is none. It
// does not reap the child. See waitid(2).
func endedChild() (pid int) {
	const all = 0     // P_ALL
	var info struct { // siginfo_t
		signo, errno, code int32
		child              struct {
			_   [0]uintptr // which aligns it
			pid int32
		}
		_ [128]byte
	}
	_, _, err := syscall.Syscall6(syscall.SYS_WAITID, all, 0, uintptr(unsafe.Pointer(&info)), syscall.WEXITED|syscall.WNOHANG|syscall.WNOWAIT, 0, 0)
	if err != 0 {
		return 0
	}
	return int(info.child.pid)
}

// isSubreaper reports whether orphans among the descendants of this process become
// its children.
func isSubreaper() bool {
	const get = 37 // PR_GET_CHILD_SUBREAPER
	var is int32
	_, _, err := syscall.Syscall(syscall.SYS_PRCTL, get, uintptr(unsafe.Pointer(&is)), 0)
	return err == 0 && is != 0
}
