package main

import (
	"math"
	"slices"
)

// median is the middle of all values, the mean of the two in the middle where there are two; 0 of none.
func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// quantile is the smallest value that at least q of all values do not exceed; 0 of none.
func quantile(of []float64, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// ratios divides a by b, value by value, as far as both go and b is not 0.
func ratios(a, b []float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}

// round3 keeps results.json small.
func round3(x float64) float64 { return math.Round(x*1000) / 1000 }

func rounded(of []float64) []float64 {
	out := make([]float64, len(of))
	for i, x := range of {
		out[i] = round3(x)
	}
	return out
}
