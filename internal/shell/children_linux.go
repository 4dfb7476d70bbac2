package shell

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"
)

// children runs commands, and takes the exit status of processes that nobody else
// takes it of, where this process inherits those: as the first in a container, or as
// a subreaper (prctl(2)). Otherwise each would stay in the table of processes.
type children struct {
	inherits bool // set by inherit

	mu   sync.Mutex
	ours map[int]bool // started, and waited for by run
}

// run is cmd.Run.
func (c *children) run(cmd *exec.Cmd) error {
	if !c.inherits {
		return cmd.Run()
	}
	c.mu.Lock() // or it could end before it is known to be ours
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
	c.reap() // it may have hidden others
	return err
}

// inherit takes the exit statuses of inherited processes until the function that it
// returns is called.
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

// reap takes the exit statuses of ended children, up to one of ours: run takes that,
// and then reaps again.
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

// endedChild returns a child that has ended and whose exit status nobody has taken,
// and leaves it so; 0 if there is none. See waitid(2).
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
