package imagetest

import (
	"encoding/json"
	"slices"
	"testing"

	"varve/internal/block"
)

// Range is a run of bytes.
type Range struct{ Start, Length int64 }

// QemuData returns where an image holds data, not zeros, as qemu-img map sees
// it, in whole sectors.
func QemuData(t testing.TB, path, format string) []Range {
	t.Helper()
	var entries []struct {
		Start, Length int64
		Zero          bool
	}
	if err := json.Unmarshal([]byte(Run(t, "qemu-img", "map", "-f", format, "--output=json", path)), &entries); err != nil {
		t.Fatal(err)
	}
	var list []Range
	for _, e := range entries {
		if !e.Zero {
			const sector = block.SectorSize - 1
			start, end := e.Start&^sector, (e.Start+e.Length+sector)&^sector
			list = appendRange(list, start, end-start)
		}
	}
	return list
}

// Data returns where extents are not zeros.
func Data(extents []block.Extent) []Range {
	var list []Range
	for _, e := range extents {
		if !e.Zero {
			list = appendRange(list, e.Offset, e.Length)
		}
	}
	return list
}

func appendRange(list []Range, start, length int64) []Range {
	if n := len(list); n > 0 && list[n-1].Start+list[n-1].Length == start {
		list[n-1].Length += length
		return list
	}
	return append(list, Range{start, length})
}

// CheckWithin fails the test unless all of inner lies in outer.
func CheckWithin(t testing.TB, inner, outer []Range) {
	t.Helper()
	for _, r := range inner {
		if !slices.ContainsFunc(outer, func(o Range) bool {
			return o.Start <= r.Start && r.Start+r.Length <= o.Start+o.Length
		}) {
			t.Errorf("%+v is data, for QEMU it is not: %+v", r, outer)
		}
	}
}
