package pool_test

import (
	"errors"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

// A bookmark pins no data: what only the deleted snapshot held is given back, its map stays.
func TestBookmarkPinsNoData(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 2<<20)
	fill := func() {
		for off := int64(0); off < 2<<20; off += 64 << 10 {
			d.submit("a", writeOp(off, 64<<10))
		}
	}
	reclaim := func() { // and keep no spare files
		t.Helper()
		if _, err := d.p.Reclaim(ctx); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	d.snapshot("s", "a")
	d.bookmark("a", "s", "k")
	fill()
	reclaim()
	before := d.p.Info()
	d.deleteSnapshot("a", "s")
	reclaim()
	after := d.p.Info()
	if freed := before.PhysicalBytes - after.PhysicalBytes; freed < 19<<20/10 {
		t.Errorf("deleting the snapshot freed %d bytes", freed)
	}
	if before.LiveBytes-after.LiveBytes != 2<<20 {
		t.Errorf("of %d live bytes %d are left", before.LiveBytes, after.LiveBytes)
	}
	d.verify()
	d.reopen()
	d.verify()
	d.deleteBookmark("a", "k")
	reclaim()
	if got := d.p.Info().LiveBytes; got >= after.LiveBytes {
		t.Errorf("deleting the bookmark left %d of %d live bytes", got, after.LiveBytes)
	}
	d.verify()
	d.p.Abandon()
}

// P - bookmark K - S - head: whatever goes first, P's data is not K's, K's nodes are not lost, and
// what was written after K's point in time dies with the last that holds it.
func TestBookmarkBetweenSnapshots(t *testing.T) {
	steps := map[string]func(*driver){
		"P": func(d *driver) { d.deleteSnapshot("a", "p") },
		"T": func(d *driver) { d.deleteSnapshot("a", "t") },
		"K": func(d *driver) { d.deleteBookmark("a", "k") },
		"S": func(d *driver) { d.deleteSnapshot("a", "s") },
	}
	for _, order := range []string{"PTKS", "TPKS", "TKPS", "TSPK", "SKTP", "KTSP", "STPK", "PSTK"} {
		d := newDriver(t)
		d.createVolume("a", 3<<20)
		d.submit("a", writeOp(0, 3<<20))
		d.snapshot("p", "a")
		d.submit("a", writeOp(0, 1<<20), discardOp(1<<20, 64<<10))
		d.snapshot("t", "a")
		d.bookmark("a", "t", "k")
		d.submit("a", writeOp(512<<10, 1<<20))
		d.snapshot("s", "a")
		d.submit("a", writeOp(0, 64<<10), writeOp(2<<20, 64<<10))
		for _, step := range order {
			steps[string(step)](d)
			d.submit("a", writeOp(1<<20, 8192), discardOp(2<<20, 8192))
			d.reclaim()
			d.verify()
		}
		// Nothing is left but the head, of 3 MiB less what was discarded.
		if v, err := d.p.Volume("a"); err != nil || d.p.Info().LiveBytes > v.MappedBytes+64<<10 {
			t.Errorf("%s: %d live bytes for %d mapped, %v", order, d.p.Info().LiveBytes, v.MappedBytes, err)
		}
		d.p.Abandon()
	}
}

// Branches that leave nothing but a bookmark share the nodes of what they descend from with the head.
func TestNodesOfForksAreOwnedOnce(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 3<<20)
	d.submit("a", writeOp(0, 3<<20))
	d.snapshot("base", "a")
	for _, name := range []string{"x", "y", "z"} {
		d.submit("a", writeOp(1<<20, 64<<10))
		d.snapshot(name, "a")
		d.bookmark("a", name, "k"+name)
		d.rollback("a", "base")
	}
	d.submit("a", writeOp(0, 64<<10))
	for name := range d.present().volumes["a"].snapshots {
		d.deleteSnapshot("a", name)
	}
	d.reclaim()
	d.verify()
	live := d.p.Info().LiveBytes
	if v, err := d.p.Volume("a"); err != nil || live > v.MappedBytes+64<<10 {
		t.Errorf("%d live bytes for %d mapped, %v", live, v.MappedBytes, err)
	}
	for _, name := range []string{"y", "x", "z"} {
		d.deleteBookmark("a", "k"+name)
		d.reclaim()
		d.verify()
		if now := d.p.Info().LiveBytes; now >= live {
			t.Errorf("deleting a bookmark left %d of %d live bytes", now, live)
		} else {
			live = now
		}
	}
	d.p.Abandon()
}

// Bookmarks share the names of snapshots, go with their volume, and stand in nobody's way.
func TestBookmarkNames(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 64<<10)
	d.snapshot("s", "a")
	d.bookmark("a", "s", "k")
	for name, err := range map[string]error{
		"a snapshot's name":     second(d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "a", Name: "s"}, "s")),
		"a bookmark's name":     second(d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "a", Name: "s"}, "k")),
		"a snapshot called so":  third(d.p.CreateSnapshot(ctx, []string{"a"}, pool.SnapshotSpec{Name: "k"})),
		"no snapshot":           second(d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "a", Name: "no"}, "x")),
		"a bookmark's bookmark": second(d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "a", Name: "k"}, "x")),
		"a bad name":            second(d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "a", Name: "s"}, "X#")),
		"deleting none":         d.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "a", Name: "s"}),
		"deleting of no volume": d.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "b", Name: "k"}),
		"listing of no volume":  second(d.p.Bookmarks("b")),
		"showing none":          second(d.p.Bookmark(pool.BookmarkRef{Volume: "a", Name: "s"})),
		"opening it":            second(d.p.OpenSnapshot(pool.SnapshotRef{Volume: "a", Name: "k"})),
		"rolling back to it":    third(d.p.Rollback(ctx, pool.SnapshotRef{Volume: "a", Name: "k"})),
		"cloning it":            third(d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "a", Name: "k"}, pool.VolumeSpec{Name: "c"})),
	} {
		want := pool.ErrNotFound
		switch name {
		case "a snapshot's name", "a bookmark's name", "a snapshot called so":
			want = pool.ErrExists
		case "a bad name":
			want = pool.ErrInvalid
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	k, err := d.p.Bookmark(pool.BookmarkRef{Volume: "a", Name: "k"})
	if err != nil || k.Snapshot.String() != "a@s" || k.SizeBytes != 64<<10 || !k.CreatedAt.After(k.SnapshotCreatedAt) {
		t.Errorf("%+v, %v", k, err)
	}
	s, err := d.p.Snapshot(pool.SnapshotRef{Volume: "a", Name: "s"})
	if err != nil || k.SnapshotID != s.ID || k.SnapshotCreatedAt != s.CreatedAt {
		t.Errorf("%+v of %+v, %v", k, s, err)
	}
	d.deleteSnapshot("a", "s")
	d.rename("a", "b")
	d.verify()
	d.deleteVolume("b")
	d.createVolume("b", 4096)
	d.verify()
	if d.p.Info().Bookmarks != 0 {
		t.Error("a bookmark outlives its volume")
	}
	d.p.Abandon()
}

func second[A any](_ A, err error) error { return err }

func third[A, B any](_ A, _ B, err error) error { return err }

// Heads that were frozen together write in epochs of their own: a clone and its origin that write
// the same block then have different blocks there.
func TestHeadsOfAGroupWriteInTheirOwnEpochs(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 64<<10)
	d.submit("a", writeOp(0, 64<<10))
	d.snapshot("s", "a")
	d.cloneVolume("a", "s", "c")
	d.snapshot("g", "a", "c")
	d.submit("a", writeOp(4096, 4096))
	d.submit("c", writeOp(4096, 4096))
	d.snapshot("h", "c", "a")
	d.submit("a", writeOp(block.Size, block.Size))
	d.verify()
	d.reopen() // which reads the catalogue, and refuses two states of one epoch
	d.verify()
	d.p.Abandon()
}
