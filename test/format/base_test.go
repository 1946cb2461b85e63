package format_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path"
	"testing"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// TestReaderFindsVolumesOverBases: the reader finds what volumes over a base, their snapshots and clones hold, from the pool's files and the base's
// content: before, while and after they are filled, behind the last checkpoint and before it, and when the first of them is deleted.
func TestReaderFindsVolumesOverBases(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, vfs.OS(), path.Join(dir, "pool"), 13)
	const baseBytes, less = volumeBytes/2/4096*4096 + 512, volumeBytes/4/4096*4096 + 512
	data := bytes.Repeat([]byte("what was backed up "), baseBytes/19+1)[:baseBytes]
	clear(data[300<<10 : 800<<10])
	disk, err := memdisk.New(baseBytes)
	w.must(err)
	op := &block.Op{Kind: block.OpWrite, Length: baseBytes, Data: data}
	disk.Submit(ctx, []*block.Op{op})
	w.must(op.Err)
	w.must(w.p.Close(ctx))
	w.opts.OpenBase = func(_ context.Context, ref []byte) (block.Device, error) {
		if string(ref) != "backup 7" {
			t.Errorf("the base is called %q", ref)
		}
		return disk.Open(), nil
	}
	w.open()
	_, err = w.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: volumeBytes, Base: &pool.Base{Ref: []byte("backup 7"), SizeBytes: baseBytes}})
	w.must(err)
	look := func() {
		t.Helper()
		for range 2 {
			c, err := readPool(os.DirFS(path.Join(dir, "pool")))
			w.must(err)
			c.bases = map[string][]byte{"backup 7": data}
			compare(t, c, w.p)
			if t.Failed() {
				t.FailNow()
			}
			w.must(w.p.Checkpoint(ctx))
		}
	}
	look()
	w.scribble("v", 20)
	w.snapshot("s1", "v")
	w.bookmark("v", "s1", "k1")
	look()
	stop := errors.New("so far")
	steps := 0
	if err := w.p.Fill(ctx, "v", func(int64, int64) error {
		if steps++; steps == 2 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	w.scribble("v", 20)
	look()
	_, _, err = w.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s1"}, pool.VolumeSpec{Name: "clone"})
	w.must(err)
	w.scribble("clone", 10)
	w.must(w.p.ResizeVolume(ctx, "v", less, true))
	w.must(w.p.ResizeVolume(ctx, "v", volumeBytes, false))
	look()
	w.must(w.p.Fill(ctx, "clone", nil))
	look()
	w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s1"}}))
	w.must(w.p.DeleteVolume(ctx, "v"))
	_, err = w.p.Reclaim(ctx)
	w.must(err)
	look()
	w.must(w.p.DeleteVolume(ctx, "clone"))
	look()
	c, err := readPool(os.DirFS(path.Join(dir, "pool")))
	w.must(err)
	if len(c.volumes)+len(c.states) != 0 {
		t.Errorf("the reader still finds %d volumes and %d states", len(c.volumes), len(c.states))
	}
	w.must(w.p.Close(ctx))
}
