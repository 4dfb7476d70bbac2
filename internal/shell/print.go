package shell

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

var errOutputBlocked = errors.New("nobody reads what is printed")

// print writes messages, a line each, and acks what was read, or is written where
// nobody knows whether it is read. If that takes long, only the message that it takes
// so long for is kept, and others can receive the rest. Once ctx has ended it does
// not wait for whoever reads the output, or not for long.
func (w *worker) print(ctx context.Context, messages []received) error {
	late, cancel := context.WithCancel(w.forced)
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
		go func() { done <- w.printOne(late, m) }() // which is left behind if its write does not end
		select {
		case err = <-done:
		case <-late.Done():
			err = errOutputBlocked
		case <-slow.C:
			w.printBatch = 1
			err = errors.Join(w.finishAll(ctx, "ack", messages[:printed]), w.finishAll(ctx, "nack", messages[printed+1:]))
			messages, printed = messages[printed:printed+1], 0
			if err == nil {
				err = w.extendUntilPrinted(m, late, done)
			}
		}
		if err == nil {
			printed++
		}
	}
	return errors.Join(err, w.finishAll(ctx, "ack", messages[:printed]), w.finishAll(ctx, "nack", messages[printed:]))
}

// keepUntil keeps a message until it was printed, and returns what came of that.
func (w *worker) extendUntilPrinted(m *received, late context.Context, done <-chan error) error {
	working, end := context.WithCancel(late)
	var keeping sync.WaitGroup
	keeping.Go(func() { w.extendLease(working, m) })
	defer keeping.Wait()
	defer end()
	select {
	case err := <-done:
		return err
	case <-late.Done():
		return errOutputBlocked
	}
}

// printOne writes a message, and waits until it was read, if the output is a pipe.
func (w *worker) printOne(late context.Context, m *received) error {
	_, err := fmt.Fprintf(w.stdout, "%s\n", m.text)
	if errors.Is(err, syscall.EPIPE) {
		return ErrOutputClosed
	}
	if err != nil || w.pipe == nil {
		return err
	}
	for pause := 50 * time.Microsecond; w.pipe.unread(); pause = min(2*pause, maxPipePause) {
		if w.pipe.closed(pause) && w.pipe.unread() { // it may have read its last message just before
			return ErrOutputClosed
		}
		if late.Err() != nil {
			return errOutputBlocked
		}
	}
	return nil
}
