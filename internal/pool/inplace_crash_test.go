package pool_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// inplaceActions are what crashes come in the middle of. Each is done to a volume of 20 blocks with snapshots old (of which a
// part was overwritten since) and new, a bookmark mark and a clone of old. If anything may lie in the log alone, blocks 7 to 10 and 12 do.
var inplaceActions = map[string]func(d *inplace){
	"first write":      func(d *inplace) { d.submit(writeOp(0, 3*block.Size), writeOp(40000, 1000)) },
	"rewrite":          func(d *inplace) { d.submit(writeOp(8*block.Size, block.Size)) },
	"part of a block":  func(d *inplace) { d.submit(writeOp(8*block.Size+100, 5000), writeOp(10*block.Size, 512)) },
	"one block twice":  func(d *inplace) { d.submit(writeOp(block.Size, 8192), writeOp(block.Size+512, 512)) },
	"much":             func(d *inplace) { d.submit(bigWrite(2 * block.Size)) },
	"zero":             func(d *inplace) { d.submit(op(block.OpZero, 0, 5*block.Size+100)) },
	"zero a rewritten": func(d *inplace) { d.submit(op(block.OpZero, 8*block.Size, block.Size)) },
	"allocate zeros":   func(d *inplace) { d.submit(op(block.OpZeroAllocated, 8*block.Size+10, 2*block.Size)) },
	"discard":          func(d *inplace) { d.submit(op(block.OpDiscard, 0, inplaceBlocks*block.Size)) },
	"flush": func(d *inplace) {
		d.submit(writeOp(0, 8192))
		d.flush()
	},
	"flush between": func(d *inplace) {
		d.submit(writeOp(7*block.Size, 8192))
		d.flush()
		d.submit(writeOp(8*block.Size, 8192))
	},
	"destage": func(d *inplace) { d.must(d.p.Destage(ctx, "v")) },
	"write, destage, write": func(d *inplace) {
		d.submit(writeOp(7*block.Size, 3*block.Size))
		d.must(d.p.Destage(ctx, "v"))
		d.submit(writeOp(8*block.Size, 8192))
		d.flush()
	},
	"write while it is destaged": func(d *inplace) {
		finish, err := d.p.BeginDestage(ctx, "v")
		d.must(err)
		d.submit(writeOp(8*block.Size, block.Size))
		d.must(finish())
	},
	"snapshot while it is destaged": func(d *inplace) {
		finish, err := d.p.BeginDestage(ctx, "v")
		d.must(err)
		d.snapshot("third")
		d.submit(writeOp(8*block.Size, block.Size))
		d.must(finish())
		d.submit(bigWrite(0))
	},
	"rollback while it is destaged": func(d *inplace) {
		finish, err := d.p.BeginDestage(ctx, "v")
		d.must(err)
		d.rollback("old")
		d.must(finish())
		d.must(d.p.CopyBack(ctx, "v", nil))
	},
	"snapshot": func(d *inplace) { d.snapshot("third") },
	"write and snapshot": func(d *inplace) {
		d.submit(writeOp(4096, 8192))
		d.snapshot("third")
	},
	"snapshot, write, destage": func(d *inplace) {
		d.snapshot("third")
		d.submit(writeOp(8*block.Size, 8192))
		d.must(d.p.Destage(ctx, "v"))
	},
	"delete":   func(d *inplace) { d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "new"}})) },
	"rollback": func(d *inplace) { d.rollback("old") },
	"rollback and copy back": func(d *inplace) {
		d.rollback("old")
		d.must(d.p.CopyBack(ctx, "v", nil))
	},
	"put ranges back": func(d *inplace) { d.putBack("old", putBackRanges...) },
	"put ranges back, copy them back and undo it": func(d *inplace) {
		d.putBack("old", putBackRanges...)
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.rollback(d.newest())
		d.must(d.p.CopyBack(ctx, "v", nil))
	},
	"write and put back while a rollback is not copied back": func(d *inplace) {
		d.rollback("new")
		d.submit(writeOp(8*block.Size+100, 5000))
		d.putBack("old", putBackRanges...)
		d.submit(writeOp(9*block.Size+100, 5000))
		d.must(d.p.CopyBack(ctx, "v", nil))
	},
	"write while a rollback is not copied back": func(d *inplace) {
		d.rollback("old")
		d.submit(writeOp(8*block.Size+100, 5000))
	},
	"much while a rollback is not copied back": func(d *inplace) {
		d.rollback("old")
		d.submit(bigWrite(0))
	},
	"write, destage and copy back": func(d *inplace) {
		d.rollback("old")
		d.submit(writeOp(8*block.Size, block.Size), writeOp(0, 100))
		d.must(d.p.Destage(ctx, "v"))
		d.must(d.p.CopyBack(ctx, "v", nil))
	},
	"two rollbacks": func(d *inplace) {
		d.rollback("old")
		d.rollback("new")
		d.must(d.p.CopyBack(ctx, "v", nil))
	},
	"write to the clone": func(d *inplace) {
		dev, err := d.p.OpenVolume("clone")
		d.must(err)
		o := writeOp(100, 8192)
		dev.Submit(ctx, []*block.Op{o})
		d.must(o.Err)
		d.must(dev.Close())
	},
	"reclaim": func(d *inplace) {
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "new"}}))
		d.must(d.p.Cycle(ctx))
	},
	"checkpoint": func(d *inplace) { d.must(d.p.Checkpoint(ctx)) },
	"close":      func(d *inplace) { d.must(d.p.Close(ctx)) },
}

// putBackRanges overlap, and have blocks in them that were written since, since long, never, and that were a hole.
var putBackRanges = []pool.Range{{Offset: 6 * block.Size, Length: 3 * block.Size}, {Offset: 8 * block.Size, Length: block.Size}, {Offset: 12 * block.Size, Length: 4 * block.Size}}

// newest is the snapshot that was made last.
func (d *inplace) newest() string {
	d.tb.Helper()
	list, err := d.p.Snapshots("v")
	d.must(err)
	return list[len(list)-1].Name
}

func (d *inplace) rollback(to string) {
	d.tb.Helper()
	d.becoming = d.snapshots[to].data
	kept, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: to})
	d.must(err)
	d.becoming = nil
	d.snapshots[kept.Name] = d.head.clone()
	d.head = d.snapshots[to].clone()
	clear(d.dirty)
	d.past = nil
	d.clock.now = d.clock.now.Add(1e9)
}

const inplaceBlocks = 20

func inplaceSetup(t *testing.T, overlay int64) *inplace {
	d := newOverlaid(t, inplaceBlocks*block.Size, 1, overlay)
	d.tracked = true
	d.snapshot("old")
	d.submit(writeOp(7*block.Size, 4*block.Size))
	_, err := d.p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "v", Name: "old"}, "mark")
	d.must(err)
	d.bookmarks["mark"] = d.snapshots["old"].clone()
	_, _, err = d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "old"}, pool.VolumeSpec{Name: "clone"})
	d.must(err)
	d.submit(writeOp(12*block.Size, block.Size))
	d.snapshot("new")
	d.submit(writeOp(8*block.Size, 2*block.Size))
	d.flush()
	return d
}

// overlays are how much may lie in the log and not in the file: enough for all, for some, nothing.
var overlays = []int64{0, 6 * block.Size, -1}

// TestInplaceAtEveryCrash crashes at every operation of the file system that an action takes: no snapshot that was there has
// changed, none is half made, the head has what was flushed, or of each byte something newer, and what differs from a snapshot is told.
func TestInplaceAtEveryCrash(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(inplaceActions)) {
		for _, overlay := range overlays {
			t.Run(fmt.Sprintf("%s/%d", name, overlay), func(t *testing.T) {
				d := inplaceSetup(t, overlay)
				images := crashDuring(t, d, name, func(d *inplace) []crashfs.Policy {
					return append(crashfs.Policies(len(d.fs.Pending())), crashfs.Random(uint64(d.fs.Ops())))
				})
				t.Logf("%d crashes", images)
			})
		}
	}
}

// TestInplaceAtEveryCrashAfterAnother does the same to what another action has left, with fewer ways to crash.
func TestInplaceAtEveryCrashAfterAnother(t *testing.T) {
	t.Parallel()
	for i, first := range []string{
		"first write", "part of a block", "much", "zero", "snapshot, write, destage", "rollback", "write while a rollback is not copied back", "reclaim", "checkpoint",
	} {
		for j, name := range []string{
			"write, destage, write", "much", "part of a block", "discard", "snapshot while it is destaged", "rollback while it is destaged", "reclaim", "close",
		} {
			if first == "reclaim" && name == "reclaim" || (i+j)%thin(2) != 0 { // there is one snapshot to delete
				continue
			}
			t.Run(first+", "+name, func(t *testing.T) {
				d := inplaceSetup(t, 0)
				inplaceActions[first](d)
				if first == "reclaim" {
					delete(d.snapshots, "new")
				}
				crashDuring(t, d, name, func(d *inplace) []crashfs.Policy {
					return []crashfs.Policy{crashfs.DropAll, crashfs.Random(uint64(d.fs.Ops()))}
				})
			})
		}
	}
}

// crashDuring does an action, and at each operation of the file system looks at what crashes would leave.
func crashDuring(t *testing.T, d *inplace, name string, policies func(*inplace) []crashfs.Policy) (images int) {
	known, before := maps.Clone(d.snapshots), d.head.clone()
	d.fs.OnOp(func(n int, o crashfs.Op, err error) {
		if n%thin(4) != 0 {
			return
		}
		for i, p := range append(policies(d), crashfs.ProcessCrash) {
			images++
			after := &afterCrash{
				tb:       located{t, new(fmt.Sprintf("crash after operation %d (%v: %v), %v", n, o, err, p))},
				fs:       d.fs.CrashImage(p),
				possible: d.possible(i == len(policies(d))), known: known, clock: d.clock,
				deletes: name == "delete" || name == "reclaim",
				before:  before, putsBack: name == "put ranges back",
			}
			after.look()
		}
	})
	inplaceActions[name](d)
	d.fs.OnOp(nil)
	_ = d.p.Close(ctx)
	return images
}

// afterCrash looks at what a crash has left.
type afterCrash struct {
	tb       located
	fs       *crashfs.FS
	clock    *clock
	possible [][]byte             // what each byte of the head may be
	known    map[string]heldState // snapshots
	deletes  bool                 // of new

	before   heldState // the head
	putsBack bool      // putBackRanges of old, all or nothing
}

func (a *afterCrash) look() {
	opts := options(a.fs, a.clock)
	opts.OnEvent = func(e pool.Event) {
		if e.Kind != pool.EventRecovered {
			a.tb.Fatalf("event %+v", e)
		}
	}
	d := &inplace{tb: a.tb, fs: a.fs, opts: opts, clock: a.clock}
	d.open()
	defer func() { _ = d.p.Close(ctx) }()
	head := d.read("v")
	for off := range head {
		if !slices.ContainsFunc(a.possible, func(p []byte) bool { return p[off] == head[off] }) {
			a.tb.Fatalf("byte %d (block %d) of the volume is nothing that it was or was to be", off, off/block.Size)
		}
	}
	there := map[string][]byte{}
	list, err := d.p.Snapshots("v")
	d.must(err)
	for _, s := range list {
		there[s.Name] = d.read("v@" + s.Name)
	}
	if a.putsBack {
		now := bytes.Clone(a.before.data)
		for _, r := range putBackRanges {
			copy(now[r.Offset:r.Offset+r.Length], a.known["old"].data[r.Offset:])
		}
		switch done := len(list) > len(a.known); {
		case done && !bytes.Equal(head, now):
			a.tb.Fatalf("the ranges are not put back, and what was before is kept")
		case done && !bytes.Equal(there[list[len(list)-1].Name], a.before.data):
			a.tb.Fatalf("what was before is not kept")
		case !done && !bytes.Equal(head, a.before.data):
			a.tb.Fatalf("the volume is changed, and what was before is not kept")
		}
	}
	for name, c := range a.known {
		if there[name] == nil && a.deletes && name == "new" {
			continue
		}
		if !bytes.Equal(there[name], c.data) {
			a.tb.Fatalf("snapshot %s is not what it was", name)
		}
	}
	if clone := d.read("clone"); !bytes.Equal(clone[3*block.Size:], a.known["old"].data[3*block.Size:]) {
		a.tb.Fatalf("the clone is not what it was")
	}
	// What differs is told.
	for _, from := range []pool.PointRef{{Volume: "v", Name: "old"}, {Volume: "v", Name: "mark", Bookmark: true}} {
		changed := map[int64]bool{}
		diff, err := d.p.OpenDiff(from, pool.PointRef{Volume: "v"})
		d.must(err)
		d.must(diff.Each(ctx, func(off, length int64) error {
			for b := off / block.Size; b*block.Size < off+length; b++ {
				changed[b] = true
			}
			return nil
		}))
		diff.Close()
		for b := range int64(inplaceBlocks) {
			if lo, hi := b*block.Size, (b+1)*block.Size; !changed[b] && !bytes.Equal(head[lo:hi], a.known["old"].data[lo:hi]) {
				a.tb.Fatalf("block %d differs from %s, and the diff does not say so", b, from)
			}
		}
	}
	// What lay in the log alone is found, and comes into the file.
	d.must(d.p.Destage(ctx, "v"))
	if !bytes.Equal(d.read("v"), head) {
		a.tb.Fatalf("the volume changes when what is in the log is brought into its file")
	}
	// Overwriting everything changes no snapshot, and a rollback to it is complete.
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	for _, o := range []*block.Op{writeOp(6*block.Size, 5*block.Size), writeOp(0, inplaceBlocks*block.Size)} {
		dev.Submit(ctx, []*block.Op{o})
		d.must(o.Err)
	}
	d.must(dev.Close())
	for name, content := range there {
		if !bytes.Equal(d.read("v@"+name), content) {
			a.tb.Fatalf("snapshot %s changes when the volume is overwritten", name)
		}
	}
	_, _, err = d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "old"})
	d.must(err)
	d.must(d.p.CopyBack(ctx, "v", nil))
	if !bytes.Equal(d.read("v"), a.known["old"].data) {
		a.tb.Fatalf("after a rollback the volume is not the snapshot")
	}
	for name, content := range there {
		if !bytes.Equal(d.read("v@"+name), content) {
			a.tb.Fatalf("snapshot %s changes when the volume is rolled back", name)
		}
	}
	report, err := d.p.Check(ctx, nil)
	d.must(err)
	if len(report.Damage) > 0 {
		a.tb.Fatalf("check: %+v", report.Damage)
	}
}

// TestInplaceHeadKeepsWhatWasFlushed: what a flush has covered is there after a power cut.
func TestInplaceHeadKeepsWhatWasFlushed(t *testing.T) {
	for _, overlay := range overlays {
		d := inplaceSetup(t, overlay)
		d.submit(writeOp(0, inplaceBlocks*block.Size))
		d.submit(writeOp(3*block.Size, 4*block.Size))
		d.flush()
		d.crash(crashfs.DropAll, true)
		d.verify()
		d.must(d.p.Close(ctx))
	}
}

// TestInplaceUnderLoad: writers overwrite a volume while snapshots of it are made, read, compared and deleted: each is of one instant, in which every
// writer's last acknowledged write is, and stays as it was.
func TestInplaceUnderLoad(t *testing.T) {
	for _, overlay := range []int64{0, 12 * block.Size, -1} {
		t.Run(fmt.Sprint(overlay), func(t *testing.T) { underLoad(t, overlay) })
	}
}

func underLoad(t *testing.T, overlay int64) {
	const blocks, writers, rounds = 64, 4, 150
	dir := t.TempDir()
	o := inplaceOptions(dir)
	o.OverlayBytes = overlay
	p := openInplaceOS(t, o, path.Join(dir, "disk"), blocks*block.Size)
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	// Each writer has blocks of its own, and writes a number into the first of them before the second.
	for w := range writers {
		dev, err := p.OpenVolume("v")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer func() { _ = dev.Close() }()
			for n := uint32(1); work.Err() == nil; n++ {
				for _, lba := range []int64{int64(w), int64(w + writers + int(n)%8*writers)} {
					if !writeNumber(t, dev, int(lba), n, n%4 == 0) {
						return
					}
				}
			}
		})
	}
	sums := map[string]uint32{}
	for n := range rounds {
		name := fmt.Sprintf("s%d", n)
		if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
		content := contentOf(t, p, "v@"+name)
		for range 5 { // while its blocks are overwritten for the first time
			if again := contentOf(t, p, "v@"+name); !bytes.Equal(again, content) {
				t.Fatalf("snapshot %s changes while it is read", name)
			}
		}
		for w := range writers {
			first := binary.LittleEndian.Uint32(content[w*block.Size:])
			for k := range 8 {
				at := (w + writers + k*writers) * block.Size
				if second := binary.LittleEndian.Uint32(content[at:]); second > first {
					t.Fatalf("snapshot %s has write %d of writer %d and not the one before it (%d)", name, second, w, first)
				}
			}
		}
		sums[name] = sum(content)
		if n%3 == 2 {
			gone := fmt.Sprintf("s%d", n-1)
			if err := p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: gone}}); err != nil {
				t.Fatal(err)
			}
			delete(sums, gone)
		}
	}
	stop()
	wg.Wait()
	for name, want := range sums {
		if sum(contentOf(t, p, "v@"+name)) != want {
			t.Errorf("snapshot %s has changed", name)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func openInplaceOS(t *testing.T, o pool.Options, file string, size int64) *pool.Pool {
	t.Helper()
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: file, SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	return p
}

func contentOf(t *testing.T, p *pool.Pool, name string) []byte {
	t.Helper()
	dev, err := openEither(p, name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	b := make([]byte, dev.SizeBytes())
	for off := 0; off < len(b); off += block.Size {
		if err := dev.ReadAt(ctx, b[off:min(off+block.Size, len(b))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}
