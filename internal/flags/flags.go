// Package flags reads the flags of a command, whose defaults come from the environment.
package flags

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// UsageError is a mistake in the arguments or the environment.
type UsageError struct{ error }

func (e UsageError) Unwrap() error { return e.error }

// Errorf returns a UsageError.
func Errorf(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Set is a flag.FlagSet whose defaults come from the environment.
type Set struct {
	*flag.FlagSet
	help            func()
	Err             error    // the first
	WithoutVariable []string // flags that the environment does not set
	Secret          []string // flags whose values no error shows
	least, most     int      // arguments after the flags
	arguments       string
}

// Takes says how many arguments come after the flags, none otherwise, and what
// they are.
func (f *Set) Takes(least, most int, what string) {
	f.least, f.most, f.arguments = least, most, what
}

// DurationVar is that of flag.FlagSet, but its error says what a duration is like.
func (f *Set) DurationVar(d *time.Duration, name string, value time.Duration, usage string) {
	*d = value
	f.Var((*duration)(d), name, usage)
}

type duration time.Duration

func (d *duration) Set(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("it must be like 500ms, 20s or 1m30s")
	}
	*d = duration(v)
	return nil
}

func (d *duration) String() string { return (*time.Duration)(d).String() }

// OptionalDuration is a duration that may be left out.
type OptionalDuration struct {
	D     time.Duration
	Given bool
}

func (o *OptionalDuration) Set(text string) error {
	o.Given = true
	return (*duration)(&o.D).Set(text)
}

func (o *OptionalDuration) String() string {
	if o == nil || !o.Given {
		return ""
	}
	return o.D.String()
}

// New returns a set whose -help prints usage and the flags to stdout.
// Errors are returned, and print nothing.
func New(name, usage string, stdout io.Writer) *Set {
	f := &Set{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.help = func() {
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	return f
}

// Variable returns the name of the environment variable of a flag.
func Variable(flagName string) string {
	return "QUEUED_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// SetEmpty reports whether the flag, or else its variable, is set to nothing, or to
// nothing but white space.
func (f *Set) SetEmpty(name string) bool {
	text, set := os.LookupEnv(Variable(name)) // which getenv cannot tell
	return strings.TrimSpace(f.Lookup(name).Value.String()) == "" && (f.Given(name) || set && strings.TrimSpace(text) == "")
}

// Given reports whether the flag is in the arguments, whatever its variable is.
func (f *Set) Given(name string) bool {
	given := false
	f.Visit(func(v *flag.Flag) { given = given || v.Name == name })
	return given
}

// masked keeps secrets out of errors.
func (f *Set) masked(flagName, value string) string {
	if slices.Contains(f.Secret, flagName) {
		return "…"
	}
	return value
}

// Parse reads the flags from the arguments, and from the environment where they are
// not given there.
func (f *Set) Parse(args []string, getenv func(string) string) error {
	f.VisitAll(func(v *flag.Flag) {
		if slices.Contains(f.WithoutVariable, v.Name) {
			return
		}
		name := Variable(v.Name)
		v.Usage += " [$" + name + "]"
		if value := getenv(name); value != "" && f.Err == nil {
			if err := v.Value.Set(value); err != nil {
				f.Err = Errorf("$%s (-%s): invalid value %q: %w", name, v.Name, f.masked(v.Name, value), err)
			}
		}
	})
	if err := f.FlagSet.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.help()
			return err
		}
		return Errorf("%w, see %s -help", err, f.Name())
	}
	switch {
	case f.NArg() < f.least:
		return Errorf("%s is missing, see %s -help", f.arguments, f.Name())
	case f.NArg() > f.most && f.most > 0:
		return Errorf("more arguments than %s, see %s -help", f.arguments, f.Name())
	case f.NArg() > f.most:
		if strings.ContainsAny(f.Arg(0), "=:@") { // a connection string whose flag was forgotten?
			return Errorf("there is an argument without a flag, see %s -help", f.Name())
		}
		return Errorf("unknown argument %q, see %s -help", f.Arg(0), f.Name())
	}
	for _, argument := range f.Args() {
		if len(argument) > 1 && argument[0] == '-' {
			return Errorf("flags go before the arguments: %s", argument)
		}
	}
	return f.Err
}
