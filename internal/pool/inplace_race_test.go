package pool_test

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// beforeRead is a file system in which something happens just before the disk of an inplace volume is read, once, or whenever it was written.
type beforeRead struct {
	vfs.FS
	do, wrote func()
}

func (f *beforeRead) OpenDisk(name string, write bool) (vfs.File, error) {
	file, err := f.FS.OpenDisk(name, write)
	return &readFile{file, f}, err
}

type readFile struct {
	vfs.File
	fs *beforeRead
}

func (f *readFile) ReadAt(p []byte, off int64) (int, error) {
	if do := f.fs.do; do != nil {
		f.fs.do = nil
		do()
	}
	return f.File.ReadAt(p, off)
}

func (f *readFile) NextData(off int64) (from, to int64, err error) {
	if do := f.fs.do; do != nil {
		f.fs.do = nil
		do()
	}
	return f.File.NextData(off)
}

func (f *readFile) WriteAt(bufs [][]byte, off int64) error {
	err := f.File.WriteAt(bufs, off)
	if wrote := f.fs.wrote; wrote != nil {
		wrote()
	}
	return err
}

// TestExtentsOfASnapshotLookAgain: what is in place when it is looked up is kept, and zeroed in the file, before the file is asked for holes.
func TestExtentsOfASnapshotLookAgain(t *testing.T) {
	for _, touched := range []bool{false, true} { // so that the map knows a whole stretch, or single blocks
		d := newInplace(t, 4<<20, 1)
		if touched {
			d.snapshot("before")
			d.submit(writeOp(0, 8192))
		}
		d.snapshot("s")
		d.must(d.p.Close(ctx))
		fs := &beforeRead{FS: d.fs}
		d.opts.FS = fs
		d.open()
		dev, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: "s"})
		d.must(err)
		fs.do = func() { d.submit(op(block.OpZero, 0, 8192)) }
		found, err := dev.Extents(ctx, 0, 8192, 8)
		d.must(err)
		for _, e := range found {
			if e.Zero {
				t.Errorf("what the volume was zeroed in since counts as zeros of the snapshot: %+v", found)
			}
		}
		d.must(errors.Join(dev.Close(), d.p.Close(ctx)))
	}
}

// TestReaderOfASnapshotLooksAgain: a block of a snapshot is in place when it is looked up, and is kept and overwritten before it is read.
func TestReaderOfASnapshotLooksAgain(t *testing.T) {
	d := newInplace(t, 16*block.Size, 1)
	d.snapshot("s")
	_, _, err := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, pool.VolumeSpec{Name: "clone"})
	d.must(err)
	d.must(d.p.Close(ctx))
	fs := &beforeRead{FS: d.fs}
	d.opts.FS = fs
	d.open()
	lba := int64(0)
	overwrite := func() {
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		o := writeOp(lba*block.Size, block.Size)
		dev.Submit(ctx, []*block.Op{o})
		d.must(errors.Join(o.Err, dev.Close()))
	}
	want := d.snapshots["s"].data
	for _, name := range []string{"v@s", "clone"} {
		dev, err := openEither(d.p, name)
		d.must(err)
		fs.do = overwrite
		got := make([]byte, block.Size)
		d.must(dev.ReadAt(ctx, got, lba*block.Size))
		if !bytes.Equal(got, want[lba*block.Size:(lba+1)*block.Size]) {
			t.Errorf("%s: what a writer has put there since is read", name)
		}
		d.must(dev.Close())
		lba++
	}
	// A write to a part of a block reads the rest of it.
	dev, err := d.p.OpenVolume("clone")
	d.must(err)
	fs.do = overwrite
	part := writeOp(lba*block.Size+100, 10)
	dev.Submit(ctx, []*block.Op{part})
	d.must(part.Err)
	got := make([]byte, 100)
	d.must(dev.ReadAt(ctx, got, lba*block.Size))
	if !bytes.Equal(got, want[lba*block.Size:lba*block.Size+100]) {
		t.Error("the rest of a block that is written in part is what a writer has put into the volume since")
	}
	d.must(errors.Join(dev.Close(), d.p.Close(ctx)))
}

// TestSnapshotWhileAWriteLooks: a snapshot is made after a writer has found that nobody wants what is in one of its blocks, and before the log
// says that the block changes. Then the snapshot wants it.
func TestSnapshotWhileAWriteLooks(t *testing.T) {
	d := newInplace(t, 16*block.Size, 1)
	d.snapshot("old")
	d.submit(writeOp(block.Size, block.Size))
	d.snapshot("gone")
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "gone"}})) // now nobody but the head has block 1
	delete(d.snapshots, "gone")
	d.must(d.p.Close(ctx))
	fs := &beforeRead{FS: d.fs}
	d.opts.FS = fs
	d.open()
	want := d.read("v")
	fs.do = func() { // block 0 is read, to be kept for the old one
		_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "new"})
		d.must(err)
	}
	d.submit(writeOp(0, 2*block.Size))
	if fs.do != nil {
		t.Fatal("nothing was read to be kept")
	}
	d.same("v@new", want)
	d.must(d.p.Close(ctx))
}

// TestSnapshotBetweenLookingAndTouching: what nobody has is not kept; a snapshot that comes to have it before the head's map says that it changes is
// asked.
func TestSnapshotBetweenLookingAndTouching(t *testing.T) {
	for _, big := range []bool{false, true} {
		d := newInplace(t, 1<<20, 1)
		d.snapshot("a")
		d.submit(writeOp(0, block.Size))
		d.snapshot("b")
		d.must(d.p.Destage(ctx, "v")) // the head has a version of block 0 that nobody else has
		d.must(d.p.Close(ctx))
		fs := &beforeRead{FS: d.fs}
		d.opts.FS = fs
		d.open()
		d.submit(writeOp(16*block.Size, 1)) // the file is in use now
		fs.do = func() { d.snapshot("c") }  // when the old content of block 1 is read
		length := int64(2 * block.Size)
		if big {
			length = 68 << 10
		}
		o := writeOp(0, length)
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		dev.Submit(ctx, []*block.Op{o})
		d.must(o.Err)
		d.applied(dev, o)
		d.must(dev.Close())
		d.must(d.p.Destage(ctx, "v"))
		d.verify()
		d.must(d.p.Close(ctx))
	}
}
