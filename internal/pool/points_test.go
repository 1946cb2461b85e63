package pool_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"varve/internal/block"
	"varve/internal/pool"
)

// diff returns the blocks that have changed, and checks the extents that tell it by the way.
func (d *driver) diff(p *pool.Pool, from, to pool.PointRef) []int64 {
	d.tb.Helper()
	list := []int64{}
	diff, err := p.OpenDiff(from, to)
	if err != nil {
		d.tb.Fatal(err)
	}
	defer diff.Close()
	end := int64(-1)
	err = diff.Each(ctx, func(off, n int64) error {
		if off <= end || off%block.Size != 0 || n <= 0 || off+n > diff.SizeBytes() || n%block.Size != 0 && off+n != diff.SizeBytes() {
			return fmt.Errorf("extent %d+%d of %d, after %d", off, n, diff.SizeBytes(), end)
		}
		end = off + n
		for lba := off / block.Size; lba < blocksUpTo(end); lba++ {
			list = append(list, lba)
		}
		return nil
	})
	if err != nil {
		d.tb.Fatalf("diff %s %s: %v", from, to, err)
	}
	return list
}

// point is a state that can be compared.
type point struct {
	pool.PointRef
	content
	family int
}

// points are the present and the past of all volumes, in the model.
func (d *driver) points() (list []point) {
	m := d.present()
	for _, name := range slices.Sorted(maps.Keys(m.volumes)) {
		v := m.volumes[name]
		list = append(list, point{pool.PointRef{Volume: name}, v.content, v.family})
		for s, snap := range v.snapshots {
			list = append(list, point{pool.PointRef{Volume: name, Name: s}, snap.content, v.family})
		}
		for k, of := range v.bookmarks {
			list = append(list, point{pool.PointRef{Volume: name, Name: k, Bookmark: true}, of.content, v.family})
		}
	}
	slices.SortFunc(list, func(a, b point) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// verifyDiff compares the diff of two states with the model: what it may not compare it refuses.
func (d *driver) verifyDiff(from, to point) {
	d.tb.Helper()
	if from.Name == "" || to.Bookmark || from.family != to.family {
		if diff, err := d.p.OpenDiff(from.PointRef, to.PointRef); !errors.Is(err, pool.ErrInvalid) {
			if err == nil {
				diff.Close()
			}
			d.tb.Fatalf("diff %s %s: %v", from, to, err)
		}
		return
	}
	if got, want := d.diff(d.p, from.PointRef, to.PointRef), to.changed(from.content); !slices.Equal(got, want) {
		d.tb.Fatalf("diff %s %s: blocks %v, want %v", from, to, got, want)
	}
}

// verifyDiffs compares all with all.
func (d *driver) verifyDiffs() {
	d.tb.Helper()
	all := d.points()
	for _, from := range all {
		for _, to := range all {
			d.verifyDiff(from, to)
		}
	}
}
