package pool_test

import (
	"bytes"
	"errors"
	"testing"

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
