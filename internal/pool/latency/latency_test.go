package latency

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestBucketsCoverAllNumbersInOrder looks at the borders of every bucket.
func TestBucketsCoverAllNumbersInOrder(t *testing.T) {
	next := uint64(0)
	for i := range buckets {
		if got := bucketOf(next); got != i {
			t.Fatalf("%d is in bucket %d, want %d", next, got, i)
		}
		end := upper(i)
		if got := bucketOf(end); got != i {
			t.Fatalf("%d, the largest of bucket %d, is in bucket %d", end, i, got)
		}
		if float64(end-next) > float64(next)/8 {
			t.Fatalf("bucket %d reaches from %d to %d", i, next, end)
		}
		if next = end + 1; next > math.MaxInt64 {
			return
		}
	}
	t.Fatalf("the last bucket ends at %d", next-1)
}

// TestPercentilesAreNeverTooSmall compares them with those of the sorted samples.
func TestPercentilesAreNeverTooSmall(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, n := range []int{1, 2, 10, 999, 1000, 1001, 20000} {
		var h Histogram
		samples := make([]time.Duration, n)
		for i := range samples {
			samples[i] = time.Duration(1) << r.IntN(40)
			samples[i] += time.Duration(r.Int64N(int64(samples[i])))
			h.Record(samples[i])
		}
		slices.Sort(samples)
		s := h.Summary()
		if s.Count != uint64(n) || s.Max != samples[n-1] {
			t.Fatalf("%d samples up to %s: %+v", n, samples[n-1], s)
		}
		for _, p := range []struct {
			perMille int
			got      time.Duration
		}{{500, s.P50}, {990, s.P99}, {999, s.P999}} {
			want := samples[(n*p.perMille+999)/1000-1]
			if p.got < want || p.got > want+want/8 {
				t.Errorf("of %d samples, %d per mille are up to %s: told %s", n, p.perMille, want, p.got)
			}
		}
	}
}

// TestNothingRecorded is all zero, and a clock that went backwards counts as no time.
func TestNothingRecorded(t *testing.T) {
	var h Histogram
	if s := h.Summary(); s != (Summary{}) {
		t.Errorf("nothing recorded: %+v", s)
	}
	h.Record(-time.Second)
	if s := h.Summary(); s != (Summary{Count: 1}) {
		t.Errorf("a negative duration: %+v", s)
	}
}

// TestConcurrentRecords loses none.
func TestConcurrentRecords(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				h.Record(time.Duration(g*1000 + i))
			}
		})
	}
	wg.Wait()
	if s := h.Summary(); s.Count != 4000 || s.Max != 3999 {
		t.Errorf("%+v", s)
	}
}
