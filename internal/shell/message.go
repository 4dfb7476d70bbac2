package shell

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"queued/internal/client"
	"queued/internal/rawjson"
)

const messageUsage = `queued message shows a message with its state, its data and, if it has one, the error of
its last nack.

usage: queued message [flags] ID

examples:

  queued message 01a21621-8dce-7b68-a2d8-ceda9e934dbf
  queued message -json 01a21621-8dce-7b68-a2d8-ceda9e934dbf | jq .data

`

// Message prints a message.
func Message(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("message", messageUsage, stdin, stdout, stderr)
	o.Arguments(1, 1, "ID")
	asJSON := o.Bool("json", false, "print the message as JSON, on one line")
	if err := o.start(args, getenv); err != nil {
		return err
	}
	if err := checkMessageID(o.Arg(0)); err != nil {
		return err
	}
	var text []byte
	err := o.client.Call(ctx, http.MethodGet, "/messages/"+o.Arg(0), nil, func(body io.Reader) (err error) {
		text, err = io.ReadAll(body)
		var m shownMessage
		if err == nil && (json.Unmarshal(text, &m) != nil || m.State == "") {
			return client.ErrNotQueued
		}
		return err
	})
	if err != nil {
		return err
	}
	if *asJSON {
		return o.printf("%s", text)
	}
	table := newTable(stdout, "FIELD", "VALUE")
	var failed error
	rawjson.WalkObject(text, func(name string, value []byte) {
		if err := table.row(strings.ReplaceAll(strings.ToUpper(name), "_", " "), line(new(valueOf(value)), 1<<20)); failed == nil {
			failed = err
		}
	})
	if failed != nil {
		return failed
	}
	return table.Flush()
}

// valueOf returns a string without its quotation marks, a dash for null, and other JSON on
// one line.
func valueOf(value []byte) string {
	var text *string
	if json.Unmarshal(value, &text) == nil {
		if text == nil {
			return "-"
		}
		return *text
	}
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return string(value)
	}
	return b.String()
}
