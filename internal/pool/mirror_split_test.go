package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

var splitRef = pool.SnapshotRef{Volume: "v", Name: "c"}

func (d *mirrored) split() pool.SnapshotInfo {
	d.tb.Helper()
	info, _, err := d.p.SplitMirror(ctx, "v", pool.SnapshotSpec{Name: "c", Labels: map[string]string{"k": "v"}})
	d.must(err)
	d.snaps["c"] = bytes.Clone(d.data)
	return info
}

// changed lists the blocks that differ from the copy, by the diff.
func (d *mirrored) changed() (out []int64) {
	d.tb.Helper()
	diff, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: "c"}, pool.PointRef{Volume: "v"})
	d.must(err)
	defer diff.Close()
	d.must(diff.Each(ctx, func(off, length int64) error {
		for b := off / block.Size; b*block.Size < off+length; b++ {
			out = append(out, b)
		}
		return nil
	}))
	return out
}

func TestMirrorIsSplitOffAndResynced(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.submit(writeOp(100, 5000), op(block.OpZero, 1<<20, 1<<20))
		info := d.split()
		if info.Copy == nil || info.Copy.Path != legImage || info.Copy.Technique != pool.Mirror || !info.Copy.Finished || info.Labels["k"] != "v" {
			t.Errorf("what was split off is %+v", info)
		}
		if d.hasMirror() {
			t.Error("the volume is mirrored still")
		}
		d.submit(writeOp(2<<20+4096, 8192))
		if !bytes.Equal(d.read("v@c"), d.snaps["c"]) || !bytes.Equal(d.leg(), d.snaps["c"]) {
			t.Error("what was split off is not what the volume was")
		}
		if got := d.changed(); !slices.Equal(got, []int64{513, 514}) {
			t.Errorf("since it was split off blocks %v changed", got)
		}
		d.check()
		d.must(d.p.Close(ctx))
		d.open()
		if !bytes.Equal(d.read("v@c"), d.snaps["c"]) {
			t.Error("after it was closed and opened what was split off is not what the volume was")
		}
		again, err := d.p.ResyncMirror(ctx, splitRef)
		d.must(err)
		if again.State != pool.MirrorSyncing || again.Path != legImage || again.Differing != 1<<20 {
			t.Errorf("after a resync the mirror is %+v", again)
		}
		if _, err := d.p.Snapshot(splitRef); !errors.Is(err, pool.ErrNotFound) {
			t.Errorf("the copy is still there: %v", err)
		}
		if n := d.p.Differing("v"); !slices.Equal(n, []uint64{2}) {
			t.Errorf("regions %v differ", n)
		}
		d.submit(writeOp(0, 4096))
		d.sync()
		d.split()
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{splitRef}))
		d.must(d.p.DeleteVolume(ctx, "v"))
		if states, volumes := d.p.Counts(); states != 0 || volumes != 0 {
			t.Errorf("%d states and %d volumes are left", states, volumes)
		}
		d.must(d.p.Close(ctx))
	})
}

// TestResyncOfWhatSomebodyChanged: a file that is not what was split off is copied wholly.
func TestResyncOfWhatSomebodyChanged(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.split()
		f, err := d.fs.Open(legImage)
		d.must(err)
		d.must(errors.Join(f.WriteAt([][]byte{[]byte("somebody was here")}, 0), f.Close()))
		_, err = d.p.ResyncMirror(ctx, splitRef)
		d.must(err)
		if n := d.p.Differing("v"); len(n) != 3 {
			t.Errorf("only regions %v differ", n)
		}
		d.sync()
		d.must(d.p.Close(ctx))
	})
}

func TestSplitAndResyncRefuse(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := newMirrored(t, layout, 3<<20)
		refuses := func(spec pool.SnapshotSpec, want error) {
			t.Helper()
			if _, _, err := d.p.SplitMirror(ctx, "v", spec); !errors.Is(err, want) {
				t.Errorf("splitting off %+v: %v, want %v", spec, err, want)
			}
		}
		resync := func(name string, want error) {
			t.Helper()
			if _, err := d.p.ResyncMirror(ctx, pool.SnapshotRef{Volume: "v", Name: name}); !errors.Is(err, want) {
				t.Errorf("resync of %s: %v, want %v", name, err, want)
			}
		}
		refuses(pool.SnapshotSpec{Name: "c"}, pool.ErrNotFound)
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		refuses(pool.SnapshotSpec{Name: "c"}, pool.ErrInUse)
		d.sync()
		refuses(pool.SnapshotSpec{Name: "A B"}, pool.ErrInvalid)
		_, _, err = d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
		d.must(err)
		refuses(pool.SnapshotSpec{Name: "s"}, pool.ErrExists)
		resync("none", pool.ErrNotFound)
		resync("s", pool.ErrInvalid)
		d.split()
		d.must(d.p.ProtectSnapshot(ctx, splitRef, true))
		resync("c", pool.ErrProtected)
		d.must(d.p.ProtectSnapshot(ctx, splitRef, false))
		dev, err := d.p.OpenSnapshot(splitRef)
		d.must(err)
		resync("c", pool.ErrInUse)
		d.must(dev.Close())
		if d.hasMirror() {
			t.Error("a resync that was refused leaves a mirror")
		}
		if _, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage, Force: true}); !errors.Is(err, pool.ErrInUse) {
			t.Errorf("the file of a copy becomes a leg: %v", err)
		}
		_, err = d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: "/second.img"})
		d.must(err)
		resync("c", pool.ErrInUse)
		d.must(d.p.DetachMirror(ctx, "v"))
		d.must(d.fs.Remove(legImage))
		resync("c", fs.ErrNotExist)
		if !bytes.Equal(d.read("v"), d.data) || len(d.events) > 0 {
			t.Errorf("the volume is another one, or told is %+v", d.events)
		}
		d.check()
		d.must(d.p.Close(ctx))
	})
}

// TestSplitThatFails: the leg cannot be made durable: nothing is split off, the volume goes on, and the leg has failed.
func TestSplitThatFails(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.submit(writeOp(0, 4096))
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Match: ofLeg(crashfs.Sync)})
		if _, _, err := d.p.SplitMirror(ctx, "v", pool.SnapshotSpec{Name: "c"}); !errors.Is(err, errIO) {
			t.Fatalf("a split of what cannot be synced: %v", err)
		}
		remove()
		if list, err := d.p.Snapshots("v"); err != nil || len(list) != 0 {
			t.Errorf("there are %+v (%v)", list, err)
		}
		d.submit(writeOp(2<<20, 4096))
		if info := d.info(); info.State != pool.MirrorFailed || len(d.events) != 1 {
			t.Errorf("the mirror is %+v, told is %+v", info, d.events)
		}
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.sync()
		d.split()
		d.check()
		d.must(d.p.Close(ctx))
	})
}

var splitActions = map[string]func(d *mirrored){
	"split": func(d *mirrored) { d.split() },
	"split and write": func(d *mirrored) {
		d.split()
		d.submit(writeOp(0, 8192))
		d.flush()
	},
	"split and resync": func(d *mirrored) {
		d.split()
		d.submit(writeOp(2<<20, 8192))
		_, err := d.p.ResyncMirror(ctx, splitRef)
		d.must(err)
		d.submit(writeOp(0, 4096))
		d.must(d.p.SyncMirror(ctx, "v", nil))
		d.submit(writeOp(1<<20, 4096))
	},
	"split that fails": func(d *mirrored) {
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: ofLeg(crashfs.Sync)})
		_, _, _ = d.p.SplitMirror(ctx, "v", pool.SnapshotSpec{Name: "c"})
		remove()
		d.submit(writeOp(0, 4096))
	},
}

// TestSplitAtEveryCrash: what is split off is what the volume was at that instant, or is not there, and then the mirror is.
func TestSplitAtEveryCrash(t *testing.T) {
	t.Parallel()
	eachLayout(t, func(t *testing.T, layout string) {
		for _, name := range slices.Sorted(maps.Keys(splitActions)) {
			t.Run(name, func(t *testing.T) {
				d := mirrorSetup(t, layout)
				d.submit(writeOp(1<<20+4096, 8192)) // which is not flushed
				then := bytes.Clone(d.data)
				d.fs.OnOp(aside(t, func(n int, o crashfs.Op, err error) {
					if n%thin(4) != 0 {
						return
					}
					for _, p := range []crashfs.Policy{crashfs.DropAll, crashfs.Torn, crashfs.ProcessCrash, crashfs.Random(uint64(n))} {
						where := fmt.Sprintf("crash after operation %d (%v: %v), %v", n, o, err, p)
						lookAtSplit(located{t, &where}, d, p, then)
					}
				}))
				splitActions[name](d)
				d.fs.OnOp(nil)
				_ = d.p.Close(ctx)
			})
		}
	})
}

func lookAtSplit(tb tb, before *mirrored, policy crashfs.Policy, then []byte) {
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
	if _, err := d.p.Snapshot(splitRef); err == nil {
		if d.hasMirror() {
			tb.Fatal("there is a copy, and its file is the mirror's")
		}
		if !bytes.Equal(d.read("v@c"), then) {
			tb.Fatal("what was split off is not what the volume was")
		}
		changed := d.changed()
		for b := range int64(len(then) / block.Size) {
			if lo, hi := b*block.Size, (b+1)*block.Size; !slices.Contains(changed, b) && !bytes.Equal(d.data[lo:hi], then[lo:hi]) {
				tb.Fatalf("block %d has changed since it was split off, and the diff does not say so", b)
			}
		}
		_, err := d.p.ResyncMirror(ctx, splitRef)
		d.must(err)
		for _, n := range d.p.Differing("v") {
			if !slices.ContainsFunc(changed, func(b int64) bool { return uint64(b)/256 == n }) {
				tb.Fatalf("region %d differs after a resync, and nothing of it has changed", n)
			}
		}
	} else if !d.hasMirror() {
		tb.Fatal("neither a copy nor the mirror is there")
	}
	d.verify()
	if d.info().State == pool.MirrorFailed {
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
	}
	d.sync()
	d.split()
	if !bytes.Equal(d.read("v@c"), d.data) {
		tb.Fatal("what was split off after the crash is not what the volume was")
	}
	d.check()
	if states, volumes := d.p.Counts(); volumes != map[string]int{"redirect": 1, "inplace": 2, "over a base": 2}[d.layout] || states > volumes+2 {
		tb.Fatalf("there are %d volumes and %d states", volumes, states)
	}
}

// TestSplitWaitsForWrites: nothing is split off while a write has come to one side and not to the other.
func TestSplitWaitsForWrites(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.must(d.p.Close(ctx))
		reached, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		d.opts.FS = &beforeLeg{FS: d.fs, do: func(int64, int) {
			once.Do(func() {
				close(reached)
				<-goOn
			})
		}}
		d.open()
		wrote, split := make(chan error, 1), make(chan error, 1)
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		o := writeOp(0, 4096)
		go func() {
			dev.Submit(ctx, []*block.Op{o})
			wrote <- o.Err
		}()
		<-reached
		go func() {
			_, _, err := d.p.SplitMirror(ctx, "v", pool.SnapshotSpec{Name: "c"})
			split <- err
		}()
		for !d.p.GateWanted("v") {
			select {
			case err := <-split:
				t.Fatalf("it is split off (%v) while a write is half done", err)
			default:
				runtime.Gosched()
			}
		}
		close(goOn)
		d.must(<-wrote)
		d.must(<-split)
		d.must(dev.Close())
		copy(d.data, o.Data)
		if !bytes.Equal(d.read("v@c"), d.data) || !bytes.Equal(d.leg(), d.data) {
			t.Error("what was split off is not what the volume was")
		}
		d.must(d.p.Close(ctx))
	})
}

// TestSplitUnderLoad: what is split off while writers write is of one instant, in which every writer's last acknowledged write is, and stays as it was. It
// costs the writers a short pause.
func TestSplitUnderLoad(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		const blocks, writers = 1024, 4
		p, leg := openMirroredOS(t, layout, blocks*block.Size)
		if _, err := p.AttachMirror(ctx, "v", pool.LegSpec{Path: leg}); err != nil {
			t.Fatal(err)
		}
		work, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for w := range writers {
			dev, err := p.OpenVolume("v")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer func() { _ = dev.Close() }()
				for n := uint32(1); work.Err() == nil; n++ {
					for _, lba := range []int64{int64(w), int64(w + writers + int(n)%200*writers)} {
						o := &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: bytes.Repeat([]byte{byte(n), byte(n >> 8), byte(n >> 16), 0}, block.Size/4)}
						if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
							t.Errorf("write: %v", o.Err)
							return
						}
					}
				}
			})
		}
		var pauses []time.Duration
		number := func(content []byte, lba int) int {
			b := content[lba*block.Size:]
			return int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		}
		for n := range 8 {
			if err := p.SyncMirror(ctx, "v", nil); err != nil {
				t.Fatal(err)
			}
			_, took, err := p.SplitMirror(ctx, "v", pool.SnapshotSpec{Name: "c"})
			if err != nil {
				t.Fatal(err)
			}
			pauses = append(pauses, took.Pause)
			content := contentOf(t, p, "v@c")
			for w := range writers {
				first := number(content, w)
				for k := range 200 {
					if second := number(content, w+writers+k*writers); second > first {
						t.Fatalf("split %d has write %d of writer %d and not the one before it (%d)", n, second, w, first)
					}
				}
			}
			if !bytes.Equal(contentOf(t, p, "v@c"), content) {
				t.Fatalf("what was split off changes")
			}
			if _, err := p.ResyncMirror(ctx, splitRef); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		wg.Wait()
		if err := p.SyncMirror(ctx, "v", nil); err != nil {
			t.Fatal(err)
		}
		sameAsLeg(t, p, leg)
		slices.Sort(pauses)
		t.Logf("pauses of the writers: %v", pauses)
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
	})
}
