package pool_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// inplace does the same to an inplace volume on a crashable file system and to plain bytes.
type inplace struct {
	tb    tb
	fs    *crashfs.FS
	p     *pool.Pool
	opts  pool.Options
	clock *clock

	head      heldState
	dirty     map[int64]bool // blocks written since the last flush
	snapshots map[string]heldState
	bookmarks map[string]heldState // what there was, to compare with
	clones    map[string]heldState
	names     int

	// What a crash may leave of the head, if that is to be told: what it was since it was last flushed, and what is being done to it.
	tracked  bool
	past     [][]byte
	doing    []*block.Op
	becoming []byte
}

// heldState is what a state holds: its bytes, and for each block which write it was that changed it last.
type heldState struct {
	data    []byte
	version []int
	unsure  map[int64]bool // blocks that a crash may have changed, or not
}

func (c heldState) clone() heldState {
	return heldState{slices.Clone(c.data), slices.Clone(c.version), maps.Clone(c.unsure)}
}

const diskImage = "/disk.img"

func newInplace(tb tb, size int64, fill byte) *inplace { return newOverlaid(tb, size, fill, 0) }

// newOverlaid is newInplace with so many bytes that may lie in the log and not in the file.
func newOverlaid(tb tb, size int64, fill byte, overlay int64) *inplace {
	d := &inplace{
		tb: tb, fs: crashfs.New(), clock: newClock(), dirty: map[int64]bool{},
		snapshots: map[string]heldState{}, bookmarks: map[string]heldState{}, clones: map[string]heldState{},
	}
	d.opts = options(d.fs, d.clock)
	d.opts.OverlayBytes = overlay
	d.opts.OnEvent = func(e pool.Event) {
		if e.Kind != pool.EventRecovered {
			tb.Fatalf("event %+v", e)
		}
	}
	f, err := d.fs.Create(diskImage)
	d.must(err)
	d.must(f.Truncate(size))
	d.head = heldState{make([]byte, size), make([]int, (size+block.Size-1)/block.Size), map[int64]bool{}}
	for i := range d.head.data[:size/2] { // the rest is a hole
		d.head.data[i] = fill + byte(i/block.Size)
	}
	d.must(f.WriteAt([][]byte{d.head.data[:size/2]}, 0))
	d.must(f.Sync())
	d.must(f.Close())
	d.must(d.fs.SyncDir("/"))
	d.must(pool.Create(ctx, d.opts))
	d.open()
	_, err = d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: diskImage})
	d.must(err)
	return d
}

// newQuiet is newInplace with events that a test expects.
func newQuiet(tb tb, size int64) *inplace {
	d := newInplace(tb, size, 1)
	d.must(d.p.Close(ctx))
	d.opts.OnEvent = func(pool.Event) {}
	d.open()
	return d
}

func (d *inplace) must(err error) {
	d.tb.Helper()
	if err != nil {
		d.tb.Fatal(err)
	}
}

func (d *inplace) open() {
	d.tb.Helper()
	p, err := pool.Open(ctx, d.opts)
	d.must(err)
	d.p = p
}

// submit does ops to both.
func (d *inplace) submit(ops ...*block.Op) {
	d.tb.Helper()
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	d.doing = ops
	dev.Submit(ctx, ops)
	d.doing = nil
	d.was()
	for _, o := range ops {
		d.must(o.Err)
		d.applied(dev, o)
	}
	d.must(dev.Close())
}

// was notes what the head was, before that changes.
func (d *inplace) was() {
	if d.tracked {
		d.past = append(d.past, slices.Clone(d.head.data))
	}
}

// possible is what a crash now may leave of each byte of the head, where the file system keeps some changes and not others; with power, only what is
// being done is open.
func (d *inplace) possible(power bool) [][]byte {
	out := [][]byte{d.head.data}
	if !power {
		out = append(out, d.past...)
	}
	if d.becoming != nil {
		out = append(out, d.becoming)
	}
	now := d.head.data
	for _, o := range d.doing {
		now = slices.Clone(now)
		if part := now[o.Offset : o.Offset+o.Length]; o.Kind == block.OpWrite {
			copy(part, o.Data)
		} else {
			clear(part)
		}
		out = append(out, now)
	}
	return out
}

// bigWrite is long enough to be done in place: a small one is done to the log first.
func bigWrite(off int64) *block.Op { return writeOp(off, 68<<10) }

// applied changes the model as an op did; of a discard, which may leave blocks alone, it looks what it did.
func (d *inplace) applied(dev *pool.Device, o *block.Op) {
	if o.Kind == block.OpDiscard {
		now := make([]byte, len(d.head.data))
		d.must(dev.ReadAt(ctx, now, 0))
		for off := o.Offset; off < o.Offset+o.Length; off++ {
			if now[off] == 0 && d.head.data[off] != 0 {
				d.head.data[off] = 0
				d.dirty[off/block.Size] = true
			}
		}
		return
	}
	part := d.head.data[o.Offset : o.Offset+o.Length]
	if o.Kind == block.OpWrite {
		copy(part, o.Data)
	} else {
		clear(part)
	}
	for b := o.Offset / block.Size; b*block.Size < o.Offset+o.Length; b++ {
		d.names++
		d.head.version[b] = d.names
		d.dirty[b] = true
		delete(d.head.unsure, b)
	}
}

// putBack rolls ranges back, or, by copying and comparing, all.
func (d *inplace) putBack(snap string, ranges ...pool.Range) {
	d.tb.Helper()
	d.putBackWhile(nil, snap, ranges...)
}

// putBackWhile is putBack, while something is done that changes nothing of the volume.
func (d *inplace) putBackWhile(do func(), snap string, ranges ...pool.Range) {
	d.tb.Helper()
	then := d.snapshots[snap]
	ref := pool.SnapshotRef{Volume: "v", Name: snap}
	var done pool.PutBack
	var err error
	d.becoming = slices.Clone(then.data)
	if ranges != nil {
		d.becoming = slices.Clone(d.head.data)
		for _, r := range ranges {
			copy(d.becoming[r.Offset:r.Offset+r.Length], then.data[r.Offset:])
		}
	}
	if ranges == nil {
		done, err = d.p.RollbackWhole(ctx, ref, true)
	} else {
		done, _, err = d.p.RollbackRanges(ctx, ref, ranges, func(part float64) error {
			if do != nil && part > 0 {
				do()
				do = nil
			}
			return nil
		})
	}
	d.must(err)
	d.becoming, d.past = nil, nil
	before := d.head.clone()
	d.snapshots[done.Kept.Name] = before
	for _, r := range done.Ranges {
		for b := r.Offset / block.Size; b*block.Size < r.Offset+r.Length; b++ {
			lo, hi := b*block.Size, min((b+1)*block.Size, r.Offset+r.Length)
			unsure := before.unsure[b] || then.unsure[b]
			differs := before.version[b] != then.version[b] || unsure
			if ranges == nil {
				differs = !bytes.Equal(before.data[lo:hi], then.data[lo:hi])
				unsure = before.unsure[b]
			}
			if !differs {
				continue
			}
			copy(d.head.data[lo:hi], then.data[lo:hi])
			d.names++
			d.head.version[b] = d.names
			if delete(d.head.unsure, b); unsure && ranges != nil {
				d.head.unsure[b] = true
			}
		}
	}
	clear(d.dirty) // it synced the file
	d.clock.now = d.clock.now.Add(1e9)
}

func (d *inplace) flush() {
	d.tb.Helper()
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	d.must(errors.Join(dev.Flush(ctx), dev.Close()))
	clear(d.dirty)
	d.past = nil
}

func (d *inplace) snapshot(name string) {
	d.tb.Helper()
	_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name})
	if d.snapshots[name].data != nil || d.bookmarks[name].data != nil {
		if !errors.Is(err, pool.ErrExists) {
			d.tb.Fatalf("a second snapshot %s: %v", name, err)
		}
		return
	}
	d.must(err)
	d.snapshots[name] = d.head.clone()
	clear(d.dirty) // it synced the file
	d.past = nil
}

// crash cuts the power, or ends the process.
func (d *inplace) crash(policy crashfs.Policy, power bool) {
	d.tb.Helper()
	fs := d.fs.CrashImage(policy)
	d.fs.Crash()
	d.p.Abandon()
	d.fs, d.opts.FS = fs, fs
	d.open()
	if power {
		d.survived()
	}
}

// survived takes over what a crash has made of what was not flushed.
func (d *inplace) survived() {
	d.tb.Helper()
	now := d.read("v")
	for b := range d.dirty {
		end := min((b+1)*block.Size, int64(len(now)))
		copy(d.head.data[b*block.Size:end], now[b*block.Size:end])
		d.head.unsure[b] = true
	}
	clear(d.dirty)
}

func (d *inplace) read(name string) []byte {
	d.tb.Helper()
	dev, err := openEither(d.p, name)
	d.must(err)
	p := make([]byte, dev.SizeBytes())
	d.must(dev.ReadAt(ctx, p, 0))
	// What extents call zeros must be.
	for off := int64(0); off < dev.SizeBytes(); {
		found, err := dev.Extents(ctx, off, dev.SizeBytes()-off, 8)
		d.must(err)
		for _, e := range found {
			if e.Offset != off || e.Length <= 0 {
				d.tb.Fatalf("extents of %s at %d: %+v", name, off, found)
			}
			if e.Zero && !bytes.Equal(p[off:off+e.Length], make([]byte, e.Length)) {
				d.tb.Fatalf("extent %+v of %s is not zero", e, name)
			}
			off += e.Length
		}
	}
	d.must(dev.Close())
	return p
}

func (d *inplace) same(name string, want []byte) {
	d.tb.Helper()
	if got := d.read(name); !bytes.Equal(got, want) {
		for b := 0; b < len(want); b += block.Size {
			if end := min(b+block.Size, len(want)); !bytes.Equal(got[b:end], want[b:end]) {
				d.tb.Fatalf("%s: block %d is not what it was (%d, want %d)", name, b/block.Size, got[b], want[b])
			}
		}
	}
}

func (d *inplace) verify() {
	d.tb.Helper()
	d.same("v", d.head.data)
	for name, c := range d.snapshots {
		d.same("v@"+name, c.data)
		d.diff(pool.PointRef{Volume: "v", Name: name}, c)
	}
	for name, c := range d.bookmarks {
		d.diff(pool.PointRef{Volume: "v", Name: name, Bookmark: true}, c)
	}
	for name, c := range d.clones {
		d.same(name, c.data)
	}
	report, err := d.p.Check(ctx, nil)
	d.must(err)
	if len(report.Damage) > 0 {
		d.tb.Fatalf("check: %+v", report.Damage)
	}
}

// diff compares what changed since a point with the model: exactly, but for what a crash may have made of unflushed writes.
func (d *inplace) diff(from pool.PointRef, then heldState) {
	d.tb.Helper()
	diff, err := d.p.OpenDiff(from, pool.PointRef{Volume: "v"})
	d.must(err)
	defer diff.Close()
	changed := map[int64]bool{}
	d.must(diff.Each(ctx, func(off, length int64) error {
		for b := off / block.Size; b*block.Size < off+length; b++ {
			changed[b] = true
		}
		return nil
	}))
	for b := range d.head.version {
		b := int64(b)
		if d.head.unsure[b] || then.unsure[b] {
			continue
		}
		if want := d.head.version[b] != then.version[b]; want != changed[b] {
			d.tb.Fatalf("since %s block %d changed: %v, says the diff, %v is true", from, b, changed[b], want)
		}
	}
}

// TestInplaceAgainstModel does random things to an inplace volume, its snapshots, bookmarks and clones, crashes now and
// then, and compares everything with plain bytes.
func TestInplaceAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int64{64 << 10, 1<<20 + 8192, 1<<20 + 4608}).Draw(t, "size")
		d := newOverlaid(t, size, 1, rapid.SampledFrom([]int64{0, 0, 5 * block.Size, -1}).Draw(t, "overlay"))
		defer func() { _ = d.p.Close(ctx) }()
		name := rapid.SampledFrom([]string{"s1", "s2", "s3", "s4"})
		some := func(m map[string]heldState) string {
			if len(m) == 0 {
				t.Skip("none") // rapid's: another action is drawn
			}
			return rapid.SampledFrom(slices.Sorted(maps.Keys(m))).Draw(t, "of")
		}
		ops := func() []*block.Op {
			var out []*block.Op
			for range rapid.IntRange(1, 4).Draw(t, "ops") {
				off := rapid.Int64Range(0, size-1).Draw(t, "offset")
				n := min(rapid.SampledFrom([]int64{1, 512, 4096, 5000, 12288, 70000}).Draw(t, "length"), size-off)
				if rapid.Bool().Draw(t, "aligned") {
					off &^= block.Size - 1
				}
				kind := rapid.SampledFrom([]block.OpKind{block.OpWrite, block.OpWrite, block.OpWrite, block.OpZero, block.OpZeroAllocated, block.OpDiscard}).Draw(t, "kind")
				if kind == block.OpWrite {
					out = append(out, writeOp(off, n))
				} else {
					out = append(out, op(kind, off, n))
				}
			}
			return out
		}
		write := func(t *rapid.T) {
			for _, o := range ops() { // the model looks at what a discard did
				d.submit(o)
			}
		}
		var finish func() error // what has begun to be destaged
		t.Repeat(map[string]func(*rapid.T){
			"write": write, "write more": write, "write much": write,
			"batch": func(t *rapid.T) {
				all := slices.DeleteFunc(ops(), func(o *block.Op) bool { return o.Kind == block.OpDiscard })
				if len(all) > 0 {
					d.submit(all...)
				}
			},
			"flush": func(*rapid.T) { d.flush() },
			"destage": func(*rapid.T) {
				d.must(d.p.Destage(ctx, "v"))
				if n := d.p.Logged("v"); n > 0 {
					t.Fatalf("%d blocks lie in the log alone after all were brought into the file", n)
				}
			},
			"begin to destage": func(*rapid.T) {
				f, err := d.p.BeginDestage(ctx, "v")
				d.must(err)
				finish = f
			},
			"go on destaging": func(*rapid.T) {
				if finish != nil {
					d.must(finish())
					finish = nil
				}
			},
			"snapshot": func(t *rapid.T) { d.snapshot(name.Draw(t, "name")) },
			"delete snapshot": func(*rapid.T) {
				s := some(d.snapshots)
				d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: s}}))
				delete(d.snapshots, s)
			},
			"rollback": func(*rapid.T) {
				s := some(d.snapshots)
				kept, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: s})
				d.must(err)
				d.snapshots[kept.Name] = d.head.clone()
				d.head = d.snapshots[s].clone()
				clear(d.dirty)
				d.clock.now = d.clock.now.Add(1e9)
			},
			"put back": func(t *rapid.T) {
				if s := some(d.snapshots); rapid.IntRange(0, 3).Draw(t, "all") == 0 {
					d.putBack(s)
				} else {
					d.putBackWhile(map[string]func(){
						"nothing":  nil,
						"snapshot": func() { d.snapshot("s4") },
						"copy back and snapshot": func() {
							d.must(d.p.CopyBack(ctx, "v", nil))
							d.snapshot("s3")
						},
						"reclaim": func() { d.must(d.p.Cycle(ctx)) },
					}[rapid.SampledFrom([]string{"nothing", "snapshot", "copy back and snapshot", "reclaim"}).Draw(t, "meanwhile")], s, drawRanges(t, size)...)
				}
			},
			"copy back": func(t *rapid.T) {
				short, cancel := context.WithCancel(ctx)
				if rapid.Bool().Draw(t, "cut short") {
					n := 0
					d.fs.OnOp(func(int, crashfs.Op, error) {
						if n++; n > 3 {
							cancel()
						}
					})
				}
				err := d.p.CopyBack(short, "v", nil)
				d.fs.OnOp(nil)
				cancel()
				if !errors.Is(err, context.Canceled) {
					d.must(err)
				}
			},
			"bookmark": func(t *rapid.T) {
				s := some(d.snapshots)
				b := rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "bookmark")
				if _, err := d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "v", Name: s}, b); d.bookmarks[b].data == nil {
					d.must(err)
					d.bookmarks[b] = d.snapshots[s].clone()
				}
			},
			"delete bookmark": func(*rapid.T) {
				b := some(d.bookmarks)
				d.must(d.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "v", Name: b}))
				delete(d.bookmarks, b)
			},
			"clone": func(t *rapid.T) {
				s := some(d.snapshots)
				c := rapid.SampledFrom([]string{"c1", "c2"}).Draw(t, "clone")
				if d.clones[c].data == nil {
					_, _, err := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: s}, pool.VolumeSpec{Name: c})
					d.must(err)
					d.clones[c] = d.snapshots[s].clone()
				}
			},
			"write to a clone": func(*rapid.T) {
				c := some(d.clones)
				dev, err := d.p.OpenVolume(c)
				d.must(err)
				for _, o := range ops() {
					dev.Submit(ctx, []*block.Op{o})
					d.must(o.Err)
					if o.Kind == block.OpDiscard {
						d.must(dev.ReadAt(ctx, d.clones[c].data, 0))
						continue
					}
					part := d.clones[c].data[o.Offset : o.Offset+o.Length]
					if clear(part); o.Kind == block.OpWrite {
						copy(part, o.Data)
					}
				}
				d.must(errors.Join(dev.Flush(ctx), dev.Close()))
			},
			"delete clone": func(*rapid.T) {
				c := some(d.clones)
				d.must(d.p.DeleteVolume(ctx, c))
				delete(d.clones, c)
			},
			"checkpoint": func(*rapid.T) { d.must(d.p.Checkpoint(ctx)) },
			"reclaim": func(*rapid.T) {
				d.must(d.p.Cycle(ctx))
				d.must(d.p.CheckOwners())
			},
			"reopen": func(*rapid.T) {
				d.must(d.p.Close(ctx))
				clear(d.dirty)
				d.open()
				finish = nil
			},
			"crash": func(t *rapid.T) {
				finish = nil
				policies := []crashfs.Policy{crashfs.KeepAll, crashfs.DropAll, crashfs.Torn, crashfs.Random(rapid.Uint64().Draw(t, "seed"))}
				d.crash(rapid.SampledFrom(policies).Draw(t, "policy"), true)
			},
			"kill": func(*rapid.T) {
				finish = nil
				d.crash(crashfs.ProcessCrash, false)
			},
			"verify": func(*rapid.T) { d.verify() },
		})
		d.verify()
	})
}

// TestNothingIsKeptThatNobodyWants counts what a snapshot costs.
func TestNothingIsKeptThatNobodyWants(t *testing.T) {
	d := newInplace(t, 1<<20, 1)
	defer func() { _ = d.p.Close(ctx) }()
	kept := func() int64 {
		d.must(d.p.Destage(ctx, "v"))
		d.must(d.p.Cycle(ctx))
		return d.p.KeptBytes("v")
	}
	d.submit(writeOp(0, 40960))
	if n := kept(); n != 0 {
		t.Errorf("without a snapshot %d bytes are kept", n)
	}
	d.snapshot("a")
	d.snapshot("b")
	d.submit(writeOp(0, 8192))
	d.submit(writeOp(0, 8192))
	if n := kept(); n != 8192 {
		t.Errorf("two blocks were written twice under two snapshots, and %d bytes are kept", n)
	}
	d.submit(writeOp(768<<10, 8192)) // a hole
	if n := kept(); n != 8192 {
		t.Errorf("writing where a hole was keeps %d bytes", n-8192)
	}
	d.verify()
	for i, s := range []string{"a", "b"} {
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: s}}))
		delete(d.snapshots, s)
		if n, want := kept(), int64(1-i)*8192; n != want {
			t.Errorf("after %s was deleted %d bytes are kept, want %d", s, n, want)
		}
	}
	d.verify()
	d.must(d.p.DeleteVolume(ctx, "v"))
	f, err := d.fs.OpenReadOnly(diskImage)
	d.must(err)
	got := make([]byte, len(d.head.data))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, d.head.data) {
		t.Errorf("the file is not what the volume was (%v)", err)
	}
}
