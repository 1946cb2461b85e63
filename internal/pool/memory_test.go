package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// leafBytes is what a leaf of a map covers; blocks that far apart have a leaf of their own.
const leafBytes = 1 << 20

// apart are ops that write one block into each of n leaves, in random order.
func apart(rnd *rand.Rand, n int) []*block.Op {
	var ops []*block.Op
	for _, leaf := range rnd.Perm(n) {
		b := make([]byte, block.Size)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		ops = append(ops, &block.Op{Kind: block.OpWrite, Offset: int64(leaf)*leafBytes + rnd.Int64N(256)*block.Size, Length: block.Size, Data: b})
	}
	return ops
}

func demand(t *testing.T, dev block.Device, ops []*block.Op) {
	t.Helper()
	got := make([]byte, block.Size)
	for _, o := range ops {
		if err := errors.Join(o.Err, dev.ReadAt(ctx, got, o.Offset)); err != nil || !bytes.Equal(got, o.Data) {
			t.Fatalf("the block at %d: %v", o.Offset, err)
		}
	}
}

func openVolume(t *testing.T, p *pool.Pool, name string) block.Device {
	t.Helper()
	dev, err := p.OpenVolume(name)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// One request needs a hundred times as many map nodes as the cache holds, while checkpoints go on in the
// background: it is performed, and again on top of a snapshot.
func TestRequestLargerThanTheMapCache(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, cache := range []int64{1, 16 << 10} {
		o := options(crashfs.New(), newClock())
		o.Manual, o.MapCacheBytes, o.SegmentBytes = false, cache, 16<<20
		if err := pool.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
		p, err := pool.Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: 64 << 40}); err != nil {
			t.Fatal(err)
		}
		dev := openVolume(t, p, "v")
		first := apart(rnd, 3000)
		dev.Submit(ctx, first)
		demand(t, dev, first)
		if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"}); err != nil {
			t.Fatal(err)
		}
		second := apart(rnd, 3000)
		dev.Submit(ctx, second)
		demand(t, dev, second)
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		snap, err := p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: "s"})
		if err != nil {
			t.Fatal(err)
		}
		demand(t, snap, first)
		if err := errors.Join(snap.Close(), p.Close(ctx)); err != nil {
			t.Fatal(err)
		}
	}
}

// A pool that was cut off is opened with what many readers find in the log, and holds what it held.
func TestReplayReadsAheadOfWhatItApplies(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	o := options(crashfs.New(), newClock())
	o.SegmentBytes, o.MapCacheBytes = 16<<20, 1<<20
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]*block.Op{}
	for _, name := range []string{"a", "b"} {
		if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: 64 << 40}); err != nil {
			t.Fatal(err)
		}
		dev := openVolume(t, p, name)
		before := apart(rnd, 500)
		dev.Submit(ctx, before)
		if err := p.Checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
		after := apart(rnd, 500)
		dev.Submit(ctx, after)
		gone := &block.Op{Kind: block.OpDiscard, Offset: 100 * leafBytes, Length: 3 * leafBytes}
		dev.Submit(ctx, []*block.Op{gone})
		if gone.Err != nil {
			t.Fatal(gone.Err)
		}
		last := map[int64]*block.Op{}
		for _, w := range append(before, after...) {
			last[w.Offset] = w
		}
		for off, w := range last {
			if off >= gone.Offset && off < gone.Offset+gone.Length {
				w.Data = make([]byte, block.Size)
			}
			want[name] = append(want[name], w)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p.Abandon()
	o.Manual = false // many readers
	if p, err = pool.Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	for name, ops := range want {
		dev := openVolume(t, p, name)
		demand(t, dev, ops)
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// What a checkpoint holds up is counted: one freeze each, the pieces that it writes, and the
// letting go of what it wrote.
func TestStallsOfCheckpointsAreCounted(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 3<<20)
	before := d.p.Info().Stalls
	for range 3 {
		d.submit("v", writeOp(0, 4096), writeOp(2<<20, 4096))
		d.checkpoint()
	}
	s := d.p.Info().Stalls
	if n := s.Freeze.Count - before.Freeze.Count; n != 3 {
		t.Errorf("%d freezes of 3 checkpoints", n)
	}
	if s.Append.Count-before.Append.Count < 3 || s.Settle.Count-before.Settle.Count < 3 || s.Delayed.Count != 0 {
		t.Errorf("of three checkpoints: %+v", s)
	}
	d.p.Abandon()
}

// Snapshots that are open, and diffs, keep no map nodes once these lie in the log, also where they were opened before.
func TestOpenSnapshotsKeepNoMapNodes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	d := newDriver(t)
	if _, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: 64 << 40}); err != nil {
		t.Fatal(err)
	}
	dev := openVolume(t, d.p, "v")
	var open []interface{ Close() error }
	var diffs []*pool.Diff
	for i := range 4 {
		dev.Submit(ctx, apart(rnd, 1000))
		name := fmt.Sprintf("s%d", i)
		if _, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
		snap, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		diff, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: "s0"}, pool.PointRef{Volume: "v", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		open, diffs = append(open, snap), append(diffs, diff)
		if err := d.p.Checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	with := heap()
	for i := range open {
		diffs[i].Close()
		if err := open[i].Close(); err != nil {
			t.Fatal(err)
		}
	}
	clear(open)
	clear(diffs)
	if kept := with - heap(); kept > 256<<10 {
		t.Errorf("what is open keeps %d bytes", kept)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	d.p.Abandon()
}
