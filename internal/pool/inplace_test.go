package pool_test

import (
	"bytes"
	"errors"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// TestAdoptRefuses: what cannot be a volume is refused, and nothing of it is changed.
func TestAdoptRefuses(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	defer func() { _ = d.p.Close(ctx) }()
	d.must(d.fs.Mkdir("/dir"))
	odd, err := d.fs.Create("/odd")
	d.must(err)
	d.must(odd.Truncate(5000))
	free, err := d.fs.Create("/free")
	d.must(err)
	d.must(free.Truncate(8192))
	lock, err := d.fs.LockUnchanged("/free")
	d.must(err)
	for _, c := range []struct {
		what string
		spec pool.PlaceSpec
		want error
	}{
		{"a directory", pool.PlaceSpec{Name: "w", Path: "/dir"}, pool.ErrInvalid},
		{"what another volume has", pool.PlaceSpec{Name: "w", Path: diskImage}, pool.ErrInUse},
		{"what another process has locked", pool.PlaceSpec{Name: "w", Path: "/free"}, pool.ErrInUse},
		{"a size that is no multiple of 512", pool.PlaceSpec{Name: "w", Path: "/odd"}, pool.ErrInvalid},
		{"what is not there", pool.PlaceSpec{Name: "w", Path: "/none"}, syscall.ENOENT},
		{"a file of the pool", pool.PlaceSpec{Name: "w", Path: "/pool/superblock"}, pool.ErrInvalid},
		{"a relative path", pool.PlaceSpec{Name: "w", Path: "free"}, pool.ErrInvalid},
		{"a name that is taken", pool.PlaceSpec{Name: "v", Path: "/odd2", SizeBytes: 8192}, pool.ErrExists},
		{"making a file that exists", pool.PlaceSpec{Name: "w", Path: "/odd", SizeBytes: 8192}, syscall.EEXIST},
	} {
		if _, err := d.p.AdoptVolume(ctx, c.spec); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := d.fs.Stat("/odd2"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a refused volume leaves its file: %v", err)
	}
	d.must(lock.Close())
	if _, err := d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "w", Path: "/free"}); err != nil {
		t.Errorf("the same file when it is free: %v", err)
	}
	if n := len(d.p.Volumes()); n != 2 {
		t.Errorf("%d volumes", n)
	}
	d.verify()
}

// TestBookmarkAloneSeesEveryChange: with a bookmark and no snapshot nothing is kept, and what changed is known also after a power cut.
func TestBookmarkAloneSeesEveryChange(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	_, err := d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, "k")
	d.must(err)
	then := d.snapshots["s"].data
	d.bookmarks["k"] = d.snapshots["s"]
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	delete(d.snapshots, "s")
	d.fs.OnOp(func(n int, o crashfs.Op, _ error) {
		for _, policy := range append(crashfs.Policies(len(d.fs.Pending())), crashfs.ProcessCrash) {
			e := &inplace{tb: t, fs: d.fs.CrashImage(policy), clock: d.clock}
			e.opts = options(e.fs, d.clock)
			e.open()
			now := e.read("v")
			changed := map[int64]bool{}
			diff, err := e.p.OpenDiff(pool.PointRef{Volume: "v", Name: "k", Bookmark: true}, pool.PointRef{Volume: "v"})
			e.must(err)
			e.must(diff.Each(ctx, func(off, length int64) error {
				for b := off / block.Size; b*block.Size < off+length; b++ {
					changed[b] = true
				}
				return nil
			}))
			diff.Close()
			for b := range int64(16) {
				if !changed[b] && !bytes.Equal(now[b*block.Size:(b+1)*block.Size], then[b*block.Size:(b+1)*block.Size]) {
					t.Fatalf("crash after operation %d (%v), %v: block %d has changed, and the diff does not say so", n, o, policy, b)
				}
			}
			e.must(e.p.Close(ctx))
		}
	})
	d.submit(writeOp(8192, 4096), writeOp(40000, 9000))
	d.fs.OnOp(nil)
	d.verify()
	d.must(d.p.Destage(ctx, "v"))
	if n := d.p.KeptBytes("v"); n != 0 {
		t.Errorf("%d bytes are kept for nobody", n)
	}
	d.must(d.p.Close(ctx))
}

// TestFileChangedWhileDetached: what somebody else has done to the file while no pool had it is noticed, told, and never served as a snapshot.
func TestFileChangedWhileDetached(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	d.submit(writeOp(0, 4096)) // kept before
	d.must(d.p.Close(ctx))
	d.open() // nothing has changed, and nobody says so
	d.must(d.p.Close(ctx))

	f, err := d.fs.Open(diskImage)
	d.must(err)
	d.must(f.WriteAt([][]byte{bytes.Repeat([]byte{0xee}, 20480)}, 12288))
	d.must(errors.Join(f.Sync(), f.Close()))
	var events []string
	d.opts.OnEvent = func(e pool.Event) { events = append(events, e.Kind) }
	d.open()
	if !slices.Contains(events, pool.EventPlaceChanged) {
		t.Fatalf("events: %v", events)
	}
	snap := func(off int64) ([]byte, error) {
		dev, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: "s"})
		d.must(err)
		defer func() { _ = dev.Close() }()
		b := make([]byte, 4096)
		return b, dev.ReadAt(ctx, b, off)
	}
	check := func() {
		t.Helper()
		if b, err := snap(0); err != nil || !bytes.Equal(b, d.snapshots["s"].data[:4096]) {
			t.Errorf("what was kept before is not served any more: %v", err)
		}
		if _, err := snap(12288); !errors.Is(err, block.ErrDamaged) {
			t.Errorf("what was in the file is served: %v", err)
		}
	}
	check()
	d.submit(writeOp(12288, 4096)) // now something wrong is kept
	check()
	if _, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: "s"}, pool.PointRef{Volume: "v"}); !errors.Is(err, pool.ErrInvalid) {
		t.Errorf("diff: %v", err)
	}
	if _, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("rollback: %v", err)
	}
	if _, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{{Offset: 0, Length: 4096}}, nil); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("rollback of a range: %v", err)
	}
	// From here on everything is as ever.
	_, _, err = d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "after"})
	d.must(err)
	was := d.read("v")
	d.submit(writeOp(0, 32768))
	d.same("v@after", was)
	d.crash(crashfs.KeepAll, false)
	d.same("v@after", was)
	check()
	if info, err := d.p.Volume("v"); err != nil || !info.Suspect {
		t.Errorf("%+v, %v", info, err)
	}
	d.must(d.p.Close(ctx))
}

// TestFileVanishes: without its file a volume is an error that says so; what is kept can be read, and the volume can be let go of.
func TestFileVanishes(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	d.submit(writeOp(0, 8192))
	d.must(d.p.Close(ctx))
	d.must(d.fs.Rename(diskImage, "/elsewhere"))
	d.opts.OnEvent = func(pool.Event) {}
	d.open()
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	b := make([]byte, 8192)
	if err := dev.ReadAt(ctx, b, 0); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), diskImage) {
		t.Errorf("read: %v", err)
	}
	o := writeOp(0, 4096)
	if dev.Submit(ctx, []*block.Op{o}); !errors.Is(o.Err, syscall.ENOENT) {
		t.Errorf("write: %v", o.Err)
	}
	d.must(dev.Close())
	if _, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{{Offset: 0, Length: 4096}}, nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("rollback of a range: %v", err)
	}
	snap, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: "s"})
	d.must(err)
	if err := snap.ReadAt(ctx, b, 0); err != nil || !bytes.Equal(b, d.snapshots["s"].data[:8192]) {
		t.Errorf("what was kept: %v", err)
	}
	d.must(snap.Close())
	d.must(d.p.Close(ctx))
	d.must(d.fs.Rename("/elsewhere", diskImage))
	d.open() // it is back, as it was
	d.verify()
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	d.must(d.p.Close(ctx))
	d.must(d.fs.Remove(diskImage))
	d.open()
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.must(d.p.Close(ctx))
}

// TestFullPoolFailsWritesOrDropsSnapshots: where nothing more can be kept, the snapshot or production wins, as was asked.
func TestFullPoolFailsWritesOrDropsSnapshots(t *testing.T) {
	for _, drop := range []bool{false, true} {
		d := newInplace(t, 8<<20, 1)
		var events []string
		d.opts.OnEvent = func(e pool.Event) { events = append(events, e.Kind) }
		d.must(d.p.Close(ctx))
		d.open()
		d.must(d.p.SetQuota(ctx, 1<<20, 0))
		_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s", DropWhenFull: drop})
		d.must(err)
		d.snapshots["s"] = d.head.clone()
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		var failed error
		for off := int64(0); off < 4<<20 && failed == nil; off += 64 << 10 {
			o := writeOp(off, 64<<10)
			dev.Submit(ctx, []*block.Op{o})
			if failed = o.Err; failed == nil {
				d.applied(dev, o)
			}
		}
		if !drop {
			if !errors.Is(failed, block.ErrNoSpace) {
				t.Errorf("fail-writes: %v", failed)
			}
			d.verify()
			o := writeOp(0, 4096) // what is kept already costs nothing
			if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
				t.Errorf("a write that keeps nothing: %v", o.Err)
			}
		} else {
			if failed != nil || !slices.Contains(events, pool.EventSnapshotDropped) {
				t.Errorf("drop-snapshot: %v, events %v", failed, events)
			}
			delete(d.snapshots, "s")
			d.verify()
		}
		d.must(errors.Join(dev.Close(), d.p.Close(ctx)))
	}
}

// TestReadOnlyFile is adopted read-only, and says so.
func TestReadOnlyFile(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.must(d.p.Close(ctx))
	d.opts.FS = unwritable{d.fs}
	d.open()
	info, err := d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: diskImage})
	d.must(err)
	if !info.ReadOnly {
		t.Error("it is not said to be read-only")
	}
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	for _, o := range []*block.Op{writeOp(0, 4096), op(block.OpZero, 0, 4096), op(block.OpDiscard, 0, 4096)} {
		if dev.Submit(ctx, []*block.Op{o}); !errors.Is(o.Err, block.ErrReadOnly) {
			t.Errorf("%v: %v", o.Kind, o.Err)
		}
	}
	d.must(errors.Join(dev.Flush(ctx), dev.Close()))
	d.same("v", d.head.data)
	d.snapshot("s")
	d.same("v@s", d.head.data)
	if _, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{{Offset: 0, Length: 4096}}, nil); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("rollback of a range: %v", err)
	}
	d.must(d.p.Close(ctx))
}

// unwritable is a file system whose disks cannot be opened for writing.
type unwritable struct{ vfs.FS }

func (f unwritable) OpenDisk(name string, write bool) (vfs.File, error) {
	if write {
		return nil, &pathError{path.Base(name)}
	}
	return f.FS.OpenDisk(name, false)
}

type pathError struct{ name string }

func (e *pathError) Error() string { return "open " + e.name + ": read-only file system" }
func (e *pathError) Unwrap() error { return syscall.EROFS }

// TestRollbackOnAFullPool: the present cannot be kept for lack of room. Once nobody wants it any more, nothing has to be.
func TestRollbackOnAFullPool(t *testing.T) {
	d := newInplace(t, 2<<20, 1)
	d.must(d.p.Close(ctx))
	d.opts.OnEvent = func(e pool.Event) {
		if !strings.HasPrefix(e.Kind, "space-") {
			t.Errorf("event %+v", e)
		}
	}
	d.open()
	d.submit(writeOp(0, 2<<20))
	d.snapshot("s")
	d.submit(writeOp(0, 2<<20))
	d.must(d.p.SetQuota(ctx, 3<<20, 0))
	want := d.snapshots["s"].data
	d.rollback("s")
	if err := d.p.CopyBack(ctx, "v", nil); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("copy back without room: %v", err)
	}
	d.verify()
	for name := range d.snapshots {
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: name}}))
		delete(d.snapshots, name)
	}
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.same("v", want)
	if info, err := d.p.Volume("v"); err != nil || info.CopyingBack {
		t.Errorf("%+v, %v", info, err)
	}
	d.must(d.p.Close(ctx))
}
