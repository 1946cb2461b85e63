package main

import (
	"slices"
	"testing"
	"time"

	"varve/internal/contract"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{
		{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.of); got != c.want {
			t.Errorf("median of %v: %g, not %g", c.of, got, c.want)
		}
	}
}

func TestQuantileIsTheNearestRank(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	for _, c := range []struct {
		of      []float64
		q, want float64
	}{
		{nil, 0.5, 0}, {hundred, 0, 1}, {hundred, 0.01, 1}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 0.991, 100}, {hundred, 1, 100},
		{[]float64{7}, 0.99, 7},
	} {
		if got := quantile(c.of, c.q); got != c.want {
			t.Errorf("%g of %d values: %g, not %g", c.q, len(c.of), got, c.want)
		}
	}
}

func TestRatiosSkipWhatCannotBeDivided(t *testing.T) {
	got := ratios([]float64{1, 5, 9, 4}, []float64{2, 0, 3})
	if !slices.Equal(got, []float64{0.5, 3}) {
		t.Errorf("%v", got)
	}
}

// TestEveryServerGoesFirst: over as many rounds as there are servers no place is anybody's alone.
func TestEveryServerGoesFirst(t *testing.T) {
	for n := 1; n <= 7; n++ {
		first, last := map[int]int{}, map[int]int{}
		for round := range 2 * n {
			order := inTurn(n, round)
			first[order[0]]++
			last[order[n-1]]++
			if sorted := slices.Sorted(slices.Values(order)); sorted[0] != 0 || sorted[n-1] != n-1 || len(slices.Compact(sorted)) != n {
				t.Fatalf("round %d of %d servers: %v", round, n, order)
			}
		}
		for k := range n {
			if first[k] == 0 || last[k] == 0 {
				t.Errorf("%d servers: number %d is first %d times and last %d times", n, k, first[k], last[k])
			}
		}
	}
	if slices.Equal(inTurn(2, 0), inTurn(2, 1)) {
		t.Error("pairs are not swapped")
	}
}

func TestWrittenIsCountedBetweenCheckpoints(t *testing.T) {
	began := time.Unix(0, 0)
	var samples []sample
	add := func(checkpoints uint64, client, log int64) {
		samples = append(samples, sample{
			at: began.Add(time.Duration(len(samples)) * time.Second), pool: contract.Pool{Checkpoints: checkpoints, ClientBytes: client, LogBytes: log},
		})
	}
	add(7, 0, 0)
	add(7, 100, 105)
	add(8, 200, 240) // from here
	add(8, 300, 345)
	add(9, 400, 480)
	if _, ok := betweenCheckpoints(samples); ok {
		t.Error("one checkpoint was enough")
	}
	add(10, 500, 620) // to here
	add(10, 600, 725)
	found, ok := betweenCheckpoints(samples)
	if !ok || found.Checkpoints != 2 || found.Client != 300 || found.Log != 380 || found.Seconds != 3 {
		t.Errorf("%+v, %v", found, ok)
	}
	if _, ok := betweenCheckpoints(nil); ok {
		t.Error("nothing was enough")
	}
}

func TestStatOfAProcessWithAnyName(t *testing.T) {
	got, err := parseStat([]byte("12 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20\n"))
	if err != nil || got != 1750*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "12 (a) S 1 2", "12 (a) S 1 2 3 4 5 6 7 8 9 10 x y 0 0 20"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestReportOfFio(t *testing.T) {
	got, err := parseFio([]byte(`fio: a remark
{"jobs":[{"read":{"iops":0},"write":{"iops":5.5,"bw":22,"total_ios":11,"io_bytes":45056,"clat_ns":{"max":9,"percentile":{"99.000000":8}}},
"sync":{"lat_ns":{"max":3,"percentile":{"50.000000":2}}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if w := got.Write; w.IOPS != 5.5 || w.Bandwidth != 22 || w.Total != 11 || w.Latency.Max != 9 || w.Latency.Percentile["99.000000"] != 8 {
		t.Errorf("%+v", w)
	}
	if got.Sync.Latency.Percentile["50.000000"] != 2 {
		t.Errorf("%+v", got.Sync)
	}
	for _, bad := range []string{"", "no report", `{"jobs":[]}`} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%q is a report", bad)
		}
	}
}

// TestChangesAreTheSameEverywhere: servers are compared on the same places, which are blocks of the disk.
func TestChangesAreTheSameEverywhere(t *testing.T) {
	const size = 1 << 30
	a := places(3, size)
	if !slices.Equal(a, places(3, size)) || slices.Equal(a, places(4, size)) {
		t.Error("places are not those of their number")
	}
	for _, at := range a {
		if at%4096 != 0 || at < 0 || at >= size {
			t.Errorf("block at %d", at)
		}
	}
}
