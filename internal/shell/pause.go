package shell

import (
	"context"
	"io"
	"net/http"
)

const pauseUsage = `queued pause stops the delivery of messages of a queue at all servers. Consumers wait.
Publishes, acks and nacks work as before. queued resume continues the delivery.

usage: queued pause [flags] QUEUE

examples:

  queued pause bills

`

// Pause pauses a queue.
func Pause(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	return newOperation("pause", pauseUsage, stdin, stdout, stderr).setPaused(ctx, args, getenv, "pause")
}

const resumeUsage = `queued resume continues the delivery of messages of a queue after queued pause.

usage: queued resume [flags] QUEUE

examples:

  queued resume bills

`

// Resume resumes a queue.
func Resume(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	return newOperation("resume", resumeUsage, stdin, stdout, stderr).setPaused(ctx, args, getenv, "resume")
}

// setPaused pauses or resumes the queue in the arguments.
func (o *operation) setPaused(ctx context.Context, args []string, getenv func(string) string, action string) error {
	id, err := o.startOn("queue", args, getenv)
	if err != nil {
		return err
	}
	if _, err := o.client.Change(ctx, http.MethodPut, "/queues/"+id+"/"+action, nil); err != nil {
		return err
	}
	return o.printf("%sd queue %s", action, id)
}
