package shell

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"queued/internal/flags"
)

// table prints aligned columns when it is flushed.
type table struct{ *tabwriter.Writer }

func newTable(out io.Writer, columns ...string) table {
	t := table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(t, strings.Join(columns, "\t")) // Flush returns an error again
	return t
}

// row adds a row. A nil pointer is a dash.
func (t table) row(values ...any) error {
	cells := make([]string, len(values))
	for i, value := range values {
		switch v := value.(type) {
		case *string:
			cells[i] = "-"
			if v != nil {
				cells[i] = *v
			}
		case *int:
			cells[i] = "-"
			if v != nil {
				cells[i] = strconv.Itoa(*v)
			}
		default:
			cells[i] = fmt.Sprint(v)
		}
	}
	_, err := fmt.Fprintln(t, strings.Join(cells, "\t"))
	return err
}

// steps formats durations in seconds, for example as 5s,30s,5m; nil if there are none.
func steps(all []int) *string {
	if len(all) == 0 {
		return nil
	}
	var texts []string
	for _, n := range all {
		texts = append(texts, *seconds(&n))
	}
	return new(strings.Join(texts, ","))
}

// seconds formats a duration, for example as 1h30m or 4d; nil if n is nil.
func seconds(n *int) *string {
	if n == nil {
		return nil
	}
	text := flags.FormatDuration(time.Duration(*n) * time.Second)
	return &text
}
