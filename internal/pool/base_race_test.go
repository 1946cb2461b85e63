package pool_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// overOS is a pool in the real file system, with all that goes on in the background, and a volume v over a base.
func overOS(t *testing.T, blocks int) (*pool.Pool, []byte) {
	t.Helper()
	var b bases
	data := stamp(int64(blocks) * block.Size)
	for lba := 5; lba < blocks; lba += 7 {
		clear(data[lba*block.Size : (lba+1)*block.Size])
	}
	ref, _ := b.add(data)
	o := pool.Options{FS: vfs.OS(), Dir: t.TempDir(), OpenBase: b.Open, OnEvent: func(e pool.Event) { t.Errorf("event %+v", e) }}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err == nil {
		_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", Base: &pool.Base{Ref: ref, SizeBytes: int64(len(data))}})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close(ctx) })
	return p, data
}

// TestFillUnderLoad: writers overwrite, patch and discard a volume while it is filled, snapshots of it are made, read and deleted, and others read it:
// each block holds what the base has or its writer's last write, and no snapshot changes.
func TestFillUnderLoad(t *testing.T) {
	const blocks, writers = 3 * 256, 4
	for range thin(6) {
		p, data := overOS(t, blocks)
		work, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		// Each writer has every fourth block. It writes a number to the first bytes, which only grows, or to all of the block; the rest is the base's.
		last := make([]uint32, blocks)
		for w := range writers {
			dev, err := p.OpenVolume("v")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer func() { _ = dev.Close() }()
				for n := uint32(1); work.Err() == nil; n++ {
					lba := (int(n*2654435761>>8)%(blocks/writers))*writers + w
					op := &block.Op{Kind: block.OpWrite, Offset: int64(lba) * block.Size, Data: bytes.Clone(data[lba*block.Size:][:block.Size])}
					if binary.LittleEndian.PutUint32(op.Data, n|1<<31); n%2 == 0 {
						op.Data = op.Data[:4]
					}
					op.Length = int64(len(op.Data))
					if dev.Submit(ctx, []*block.Op{op}); op.Err != nil {
						t.Errorf("write: %v", op.Err)
						return
					}
					last[lba] = n | 1<<31
				}
			})
		}
		// like tells whether a block is the base's, but for a number that may stand before it.
		like := func(content []byte, lba int) bool {
			is, was := content[lba*block.Size:][:block.Size], data[lba*block.Size:][:block.Size]
			return bytes.Equal(is, was) || is[3]&0x80 != 0 && bytes.Equal(is[4:], was[4:])
		}
		var filled atomic.Bool
		wg.Go(func() {
			for steps := range 40 { // cut short again and again
				n := 0
				err := p.Fill(ctx, "v", func(int64, int64) error {
					if n++; steps < 39 && n > steps {
						return errEnough
					}
					return nil
				})
				if steps == 39 && err != nil {
					t.Errorf("fill: %v", err)
				}
			}
			filled.Store(true)
		})
		kept := map[string][]byte{}
		for n := 0; n < 4 || !filled.Load(); n++ {
			name := fmt.Sprintf("s%d", n)
			if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name}); err != nil {
				t.Fatal(err)
			}
			kept[name] = contentOf(t, p, "v@"+name)
			for lba := range blocks {
				if !like(kept[name], lba) {
					t.Fatalf("block %d of snapshot %s is neither the base's nor a writer's", lba, name)
				}
			}
			if n >= 3 {
				gone := fmt.Sprintf("s%d", n-3)
				if again := contentOf(t, p, "v@"+gone); !bytes.Equal(again, kept[gone]) {
					t.Fatalf("snapshot %s has changed", gone)
				}
				if err := p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: gone}}); err != nil {
					t.Fatal(err)
				}
				delete(kept, gone)
				if err := p.Collect(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		stop()
		wg.Wait()
		now := contentOf(t, p, "v")
		for lba := range blocks {
			if !like(now, lba) || last[lba] != 0 && binary.LittleEndian.Uint32(now[lba*block.Size:]) != last[lba] {
				t.Fatalf("block %d is not what was written to it last, or the base's", lba)
			}
		}
		for name, content := range kept {
			if !bytes.Equal(contentOf(t, p, "v@"+name), content) {
				t.Errorf("snapshot %s has changed", name)
			}
		}
		if info, err := p.Volume("v"); err != nil || info.FilledFrom != nil {
			t.Errorf("it needs %+v, %v", info.FilledFrom, err)
		}
		if rep, err := p.Check(ctx, nil); err != nil || len(rep.Damage) > 0 {
			t.Errorf("check: %+v %v", rep.Damage, err)
		}
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

// TestReadWhileFillEnds: readers of a volume find the same before, while and after it is filled, also as the base is let go of.
func TestReadWhileFillEnds(t *testing.T) {
	for range 8 / thin(4) {
		p, data := overOS(t, 64)
		var wg sync.WaitGroup
		done := make(chan struct{})
		var started sync.WaitGroup
		for range 4 {
			dev, err := p.OpenVolume("v")
			if err != nil {
				t.Fatal(err)
			}
			started.Add(1)
			wg.Go(func() {
				defer func() { _ = dev.Close() }()
				b := make([]byte, len(data))
				for n, after := 0, false; !after; n++ {
					select {
					case <-done:
						after = true // once more
					default:
					}
					off := int64(n % 3 * 1000)
					if err := dev.ReadAt(ctx, b[off:], off); err != nil || !bytes.Equal(b[off:], data[off:]) {
						t.Errorf("read: %v", err)
						after = true
					}
					if found, err := dev.Extents(ctx, 0, int64(len(data)), 100); err != nil || slices.ContainsFunc(found, func(e block.Extent) bool {
						return e.Zero && len(bytes.TrimLeft(data[e.Offset:e.Offset+e.Length], "\x00")) > 0
					}) {
						t.Errorf("extents: %+v %v", found, err)
					}
					if n == 0 {
						started.Done()
					}
				}
			})
		}
		started.Wait()
		if err := p.Fill(ctx, "v", nil); err != nil {
			t.Errorf("fill: %v", err)
		}
		close(done)
		wg.Wait()
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

// TestReadThatFillOvertakes: who has asked the base for a block and has no answer yet when the base is let go of finds it in the pool, or that it is zeros.
func TestReadThatFillOvertakes(t *testing.T) {
	for _, lba := range []int64{0, 4} { // which is zeros
		d := newOverBase(t, 20*block.Size, 20*block.Size)
		entered, release := make(chan struct{}), make(chan struct{})
		var ended atomic.Bool
		d.base.set(func(c *baseContent) {
			c.reading = func(off, n int64) {
				if off == lba*block.Size && n == block.Size { // Fill reads more
					entered <- struct{}{}
					<-release
				}
			}
			c.refuses = func(ctx context.Context) error {
				if ended.Load() {
					<-ctx.Done() // as the base is let go of
				}
				return ctx.Err()
			}
		})
		got := make(chan error, 1)
		go func() {
			off := lba*block.Size + 10
			b, err := d.read("v", off, 100)
			if err == nil && !bytes.Equal(b, d.data[off:off+100]) {
				err = errors.New("it is not what the base has")
			}
			got <- err
		}()
		<-entered
		d.fill()
		if _, open := d.base.counts(); open != 1 {
			t.Errorf("%d devices are open while one is read", open)
		}
		ended.Store(true)
		close(release)
		if err := <-got; err != nil {
			t.Error(err)
		}
		if _, open := d.base.counts(); open != 0 || len(d.events) > 0 {
			t.Errorf("%d devices are open, %+v", open, d.events)
		}
	}
}

// TestReadThatAWriterOvertakes: a reader finds a block in the base; a write takes it out of the head, and as nobody has it any more Fill passes it over and
// is done. Then the block is not zeros: the reader finds what was written.
func TestReadThatAWriterOvertakes(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	entered, release := make(chan struct{}), make(chan struct{})
	d.base.set(func(c *baseContent) {
		c.reading = func(off, n int64) {
			if off == 7*block.Size && n == block.Size {
				entered <- struct{}{}
				<-release
			}
		}
	})
	got := make(chan []byte, 1)
	go func() {
		b, err := d.read("v", 7*block.Size, block.Size)
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	<-entered
	op := writeOp(7*block.Size, block.Size)
	d.must(d.write("v", op))
	d.fill()
	close(release)
	if !bytes.Equal(<-got, op.Data) {
		t.Error("it is not what was written")
	}
}

// TestSnapshotWhileFillLooks: a snapshot that is made after Fill has listed what it looks at may have a block that a client then takes out of the
// head. Nothing it looked at has the block, and still it is wanted.
func TestSnapshotWhileFillLooks(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.snapshot("before")
	d.must(d.write("v", writeOp(2*block.Size, block.Size)))
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "before"}}))
	wanted, holds := d.p.BeginLook("v", 0, 20)()
	if !holds || wanted[2] || !wanted[3] {
		t.Fatalf("a quiet look: %v %v", wanted, holds)
	}
	finish := d.p.BeginLook("v", 0, 20)
	d.snapshot("s")
	d.must(d.write("v", writeOp(3*block.Size, block.Size)))
	if wanted, holds := finish(); holds {
		t.Fatalf("nothing is said to have block 3, and a snapshot has it: %v", wanted)
	}
	wanted, holds = d.p.BeginLook("v", 0, 20)()
	if !holds || wanted[2] || !wanted[3] {
		t.Errorf("the next look: %v %v", wanted, holds)
	}
	d.fill()
	d.base.set(func(c *baseContent) { c.cannot = errBase })
	want := contentOf(t, d.p, "v")
	copy(want[3*block.Size:4*block.Size], d.data[3*block.Size:])
	d.holds("v@s", want)
}
