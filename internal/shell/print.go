package shell

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

var errOutputBlocked = errors.New("output blocked: its reader has stopped reading")

// print writes messages, one per line, and acks those that the reader of the pipe has
// read, or that are written if the output is not a pipe. If the output blocks, it
// extends the lease of the message being written and nacks the others. After ctx has
// ended it waits for the output for at most closeTimeout.
func (w *worker) print(ctx context.Context, messages []received) error {
	deadline, cancel := context.WithCancel(w.forced)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(closeTimeout, cancel) })()
	if len(messages) == 0 {
		return nil
	}
	slow := time.NewTimer(min(slowPrint, messages[0].lease()/3))
	defer slow.Stop()
	w.printBatch = min(2*w.printBatch, maxPrintBatch)
	printed := 0
	var err error
	for printed < len(messages) && err == nil && ctx.Err() == nil {
		m := &messages[printed]
		done := make(chan error, 1)
		go func() { done <- w.printOne(deadline, m) }() // it outlives this function if its write blocks
		select {
		case err = <-done:
		case <-deadline.Done():
			err = errOutputBlocked
		case <-slow.C:
			w.printBatch = 1
			err = errors.Join(w.finishAll(ctx, "ack", messages[:printed]), w.finishAll(ctx, "nack", messages[printed+1:]))
			messages, printed = messages[printed:printed+1], 0
			if err == nil {
				err = w.extendUntilPrinted(deadline, m, done)
			}
		}
		if err == nil {
			printed++
		}
	}
	return errors.Join(err, w.finishAll(ctx, "ack", messages[:printed]), w.finishAll(ctx, "nack", messages[printed:]))
}

// extendUntilPrinted extends the lease of a message until done, and returns the error
// from there.
func (w *worker) extendUntilPrinted(deadline context.Context, m *received, done <-chan error) error {
	printing, end := context.WithCancel(deadline)
	var extending sync.WaitGroup
	extending.Go(func() { w.extendLease(printing, m) })
	defer extending.Wait()
	defer end()
	select {
	case err := <-done:
		return err
	case <-deadline.Done():
		return errOutputBlocked
	}
}

// printOne writes a message and, if the output is a pipe, waits until it was read.
func (w *worker) printOne(deadline context.Context, m *received) error {
	_, err := fmt.Fprintf(w.stdout, "%s\n", m.text)
	if errors.Is(err, syscall.EPIPE) {
		return ErrOutputClosed
	}
	if err != nil || w.pipe == nil {
		return err
	}
	for pause := 50 * time.Microsecond; w.pipe.unread(); pause = min(2*pause, maxPipePause) {
		if w.pipe.closed(pause) && w.pipe.unread() { // not if the reader read the message and then closed the pipe
			return ErrOutputClosed
		}
		if deadline.Err() != nil {
			return errOutputBlocked
		}
	}
	return nil
}
