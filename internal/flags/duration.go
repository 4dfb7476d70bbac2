package flags

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// DurationVar is like flag.FlagSet's, but accepts days, as in 4d, and its error shows the
// form of a duration.
func (f *Set) DurationVar(d *time.Duration, name string, value time.Duration, usage string) {
	*d = value
	f.Var((*duration)(d), name, usage)
}

type duration time.Duration

func (d *duration) Set(text string) error {
	v, ok := parseDuration(text)
	if !ok {
		return errors.New("must be a duration such as 500ms, 20s, 1m30s or 4d")
	}
	*d = duration(v)
	return nil
}

func (d *duration) String() string { return FormatDuration(time.Duration(*d)) }

const day = 24 * time.Hour

// parseDuration is time.ParseDuration with days, which come first: 1d12h.
func parseDuration(text string) (d time.Duration, ok bool) {
	number, rest, found := strings.Cut(text, "d")
	if !found {
		d, err := time.ParseDuration(text)
		return d, err == nil
	}
	days, err := strconv.ParseFloat(number, 64)
	if err != nil || !(math.Abs(days) <= 100_000) {
		return 0, false
	}
	if d = time.Duration(days * float64(day)); rest == "" {
		return d, true
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 || strings.ContainsAny(rest[:1], "+-") {
		return 0, false
	}
	if days < 0 {
		more = -more
	}
	return d + more, true
}

// FormatDuration returns a duration in the form that flags accept, without units that are
// zero: 4d, 1h30m, 20s.
func FormatDuration(d time.Duration) string {
	if d < 0 {
		return "-" + FormatDuration(-d)
	}
	days := ""
	if d >= day {
		days = strconv.FormatInt(int64(d/day), 10) + "d"
		if d %= day; d == 0 {
			return days
		}
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return days + text
}

// OptionalDuration is the value of a duration flag that has no default.
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
	return FormatDuration(o.D)
}
