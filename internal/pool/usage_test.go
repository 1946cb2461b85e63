package pool_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
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

// A volume's total is what deleting it with all its snapshots gives back, and no number while clones share that; the
// largest holders are named first.
func TestHolders(t *testing.T) {
	d := newDriver(t)
	defer func() { _ = d.p.Close(ctx) }()
	d.createVolume("a", 256<<10)
	d.createVolume("b", 256<<10)
	for i := range 3 {
		d.submit("a", writeOp(0, 64<<10))
		d.snapshot(fmt.Sprintf("s%d", i), "a")
	}
	d.submit("a", writeOp(32<<10, 8<<10))
	d.rollback("a", "s1")
	d.submit("a", writeOp(0, 4096))
	d.deleteSnapshot("a", "s1") // two descend from it
	d.bookmark("a", "s0", "k")
	d.submit("b", writeOp(0, 128<<10))
	holders := func() pool.Holders {
		t.Helper()
		h, err := d.p.Holders(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range h.Volumes {
			if total, err := d.p.VolumeTotal(ctx, v.Name); err != nil || total != v.Total {
				t.Errorf("the total of %s is %d, or %d (%v)", v.Name, v.Total, total, err)
			}
		}
		for _, s := range h.Snapshots {
			if v, name, _ := strings.Cut(s.Name, "@"); d.exclusive(v, name) != s.Exclusive {
				t.Errorf("%s holds %d bytes, or %d", s.Name, s.Exclusive, d.exclusive(v, name))
			}
		}
		return h
	}
	h := holders()
	if len(h.Volumes) != 2 || h.Volumes[0].Name != "a" || h.Volumes[0].Snapshots != 3 || len(h.Snapshots) != 3 || len(h.Hidden) != 1 || h.Hidden[0].Exclusive == 0 {
		t.Errorf("%+v", h)
	}
	if h.Volumes[1].Total != 128<<10 || h.Volumes[1].Exclusive != 128<<10 {
		t.Errorf("%+v", h.Volumes[1])
	}
	before := d.referenced()
	d.cloneVolume("a", "s0", "c")
	if h := holders(); h.Volumes[slices.IndexFunc(h.Volumes, func(v pool.Holder) bool { return v.Name == "a" })].Total != -1 {
		t.Errorf("with a clone: %+v", h)
	}
	d.deleteVolume("c")
	if again := holders(); again.Volumes[0].Total != h.Volumes[0].Total {
		t.Errorf("after the clone went: %+v, before it came %+v", again, h)
	}
	for _, s := range slices.Sorted(maps.Keys(d.present().volumes["a"].snapshots)) {
		d.deleteSnapshot("a", s)
	}
	d.deleteBookmark("a", "k")
	d.deleteVolume("a")
	if freed := before - d.referenced(); freed != h.Volumes[0].Total {
		t.Errorf("deleting the volume and all of it frees %d bytes, not %d", freed, h.Volumes[0].Total)
	}
}
