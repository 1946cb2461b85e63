package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

var ctx = context.Background()

func sum(b []byte) uint32 { return crc32.ChecksumIEEE(b) }

// clock is a time that stands still between steps, so that the model knows what names
// a rollback gives.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) time() time.Time { return c.now }

// tb is what testing.TB and rapid.T have in common.
type tb interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// driver does the same to a pool on a crashable file system and to a model, and
// knows which of the model's states a crash may leave.
type driver struct {
	tb    tb
	fs    *crashfs.FS
	p     *pool.Pool
	clock *clock
	opts  pool.Options

	// possible are the states that a crash now may leave: from the last durable one
	// up to the present, which is the last.
	possible []*model
	history  []*model // all that ever were the present

	// tolerant is for tests of faults: a step may fail that the model performs. Then its
	// error is in failed, nothing more is done, and the pool holds one of the last two possible states.
	tolerant bool
	failed   error

	// incomplete are the volumes being filled, which no model lists.
	incomplete map[string]*content

	bases *bases
}

func options(fs *crashfs.FS, c *clock) pool.Options {
	return pool.Options{
		FS: fs, Dir: "/pool", Clock: c.time, Manual: true,
		SegmentBytes: 64 << 10, MapCacheBytes: 64 << 10, // small, so that segments roll and nodes are evicted
		OpenBase: smallBases.Open,
	}
}

func newDriver(tb tb) *driver {
	tb.Helper()
	d := &driver{tb: tb, fs: crashfs.New(), clock: newClock(), possible: []*model{newModel()}}
	d.opts = options(d.fs, d.clock)
	d.bases = &bases{}
	d.opts.OpenBase = d.bases.Open
	if err := pool.Create(ctx, d.opts); err != nil {
		tb.Fatal(err)
	}
	d.open()
	return d
}

func (d *driver) open() {
	d.tb.Helper()
	p, err := pool.Open(ctx, d.opts)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.opened(p)
}

func (d *driver) opened(p *pool.Pool) {
	d.p = p
	d.incomplete = map[string]*content{}
}

func (d *driver) present() *model { return d.possible[len(d.possible)-1] }

// step does one thing to both. When run returns, a durable step has made itself and all
// before it durable.
func (d *driver) step(name string, durable bool, change func(*model) error, run func() error) {
	d.tb.Helper()
	if d.failed != nil {
		return
	}
	d.clock.now = d.clock.now.Add(time.Second)
	next := d.present().clone()
	refused := change(next)
	if refused == nil {
		d.possible = append(d.possible, next)
		d.history = append(d.history, next)
	}
	err := run()
	if d.tolerant && refused == nil && err != nil {
		d.failed = fmt.Errorf("%s: %w", name, err)
		return
	}
	if (err == nil) != (refused == nil) {
		d.tb.Fatalf("%s: pool says %v, model says %v", name, err, refused)
	}
	if durable && err == nil {
		d.possible = []*model{d.present()}
	}
}

func (d *driver) createVolume(name string, size int64) {
	d.tb.Helper()
	d.step("create "+name, true, func(m *model) error { return m.createVolume(name, size) }, func() error {
		_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: size})
		return err
	})
}

// createOver creates a volume over a base of so many bytes, of which some blocks are holes.
func (d *driver) createOver(name string, size, baseBytes int64) {
	d.tb.Helper()
	data := stamp(baseBytes)
	for at := int64(0); at < baseBytes; at += block.Size {
		if sum(data[at:at+1])%3 == 0 {
			clear(data[at:min(at+block.Size, baseBytes)])
		}
	}
	d.step("create over a base "+name, true, func(m *model) error { return m.createOver(name, size, data) }, func() error {
		ref, _ := d.bases.add(data)
		_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: size, Base: &pool.Base{Ref: ref, SizeBytes: baseBytes}})
		return err
	})
}

var errEnough = errors.New("so far and no further")

// fillBase fills a volume from its base, which nobody sees, until it was told so many times how far it is; less than 0: wholly.
func (d *driver) fillBase(name string, steps int) {
	d.tb.Helper()
	before, _ := d.p.Volume(name)
	d.step("fill "+name, steps < 0 && before.FilledFrom != nil, func(m *model) error {
		if m.volumes[name] == nil {
			return errRefused
		}
		return nil
	}, func() error {
		err := d.p.Fill(ctx, name, func(int64, int64) error {
			if steps--; steps == 0 {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		if info, e := d.p.Volume(name); err == nil && (e != nil || info.FilledFrom != nil) {
			d.tb.Fatalf("it is filled, and needs the base %+v; %v", info.FilledFrom, e)
		}
		return err
	})
}

// submit performs ops on a volume as one request. One that is out of range must be alone.
func (d *driver) submit(volume string, ops ...*block.Op) {
	d.tb.Helper()
	d.step("write "+volume, false, func(m *model) error {
		v := m.volumes[volume]
		if v == nil {
			return errRefused
		}
		for _, op := range ops {
			switch {
			case op.Offset+op.Length > v.size:
				return errRefused
			}
			v.apply(op)
		}
		return nil
	}, func() error {
		dev, err := d.p.OpenVolume(volume)
		if err != nil {
			return err
		}
		dev.Submit(ctx, ops)
		for _, op := range ops {
			err = errors.Join(err, op.Err)
		}
		return errors.Join(err, dev.Close())
	})
}

func (d *driver) flush(volume string) {
	d.tb.Helper()
	d.step("flush", true, func(m *model) error {
		if m.volumes[volume] == nil {
			return errRefused
		}
		return nil
	}, func() error {
		dev, err := d.p.OpenVolume(volume)
		if err != nil {
			return err
		}
		return errors.Join(dev.Flush(ctx), dev.Close())
	})
}

func (d *driver) snapshot(name string, volumes ...string) {
	d.tb.Helper()
	d.step("snapshot", true, func(m *model) error { return m.snapshot(volumes, name) }, func() error {
		_, _, err := d.p.CreateSnapshot(ctx, volumes, pool.SnapshotSpec{Name: name})
		return err
	})
}

func (d *driver) deleteSnapshot(volume, snap string) {
	d.tb.Helper()
	d.deleteSnapshots(volume, snap)
}

// deleteSnapshots deletes all or none.
func (d *driver) deleteSnapshots(volume string, snaps ...string) {
	d.tb.Helper()
	refs := make([]pool.SnapshotRef, len(snaps))
	d.step("delete snapshots", true, func(m *model) error {
		var err error
		for i, s := range snaps {
			refs[i] = pool.SnapshotRef{Volume: volume, Name: s}
			err = errors.Join(err, m.deleteSnapshot(volume, s))
		}
		return err
	}, func() error { return d.p.DeleteSnapshots(ctx, refs) })
}

func (d *driver) protect(volume, snap string, on bool) {
	d.tb.Helper()
	d.step("protect", true, func(m *model) error {
		s := m.find(volume, snap)
		if s == nil {
			return errRefused
		}
		s.protected = on
		return nil
	}, func() error { return d.p.ProtectSnapshot(ctx, pool.SnapshotRef{Volume: volume, Name: snap}, on) })
}

func (d *driver) rollback(volume, snap string) {
	d.tb.Helper()
	kept := "auto-before-rollback-" + d.clock.now.Add(time.Second).Format("20060102t150405.000")
	d.step("rollback", true, func(m *model) error { return m.rollback(volume, snap, kept) }, func() error {
		_, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: volume, Name: snap})
		return err
	})
}

// putBack rolls back by copying ranges, or by copying all if there are none.
func (d *driver) putBack(volume, snap string, ranges ...pool.Range) {
	d.tb.Helper()
	kept := "auto-before-rollback-" + d.clock.now.Add(time.Second).Format("20060102t150405.000")
	ref := pool.SnapshotRef{Volume: volume, Name: snap}
	d.step("put back", true, func(m *model) error { return m.putBack(volume, snap, kept, ranges, false) }, func() error {
		if ranges == nil {
			_, err := d.p.RollbackWhole(ctx, ref, false)
			return err
		}
		_, _, err := d.p.RollbackRanges(ctx, ref, ranges, nil)
		return err
	})
}

// putBackCompared rolls back by comparing and copying everything.
func (d *driver) putBackCompared(volume, snap string) {
	d.tb.Helper()
	kept := "auto-before-rollback-" + d.clock.now.Add(time.Second).Format("20060102t150405.000")
	d.step("put back compared", true, func(m *model) error { return m.putBack(volume, snap, kept, nil, true) }, func() error {
		_, err := d.p.RollbackWhole(ctx, pool.SnapshotRef{Volume: volume, Name: snap}, true)
		return err
	})
}

func (d *driver) bookmark(volume, snap, name string) {
	d.tb.Helper()
	d.step("bookmark", true, func(m *model) error { return m.createBookmark(volume, snap, name) }, func() error {
		_, err := d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: volume, Name: snap}, name)
		return err
	})
}

func (d *driver) deleteBookmark(volume, name string) {
	d.tb.Helper()
	d.step("delete bookmark", true, func(m *model) error { return m.deleteBookmark(volume, name) }, func() error {
		return d.p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: volume, Name: name})
	})
}

func (d *driver) cloneVolume(volume, snap, name string) {
	d.tb.Helper()
	d.step("clone", true, func(m *model) error { return m.cloneVolume(volume, snap, name) }, func() error {
		_, _, err := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: volume, Name: snap}, pool.VolumeSpec{Name: name})
		return err
	})
}

func (d *driver) deleteVolume(name string) {
	d.tb.Helper()
	d.step("delete volume", true, func(m *model) error { return m.deleteVolume(name) }, func() error {
		return d.p.DeleteVolume(ctx, name)
	})
}

func (d *driver) rename(name, to string) {
	d.tb.Helper()
	d.step("rename", true, func(m *model) error {
		v := m.volumes[name]
		if v == nil || (m.volumes[to] != nil && to != name) {
			return errRefused
		}
		delete(m.volumes, name)
		m.volumes[to] = v
		return nil
	}, func() error { return d.p.RenameVolume(ctx, name, to) })
}

func (d *driver) label(name, key, value string) {
	d.tb.Helper()
	d.step("label", true, func(m *model) error {
		v := m.volumes[name]
		if v == nil {
			return errRefused
		}
		v.labels = maps.Clone(v.labels)
		if v.labels == nil {
			v.labels = map[string]string{}
		}
		if v.labels[key] = value; value == "" {
			delete(v.labels, key)
		}
		return nil
	}, func() error { return d.p.LabelVolume(ctx, name, map[string]string{key: value}) })
}

// beginImport creates a volume to be filled, which nobody sees yet.
func (d *driver) beginImport(name string, size int64) {
	d.tb.Helper()
	d.step("begin import", true, func(m *model) error {
		if m.volumes[name] != nil || d.incomplete[name] != nil {
			return errRefused
		}
		c := newContent(size)
		d.incomplete[name] = &c
		return nil
	}, func() error {
		_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: size, Incomplete: true})
		return err
	})
}

// fillImport writes to a volume that was begun.
func (d *driver) fillImport(name string, o *block.Op) {
	d.tb.Helper()
	d.step("fill import", false, func(*model) error {
		c := d.incomplete[name]
		if c == nil {
			return errRefused
		}
		c.apply(o)
		return nil
	}, func() error {
		dev, err := d.p.OpenIncomplete(name)
		if err != nil {
			return err
		}
		dev.Submit(ctx, []*block.Op{o})
		return errors.Join(o.Err, dev.Close())
	})
}

// endImport completes what was begun, or deletes it.
func (d *driver) endImport(name string, complete bool) {
	d.tb.Helper()
	d.step("end import", true, func(m *model) error {
		c := d.incomplete[name]
		if c == nil {
			return errRefused
		}
		delete(d.incomplete, name)
		if complete {
			m.volumes[name] = newModelVolume(*c, int(lastVersion.Add(1)))
		}
		return nil
	}, func() error {
		if complete {
			return d.p.CompleteVolume(ctx, name)
		}
		return d.p.DeleteIncomplete(ctx, name)
	})
}

func (d *driver) resize(name string, size int64) {
	d.tb.Helper()
	d.step("resize", true, func(m *model) error {
		if m.volumes[name] == nil {
			return errRefused
		}
		m.volumes[name].resize(size)
		return nil
	}, func() error { return d.p.ResizeVolume(ctx, name, size, true) })
}

func (d *driver) checkpoint() {
	d.tb.Helper()
	d.step("checkpoint", true, func(*model) error { return nil }, func() error { return d.p.Checkpoint(ctx) })
}

func (d *driver) setQuota(quota int64) {
	d.tb.Helper()
	d.step("set quota", true, func(m *model) error {
		m.quota = quota
		return nil
	}, func() error { return d.p.SetQuota(ctx, quota, 0) })
}

// reclaim gives back what is dead, which changes nothing that anybody sees.
func (d *driver) reclaim() {
	d.tb.Helper()
	d.step("reclaim", true, func(*model) error { return nil }, func() error {
		if err := d.p.Cycle(ctx); err != nil {
			return err
		}
		return d.p.CheckOwners()
	})
}

// relayout moves blocks, which changes nothing that anybody sees.
func (d *driver) relayout(volume string) {
	d.tb.Helper()
	d.step("relayout", true, func(m *model) error {
		if m.volumes[volume] == nil {
			return errRefused
		}
		return nil
	}, func() error {
		_, err := d.p.Relayout(ctx, volume, pool.RelayoutOptions{})
		return err
	})
}

// scatter writes a volume's blocks from the last to the first, so that no two lie in order.
func (d *driver) scatter(volume string) {
	d.tb.Helper()
	v := d.present().volumes[volume]
	if v == nil {
		return
	}
	var ops []*block.Op
	for lba := (v.size - 1) / block.Size; lba >= 0; lba-- {
		ops = append(ops, writeOp(lba*block.Size, min(block.Size, v.size-lba*block.Size)))
	}
	d.submit(volume, ops...)
}

// repair mends what is in order, which changes nothing that anybody sees.
func (d *driver) repair() {
	d.tb.Helper()
	d.step("repair", true, func(*model) error { return nil }, func() error {
		rep, err := d.p.Repair(ctx, nil)
		if err == nil && len(rep.After.Damage) > 0 && !d.tolerant { // a fault may look like damage
			d.tb.Fatalf("after a repair: %+v", rep.After.Damage)
		}
		return err
	})
}

func (d *driver) reopen() {
	d.tb.Helper()
	d.step("reopen", true, func(*model) error { return nil }, func() error {
		if err := d.p.Close(ctx); err != nil {
			return err
		}
		p, err := pool.Open(ctx, d.opts)
		if err != nil {
			return err
		}
		d.opened(p)
		return nil
	})
}

// crash goes on with what a crash now leaves, which must be one of the possible states.
func (d *driver) crash(policy crashfs.Policy) {
	d.tb.Helper()
	d.fs = d.fs.CrashImage(policy)
	d.opts.FS = d.fs
	d.open()
	got := d.dump(d.p)
	for i, m := range d.possible {
		if m.String() == got {
			d.possible = d.possible[i : i+1]
			return
		}
	}
	d.tb.Fatalf("after a crash (%s) the pool holds\n%s\nwhich is none of the %d possible states; the newest is\n%s", policy, got, len(d.possible), d.present())
}

// verify compares the pool with the model.
func (d *driver) verify() {
	d.tb.Helper()
	if got, want := d.dump(d.p), d.present().String(); got != want {
		d.tb.Fatalf("the pool holds\n%s\nthe model\n%s", got, want)
	}
	d.check(d.p)
}

func (d *driver) check(p *pool.Pool) {
	d.tb.Helper()
	if rep, err := p.Check(ctx, nil); err != nil || len(rep.Damage) > 0 {
		d.tb.Fatalf("check: %v %v", rep.Damage, err)
	}
}

// dump describes what a pool holds, as model.String does.
func (d *driver) dump(p *pool.Pool) string {
	d.tb.Helper()
	m := newModel()
	m.quota = p.Info().QuotaBytes
	for _, v := range p.Volumes() {
		dev, err := p.OpenVolume(v.Name)
		if err != nil {
			d.tb.Fatal(err)
		}
		w := newModelVolume(d.volumeContent(p, dev, v), 0)
		w.labels = v.Labels
		m.volumes[v.Name] = w
		snaps, err := p.Snapshots(v.Name)
		if err != nil {
			d.tb.Fatal(err)
		}
		for _, s := range snaps {
			ref := pool.SnapshotRef{Volume: v.Name, Name: s.Name}
			dev, err := p.OpenSnapshot(ref)
			if err != nil {
				d.tb.Fatal(err)
			}
			c := d.content(dev, s.MappedBytes, s.FilledFrom != nil, func() (pool.Usage, error) { return p.SnapshotUsage(ctx, ref) })
			c.told = d.diff(p, pool.PointRef{Volume: v.Name, Name: s.Name}, pool.PointRef{Volume: v.Name})
			w.snapshots[s.Name] = &modelSnapshot{c, s.Protected}
		}
		bookmarks, err := p.Bookmarks(v.Name)
		if err != nil {
			d.tb.Fatal(err)
		}
		for _, k := range bookmarks {
			c := newContent(k.SizeBytes)
			c.told = d.diff(p, pool.PointRef{Volume: v.Name, Name: k.Name, Bookmark: true}, pool.PointRef{Volume: v.Name})
			w.bookmarks[k.Name] = &modelBookmark{c, k.Snapshot.Name}
		}
	}
	return m.String()
}

// volumeContent is content of a volume's head.
func (d *driver) volumeContent(p *pool.Pool, dev block.Device, v pool.VolumeInfo) content {
	d.tb.Helper()
	return d.content(dev, v.MappedBytes, v.FilledFrom != nil, func() (pool.Usage, error) { return p.VolumeUsage(ctx, v.Name) })
}

// content reads a whole device, and checks its extents and mapped bytes by the way. Of what is filled from a base mapped is at least what
// there is, and usage says it exactly, but for what is not there yet.
func (d *driver) content(dev block.Device, mapped int64, filling bool, usage func() (pool.Usage, error)) content {
	d.tb.Helper()
	defer func() { _ = dev.Close() }()
	c := newContent(dev.SizeBytes())
	b := make([]byte, (c.size+block.Size-1)&^(block.Size-1))
	if err := dev.ReadAt(ctx, b[:c.size], 0); err != nil {
		d.tb.Fatal(err)
	}
	for off := int64(0); off < c.size; off += block.Size {
		if one := b[off : off+block.Size]; !bytes.Equal(one, zeros) {
			c.blocks[off/block.Size] = one
		}
	}
	extents, err := dev.Extents(ctx, 0, c.size, 1<<20)
	if err != nil {
		d.tb.Fatal(err)
	}
	var at, data int64
	for _, e := range extents {
		if e.Offset != at || (e.Hole && len(bytes.TrimLeft(b[at:at+e.Length], "\x00")) > 0) {
			d.tb.Fatalf("extent %+v after %d", e, at)
		}
		at += e.Length
		if !e.Hole {
			c.hold(e.Offset/block.Size, blocksUpTo(e.Offset+e.Length))
			data += (e.Length + block.Size - 1) / block.Size * block.Size
		}
	}
	if data < mapped {
		u, err := usage()
		if err != nil {
			d.tb.Fatal(err)
		}
		if mapped = u.Mapped; filling {
			mapped = max(mapped, data)
		}
	}
	if at != c.size || data != mapped {
		d.tb.Fatalf("extents reach %d of %d and map %d bytes of %d", at, c.size, data, mapped)
	}
	return c
}

// stamp returns n bytes that occur once.
func stamp(n int64) []byte {
	b := make([]byte, n)
	x := stamps.Add(1)
	for i := range b {
		x = x*6364136223846793005 + 1442695040888963407
		b[i] = byte(x>>56) | 1
	}
	return b
}

var stamps atomic.Uint64

func writeOp(off, n int64) *block.Op {
	return &block.Op{Kind: block.OpWrite, Offset: off, Length: n, Data: stamp(n)}
}

func op(kind block.OpKind, off, n int64) *block.Op {
	return &block.Op{Kind: kind, Offset: off, Length: n}
}
