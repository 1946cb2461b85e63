package pool_test

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// beforeLog tells the moment before the log is synced the next time at which something is so.
func beforeLog(is func() bool) func(o crashfs.Op, done bool) bool {
	return func(o crashfs.Op, done bool) bool {
		return !done && o.Kind == crashfs.Sync && strings.HasPrefix(o.Path, "/pool/log/") && is()
	}
}

// powerCuts calls look with what a power cut now leaves of which one pending change alone has come to the disk.
func (d *mirrored) powerCuts(look func(policy crashfs.Policy)) {
	for i := range d.fs.Pending() {
		look(crashfs.KeepOnly(i))
	}
}

// TestDetachedIsDurableBeforeWritersGoOn: what is written to the file of an inplace volume when its mirror is detached comes to the disk before the record of that does.
func TestDetachedIsDurableBeforeWritersGoOn(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		fs := d.rehook()
		d.submit(writeOp(0, 4096))
		d.must(d.p.ClearRegions("v"))
		d.flush()
		fs.once(beforeLog(func() bool { return !d.hasMirror() || d.p.GateWanted("v") }), func() {
			if d.p.GateWanted("v") { // nobody can write
				return
			}
			d.submit(writeOp(1<<20, 8192))
			d.powerCuts(func(policy crashfs.Policy) { lookAtMirror(t, d, policy, true) })
		})
		d.must(d.p.DetachMirror(ctx, "v"))
		if fs.hook.Load() != nil {
			t.Fatal("the record was not synced")
		}
		d.must(d.p.Close(ctx))
	})
}

// TestCopyStaysUntilItIsALeg: who writes while a copy becomes a leg does not write to its file before it is one durably.
func TestCopyStaysUntilItIsALeg(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.split()
		fs := d.rehook()
		d.submit(writeOp(2<<20, 8192)) // so that the region will be recorded
		d.flush()
		cuts := 0
		fs.once(beforeLog(func() bool { return d.hasMirror() && !d.p.Joining("v") }), func() {
			d.submit(writeOp(2<<20, 4096))
			d.powerCuts(func(policy crashfs.Policy) {
				cuts++
				then := &mirrored{tb: t, fs: d.fs.CrashImage(policy), clock: d.clock}
				then.opts = options(then.fs, d.clock)
				then.open()
				if _, err := then.p.Snapshot(splitRef); err == nil && !bytes.Equal(then.read("v@c"), d.snaps["c"]) {
					t.Errorf("%v: the copy is there, and is not what it was", policy)
				}
				then.must(then.p.Close(ctx))
			})
		})
		_, err := d.p.ResyncMirror(ctx, splitRef)
		d.must(err)
		if cuts == 0 {
			t.Fatal("no power was cut")
		}
		d.verify()
		d.submit(writeOp(2<<20+8192, 4096))
		d.sync()
		d.crash(crashfs.DropAll)
		d.verify()
		d.must(d.p.Close(ctx))
	})
}

// TestRollbackIsDurableBeforeTheLegFollows: neither a writer nor the copying gives the leg anything, unrecorded, while the rollback that made
// all of it differ may be lost yet.
func TestRollbackIsDurableBeforeTheLegFollows(t *testing.T) {
	after := map[string]func(d *mirrored) error{
		"copy": func(d *mirrored) error { return d.p.SyncMirror(ctx, "v", nil) },
		"write": func(d *mirrored) error {
			dev, err := d.p.OpenVolume("v")
			if err != nil {
				return err
			}
			o := writeOp(2<<20, 256<<10) // long enough to be done to both sides at the same time
			dev.Submit(ctx, []*block.Op{o})
			return errors.Join(o.Err, dev.Close())
		},
	}
	for name, follows := range after {
		t.Run(name, func(t *testing.T) {
			eachLayout(t, func(t *testing.T, layout string) {
				d := mirrorSetup(t, layout)
				d.submit(writeOp(0, 3<<20))
				fs := d.rehook()
				d.submit(writeOp(0, 4096))
				d.flush()
				d.must(d.p.ClearRegions("v"))
				d.flush()
				var wrote atomic.Bool
				done := make(chan error, 1)
				fs.once(beforeLog(func() bool { return len(d.p.Differing("v")) == 3 }), func() {
					d.fs.OnOp(aside(t, func(_ int, o crashfs.Op, _ error) {
						if o.Path == legImage && o.Kind == crashfs.Write && !wrote.Swap(true) {
							d.powerCuts(func(policy crashfs.Policy) { lookAtMirror(t, d, policy, true) })
						}
					}))
					go func() { done <- follows(d) }()
					for i := 0; i < 1e5 && !wrote.Load(); i++ { // or it waits for the log
						runtime.Gosched()
					}
				})
				_, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
				d.must(err)
				d.must(<-done)
				d.fs.OnOp(nil)
				if !wrote.Load() {
					t.Fatal("nothing was written to the leg")
				}
				d.must(d.p.CopyBack(ctx, "v", nil))
				d.must(d.p.SyncMirror(ctx, "v", nil))
				d.data = d.read("v")
				d.sameBut(nil)
				d.must(d.p.Close(ctx))
			})
		})
	}
}
