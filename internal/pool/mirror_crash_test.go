package pool_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// mirrorActions are what crashes come in the middle of. Each is done to a volume of three regions that is mirrored, in sync, and of which
// one region is recorded, but where it says otherwise.
var mirrorActions = map[string]func(d *mirrored){
	"write":   func(d *mirrored) { d.submit(writeOp(100, 5000)) },
	"rewrite": func(d *mirrored) { d.submit(writeOp(1<<20, 8192)) },
	"write over the edge of regions": func(d *mirrored) {
		d.submit(writeOp(1<<20-4096, 8192), writeOp(2<<20-512, 1024))
	},
	"zero":    func(d *mirrored) { d.submit(op(block.OpZero, 300, 2<<20)) },
	"discard": func(d *mirrored) { d.submit(op(block.OpDiscard, 300, 2<<20)) },
	"write and flush": func(d *mirrored) {
		d.submit(writeOp(2<<20, 8192))
		d.flush()
	},
	"clear regions": func(d *mirrored) { d.must(d.p.ClearRegions("v")) },
	"clear regions and write": func(d *mirrored) {
		d.must(d.p.ClearRegions("v"))
		d.submit(writeOp(1<<20, 4096))
		d.must(d.p.ClearRegions("v"))
	},
	"detach": func(d *mirrored) { d.must(d.p.DetachMirror(ctx, "v")) },
	"detach and attach": func(d *mirrored) {
		d.must(d.p.DetachMirror(ctx, "v"))
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true})
		d.must(err)
	},
	"attach and copy": func(d *mirrored) {
		d.must(d.p.DetachMirror(ctx, "v"))
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true})
		d.must(err)
		d.submit(writeOp(1<<20-4096, 8192))
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.submit(writeOp(2<<20-4096, 8192))
	},
	"attach a new file": func(d *mirrored) {
		d.must(d.p.DetachMirror(ctx, "v"))
		d.must(d.fs.Remove(legImage))
		d.must(d.fs.SyncDir("/"))
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
	},
	"lose the leg in a write": func(d *mirrored) {
		defer d.fs.Inject(crashfs.Fault{Err: errIO, Prefix: 512, Match: ofLeg(crashfs.Write)})()
		d.submit(writeOp(1<<20-4096, 8192))
		d.submit(writeOp(2<<20, 4096))
	},
	"lose the leg in a sync": func(d *mirrored) {
		defer d.fs.Inject(crashfs.Fault{Err: errIO, Match: ofLeg(crashfs.Sync)})()
		d.submit(writeOp(0, 4096))
		d.flush()
		d.submit(writeOp(2<<20, 4096))
	},
	"lose the leg while it is cleared": func(d *mirrored) {
		defer d.fs.Inject(crashfs.Fault{Err: errIO, Match: ofLeg(crashfs.Sync)})()
		_ = d.p.ClearRegions("v") // which is told as an event
	},
	"lose the leg, mend it and copy": func(d *mirrored) {
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Match: ofLeg(crashfs.Write)})
		d.submit(writeOp(0, 4096))
		remove()
		d.submit(writeOp(2<<20, 4096))
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.must(d.p.SyncMirror(ctx, "v", nil))
	},
	"rollback": func(d *mirrored) {
		_, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
		d.must(err)
		copy(d.data, d.snaps["s"])
		d.submit(writeOp(0, 4096))
	},
	"checkpoint": func(d *mirrored) { d.must(d.p.Checkpoint(ctx)) },
	"close":      func(d *mirrored) { d.must(d.p.Close(ctx)) },
	"close and open": func(d *mirrored) {
		d.must(d.p.Close(ctx))
		d.open()
		d.submit(writeOp(2<<20, 4096))
	},
}

func ofLeg(kind crashfs.Kind) func(crashfs.Op) bool {
	return func(o crashfs.Op) bool { return o.Path == legImage && o.Kind == kind }
}

// aside runs a hook in a goroutine of its own: one that fails the test ends that, and not whoever writes, on whom others wait.
func aside(t *testing.T, hook func(int, crashfs.Op, error)) func(int, crashfs.Op, error) {
	return func(n int, o crashfs.Op, err error) {
		if t.Failed() {
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			hook(n, o, err)
		}()
		<-done
	}
}

func mirrorSetup(t *testing.T, layout string) *mirrored {
	d := attached(t, layout, 3<<20)
	_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
	d.must(err)
	d.snaps["s"] = slices.Clone(d.data)
	d.submit(writeOp(1<<20+4096, 8192))
	d.flush()
	return d
}

// TestMirrorAtEveryCrash crashes at every operation of the file system that an action takes: the volume has what was flushed, the leg is the
// same where it does not count as differing, and when that was copied it is the same everywhere.
func TestMirrorAtEveryCrash(t *testing.T) {
	t.Parallel()
	eachLayout(t, func(t *testing.T, layout string) {
		for _, name := range slices.Sorted(maps.Keys(mirrorActions)) {
			t.Run(name, func(t *testing.T) {
				d := mirrorSetup(t, layout)
				images := 0
				wholly := strings.Contains(name, "attach") || name == "rollback"
				d.fs.OnOp(aside(t, func(n int, o crashfs.Op, err error) {
					if n%thin(4) != 0 {
						return
					}
					policies := []crashfs.Policy{crashfs.DropAll, crashfs.Torn, crashfs.ProcessCrash, crashfs.Random(uint64(n))}
					for _, p := range policies {
						images++
						where := fmt.Sprintf("crash after operation %d (%v: %v), %v", n, o, err, p)
						lookAtMirror(located{t, &where}, d, p, wholly)
					}
				}))
				mirrorActions[name](d)
				d.fs.OnOp(nil)
				if name != "close" {
					_ = d.p.Close(ctx)
				}
				t.Logf("%d crashes", images)
			})
		}
	})
}

// lookAtMirror looks at what a crash leaves. Unless wholly, only what was written to may differ.
func lookAtMirror(tb tb, before *mirrored, policy crashfs.Policy, wholly bool) {
	d := &mirrored{tb: tb, fs: before.fs.CrashImage(policy), clock: before.clock, layout: before.layout, dirty: map[int64]bool{}, touched: map[uint64]bool{}, snaps: before.snaps, buffers: before.buffers}
	d.opts = options(d.fs, d.clock)
	d.opts.OnEvent = d.told
	d.open()
	defer func() { _ = d.p.Close(ctx) }()
	d.buffers[2] = d.readInto(d.buffers[2], "v")
	d.data = d.buffers[2]
	if len(d.events) > 0 {
		tb.Fatalf("told is %+v", d.events)
	}
	if d.hasMirror() {
		if !wholly {
			for _, n := range d.p.Differing("v") {
				if !before.touched[n] {
					tb.Fatalf("region %d counts as differing, and nobody has written to it", n)
				}
			}
		}
		d.sameBut(d.p.Differing("v"))
		d.submit(writeOp(2<<20+8192, 4096)) // while it is what it is
		d.verify()
		if d.info().State == pool.MirrorFailed {
			_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
			d.must(err)
		}
		d.sync()
	}
	if n := d.p.Info().Volumes; n != 1 {
		tb.Fatalf("there are %d volumes", n)
	}
	d.check()
	if d.hasMirror() {
		d.must(d.p.DetachMirror(ctx, "v"))
	}
	d.must(d.p.Checkpoint(ctx))
	if states, _ := d.p.Counts(); states > map[string]int{"redirect": 2, "inplace": 3, "over a base": 3}[d.layout]+1 { // a rollback has kept the present
		tb.Fatalf("there are %d states", states)
	}
}

// TestMirrorKeepsWhatWasFlushed: what a flush has covered is there after a power cut, on both sides.
func TestMirrorKeepsWhatWasFlushed(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := mirrorSetup(t, layout)
		d.submit(writeOp(0, 3<<20))
		d.flush()
		d.crash(crashfs.DropAll)
		d.sameBut(nil)
		d.sync()
		d.must(d.p.Close(ctx))
	})
}

// TestMirrorFailsOnce: whatever of a leg fails, the volume goes on, with one event, and what was written since is copied once it is mended.
func TestMirrorFailsOnce(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		for _, kind := range []crashfs.Kind{crashfs.Write, crashfs.PunchHole, crashfs.Sync} {
			for _, err := range []error{errIO, errNoSpace} {
				d := attached(t, layout, 3<<20)
				remove := d.fs.Inject(crashfs.Fault{Err: err, Match: ofLeg(kind)})
				d.submit(writeOp(1<<20, 5000), op(block.OpZero, 1<<20, 16384))
				d.flush()
				d.submit(writeOp(2<<20, 5000))
				d.flush()
				if info := d.info(); info.State != pool.MirrorFailed || info.Reason == "" || len(d.events) != 1 || d.events[0].Kind != pool.EventMirrorFailed {
					t.Fatalf("%v of %v: the mirror is %+v, told is %+v", err, kind, info, d.events)
				}
				if err := d.p.SyncMirror(ctx, "v", nil); err == nil {
					t.Error("a leg that has failed is copied to")
				}
				if _, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: "/other"}); !errors.Is(err, pool.ErrInUse) {
					t.Errorf("another file is attached: %v", err)
				}
				d.verify()
				remove()
				d.crash(crashfs.DropAll)
				if info := d.info(); info.State != pool.MirrorFailed {
					t.Fatalf("after a crash the mirror is %+v", info)
				}
				_, again := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
				d.must(again)
				if n := d.p.Differing("v"); !slices.Equal(n, []uint64{1, 2}) {
					t.Errorf("regions %v differ", n)
				}
				d.sync()
				d.must(d.p.Close(ctx))
			}
		}
	})
}

// TestMirrorCopiesWhatAFailedSyncForgot: what was written to a leg and not synced when a sync of it failed may be gone, however it looks.
func TestMirrorCopiesWhatAFailedSyncForgot(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.submit(writeOp(1<<20, 5000))
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: ofLeg(crashfs.Sync)})
		d.flush()
		remove()
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.sync()
		d.must(d.p.ClearRegions("v"))
		d.flush() // and with it that they were cleared
		d.crash(crashfs.DropAll)
		d.verify()
		d.must(d.p.Close(ctx))
	})
}
