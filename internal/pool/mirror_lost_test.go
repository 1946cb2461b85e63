package pool_test

import (
	"context"
	"errors"
	"slices"
	"testing"

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
