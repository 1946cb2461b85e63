package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// refused demands that the leg, which has failed, is not attached again unless that is asked for.
func (d *mirrored) refused() {
	d.tb.Helper()
	_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
	if !errors.Is(err, pool.ErrExists) || !strings.Contains(err.Error(), "this is not the leg it was") || !strings.Contains(err.Error(), "--force") {
		d.tb.Fatalf("what is not the leg it was is attached again: %v", err)
	}
}

// strange demands that what is found by the leg's path is not taken for it, and that this is told.
func (d *mirrored) strange() {
	d.tb.Helper()
	info := d.info()
	if info.State != pool.MirrorFailed || !strings.Contains(info.Reason, legImage+": this is not the leg it was: ") || !strings.Contains(info.Reason, "--force") {
		d.tb.Fatalf("the mirror is %+v", info)
	}
	if len(d.events) != 1 || d.events[0].Kind != pool.EventMirrorFailed || !strings.Contains(d.events[0].Message, info.Reason) {
		d.tb.Fatalf("told is %+v", d.events)
	}
	d.refused()
}

// put makes the leg's file anew, or changes it where it is.
func (d *mirrored) put(anew bool, off int64, data []byte) {
	d.tb.Helper()
	f, err := d.fs.Open(legImage)
	d.must(err)
	if anew {
		size, err := f.Size()
		d.must(errors.Join(err, f.Close(), d.fs.Remove(legImage)))
		f, err = d.fs.Create(legImage)
		d.must(errors.Join(err, f.Truncate(size)))
	}
	d.must(errors.Join(f.WriteAt([][]byte{data}, off), f.Sync(), f.Close(), d.fs.SyncDir("/")))
}

// stops are the ways in which a pool comes to be opened again.
var stops = map[string]func(d *mirrored){
	"closed": func(d *mirrored) { d.must(d.p.Close(ctx)) },
	"power cut": func(d *mirrored) {
		d.flush()
		fs := d.fs.CrashImage(crashfs.DropAll)
		d.fs.Crash()
		d.p.Abandon()
		d.fs, d.opts.FS = fs, fs
	},
	"killed": func(d *mirrored) {
		fs := d.fs.CrashImage(crashfs.ProcessCrash)
		d.fs.Crash()
		d.p.Abandon()
		d.fs, d.opts.FS = fs, fs
	},
}

// TestMirrorOfWhatIsNotItAnyMore: a leg that somebody has changed or replaced while nobody served it is not written, however the pool ended; the volume
// goes on, and who asks for it has it copied wholly.
func TestMirrorOfWhatIsNotItAnyMore(t *testing.T) {
	changes := map[string]func(d *mirrored){
		"a block":                      func(d *mirrored) { d.put(false, 0, []byte("somebody was here")) },
		"another image in its place":   func(d *mirrored) { d.put(false, 0, bytes.Repeat([]byte("another "), 3<<17)) },
		"another image of its name":    func(d *mirrored) { d.put(true, 0, bytes.Repeat([]byte("another "), 3<<17)) },
		"an empty image of its name":   func(d *mirrored) { d.put(true, 0, []byte{0}) },
		"a larger one of what it held": func(d *mirrored) { d.put(false, 3<<20, make([]byte, 4096)) },
	}
	eachLayout(t, func(t *testing.T, layout string) {
		for stop, end := range stops {
			for change, do := range changes {
				t.Run(stop+", "+change, func(t *testing.T) {
					d := attached(t, layout, 3<<20)
					d.submit(writeOp(0, 8192))
					d.flush()
					d.must(d.p.ClearRegions("v"))
					d.submit(writeOp(2<<20, 4096)) // in use, and this may differ
					end(d)
					do(d)
					foreign := d.leg()
					d.open()
					d.strange()
					d.submit(writeOp(1<<20, 4096))
					d.flush()
					d.must(d.p.Close(ctx))
					if !bytes.Equal(d.leg(), foreign) {
						t.Fatal("what was not recognised was written")
					}
					d.events = nil
					d.open()
					d.refused()
					_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true})
					d.must(err)
					if n := d.p.Differing("v"); len(n) != 3 {
						t.Errorf("regions %v differ of a file that is another one", n)
					}
					d.sync()
					end(d)
					d.open()
					if info := d.info(); info.State == pool.MirrorFailed || len(d.events) > 0 {
						t.Errorf("the new leg is %+v, %v", info, d.events)
					}
					d.must(d.p.Close(ctx))
				})
			}
		}
	})
}

// TestMirrorKnowsItsLegInAnyState: what is being copied, was written to, has failed, or has nothing in common with the volume is recognised however the pool ended.
func TestMirrorKnowsItsLegInAnyState(t *testing.T) {
	states := map[string]func(d *mirrored){
		"new": func(d *mirrored) {
			d.must(d.p.DetachMirror(ctx, "v"))
			d.must(d.fs.Remove(legImage))
			_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
			d.must(err)
		},
		"written": func(d *mirrored) { d.submit(writeOp(0, 3<<20)) },
		"zeroed": func(d *mirrored) {
			d.submit(op(block.OpZero, 0, 3<<20))
			d.must(d.p.ClearRegions("v"))
		},
		"rolled back": func(d *mirrored) {
			_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
			d.must(err)
			d.submit(writeOp(0, 8192))
			then := d.read("v@s")
			_, _, err = d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
			d.must(err)
			copy(d.data, then)
		},
		"failed": func(d *mirrored) {
			remove := d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: ofLeg(crashfs.Write)})
			d.submit(writeOp(0, 8192))
			remove()
			d.events = nil
		},
	}
	eachLayout(t, func(t *testing.T, layout string) {
		for stop, end := range stops {
			for state, bring := range states {
				t.Run(stop+", "+state, func(t *testing.T) {
					d := attached(t, layout, 3<<20)
					bring(d)
					d.flush()
					end(d)
					d.open()
					if len(d.events) > 0 {
						t.Errorf("told is %+v", d.events)
					}
					if state == "failed" {
						_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
						d.must(err)
					}
					d.sync()
					d.must(d.p.Close(ctx))
				})
			}
		}
	})
}

// nameless is a file system of which nothing tells one file from another, as devices may be; or what is called so.
type nameless struct {
	vfs.FS
	called string
}

func (f nameless) Identity(string) (string, error) { return f.called, nil }

// TestLegIsKnownByWhatItHolds: where nothing tells a device from others, what it should have in common with the volume does, if that is anything.
func TestLegIsKnownByWhatItHolds(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		for _, common := range []bool{true, false} {
			d := newMirrored(t, layout, 3<<20)
			d.submit(writeOp(100<<10, 60000)) // so that there is something in the pool over a base as well
			d.must(d.p.Close(ctx))
			d.opts.FS = nameless{FS: d.fs}
			d.open()
			_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
			d.must(err)
			if common {
				d.must(d.p.SyncMirror(ctx, "v", nil))
				d.must(d.p.ClearRegions("v"))
			}
			d.flush()
			stops["power cut"](d)
			d.opts.FS = nameless{FS: d.fs}
			d.open()
			if !common {
				d.strange()
			} else if info := d.info(); info.State != pool.MirrorInSync || len(d.events) > 0 {
				t.Errorf("the mirror is %+v, told is %v", info, d.events)
			}
			d.must(d.p.Close(ctx))
		}
	})
}

// TestLegOnAnotherDevice: another device is not the leg, even if it holds the same.
func TestLegOnAnotherDevice(t *testing.T) {
	for stop, end := range stops {
		t.Run(stop, func(t *testing.T) {
			d := newMirrored(t, "redirect", 3<<20)
			on := func(called string) {
				d.opts.FS = nameless{devices{d.fs, legImage, new(d.clock.now)}, called}
				d.open()
			}
			d.must(d.p.Close(ctx))
			on("serial 1")
			_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
			d.must(err)
			d.must(d.p.SyncMirror(ctx, "v", nil))
			end(d)
			on("serial 2")
			if reason := d.info().Reason; !strings.Contains(reason, "it was serial 1, and is serial 2") {
				t.Errorf("the reason is %q", reason)
			}
			d.strange()
			d.must(d.p.Close(ctx))
			d.events = nil
			on("serial 1")
			_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
			d.must(err)
			d.sync()
			d.must(d.p.Close(ctx))
		})
	}
}

// swappable are two mirrored volumes on the real file system whose legs are known by names that may lead to the other one, as those of disks may.
type swappable struct {
	t     *testing.T
	dir   string
	opts  pool.Options
	p     *pool.Pool
	disks [2]string
}

func (s *swappable) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *swappable) leg(i int) string { return filepath.Join(s.dir, fmt.Sprintf("leg%d", i)) }

// name has the legs' names lead to the disks.
func (s *swappable) name(swapped bool) {
	s.t.Helper()
	for i := range s.disks {
		_ = os.Remove(s.leg(i)) // the first time there is none
		disk := s.disks[i]
		if swapped {
			disk = s.disks[1-i]
		}
		s.must(os.Symlink(disk, s.leg(i)))
	}
}

func (s *swappable) open() {
	s.t.Helper()
	p, err := pool.Open(ctx, s.opts)
	s.must(err)
	s.p = p
}

func (s *swappable) write(volume string, data []byte) {
	s.t.Helper()
	dev, err := s.p.OpenVolume(volume)
	s.must(err)
	o := &block.Op{Kind: block.OpWrite, Length: int64(len(data)), Data: data}
	dev.Submit(ctx, []*block.Op{o})
	s.must(errors.Join(o.Err, dev.Flush(ctx), dev.Close()))
}

func (s *swappable) content() (both [2][]byte) {
	s.t.Helper()
	for i, disk := range s.disks {
		b, err := os.ReadFile(disk)
		s.must(err)
		both[i] = b
	}
	return both
}

// TestLegsAreSwapped: the names of two legs lead to each other's after the machine was started anew. Neither is written; once the names are right both go on, and only what
// was written meanwhile is copied.
func TestLegsAreSwapped(t *testing.T) {
	kinds := map[string]func(t *testing.T, file string) string{"files": func(_ *testing.T, file string) string { return file }}
	if unix.Access("/dev/loop-control", unix.W_OK) == nil { // devices that everybody can have, root's rights provided
		kinds["devices"] = loopDevice
	}
	for kind, disk := range kinds {
		for _, written := range []bool{true, false} { // else the disks are the same, and hold nothing
			for _, clean := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, written %v, clean %v", kind, written, clean), func(t *testing.T) { swapLegs(t, disk, written, clean) })
			}
		}
	}
}

func loopDevice(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

func swapLegs(t *testing.T, disk func(*testing.T, string) string, written, clean bool) {
	const size = 3 << 20
	s := &swappable{t: t, dir: t.TempDir()}
	s.opts = pool.Options{FS: vfs.OS(), Dir: filepath.Join(s.dir, "pool"), Manual: true}
	s.must(pool.Create(ctx, s.opts))
	s.open()
	defer func() { _ = s.p.Close(ctx) }()
	for i := range s.disks {
		file := filepath.Join(s.dir, fmt.Sprintf("disk%d", i))
		s.must(os.WriteFile(file, nil, 0o600))
		s.must(os.Truncate(file, size))
		s.disks[i] = disk(t, file)
	}
	s.name(false)
	volumes := [2]string{"v", "w"}
	for i, v := range volumes {
		_, err := s.p.CreateVolume(ctx, pool.VolumeSpec{Name: v, SizeBytes: size})
		s.must(err)
		_, err = s.p.AttachMirror(ctx, v, pool.LegSpec{Path: s.leg(i), Force: true})
		s.must(err)
		s.must(s.p.SyncMirror(ctx, v, nil))
		if written {
			s.write(v, bytes.Repeat([]byte(v), 1<<19))
			s.must(s.p.ClearRegions(v))
		}
	}
	stop := func() {
		if clean {
			s.must(s.p.Close(ctx))
			return
		}
		_, err := s.p.CreateVolume(ctx, pool.VolumeSpec{Name: "x", SizeBytes: size}) // and all before it is durable
		s.must(err)
		s.p.Abandon()
	}
	stop()
	before := s.content()
	s.name(true)
	s.open()
	for i, v := range volumes {
		info, err := s.p.Mirror(v)
		s.must(err)
		if info.State != pool.MirrorFailed || !strings.Contains(info.Reason, "this is not the leg it was") {
			t.Errorf("with the other's leg the mirror of %s is %+v", v, info)
		}
		if _, err := s.p.AttachMirror(ctx, v, pool.LegSpec{Path: s.leg(i)}); !errors.Is(err, pool.ErrExists) {
			t.Errorf("the other's leg is attached to %s again: %v", v, err)
		}
		s.write(v, bytes.Repeat([]byte(v+"later"), 100))
	}
	if now := s.content(); !bytes.Equal(now[0], before[0]) || !bytes.Equal(now[1], before[1]) {
		t.Fatal("a leg was written for the other")
	}
	s.must(s.p.Close(ctx))
	s.name(false)
	s.open()
	for i, v := range volumes {
		_, err := s.p.AttachMirror(ctx, v, pool.LegSpec{Path: s.leg(i)})
		s.must(err)
		if n := s.p.Differing(v); !slices.Equal(n, []uint64{0}) {
			t.Errorf("regions %v of %s differ", n, v)
		}
		s.must(s.p.SyncMirror(ctx, v, nil))
		dev, err := s.p.OpenVolume(v)
		s.must(err)
		want := make([]byte, size)
		s.must(errors.Join(dev.ReadAt(ctx, want, 0), dev.Close()))
		s.must(s.p.DetachMirror(ctx, v))
		if !bytes.Equal(s.content()[i], want) {
			t.Errorf("the leg of %s is not what the volume is", v)
		}
	}
}

// TestLegThatForgetsAfterItWasSealed: what a failed sync has forgotten shows until a crash, also when the leg is sealed. It is the leg still.
func TestLegThatForgetsAfterItWasSealed(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.submit(writeOp(0, 8192))
		d.failSync()
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.must(d.p.Close(ctx))
		d.events = nil
		d.open()
		stops["power cut"](d)
		d.open()
		if info := d.info(); info.State != pool.MirrorSyncing || len(d.events) > 0 {
			t.Errorf("the mirror is %+v, told is %+v", info, d.events)
		}
		d.sync()
		d.must(d.p.Close(ctx))
	})
}

// TestLegThatWasMoved: a file that was moved to another disk and is as it was when it was sealed is the leg; if it was in use, nobody knows what happened to it.
func TestLegThatWasMoved(t *testing.T) {
	for stop, end := range stops {
		t.Run(stop, func(t *testing.T) {
			d := attached(t, "redirect", 3<<20)
			d.submit(writeOp(0, 8192))
			d.flush()
			end(d)
			d.put(true, 0, d.leg())
			d.open()
			if stop != "closed" {
				d.strange()
			} else if info := d.info(); info.State != pool.MirrorInSync || len(d.events) > 0 {
				t.Errorf("the mirror is %+v, told is %v", info, d.events)
			}
			d.must(d.p.Close(ctx))
		})
	}
}
