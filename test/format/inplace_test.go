package format_test

import (
	"bytes"
	"os"
	"path"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// TestReaderFindsInplaceVolumes: the reader finds what volumes in files of their own, their snapshots and clones hold, from the
// pool's files and theirs: behind the last checkpoint and before it, while a rollback is not copied back, and when it is.
func TestReaderFindsInplaceVolumes(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, vfs.OS(), path.Join(dir, "pool"), 7)
	file := path.Join(dir, "disk")
	w.must(os.WriteFile(file, bytes.Repeat([]byte("what was there "), volumeBytes/15+1)[:volumeBytes], 0o600))
	_, err := w.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: file})
	w.must(err)
	look := func() *contents {
		t.Helper()
		c, err := readPool(os.DirFS(path.Join(dir, "pool")))
		w.must(err)
		compare(t, c, w.p)
		return c
	}
	look()
	w.snapshot("s1", "v")
	w.bookmark("v", "s1", "k1")
	w.scribble("v", 20)
	w.submit("v", block.OpZero, 1<<20, 300<<10)
	w.snapshot("s2", "v")
	_, _, err = w.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s1"}, pool.VolumeSpec{Name: "clone"})
	w.must(err)
	w.scribble("clone", 10)
	w.scribble("v", 20)
	look()
	w.must(w.p.Checkpoint(ctx))
	look()
	_, _, err = w.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s1"})
	w.must(err)
	w.scribble("v", 5)
	look()
	w.must(w.p.Checkpoint(ctx))
	look()
	w.must(w.p.CopyBack(ctx, "v", nil))
	w.scribble("v", 5)
	look()
	w.rollbackRanges("v", "s2")
	w.scribble("v", 5)
	look()
	w.must(w.p.Checkpoint(ctx))
	look()
	w.must(w.p.CopyBack(ctx, "v", nil))
	look()
	w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s2"}}))
	_, err = w.p.Reclaim(ctx)
	w.must(err)
	c := look()
	if c.inPlace == 0 || c.kept == 0 {
		t.Errorf("%d blocks were in place, and %d of them kept", c.inPlace, c.kept)
	}
	w.must(w.p.Close(ctx))
	w.open()
	look()
	w.must(w.p.Close(ctx))
}
