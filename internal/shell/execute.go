package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"queued/internal/client"
	"queued/internal/rawjson"
)

// execute runs the command for a message, keeps the message meanwhile, and acks
// or nacks it.
func (w *worker) execute(ctx context.Context, m *received) {
	working, done := context.WithCancel(context.Background())
	var keeping sync.WaitGroup
	keeping.Go(func() { w.extendLease(working, m) })
	cmd := shellCommand(w.forced, w.command)
	cmd.Stdin = bytes.NewReader(append(m.Data, '\n'))
	cmd.Stdout, cmd.Stderr = w.stdout, w.stderr
	cmd.Env = append(w.baseEnviron(os.Environ()), w.messageEnviron(m)...)
	cmd.WaitDelay = closeTimeout
	failure := w.children.run(cmd)
	if w.forced.Err() != nil {
		killGroup(cmd) // what of it did not heed the signal
	}
	if cmd.ProcessState != nil && cmd.ProcessState.Success() {
		failure = nil // what it left running, or did not read, does not count
	}
	done()
	keeping.Wait()

	what, body := "ack", []byte(nil)
	if err := w.environmentFault(cmd, failure); err != nil {
		w.fail(err)
		// Not at once, or the poll that is being given up could receive it again.
		what, body = "nack", fmt.Appendf(nil, `{"count_attempt":false,"delay_seconds":%d}`, firstRetryDelay/time.Second)
	} else if failure != nil {
		delay := retryDelay(m.DeliveryAttempts)
		what, body = "nack", fmt.Appendf(nil, `{"delay_seconds":%d}`, delay/time.Second)
		w.logf("message %s, attempt %d: %v; it comes again in %v", m.ID, m.DeliveryAttempts, failure, delay)
	}
	err := w.retryAfterEnd(ctx, func() error { return w.finish(m, what, body, nil) })
	if client.Status(err) == http.StatusConflict {
		w.logf("message %s: its lease was over before the command ended, and others may have received it", m.ID)
	} else if err != nil {
		w.logf("message %s cannot be %sed and will be delivered again: %v", m.ID, what, err)
	}
}

// notItsFault returns why a command failed, if that is no fault of its message and
// others would fail likewise, else nil.
func (w *worker) environmentFault(cmd *exec.Cmd, failure error) error {
	switch {
	case failure == nil:
		return nil
	case w.pipe != nil && w.pipe.closed(0):
		return ErrOutputClosed
	case cmd.ProcessState == nil && w.forced.Err() != nil:
		return w.forced.Err() // it was not begun
	case cmd.ProcessState == nil && !errors.Is(failure, syscall.E2BIG): // which may be for the message's attributes
		return fmt.Errorf("-exec: the shell cannot be started: %w", failure)
	case cmd.ProcessState != nil && slices.Contains(shellFailures, cmd.ProcessState.ExitCode()):
		return fmt.Errorf("-exec: %w: what the shell should run cannot be executed or is not found; the message was given back", failure)
	}
	return nil
}

// retryDelay is for how long a message is hidden whose command failed.
func retryDelay(attempts int) time.Duration {
	return min(firstRetryDelay<<min(max(attempts, 1)-1, 30), maxRetryDelay)
}

// commandEnviron returns an environment without what only messages have: the trace
// of whoever started the worker is not that of a message. And what the worker shall
// do, such as -exec, is not for a queued receive in the command.
func (w *worker) baseEnviron(all []string) (kept []string) {
	for _, variable := range all {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "QUEUED_ATTRIBUTE") && name != "TRACEPARENT" && name != "TRACESTATE" && !slices.Contains(w.variables, name) {
			kept = append(kept, variable)
		}
	}
	return kept
}

// environ returns what the command of a message has in its environment.
func (w *worker) messageEnviron(m *received) (variables []string) {
	add := func(name, value string) {
		if len(name)+len(value) <= maxVariable && !strings.ContainsRune(value, 0) {
			variables = append(variables, name+"="+value)
		}
	}
	add("QUEUED_URL", w.client.URL)
	add("QUEUED_TOKEN", w.client.Token)
	add("QUEUED_TLS_CERT", w.client.Cert)
	add("QUEUED_MESSAGE_ID", m.ID)
	add("QUEUED_QUEUE_ID", m.QueueID)
	add("QUEUED_DELIVERY_ATTEMPTS", strconv.Itoa(m.DeliveryAttempts))
	add("QUEUED_GROUP", m.Group)
	add("QUEUED_REQUEST_ID", m.RequestID)
	if m.Traceparent != "" {
		add("TRACEPARENT", m.Traceparent)
	}
	add("QUEUED_ATTRIBUTES", string(m.Attributes))
	if !rawjson.IsNull(m.Attributes) {
		room := maxEnviron
		rawjson.WalkObject(m.Attributes, func(name string, value []byte) {
			if room -= len("QUEUED_ATTRIBUTE_=") + len(name) + len(value) + 16; room >= 0 {
				add("QUEUED_ATTRIBUTE_"+variableName(name), rawjson.Unquote(value))
			}
		})
	}
	return variables
}

// variableName returns the name of an attribute as that of a variable.
func variableName(name string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z':
			return c - 'a' + 'A'
		case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			return c
		}
		return '_'
	}, name)
}
