package pool_test

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// loggedAlone leaves a block of the volume in the log alone, durably, and no snapshot.
func (d *inplace) loggedAlone() {
	d.tb.Helper()
	d.submit(writeOp(0, 2*block.Size)) // in place
	d.snapshot("s")
	d.submit(writeOp(block.Size, block.Size))
	d.flush()
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	delete(d.snapshots, "s")
}

// detached deletes the volume, whose file must have everything then.
func (d *inplace) detached() {
	d.tb.Helper()
	d.verify()
	d.must(d.p.DeleteVolume(ctx, "v"))
	if !bytes.Equal(d.inFile(), d.head.data) {
		d.tb.Fatalf("the file is not what the volume was")
	}
	d.must(d.p.Close(ctx))
}

// TestReadOnlyFileIsLetGoOf: nothing was ever written to it, so all of it is there, also after the pool was opened again.
func TestReadOnlyFileIsLetGoOf(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.must(d.p.Close(ctx))
	d.opts.FS = unwritable{d.fs}
	d.open()
	_, err := d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: diskImage})
	d.must(err)
	d.snapshot("s")
	d.must(d.p.Close(ctx))
	d.open()
	if info, err := d.p.Volume("v"); err != nil || info.Behind {
		t.Errorf("what nobody can write to needs the pool: %+v, %v", info, err)
	}
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	delete(d.snapshots, "s")
	d.detached()
}

// TestFileThatCannotBeSyncedIsNotLetGoOf: after a failed sync nothing more is written to the file, so that it never gets what lies in the log until the
// pool is opened again.
func TestFileThatCannotBeSyncedIsNotLetGoOf(t *testing.T) {
	d := newQuiet(t, 64<<10)
	d.loggedAlone()
	remove := d.fs.Inject(crashfs.Fault{Err: errIO, Match: func(o crashfs.Op) bool { return o.Kind == crashfs.Sync && o.Path == diskImage }})
	if err := d.p.Destage(ctx, "v"); !errors.Is(err, errIO) {
		t.Errorf("destage: %v", err)
	}
	remove()
	if err := d.p.DeleteVolume(ctx, "v"); !errors.Is(err, pool.ErrInUse) || !errors.Is(err, errIO) {
		t.Fatalf("what was written last is let go of with the volume: %v", err)
	}
	d.must(d.p.Close(ctx))
	d.open()
	d.detached()
}

// TestVanishedFileIsNotLetGoOf: the pool was not closed in order, and the file is away, with its disk perhaps. What was written last is in the pool alone.
func TestVanishedFileIsNotLetGoOf(t *testing.T) {
	d := newQuiet(t, 64<<10)
	d.loggedAlone()
	d.p.Abandon()
	d.must(d.fs.Rename(diskImage, "/elsewhere"))
	d.open()
	if err := d.p.DeleteVolume(ctx, "v"); !errors.Is(err, pool.ErrInUse) {
		t.Fatalf("what was written last is let go of with the volume: %v", err)
	}
	d.must(d.p.Close(ctx))
	d.must(d.fs.Rename("/elsewhere", diskImage))
	d.open()
	d.detached()
}

// TestVanishedFileThatWasWholeIsLetGoOf: of a volume to which nothing small was ever written under a snapshot the pool has nothing, however it was closed.
func TestVanishedFileThatWasWholeIsLetGoOf(t *testing.T) {
	d := newQuiet(t, 64<<10)
	d.submit(writeOp(0, block.Size))
	d.p.Abandon()
	d.must(d.fs.Remove(diskImage))
	d.open()
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.must(d.p.Close(ctx))
}
