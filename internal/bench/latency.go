package bench

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"
)

// latencies is a histogram of durations, in buckets about 3 % wide.
type latencies struct {
	buckets [2048]atomic.Int64
	max     atomic.Int64 // microseconds
}

func (l *latencies) add(d time.Duration) {
	us := uint64(max(0, d.Microseconds()))
	i := int(us)
	if us >= 64 {
		shift := bits.Len64(us) - 6
		i = shift*32 + int(us>>shift)
	}
	l.buckets[min(i, len(l.buckets)-1)].Add(1)
	for {
		most := l.max.Load()
		if int64(us) <= most || l.max.CompareAndSwap(most, int64(us)) {
			return
		}
	}
}

// milliseconds are printed with two decimals below 10.
type milliseconds float64

func (m milliseconds) String() string {
	if m < 10 {
		return fmt.Sprintf("%.2f", float64(m))
	}
	return fmt.Sprintf("%.0f", float64(m))
}

type percentiles struct {
	P50 milliseconds `json:"p50"`
	P95 milliseconds `json:"p95"`
	P99 milliseconds `json:"p99"`
	Max milliseconds `json:"max"`
}

// percentiles returns the upper bounds of the buckets of the percentiles.
func (l *latencies) percentiles() (p percentiles) {
	var total int64
	for i := range l.buckets {
		total += l.buckets[i].Load()
	}
	p.Max = milliseconds(float64(l.max.Load()) / 1000)
	var seen int64
	for i := range l.buckets {
		n := l.buckets[i].Load()
		if n == 0 {
			continue
		}
		seen += n
		upper := float64(i)
		if i >= 64 {
			shift := i/32 - 1
			upper = float64((i%32+33)<<shift - 1)
		}
		value := min(milliseconds(upper/1000), p.Max)
		for _, v := range []struct {
			at   *milliseconds
			part int64
		}{{&p.P50, 50}, {&p.P95, 95}, {&p.P99, 99}} {
			if *v.at == 0 && seen*100 >= total*v.part {
				*v.at = value
			}
		}
	}
	return p
}
