package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"

	"queued/internal/bench"
	"queued/internal/flags"
	"queued/internal/shell"
)

// allCommands returns the commands of the program, in the order of the help. The one without
// a name is the server.
func allCommands() []shell.Command {
	return []shell.Command{
		{Run: runServe, Summary: "run the server"},
		{Name: "publish", Arguments: "TOPIC [FILE]", Run: shell.Publish, Summary: "publish messages from a file or stdin"},
		{Name: "receive", Arguments: "QUEUE", Run: shell.Receive, Summary: "print messages, or run a command for each"},
		{Name: "queues", Run: shell.Queues, Summary: "list the queues, with their message counts"},
		{Name: "topics", Run: shell.Topics, Summary: "list the topics, with their queues"},
		{Name: "stats", Arguments: "QUEUE", Run: shell.Stats, Summary: "show the message counts of a queue"},
		{Name: "consumers", Arguments: "QUEUE", Run: shell.Consumers, Summary: "show who received from a queue lately"},
		{Name: "peek", Arguments: "QUEUE", Run: shell.Peek, Summary: "show messages without receiving them"},
		{Name: "message", Arguments: "ID", Run: shell.Message, Summary: "show a message"},
		{Name: "ack", Arguments: "ID...", Run: shell.Ack, Summary: "ack messages"},
		{Name: "nack", Arguments: "ID...", Run: shell.Nack, Summary: "nack messages"},
		{Name: "create topic", Arguments: "ID", Run: shell.CreateTopic, Summary: "create a topic"},
		{Name: "create queue", Arguments: "ID", Run: shell.CreateQueue, Summary: "create a queue"},
		{Name: "delete topic", Arguments: "TOPIC", Run: shell.DeleteTopic, Summary: "delete a topic"},
		{Name: "delete queue", Arguments: "QUEUE", Run: shell.DeleteQueue, Summary: "delete a queue and its messages"},
		{Name: "delete message", Arguments: "ID...", Run: shell.DeleteMessage, Summary: "delete messages"},
		{Name: "pause", Arguments: "QUEUE", Run: shell.Pause, Summary: "stop the delivery of a queue"},
		{Name: "resume", Arguments: "QUEUE", Run: shell.Resume, Summary: "continue the delivery of a queue"},
		{Name: "purge", Arguments: "QUEUE", Run: shell.Purge, Summary: "delete all messages of a queue"},
		{Name: "redrive", Arguments: "QUEUE", Run: shell.Redrive, Summary: "move the messages of a dead queue back"},
		{Name: "health", Run: shell.Health, Summary: "check whether a server is alive or ready"},
		{Name: "schema", Run: runSchema, Summary: "print the SQL that creates the schema"},
		{Name: "bench", Run: bench.Run, Summary: "load a server and measure its throughput"},
		{Name: "completion", Arguments: "SHELL", Run: shell.Completion, Summary: "print the completion script of a shell"},
		{Name: "version", Run: runVersion, Summary: "print the version"},
		{Name: "help", Arguments: "[COMMAND]", Run: runHelp, Summary: "describe a command"},
	}
}

// findCommand returns the command that the arguments name, and the arguments after its
// name.
func findCommand(args []string) (c shell.Command, rest []string, err error) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		if len(args) > 0 && strings.TrimLeft(args[0], "-") == "version" {
			return shell.Command{Run: runVersion}, args[1:], nil
		}
		return shell.Command{Run: runServe}, args, nil
	}
	if args[0] == "complete" { // for the completion scripts
		return shell.Command{Run: shell.Complete(allCommands())}, args[1:], nil
	}
	c, words := shell.FindCommand(allCommands(), args)
	if words > 0 {
		return c, args[words:], nil
	}
	if second := shell.SecondWords(allCommands(), args[0]); second != nil {
		if len(args) > 1 && strings.HasPrefix(args[1], "-") {
			return shell.Command{Run: runHelp}, args[:1], nil
		}
		return c, nil, flags.Errorf("%s what? expected queued %[1]s %s; see queued help %[1]s", args[0], strings.Join(second, ", or queued "+args[0]+" "))
	}
	if regexp.MustCompile(`^[a-z-]+$`).MatchString(args[0]) {
		return c, nil, flags.Errorf("unknown command %q; queued help lists the commands", args[0])
	}
	return shell.Command{Run: runServe}, args, nil // its error hides an argument that may be a connection string
}

// usage returns the help of the program without the flags of the server.
func usage() string {
	var b strings.Builder
	b.WriteString("queued is a message queue server on PostgreSQL, and its client.\n\n")
	writeCommands(&b, allCommands())
	b.WriteString(`
"queued help COMMAND" describes a command and its flags, with examples. "queued -help"
lists the flags of the server.

Each flag can also be set by an environment variable, such as QUEUED_LISTEN for
-listen, if the help names one. Flags precede the arguments. Durations look like 500ms,
20s, 1m30s or 4d. The exit status is 1 after a failure, and 2 after a mistake in the
flags, the arguments or the environment.

examples:

  queued                                    run a server with a private PostgreSQL
  queued -dev                               the same to try it: nothing is kept after its exit
  queued create topic orders                create a topic,
  queued create queue -topic orders bills   and a queue that subscribes to it
  echo '{"order": 1}' | queued publish orders
  queued receive bills
`)
	return b.String()
}

func writeCommands(b *strings.Builder, all []shell.Command) {
	before := "usage: "
	for _, c := range all {
		name := strings.Join(strings.Fields("queued "+c.Name+" [flags] "+c.Arguments), " ")
		if c.Name == "version" || c.Name == "help" || c.Name == "completion" {
			name = strings.Replace(name, "[flags] ", "", 1)
			name = strings.TrimSuffix(name, " [flags]")
		}
		fmt.Fprintf(b, "%s%-38s %s\n", before, name, c.Summary)
		before = "       "
	}
}

const helpUsage = `queued help lists the commands. queued help COMMAND describes a command and its flags.

usage: queued help [COMMAND]

examples:

  queued help receive
  queued help create queue
`

func runHelp(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		return flags.New("queued help", helpUsage, stdout).Parse(args, getenv)
	}
	if len(args) == 0 {
		_, err := io.WriteString(stdout, usage())
		return err
	}
	if shell.SecondWords(allCommands(), args[0]) != nil && len(args) == 1 {
		var all []shell.Command
		for _, c := range allCommands() {
			if strings.HasPrefix(c.Name, args[0]+" ") {
				all = append(all, c)
			}
		}
		var b strings.Builder
		writeCommands(&b, all)
		_, err := io.WriteString(stdout, b.String())
		return err
	}
	c, words := shell.FindCommand(allCommands(), args)
	if words != len(args) {
		return flags.Errorf("unknown command %q; queued help lists the commands", strings.Join(args, " "))
	}
	if err := c.Run(ctx, []string{"-help"}, getenv, stdin, stdout, stderr); !errors.Is(err, flag.ErrHelp) {
		return err
	}
	return nil
}
