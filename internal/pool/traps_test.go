package pool_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// batch is a batch in the log, found by its header.
type batch struct {
	file          string
	offset        int64
	seq           uint64
	headerBlocks  int64
	payloadBlocks int64
}

// batches lists what is in the log, oldest first.
func batches(t *testing.T, fs *crashfs.FS) []batch {
	t.Helper()
	names, err := fs.List("/pool/log")
	if err != nil {
		t.Fatal(err)
	}
	var all []batch
	for _, name := range names {
		name = path.Join("/pool/log", name)
		b := readAll(t, fs, name, nil)
		for off := int64(0); off < int64(len(b)) && string(b[off:off+8]) == "VARVEBAT"; {
			le := binary.LittleEndian
			h := b[off:]
			one := batch{name, off, le.Uint64(h[32:]), int64(le.Uint32(h[64:])), int64(le.Uint32(h[68:]))}
			all = append(all, one)
			off += (one.headerBlocks + one.payloadBlocks) * block.Size
		}
	}
	return all
}

// last returns the newest batch with that many payload blocks.
func last(t *testing.T, fs *crashfs.FS, payloadBlocks int64) batch {
	t.Helper()
	for _, b := range slices.Backward(batches(t, fs)) {
		if b.payloadBlocks == payloadBlocks {
			return b
		}
	}
	t.Fatalf("no batch of %d blocks", payloadBlocks)
	return batch{}
}

// rot changes a byte on the disk.
func rot(t *testing.T, fs *crashfs.FS, name string, off int64) {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	b[0] ^= 0x10
	if err = errors.Join(err, f.WriteAt([][]byte{b}, off), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// openImage opens the pool in a file system.
func (d *driver) openImage(fs *crashfs.FS) (*pool.Pool, error) {
	o := d.opts
	o.FS = fs
	return pool.Open(ctx, o)
}

// demandRefused demands that the pool cannot be opened, for that reason, and that
// trying changes nothing on the disk.
func (d *driver) demandRefused(fs *crashfs.FS, want error, names ...string) {
	d.tb.Helper()
	before := digest(d.tb, fs)
	p, err := d.openImage(fs)
	if err == nil {
		p.Abandon()
	}
	if !errors.Is(err, want) {
		d.tb.Fatalf("opening ends with %v, want %v", err, want)
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			d.tb.Fatalf("%q does not name %q", err, name)
		}
	}
	if digest(d.tb, fs) != before {
		d.tb.Fatalf("a pool that was refused (%v) was changed", err)
	}
}

// A bit rots in a flushed batch after the last checkpoint: it is no torn tail. Exactly the
// block it lies in is lost, and every later flush and snapshot is there.
func TestRotInFlushedPayloadLosesThatBlockOnly(t *testing.T) {
	d := crashSetup(t)
	d.submit("b", writeOp(0, 16<<10))
	d.flush("b")
	d.submit("b", writeOp(12<<10, 4096))
	d.snapshot("later", "b")
	d.submit("a", writeOp(0, 4096))
	d.flush("a")
	hurt := last(t, d.fs, 4)
	d.p.Abandon()
	image := d.fs.CrashImage(crashfs.ProcessCrash)
	rot(t, image, hurt.file, hurt.offset+(hurt.headerBlocks+1)*block.Size+77)
	p, err := d.openImage(image)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abandon()
	for _, name := range []string{"b", "b@later"} {
		dev, err := openEither(p, name)
		if err != nil {
			t.Fatal(err)
		}
		want := d.present().volumes["b"].content
		for lba := range int64(4) {
			got := make([]byte, block.Size)
			err := dev.ReadAt(ctx, got, lba*block.Size)
			if (lba == 1) != errors.Is(err, block.ErrDamaged) || (lba != 1 && (err != nil || sum(got) != sum(want.blocks[lba]))) {
				t.Errorf("%s, block %d: %v", name, lba, err)
			}
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := p.Check(ctx, nil)
	if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Offset != block.Size || rep.Damage[0].Length != block.Size {
		t.Errorf("check finds %+v, %v", rep.Damage, err)
	}
	dev, err := p.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Volume("a")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.content(dev, v.MappedBytes).digest(), d.present().volumes["a"].digest(); got != want {
		t.Errorf("a, written later, holds %s, want %s", got, want)
	}
}

// openEither opens VOLUME or VOLUME@SNAP.
func openEither(p *pool.Pool, name string) (block.Device, error) {
	if volume, snap, ok := strings.Cut(name, "@"); ok {
		return p.OpenSnapshot(pool.SnapshotRef{Volume: volume, Name: snap})
	}
	return p.OpenVolume(name)
}

// A flushed header rots: what follows cannot be told from a torn tail by itself, so the pool is
// refused rather than cut off, and the error says where.
func TestRotInFlushedHeaderIsRefused(t *testing.T) {
	d := crashSetup(t)
	d.reopen() // into a new segment
	d.submit("b", writeOp(0, 12<<10))
	d.submit("b", writeOp(0, 16<<10))
	d.flush("b")
	d.submit("b", writeOp(0, 4096)) // its header says that the one before is durable
	d.flush("b")
	hurt := last(t, d.fs, 4)
	if hurt.offset == 0 {
		t.Fatal("the batch to be damaged begins a segment, which could be any")
	}
	segment := strings.TrimSuffix(path.Base(hurt.file), ".seg")
	d.p.Abandon()
	for _, off := range []int64{0, 12, 32, 40, 60, 64, 90, hurt.headerBlocks*block.Size - 1} {
		image := d.fs.CrashImage(crashfs.ProcessCrash)
		rot(t, image, hurt.file, hurt.offset+off)
		d.demandRefused(image, pool.ErrDamagedLog, segment, fmt.Sprintf("batch %d", hurt.seq))
	}
}

// A whole segment is missing from the middle of the log.
func TestMissingSegmentIsRefused(t *testing.T) {
	d := crashSetup(t)
	for range 8 { // several segments
		d.submit("a", writeOp(0, 36<<10))
		d.flush("a")
	}
	all := batches(t, d.fs)
	missing := all[len(all)-4].file
	if missing == all[len(all)-1].file {
		t.Fatal("it is the last one")
	}
	d.p.Abandon()
	image := d.fs.CrashImage(crashfs.ProcessCrash)
	if err := image.Remove(missing); err != nil {
		t.Fatal(err)
	}
	d.demandRefused(image, pool.ErrDamagedLog)
}

// A sync fails, the pages turn clean, the process is restarted and finds its tail in the
// cache: what it goes on from must be on the disk, too. It is the first sync that
// fails, or the second, of another segment.
func TestFsyncGate(t *testing.T) {
	for nth := range 2 {
		d := crashSetup(t)
		d.submit("a", writeOp(0, 36<<10)) // into a new segment
		d.submit("a", writeOp(0, 36<<10))
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Skip: nth, Times: 1, Match: func(op crashfs.Op) bool { return op.Kind == crashfs.Sync }})
		d.tolerant = true
		d.snapshot("lost", "a")
		remove()
		if !errors.Is(d.failed, pool.ErrWriteStopped) {
			t.Fatalf("after failed sync %d: %v", nth, d.failed)
		}
		d.failed, d.tolerant = nil, false
		d.p.Abandon()
		d.crash(crashfs.ProcessCrash)
		d.verify()
		d.possible = []*model{d.present()}
		cut := *d
		cut.crash(crashfs.DropAll) // what was found stays
		cut.verify()
		cut.p.Abandon()
		d.submit("a", writeOp(0, 36<<10))
		d.flush("a")
		d.p.Abandon()
		d.crash(crashfs.DropAll)
		d.verify()
		d.p.Abandon()
	}
}

// A FLUSH covers several unsynced segments, the oldest too, and their names.
func TestFlushCoversEverySegment(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 256<<10)
	segments := d.p.Info().Segments
	for i := range int64(12) {
		d.submit("a", writeOp(i*20<<10, 20<<10))
	}
	if n := d.p.Info().Segments - segments; n < 3 {
		t.Fatalf("only %d new segments", n)
	}
	d.flush("a")
	d.p.Abandon()
	for _, p := range crashfs.Policies(len(d.fs.Pending())) {
		e := *d
		e.crash(p)
		e.verify()
		e.p.Abandon()
	}
}

// Whatever was acknowledged before an operation of the file system began is there if
// the process dies then, however many write at once: batch n+1 is not acknowledged before n.
func TestAcknowledgedWritesSurviveTheProcess(t *testing.T) {
	const writers, rounds = 6, 12
	d := newDriver(t)
	d.createVolume("a", writers*block.Size)
	var mu sync.Mutex
	acknowledged := map[int64]uint32{} // by block
	type moment struct {
		fs    *crashfs.FS
		acked map[int64]uint32
	}
	var moments []moment
	d.fs.OnOp(func(n int, _ crashfs.Op, _ error) {
		if n%3 == 0 {
			mu.Lock()
			defer mu.Unlock()
			acked := map[int64]uint32{}
			for k, v := range acknowledged {
				acked[k] = v
			}
			moments = append(moments, moment{d.fs.CrashImage(crashfs.ProcessCrash), acked})
		}
	})
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			dev, err := d.p.OpenVolume("a")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = dev.Close() }()
			for i := range uint32(rounds) {
				b := make([]byte, block.Size)
				binary.LittleEndian.PutUint32(b, i+1)
				o := &block.Op{Kind: block.OpWrite, Offset: w * block.Size, Length: block.Size, Data: b}
				if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
					t.Error(o.Err)
				}
				mu.Lock()
				acknowledged[w] = i + 1
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	d.fs.OnOp(nil)
	d.p.Abandon()
	if len(moments) < writers {
		t.Fatalf("only %d images", len(moments))
	}
	for _, m := range moments {
		p, err := d.openImage(m.fs)
		if err != nil {
			t.Fatal(err)
		}
		for lba, want := range m.acked {
			if got := version(t, p, "a", lba); got < want {
				t.Fatalf("block %d is of version %d, and %d was acknowledged", lba, got, want)
			}
		}
		p.Abandon()
	}
}

// version reads the number at the start of a block.
func version(t *testing.T, p *pool.Pool, name string, lba int64) uint32 {
	t.Helper()
	dev, err := openEither(p, name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if err := errors.Join(dev.ReadAt(ctx, b, lba*block.Size), dev.Close()); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b)
}

// Writes of 512 bytes to one block, in one request, in one batch of several
// writers, and concurrently: none is lost.
func TestPartialWritesOfOneBlockAreAllKept(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 8192)
	d.submit("a", writeOp(1000, 6000))
	d.submit("a", writeOp(0, 512), writeOp(3584, 1024), writeOp(512, 512), writeOp(256, 512)) // one request
	d.verify()

	// One batch: while a first write is on its way into the log, the others queue up behind it.
	next := d.present().clone()
	ops := make([]*block.Op, 8)
	for i := range ops {
		ops[i] = writeOp(int64(i)*512, 512)
		next.volumes["a"].write(ops[i].Offset, ops[i].Data, 512)
	}
	seq := d.p.Info().LastSeq
	var wg sync.WaitGroup
	write := func(o *block.Op) {
		dev, err := d.p.OpenVolume("a")
		if err != nil {
			t.Error(err)
			return
		}
		dev.Submit(ctx, []*block.Op{o})
		if err := errors.Join(o.Err, dev.Close()); err != nil {
			t.Error(err)
		}
	}
	d.fs.OnOp(func(int, crashfs.Op, error) {
		d.fs.OnOp(nil)
		for _, o := range ops[1:] {
			wg.Go(func() { write(o) })
		}
		for d.p.Queued() < len(ops)-1 {
			runtime.Gosched()
		}
	})
	write(ops[0])
	wg.Wait()
	if n := d.p.Info().LastSeq - seq; n != 2 {
		t.Errorf("%d batches, want 2", n)
	}
	d.possible = append(d.possible, next)
	d.verify()

	// And as it comes.
	next = next.clone()
	for i := range ops {
		for range 20 {
			ops[i] = writeOp(int64(i)*512, 512)
		}
		next.volumes["a"].write(ops[i].Offset, ops[i].Data, 512)
		wg.Go(func() {
			for range 20 {
				write(ops[i])
			}
		})
	}
	wg.Wait()
	d.possible = append(d.possible, next)
	d.verify()
	d.p.Abandon()
	d.crash(crashfs.ProcessCrash)
	d.verify()
	d.p.Abandon()
}

// A checkpoint is exactly a prefix of the log, though writers go on while it is written, and
// so is what a crash leaves around it. One writer numbers its writes; in any image each block
// must hold the newest number up to the newest of all.
func TestCheckpointsOverlappingWritesLeavePrefixes(t *testing.T) {
	const blocks, writes = 700, 400 // three leaves
	d := newDriver(t)
	d.createVolume("a", blocks*block.Size)
	d.createVolume("b", blocks*block.Size)
	var images []*crashfs.FS
	var mu sync.Mutex
	d.fs.OnOp(func(n int, _ crashfs.Op, _ error) {
		if n%31 == 0 {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range []crashfs.Policy{crashfs.KeepAll, crashfs.DropAll, crashfs.Random(uint64(n))} {
				images = append(images, d.fs.CrashImage(p))
			}
		}
	})
	place := func(i uint32) (name string, lba int64) { // of write i; overwrites some
		return []string{"a", "b"}[i%2], int64(i*i*31+i) % blocks
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			if err := d.p.Checkpoint(ctx); err != nil {
				t.Error(err)
			}
			if n%16 == 0 {
				if _, _, err := d.p.CreateSnapshot(ctx, []string{"a", "b"}, pool.SnapshotSpec{Name: fmt.Sprintf("s%d", n)}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i := uint32(1); i <= writes; i++ {
		name, lba := place(i)
		dev, err := d.p.OpenVolume(name)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, block.Size)
		binary.LittleEndian.PutUint32(b, i)
		o := &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: b}
		dev.Submit(ctx, []*block.Op{o})
		if err := errors.Join(o.Err, dev.Close()); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
	d.fs.OnOp(nil)
	d.p.Abandon()
	if len(images) < 20 {
		t.Fatalf("only %d images", len(images))
	}
	for i, fs := range images {
		p, err := d.openImage(fs)
		if err != nil {
			t.Fatal(err)
		}
		names := [][2]string{{"a", "b"}}
		if len(p.Volumes()) < 2 {
			continue // before they were
		}
		snaps, err := p.Snapshots("a")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range snaps {
			names = append(names, [2]string{"a@" + s.Name, "b@" + s.Name})
		}
		for _, pair := range names {
			demandPrefix(t, p, pair, blocks, writes, place)
		}
		if rep, err := p.Check(ctx, nil); err != nil || len(rep.Damage) > 0 {
			t.Fatalf("image %d: %v %v", i, rep.Damage, err)
		}
		p.Abandon()
	}
	t.Logf("%d images", len(images))
}

// demandPrefix demands that two volumes, or two snapshots of one instant, hold the first
// so many writes, and nothing else.
func demandPrefix(t *testing.T, p *pool.Pool, names [2]string, blocks int64, writes uint32, place func(uint32) (string, int64)) {
	t.Helper()
	got := [2][]byte{}
	newest := uint32(0)
	for i, name := range names {
		dev, err := openEither(p, name)
		if err != nil {
			t.Fatal(err)
		}
		got[i] = make([]byte, blocks*block.Size)
		if err := errors.Join(dev.ReadAt(ctx, got[i], 0), dev.Close()); err != nil {
			t.Fatal(err)
		}
		for lba := range blocks {
			newest = max(newest, binary.LittleEndian.Uint32(got[i][lba*block.Size:]))
		}
	}
	want := map[string]uint32{}
	for i := uint32(1); i <= newest; i++ {
		name, lba := place(i)
		want[fmt.Sprint(name, lba)] = i
	}
	for i, name := range names {
		for lba := range blocks {
			is := binary.LittleEndian.Uint32(got[i][lba*block.Size:])
			if should := want[fmt.Sprint(name[:1], lba)]; is != should {
				t.Fatalf("%v hold write %d, and block %d of %s holds write %d, not %d", names, newest, lba, name, is, should)
			}
		}
	}
}

// Overwrites of one block before and after a checkpoint: the newest one wins, whichever of
// them is replayed, and what the volume holds is counted right.
func TestOverwritesAroundACheckpoint(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 40<<10)
	d.submit("a", writeOp(0, 8192))
	d.checkpoint()
	d.submit("a", writeOp(0, 4096))
	d.submit("a", writeOp(0, 4096))
	d.checkpoint()
	d.submit("a", writeOp(0, 4096), writeOp(0, 4096))
	d.flush("a")
	d.p.Abandon()
	for _, p := range []crashfs.Policy{crashfs.ProcessCrash, crashfs.KeepAll, crashfs.DropAll} {
		e := *d
		e.crash(p)
		e.verify()
		if u, err := e.p.VolumeUsage(ctx, "a"); err != nil || u.Mapped != 8192 || u.Exclusive != 8192 {
			t.Errorf("usage %+v, %v", u, err)
		}
		e.p.Abandon()
	}
}

// superblocks on the disk: two slots of a block each.
const superblockPath = "/pool/superblock"

// slotOf is where the superblock of a checkpoint lies.
func slotOf(checkpoint uint64) int64 { return int64(checkpoint%2) * block.Size }

// The newest checkpoint's catalogue or superblock rots: the one before leads to the same state, and
// the operator is told.
func TestOlderSuperblockIsUsed(t *testing.T) {
	for name, hurt := range map[string]func(d *driver, fs *crashfs.FS){
		"catalogue": func(d *driver, fs *crashfs.FS) {
			segment, off := d.p.CatalogueAt()
			rot(t, fs, fmt.Sprintf("/pool/log/%016x.seg", segment), off+10)
		},
		"superblock": func(d *driver, fs *crashfs.FS) {
			rot(t, fs, superblockPath, slotOf(d.p.Info().Checkpoints)+200)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := crashSetup(t)
			d.checkpoint()
			d.submit("a", writeOp(0, 9000))
			d.snapshot("between", "a")
			d.checkpoint()
			d.submit("a", writeOp(512, 9000))
			d.flush("a")
			image := d.fs.CrashImage(crashfs.DropAll)
			hurt(d, image)
			d.p.Abandon()
			var events []pool.Event
			d.opts.OnEvent = func(e pool.Event) { events = append(events, e) }
			d.fs, d.opts.FS = image, image
			d.open()
			if got, want := d.dump(d.p), d.present().String(); got != want {
				t.Fatalf("the pool holds\n%s\nthe model\n%s", got, want)
			}
			if rep, err := d.p.Check(ctx, nil); err != nil || len(rep.Damage) != 1 {
				t.Errorf("check finds %+v, %v", rep.Damage, err)
			}
			if !slices.ContainsFunc(events, func(e pool.Event) bool { return e.Kind == "damage" }) {
				t.Errorf("nobody is told: %v", events)
			}
			d.reopen() // the next checkpoint mends it
			d.verify()
			d.p.Abandon()
		})
	}
}

// Neither slot is sound: the pool is refused and left as it is.
func TestBothSuperblocksDamaged(t *testing.T) {
	d := crashSetup(t)
	d.checkpoint()
	d.p.Abandon()
	image := d.fs.CrashImage(crashfs.DropAll)
	rot(t, image, superblockPath, 20)
	rot(t, image, superblockPath, block.Size+20)
	d.demandRefused(image, pool.ErrDamagedLog, "superblock")
	image = d.fs.CrashImage(crashfs.DropAll)
	f, err := image.Open(superblockPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(0), f.Close()); err != nil {
		t.Fatal(err)
	}
	d.demandRefused(image, pool.ErrDamagedLog, "superblock")
}

// A pool of a newer format is refused, in words that say so, and left as it is.
func TestNewerFormatIsRefused(t *testing.T) {
	d := crashSetup(t)
	d.checkpoint()
	newest := d.p.Info().Checkpoints
	d.p.Abandon()
	image := d.fs.CrashImage(crashfs.DropAll)
	b := readAll(t, image, superblockPath, nil)[slotOf(newest):][:block.Size]
	le := binary.LittleEndian
	le.PutUint32(b[8:], le.Uint32(b[8:])+1)
	le.PutUint32(b[12:], 0)
	le.PutUint32(b[12:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	f, err := image.Open(superblockPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.WriteAt([][]byte{b}, slotOf(newest)), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	d.demandRefused(image, pool.ErrNewerFormat)
}

// A second process is refused and told who has the pool.
func TestSecondProcessIsRefused(t *testing.T) {
	o := pool.Options{FS: vfs.OS(), Dir: path.Join(t.TempDir(), "pool")}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Open(ctx, o); !errors.Is(err, vfs.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the second ends with %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reopen(o); err != nil {
		t.Errorf("after the first has closed it: %v", err)
	}
}
