package main

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

// flagSet is a flag.FlagSet whose defaults come from the environment.
type flagSet struct {
	*flag.FlagSet
	help            func()
	err             error // the first
	withoutVariable []string
	least, most     int // arguments after the flags
	arguments       string
}

// takes says how many arguments come after the flags, none otherwise, and what
// they are.
func (f *flagSet) takes(least, most int, what string) {
	f.least, f.most, f.arguments = least, most, what
}

// DurationVar is that of flag.FlagSet, but its error says what a duration is like.
func (f *flagSet) DurationVar(d *time.Duration, name string, value time.Duration, usage string) {
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

// optionalDuration is a duration that may be left out.
type optionalDuration struct {
	d     time.Duration
	given bool
}

func (o *optionalDuration) Set(text string) error {
	o.given = true
	return (*duration)(&o.d).Set(text)
}

func (o *optionalDuration) String() string {
	if o == nil || !o.given {
		return ""
	}
	return o.d.String()
}

// newFlagSet returns a set whose -help prints usage and the flags to stdout.
// Errors are returned, and print nothing.
func newFlagSet(name, usage string, stdout io.Writer) *flagSet {
	f := &flagSet{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.help = func() {
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	return f
}

func variable(flagName string) string {
	return "QUEUED_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// setEmpty reports whether the flag, or else its variable, is set to nothing, or to
// nothing but white space.
func (f *flagSet) setEmpty(name string) bool {
	given := false
	f.Visit(func(v *flag.Flag) { given = given || v.Name == name })
	text, set := os.LookupEnv(variable(name)) // which getenv cannot tell
	return strings.TrimSpace(f.Lookup(name).Value.String()) == "" && (given || set && strings.TrimSpace(text) == "")
}

func (f *flagSet) parse(args []string, getenv func(string) string) error {
	f.VisitAll(func(v *flag.Flag) {
		if slices.Contains(f.withoutVariable, v.Name) {
			return
		}
		name := variable(v.Name)
		v.Usage += " [$" + name + "]"
		if value := getenv(name); value != "" && f.err == nil {
			if err := v.Value.Set(value); err != nil {
				f.err = usageError{fmt.Errorf("$%s (-%s): invalid value %q: %w", name, v.Name, masked(v.Name, value), err)}
			}
		}
	})
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.help()
			return err
		}
		return usageError{fmt.Errorf("%w, see %s -help", err, f.Name())}
	}
	switch {
	case f.NArg() < f.least:
		return usageError{fmt.Errorf("%s is missing, see %s -help", f.arguments, f.Name())}
	case f.NArg() > f.most && f.most > 0:
		return usageError{fmt.Errorf("more arguments than %s, see %s -help", f.arguments, f.Name())}
	case f.NArg() > f.most:
		if strings.ContainsAny(f.Arg(0), "=:@") { // a connection string whose flag was forgotten?
			return usageError{fmt.Errorf("there is an argument without a flag, see %s -help", f.Name())}
		}
		return usageError{fmt.Errorf("unknown argument %q, see %s -help", f.Arg(0), f.Name())}
	}
	for _, argument := range f.Args() {
		if len(argument) > 1 && argument[0] == '-' {
			return usageError{fmt.Errorf("flags go before the arguments: %s", argument)}
		}
	}
	return f.err
}
