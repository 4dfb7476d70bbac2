package flags

import (
	"errors"
	"time"
)

// Time is the value of a flag for a time. It is zero if the flag is not given. If Past is
// true, a duration counts back from now: 2h is two hours ago.
type Time struct {
	time.Time
	Past bool

	text string
}

func (t *Time) Set(text string) error {
	for _, layout := range []string{"2006-01-02T15:04:05", time.RFC3339} { // both accept fractions of a second
		if at, err := time.Parse(layout, text); err == nil {
			t.Time, t.text = at.UTC(), text
			return nil
		}
	}
	if !t.Past {
		return errors.New("must be a time in UTC such as 2026-12-24T18:00:00, or with a zone as in 2026-12-24T18:00:00+01:00")
	}
	d, ok := parseDuration(text)
	if !ok || d < 0 {
		return errors.New("must be a time in UTC such as 2026-12-24T18:00:00, or a duration before now such as 90m or 2d")
	}
	t.Time, t.text = time.Now().UTC().Add(-d), text
	return nil
}

func (t *Time) String() string {
	if t == nil {
		return ""
	}
	return t.text
}
