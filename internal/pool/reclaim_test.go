package pool_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// What is overwritten, discarded and deleted is given back, and nothing else: content, snapshots
// and clones stay, also across a reopening.
func TestReclaimGivesBackWhatIsDead(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	fill := func() {
		for off := int64(0); off < 1<<20; off += 64 << 10 {
			d.submit("a", writeOp(off, 64<<10))
		}
	}
	reclaim := func() pool.Reclaimed {
		t.Helper()
		got, err := d.p.Reclaim(ctx)
		if err != nil {
			t.Fatal(err)
		}
		d.verify()
		return got
	}
	fill()
	fill()
	if got := reclaim(); got.FreedBytes < 1<<20 || got.Removed == 0 {
		t.Errorf("overwritten once: %+v", got)
	}
	d.snapshot("s", "a")
	fill()
	if got := reclaim(); got.FreedBytes > 512<<10 {
		t.Errorf("held by a snapshot: %+v", got)
	}
	for lba := int64(0); lba < 256; lba += 2 {
		d.submit("a", op(block.OpDiscard, lba*block.Size, block.Size))
	}
	if got := reclaim(); got.Rewritten == 0 || got.FreedBytes < 256<<10 {
		t.Errorf("every second block discarded: %+v", got)
	}
	d.cloneVolume("a", "s", "c")
	d.deleteSnapshot("a", "s")
	if got := reclaim(); got.FreedBytes > 128<<10 {
		t.Errorf("a clone holds what the deleted snapshot held: %+v", got)
	}
	d.reopen()
	d.verify()
	d.deleteVolume("c")
	if got := reclaim(); got.FreedBytes < 1<<20 {
		t.Errorf("the clone is gone: %+v", got)
	}
	d.deleteVolume("a")
	reclaim()
	if got := d.p.Info().PhysicalBytes; got > 9<<20 { // the reserve takes 8 MiB
		t.Errorf("an empty pool takes %d bytes", got)
	}
}

// Where little is left of many segments they share a file, and where long runs are dead they become holes: both
// serve what is live, also when the pool is opened again, and when more of it goes.
func TestReclaimOfLeftoversAndLongRuns(t *testing.T) {
	d := newDriver(t)
	reclaim := func() pool.Reclaimed {
		t.Helper()
		got, err := d.p.Reclaim(ctx)
		if err != nil {
			t.Fatal(err)
		}
		d.verify()
		return got
	}
	const n = 60
	d.createVolume("cold", 512<<10)
	d.createVolume("hot", 64<<10)
	for i := range int64(n) {
		d.submit("cold", writeOp(i*4096, 4096))
		d.submit("hot", writeOp(0, 52<<10))
	}
	if got := reclaim(); got.Packed < n-5 {
		t.Errorf("one block is left of each of %d segments: %+v", n, got)
	}
	if got := d.p.Info(); got.Segments > 10 || got.PhysicalBytes > 9<<20 {
		t.Errorf("%d blocks take %d files, %d bytes", n, got.Segments, got.PhysicalBytes)
	}
	d.reopen()
	d.submit("cold", discardOp(0, n/2*4096))
	if got := reclaim(); got.Packed == 0 {
		t.Errorf("half of a pack is dead: %+v", got)
	}
	d.snapshot("s", "cold")
	d.deleteVolume("hot")
	d.submit("cold", writeOp(256<<10, 200<<10))
	d.submit("cold", discardOp(300<<10, 80<<10))
	d.deleteSnapshot("cold", "s")
	if got := reclaim(); got.Punched != 1 || got.Rewritten != 0 {
		t.Errorf("a long run is dead: %+v", got)
	}
	if got := reclaim(); got.Punched != 0 {
		t.Errorf("it is a hole already: %+v", got)
	}
	d.reopen()
	d.verify()
	d.submit("cold", discardOp(0, 512<<10))
	reclaim()
	if got := d.p.Info().PhysicalBytes; got > 8<<20+256<<10 {
		t.Errorf("an empty pool takes %d bytes", got)
	}
}

// A cycle that a crash cuts short anywhere is made up for by the first one after opening: no plan is kept
// of what was to be done, and the pool becomes as small as if nothing had happened.
func TestCycleCutShort(t *testing.T) {
	d := newDriver(t)
	d.createVolume("cold", 512<<10)
	d.createVolume("hot", 128<<10)
	for i := range int64(40) {
		d.submit("cold", writeOp(i*8192, 4096*(1+i%3)))
		d.submit("hot", writeOp(0, 40<<10))
	}
	d.submit("cold", writeOp(0, 400<<10))
	d.submit("cold", discardOp(64<<10, 200<<10))
	d.flush("cold")
	reclaimed := func(d *driver) int64 {
		t.Helper()
		if _, err := d.p.Reclaim(ctx); err != nil {
			t.Fatal(err)
		}
		d.verify()
		return d.p.Info().PhysicalBytes
	}
	var images []*crashfs.FS
	d.fs.OnOp(func(n int, op crashfs.Op, _ error) {
		if n%5 == 0 || strings.HasSuffix(op.NewPath, ".pak") || op.Kind == crashfs.PunchHole {
			images = append(images, d.fs.CrashImage(crashfs.KeepAll), d.fs.CrashImage(crashfs.DropAll))
		}
	})
	want := reclaimed(d)
	d.fs.OnOp(nil)
	for i, fs := range images {
		e := *d
		e.fs, e.opts.FS = fs, fs
		e.open()
		if got := reclaimed(&e); got > want+128<<10 { // two checkpoints more, in files of their own
			t.Errorf("cut short at %d of %d: %d bytes, and without that %d", i, len(images), got, want)
		}
		e.p.Abandon()
	}
	if len(images) < 10 {
		t.Errorf("only %d crashes", len(images))
	}
}

// Files that little by little become packs become one file.
func TestSmallPacksBecomeOne(t *testing.T) {
	d := newDriver(t)
	d.createVolume("cold", 1<<20)
	d.createVolume("hot", 64<<10)
	most := 0
	for i := range int64(120) {
		d.submit("cold", writeOp(i*4096, 4096))
		d.submit("hot", writeOp(0, 52<<10))
		if i%3 == 0 {
			if _, err := d.p.Reclaim(ctx); err != nil {
				t.Fatal(err)
			}
			most = max(most, d.p.Info().Segments)
		}
	}
	if most > 40 {
		t.Errorf("%d files", most)
	}
	d.verify()
}

// A cycle goes on until all that is dead was given back, in however many files: the sets of live blocks that it keeps at a
// time bound nothing but its memory.
func TestOneCycleCleansAllFiles(t *testing.T) {
	const n = 4200
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "pool"), Manual: true, SegmentBytes: 16 << 10} // a batch of three blocks each
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abandon()
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: (n + 2) * block.Size}); err != nil {
		t.Fatal(err)
	}
	dev, data := openVolume(t, p, "v"), stamp((n+2)*block.Size)
	write := func(off, length int64) *block.Op {
		return &block.Op{Offset: off, Length: length, Data: data[off : off+length]}
	}
	for i := range int64(n) { // one that stays, and two that are overwritten
		ops := []*block.Op{write(i*block.Size, block.Size), write(n*block.Size, 2*block.Size)}
		if dev.Submit(ctx, ops); ops[0].Err != nil || ops[1].Err != nil {
			t.Fatal(ops[0].Err, ops[1].Err)
		}
	}
	if got, err := p.Reclaim(ctx); err != nil || got.Packed < n-2 {
		t.Errorf("little is left of %d files: %+v, %v", n, got, err)
	}
	read := make([]byte, len(data))
	if err := dev.ReadAt(ctx, read, 0); err != nil || !bytes.Equal(read, data) {
		t.Errorf("what is live is not what it was: %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteVolume(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Reclaim(ctx); err != nil || p.Info().Segments > 10 {
		t.Errorf("nothing is left, in %d files: %v", p.Info().Segments, err)
	}
}

// A walk holds what it reads, and nothing else: space is given back while Check runs, whatever
// happens to the volumes that it has still to read, and what it held goes when it has ended.
func TestReclaimGoesOnWhileCheckReads(t *testing.T) {
	d := newDriver(t)
	names := []string{"a", "b", "c", "d"}
	fill := func(v string) {
		for off := int64(0); off < 1<<20; off += 64 << 10 {
			d.submit(v, writeOp(off, 64<<10))
		}
	}
	for _, v := range names {
		d.createVolume(v, 1<<20)
		fill(v)
		fill(v)
	}
	d.submit("d", writeOp(4096, 4096)) // the newest map nodes are in memory only
	reclaim := func() int64 {
		t.Helper()
		got, err := d.p.Reclaim(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return got.FreedBytes
	}
	read := 0
	rep, err := d.p.Check(ctx, func(float64) {
		switch read++; read {
		case 1:
			if got := reclaim(); got < 4<<20 {
				t.Errorf("what no walk reads: %d bytes were given back", got)
			}
			d.deleteVolume("b")
			d.snapshot("s", "c")
			fill("c")
			d.deleteSnapshot("c", "s")
			fill("d")
			if got := reclaim(); got > 512<<10 {
				t.Errorf("what is still to be read: %d bytes were given back", got)
			}
		case 2, 3:
			d.checkpoint()
			reclaim()
		}
		d.verify()
	})
	if err != nil || len(rep.Damage) > 0 || rep.Blocks != 4*256 {
		t.Errorf("%+v, %v; want %d blocks", rep, err, 4*256)
	}
	if got := reclaim(); got < 3<<20 {
		t.Errorf("after the walk %d bytes were given back", got)
	}
	d.verify()
}

// What is deleted and discarded is given back soon, without being asked for, down to 64 MiB and a tenth of
// what is live: data, and the map nodes of many snapshots with scattered changes.
func TestSpaceComesBack(t *testing.T) {
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "pool"), OnEvent: func(e pool.Event) { t.Error(e) }}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(ctx) }()
	const size = 192 << 20
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	dev, err := p.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	submit := func(ops ...*block.Op) {
		t.Helper()
		dev.Submit(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
	}
	for off := int64(0); off < size; off += 1 << 20 {
		submit(writeOp(off, 1<<20))
	}
	var refs []pool.SnapshotRef
	data := stamp(block.Size)
	for i := range int64(40) {
		var ops []*block.Op
		for leaf := range int64(size >> 20) { // one block of each leaf, so that each snapshot has nodes of its own
			ops = append(ops, &block.Op{Offset: leaf<<20 + i*block.Size, Length: block.Size, Data: data})
		}
		submit(ops...)
		ref := pool.SnapshotRef{Volume: "v", Name: fmt.Sprintf("s%d", i)}
		if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: ref.Name}); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
		if err := p.Checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
	}
	falls := func(what string, live int64) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if n := p.Info().PhysicalBytes; n <= live+live/10+64<<20 {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("%s, and the pool takes %d bytes still, of %d that are live", what, n, live)
			}
		}
	}
	if n := p.Info().PhysicalBytes; n < size+32<<20 {
		t.Errorf("with all snapshots the pool takes only %d bytes", n)
	}
	if err := p.DeleteSnapshots(ctx, refs); err != nil {
		t.Fatal(err)
	}
	falls("the snapshots are deleted", size)
	submit(discardOp(0, size/2))
	falls("one half is discarded", size/2)
	submit(discardOp(0, size))
	falls("all is discarded", 0)
	for off := int64(0); off < size; off += 1 << 20 {
		submit(writeOp(off, 1<<20))
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteVolume(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	falls("the volume is deleted", 0)
}

// Where nothing can be given back writers go on, beyond the bound: it is said, and nobody hangs.
func TestWritersGoOnWhereReclaimFails(t *testing.T) {
	fs := crashfs.New()
	var failed atomic.Int64
	o := pool.Options{FS: fs, Dir: "/pool", OnEvent: func(e pool.Event) {
		if e.Kind == pool.EventReclaimFailed {
			failed.Add(1)
		}
	}}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	dev, err := p.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	remove := fs.Inject(crashfs.Fault{Err: errIO, Times: 1 << 30, Match: func(op crashfs.Op) bool {
		return (op.Kind == crashfs.Remove || op.Kind == crashfs.Rename) && strings.HasPrefix(op.Path, "/pool/log/")
	}})
	data := stamp(1 << 20)
	for range 300 {
		op := &block.Op{Length: 1 << 20, Data: data}
		if dev.Submit(ctx, []*block.Op{op}); op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	if n := p.Info().PhysicalBytes; n < 280<<20 || failed.Load() == 0 {
		t.Errorf("%d failures are told, and the pool takes %d bytes", failed.Load(), n)
	}
	remove()
	if _, err := p.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	if n := p.Info().PhysicalBytes; n > 80<<20 {
		t.Errorf("once it works the pool takes %d bytes", n)
	}
	if err := errors.Join(dev.Close(), p.Close(ctx)); err != nil {
		t.Fatal(err)
	}
}

// Endless random overwrites of a full volume without snapshots keep the log below 1.3 times what is
// live and 256 MiB; writers wait for that where they must, and nothing of what they wrote is lost.
func TestOverwritesKeepTheLogBounded(t *testing.T) {
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "pool"), OnEvent: func(e pool.Event) { t.Error(e) }}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(ctx) }()
	const size, each = 64 << 20, 64 // volume in bytes, writes of a request
	const bound = size/10*13 + 256<<20
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	dev, err := p.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	last := make([]uint32, size/block.Size) // what was last written to each block, as a number in its content
	fill := func(b []byte, lba int64, n uint32) []byte {
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint32(b[i:], n)
			binary.LittleEndian.PutUint32(b[i+4:], uint32(lba))
		}
		return b
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := uint32(1); n <= 20*size/block.Size/each; n++ {
		ops := make([]*block.Op, each)
		for i := range ops {
			lba := rnd.Int64N(size / block.Size)
			if n <= size/block.Size/each { // first all of it
				lba = int64(n-1)*each + int64(i)
			}
			ops[i] = &block.Op{Offset: lba * block.Size, Length: block.Size, Data: fill(make([]byte, block.Size), lba, n)}
			last[lba] = n
		}
		dev.Submit(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
		if n%64 == 0 {
			if got := p.Info().PhysicalBytes; got > bound {
				t.Fatalf("the log takes %d bytes, the bound is %d", got, bound)
			}
		}
	}
	if p.Info().ReclaimedBytes == 0 {
		t.Error("nothing was given back")
	}
	b, want := make([]byte, block.Size), make([]byte, block.Size)
	for lba, n := range last {
		if err := dev.ReadAt(ctx, b, int64(lba)*block.Size); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, fill(want, int64(lba), n)) {
			t.Fatalf("block %d is not what was written last", lba)
		}
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
}
