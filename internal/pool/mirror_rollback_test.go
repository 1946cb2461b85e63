package pool_test

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestMirrorOfARollback: a rollback changes everything, and everything is copied.
func TestMirrorOfARollback(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
		d.must(err)
		then := bytes.Clone(d.data)
		d.submit(writeOp(0, 2<<20))
		_, _, err = d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
		d.must(err)
		d.data = bytes.Clone(then)
		if info := d.info(); info.State != pool.MirrorSyncing {
			t.Errorf("after a rollback the mirror is %+v", info)
		}
		d.submit(writeOp(1<<20, 5000)) // while a rollback may not be copied back
		d.verify()
		d.crash(crashfs.ProcessCrash)
		if n := d.p.Differing("v"); len(n) != 3 {
			t.Errorf("after a rollback and a crash only %v differ", n)
		}
		d.sync()
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.verify()

		// By range, and to a copy: what is put back is copied to the leg too.
		d.submit(writeOp(0, 3<<20))
		d.sync()
		_, _, err = d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{{Offset: 1 << 20, Length: 8192}}, nil)
		d.must(err)
		copy(d.data[1<<20:1<<20+8192], then[1<<20:])
		d.verify()
		d.crash(crashfs.ProcessCrash)
		d.verify()
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.sync()
		d.split()
		_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: "/second.img"})
		d.must(err)
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.submit(writeOp(0, 3<<20))
		_, _, err = d.p.RollbackCopy(ctx, splitRef, nil)
		d.must(err)
		copy(d.data, d.snaps["c"])
		if n := d.p.Differing("v"); len(n) != 3 {
			t.Errorf("after a rollback to a copy only %v differ", n)
		}
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.must(d.p.DetachMirror(ctx, "v"))
		f, err := d.fs.OpenReadOnly("/second.img")
		d.must(err)
		got := make([]byte, len(d.data))
		_, err = f.ReadAt(got, 0)
		d.must(errors.Join(err, f.Close()))
		if !bytes.Equal(got, d.data) || !bytes.Equal(d.read("v"), d.data) {
			t.Error("after a rollback to a copy, and the copying, the leg is not what the volume is")
		}
		d.must(d.p.Close(ctx))
	})
}

// TestMirrorKeepsItsSize: a volume is not rolled back to a snapshot of another size while it is mirrored.
func TestMirrorKeepsItsSize(t *testing.T) {
	d := newMirrored(t, "redirect", 1<<20)
	_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
	d.must(err)
	d.must(d.p.ResizeVolume(ctx, "v", 2<<20, false))
	_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
	d.must(err)
	if _, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}); !errors.Is(err, pool.ErrInUse) {
		t.Errorf("a rollback to a smaller snapshot: %v", err)
	}
	d.must(d.p.DetachMirror(ctx, "v"))
	_, _, err = d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
	d.must(err)
	d.must(d.p.Close(ctx))
}
