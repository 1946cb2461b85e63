package pool

import (
	"slices"
	"testing"

	"varve/internal/pool/seglog"
)

// Files are cleaned in rounds of so many sets of live blocks as may be kept, all files in order: dead ones need none.
func TestRoundsKeepFewSets(t *testing.T) {
	const most = 10
	var files []seglog.File
	live := map[uint64]int64{}
	next := uint64(1)
	for i, of := range []struct{ segments, live int }{{1, 0}, {30, 0}, {1, 1}, {4, 4}, {9, 6}, {25, 25}, {1, 0}, {1, 1}, {10, 10}, {1, 1}} {
		f := seglog.File{Pack: uint64(i)}
		for k := range of.segments {
			if f.Segments = append(f.Segments, next); k < of.live {
				live[next] = 4096
			}
			next++
		}
		files = append(files, f)
	}
	var all []seglog.File
	for _, round := range inRounds(files, live, most) {
		if n := setsOf(live, round...); n > most && len(round) > 1 {
			t.Errorf("%d files have %d sets", len(round), n)
		}
		all = append(all, round...)
	}
	if !slices.EqualFunc(all, files, func(a, b seglog.File) bool { return a.Pack == b.Pack }) {
		t.Errorf("cleaned are %+v", all)
	}
}

// Packs become one as far as their sets of live blocks may be kept, the smallest first: some of many, and none of those that are large.
func TestMergeableIsBounded(t *testing.T) {
	const full, most = 64 << 20, 100
	packs := func(n, segments int, bytes int64) (files []seglog.File) {
		for range n {
			files = append(files, seglog.File{Segments: make([]uint64, segments), Bytes: bytes, Pack: 1})
		}
		return files
	}
	for name, k := range map[string]struct {
		packs []seglog.File
		want  int
	}{
		"few":                {packs(7, 1, 1<<20), 0},
		"enough":             {packs(8, 1, 1<<20), 8},
		"too many":           {packs(20, 9, 1<<20), 11},
		"large":              {packs(8, 60, 16<<20), 0},
		"small ones first":   {slices.Concat(packs(8, 10, 16<<20), packs(8, 8, 64<<10)), 8 + 3},
		"small ones and all": {slices.Concat(packs(8, 5, 16<<20), packs(8, 2, 64<<10)), 16},
	} {
		got := mergeable(k.packs, full, most)
		segments := 0
		for _, f := range got {
			segments += len(f.Segments)
		}
		if len(got) != k.want || segments > most {
			t.Errorf("%s: %d packs of %d segments, want %d", name, len(got), segments, k.want)
		}
	}
}
