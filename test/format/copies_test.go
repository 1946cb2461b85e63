package format_test

import (
	"os"
	"path"
	"testing"

	"varve/internal/pool"
	"varve/internal/vfs"
)

// TestReaderFindsCopies: the reader finds clones and cow-copies, in the pool and in files, while they are made, when they are whole, when their
// volume is deleted, and when they are.
func TestReaderFindsCopies(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, vfs.OS(), path.Join(dir, "pool"), 11)
	file := path.Join(dir, "disk")
	_, err := w.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "i", Path: file, SizeBytes: volumeBytes})
	w.must(err)
	w.create("r", volumeBytes)
	look := func() {
		t.Helper()
		for range 2 {
			c, err := readPool(os.DirFS(path.Join(dir, "pool")))
			w.must(err)
			compare(t, c, w.p)
			w.must(w.p.Checkpoint(ctx))
		}
	}
	for _, volume := range []string{"i", "r"} {
		w.scribble(volume, 20)
		w.snapshot("s", volume)
		for name, spec := range map[string]pool.CopySpec{
			"cp": {Technique: pool.CowCopy}, "cf": {Technique: pool.CowCopy, Path: path.Join(dir, volume+"-cow")},
			"np": {Technique: pool.Clone}, "nf": {Technique: pool.Clone, Path: path.Join(dir, volume+"-clone")},
			"xp": {Technique: pool.Clone}, "yp": {Technique: pool.CowCopy},
		} {
			_, _, err := w.p.CreateSnapshot(ctx, []string{volume}, pool.SnapshotSpec{Name: name, Copy: &spec})
			w.must(err)
			w.scribble(volume, 5)
		}
		w.bookmark(volume, "cp", "before")
	}
	look()
	for _, info := range w.p.Copying() {
		if info.Name == "xp" || info.Name == "yp" {
			w.must(w.p.CancelCopy(ctx, info.ID))
			continue
		}
		_, err := w.p.Copy(ctx, info.ID, pool.CopyOptions{})
		w.must(err)
	}
	look()
	_, _, err = w.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "i", Name: "np"}, pool.VolumeSpec{Name: "clone"})
	w.must(err)
	w.scribble("clone", 5)
	w.bookmark("r", "np", "after")
	for _, volume := range []string{"i", "r"} {
		w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: volume, Name: "s"}, {Volume: volume, Name: "yp"}, {Volume: volume, Name: "cf"}}))
	}
	look()
	w.must(w.p.DeleteVolume(ctx, "i"))
	w.must(w.p.DeleteVolume(ctx, "r"))
	look()
	for _, volume := range []string{"i", "r"} {
		w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: volume, Name: "cp"}, {Volume: volume, Name: "np"}, {Volume: volume, Name: "nf"}}))
	}
	look()
	if n := len(w.p.Volumes()); n != 1 {
		t.Errorf("%d volumes are left", n)
	}
	w.must(w.p.Close(ctx))
}
