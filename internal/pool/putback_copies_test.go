package pool_test

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// TestRollbackToACopy, wholly and by range: it is copied, the present is kept, and the copy stays what it is.
func TestRollbackToACopy(t *testing.T) {
	for _, c := range copyCases() {
		t.Run(c.String(), func(t *testing.T) {
			d := c.setup(t)
			then := d.read("v")
			_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
			d.must(err)
			d.write("v", writeOp(0, 5*block.Size), writeOp(20*block.Size, block.Size))
			present := d.read("v")
			if _, _, err := d.p.Rollback(ctx, copyRef); !errors.Is(err, pool.ErrInvalid) {
				t.Fatalf("at once: %v", err)
			}
			kept := func(done pool.PutBack, err error, bytes int64) {
				t.Helper()
				d.must(err)
				if done.Bytes != bytes {
					t.Errorf("%d bytes were put back, want %d", done.Bytes, bytes)
				}
				d.same("v@"+done.Kept.Name, present)
				d.same("v@c", then)
				d.clock.now = d.clock.now.Add(1e9)
			}
			done, _, err := d.p.RollbackRanges(ctx, copyRef, []pool.Range{{Offset: 4 * block.Size, Length: 19 * block.Size}}, nil)
			kept(done, err, 2*block.Size)
			d.same("v", append(append([]byte{}, present[:4*block.Size]...), then[4*block.Size:]...))
			_, _, err = d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: done.Kept.Name})
			d.must(err)
			d.clock.now = d.clock.now.Add(1e9)
			d.same("v", present)
			done, _, err = d.p.RollbackCopy(ctx, copyRef, nil)
			kept(done, err, 6*block.Size)
			d.same("v", then)
			d.must(d.p.CopyBack(ctx, "v", nil))
			d.same("v", then)
			d.must(d.p.Cycle(ctx))
			d.must(d.p.CheckOwners())
			d.must(d.p.Close(ctx))
			d.open()
			d.same("v", then)
			d.must(d.p.Close(ctx))
		})
	}
}

// TestRollbackToACopyOfAnotherSize gives a redirect volume the copy's.
func TestRollbackToACopyOfAnotherSize(t *testing.T) {
	for _, size := range []int64{8 * block.Size, copiedBlocks*block.Size - 512, 40 * block.Size} {
		c := copyCase{technique: pool.Clone}
		d := c.setup(t)
		then := d.read("v")
		_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
		d.must(err)
		d.must(d.p.ResizeVolume(ctx, "v", size, true))
		_, _, err = d.p.RollbackCopy(ctx, copyRef, nil)
		d.must(err)
		d.same("v", then)
		d.must(d.p.Close(ctx))
	}
}

// TestResizedBeforeRangesAreRolledBack: a volume keeps the size that it got between the look at the ranges and the first step; a range that it has no more is refused.
func TestResizedBeforeRangesAreRolledBack(t *testing.T) {
	for _, size := range []int64{8 * block.Size, 40 * block.Size} {
		d := copyCase{}.setup(t)
		then := d.read("v@older")
		resized := false
		_, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "older"}, []pool.Range{{Offset: 0, Length: 20 * block.Size}}, func(float64) error {
			if resized {
				return nil
			}
			resized = true
			return d.p.ResizeVolume(ctx, "v", size, true)
		})
		if grown := size > 20*block.Size; (err == nil) != grown || err != nil && !errors.Is(err, pool.ErrInvalid) {
			t.Fatalf("to %d bytes: %v", size, err)
		}
		if info, err := d.p.Volume("v"); err != nil || info.SizeBytes != size {
			t.Errorf("it was resized to %d bytes and has %d, %v", size, info.SizeBytes, err)
		}
		if now := d.read("v"); size > 20*block.Size && !bytes.Equal(now[:20*block.Size], then[:20*block.Size]) {
			t.Error("the range is not what it was")
		}
		d.must(d.p.Close(ctx))
	}
}

// TestRollbackToACopyAfterTheFileWasChanged by somebody else: nobody knows what differs, so all is compared.
func TestRollbackToACopyAfterTheFileWasChanged(t *testing.T) {
	c := copyCase{inplace: true, technique: pool.Clone}
	d := c.setup(t)
	then := d.read("v")
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.must(d.p.Close(ctx))
	f, err := d.fs.Open(diskImage)
	d.must(err)
	d.must(errors.Join(f.WriteAt([][]byte{stamp(3 * block.Size)}, 8*block.Size), f.Sync(), f.Close()))
	d.opts.OnEvent = func(pool.Event) {}
	d.open()
	if _, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: "c"}, pool.PointRef{Volume: "v"}); !errors.Is(err, pool.ErrInvalid) {
		t.Fatalf("a diff knows what differs: %v", err)
	}
	done, _, err := d.p.RollbackCopy(ctx, copyRef, nil)
	d.must(err)
	if done.Bytes != 3*block.Size {
		t.Errorf("%d bytes were put back", done.Bytes)
	}
	d.same("v", then)
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.same("v", then)
	d.must(d.p.Close(ctx))
}

// fine is a file system with blocks of 1 KiB, which says so of holes.
type fine struct{ vfs.FS }

func (f fine) OpenDisk(name string, write bool) (vfs.File, error) {
	file, err := f.FS.OpenDisk(name, write)
	return fineFile{file}, err
}

type fineFile struct{ vfs.File }

func (f fineFile) NextData(off int64) (from, to int64, err error) {
	const kib = 1024
	size, err := f.Size()
	b := make([]byte, kib)
	holds := func(at int64) bool {
		clear(b)
		if _, e := f.ReadAt(b[:min(kib, size-at)], at); err == nil {
			err = e
		}
		return bytes.ContainsFunc(b, func(r rune) bool { return r != 0 })
	}
	off = off / kib * kib
	for from = off; from < size && !holds(from); from += kib {
	}
	for to = from; to < size && holds(to); to += kib {
	}
	return min(from, size), min(to, size), err
}

// TestRollbackToACopyWithHolesOfPartsOfBlocks: a file system may have smaller blocks than a volume.
func TestRollbackToACopyWithHolesOfPartsOfBlocks(t *testing.T) {
	c := copyCase{inplace: true, technique: pool.Clone, path: "/copy.img"}
	d := c.setup(t)
	d.must(d.p.Close(ctx))
	d.opts.FS = fine{d.fs}
	d.open()
	part := make([]byte, 2*block.Size)
	copy(part[3*1024:], stamp(3*1024))
	d.write("v", dataOp(8*block.Size, part))
	then := d.read("v")
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.write("v", writeOp(6*block.Size, 6*block.Size))
	_, _, err = d.p.RollbackCopy(ctx, copyRef, nil)
	d.must(err)
	d.same("v", then)
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.same("v", then)
	d.must(d.p.Close(ctx))
}

// TestCopyCutOffWhileRead: what somebody has cut off a copy's file is an error, not zeros.
func TestCopyCutOffWhileRead(t *testing.T) {
	c := copyCase{technique: pool.Clone, path: "/copy.img"}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.must(d.p.Close(ctx))
	d.opts.OnEvent = func(pool.Event) {}
	d.open()
	dev, err := d.p.OpenSnapshot(copyRef)
	d.must(err)
	defer dev.Close()
	f, err := d.fs.Open("/copy.img")
	d.must(err)
	d.must(errors.Join(f.Truncate(2*block.Size), f.Close()))
	if err := dev.ReadAt(ctx, make([]byte, block.Size), 3*block.Size); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	if extents, err := dev.Extents(ctx, 0, dev.SizeBytes(), 10); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("extents: %+v, %v", extents, err)
	}
}

// TestRollbackPutsNothingBehindTheEnd: what grows from a volume whose end lies within a block has zeros there.
func TestRollbackPutsNothingBehindTheEnd(t *testing.T) {
	for _, inplace := range []bool{false, true} {
		c := copyCase{inplace: inplace, technique: pool.Clone}
		d := c.setup(t)
		const size = copiedBlocks*block.Size - 512
		d.write("v", writeOp(0, size))
		then := d.read("v")
		_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
		d.must(err)
		d.write("v", writeOp(0, 8*block.Size), writeOp((copiedBlocks-1)*block.Size, 3584)) // two pieces, of which the second is the shorter one
		_, _, err = d.p.RollbackCopy(ctx, copyRef, nil)
		d.must(err)
		_, _, err = d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "after"})
		d.must(err)
		_, _, err = d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "after"}, pool.VolumeSpec{Name: "w"})
		d.must(err)
		d.must(d.p.ResizeVolume(ctx, "w", copiedBlocks*block.Size, false))
		if got := d.read("w"); !bytes.Equal(got, append(then, make([]byte, 512)...)) {
			t.Errorf("inplace %v: what has grown is not the volume and zeros", inplace)
		}
		d.must(d.p.Close(ctx))
	}
}
