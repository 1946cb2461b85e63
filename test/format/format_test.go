package format_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"testing"
	"testing/fstest"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

var ctx = context.Background()

const volumeBytes = 2<<20 + 512

// writer does things to a pool that put every structure of the format into its files.
type writer struct {
	t    *testing.T
	opts pool.Options
	p    *pool.Pool
	rnd  *rand.Rand
}

func newWriter(t *testing.T, fsys vfs.FS, dir string, seed uint64) *writer {
	t.Helper()
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	w := &writer{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), opts: pool.Options{
		FS: fsys, Dir: dir, Manual: true, SegmentBytes: 64 << 10, MapCacheBytes: 1 << 20,
		Clock: func() time.Time { now = now.Add(time.Second); return now },
	}}
	if err := pool.Create(ctx, w.opts); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

func (w *writer) open() {
	w.t.Helper()
	p, err := pool.Open(ctx, w.opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.p = p
	w.t.Cleanup(func() { _ = p.Close(ctx) }) // again where the test has closed it, which does nothing
}

func (w *writer) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) create(name string, size int64) {
	w.t.Helper()
	_, err := w.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: size, Labels: map[string]string{"of": name}})
	w.must(err)
}

func (w *writer) snapshot(name string, volumes ...string) {
	w.t.Helper()
	_, _, err := w.p.CreateSnapshot(ctx, volumes, pool.SnapshotSpec{Name: name, KeepFor: time.Hour})
	w.must(err)
}

// rollbackRanges makes parts of a volume what they were.
func (w *writer) rollbackRanges(volume, snapshot string) {
	w.t.Helper()
	ranges := []pool.Range{{Offset: 0, Length: 1 << 19}, {Offset: 3 << 19, Length: 1 << 19}}
	done, _, err := w.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: volume, Name: snapshot}, ranges, nil)
	w.must(err)
	if done.Bytes == 0 {
		w.t.Errorf("nothing of %s was put back", volume)
	}
}

func (w *writer) bookmark(volume, snapshot, name string) {
	w.t.Helper()
	_, err := w.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: volume, Name: snapshot}, name)
	w.must(err)
}

func (w *writer) submit(volume string, kind block.OpKind, off, n int64) {
	w.t.Helper()
	dev, err := w.p.OpenVolume(volume)
	w.must(err)
	op := &block.Op{Kind: kind, Offset: off, Length: n}
	if kind == block.OpWrite {
		op.Data = make([]byte, n)
		for i := range op.Data {
			op.Data[i] = byte(w.rnd.Uint32())
		}
	}
	dev.Submit(ctx, []*block.Op{op})
	w.must(errors.Join(op.Err, dev.Close()))
}

func (w *writer) flush(volume string) {
	w.t.Helper()
	dev, err := w.p.OpenVolume(volume)
	w.must(err)
	w.must(errors.Join(dev.Flush(ctx), dev.Close()))
}

// scribble changes a volume in n ways: mostly unaligned writes, some zeroes and discards.
func (w *writer) scribble(volume string, n int) {
	w.t.Helper()
	info, err := w.p.Volume(volume)
	w.must(err)
	kinds := []block.OpKind{block.OpWrite, block.OpWrite, block.OpWrite, block.OpZero, block.OpZeroAllocated, block.OpDiscard}
	for range n {
		off := w.rnd.Int64N(info.SizeBytes)
		length := min([]int64{1, 700, 4096, 9000, 100000}[w.rnd.IntN(5)], info.SizeBytes-off)
		w.submit(volume, kinds[w.rnd.IntN(len(kinds))], off, length)
	}
}

// story leaves a pool with volumes, group snapshots, a rollback, clones, hidden states,
// tombstones, differences and moved blocks, partly behind the last checkpoint.
func (w *writer) story() {
	w.t.Helper()
	w.create("a", volumeBytes)
	w.create("b", volumeBytes)
	w.create("alone", 1<<20) // without a parent, so that what is discarded leaves no trace
	w.submit("alone", block.OpWrite, 0, 1<<20)
	w.submit("a", block.OpWrite, 0, volumeBytes)
	w.scribble("b", 20)
	w.snapshot("s1", "a", "b")
	w.submit("a", block.OpDiscard, 0, 1<<20) // fills an inner slot
	w.scribble("a", 5)
	w.bookmark("a", "s1", "k1")
	w.bookmark("b", "s1", "k1")
	w.must(w.p.Checkpoint(ctx))
	w.bookmark("a", "s1", "k2")
	for range 3 { // few changes of a full leaf become differences
		w.submit("a", block.OpWrite, 1<<20+4096*w.rnd.Int64N(100), 4096)
		w.submit("a", block.OpDiscard, 1<<20+4096*w.rnd.Int64N(100), 4096)
		w.submit("alone", block.OpDiscard, 4096*w.rnd.Int64N(256), 4096)
		w.must(w.p.Checkpoint(ctx))
	}
	w.relayout("a")
	w.snapshot("s2", "a")
	w.scribble("a", 5)
	w.bookmark("a", "s2", "k3") // on the branch that the rollback leaves
	_, _, err := w.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "a", Name: "s1"}, pool.VolumeSpec{Name: "clone"})
	w.must(err)
	w.scribble("clone", 10)
	w.must(w.p.ResizeVolume(ctx, "a", volumeBytes+8192, false))
	_, _, err = w.p.Rollback(ctx, pool.SnapshotRef{Volume: "a", Name: "s1"})
	w.must(err)
	w.scribble("a", 5)
	w.rollbackRanges("a", "s2")
	w.scribble("a", 5)
	w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "a", Name: "s1"}})) // stays, hidden
	w.snapshot("s3", "a", "b", "clone")
	w.must(w.p.ProtectSnapshot(ctx, pool.SnapshotRef{Volume: "b", Name: "s3"}, true))
	w.must(w.p.RenameVolume(ctx, "b", "beta"))
	w.must(w.p.ResizeVolume(ctx, "beta", 1<<20+512, true))
	w.must(w.p.ResizeVolume(ctx, "beta", 3<<19, false))
	w.create("short", 8192)
	w.submit("short", block.OpWrite, 100, 5000)
	w.must(w.p.DeleteVolume(ctx, "short"))
	w.scribble("beta", 5)
	w.scribble("clone", 5)
	w.relayout("clone")
	w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "a", Name: "s2"}}))
	w.must(w.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "a", Name: "k2"}))
	w.create("forked", 1<<20)
	w.submit("forked", block.OpWrite, 0, 1<<20)
	for i := range 3 { // three branches from one snapshot, of which two leave a bookmark
		if w.snapshot(fmt.Sprint(i), "forked"); i > 0 {
			w.bookmark("forked", fmt.Sprint(i), fmt.Sprint("k", i))
		}
		w.scribble("forked", 5)
		_, _, err := w.p.Rollback(ctx, pool.SnapshotRef{Volume: "forked", Name: "0"})
		w.must(err)
	}
	w.scribble("forked", 5)
	snaps, err := w.p.Snapshots("forked")
	w.must(err)
	for _, s := range snaps { // what they descend from becomes a fork
		w.must(w.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "forked", Name: s.Name}}))
	}
	w.flush("a")
}

// relayout moves every other block of a volume after writing them from the last to the first.
func (w *writer) relayout(volume string) {
	w.t.Helper()
	info, err := w.p.Volume(volume)
	w.must(err)
	for off := info.SizeBytes&^8191 - 8192; off >= 0; off -= 8192 {
		w.submit(volume, block.OpWrite, off, 4096)
	}
	done, err := w.p.Relayout(ctx, volume, pool.RelayoutOptions{})
	w.must(err)
	if done.Moved == 0 {
		w.t.Errorf("nothing of %s was moved: %+v", volume, done)
	}
}

// compare fails unless the reader and the pool have the same volumes, snapshots, lineage and bytes.
func compare(t *testing.T, c *contents, p *pool.Pool) {
	t.Helper()
	read := map[string]*state{}
	name := func(s *state) string {
		v := c.volumes[s.Volume]
		switch s.Kind {
		case 1:
			return v.Name
		case 4:
			return v.Name + "#" + s.Name
		}
		return v.Name + "@" + s.Name
	}
	visible := func(s *state) *state {
		up := c.states[s.Parent]
		for up != nil && (up.Kind != 2 || up.Copying != nil && up.Copying.Technique != 1) {
			up = c.states[up.Parent]
		}
		if up != nil {
			if v := c.volumes[up.Volume]; v != nil && v.ContentOf != 0 {
				return c.states[v.ContentOf]
			}
		}
		return up
	}
	for _, s := range c.states {
		unseen := s.Kind == 3 || s.Kind == 5 || s.Copying != nil && s.Copying.Technique != 1
		if v := c.volumes[s.Volume]; !unseen && v.KeptOf == 0 && v.ContentOf == 0 && v.RegionsOf == 0 && v.Filling == nil && !(v.Deleted && s.Kind == 1) {
			read[name(s)] = s
		}
		if up := c.states[s.Parent]; s.Parent != 0 && (up == nil || up.Kind == 1 || up.Epoch > s.Epoch || up.Epoch == s.Epoch && s.Kind != 4 && s.Kind != 6 || s.Epoch > c.lastEpoch) {
			t.Errorf("state %+v has the parent %+v", s.imageState, up)
		}
	}
	check := func(what, parent string, dev block.Device, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = dev.Close() }()
		s := read[what]
		if s == nil {
			t.Fatalf("the reader does not know %s", what)
		}
		delete(read, what)
		want := make([]byte, dev.SizeBytes())
		if err := dev.ReadAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		got, err := c.content(s)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, and the pool has %d others", what, len(got), len(want))
		}
		if s.Kind == 6 {
			return
		}
		from := ""
		if up := visible(s); up != nil {
			from = name(up)
		}
		if from != parent {
			t.Errorf("%s descends from %q, and in the pool from %q", what, from, parent)
		}
	}
	for _, v := range p.Volumes() {
		if v.Deleted {
			continue
		}
		dev, err := p.OpenVolume(v.Name)
		parent := v.Parent
		if parent != "" {
			parent = v.Name + "@" + parent
		} else if s := read[v.Name]; s != nil && visible(s) != nil {
			parent = name(visible(s)) // of another volume, which VolumeInfo leaves out
		}
		check(v.Name, parent, dev, err)
	}
	snaps, err := p.Snapshots("")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range snaps {
		ref := pool.SnapshotRef{Volume: s.Volume, Name: s.Name}
		dev, err := p.OpenSnapshot(ref)
		check(ref.String(), s.Parent, dev, err)
	}
	marks, err := p.Bookmarks("")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range marks {
		what := pool.BookmarkRef{Volume: k.Volume, Name: k.Name}.String()
		if s := read[what]; s == nil || s.Size != k.SizeBytes || s.Of != k.Snapshot.Name {
			t.Errorf("bookmark %s is %+v, and in the pool %+v", what, s, k)
		}
		delete(read, what)
	}
	for what := range read {
		t.Errorf("the reader found %s, and the pool does not have it", what)
	}
}

// TestReaderFindsWhatAnOpenPoolHolds reads the files of a pool that is still open, where
// a part of the log must be replayed, and again when it was closed and opened more than once.
func TestReaderFindsWhatAnOpenPoolHolds(t *testing.T) {
	dir := path.Join(t.TempDir(), "pool")
	w := newWriter(t, vfs.OS(), dir, 1)
	w.story()
	c, err := readPool(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, c, w.p)
	if c.replayed < 20 {
		t.Errorf("only %d batches lay behind the checkpoint", c.replayed)
	}
	if c.moved < 200 {
		t.Errorf("only %d blocks were moved", c.moved)
	}
	if n := c.differences; n == 0 {
		t.Error("no map node was a difference")
	}
	kinds := map[uint]int{}
	for _, s := range c.states {
		kinds[s.Kind]++
	}
	if len(kinds) != 5 {
		t.Errorf("states by kind: %v", kinds)
	}
	w.create("holey", 1<<20)
	w.submit("holey", block.OpWrite, 0, 512<<10)
	w.submit("holey", block.OpDiscard, 128<<10, 200<<10)
	done, err := w.p.Reclaim(ctx)
	w.must(err)
	if c, err = readPool(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	compare(t, c, w.p)
	if done.Rewritten == 0 || done.Removed == 0 || c.rewritten != done.Rewritten || done.Packed == 0 || c.packs == 0 || done.Punched == 0 {
		t.Errorf("of the segments %d are rewritten, and there are %d packs: %+v", c.rewritten, c.packs, done)
	}
	w.must(w.p.Close(ctx))
	for range 2 {
		if c, err = readPool(os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		w.open()
		compare(t, c, w.p)
		w.must(w.p.Close(ctx))
	}
}

// TestReaderAgreesWithRecovery cuts the power in the middle of writing, with any part of
// what was not synced on the disk, and compares what the reader makes of that with what
// opening the pool does: the end of the log must be the same for both.
func TestReaderAgreesWithRecovery(t *testing.T) {
	fsys := crashfs.New()
	w := newWriter(t, fsys, "/pool", 2)
	w.story()
	ends := map[int]bool{}
	for seed := range uint64(14) {
		w.flush("a")
		w.scribble("beta", 3)
		w.submit("a", block.OpWrite, 4096, 15*4096) // fills a segment of its own
		if seed == 7 {
			w.must(w.p.Checkpoint(ctx))
		}
		cut := crashfs.Random(seed)
		if seed%3 == 0 {
			cut = crashfs.Torn // leaves a sound header at the start of that segment
		}
		image := fsys.CrashImage(cut)
		for range 2 { // the second time what was written behind a tail that was cut off, and may be back
			c, err := readPool(copyOf(t, image, "/pool"))
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			opts := w.opts
			opts.FS = image
			p, err := pool.Open(ctx, opts)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			compare(t, c, p)
			ends[c.replayed] = true
			after := &writer{t: t, opts: opts, p: p, rnd: w.rnd}
			after.scribble("a", 2)
			after.flush("a")
			next := image.CrashImage(crashfs.DropAll)
			if err := p.Close(ctx); err != nil {
				t.Fatal(err)
			}
			image = next
		}
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
	if len(ends) < 5 {
		t.Errorf("the log ended in only %d places", len(ends))
	}
}

// TestReaderAgreesAboutDamage rots a payload block that a flush had covered: replay goes on
// behind it, and only that block cannot be read.
func TestReaderAgreesAboutDamage(t *testing.T) {
	dir := path.Join(t.TempDir(), "pool")
	w := newWriter(t, vfs.OS(), dir, 3)
	w.story()
	w.submit("alone", block.OpWrite, 8192, 4096)
	w.flush("alone")
	w.submit("alone", block.OpWrite, 16384, 4096) // says that the one before is durable
	c, err := readPool(os.DirFS(dir))
	w.must(err)
	var rot place
	for id, s := range c.states {
		if v := c.volumes[s.Volume]; v != nil && v.Name == "alone" && v.Head == id {
			rot = s.blocks[2]
		}
	}
	crashed := path.Join(t.TempDir(), "pool") // the directory as it is, without the lock's holder
	w.must(os.CopyFS(crashed, os.DirFS(dir)))
	name := path.Join(crashed, fmt.Sprintf("log/%016x.seg", rot.address>>24))
	b, err := os.ReadFile(name)
	w.must(err)
	b[rot.address&(1<<24-1)*64+100] ^= 1
	w.must(os.WriteFile(name, b, 0o600))

	c, err = readPool(os.DirFS(crashed))
	w.must(err)
	w.must(w.p.Close(ctx))
	w.opts.Dir = crashed
	w.open()
	dev, err := w.p.OpenVolume("alone")
	w.must(err)
	defer func() { _ = dev.Close() }()
	for _, s := range c.states {
		if v := c.volumes[s.Volume]; v == nil || v.Name != "alone" {
			continue
		}
		if _, err := c.content(s); err == nil {
			t.Error("the reader did not notice the rotten block")
		}
		for lba := range s.Size / blockBytes {
			got := make([]byte, blockBytes)
			err := dev.ReadAt(ctx, got, lba*blockBytes)
			if lba == 2 {
				if !errors.Is(err, block.ErrDamaged) {
					t.Errorf("reading the rotten block: %v", err)
				}
				continue
			}
			want := make([]byte, blockBytes)
			if p, mapped := s.blocks[uint64(lba)]; mapped {
				want = c.at(pointer{p.address, blockBytes, p.crc})
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("block %d: %v", lba, err)
			}
		}
	}
}

// copyOf returns a directory as an fs.FS.
func copyOf(t *testing.T, fsys vfs.FS, dir string) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	var add func(dir, prefix string)
	add = func(dir, prefix string) {
		names, err := fsys.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			info, err := fsys.Stat(path.Join(dir, n))
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				add(path.Join(dir, n), prefix+n+"/")
				continue
			}
			f, err := fsys.OpenReadOnly(path.Join(dir, n))
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, info.Size())
			if got, err := f.ReadAt(b, 0); got < len(b) {
				t.Fatal(fmt.Errorf("read %s: %w", n, err))
			}
			_ = f.Close() // only read
			out[prefix+n] = &fstest.MapFile{Data: b}
		}
	}
	add(dir, "")
	return out
}
