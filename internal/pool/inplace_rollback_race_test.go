package pool_test

import (
	"runtime"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// beforeWrite is a file system in which something happens just before the disk of an inplace volume is written.
type beforeWrite struct {
	vfs.FS
	do func()
}

func (f *beforeWrite) OpenDisk(name string, write bool) (vfs.File, error) {
	file, err := f.FS.OpenDisk(name, write)
	return &writtenFile{file, f}, err
}

type writtenFile struct {
	vfs.File
	fs *beforeWrite
}

func (f *writtenFile) WriteAt(p [][]byte, off int64) error {
	if do := f.fs.do; do != nil {
		f.fs.do = nil
		do()
	}
	return f.File.WriteAt(p, off)
}

// TestRollbackComesBetweenRoundsOfCopyBack: blocks that are being copied back are of the content that there was when that began. A
// rollback to other content waits for them, so that they are not taken for copied afterwards.
func TestRollbackComesBetweenRoundsOfCopyBack(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.must(d.p.Close(ctx))
	fs := &beforeWrite{FS: d.fs}
	d.opts.FS = fs
	d.open()
	d.snapshot("one")
	d.submit(writeOp(0, 8*block.Size))
	d.snapshot("two")
	d.submit(writeOp(0, 8*block.Size))
	d.rollback("one")
	kept := make(chan pool.SnapshotInfo, 1)
	fs.do = func() {
		go func() {
			info, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "two"})
			if err != nil {
				t.Errorf("%v", err)
			}
			kept <- info
		}()
		for len(kept) == 0 && !d.p.RangesWaitedFor("v") {
			runtime.Gosched()
		}
	}
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.snapshots[(<-kept).Name] = d.head.clone()
	d.head = d.snapshots["two"].clone()
	d.verify()
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.verify()
	d.must(d.p.Close(ctx))
}
