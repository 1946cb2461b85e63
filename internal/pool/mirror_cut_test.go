package pool_test

import (
	"testing"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestMirrorOfWhatWasGivenUp: a repair that gives flushed batches up has the volume, and what is recorded to differ, as they were; the leg has not gone back.
func TestMirrorOfWhatWasGivenUp(t *testing.T) {
	d := attached(t, "redirect", 3<<20)
	d.flush()
	kept := len(batches(t, d.fs))
	d.submit(writeOp(1<<20, 8192))
	d.flush()
	d.must(d.p.ClearRegions("v"))
	d.flush()
	d.p.Abandon()
	d.fs = d.fs.CrashImage(crashfs.ProcessCrash)
	d.opts.FS = d.fs
	lost := batches(t, d.fs)[kept]
	rot(t, d.fs, lost.file, lost.offset+40)
	rep, err := pool.RepairOffline(ctx, d.opts, true, nil)
	d.must(err)
	if rep.Cut == nil {
		t.Fatal("nothing was given up")
	}
	d.open()
	d.data = d.read("v")
	d.verify()
	d.sync()
	d.must(d.p.Close(ctx))
}
