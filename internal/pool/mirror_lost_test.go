package pool_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// failSync has the next sync of the leg fail, which drops it, and forgets what was written to it.
func (d *mirrored) failSync() {
	d.tb.Helper()
	remove := d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: ofLeg(crashfs.Sync)})
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	d.must(errors.Join(dev.Flush(ctx), dev.Close()))
	remove()
	if state := d.info().State; state != pool.MirrorFailed {
		d.tb.Fatalf("after a failed sync the mirror is %s", state)
	}
}

// TestFailedSyncForgetsWhatWasCopied: what was copied to a leg and not synced when a sync of it failed is copied again, also what was being copied at that moment.
func TestFailedSyncForgetsWhatWasCopied(t *testing.T) {
	for name, during := range map[string]bool{"behind the copying": false, "while a region is copied": true} {
		t.Run(name, func(t *testing.T) {
			eachLayout(t, func(t *testing.T, layout string) {
				d := newMirrored(t, layout, 3<<20)
				fs := d.rehook()
				_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
				d.must(err)
				short, cancel := context.WithCancel(ctx)
				fs.once(of(legImage, crashfs.Write, true), func() {
					cancel()
					if during {
						d.failSync()
					}
				})
				if err := d.p.SyncMirror(short, "v", nil); err == nil {
					t.Fatal("everything was copied")
				}
				if !during {
					d.failSync()
				}
				_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
				d.must(err)
				if n := d.p.Differing("v"); !slices.Equal(n, []uint64{0, 1, 2}) {
					t.Errorf("only regions %v differ", n)
				}
				d.must(d.p.SyncMirror(ctx, "v", nil))
				d.flush()
				d.crash(crashfs.DropAll)
				d.verify()
				d.must(d.p.Close(ctx))
			})
		})
	}
}

// TestRegionsAreLostWhenTheLegIs: a leg has failed, and then which regions differ cannot be recorded any more: all do.
func TestRegionsAreLostWhenTheLegIs(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.submit(writeOp(1<<20, 4096))
		d.flush()
		d.opts.MapCacheBytes = 1 // what is in the log is in memory no more
		d.must(d.p.Close(ctx))
		d.open()
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: ofLeg(crashfs.Write)})
		d.submit(writeOp(1<<20, 4096))
		remove()
		d.must(d.p.Checkpoint(ctx))
		rotAt(t, d.fs, d.p.RegionsAddr("v"), 50)
		d.submit(writeOp(2<<20+8192, 4096))
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		if n := d.p.Differing("v"); len(n) != 3 {
			t.Errorf("only regions %v differ", n)
		}
		d.verify()
		d.must(d.p.DetachMirror(ctx, "v"))
		_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true})
		d.must(err)
		d.sync()
		d.must(d.p.Close(ctx))
	})
}

// TestLegIsClosedWhenNobodyUsesIt: a leg fails in one write while another one is under way. A descriptor that is closed under that may be somebody else's by
// the time it is used.
func TestLegIsClosedWhenNobodyUsesIt(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		fs := d.rehook()
		d.submit(writeOp(0, 4096))
		reached, goOn := make(chan struct{}), make(chan struct{})
		fs.once(func(o crashfs.Op, done bool) bool {
			return o.Path == legImage && o.Kind == crashfs.Write && o.Offset == 1<<20 && !done
		}, func() {
			close(reached)
			<-goOn
		})
		slow := make(chan error)
		go func() {
			dev, err := d.p.OpenVolume("v")
			if err == nil {
				o := &block.Op{Kind: block.OpWrite, Offset: 1 << 20, Length: 4096, Data: bytes.Repeat([]byte{7}, 4096)}
				dev.Submit(ctx, []*block.Op{o})
				err = errors.Join(o.Err, dev.Close())
			}
			slow <- err
		}()
		<-reached
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Match: ofLeg(crashfs.Write)})
		d.submit(writeOp(0, 4096))
		remove()
		if n := fs.handles(legImage); n == 0 {
			t.Error("it is closed, and somebody writes to it")
		}
		close(goOn)
		d.must(<-slow)
		copy(d.data[1<<20:], bytes.Repeat([]byte{7}, 4096))
		if n := fs.handles(legImage); n != 0 {
			t.Errorf("%d handles of it are left", n)
		}
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.verify()
		d.must(d.p.Close(ctx))
	})
}

// TestLegIsSyncedByOneAtATime: of two syncs of one file at the same time the kernel tells but one that what was written is lost. The other one must not
// take the regions for the same.
func TestLegIsSyncedByOneAtATime(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		fs := d.rehook()
		d.submit(writeOp(1<<20, 4096))
		defer d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: ofLeg(crashfs.Sync)})()
		cleared := make(chan struct{})
		var ends atomic.Bool
		fs.once(of(legImage, crashfs.Sync, true), func() { // it has failed, which nobody knows yet
			go func() {
				defer close(cleared)
				defer ends.Store(true)
				_ = d.p.ClearRegions("v") // that the leg has failed is told by the flush
			}()
			for i := 0; i < 1e5 && !ends.Load(); i++ { // or it waits for this one
				runtime.Gosched()
			}
		})
		d.flush()
		<-cleared
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		if n := d.p.Differing("v"); !slices.Equal(n, []uint64{1}) {
			t.Errorf("regions %v differ", n)
		}
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.flush()
		d.crash(crashfs.DropAll)
		d.verify()
		d.must(d.p.Close(ctx))
	})
}

// TestSlowLegHoldsUpNobodyElse: while it is looked whether a leg that has failed is what it was, nobody has the log alone, so that all other volumes are
// written to.
func TestSlowLegHoldsUpNobodyElse(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.must(d.p.Close(ctx))
		d.must(d.fs.Rename(legImage, "/elsewhere"))
		fs := &hooked{FS: d.fs}
		d.opts.FS = fs
		d.open()
		d.must(d.fs.Rename("/elsewhere", legImage))
		reads := 0
		fs.on(func(o crashfs.Op, done bool) {
			if o.Path == legImage && o.Kind == crashfs.Read && !done {
				if reads++; d.p.Leading() {
					t.Errorf("the log is held alone while the leg is read at %d", o.Offset)
				}
			}
		})
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		fs.on(nil)
		if reads == 0 {
			t.Fatal("nothing of the leg was read")
		}
		d.verify()
		d.must(d.p.Close(ctx))
	})
}
