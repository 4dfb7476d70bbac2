package shell

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"slices"
	"strings"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const completionUsage = `queued completion prints a script that lets a shell complete the commands, the flags and
the ids of topics and queues. The ids come from the server of -url or $QUEUED_URL.

usage: queued completion SHELL

SHELL is bash, zsh or fish.

examples:

  bash: echo 'source <(queued completion bash)' >> ~/.bashrc
  zsh:  echo 'source <(queued completion zsh)' >> ~/.zshrc
  fish: queued completion fish > ~/.config/fish/completions/queued.fish

`

// The scripts ask the program for the completions: "queued complete WORD…" prints those of
// the last word, one per line, each with a description after a tab. The line ":files" asks
// for the names of files.
const (
	bashCompletion = `# bash completion of queued
_queued() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        if [ "$line" = :files ]; then
            compopt -o default
            return
        fi
        COMPREPLY+=("${line%%$'\t'*}")
    done < <("$1" complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _queued queued
`
	zshCompletion = `#compdef queued
_queued() {
    local line
    local -a found
    for line in "${(@f)$("${words[1]}" complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $line == :files ]]; then
            _files
            return
        fi
        if [[ -n $line ]]; then
            found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        fi
    done
    _describe queued found
}
if [[ ${funcstack[1]} == _queued ]]; then
    _queued "$@"
else
    if ! (( $+functions[compdef] )); then
        autoload -Uz compinit
        compinit
    fi
    compdef _queued queued
fi
`
	fishCompletion = `# fish completion of queued
function __queued_complete
    set -l words (commandline -opc)
    set -l last (commandline -ct)
    set -l program $words[1]
    set -e words[1]
    for line in ($program complete $words "$last" 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path "$last"
        else
            echo $line
        end
    end
end
complete -c queued -f -a '(__queued_complete)'
`
)

// Completion prints the completion script of a shell.
func Completion(_ context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, _ io.Writer) error {
	f := flags.New("queued completion", completionUsage, stdout)
	f.Arguments(1, 1, "SHELL: bash, zsh or fish")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[f.Arg(0)]
	if !ok {
		return flags.Errorf("no completion for %q; expected bash, zsh or fish", f.Arg(0))
	}
	_, err := io.WriteString(stdout, script)
	return err
}

// Complete returns a command that prints the completions of its last argument: the command
// names, flags and ids that may follow the others.
func Complete(all []Command) func(context.Context, []string, func(string) string, io.Reader, io.Writer, io.Writer) error {
	return func(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, _ io.Writer) error {
		if len(args) == 0 {
			args = []string{""}
		}
		c := &completer{all: all, getenv: getenv, last: args[len(args)-1]}
		c.complete(ctx, args[:len(args)-1])
		_, err := io.WriteString(stdout, strings.Join(c.found, ""))
		return err
	}
}

type completer struct {
	all    []Command
	getenv func(string) string
	last   string   // the word to complete
	found  []string // lines
}

// add adds a completion if the last word is its beginning.
func (c *completer) add(word, description string) {
	description, _, _ = strings.Cut(description, "\n")
	line := word + "\t" + description + "\n"
	if strings.HasPrefix(word, c.last) && !slices.Contains(c.found, line) {
		c.found = append(c.found, line)
	}
}

// complete finds the completions after the words before.
func (c *completer) complete(ctx context.Context, before []string) {
	command, n := FindCommand(c.all, before)
	switch {
	case len(before) == 0 && !strings.HasPrefix(c.last, "-"):
		c.addCommands("")
		return
	case n == 0 && len(before) == 1 && SecondWords(c.all, before[0]) != nil:
		c.addCommands(before[0])
		return
	case n == 0 && (len(before) == 0 || strings.HasPrefix(before[0], "-")): // the server
		command = c.all[slices.IndexFunc(c.all, func(v Command) bool { return v.Name == "" })]
	case n == 0:
		return
	}
	var help flags.Help
	err := command.Run(ctx, []string{"-help"}, func(string) string { return "" }, strings.NewReader(""), io.Discard, io.Discard)
	if !errors.As(err, &help) {
		return
	}
	values := map[string]string{} // of the flags before
	arguments := 0
	for i := n; i < len(before); i++ {
		name := strings.TrimLeft(before[i], "-")
		if name == before[i] || name == "" {
			arguments++
			continue
		}
		name, value, joined := strings.Cut(name, "=")
		v := help.Set.Lookup(name)
		switch {
		case v == nil || isBool(v):
			values[name] = value
		case joined:
			values[name] = value
		case i+1 == len(before):
			kind, _ := flag.UnquoteUsage(v)
			c.addValues(ctx, kind, values)
			return
		default:
			i++
			values[name] = before[i]
		}
	}
	if strings.HasPrefix(c.last, "-") && arguments == 0 {
		help.Set.VisitAll(func(v *flag.Flag) {
			_, usage := flag.UnquoteUsage(v)
			c.add("-"+v.Name, usage)
		})
		c.add("-help", "describe the command")
		return
	}
	if command.Name == "help" {
		if arguments == 0 {
			c.addCommands("")
		} else {
			c.addCommands(before[n])
		}
		return
	}
	kinds := strings.Fields(strings.ReplaceAll(command.Arguments, "...", ""))
	if arguments < len(kinds) {
		kind := strings.Trim(kinds[arguments], "[]")
		if _, direct := values["to-queue"]; direct && kind == "TOPIC" {
			kind = "QUEUE"
		}
		c.addValues(ctx, kind, values)
	}
}

// addCommands adds the names of the commands, or the second words of those with a first
// word.
func (c *completer) addCommands(first string) {
	for _, v := range c.all {
		word, second, two := strings.Cut(v.Name, " ")
		switch {
		case first == "" && two:
			c.add(word, word+" "+strings.Join(SecondWords(c.all, word), " or "))
		case first == "" && word != "":
			c.add(word, v.Summary)
		case first == word && two:
			c.add(second, v.Summary)
		}
	}
}

// completionTimeout is the maximum time to list the ids of a server.
const completionTimeout = time.Second

// addValues adds the values of an argument or of a flag by its name in the help.
func (c *completer) addValues(ctx context.Context, kind string, values map[string]string) {
	switch strings.ToLower(kind) {
	case "file", "directory":
		c.found = append(c.found, ":files\n")
	case "state":
		for _, name := range []string{"ready", "delayed", "in_flight", "exhausted"} {
			c.add(name, "")
		}
	case "shell":
		for _, name := range []string{"bash", "zsh", "fish"} {
			c.add(name, "")
		}
	case "topic", "queue":
		c.addIDs(ctx, strings.ToLower(kind), values)
	}
}

// addIDs adds the ids of the topics or queues of the server. Without a server there are
// none.
func (c *completer) addIDs(ctx context.Context, kind string, values map[string]string) {
	var server client.Client
	f := flags.New("", "", io.Discard)
	server.Flags(f)
	var args []string
	for _, name := range []string{"url", "token", "tls-cert"} {
		if value, given := values[name]; given {
			args = append(args, "-"+name+"="+value)
		}
	}
	if f.Parse(args, c.getenv) != nil || server.Prepare(io.Discard) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	eachItem(ctx, &server, "/"+kind+"s", func(item json.RawMessage) error {
		var v struct{ ID string }
		err := json.Unmarshal(item, &v)
		c.add(v.ID, kind)
		return err
	})
}

func isBool(v *flag.Flag) bool {
	b, ok := v.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}
