package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// overBase is a pool with a volume v over a base.
type overBase struct {
	*testing.T
	p      *pool.Pool
	opts   pool.Options
	clock  *clock
	ref    []byte
	base   *baseContent
	data   []byte // of the base
	events []pool.Event
}

// newOverBase makes v of sizeBytes over a base of baseBytes, every fifth block of which is zeros.
func newOverBase(t *testing.T, sizeBytes, baseBytes int64) *overBase {
	t.Helper()
	d := &overBase{T: t, clock: newClock(), data: stamp(baseBytes)}
	for at := int64(4 * block.Size); at < baseBytes; at += 5 * block.Size {
		clear(d.data[at:min(at+block.Size, baseBytes)])
	}
	var b bases
	d.ref, d.base = b.add(d.data)
	d.opts = options(crashfs.New(), d.clock)
	d.opts.OpenBase = b.Open
	d.opts.OnEvent = func(e pool.Event) { d.events = append(d.events, e) }
	d.must(pool.Create(ctx, d.opts))
	d.open()
	_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: sizeBytes, Base: &pool.Base{Ref: d.ref, SizeBytes: baseBytes}})
	d.must(err)
	t.Cleanup(func() { _ = d.p.Close(ctx) })
	return d
}

func (d *overBase) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *overBase) open() {
	d.Helper()
	var err error
	d.p, err = pool.Open(ctx, d.opts)
	d.must(err)
}

// write performs an op on a volume.
func (d *overBase) write(name string, ops ...*block.Op) error {
	d.Helper()
	dev, err := d.p.OpenVolume(name)
	d.must(err)
	defer func() { _ = dev.Close() }()
	dev.Submit(ctx, ops)
	for _, op := range ops {
		err = errors.Join(err, op.Err)
	}
	return err
}

// read returns n bytes of a volume or snapshot.
func (d *overBase) read(name string, off, n int64) ([]byte, error) {
	d.Helper()
	dev, err := openEither(d.p, name)
	d.must(err)
	defer func() { _ = dev.Close() }()
	b := make([]byte, n)
	return b, dev.ReadAt(ctx, b, off)
}

// holds demands what a volume or snapshot holds.
func (d *overBase) holds(name string, want []byte) {
	d.Helper()
	got := contentOf(d.T, d.p, name)
	if len(got) != len(want) {
		d.Fatalf("%s has %d bytes, want %d", name, len(got), len(want))
	}
	for at := 0; at < len(got); at += block.Size {
		if end := min(at+block.Size, len(got)); !bytes.Equal(got[at:end], want[at:end]) {
			d.Fatalf("%s: block %d is not what it should be", name, at/block.Size)
		}
	}
}

func (d *overBase) snapshot(name string) {
	d.Helper()
	_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name})
	d.must(err)
}

func (d *overBase) fill() { d.Helper(); d.must(d.p.Fill(ctx, "v", nil)) }

// sound demands that a check finds nothing.
func (d *overBase) sound() {
	d.Helper()
	rep, err := d.p.Check(ctx, nil)
	if err != nil || len(rep.Damage) > 0 {
		d.Fatalf("check: %+v %v", rep.Damage, err)
	}
}

// need returns the bases that v and its snapshot s say that they need.
func (d *overBase) need(volume string) *pool.FilledFrom {
	d.Helper()
	info, err := d.p.Volume(volume)
	d.must(err)
	return info.FilledFrom
}

// TestVolumeOverBase: a volume over a base holds what the base does from the first instant, zeros behind that, and what is written to it; when it is
// filled the base is let go of and never asked for again.
func TestVolumeOverBase(t *testing.T) {
	d := newOverBase(t, 40*block.Size, 20*block.Size+512)
	if f := d.need("v"); f == nil || !bytes.Equal(f.Ref, d.ref) || f.SizeBytes != 20*block.Size+512 || f.FilledBytes != 0 || f.Problem != "" {
		t.Fatalf("it is filled from %+v", f)
	}
	if opened, _ := d.base.counts(); opened != 0 {
		t.Error("the base was opened before anything of it was needed")
	}
	want := make([]byte, 40*block.Size)
	copy(want, d.data)
	d.holds("v", want)
	for _, op := range []*block.Op{writeOp(100, 700), writeOp(3*block.Size-5, 10), writeOp(20*block.Size+500, 100), writeOp(6*block.Size, 2*block.Size), writeOp(30*block.Size, 5)} {
		d.must(d.write("v", op))
		copy(want[op.Offset:], op.Data)
	}
	d.must(d.write("v", op(block.OpDiscard, 10*block.Size, 2*block.Size), op(block.OpZero, 13*block.Size+9, 3*block.Size), op(block.OpZeroAllocated, 18*block.Size+1, 1)))
	clear(want[10*block.Size : 12*block.Size])
	clear(want[13*block.Size+9 : 16*block.Size+9])
	want[18*block.Size+1] = 0
	d.holds("v", want)
	d.fill()
	if f := d.need("v"); f != nil {
		t.Errorf("it is filled, and still needs %+v", f)
	}
	opened, open := d.base.counts()
	if open != 0 {
		t.Errorf("%d devices of the base are open", open)
	}
	d.base.set(func(c *baseContent) { c.cannot = errBase })
	d.holds("v", want)
	d.fill() // of which there is nothing to do
	d.must(d.p.Close(ctx))
	d.open()
	d.holds("v", want)
	d.sound()
	if now, _ := d.base.counts(); now != opened {
		t.Error("the base was opened after it was needed no more")
	}
	for _, e := range d.events {
		t.Errorf("event %+v", e)
	}
}

// TestCreateOverBaseRefuses what cannot be.
func TestCreateOverBaseRefuses(t *testing.T) {
	d := newOverBase(t, 40*block.Size, 20*block.Size)
	for name, spec := range map[string]pool.VolumeSpec{
		"no reference":         {SizeBytes: 1 << 20, Base: &pool.Base{SizeBytes: 1 << 20}},
		"a long reference":     {SizeBytes: 1 << 20, Base: &pool.Base{Ref: make([]byte, pool.MaxRefBytes+1), SizeBytes: 1 << 20}},
		"a base without size":  {SizeBytes: 1 << 20, Base: &pool.Base{Ref: d.ref}},
		"an odd size":          {SizeBytes: 1 << 20, Base: &pool.Base{Ref: d.ref, SizeBytes: 8000}},
		"a base that is large": {SizeBytes: 1 << 20, Base: &pool.Base{Ref: d.ref, SizeBytes: 1<<20 + 512}},
	} {
		spec.Name = "w"
		if _, err := d.p.CreateVolume(ctx, spec); !errors.Is(err, pool.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	info, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "w", Base: &pool.Base{Ref: make([]byte, pool.MaxRefBytes), SizeBytes: 1 << 20}})
	if err != nil || info.SizeBytes != 1<<20 || len(info.FilledFrom.Ref) != pool.MaxRefBytes {
		t.Errorf("the longest reference, and no size: %+v %v", info, err)
	}
	if err := d.p.Fill(ctx, "x", nil); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("fill of nothing: %v", err)
	}
}

// TestSnapshotsShareWhatIsFilled: what is made while a volume is filled needs the base as it does and is filled with it, once; and no diff says that
// anything has changed.
func TestSnapshotsShareWhatIsFilled(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.snapshot("s")
	d.must(d.write("v", writeOp(0, 4*block.Size)))
	d.snapshot("later")
	_, _, err := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, pool.VolumeSpec{Name: "clone"})
	d.must(err)
	for _, f := range []*pool.FilledFrom{d.need("v"), d.need("clone"), d.snapshotNeeds("s"), d.snapshotNeeds("later")} {
		if f == nil || !bytes.Equal(f.Ref, d.ref) {
			t.Fatalf("one needs %+v", f)
		}
	}
	diff, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: "s"}, pool.PointRef{Volume: "v"})
	d.must(err)
	defer diff.Close()
	d.fill()
	for _, f := range []*pool.FilledFrom{d.need("v"), d.need("clone"), d.snapshotNeeds("s"), d.snapshotNeeds("later")} {
		if f != nil {
			t.Errorf("one still needs %+v", f)
		}
	}
	d.holds("v@s", d.data)
	d.holds("clone", d.data)
	if n := d.p.FilledBlocks("v"); n != 16 { // of 20, every fifth is zeros
		t.Errorf("%d blocks are kept", n)
	}
	for _, from := range []string{"s", "later"} {
		diff, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: from}, pool.PointRef{Volume: "v"})
		d.must(err)
		var changed int64
		d.must(diff.Each(ctx, func(_, length int64) error { changed += length; return nil }))
		diff.Close()
		if want := map[string]int64{"s": 4 * block.Size}[from]; changed != want {
			t.Errorf("since %s %d bytes have changed, want %d", from, changed, want)
		}
	}
	d.sound()
}

func (d *overBase) snapshotNeeds(name string) *pool.FilledFrom {
	d.Helper()
	info, err := d.p.Snapshot(pool.SnapshotRef{Volume: "v", Name: name})
	d.must(err)
	return info.FilledFrom
}

// TestResizeOverBase: what a volume gains is zeros, whatever it or the base had there once.
func TestResizeOverBase(t *testing.T) {
	for _, filled := range []bool{false, true} {
		d := newOverBase(t, 20*block.Size, 20*block.Size)
		if filled {
			d.fill()
		}
		d.must(d.p.ResizeVolume(ctx, "v", 7*block.Size+512, true))
		d.must(d.p.ResizeVolume(ctx, "v", 30*block.Size, false))
		want := make([]byte, 30*block.Size)
		copy(want, d.data[:7*block.Size+512])
		d.holds("v", want)
		d.fill()
		d.holds("v", want)
		if n := d.p.FilledBlocks("v"); !filled && n > 8 {
			t.Errorf("%d blocks are filled, of 8 that are left", n)
		}
		d.sound()
	}
}

// TestUsageOverBase: what a volume and its snapshots hold is what the pool has of them, and exclusive is what deleting one frees.
func TestUsageOverBase(t *testing.T) {
	d := newOverBase(t, 40*block.Size, 20*block.Size)
	usage := func(mapped, exclusive int64) {
		t.Helper()
		u, err := d.p.VolumeUsage(ctx, "v")
		d.must(err)
		if u.Mapped != mapped*block.Size || u.Exclusive != exclusive*block.Size {
			t.Errorf("the volume maps %d blocks and has %d for itself, want %d and %d", u.Mapped/block.Size, u.Exclusive/block.Size, mapped, exclusive)
		}
	}
	snapshot := func(mapped, exclusive int64) {
		t.Helper()
		u, err := d.p.SnapshotUsage(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
		d.must(err)
		if u.Mapped != mapped*block.Size || u.Exclusive != exclusive*block.Size {
			t.Errorf("the snapshot maps %d blocks and has %d for itself, want %d and %d", u.Mapped/block.Size, u.Exclusive/block.Size, mapped, exclusive)
		}
	}
	usage(0, 0)
	d.must(d.write("v", writeOp(0, 2*block.Size), writeOp(30*block.Size, block.Size)))
	usage(3, 3)
	d.snapshot("s")
	usage(3, 0)
	d.fill()
	usage(3+14, 0) // of 18 four are zeros
	snapshot(3+14, 0)
	d.must(d.write("v", writeOp(5*block.Size, block.Size), op(block.OpDiscard, 6*block.Size, block.Size)))
	usage(3+13, 1)
	snapshot(3+14, 2)
	if total, err := d.p.VolumeTotal(ctx, "v"); err != nil || total != (3+14+1)*block.Size {
		t.Errorf("all of it is %d bytes, %v", total, err)
	}
}

// TestBaseGoesWithTheLastVolume: what is kept of a base is there for as long as anything over it is, and no longer.
func TestBaseGoesWithTheLastVolume(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.snapshot("s")
	for _, name := range []string{"one", "two"} {
		_, _, err := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, pool.VolumeSpec{Name: name})
		d.must(err)
	}
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}})) // hidden, as two descend from it
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.holds("one", d.data)
	d.must(d.p.Fill(ctx, "two", nil))
	d.base.set(func(c *baseContent) { c.cannot = errBase })
	d.must(d.p.Cycle(ctx))
	d.holds("one", d.data)
	d.holds("two", d.data)
	d.must(d.p.CheckOwners())
	d.must(d.p.DeleteVolume(ctx, "one"))
	d.must(d.p.Close(ctx))
	d.open()
	d.holds("two", d.data)
	d.must(d.p.DeleteVolume(ctx, "two"))
	if states, volumes := d.p.Counts(); states+volumes != 0 {
		t.Errorf("%d states and %d volumes are left", states, volumes)
	}
	// One that has copies outlives its head, which needs no base any more.
	_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", Base: &pool.Base{Ref: d.ref, SizeBytes: 20 * block.Size}})
	d.must(err)
	d.base.set(func(c *baseContent) { c.cannot = nil })
	d.clock.now = d.clock.now.Add(2e9)
	made, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "c", Copy: &pool.CopySpec{Technique: pool.Clone}})
	d.must(err)
	_, err = d.p.Copy(ctx, made[0].ID, pool.CopyOptions{})
	d.must(err)
	d.must(d.p.DeleteVolume(ctx, "v"))
	if f := d.need("v"); f != nil {
		t.Errorf("deleted, it needs %+v", f)
	}
	d.holds("v@c", d.data)
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "c"}}))
	if states, volumes := d.p.Counts(); states+volumes != 0 {
		t.Errorf("%d states and %d volumes are left", states, volumes)
	}
	d.sound()
	d.must(d.p.Close(ctx))
	if _, open := d.base.counts(); open != 0 {
		t.Errorf("%d devices of the base are open", open)
	}
}

// TestFillReadsWhatIsWanted and nothing else, and that once: not what was overwritten or discarded, unless a snapshot has it.
func TestFillReadsWhatIsWanted(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.must(d.write("v", writeOp(0, 3*block.Size)))
	d.snapshot("s")
	d.must(d.write("v", writeOp(5*block.Size, 3*block.Size), op(block.OpDiscard, 15*block.Size, 5*block.Size)))
	d.must(d.write("v", writeOp(10*block.Size, 100))) // which brings that block
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	d.snapshot("t")
	d.must(d.write("v", writeOp(12*block.Size, block.Size)))
	read := map[int64]int{}
	d.base.set(func(c *baseContent) {
		c.reading = func(off, n int64) {
			for lba := off / block.Size; lba*block.Size < off+n; lba++ {
				read[lba]++
			}
		}
	})
	d.fill()
	for lba := range int64(20) {
		want := 1
		switch {
		case lba < 3, lba >= 5 && lba < 8, lba == 10, lba >= 15, lba%5 == 4:
			want = 0
		}
		if read[lba] != want {
			t.Errorf("block %d was read %d times, want %d", lba, read[lba], want)
		}
	}
}

// TestFillGoesOn where it was, after it was cut short and after the process was killed; and what is overwritten later is given back.
func TestFillGoesOn(t *testing.T) {
	const size = 72 << 20
	var b bases
	data := bytes.Repeat(stamp(1<<20-8), size/(1<<20-8)+1)[:size]
	ref, base := b.add(data)
	o := pool.Options{FS: vfs.OS(), Dir: t.TempDir(), Manual: true, OpenBase: b.Open}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(pool.Create(ctx, o))
	p, err := pool.Open(ctx, o)
	must(err)
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", Base: &pool.Base{Ref: ref, SizeBytes: size}})
	must(err)
	stopAt := func(at int64) {
		t.Helper()
		if err := p.Fill(ctx, "v", func(done, total int64) error {
			if total != size {
				t.Fatalf("%d bytes in all", total)
			}
			if done >= at {
				return errEnough
			}
			return nil
		}); !errors.Is(err, errEnough) {
			t.Fatalf("cut short: %v", err)
		}
	}
	filled := func(least, most int64) {
		t.Helper()
		info, err := p.Volume("v")
		must(err)
		if f := info.FilledFrom; f == nil || f.FilledBytes < least || f.FilledBytes > most {
			t.Fatalf("it is filled from %+v, want %d to %d bytes", f, least, most)
		}
	}
	stopAt(10 << 20)
	filled(0, 0)
	stopAt(70 << 20)
	filled(64<<20, 70<<20)
	p.Abandon()
	p, err = pool.Open(ctx, o)
	must(err)
	filled(64<<20, 70<<20)
	first := int64(size)
	base.set(func(c *baseContent) {
		c.reading = func(off, n int64) {
			if n > 0 {
				first = min(first, off)
			}
		}
	})
	must(p.Fill(ctx, "v", nil))
	if first < 70<<20 {
		t.Errorf("it was read again from %d on", first)
	}
	if got := contentOf(t, p, "v"); !bytes.Equal(got, data) {
		t.Fatal("it does not hold what the base does")
	}
	if n := p.FilledBlocks("v"); n != size/block.Size {
		t.Fatalf("%d blocks are kept", n)
	}
	dev, err := p.OpenVolume("v")
	must(err)
	for off := int64(0); off < 66<<20; off += 2 << 20 {
		op := writeOp(off, 2<<20)
		dev.Submit(ctx, []*block.Op{op})
		must(op.Err)
		copy(data[off:], op.Data)
	}
	must(dev.Close())
	if !p.Deleted() {
		t.Error("nobody looks what is kept for nothing")
	}
	must(p.Cycle(ctx))
	if n := p.FilledBlocks("v"); n != 6<<20/block.Size {
		t.Errorf("%d blocks are kept", n)
	}
	if got := contentOf(t, p, "v"); !bytes.Equal(got, data) {
		t.Fatal("it does not hold what it should")
	}
	must(p.Close(ctx))
}

// TestDeletedWhileItIsFilled: a volume can be deleted while it is filled, and two do not fill one base.
func TestDeletedWhileItIsFilled(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	err := d.p.Fill(ctx, "v", func(done, _ int64) error {
		if done == 4*block.Size {
			if err := d.p.Fill(ctx, "v", nil); !errors.Is(err, pool.ErrInUse) {
				return fmt.Errorf("a second one: %w", err)
			}
			return d.p.DeleteVolume(ctx, "v")
		}
		return nil
	})
	if !errors.Is(err, pool.ErrNotFound) || !strings.Contains(err.Error(), "deleted meanwhile") {
		t.Errorf("it was deleted while it was filled: %v", err)
	}
	if states, volumes := d.p.Counts(); states+volumes != 0 {
		t.Errorf("%d states and %d volumes are left", states, volumes)
	}
}
