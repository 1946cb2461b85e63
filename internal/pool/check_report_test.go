package pool_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// ruin changes a byte of each block that a snapshot has stored.
func (d *driver) ruin(t *testing.T, ref pool.SnapshotRef) {
	t.Helper()
	for _, e := range d.p.SnapshotEntries(ref) {
		if e.Stored() {
			f, err := d.fs.Open(segmentPath(e.Addr.Segment()))
			if err == nil {
				err = errors.Join(f.WriteAt([][]byte{{0}}, e.Addr.Offset()), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Damage that goes on hides no other: what is adjacent is one finding, and where a report is full each volume and
// snapshot that something is missing of is named all the same.
func TestCheckNamesAllThatHaveDamage(t *testing.T) {
	const blocks = 11000 // more than a report lists
	for what, apart := range map[string]int64{"in one piece": 1, "in pieces": 2} {
		t.Run(what, func(t *testing.T) {
			d := newDriver(t)
			d.p.Abandon()
			d.fs = crashfs.New()
			d.opts.FS, d.opts.SegmentBytes = d.fs, 64<<20
			if err := pool.Create(ctx, d.opts); err != nil {
				t.Fatal(err)
			}
			d.open()
			d.createVolume("a", apart*blocks*block.Size)
			d.createVolume("b", 64<<10)
			dev := openVolume(t, d.p, "a")
			data := stamp(block.Size)
			ops := make([]*block.Op, blocks)
			for i := range ops {
				ops[i] = &block.Op{Kind: block.OpWrite, Offset: int64(i) * apart * block.Size, Length: block.Size, Data: data}
			}
			dev.Submit(ctx, ops)
			for _, o := range ops {
				if o.Err != nil {
					t.Fatal(o.Err)
				}
			}
			if err := dev.Close(); err != nil {
				t.Fatal(err)
			}
			d.submit("b", writeOp(0, 64<<10))
			d.snapshot("s", "a", "b")
			d.snapshot("t", "a")
			d.cloneVolume("a", "s", "c")
			d.submit("c", writeOp(0, 4096))
			d.ruin(t, pool.SnapshotRef{Volume: "a", Name: "s"})
			d.ruin(t, pool.SnapshotRef{Volume: "b", Name: "s"})
			rep, err := d.p.Check(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			lost := map[string]int64{}
			more := 0
			for _, f := range rep.Damage {
				if f.Offset < 0 && f.Object == "pool" {
					more++
				} else if f.Volume != "" {
					lost[f.Object] += f.Length / block.Size
				}
			}
			want := map[string]int64{"a": blocks, "a@s": blocks, "a@t": blocks, "b": 16, "b@s": 16, "c": blocks - 1}
			if apart > 1 {
				want = map[string]int64{"a": 1, "a@s": 10000, "a@t": 1, "b": 16, "b@s": 16, "c": 1}
			}
			if fmt.Sprint(lost) != fmt.Sprint(want) || more != int(apart)-1 {
				t.Errorf("lost %v, want %v; %d times more", lost, want, more)
			}
			d.p.Abandon()
		})
	}
}

// heapContext looks how much is in use whenever somebody asks whether it has ended, now and then.
type heapContext struct {
	context.Context
	asked int
	most  uint64
}

func (c *heapContext) Err() error {
	if c.asked++; c.asked%32 == 0 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		c.most = max(c.most, m.HeapAlloc)
	}
	return nil
}

// What is lost is followed through a long line of snapshots, and the clones of each, without keeping it for each.
func TestCheckFollowsDamageInConstantMemory(t *testing.T) {
	const states, blocks = 150, 4096
	d := newDriver(t)
	d.opts.SegmentBytes = 64 << 20
	d.p.Abandon()
	d.fs = crashfs.New()
	d.opts.FS = d.fs
	if err := pool.Create(ctx, d.opts); err != nil {
		t.Fatal(err)
	}
	d.open()
	for _, name := range []string{"a", "z"} {
		if _, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: 2 * blocks * block.Size}); err != nil {
			t.Fatal(err)
		}
	}
	dev := openVolume(t, d.p, "a")
	ops := make([]*block.Op, blocks) // of which no two are adjacent
	data := stamp(block.Size)
	for i := range ops {
		ops[i] = &block.Op{Kind: block.OpWrite, Offset: int64(i) * 2 * block.Size, Length: block.Size, Data: data}
	}
	dev.Submit(ctx, ops)
	for i := range states {
		ref := pool.SnapshotRef{Volume: "a", Name: fmt.Sprintf("s%d", i)}
		_, _, err := d.p.CreateSnapshot(ctx, []string{"a"}, pool.SnapshotSpec{Name: ref.Name})
		if err == nil {
			_, _, err = d.p.CloneVolume(ctx, ref, pool.VolumeSpec{Name: fmt.Sprintf("c%d", i)})
		}
		w := writeOp(0, 4096)
		dev.Submit(ctx, []*block.Op{w})
		if err := errors.Join(err, w.Err); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(dev.Close(), d.p.Checkpoint(ctx)); err != nil {
		t.Fatal(err)
	}
	d.ruin(t, pool.SnapshotRef{Volume: "a", Name: "s0"})
	before, during := &heapContext{Context: ctx, asked: 31}, &heapContext{Context: ctx}
	_ = before.Err()
	rep, err := d.p.Check(during, nil)
	if err != nil || during.most == 0 {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, f := range rep.Damage {
		named[f.Object] = true
	}
	if len(named) < 2*states+1 {
		t.Errorf("%d are named", len(named))
	}
	if grown := int64(during.most) - int64(before.most); grown > 16<<20 {
		t.Errorf("the check takes %d bytes", grown)
	}
	d.p.Abandon()
}

// A snapshot that a check has still to read is deleted and becomes a mere map that a bookmark needs: its blocks stay until they are read.
func TestCheckReadsWhatBecomesAFork(t *testing.T) {
	d := newDriver(t)
	d.createVolume("first", 64<<10)
	d.submit("first", writeOp(0, 64<<10))
	d.createVolume("a", 1<<20)
	fill := func() {
		for off := int64(0); off < 1<<20; off += 64 << 10 {
			d.submit("a", writeOp(off, 64<<10))
		}
	}
	fill()
	d.snapshot("b", "a")
	d.submit("a", writeOp(0, 4096))
	d.snapshot("t", "a")
	d.bookmark("a", "t", "k")
	d.rollback("a", "b")
	for name := range d.present().volumes["a"].snapshots {
		if name != "b" {
			d.deleteSnapshot("a", name)
		}
	}
	fill()
	d.checkpoint()
	read := 0
	rep, err := d.p.Check(ctx, func(float64) {
		if read++; read == 1 {
			d.deleteSnapshot("a", "b")
			d.reclaim()
		}
	})
	if err != nil || len(rep.Damage) > 0 || rep.Blocks != 16+2*256 {
		t.Errorf("%d blocks, %+v, %v", rep.Blocks, rep.Damage, err)
	}
	if got, err := d.p.Reclaim(ctx); err != nil || got.FreedBytes < 1<<20 {
		t.Errorf("after the check: %+v, %v", got, err)
	}
	d.verify()
	d.p.Abandon()
}

// What is kept of a file for snapshots and clones is named as theirs, each range once, also where the map of one of them is damaged.
func TestCheckNamesWhoHasWhatWasKept(t *testing.T) {
	const size = 4 << 20
	d := newInplace(t, size, 1)
	d.opts.OnEvent = nil
	d.snapshot("s")
	_, _, err := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, pool.VolumeSpec{Name: "c"})
	d.must(err)
	c := openVolume(t, d.p, "c")
	w := writeOp(2<<20, 4096) // a leaf of its own
	c.Submit(ctx, []*block.Op{w})
	d.must(errors.Join(w.Err, c.Close(), d.p.Checkpoint(ctx)))
	leaf := newest(t, d.fs, 0, false)
	d.submit(writeOp(64<<10, 64<<10))
	d.must(d.p.Checkpoint(ctx))
	at := d.p.KeptEntry("v", 16)
	for i := range int64(8) {
		rot(t, d.fs, segmentPath(at.Addr.Segment()), at.Addr.Offset()+i*block.Size)
	}
	check := func(want ...string) {
		t.Helper()
		rep, err := d.p.Check(ctx, nil)
		d.must(err)
		var got []string
		for _, f := range rep.Damage {
			got = append(got, fmt.Sprintf("%s %d+%d", f.Object, f.Offset>>10, f.Length>>10))
		}
		if !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
	}
	check("c 64+32", "v@s 64+32")
	d.must(d.p.Close(ctx))
	rot(t, d.fs, leaf.file, leaf.offset+50)
	d.open() // with nothing in memory
	check("c 64+32", "c 2048+1024", "v@s 64+32")
	d.p.Abandon()
}
