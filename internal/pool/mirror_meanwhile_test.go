package pool_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

const secondImage = "/second.img"

// goesOn demands that the pool can be used still, and opened again.
func (d *mirrored) goesOn() {
	d.tb.Helper()
	_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "other", SizeBytes: 1 << 20})
	d.must(err)
	d.check()
	d.must(d.p.Close(ctx))
	d.open()
	d.must(d.p.Close(ctx))
}

// TestMirrorOfWhatIsDeletedMeanwhile: a volume is deleted, with and without copies that outlive it, while it is being mirrored.
func TestMirrorOfWhatIsDeletedMeanwhile(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		for _, copied := range []bool{false, true} {
			d := attached(t, layout, 3<<20)
			if copied {
				d.split()
			} else {
				d.must(d.p.DetachMirror(ctx, "v"))
			}
			fs := d.rehook()
			fs.once(of(secondImage, crashfs.Stat, true), func() { d.must(d.p.DeleteVolume(ctx, "v")) })
			if _, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: secondImage}); !errors.Is(err, pool.ErrNotFound) {
				t.Errorf("a volume that was deleted meanwhile, with copies: %v, is mirrored: %v", copied, err)
			}
			if _, err := d.fs.Stat(secondImage); err == nil {
				t.Error("the file that was made for it is left")
			}
			d.goesOn()
		}
	})
}

// TestResyncOfWhatIsDeletedMeanwhile: a volume is deleted while a copy of it is made its leg.
func TestResyncOfWhatIsDeletedMeanwhile(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.split()
		fs := d.rehook()
		fs.once(of(legImage, crashfs.Stat, true), func() { d.must(d.p.DeleteVolume(ctx, "v")) })
		if _, err := d.p.ResyncMirror(ctx, splitRef); !errors.Is(err, pool.ErrNotFound) {
			t.Errorf("a volume that was deleted meanwhile is mirrored: %v", err)
		}
		if !bytes.Equal(d.read("v@c"), d.snaps["c"]) {
			t.Error("the copy is not what it was")
		}
		d.goesOn()
	})
}

// TestMirrorOfWhatIsResizedMeanwhile: a leg is as large as the volume is when it is attached, not when its file was looked at.
func TestMirrorOfWhatIsResizedMeanwhile(t *testing.T) {
	d := newMirrored(t, "redirect", 1<<20)
	fs := d.rehook()
	fs.once(of(legImage, crashfs.Stat, true), func() { d.must(d.p.ResizeVolume(ctx, "v", 2<<20, false)) })
	if _, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage}); !errors.Is(err, pool.ErrInUse) {
		t.Errorf("a leg that is smaller than the volume by now is attached: %v", err)
	}
	d.goesOn()
}

// TestMirrorIsAttachedWhileTheVolumeIsPutBack: a rollback that copies gives a volume another size at its end, while it has been mirrored since the beginning.
func TestMirrorIsAttachedWhileTheVolumeIsPutBack(t *testing.T) {
	for _, size := range []int64{512 << 10, 2 << 20} {
		d := attached(t, "redirect", 1<<20)
		d.split()
		d.must(d.p.ResizeVolume(ctx, "v", size, true))
		d.data = append(d.data, make([]byte, 1<<20)...)[:size]
		d.submit(writeOp(0, 8192))
		calls := 0
		_, _, err := d.p.RollbackCopy(ctx, splitRef, func(float64) error {
			if calls++; calls == 2 {
				_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: secondImage})
				return err
			}
			return nil
		})
		if calls < 2 || !errors.Is(err, pool.ErrInUse) {
			t.Errorf("a mirrored volume of %d bytes is rolled back to a copy of another size: %v", size, err)
		}
		if !bytes.Equal(d.read("v"), d.data) {
			t.Error("the volume is not what it was")
		}
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.must(d.p.DetachMirror(ctx, "v"))
		d.goesOn()
	}
}

// TestRollbackWhileACopyIsResynced: what differs is everything then, also after a crash.
func TestRollbackWhileACopyIsResynced(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
		d.must(err)
		then := bytes.Clone(d.data)
		d.submit(writeOp(0, 1<<20), writeOp(2<<20, 8192))
		d.split()
		d.submit(writeOp(1<<20, 4096))
		fs := d.rehook()
		fs.once(of(legImage, crashfs.Read, true), func() {
			_, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
			d.must(err)
		})
		_, err = d.p.ResyncMirror(ctx, splitRef)
		d.must(err)
		copy(d.data, then)
		clear(d.dirty)
		d.verify()
		d.crash(crashfs.DropAll)
		d.verify()
		d.sync()
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.must(d.p.Close(ctx))
	})
}

// TestCopyIsProtectedWhileItIsResynced: what was protected is not deleted.
func TestCopyIsProtectedWhileItIsResynced(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.split()
		fs := d.rehook()
		fs.once(of(legImage, crashfs.Read, true), func() { d.must(d.p.ProtectSnapshot(ctx, splitRef, true)) })
		if _, err := d.p.ResyncMirror(ctx, splitRef); !errors.Is(err, pool.ErrProtected) {
			t.Errorf("a copy that was protected meanwhile is made a leg: %v", err)
		}
		if !bytes.Equal(d.read("v@c"), d.snaps["c"]) || d.hasMirror() {
			t.Error("the copy is not what it was")
		}
		d.goesOn()
	})
}

// TestLegIsAttachedAgainToWhatIsDeletedMeanwhile: a clone of an inplace volume is deleted while its leg, which has failed, is attached again.
func TestLegIsAttachedAgainToWhatIsDeletedMeanwhile(t *testing.T) {
	d := newMirrored(t, "inplace", 3<<20)
	_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
	d.must(err)
	_, _, err = d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, pool.VolumeSpec{Name: "w"})
	d.must(err)
	_, err = d.p.AttachMirror(ctx, "w", pool.LegSpec{Path: legImage})
	d.must(err)
	d.must(d.p.SyncMirror(ctx, "w", nil))
	d.must(d.p.Close(ctx))
	d.must(d.fs.Rename(legImage, "/elsewhere"))
	fs := &hooked{FS: d.fs}
	d.opts.FS = fs
	d.open()
	d.must(d.fs.Rename("/elsewhere", legImage))
	fs.once(of(legImage, crashfs.Stat, true), func() {
		d.must(errors.Join(d.p.DetachMirror(ctx, "w"), d.p.DeleteVolume(ctx, "w")))
	})
	if _, err := d.p.AttachMirror(ctx, "w", pool.LegSpec{Path: legImage}); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("the leg of what was deleted meanwhile is attached again: %v", err)
	}
	d.goesOn()
}

// TestCopyingEndsWhenTheMirrorIsDetached: it says so, and does not look like a failure of the leg.
func TestCopyingEndsWhenTheMirrorIsDetached(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := newMirrored(t, layout, 3<<20)
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		err = d.p.SyncMirror(ctx, "v", func(float64) { d.must(d.p.DetachMirror(ctx, "v")) })
		if !errors.Is(err, pool.ErrNotFound) || len(d.events) > 0 {
			t.Errorf("the copying ends with %v, told is %+v", err, d.events)
		}
		d.goesOn()
	})
}

// TestGateIsShutUntilWhatDiffersIsNoted: who splits a mirror off, alone with the gate, finds what a write has left of which one side alone may have taken.
func TestGateIsShutUntilWhatDiffersIsNoted(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		fs := d.rehook()
		reached, goOn := make(chan struct{}), make(chan struct{})
		fs.once(of(legImage, crashfs.Write, false), func() {
			close(reached)
			<-goOn
		})
		wrote := make(chan error)
		o := writeOp(0, 4096)
		go func() {
			dev, err := d.p.OpenVolume("v")
			if err == nil {
				dev.Submit(ctx, []*block.Op{o})
				err = errors.Join(o.Err, dev.Close())
			}
			wrote <- err
		}()
		<-reached
		release := d.p.HoldRegions("v")
		close(goOn)
		for range 10000 {
			if d.p.GateFree("v") {
				t.Error("the gate can be had, and what differs is not noted")
				break
			}
			runtime.Gosched()
		}
		release()
		d.must(<-wrote)
		copy(d.data, o.Data)
		d.verify()
		d.must(d.p.Close(ctx))
	})
}
