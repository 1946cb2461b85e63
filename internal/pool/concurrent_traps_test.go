package pool_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

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
