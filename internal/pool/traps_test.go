package pool_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
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
	if err != nil || len(rep.Damage) != 2 || rep.Damage[0].Object != "b" || rep.Damage[1].Object != "b@later" ||
		rep.Damage[0].Offset != block.Size || rep.Damage[0].Length != block.Size || rep.Damage[1].Offset != block.Size || rep.Damage[1].Length != block.Size {
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
	if got, want := d.volumeContent(p, dev, v).digest(), d.present().volumes["a"].digest(); got != want {
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
