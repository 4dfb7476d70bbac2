package shell

import (
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// pipe is the writing end of a pipe.
type pipe struct{ raw syscall.RawConn }

// asPipe returns w as a pipe, nil if it is not one.
func asPipe(w io.Writer) *pipe {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	return &pipe{raw}
}

// closed waits for at most d, forever if d is negative, until the reading end of the
// pipe is closed, and reports whether it is.
func (p *pipe) closed(d time.Duration) (closed bool) {
	p.raw.Control(func(fd uintptr) {
		v := struct { // struct pollfd
			fd      int32
			events  int16 // none; an error is always reported
			revents int16
		}{fd: int32(fd)}
		var timeout *syscall.Timespec
		if d >= 0 {
			t := syscall.NsecToTimespec(int64(d))
			timeout = &t
		}
		for {
			n, _, err := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&v)), 1, uintptr(unsafe.Pointer(timeout)), 0, 0, 0)
			if err == syscall.EINTR && d < 0 {
				continue
			}
			closed = err == 0 && n > 0
			return
		}
	})
	return closed
}

// unread reports whether the pipe has unread bytes.
func (p *pipe) unread() bool {
	var n int32
	p.raw.Control(func(fd uintptr) {
		syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	})
	return n > 0
}
