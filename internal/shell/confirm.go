package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"queued/internal/flags"
)

// confirmation asks before a command does what cannot be undone.
type confirmation struct {
	yes bool // the flag -yes
}

func (c *confirmation) flags(f *flags.Set) {
	f.BoolVar(&c.yes, "yes", false, "do not ask for confirmation; required if the input is not a terminal")
}

var errNotConfirmed = errors.New("not confirmed; nothing was changed")

// ask asks a question on a terminal, and returns an error unless the reply is yes.
func (c *confirmation) ask(ctx context.Context, stdin io.Reader, stderr io.Writer, format string, args ...any) error {
	if c.yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	const unasked = "The input is not a terminal, so there is no confirmation; set -yes to go ahead"
	if !isTerminal(stdin) {
		return flags.Errorf("%s %s", question, unasked)
	}
	fmt.Fprintf(stderr, "%s [y/N] ", question)
	reply := make(chan string, 1)
	go func() { // it outlives this function if ctx ends: a read of a terminal cannot be aborted
		line, err := bufio.NewReader(stdin).ReadString('\n')
		if err != nil && line == "" {
			close(reply)
			return
		}
		reply <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case text, ok := <-reply:
		switch {
		case !ok: // /dev/null looks like a terminal
			fmt.Fprintln(stderr)
			return flags.Errorf(unasked)
		case text == "y" || text == "yes":
			return nil
		}
		return errNotConfirmed
	case <-ctx.Done():
		fmt.Fprintln(stderr)
		return ctx.Err()
	}
}

// isTerminal reports whether a standard stream is a terminal, or another device such as
// /dev/null.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
