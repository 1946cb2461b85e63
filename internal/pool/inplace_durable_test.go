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
