package pool_test

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs/crashfs"
)

const (
	legImage = "/leg.img"
	regionBs = catalogue.RegionBytes
)

// mirrorLayouts are those of the volumes that are mirrored.
var mirrorLayouts = []string{"redirect", "inplace", "over a base"}

// mirrored does the same to a mirrored volume on a crashable file system and to plain bytes.
type mirrored struct {
	tb     tb
	fs     *crashfs.FS
	p      *pool.Pool
	opts   pool.Options
	clock  *clock
	layout string

	data    []byte
	dirty   map[int64]bool  // blocks written since the last flush
	events  []pool.Event    // but for recoveries
	touched map[uint64]bool // regions that may be recorded
	snaps   map[string][]byte
	buffers *[3][]byte // what verify reads volume and leg into, and what a volume was after a crash
}

func newMirrored(tb tb, layout string, size int64) *mirrored {
	d := &mirrored{tb: tb, fs: crashfs.New(), clock: newClock(), layout: layout, dirty: map[int64]bool{}, touched: map[uint64]bool{}, snaps: map[string][]byte{}, buffers: new([3][]byte)}
	d.opts = options(d.fs, d.clock)
	d.opts.OnEvent = d.told
	d.must(pool.Create(ctx, d.opts))
	d.open()
	d.data = make([]byte, size)
	var err error
	switch layout {
	case "inplace":
		_, err = d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: diskImage, SizeBytes: size})
	case "over a base": // nothing of which is in the pool
		half := size / 2 &^ 511
		copy(d.data, stamp(half))
		ref, _ := smallBases.add(d.data[:half])
		_, err = d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size, Base: &pool.Base{Ref: ref, SizeBytes: half}})
		d.must(err)
		d.data = bytes.Clone(d.data)
		return d
	default:
		_, err = d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size})
	}
	d.must(err)
	d.submit(writeOp(0, size/2)) // the rest is a hole
	d.flush()
	return d
}

// attached is newMirrored with a leg in sync.
func attached(tb tb, layout string, size int64) *mirrored {
	d := newMirrored(tb, layout, size)
	_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
	d.must(err)
	d.sync()
	d.must(d.p.ClearRegions("v"))
	clear(d.touched)
	return d
}

func (d *mirrored) told(e pool.Event) {
	if e.Kind != pool.EventRecovered {
		d.events = append(d.events, e)
	}
}

func (d *mirrored) must(err error) {
	d.tb.Helper()
	if err != nil {
		d.tb.Fatal(err)
	}
}

func (d *mirrored) open() {
	d.tb.Helper()
	p, err := pool.Open(ctx, d.opts)
	d.must(err)
	d.p = p
}

func (d *mirrored) submit(ops ...*block.Op) {
	d.tb.Helper()
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	for _, o := range ops {
		d.touch(o)
	}
	dev.Submit(ctx, ops)
	for _, o := range ops {
		d.must(o.Err)
		if o.Kind == block.OpDiscard {
			d.must(dev.ReadAt(ctx, d.data, 0))
			continue
		}
		part := d.data[o.Offset : o.Offset+o.Length]
		if clear(part); o.Kind == block.OpWrite {
			copy(part, o.Data)
		}
	}
	d.must(dev.Close())
}

func (d *mirrored) touch(o *block.Op) {
	for b := o.Offset / block.Size; b*block.Size < o.Offset+o.Length; b++ {
		d.dirty[b] = true
		d.touched[uint64(b*block.Size/regionBs)] = true
	}
}

func (d *mirrored) flush() {
	d.tb.Helper()
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	d.must(errors.Join(dev.Flush(ctx), dev.Close()))
	clear(d.dirty)
}

// sync copies what differs, and demands that no more is copied than that.
func (d *mirrored) sync() {
	d.tb.Helper()
	before := d.p.Differing("v")
	copied := map[uint64]bool{}
	d.fs.OnOp(func(_ int, o crashfs.Op, _ error) {
		if o.Path == legImage && (o.Kind == crashfs.Write || o.Kind == crashfs.PunchHole) {
			for n := o.Offset / regionBs; n*regionBs < o.Offset+o.Length; n++ {
				copied[uint64(n)] = true
			}
		}
	})
	err := d.p.SyncMirror(ctx, "v", nil)
	d.fs.OnOp(nil)
	d.must(err)
	if now := slices.Sorted(maps.Keys(copied)); !slices.Equal(now, before) {
		d.tb.Fatalf("regions %v differed, and %v were copied", before, now)
	}
	if info := d.info(); info.State != pool.MirrorInSync || info.Progress != 1 || info.Differing != 0 {
		d.tb.Fatalf("after everything was copied the mirror is %+v", info)
	}
	d.verify()
}

func (d *mirrored) info() pool.MirrorInfo {
	d.tb.Helper()
	info, err := d.p.Mirror("v")
	d.must(err)
	return info
}

func (d *mirrored) read(name string) []byte { return d.readInto(nil, name) }

// readInto reads a volume or snapshot into a buffer, if it is large enough.
func (d *mirrored) readInto(b []byte, name string) []byte {
	d.tb.Helper()
	dev, err := openEither(d.p, name)
	d.must(err)
	b = slices.Grow(b[:0], int(dev.SizeBytes()))[:dev.SizeBytes()]
	d.must(errors.Join(dev.ReadAt(ctx, b, 0), dev.Close()))
	return b
}

func (d *mirrored) leg() []byte { return d.legInto(nil) }

func (d *mirrored) legInto(b []byte) []byte {
	d.tb.Helper()
	f, err := d.fs.OpenReadOnly(legImage)
	d.must(err)
	b = slices.Grow(b[:0], len(d.data))[:len(d.data)]
	_, err = f.ReadAt(b, 0)
	d.must(errors.Join(err, f.Close()))
	return b
}

// verify demands that the volume is what it should be, and the leg the same in all regions that do not count as differing.
func (d *mirrored) verify() {
	d.tb.Helper()
	now := &d.buffers[0]
	if *now = d.readInto(*now, "v"); !bytes.Equal(*now, d.data) {
		d.tb.Fatal("the volume is not what was written")
	}
	if _, err := d.p.Mirror("v"); errors.Is(err, pool.ErrNotFound) {
		return
	}
	d.sameBut(d.p.Differing("v"))
}

func (d *mirrored) sameBut(differing []uint64) {
	d.tb.Helper()
	d.buffers[1] = d.legInto(d.buffers[1])
	leg := d.buffers[1]
	for n := range uint64(len(d.data)+regionBs-1) / regionBs {
		lo, hi := n*regionBs, min((n+1)*regionBs, uint64(len(d.data)))
		if !slices.Contains(differing, n) && !bytes.Equal(leg[lo:hi], d.data[lo:hi]) {
			for b := lo; b < hi; b += block.Size {
				if end := min(b+block.Size, hi); !bytes.Equal(leg[b:end], d.data[b:end]) {
					d.tb.Fatalf("block %d of region %d differs, and only %v count as differing", b/block.Size, n, differing)
				}
			}
		}
	}
}

// crash cuts the power, or ends the process, and takes over what that left of the volume.
func (d *mirrored) crash(policy crashfs.Policy) {
	d.tb.Helper()
	fs := d.fs.CrashImage(policy)
	d.fs.Crash()
	d.p.Abandon()
	d.fs, d.opts.FS = fs, fs
	d.open()
	if policy.String() != crashfs.ProcessCrash.String() { // after which what was not flushed is there, and may go yet
		d.survived()
	}
}

func (d *mirrored) survived() {
	d.tb.Helper()
	now := d.read("v")
	for b := int64(0); b*block.Size < int64(len(now)); b++ {
		lo, hi := b*block.Size, min((b+1)*block.Size, int64(len(now)))
		if !d.dirty[b] && !bytes.Equal(now[lo:hi], d.data[lo:hi]) {
			d.tb.Fatalf("block %d was flushed, and is not what was written", b)
		}
	}
	copy(d.data, now)
	clear(d.dirty)
}

func (d *mirrored) check() {
	d.tb.Helper()
	report, err := d.p.Check(ctx, nil)
	d.must(err)
	if len(report.Damage) > 0 {
		d.tb.Fatalf("check: %+v", report.Damage)
	}
}

func eachLayout(t *testing.T, test func(t *testing.T, layout string)) {
	for _, layout := range mirrorLayouts {
		t.Run(layout, func(t *testing.T) { test(t, layout) })
	}
}

func TestMirrorFollows(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := newMirrored(t, layout, 5<<20+4608)
		if _, err := d.p.Mirror("v"); !errors.Is(err, pool.ErrNotFound) {
			t.Errorf("a volume without a mirror has one: %v", err)
		}
		info, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		if info.State != pool.MirrorSyncing || info.Progress != 0 || info.Differing != int64(len(d.data)) || info.Path != legImage {
			t.Errorf("a new mirror is %+v", info)
		}
		d.submit(writeOp(100, 5000))
		d.sync()
		d.submit(writeOp(1<<20-512, 1024), op(block.OpZero, 2<<20, 1<<20), writeOp(2<<20+5, 10), op(block.OpZeroAllocated, 3<<20, 4096))
		d.submit(writeOp(0, 8192), writeOp(8192, 4096))
		d.submit(op(block.OpDiscard, 100, 3<<20))
		d.submit(writeOp(0, 5<<20+4608))
		d.submit(op(block.OpZero, 0, 5<<20+4608))
		d.submit(writeOp(5<<20+4096, 512))
		if info := d.info(); info.State != pool.MirrorInSync {
			t.Errorf("the mirror is %+v", info)
		}
		d.verify()
		if n := d.p.Recorded("v"); n != 6 {
			t.Errorf("%d regions are recorded, and all 6 were written to", n)
		}
		d.must(d.p.ClearRegions("v"))
		if n := d.p.Recorded("v"); n != 0 {
			t.Errorf("%d regions are recorded after they were cleared", n)
		}
		d.submit(writeOp(3<<20, 4096))
		d.must(d.p.Close(ctx))
		d.open()
		if info := d.info(); info.State != pool.MirrorInSync || len(d.events) > 0 {
			t.Errorf("after it was closed and opened the mirror is %+v, %+v", info, d.events)
		}
		d.submit(writeOp(3<<20, 8192))
		d.verify()
		d.check()
		d.must(d.p.DetachMirror(ctx, "v"))
		if !bytes.Equal(d.leg(), d.data) {
			t.Error("what was detached is not what the volume was")
		}
		if n := d.p.Info().Volumes; n != 1 || len(d.p.Volumes()) != 1 {
			t.Errorf("there are %d volumes", n)
		}
		d.submit(writeOp(0, 4096))
		d.check()
		d.must(d.p.Close(ctx))
	})
}

// TestMirrorThatIsLost: a leg that cannot be opened has failed, and what is written meanwhile is copied when it is attached again; one that
// is another file is only taken if that is asked for, and copied wholly.
func TestMirrorThatIsLost(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		for _, changed := range []bool{false, true} {
			d := attached(t, layout, 3<<20)
			d.must(d.p.Close(ctx))
			d.must(d.fs.Rename(legImage, "/elsewhere"))
			d.open()
			if info := d.info(); info.State != pool.MirrorFailed || !strings.Contains(info.Reason, legImage) || len(d.events) != 1 || d.events[0].Kind != pool.EventMirrorFailed {
				t.Fatalf("without its file the mirror is %+v, %+v", info, d.events)
			}
			d.submit(writeOp(1<<20+100, 5000))
			d.must(d.p.Close(ctx))
			d.open()
			if _, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage}); err == nil {
				t.Fatal("a file that is not there is attached")
			}
			d.must(d.fs.Rename("/elsewhere", legImage))
			want := []uint64{1}
			if changed {
				f, err := d.fs.Open(legImage)
				d.must(err)
				d.must(errors.Join(f.WriteAt([][]byte{make([]byte, 100)}, 0), f.Close()))
				want = []uint64{0, 1, 2}
				d.refused()
			}
			_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: changed})
			d.must(err)
			if n := d.p.Differing("v"); !slices.Equal(n, want) {
				t.Errorf("regions %v differ, want %v", n, want)
			}
			d.sync()
			d.submit(writeOp(0, 8192))
			d.verify()
			d.must(d.p.Close(ctx))
		}
	})
}

// TestMirrorRefuses: what cannot become a leg changes nothing.
func TestMirrorRefuses(t *testing.T) {
	d := newMirrored(t, "inplace", 3<<20)
	_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "w", SizeBytes: 1 << 20})
	d.must(err)
	_, err = d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "x", Path: "/x.img", SizeBytes: 4 << 20})
	d.must(err)
	d.must(d.fs.Mkdir("/dir"))
	small, err := d.fs.Create("/small")
	d.must(err)
	d.must(errors.Join(small.Truncate(3<<20-512), small.Close()))
	large, err := d.fs.Create("/large")
	d.must(err)
	d.must(errors.Join(large.WriteAt([][]byte{bytes.Repeat([]byte{7}, 4<<20)}, 0), large.Close()))
	taken, err := d.fs.Create("/taken")
	d.must(err)
	d.must(errors.Join(taken.Truncate(4<<20), taken.Close()))
	lock, err := d.fs.LockDisk("/taken")
	d.must(err)
	refuses := func(volume, path string, force bool, want error) {
		t.Helper()
		if _, err := d.p.AttachMirror(ctx, volume, pool.LegSpec{Path: path, Force: force}); !errors.Is(err, want) {
			t.Errorf("mirroring %s to %s: %v, want %v", volume, path, err, want)
		}
	}
	refuses("none", "/new", false, pool.ErrNotFound)
	refuses("(kept of 1)", "/new", false, pool.ErrNotFound)
	refuses("v", "relative", false, pool.ErrInvalid)
	refuses("v", "/pool/leg", false, pool.ErrInvalid)
	refuses("v", "/pool/superblock", true, pool.ErrInvalid)
	refuses("v", "/dir", true, pool.ErrInvalid)
	refuses("v", "/small", true, pool.ErrInvalid)
	refuses("v", "/large", false, pool.ErrExists)
	refuses("v", diskImage, true, pool.ErrInUse)
	refuses("v", "/x.img", true, pool.ErrInUse)
	refuses("v", "/taken", true, pool.ErrInUse)
	d.must(lock.Close())
	if err := d.p.DetachMirror(ctx, "v"); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("detaching what is not attached: %v", err)
	}
	if err := d.p.SyncMirror(ctx, "v", nil); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("copying to what is not attached: %v", err)
	}
	if _, err := d.fs.Stat("/new"); err == nil {
		t.Error("a file was made for a volume that is not there")
	}
	f, err := d.fs.OpenReadOnly("/large")
	d.must(err)
	got := make([]byte, 4<<20)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 4<<20)) {
		t.Error("a file that was refused is not what it was")
	}
	d.must(f.Close())

	_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
	d.must(err)
	refuses("v", "/new", false, pool.ErrInUse)
	refuses("v", legImage, true, pool.ErrInUse)
	refuses("w", legImage, true, pool.ErrInUse)
	refuses("(regions of 1)", "/new", false, pool.ErrNotFound)
	if _, err := d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "y", Path: legImage}); !errors.Is(err, pool.ErrInUse) {
		t.Errorf("a leg is adopted as a volume: %v", err)
	}
	for name, err := range map[string]error{
		"delete": d.p.DeleteVolume(ctx, "v"),
	} {
		if !errors.Is(err, pool.ErrInUse) {
			t.Errorf("%s of a mirrored volume: %v", name, err)
		}
	}
	_, err = d.p.AttachMirror(ctx, "w", pool.LegSpec{Path: "/large", Force: true})
	d.must(err)
	if err := d.p.ResizeVolume(ctx, "w", 2<<20, false); !errors.Is(err, pool.ErrInUse) {
		t.Errorf("resizing a mirrored volume: %v", err)
	}
	d.must(d.p.SyncMirror(ctx, "w", nil))
	d.must(d.p.DetachMirror(ctx, "w"))
	d.must(d.p.ResizeVolume(ctx, "w", 2<<20, false))
	d.must(d.p.DetachMirror(ctx, "v"))
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.must(d.p.Close(ctx))
}
