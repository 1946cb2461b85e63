package pool_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/pool"
)

// referenced counts the data blocks that the pool refers to.
func (d *driver) referenced() int64 {
	d.tb.Helper()
	report, err := d.p.Check(ctx, nil)
	if err != nil || len(report.Damage) > 0 {
		d.tb.Fatalf("check: %v, %+v", err, report.Damage)
	}
	return report.Blocks * block.Size
}

func (d *driver) exclusive(volume, snap string) int64 {
	d.tb.Helper()
	u, err := d.p.SnapshotUsage(ctx, pool.SnapshotRef{Volume: volume, Name: snap})
	if err != nil {
		d.tb.Fatal(err)
	}
	return u.Exclusive
}

// What a snapshot holds exclusively is what deleting it gives back: with clones, rollbacks and hidden states around
// it, written to, discarded and deleted at random, and whatever was asked before.
func TestExclusiveIsWhatDeletingFrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDriver(t)
		defer func() { _ = d.p.Close(ctx) }()
		d.createVolume("a", 256<<10)
		existing := func() (volume, snap string) {
			var all [][2]string
			for v, m := range d.present().volumes {
				for s := range m.snapshots {
					all = append(all, [2]string{v, s})
				}
			}
			if len(all) == 0 {
				return "a", "none"
			}
			slices.SortFunc(all, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
			one := rapid.SampledFrom(all).Draw(t, "snapshot")
			return one[0], one[1]
		}
		volume := func() string {
			return rapid.SampledFrom(slices.Sorted(maps.Keys(d.present().volumes))).Draw(t, "volume")
		}
		n := 0
		steps := map[string]func(){
			"write": func() {
				for range 3 {
					off := rapid.Int64Range(0, 60).Draw(t, "block") * block.Size
					d.submit(volume(), writeOp(off, rapid.Int64Range(1, 4).Draw(t, "blocks")*block.Size))
				}
			},
			"discard": func() {
				d.submit(volume(), discardOp(rapid.Int64Range(0, 60).Draw(t, "block")*block.Size, 4*block.Size))
			},
			"snapshot": func() {
				n++
				d.snapshot(fmt.Sprintf("s%d", n), volume())
			},
			"clone": func() {
				n++
				v, s := existing()
				d.cloneVolume(v, s, fmt.Sprintf("c%d", n))
			},
			"rollback": func() { d.rollback(existing()) },
			"ask": func() {
				if v, s := existing(); s != "none" {
					d.exclusive(v, s)
				}
			},
			"delete": func() {
				v, s := existing()
				if s == "none" {
					return
				}
				held, before := d.exclusive(v, s), d.referenced()
				d.deleteSnapshot(v, s)
				if rapid.Bool().Draw(t, "reclaim") {
					d.reclaim()
				}
				if freed := before - d.referenced(); freed != held {
					t.Fatalf("%s@%s holds %d bytes, and deleting it frees %d", v, s, held, freed)
				}
			},
		}
		names := slices.Sorted(maps.Keys(steps))
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			steps[rapid.SampledFrom(names).Draw(t, "step")]()
		}
		d.verify()
	})
}
