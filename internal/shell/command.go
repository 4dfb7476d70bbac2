package shell

import (
	"context"
	"io"
	"strings"
)

// Command is a command of the program.
type Command struct {
	Name      string // one or two words; empty for the server
	Arguments string // after the flags, as the help shows them
	Summary   string
	Run       func(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error
}

// FindCommand returns the command whose name the words begin with, and how many of them
// are its name; 0 if there is none.
func FindCommand(all []Command, words []string) (c Command, n int) {
	for _, c := range all {
		name := strings.Fields(c.Name)
		if n := len(name); n > 0 && n <= len(words) && strings.Join(words[:n], " ") == c.Name {
			return c, n
		}
	}
	return Command{}, 0
}

// SecondWords returns the second words of the commands whose names begin with a word and
// have two.
func SecondWords(all []Command, first string) (second []string) {
	for _, c := range all {
		if word, rest, two := strings.Cut(c.Name, " "); two && word == first {
			second = append(second, rest)
		}
	}
	return second
}
