package bench

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBenchSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	b := &bench{run: "RUN", began: time.Now(), errors: map[string]int{}}
	b.number(3, b.began)
	b.messages[0][0].published, b.messages[0][1].published = true, true
	response := func(messages ...string) []byte { return []byte(`{"data":[` + strings.Join(messages, ",") + `]}`) }
	message := func(run string, n int) string {
		return fmt.Sprintf(`{"id":"id%d","data":{"bench":%q,"n":%d}}`, n, run, n)
	}
	if ids := b.check(response(message("RUN", 1), message("ANOTHER", 7), message("RUN", 1))); !slices.Equal(ids, []string{"id1", "id1"}) {
		t.Errorf("ids to ack = %v", ids)
	}
	if b.received.Load() != 1 || b.duplicates.Load() != 1 || b.foreign.Load() != 1 || b.missing() != 1 {
		t.Errorf("received %d, duplicates %d, foreign %d, missing %d, want one of each", b.received.Load(), b.duplicates.Load(), b.foreign.Load(), b.missing())
	}
	b.check([]byte("{"))
	if want := map[string]int{"no response": 1}; !maps.Equal(b.errors, want) {
		t.Errorf("errors = %v, want %v", b.errors, want)
	}
}

func TestPercentilesAreCloseToWhatTheyCount(t *testing.T) {
	t.Parallel()
	var l latencies
	for us := range 100_000 {
		l.add(time.Duration(us) * time.Microsecond)
	}
	p := l.percentiles()
	for what, v := range map[string][2]milliseconds{"p50": {p.P50, 50}, "p95": {p.P95, 95}, "p99": {p.P99, 99}, "max": {p.Max, 100}} {
		if v[0] < v[1]*0.999 || v[0] > v[1]*1.04 {
			t.Errorf("%s = %v ms, want %v", what, v[0], v[1])
		}
	}
	if text, err := json.Marshal(p); err != nil || !strings.HasPrefix(string(text), `{"p50":`) {
		t.Errorf("as JSON: %s, %v", text, err)
	}
}
