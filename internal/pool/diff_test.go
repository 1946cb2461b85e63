package pool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

func now(volume string) pool.PointRef        { return pool.PointRef{Volume: volume} }
func snap(volume, name string) pool.PointRef { return pool.PointRef{Volume: volume, Name: name} }
func mark(volume, name string) pool.PointRef {
	return pool.PointRef{Volume: volume, Name: name, Bookmark: true}
}

// Rollback leaves two branches, then their common ancestor is deleted: what is "newer than the
// ancestor" would miss blocks; entries that differ do not.
func TestDiffOfBranchesWhoseAncestorIsGone(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 2<<20)
	d.submit("a", writeOp(0, 1<<20))
	d.snapshot("base", "a")
	d.submit("a", writeOp(64<<10, 64<<10), discardOp(512<<10, 64<<10))
	d.snapshot("left", "a")
	d.bookmark("a", "left", "k")
	d.rollback("a", "base")
	d.submit("a", writeOp(96<<10, 64<<10), writeOp(1<<20, 8192))
	d.snapshot("right", "a")
	d.cloneVolume("a", "left", "c")
	d.submit("c", writeOp(0, 4096))
	d.verifyDiffs()
	for _, gone := range []string{"base", "left", "right"} {
		d.deleteSnapshot("a", gone)
		d.reclaim()
		d.verify()
		d.verifyDiffs()
		d.reopen()
		d.verifyDiffs()
	}
	d.p.Abandon()
}

// Shrink to 4,608 bytes and grow: what was cut off has changed, and the diff is of the newer size.
func TestDiffOfUnequalSizes(t *testing.T) {
	for _, written := range []bool{false, true} {
		d := newDriver(t)
		d.createVolume("a", 2<<20+512)
		if written {
			d.submit("a", writeOp(0, 2<<20+512))
		}
		d.snapshot("long", "a")
		d.resize("a", 4608)
		d.snapshot("short", "a")
		d.resize("a", 3<<20)
		d.snapshot("zeros", "a")
		d.submit("a", writeOp(4096, 8192), writeOp(2<<20, 4096), writeOp(3<<20-4096, 4096))
		d.verifyDiffs()
		d.rollback("a", "long")
		d.verifyDiffs()
		d.rollback("a", "short")
		d.verifyDiffs()
		d.p.Abandon()
	}
}

// mkfs discards 64 TiB, and what follows: the diff has what was mapped, found in few steps.
func TestDiffOf64TiBDiscarded(t *testing.T) {
	d := newDriver(t)
	if _, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "a", SizeBytes: pool.MaxVolumeBytes}); err != nil {
		t.Fatal(err)
	}
	dev, err := d.p.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	do := func(o *block.Op) {
		t.Helper()
		if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
			t.Fatal(o.Err)
		}
	}
	take := func(name string) {
		t.Helper()
		if _, _, err := d.p.CreateSnapshot(ctx, []string{"a"}, pool.SnapshotSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	places := []int64{0, 1 << 20, 1 << 30, 1 << 40, pool.MaxVolumeBytes - 4096}
	demand := func(from, to pool.PointRef, want ...int64) {
		t.Helper()
		diff, err := d.p.OpenDiff(from, to)
		if err != nil {
			t.Fatal(err)
		}
		defer diff.Close()
		var got []int64
		if err := diff.Each(ctx, func(off, n int64) error {
			if n != block.Size {
				t.Errorf("%d bytes at %d", n, off)
			}
			got = append(got, off)
			return nil
		}); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s %s: %v, %v; want %v", from, to, got, err, want)
		}
	}
	take("empty")
	for _, off := range places {
		do(writeOp(off, 4096))
	}
	take("used")
	do(discardOp(0, pool.MaxVolumeBytes))
	take("discarded")
	do(discardOp(0, pool.MaxVolumeBytes))
	for range 2 {
		demand(snap("a", "empty"), snap("a", "used"), places...)
		demand(snap("a", "used"), snap("a", "discarded"), places...)
		demand(snap("a", "used"), now("a"), places...)
		demand(snap("a", "discarded"), now("a"))
		demand(snap("a", "empty"), snap("a", "discarded"))
		d.checkpoint()
	}
	do(writeOp(1<<41, 4096))
	demand(snap("a", "discarded"), now("a"), 1<<41)
	demand(snap("a", "used"), now("a"), 0, 1<<20, 1<<30, 1<<40, 1<<41, pool.MaxVolumeBytes-4096)
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	d.p.Abandon()
}

// Blocks that a relayout moves have not changed, whatever they are compared with.
func TestDiffSeesNoRelayout(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	d.scatter("a")
	d.snapshot("s", "a")
	d.bookmark("a", "s", "k")
	d.deleteSnapshot("a", "s") // so that all is the head's own
	d.relayout("a")
	if got := d.diff(d.p, mark("a", "k"), now("a")); len(got) > 0 {
		t.Errorf("changed: %v", got)
	}
	d.submit("a", writeOp(8192, 4096))
	d.relayout("a")
	d.reclaim()
	if got := d.diff(d.p, mark("a", "k"), now("a")); !slices.Equal(got, []int64{2}) {
		t.Errorf("changed: %v", got)
	}
	d.verify()
	d.p.Abandon()
}

// A diff is of the instant at which it was opened, whatever is written, deleted and given back while it runs.
func TestDiffIsOfOneInstant(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 8<<20)
	every := func(step int64) (ops []*block.Op) {
		for off := int64(0); off < 8<<20; off += step {
			ops = append(ops, writeOp(off, 4096))
		}
		return ops
	}
	d.submit("a", every(4096)...)
	d.snapshot("s", "a")
	d.submit("a", every(8192)...) // more runs than are found at a time
	want := d.present().volumes["a"].changed(d.present().find("a", "s").content)
	diff, err := d.p.OpenDiff(snap("a", "s"), now("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer diff.Close()
	var got []int64
	err = diff.Each(ctx, func(off, n int64) error {
		if got = append(got, off/block.Size); len(got) == 10 {
			d.submit("a", every(4096)...)
			d.deleteSnapshot("a", "s")
			d.reclaim()
			d.submit("a", op(block.OpDiscard, 0, 8<<20))
			d.reclaim()
		}
		return nil
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d extents, want %d; %v", len(got), len(want), err)
	}
	d.verify()
	// Its end, by an error of who looks, by cancellation and by the pool's.
	d.snapshot("s", "a")
	d.submit("a", every(8192)...)
	diff, err = d.p.OpenDiff(snap("a", "s"), now("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer diff.Close()
	stop := errors.New("enough")
	if err := diff.Each(ctx, func(int64, int64) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	seen := 0
	if err := diff.Each(cancelled, func(int64, int64) error { seen++; cancel(); return nil }); !errors.Is(err, context.Canceled) || seen > 1024 {
		t.Errorf("%d extents after the cancellation, %v", seen, err)
	}
	closing := sync.OnceValue(func() error { return d.p.Close(ctx) })
	if err := diff.Each(ctx, func(int64, int64) error { return closing() }); !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
	if _, err := d.p.OpenDiff(snap("a", "s"), now("a")); !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
}

func TestDiffRefusesWhatCannotBeCompared(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	d.createVolume("b", 1<<20)
	d.snapshot("s", "a", "b")
	d.bookmark("a", "s", "k")
	for _, c := range []struct {
		from, to pool.PointRef
		want     error
	}{
		{now("a"), now("a"), pool.ErrInvalid},
		{snap("a", "s"), mark("a", "k"), pool.ErrInvalid},
		{snap("a", "s"), now("b"), pool.ErrInvalid},
		{mark("a", "k"), snap("b", "s"), pool.ErrInvalid},
		{snap("a", "k"), now("a"), pool.ErrNotFound},
		{mark("a", "s"), now("a"), pool.ErrNotFound},
		{snap("a", "s"), snap("a", "k"), pool.ErrNotFound},
		{snap("c", "s"), now("a"), pool.ErrNotFound},
		{snap("a", "s"), now("c"), pool.ErrNotFound},
	} {
		if _, err := d.p.OpenDiff(c.from, c.to); !errors.Is(err, c.want) {
			t.Errorf("%s %s: %v", c.from, c.to, err)
		}
	}
	d.p.Abandon()
}

// demandChanges compares what a context says of ranges with the model.
func demandChanges(t *testing.T, d *driver, c *pool.Changes, of, since content) {
	t.Helper()
	changed := map[int64]bool{}
	for _, lba := range of.changed(since) {
		changed[lba] = true
	}
	for _, limit := range []int{1, 2, 1000} {
		for off := int64(0); off < of.size; {
			runs, err := c.Runs(ctx, off, of.size-off, limit)
			if err != nil || len(runs) == 0 || len(runs) > limit {
				t.Fatalf("%v, %v", runs, err)
			}
			for i, r := range runs {
				if r.Length <= 0 || i > 0 && r.Changed == runs[i-1].Changed {
					t.Fatalf("runs %v", runs)
				}
				for end := off + r.Length; off < end; off += block.Size {
					if changed[off/block.Size] != r.Changed {
						t.Fatalf("the block at %d is said to have changed: %t", off, r.Changed)
					}
				}
			}
		}
	}
	if runs, err := c.Runs(ctx, 5000, 100, 10); err != nil || len(runs) != 1 || runs[0] != (pool.Run{Length: 100, Changed: changed[1]}) {
		t.Errorf("within a block: %v, %v", runs, err)
	}
	if _, err := c.Runs(ctx, of.size, 1, 1); !errors.Is(err, block.ErrOutOfRange) {
		t.Error(err)
	}
}

// An open volume tells what has changed in it, as it goes on changing; an open snapshot, what had. What they are compared
// with cannot be deleted until they are closed.
func TestChangesOfOpenDevices(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 4<<20)
	d.submit("a", writeOp(0, 1<<20))
	d.snapshot("s1", "a")
	d.bookmark("a", "s1", "k")
	d.submit("a", writeOp(1<<20, 64<<10), writeOp(0, 100))
	d.snapshot("s2", "a")
	d.bookmark("a", "s2", "k2")
	d.createVolume("b", 4<<20)
	d.snapshot("other", "b")
	dev, err := d.p.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	old, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "a", Name: "s2"})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(dev.OlderNames(100), dev.OlderNames(2), old.OlderNames(100)); got != "[k2 s2 k s1] [k2 s2] [k s1]" {
		t.Errorf("older: %s", got)
	}
	for name, dev := range map[string]*pool.Device{"other": dev, "no": dev, "s2": old, "k2": old} {
		if _, err := dev.ChangesSince(name); !errors.Is(err, pool.ErrNotFound) || dev.HasOlder(name) {
			t.Errorf("since %q: %v", name, err)
		}
	}
	open := func(dev *pool.Device, name string) *pool.Changes {
		t.Helper()
		c, err := dev.ChangesSince(name)
		if err != nil || !dev.HasOlder(name) {
			t.Fatal(err)
		}
		return c
	}
	live, again, past := open(dev, "k"), open(dev, "k"), open(old, "s1")
	s1, s2 := d.present().find("a", "s1").content, d.present().find("a", "s2").content
	demandChanges(t, d, past, s2, s1)
	for range 3 {
		demandChanges(t, d, live, d.present().volumes["a"].content, s1)
		d.submit("a", writeOp(2<<20, 64<<10), discardOp(512<<10, 256<<10), op(block.OpZero, 700, 5000))
		demandChanges(t, d, again, d.present().volumes["a"].content, s1)
		d.rename("a", "x")
		d.rename("x", "a")
		d.checkpoint()
		d.reclaim()
		d.rollback("a", "s2")
	}
	demandChanges(t, d, live, d.present().volumes["a"].content, s1)
	refused := func() {
		t.Helper()
		if err := d.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "a", Name: "k"}); !errors.Is(err, pool.ErrInUse) {
			t.Error(err)
		}
	}
	refused()
	if err := d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "a", Name: "s1"}}); !errors.Is(err, pool.ErrInUse) {
		t.Error(err)
	}
	if err := errors.Join(old.Close(), old.Close()); err != nil {
		t.Fatal(err)
	}
	d.deleteSnapshot("a", "s1")
	refused()
	demandChanges(t, d, live, d.present().volumes["a"].content, s1)
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	d.deleteBookmark("a", "k")
	if _, err := live.Runs(ctx, 0, 4096, 1); !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
	if _, err := dev.ChangesSince("s2"); !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
	d.verify()
	d.p.Abandon()
}
