package pool_test

import (
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// TestDiscardOfWhatASnapshotHoldsIsNoGarbage: what was discarded is there all the same, so that nobody may be held up until it is
// given back.
func TestDiscardOfWhatASnapshotHoldsIsNoGarbage(t *testing.T) {
	d := newDriver(t)
	defer func() { _ = d.p.Close(ctx) }()
	const size = 3 << 20
	d.createVolume("a", size)
	d.submit("a", writeOp(0, size))
	d.snapshot("s", "a")
	d.checkpoint()
	before := d.p.Info().LiveBytes
	d.submit("a", op(block.OpDiscard, 0, size))
	if after := d.p.Info().LiveBytes; after < before {
		t.Errorf("%d bytes were live, and after discarding what a snapshot holds %d are", before, after)
	}
	d.deleteSnapshot("a", "s")
	d.reclaim()
	if after := d.p.Info().LiveBytes; after > 1<<20 {
		t.Errorf("without the snapshot %d bytes are live", after)
	}
}

// TestLogIsAsLongAsItIsAfterOpening: a spare file that was being written is longer than what was, until the pool is opened again.
func TestLogIsAsLongAsItIsAfterOpening(t *testing.T) {
	o := pool.Options{FS: vfs.OS(), Dir: path.Join(t.TempDir(), "pool"), SegmentBytes: 4 << 20, Manual: true}
	p := openNew(t, o)
	dev := create(t, p, "v", 12<<20)
	for range 3 {
		put(t, dev, writeOp(0, 8<<20), writeOp(8<<20, 4<<20))
		if err := p.Cycle(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if p.Info().SpareBytes == 0 {
		t.Fatal("there is no spare file")
	}
	put(t, dev, writeOp(0, 1<<20)) // into a part of one
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(ctx) }()
	// The files include the superblock and the reserve.
	if i := p.Info(); i.LogSizeBytes > i.PhysicalBytes {
		t.Errorf("the log counts as %d bytes, and all files of the pool take %d", i.LogSizeBytes, i.PhysicalBytes)
	}
}

// leftSpace is a file system that tells how much is free as the test wants.
type leftSpace struct {
	vfs.FS
	free *atomic.Int64
}

func (f leftSpace) Space(string) (total, free int64, err error) { return 100 << 30, f.free.Load(), nil }

// TestSpareFilesGoBeforeAWriteIsRefused: others fill the disk while the pool keeps files of its own that it does not need.
func TestSpareFilesGoBeforeAWriteIsRefused(t *testing.T) {
	var free atomic.Int64
	free.Store(50 << 30)
	const size = 64 << 20
	p := openNew(t, pool.Options{FS: leftSpace{vfs.OS(), &free}, Dir: path.Join(t.TempDir(), "pool"), SegmentBytes: 4 << 20})
	defer func() { _ = p.Close(ctx) }()
	dev := create(t, p, "v", size)
	fill := func() {
		for off := int64(0); off < size; off += 8 << 20 {
			put(t, dev, writeOp(off, 8<<20))
		}
	}
	fill()
	fill()
	write := writeOp(0, 1<<20)
	free.Store(0) // the first refusal notes how little there is to give back
	dev.Submit(ctx, []*block.Op{write})
	free.Store(50 << 30)
	fill()
	if err := p.Cycle(ctx); err != nil {
		t.Fatal(err)
	}
	if p.Info().SpareBytes == 0 {
		t.Fatal("there is no spare file")
	}
	free.Store(0)
	for range 8 {
		write = writeOp(0, 1<<20)
		if dev.Submit(ctx, []*block.Op{write}); write.Err != nil {
			break
		}
	}
	if n := p.Info().SpareBytes; write.Err != nil && n > 0 {
		t.Errorf("%v, while %d bytes are kept in spare files", write.Err, n)
	}
}

// TestManyWritersKeepTheBound: what all of them write at once counts before it is written.
func TestManyWritersKeepTheBound(t *testing.T) {
	const size, length, writers, writes = 256 << 20, 8 << 20, 24, 8
	p := openNew(t, pool.Options{FS: vfs.OS(), Dir: path.Join(t.TempDir(), "pool")})
	defer func() { _ = p.Close(ctx) }()
	dev := create(t, p, "v", size)
	for off := int64(0); off < size; off += length {
		put(t, dev, writeOp(off, length))
	}
	var most, least atomic.Int64
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			for n := range int64(writes) {
				o := writeOp((w*7+n*3)%(size/length)*length, length)
				if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
					t.Errorf("write: %v", o.Err)
				}
				i := p.Info()
				most.Store(max(most.Load(), i.PhysicalBytes-i.LiveBytes/10*13))
				least.Store(min(least.Load(), p.Room()))
			}
		})
	}
	wg.Wait()
	if got := most.Load(); got > 256<<20 {
		t.Errorf("the pool took 1.3 times what is live and %d MiB, of which 256 are allowed", got>>20)
	}
	if got := least.Load(); got < -2*length {
		t.Errorf("%d MiB more were written than there was room for", -got>>20)
	}
}

func openNew(t *testing.T, o pool.Options) *pool.Pool {
	t.Helper()
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func create(t *testing.T, p *pool.Pool, name string, size int64) *pool.Device {
	t.Helper()
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	dev, err := p.OpenVolume(name)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func put(t *testing.T, dev *pool.Device, ops ...*block.Op) {
	t.Helper()
	dev.Submit(ctx, ops)
	for _, o := range ops {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
	}
}
