package pool_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path"
	"sync"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// inFile is what the file of the volume has.
func (d *inplace) inFile() []byte {
	d.tb.Helper()
	f, err := d.fs.OpenReadOnly(diskImage)
	d.must(err)
	b := make([]byte, len(d.head.data))
	_, err = f.ReadAt(b, 0)
	d.must(errors.Join(err, f.Close()))
	return b
}

// TestFirstWritesAreLogged: a small write under a snapshot is done when it is in the log; it comes into the file later, and then nothing but the old
// content is kept. A long one is done in place.
func TestFirstWritesAreLogged(t *testing.T) {
	d := newInplace(t, 1<<20, 1)
	defer func() { _ = d.p.Close(ctx) }()
	d.snapshot("s")
	d.submit(writeOp(0, 1)) // the first write of all is told durably
	d.must(d.p.Destage(ctx, "v"))
	before := d.inFile()
	syncs := 0
	d.fs.OnOp(func(_ int, o crashfs.Op, _ error) {
		if o.Kind == crashfs.Sync {
			syncs++
		}
	})
	d.submit(writeOp(4096, 8192), writeOp(40000, 100), op(block.OpZero, 20480, 4096))
	d.submit(writeOp(4096, 100)) // again
	d.fs.OnOp(nil)
	if syncs > 0 {
		t.Errorf("%d syncs for small writes", syncs)
	}
	if n := d.p.Logged("v"); n != 4 {
		t.Errorf("4 blocks were written, and %d lie in the log", n)
	}
	if !bytes.Equal(d.inFile(), before) {
		t.Error("the file has changed already")
	}
	d.verify()
	d.must(d.p.Destage(ctx, "v"))
	if !bytes.Equal(d.inFile(), d.head.data) || d.p.Logged("v") != 0 {
		t.Error("the file is not what the volume is")
	}
	d.must(d.p.Cycle(ctx))
	if n := d.p.KeptBytes("v"); n != 5*block.Size {
		t.Errorf("%d bytes are kept of 5 blocks", n)
	}
	d.submit(writeOp(4096, 8192)) // nothing has to be kept
	d.submit(bigWrite(512 << 10))
	if n := d.p.Logged("v"); n != 0 {
		t.Errorf("%d blocks lie in the log that should be in place", n)
	}
	d.verify()
}

// TestOverlayIsBounded: beyond its bound writes are done in place, and nobody waits.
func TestOverlayIsBounded(t *testing.T) {
	d := newOverlaid(t, 1<<20, 1, 4*block.Size)
	defer func() { _ = d.p.Close(ctx) }()
	d.snapshot("s")
	for off := int64(0); off < 10*block.Size; off += block.Size {
		d.submit(writeOp(off, block.Size))
		if n := d.p.Logged("v"); n > 4 {
			t.Fatalf("%d blocks lie in the log alone, and 4 may", n)
		}
	}
	d.submit(writeOp(0, block.Size)) // one that does already
	d.verify()
}

// TestDetachedFileIsWhole: a volume is let go of only when its file has everything.
func TestDetachedFileIsWhole(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	d.submit(writeOp(0, 8192), writeOp(20000, 10))
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	d.submit(writeOp(4096, 10), bigWriteWithin(d, 30000))
	d.must(d.p.DeleteVolume(ctx, "v"))
	if !bytes.Equal(d.inFile(), d.head.data) {
		t.Error("the file is not what the volume was")
	}
	d.must(d.p.Close(ctx))
}

// bigWriteWithin writes from off on to the end.
func bigWriteWithin(d *inplace, off int64) *block.Op {
	return writeOp(off, int64(len(d.head.data))-off)
}

// TestClosedFileIsWhole: who finds the file while the pool is closed finds everything in it, and the pool finds it unchanged.
func TestClosedFileIsWhole(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	d.submit(writeOp(0, 8192))
	d.must(d.p.Close(ctx))
	if !bytes.Equal(d.inFile(), d.head.data) {
		t.Error("the file is not what the volume was")
	}
	d.open()
	d.verify()
	d.must(d.p.Close(ctx))
}

// TestLoggedBlocksOfOlderEpochsAreFound: a crash after snapshots loses nothing that was logged before them; and what is known to be in the file is not
// looked at again.
func TestLoggedBlocksOfOlderEpochsAreFound(t *testing.T) {
	d := newInplace(t, 1<<20, 1)
	d.snapshot("a")
	d.submit(writeOp(0, 4096))
	d.snapshot("b")
	d.submit(writeOp(8192, 4096))
	d.snapshot("c")
	d.submit(writeOp(16384, 4096))
	for range 2 {
		d.flush()
		d.crash(crashfs.DropAll, true)
		d.verify()
		d.must(d.p.Destage(ctx, "v"))
		if !bytes.Equal(d.inFile(), d.head.data) {
			t.Fatal("the file is not what the volume is")
		}
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "b"}}))
		delete(d.snapshots, "b")
		d.submit(writeOp(0, 4096), writeOp(24576, 4096))
		d.snapshot("b")
	}
	d.must(d.p.Close(ctx))
}

// TestRollbackWhileItIsDestaged: after a rollback a block is behind as it was when it was written to the file, and another snapshot has what is in place.
func TestRollbackWhileItIsDestaged(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	d.submit(writeOp(0, 4096))
	d.snapshot("t")
	finish, err := d.p.BeginDestage(ctx, "v")
	d.must(err)
	d.must(d.p.Destage(ctx, "v"))
	d.snapshot("u")
	d.rollback("t")
	d.must(finish())
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.submit(writeOp(0, 4096))
	d.must(d.p.Destage(ctx, "v"))
	d.verify()
	d.must(d.p.Close(ctx))
}

// TestDestageWaitsForWhatIsLoggedMeanwhile: a block that has come into the file since, is a snapshot's now, and was logged again, is not overwritten
// before the snapshot's content of it is durable.
func TestDestageWaitsForWhatIsLoggedMeanwhile(t *testing.T) {
	const last = 700 // behind what is kept from writers at once
	d := newInplace(t, 4<<20, 1)
	d.must(d.p.Close(ctx))
	fs := &beforeRead{FS: d.fs}
	d.opts.FS = fs
	d.open()
	d.snapshot("s")
	for lba := int64(0); lba <= last; lba++ {
		d.submit(writeOp(lba*block.Size, block.Size))
	}
	images := 0
	fs.wrote = func() { // the first ones
		fs.wrote = nil
		d.submit(op(block.OpZeroAllocated, last*block.Size, block.Size)) // in place
		d.snapshot("t")
		d.submit(writeOp(last*block.Size, block.Size))
		fs.wrote = func() {
			for seed := range uint64(8) {
				images++
				e := &inplace{tb: t, fs: d.fs.CrashImage(crashfs.Random(seed)), clock: d.clock}
				e.opts = options(e.fs, d.clock)
				e.open()
				e.same("v@t", d.snapshots["t"].data)
				e.must(e.p.Close(ctx))
			}
		}
	}
	d.must(d.p.Destage(ctx, "v"))
	fs.wrote = nil
	if images == 0 {
		t.Error("all was written at once")
	}
	d.verify()
	d.must(d.p.Close(ctx))
}

// TestKilledUnderLoad: what was acknowledged is there when the pool is opened again, wherever it lay when the process ended: in the log, in the
// file, or on its way.
func TestKilledUnderLoad(t *testing.T) {
	const blocks, writers, kills = 256, 3, 12
	dir := t.TempDir()
	o := inplaceOptions(dir)
	o.OverlayBytes = 40 * block.Size
	p := openInplaceOS(t, o, path.Join(dir, "disk"), blocks*block.Size)
	var last [blocks]uint32
	sums := map[string]uint32{}
	for kill := range kills {
		var wg sync.WaitGroup
		wrote, failed, stop := make(chan struct{}, 1), make(chan struct{}, writers), make(chan struct{})
		for w := range writers {
			dev, err := p.OpenVolume("v")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer func() { _ = dev.Close() }()
				for n := uint32(1); ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					lba := (int(n*7)*writers + w) % (blocks / writers * writers)
					lba = lba/writers*writers + w // of its own
					value := uint32(kill)<<24 | n
					if !writeNumber(t, dev, lba, value, n%3 == 0) {
						failed <- struct{}{}
						return
					}
					last[lba] = value
					select {
					case wrote <- struct{}{}:
					default:
					}
				}
			})
		}
		someWrites := func() {
			for range 200 {
				select {
				case <-wrote:
				case <-failed:
					close(stop)
					wg.Wait()
					t.FailNow()
				}
			}
		}
		someWrites()
		name := string(rune('a' + kill))
		if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
		sums[name] = sum(contentOf(t, p, "v@"+name))
		someWrites()
		close(stop)
		wg.Wait()
		p.Abandon()
		var err error
		if p, err = pool.Open(ctx, o); err != nil {
			t.Fatal(err)
		}
		content := contentOf(t, p, "v")
		for lba, want := range last {
			for at := lba * block.Size; want != 0 && at < (lba+1)*block.Size; at += block.Size / 2 {
				if got := binary.LittleEndian.Uint32(content[at:]); got != want {
					t.Fatalf("after kill %d block %d has %x, and %x was acknowledged", kill, lba, got, want)
				}
			}
		}
		for name, want := range sums {
			if sum(contentOf(t, p, "v@"+name)) != want {
				t.Fatalf("after kill %d snapshot %s has changed", kill, name)
			}
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// writeNumber fills a block with a number, in halves or at once.
func writeNumber(t *testing.T, dev block.Device, lba int, n uint32, halves bool) bool {
	data := bytes.Repeat(binary.LittleEndian.AppendUint32(nil, n), block.Size/4)
	off := int64(lba) * block.Size
	ops := []*block.Op{{Kind: block.OpWrite, Offset: off, Length: block.Size, Data: data}}
	if halves {
		ops = []*block.Op{
			{Kind: block.OpWrite, Offset: off, Length: block.Size / 2, Data: data[:block.Size/2]},
			{Kind: block.OpWrite, Offset: off + block.Size/2, Length: block.Size / 2, Data: data[block.Size/2:]},
		}
	}
	dev.Submit(ctx, ops)
	for _, o := range ops {
		if o.Err != nil {
			t.Errorf("write: %v", o.Err)
			return false
		}
	}
	return true
}

// TestDestagesByItself: what lies in the log comes into the file without being asked for.
func TestDestagesByItself(t *testing.T) {
	dir := t.TempDir()
	p := openInplaceOS(t, inplaceOptions(dir), path.Join(dir, "disk"), 1<<20)
	if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"}); err != nil {
		t.Fatal(err)
	}
	dev, err := p.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	put(t, dev, writeOp(8192, 4096))
	if p.KeptBytes("v") == 0 {
		t.Error("it does not lie in the log")
	}
	for deadline := time.Now().Add(time.Minute); p.Logged("v") > 0; time.Sleep(10 * time.Millisecond) { // what works in the background tells nobody
		if time.Now().After(deadline) {
			t.Fatal("it stays in the log")
		}
	}
	if n := p.KeptBytes("v"); n != 0 { // of a hole
		t.Errorf("%d bytes are kept of nothing", n)
	}
	if err := errors.Join(dev.Close(), p.Close(ctx)); err != nil {
		t.Fatal(err)
	}
}

func inplaceOptions(dir string) pool.Options {
	return pool.Options{FS: vfs.OS(), Dir: path.Join(dir, "pool"), SegmentBytes: 1 << 20, CheckpointBytes: 4 << 20, MapCacheBytes: 1 << 20}
}
