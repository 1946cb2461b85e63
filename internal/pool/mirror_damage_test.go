package pool_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/pool/seglog"
	"varve/internal/vfs/crashfs"
)

// rotAt changes a byte behind an address of the log.
func rotAt(t *testing.T, fs *crashfs.FS, a seglog.Addr, behind int64) {
	t.Helper()
	rot(t, fs, fmt.Sprintf("/pool/log/%016x.seg", a.Segment()), a.Offset()+behind)
}

// TestMirrorOfWhatCannotBeRead: what of the volume cannot be read stays to be copied, and the rest is; when it was written anew it is copied too.
func TestMirrorOfWhatCannotBeRead(t *testing.T) {
	d := newMirrored(t, "redirect", 3<<20)
	d.submit(writeOp(0, 3<<20))
	d.flush()
	rotAt(t, d.fs, d.p.Entries("v")[300].Addr, 7)
	_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
	d.must(err)
	for range 2 {
		if err := d.p.SyncMirror(ctx, "v", nil); !errors.Is(err, block.ErrDamaged) {
			t.Fatalf("copying what cannot be read: %v", err)
		}
		if n := d.p.Differing("v"); !slices.Equal(n, []uint64{1}) {
			t.Errorf("regions %v differ", n)
		}
		d.sameBut(d.p.Differing("v"))
		if _, _, err := d.p.SplitMirror(ctx, "v", pool.SnapshotSpec{Name: "c"}); !errors.Is(err, pool.ErrInUse) {
			t.Errorf("it is split off: %v", err)
		}
		// What was copied and recorded is not copied again after a crash, and what was not is not forgotten.
		fs := d.fs.CrashImage(crashfs.DropAll)
		d.fs.Crash()
		d.p.Abandon()
		d.fs, d.opts.FS = fs, fs
		d.open()
	}
	d.submit(writeOp(300*block.Size, block.Size))
	d.sync()
	d.must(d.p.Close(ctx))
}

// TestMirrorWhoseRegionsAreLost: where nobody knows any more what differs the leg has failed, and everything does; writers go on. A new one can be attached.
func TestMirrorWhoseRegionsAreLost(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.submit(writeOp(1<<20, 4096))
		d.flush()
		d.must(d.p.Checkpoint(ctx))
		rotAt(t, d.fs, d.p.RegionsAddr("v"), 50)
		d.events = nil
		d.crash(crashfs.DropAll)
		if info := d.info(); info.State != pool.MirrorFailed || len(d.p.Differing("v")) != 3 {
			t.Fatalf("the mirror is %+v", info)
		}
		if !slices.ContainsFunc(d.events, func(e pool.Event) bool { return e.Kind == pool.EventMirrorFailed }) {
			t.Errorf("told is %+v", d.events)
		}
		d.submit(writeOp(0, 3<<20))
		d.verify()
		// It can be copied wholly, but what is written then cannot be recorded: it fails again, and no write does.
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.submit(writeOp(2<<20, 4096))
		if info := d.info(); info.State != pool.MirrorFailed || len(d.p.Differing("v")) != 3 {
			t.Fatalf("the mirror is %+v", info)
		}
		d.must(d.p.DetachMirror(ctx, "v"))
		_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true})
		d.must(err)
		d.sync()
		d.submit(writeOp(2<<20, 4096))
		d.verify()
		d.must(d.p.Close(ctx))
	})
}
