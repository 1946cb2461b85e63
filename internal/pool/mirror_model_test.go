package pool_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestMirrorAgainstModel does random things to a mirrored volume, crashes now and then, breaks its leg and mends it, and demands all the time
// that the leg is the same wherever it does not count as differing, and that no more is copied than that.
func TestMirrorAgainstModel(t *testing.T) {
	t.Parallel()
	eachLayout(t, func(t *testing.T, layout string) {
		rapid.Check(t, func(t *rapid.T) {
			d := newMirrored(t, layout, rapid.SampledFrom([]int64{64 << 10, 3<<20 + 8192, 2<<20 + 4608}).Draw(t, "size"))
			defer func() { _ = d.p.Close(ctx) }()
			m := &mirrorModel{mirrored: d, t: t}
			t.Repeat(map[string]func(*rapid.T){
				"":      func(*rapid.T) { m.verify() },
				"write": func(t *rapid.T) { m.write(t) }, "write more": func(t *rapid.T) { m.write(t) }, "write again": func(t *rapid.T) { m.write(t) },
				"flush":         func(*rapid.T) { d.flush() },
				"attach":        func(*rapid.T) { m.attach() },
				"detach":        func(*rapid.T) { m.detach() },
				"copy":          func(*rapid.T) { m.copy() },
				"copy in part":  func(t *rapid.T) { m.copyPart(rapid.IntRange(1, 12).Draw(t, "operations")) },
				"clear regions": func(*rapid.T) { m.clear() },
				"break the leg": func(t *rapid.T) { m.breakLeg(t) },
				"snapshot":      func(*rapid.T) { m.snapshot() },
				"rollback":      func(*rapid.T) { m.rollback() },
				"checkpoint":    func(*rapid.T) { d.must(d.p.Checkpoint(ctx)) },
				"reclaim":       func(*rapid.T) { d.must(d.p.Cycle(ctx)) },
				"reopen": func(*rapid.T) {
					d.must(d.p.Close(ctx))
					clear(d.dirty)
					d.open()
				},
				"crash": func(t *rapid.T) {
					d.crash(rapid.SampledFrom([]crashfs.Policy{crashfs.KeepAll, crashfs.DropAll, crashfs.Torn, crashfs.Random(rapid.Uint64().Draw(t, "seed"))}).Draw(t, "policy"))
				},
				"kill": func(*rapid.T) { d.crash(crashfs.ProcessCrash) },
			})
			d.check()
			m.mend()
			if m.mirrored.hasMirror() {
				d.sync()
			}
		})
	})
}

type mirrorModel struct {
	*mirrored
	t     *rapid.T
	snaps int
	then  []byte // what the newest snapshot has
}

func (d *mirrored) hasMirror() bool {
	_, err := d.p.Mirror("v")
	return err == nil
}

func (m *mirrorModel) failed() bool { return m.hasMirror() && m.info().State == pool.MirrorFailed }

// mend attaches a leg again that has failed.
func (m *mirrorModel) mend() {
	if m.failed() {
		_, err := m.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		m.must(err)
	}
}

func (m *mirrorModel) write(t *rapid.T) {
	size := int64(len(m.data))
	for range rapid.IntRange(1, 3).Draw(t, "ops") {
		off := rapid.Int64Range(0, size-1).Draw(t, "offset")
		n := min(rapid.SampledFrom([]int64{1, 512, 4096, 5000, 70000, 1 << 20}).Draw(t, "length"), size-off)
		if rapid.Bool().Draw(t, "aligned") {
			off &^= block.Size - 1
		}
		kind := rapid.SampledFrom([]block.OpKind{block.OpWrite, block.OpWrite, block.OpWrite, block.OpZero, block.OpZeroAllocated, block.OpDiscard}).Draw(t, "kind")
		if kind == block.OpWrite {
			m.submit(writeOp(off, n))
		} else {
			m.submit(op(kind, off, n))
		}
	}
}

func (m *mirrorModel) attach() {
	if m.failed() {
		m.mend()
		return
	}
	_, err := m.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true})
	if m.hasMirror() && errors.Is(err, pool.ErrInUse) {
		return
	}
	m.must(err)
}

func (m *mirrorModel) detach() {
	if !m.hasMirror() {
		m.t.Skip("no mirror") // rapid's: another action is drawn
	}
	same := m.info().State == pool.MirrorInSync
	m.must(m.p.DetachMirror(ctx, "v"))
	if same && !bytes.Equal(m.leg(), m.data) {
		m.t.Fatal("what was detached is not what the volume was")
	}
}

func (m *mirrorModel) copy() {
	if !m.hasMirror() || m.failed() {
		m.t.Skip("no leg") // rapid's: another action is drawn
	}
	m.sync()
}

// copyPart copies until the file system was asked for some things.
func (m *mirrorModel) copyPart(operations int) {
	if !m.hasMirror() || m.failed() {
		m.t.Skip("no leg") // rapid's: another action is drawn
	}
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	m.fs.OnOp(func(int, crashfs.Op, error) {
		if operations--; operations <= 0 {
			cancel()
		}
	})
	err := m.p.SyncMirror(short, "v", nil)
	m.fs.OnOp(nil)
	if !errors.Is(err, context.Canceled) {
		m.must(err)
	}
}

func (m *mirrorModel) clear() {
	if !m.hasMirror() {
		m.t.Skip("no mirror") // rapid's: another action is drawn
	}
	m.must(m.p.ClearRegions("v"))
}

// breakLeg has one of the next operations on the leg fail.
func (m *mirrorModel) breakLeg(t *rapid.T) {
	if !m.hasMirror() || m.failed() {
		m.t.Skip("no leg") // rapid's: another action is drawn
	}
	remove := m.fs.Inject(crashfs.Fault{
		Err: errIO, Skip: rapid.IntRange(0, 2).Draw(t, "skip"), Prefix: rapid.SampledFrom([]int64{0, 512, 5000}).Draw(t, "prefix"),
		Match: func(o crashfs.Op) bool { return o.Path == legImage && o.Kind >= crashfs.Create },
	})
	m.write(t)
	m.flush()
	m.write(t)
	remove()
	// A file whose sync has failed once may lose in a crash what it showed when it was sealed, which is told when the pool is opened.
	told := slices.ContainsFunc(m.events, func(e pool.Event) bool { return e.Kind == pool.EventMirrorFailed })
	if told != m.failed() {
		t.Fatalf("the mirror has failed: %v, and told is %+v", m.failed(), m.events)
	}
	m.events = nil
}

func (m *mirrorModel) snapshot() {
	if m.snaps > 0 {
		m.must(m.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	}
	_, _, err := m.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
	m.must(err)
	m.snaps, m.then = 1, bytes.Clone(m.data)
	if m.layout == "inplace" {
		clear(m.dirty) // it synced the file
	}
}

func (m *mirrorModel) rollback() {
	if m.snaps == 0 {
		m.t.Skip("no snapshot") // rapid's: another action is drawn
	}
	kept, _, err := m.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
	m.must(err)
	copy(m.data, m.then)
	clear(m.dirty)
	m.must(m.p.CopyBack(ctx, "v", nil))
	m.must(m.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: kept.Name}}))
	m.clock.now = m.clock.now.Add(1e9)
}
