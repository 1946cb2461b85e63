package pool_test

import (
	"errors"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestWhatGoesIsGoneDurablyBeforeItIsOverwritten: the log cannot say durably that a snapshot or bookmark goes. After a power cut it is there again, as it was.
func TestWhatGoesIsGoneDurablyBeforeItIsOverwritten(t *testing.T) {
	for _, bookmark := range []bool{false, true} {
		for _, o := range []*block.Op{writeOp(0, block.Size), bigWrite(0), op(block.OpZero, 0, block.Size), op(block.OpDiscard, 0, block.Size)} {
			d := newQuiet(t, 1<<20)
			d.submit(writeOp(0, block.Size))
			d.snapshot("s")
			if bookmark {
				_, err := d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, "k")
				d.must(err)
				d.bookmarks["k"] = d.snapshots["s"].clone()
				d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
				delete(d.snapshots, "s")
			}
			d.fs.Inject(crashfs.Fault{Err: errIO, Match: func(o crashfs.Op) bool {
				return o.Kind == crashfs.Sync && strings.HasPrefix(o.Path, "/pool/log/")
			}})
			var err error
			if bookmark {
				err = d.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "v", Name: "k"})
			} else {
				err = d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}})
			}
			if !errors.Is(err, errIO) {
				t.Errorf("delete: %v", err)
			}
			dev, err := d.p.OpenVolume("v")
			d.must(err)
			if dev.Submit(ctx, []*block.Op{o}); o.Err == nil {
				d.applied(dev, o)
			} else if !errors.Is(o.Err, pool.ErrWriteStopped) {
				t.Errorf("%v: %v", o.Kind, o.Err)
			}
			d.must(dev.Close())
			d.crash(crashfs.KeepAll, false)
			d.verify()
			d.must(d.p.Close(ctx))
		}
	}
}

// TestNothingIsDestagedOnceTheLogHasStopped: what is written to the file then would never count, and be written again and again.
func TestNothingIsDestagedOnceTheLogHasStopped(t *testing.T) {
	d := newQuiet(t, 64<<10)
	d.loggedAlone()
	d.fs.Inject(crashfs.Fault{Err: errIO, Match: func(o crashfs.Op) bool {
		return (o.Kind == crashfs.Write || o.Kind == crashfs.Truncate) && strings.HasPrefix(o.Path, "/pool/log/")
	}})
	if err := d.p.DeleteVolume(ctx, "v"); err == nil { // it is the next to be logged
		t.Fatal("the log takes it")
	}
	writes := 0
	d.fs.OnOp(func(_ int, o crashfs.Op, _ error) {
		if o.Kind == crashfs.Write && o.Path == diskImage {
			writes++
		}
	})
	if err := d.p.Destage(ctx, "v"); !errors.Is(err, pool.ErrWriteStopped) {
		t.Errorf("destage: %v", err)
	}
	d.fs.OnOp(nil)
	if writes > 0 {
		t.Errorf("%d writes to the file", writes)
	}
	d.crash(crashfs.KeepAll, false)
	d.detached()
}
