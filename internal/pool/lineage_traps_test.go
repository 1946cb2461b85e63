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

// Shrink to 4,608 bytes and grow: the old bytes do not reappear, neither in the
// block that the end lay in nor behind it, with an older state and without, across a
// checkpoint and a crash; snapshots keep their size and content.
func TestShrunkBytesDoNotReappear(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		for _, between := range []func(*driver){
			func(*driver) {},
			func(d *driver) { d.checkpoint() },
			func(d *driver) { d.reopen() },
			func(d *driver) { d.crash(crashfs.DropAll) },
		} {
			d := newDriver(t)
			d.createVolume("a", 2<<20+512)
			d.submit("a", writeOp(0, 20<<10), writeOp(1<<20, 1<<20+512))
			if snapshot {
				d.snapshot("s", "a")
			}
			d.resize("a", 4608)
			between(d)
			d.verify()
			d.resize("a", 2<<20+512)
			between(d)
			d.verify()
			if snapshot {
				d.rollback("a", "s")
				d.verify()
			}
			d.p.Abandon()
		}
	}
}

// A write that is under way while its volume shrinks does not leave bytes beyond the end.
func TestShrinkWhileAWriteIsUnderWay(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 40<<10)
	d.submit("a", writeOp(0, 40<<10))
	dev, err := d.p.OpenVolume("a") // has not written yet, so that shrinking is allowed
	if err != nil {
		t.Fatal(err)
	}
	ops := []*block.Op{writeOp(4096, 4096), writeOp(36<<10, 4096)}
	var wg sync.WaitGroup
	d.fs.OnOp(func(int, crashfs.Op, error) { // the shrinking is in the log and not in force
		d.fs.OnOp(nil)
		wg.Go(func() { dev.Submit(ctx, ops) })
		for range 1000 { // until it is queued, unless it waits for the shrinking
			if d.p.Queued() > 0 {
				break
			}
			runtime.Gosched()
		}
	})
	d.resize("a", 4608)
	wg.Wait()
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	next := d.present().clone()
	for _, o := range ops {
		if o.Err == nil {
			t.Errorf("a write at %d of a volume of 4608 bytes succeeded", o.Offset)
		} else if !errors.Is(o.Err, block.ErrOutOfRange) {
			t.Error(o.Err)
		}
	}
	d.possible = append(d.possible, next)
	d.resize("a", 40<<10)
	d.verify()
	d.p.Abandon()
}

// mkfs discards 64 TiB: that takes no time, no memory and no log to speak of, on an empty
// volume, a used one, and one with a snapshot, which keeps its content.
func TestDiscardOf64TiBCostsNothing(t *testing.T) {
	d := newDriver(t)
	create := func(name string) block.Device {
		if _, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: pool.MaxVolumeBytes}); err != nil {
			t.Fatal(err)
		}
		dev, err := d.p.OpenVolume(name)
		if err != nil {
			t.Fatal(err)
		}
		return dev
	}
	places := []int64{0, 1 << 20, 1 << 30, 1 << 40, pool.MaxVolumeBytes - 4096}
	use := func(dev block.Device) {
		for _, off := range places {
			o := writeOp(off, 4096)
			if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
				t.Fatal(o.Err)
			}
		}
	}
	empty, used, kept := create("empty"), create("used"), create("kept")
	use(used)
	use(kept)
	if _, _, err := d.p.CreateSnapshot(ctx, []string{"kept"}, pool.SnapshotSpec{Name: "s"}); err != nil {
		t.Fatal(err)
	}
	for name, dev := range map[string]block.Device{"empty": empty, "used": used, "kept": kept} {
		for _, kind := range []block.OpKind{block.OpDiscard, block.OpZero} {
			var before, after runtime.MemStats
			logged := d.p.Info().LogBytes
			runtime.ReadMemStats(&before)
			o := op(kind, 0, pool.MaxVolumeBytes)
			dev.Submit(ctx, []*block.Op{o})
			runtime.ReadMemStats(&after)
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%s: %d bytes of memory", name, n)
			}
			if n := d.p.Info().LogBytes - logged; n > 64<<10 {
				t.Errorf("%s: %d bytes of log", name, n)
			}
		}
		v, err := d.p.Volume(name)
		if err != nil || v.MappedBytes != 0 {
			t.Errorf("%s maps %d bytes, %v", name, v.MappedBytes, err)
		}
		extents, err := dev.Extents(ctx, 0, pool.MaxVolumeBytes, 10)
		if err != nil || len(extents) != 1 || !extents[0].Hole || extents[0].Length != pool.MaxVolumeBytes {
			t.Errorf("%s: extents %v, %v", name, extents, err)
		}
		use(dev) // over the tombstones
		if v, err := d.p.Volume(name); err != nil || v.MappedBytes != int64(len(places))*block.Size {
			t.Errorf("%s maps %d bytes, %v", name, v.MappedBytes, err)
		}
	}
	if err := errors.Join(empty.Close(), used.Close(), kept.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := d.p.Snapshot(pool.SnapshotRef{Volume: "kept", Name: "s"})
		if err != nil || s.MappedBytes != int64(len(places))*block.Size {
			t.Errorf("the snapshot maps %d bytes, %v", s.MappedBytes, err)
		}
		u, err := d.p.SnapshotUsage(ctx, pool.SnapshotRef{Volume: "kept", Name: "s"})
		if err != nil || u.Exclusive != s.MappedBytes {
			t.Errorf("the snapshot alone holds %d bytes, %v", u.Exclusive, err)
		}
		d.check(d.p)
		if err := d.p.Close(ctx); err != nil {
			t.Fatal(err)
		}
		d.open()
	}
	d.p.Abandon()
}

// A group snapshot is one instant: a writer numbers its writes and puts each into
// the first volume and then into the second; no snapshot has the second ahead of the first, or
// more than one behind.
func TestGroupSnapshotIsOneInstant(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 4096)
	d.createVolume("b", 4096)
	devs := [2]block.Device{}
	for i, name := range []string{"a", "b"} {
		dev, err := d.p.OpenVolume(name)
		if err != nil {
			t.Fatal(err)
		}
		devs[i] = dev
	}
	done, begun := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := uint32(1); ; n++ {
			if n == 2 {
				close(begun)
			}
			select {
			case <-done:
				return
			default:
			}
			for _, dev := range devs {
				b := make([]byte, 512)
				binary.LittleEndian.PutUint32(b, n)
				o := &block.Op{Kind: block.OpWrite, Length: 512, Data: b}
				if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
					t.Error(o.Err)
				}
			}
		}
	})
	<-begun
	const snapshots = 40
	for i := range snapshots {
		// The order of the names makes no difference.
		names := [][]string{{"a", "b"}, {"b", "a"}}[i%2]
		infos, _, err := d.p.CreateSnapshot(ctx, names, pool.SnapshotSpec{Name: fmt.Sprintf("s%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		if infos[0].GroupID != infos[1].GroupID || infos[0].GroupSize != 2 {
			t.Errorf("not one group: %+v", infos)
		}
	}
	close(done)
	wg.Wait()
	if err := errors.Join(devs[0].Close(), devs[1].Close()); err != nil {
		t.Fatal(err)
	}
	for i := range snapshots {
		a, b := version(t, d.p, fmt.Sprintf("a@s%d", i), 0), version(t, d.p, fmt.Sprintf("b@s%d", i), 0)
		if a != b && a != b+1 {
			t.Errorf("snapshot %d has write %d of the first and %d of the second", i, a, b)
		}
	}
	d.p.Abandon()
}
