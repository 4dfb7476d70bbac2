// Package flags parses the flags of a command. The default of a flag comes from an
// environment variable, QUEUED_MAX_BODY for -max-body.
package flags

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// UsageError is a mistake in the arguments or the environment.
type UsageError struct{ error }

func (e UsageError) Unwrap() error { return e.error }

// Errorf returns a UsageError.
func Errorf(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Set is a flag.FlagSet whose defaults come from the environment.
type Set struct {
	*flag.FlagSet
	WithoutVariable []string // names of flags that no environment variable sets
	Secret          []string // names of flags whose values no error shows

	usage     string
	stdout    io.Writer
	groups    []group
	err       error // the first mistake found
	min, max  int   // number of arguments after the flags
	arguments string
}

// group is a part of the list of flags in the help.
type group struct {
	title string
	names []string
}

// Help is the error of Parse after -help. It is a flag.ErrHelp.
type Help struct{ Set *Set }

func (Help) Error() string { return flag.ErrHelp.Error() }
func (Help) Unwrap() error { return flag.ErrHelp }

// New returns a set. Its -help prints the usage text and the flags to stdout.
func New(name, usage string, stdout io.Writer) *Set {
	f := &Set{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError), usage: usage, stdout: stdout}
	f.SetOutput(io.Discard) // Parse returns what package flag would print
	f.Usage = func() {}
	return f
}

// Group lists these flags under a title in the help. Flags without a group come first.
func (f *Set) Group(title string, names ...string) {
	f.groups = append(f.groups, group{title, names})
}

// printHelp prints the usage text, and the flags by group.
func (f *Set) printHelp() {
	fmt.Fprintln(f.stdout, strings.TrimSpace(f.usage))
	first := group{title: "flags"} // and those that no group names
	f.VisitAll(func(v *flag.Flag) {
		if !slices.ContainsFunc(f.groups, func(g group) bool { return slices.Contains(g.names, v.Name) }) {
			first.names = append(first.names, v.Name)
		}
	})
	for _, g := range append([]group{first}, f.groups...) {
		if len(g.names) == 0 {
			continue
		}
		fmt.Fprintf(f.stdout, "\n%s:\n\n", g.title)
		for _, name := range g.names {
			v := f.Lookup(name)
			alone := flag.NewFlagSet("", flag.ContinueOnError)
			alone.SetOutput(f.stdout)
			alone.Var(v.Value, v.Name, v.Usage)
			alone.Lookup(name).DefValue = v.DefValue // and not the value of the environment
			alone.PrintDefaults()
		}
	}
}

// Arguments sets the number of arguments after the flags, and their names in errors.
// Without it there are none.
func (f *Set) Arguments(min, max int, names string) {
	f.min, f.max, f.arguments = min, max, names
}

// Variable returns the name of the environment variable of a flag.
func Variable(flagName string) string {
	return "QUEUED_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// Parse reads the environment and then the arguments, which take precedence. It
// returns flag.ErrHelp after -help.
func (f *Set) Parse(args []string, getenv func(string) string) error {
	f.VisitAll(func(v *flag.Flag) {
		if slices.Contains(f.WithoutVariable, v.Name) {
			return
		}
		name := Variable(v.Name)
		v.Usage += " [$" + name + "]"
		if value := getenv(name); value != "" && f.err == nil {
			if err := v.Value.Set(value); err != nil {
				f.err = Errorf("$%s (-%s): invalid value %q: %w", name, v.Name, f.masked(v.Name, value), err)
			}
		}
	})
	if err := f.FlagSet.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.printHelp()
			return Help{f}
		}
		return Errorf("%w; see %s -help", err, f.Name())
	}
	if name := f.misplaced(args); name != "" {
		return Errorf("flags must precede the arguments: %s; see %s -help", name, f.Name())
	}
	switch {
	case f.NArg() < f.min:
		return Errorf("missing argument: %s; see %s -help", f.arguments, f.Name())
	case f.NArg() > f.max && f.max > 0:
		return Errorf("too many arguments: expected %s; see %s -help", f.arguments, f.Name())
	case f.NArg() > f.max:
		if strings.ContainsAny(f.Arg(0), "=:@") { // it may be a connection string with a password
			return Errorf("unexpected argument; see %s -help", f.Name())
		}
		return Errorf("unexpected argument %q; see %s -help", f.Arg(0), f.Name())
	}
	return f.err
}

// Check records a mistake in the value of a flag unless ok.
func (f *Set) Check(ok bool, flagName, problem string) {
	if !ok && f.err == nil {
		f.err = Errorf("-%s: %s", flagName, problem)
	}
}

// Err returns the first mistake that Parse or Check found.
func (f *Set) Err() error { return f.err }

// SetEmpty reports whether the flag, or else its variable, is set to an empty text or to
// white space.
func (f *Set) SetEmpty(name string) bool {
	text, set := os.LookupEnv(Variable(name)) // getenv does not tell empty from unset
	return strings.TrimSpace(f.Lookup(name).Value.String()) == "" && (f.Given(name) || set && strings.TrimSpace(text) == "")
}

// misplaced returns the first flag that follows the arguments, without its value; empty if there
// is none. After "--" everything is an argument.
func (f *Set) misplaced(args []string) string {
	if f.max == 0 || slices.Contains(args, "--") {
		return ""
	}
	for _, arg := range f.Args() {
		if len(arg) > 1 && arg[0] == '-' {
			name, _, _ := strings.Cut(arg, "=")
			return name
		}
	}
	return ""
}

// Given reports whether the flag is in the arguments.
func (f *Set) Given(name string) bool {
	given := false
	f.Visit(func(v *flag.Flag) { given = given || v.Name == name })
	return given
}

func (f *Set) masked(flagName, value string) string {
	if slices.Contains(f.Secret, flagName) {
		return "…"
	}
	return value
}
