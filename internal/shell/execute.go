package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"queued/internal/rawjson"
)

// execute runs the command for a message, extends the lease until the command ends,
// and reports whether to ack or nack the message.
func (w *worker) execute(ctx context.Context, m *received) {
	running, done := context.WithCancel(context.Background())
	var extending sync.WaitGroup
	extending.Go(func() { w.extendLease(running, m) })
	cmd := shellCommand(w.forced, w.command)
	cmd.Stdin = bytes.NewReader(append(m.Data, '\n'))
	cmd.Stdout = w.stdout
	stderr := w.captureErrors(cmd)
	cmd.Env = append(w.baseEnviron(os.Environ()), w.messageEnviron(m)...)
	cmd.WaitDelay = closeTimeout
	failure := w.children.run(cmd)
	stderr.close()
	if w.forced.Err() != nil {
		killGroup(cmd) // processes that ignored SIGTERM
	}
	if cmd.ProcessState != nil && cmd.ProcessState.Success() {
		failure = nil // also if it left processes running or input unread
	}
	done()
	extending.Wait()

	o := outcome{m: m, action: "ack"}
	if err := w.environmentFault(cmd, failure); err != nil {
		w.fail(err)
		// The delay keeps the poll that is being aborted from receiving the message again.
		o.action, o.nack = "nack", nackOptions{int(firstRetryDelay / time.Second), new(false), stderr.describe(failure)}
	} else if failure != nil {
		delay, isBackoff := w.settings.backoff(m.DeliveryAttempts)
		o.action, o.nack = "nack", nackOptions{Error: stderr.describe(failure)}
		if !isBackoff {
			delay = retryDelay(m.DeliveryAttempts)
			o.nack.DelaySeconds = int(delay / time.Second)
		}
		w.logf("message %s, attempt %d: %v; retrying in %v", m.ID, m.DeliveryAttempts, failure, delay)
	}
	w.report(ctx, o)
}

// environmentFault returns an error if a command failed for a reason other than its
// message, so that it would fail for every message.
func (w *worker) environmentFault(cmd *exec.Cmd, failure error) error {
	switch {
	case failure == nil:
		return nil
	case w.pipe != nil && w.pipe.closed(0):
		return ErrOutputClosed
	case cmd.ProcessState == nil && w.forced.Err() != nil:
		return w.forced.Err() // it was not started
	case cmd.ProcessState == nil && !errors.Is(failure, syscall.E2BIG): // the attributes of a message may be too large
		return fmt.Errorf("-exec: cannot start the shell: %w", failure)
	case cmd.ProcessState != nil && slices.Contains(shellFailures, cmd.ProcessState.ExitCode()):
		return fmt.Errorf("-exec: %w: command not found or not executable; its message was nacked without counting the attempt", failure)
	}
	return nil
}

// retryDelay returns the delay of a message whose command failed, in a queue without a
// retry backoff.
func retryDelay(attempts int) time.Duration {
	return min(firstRetryDelay<<min(max(attempts, 1)-1, 30), maxRetryDelay)
}

// baseEnviron returns an environment without the variables of a message and a trace,
// which may be those of the worker's own message, and without the variables of the
// worker's flags, which are not meant for a queued receive in the command.
func (w *worker) baseEnviron(all []string) (kept []string) {
	for _, variable := range all {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "QUEUED_ATTRIBUTE") && name != "TRACEPARENT" && name != "TRACESTATE" && !slices.Contains(w.variables, name) {
			kept = append(kept, variable)
		}
	}
	return kept
}

// messageEnviron returns the variables of a message for its command.
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
		left := maxEnviron
		rawjson.WalkObject(m.Attributes, func(name string, value []byte) {
			if left -= len("QUEUED_ATTRIBUTE_=") + len(name) + len(value) + 16; left >= 0 {
				add("QUEUED_ATTRIBUTE_"+variableName(name), rawjson.Unquote(value))
			}
		})
	}
	return variables
}

// variableName converts the name of an attribute to that of a variable.
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
