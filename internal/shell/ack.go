package shell

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const ackUsage = `queued ack acks messages by their ids, which deletes them, whether or not they are
leased. An id without a message is ignored. With "-" the ids are read from the standard
input.

usage: queued ack [flags] ID...
       queued ack [flags] -

examples:

  queued ack 01a21621-8dce-7b68-a2d8-ceda9e934dbf
  queued peek -json bills | jq -r 'select(.data.test) | .id' | queued ack -yes -

`

// Ack acks messages.
func Ack(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("ack", ackUsage, stdin, stdout, stderr)
	o.confirmation.flags(o.Set)
	ids, err := o.startOnMessages(args, getenv)
	if err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Ack %s at %s? An ack deletes the message.", count(len(ids), "message"), o.client.Server()); err != nil {
		return err
	}
	return o.changeMessages(ctx, "acked", http.MethodPut, "/messages/ack", ids, map[string]any{})
}

const nackUsage = `queued nack ends the leases and the delays of messages by their ids: they are ready after
-delay or, without it, after the retry backoff of the queue, at once if it has none. A
leased message moves to the dead queue of its queue if this was its last delivery. An id
without a message is ignored. With "-" the ids are read from the standard input.

usage: queued nack [flags] ID...
       queued nack [flags] -

examples:

  queued nack 01a21621-8dce-7b68-a2d8-ceda9e934dbf
  queued nack -delay 10m -error "printer is out of paper" 01a21621-8dce-7b68-a2d8-ceda9e934dbf

`

// Nack nacks messages.
func Nack(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("nack", nackUsage, stdin, stdout, stderr)
	o.Arguments(1, math.MaxInt, "ID...")
	var delay flags.OptionalDuration
	o.Var(&delay, "delay", "`duration` until the messages are ready, in whole seconds; the default is the\nretry backoff of the queue, or none")
	reason := o.String("error", "", "`text` to keep with the messages as their last error; unchanged if empty")
	if err := o.start(args, getenv); err != nil {
		return err
	}
	o.Check(delay.D >= 0 && delay.D%time.Second == 0, "delay", "must be whole seconds")
	if err := o.Err(); err != nil {
		return err
	}
	ids, err := o.messageIDs()
	if err != nil {
		return err
	}
	request := map[string]any{}
	if delay.Given {
		request["delay_seconds"] = delay.D / time.Second
	}
	if *reason != "" {
		request["error"] = *reason
	}
	return o.changeMessages(ctx, "nacked", http.MethodPut, "/messages/nack", ids, request)
}

// changeMessages sends a request for each batch of messages, and prints how many messages
// are changed, also if a later batch fails. A response may say how many were.
func (o *operation) changeMessages(ctx context.Context, changed, method, path string, ids []string, request map[string]any) error {
	done := 0
	for batch := range slices.Chunk(ids, client.MaxBatch) {
		request["ids"] = batch
		body, err := json.Marshal(request)
		if err != nil {
			return err
		}
		header, err := o.client.Change(ctx, method, path, body)
		if err != nil {
			if done > 0 {
				o.printf("%s %s", changed, count(done, "message"))
			}
			return err
		}
		if header.Get("X-Messages-Deleted") != "" {
			done += number(header, "X-Messages-Deleted")
		} else {
			done += len(batch)
		}
	}
	return o.printf("%s %s", changed, count(done, "message"))
}

var uuidPattern = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// messageIDs returns the ids in the arguments, or those on the standard input if the
// argument is "-".
func (o *operation) messageIDs() ([]string, error) {
	ids := o.Args()
	if len(ids) == 1 && ids[0] == "-" {
		ids = nil
		words := bufio.NewScanner(o.stdin)
		words.Split(bufio.ScanWords)
		for words.Scan() {
			ids = append(ids, words.Text())
		}
		if err := words.Err(); err != nil {
			return nil, err
		}
	}
	for _, id := range ids {
		if err := checkMessageID(id); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func checkMessageID(id string) error {
	if !uuidPattern.MatchString(id) {
		return flags.Errorf("%q is not a message id, which is a UUID; queued peek shows the ids", cmp.Or(strings.TrimSpace(id), id))
	}
	return nil
}
