package shell

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"queued/internal/client"
	"queued/internal/flags"
)

const statsUsage = `queued stats prints the number of messages of a queue in each state, the number of
messages in its dead queue, and the age of the oldest message that can be received.

usage: queued stats [flags] QUEUE

examples:

  queued stats orders
  queued stats -json orders | jq .messages.ready

`

// Stats prints the statistics of a queue.
func Stats(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	c := &client.Client{}
	var asJSON bool
	f := flags.New("queued stats", statsUsage, stdout)
	f.Arguments(1, 1, "QUEUE")
	c.Flags(f)
	f.BoolVar(&asJSON, "json", false, "print the statistics as JSON, on one line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if !client.ValidID(f.Arg(0)) {
		return flags.Errorf("%q is not a valid queue id: %s", f.Arg(0), client.IDForm)
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	v, err := readStats(ctx, c, f.Arg(0))
	if err != nil {
		return err
	}
	if asJSON {
		_, err := fmt.Fprintf(stdout, "%s\n", v.text)
		return err
	}
	table := newTable(stdout, "READY", "DELAYED", "IN FLIGHT", "EXHAUSTED", "DEAD QUEUE", "OLDEST")
	m := v.Messages
	err = cmp.Or(table.row(m.Ready, m.Delayed, m.InFlight, m.Exhausted, v.DeadQueueMessages, seconds(&v.Oldest)), table.Flush())
	if v.Paused {
		fmt.Fprintf(stderr, "queued: queue %q is paused; queued resume %[1]s continues its delivery\n", f.Arg(0))
	}
	return err
}
