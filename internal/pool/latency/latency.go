// Package latency counts durations in a histogram of fixed size, so that what happens
// millions of times can be told as a few percentiles.
//
// Buckets are log-linear (eight to a power of two), as in HdrHistogram: a percentile is
// at most an eighth too large, and never too small.
package latency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	subBits = 3
	sub     = 1 << subBits // buckets to a power of two
	buckets = (64 - subBits) * sub
)

// Histogram is ready as its zero value. It may be used concurrently.
type Histogram struct {
	counts [buckets]atomic.Uint64
	max    atomic.Int64
}

// Summary is what a histogram tells. Count is 0 where nothing was recorded.
type Summary struct {
	Count               uint64
	P50, P99, P999, Max time.Duration
}

// Record counts a duration; a negative one counts as 0.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(uint64(d))].Add(1)
	for {
		old := h.max.Load()
		if int64(d) <= old || h.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// Since records the time since start; it is made for defer.
func (h *Histogram) Since(start time.Time) { h.Record(time.Since(start)) }

// Summary describes what was recorded so far.
func (h *Histogram) Summary() Summary {
	var counts [buckets]uint64
	s := Summary{Max: time.Duration(h.max.Load())}
	for i := range h.counts {
		counts[i] = h.counts[i].Load()
		s.Count += counts[i]
	}
	percentile := func(perMille uint64) time.Duration {
		rank := (s.Count*perMille + 999) / 1000 // of the sample that is meant, from 1
		var seen uint64
		for i, n := range counts {
			if seen += n; n > 0 && seen >= rank {
				return min(time.Duration(upper(i)), s.Max)
			}
		}
		return 0
	}
	s.P50, s.P99, s.P999 = percentile(500), percentile(990), percentile(999)
	return s
}

// bucketOf is the bucket of a number of nanoseconds: exact below 8, then by its
// highest bit and the three that follow.
func bucketOf(v uint64) int {
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift*sub + int(v>>shift)
}

// upper is the largest number in bucket i.
func upper(i int) uint64 {
	if i < 2*sub {
		return uint64(i)
	}
	shift := i/sub - 1
	return uint64(i%sub+sub+1)<<shift - 1
}
