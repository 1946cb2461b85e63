package pool_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// node is a piece of a map in the log.
type node struct {
	file   string
	offset int64
	level  byte
	delta  bool
	first  uint64
}

// nodes lists what looks like pieces of maps in segments as they were written, oldest first.
func nodes(t tb, fs *crashfs.FS) []node {
	t.Helper()
	names, err := fs.List("/pool/log")
	if err != nil {
		t.Fatal(err)
	}
	var all []node
	for _, name := range names {
		name = path.Join("/pool/log", name)
		b := readAll(t, fs, name, nil)
		for off := 0; off+48 <= len(b); off += 64 {
			if h := b[off:]; string(h[:4]) == "VNOD" && h[4] <= 4 {
				all = append(all, node{name, int64(off), h[4], h[5] == 1, binary.LittleEndian.Uint64(h[8:])})
			}
		}
	}
	return all
}

// newest returns the newest piece of a level.
func newest(t tb, fs *crashfs.FS, level byte, delta bool) node {
	t.Helper()
	for _, n := range slices.Backward(nodes(t, fs)) {
		if n.level == level && n.delta == delta {
			return n
		}
	}
	t.Fatalf("no piece of level %d, difference %t", level, delta)
	return node{}
}

// damagedPool is what the tests of repair damage: a volume with three snapshots, of which one is a fork, and a clone,
// some of it in two checkpoints and some not. Leaf 0 is changed after the last checkpoint, leaf 1 is not. Unless whole,
// some of the log was given back.
func damagedPool(t tb, whole bool) *driver {
	d := newDriver(t)
	const leaf = 1 << 20
	d.createVolume("x", 100<<10)
	d.submit("x", writeOp(0, 100<<10))
	d.deleteVolume("x")
	if !whole {
		d.reclaim()
	} else {
		d.checkpoint()
		d.checkpoint()
	}
	d.createVolume("v", 2*leaf+40<<10+512)
	d.createVolume("w", 64<<10)
	d.submit("v", writeOp(0, 400<<10), writeOp(leaf, 400<<10), writeOp(2*leaf, 40<<10+512))
	d.submit("w", writeOp(0, 64<<10))
	d.submit("w", writeOp(0, 24<<10)) // so that what is replayed lies in the file of the last checkpoint and in the next one
	d.snapshot("s1", "v", "w")
	d.checkpoint()
	d.submit("v", writeOp(8<<10, 4096), writeOp(leaf+8<<10, 4096))
	d.snapshot("s2", "v")
	d.submit("v", writeOp(16<<10, 4096), discardOp(24<<10, 8192))
	d.cloneVolume("v", "s2", "c")
	d.submit("c", writeOp(0, 4096), writeOp(leaf, 4096))
	d.checkpoint()
	d.submit("v", writeOp(32<<10, 4096))
	d.submit("w", writeOp(4096, 4096))
	d.checkpoint()
	d.submit("v", writeOp(40<<10, 8192))
	d.snapshot("s3", "v")
	d.submit("v", writeOp(48<<10, 4096))
	d.flush("v")
	d.submit("w", writeOp(0, 100)) // its header says that all before it is durable
	d.flush("w")
	return d
}

// ranges are damaged blocks by the object that shows them.
type ranges map[string]map[int64]bool

func listed(rep *pool.CheckReport) ranges {
	out := ranges{}
	for _, d := range rep.Damage {
		if d.Offset < 0 {
			continue
		}
		if out[d.Object] == nil {
			out[d.Object] = map[int64]bool{}
		}
		for off := d.Offset; off < d.Offset+d.Length; off += block.Size {
			out[d.Object][off/block.Size] = true
		}
	}
	delete(out, "(hidden)")
	return out
}

func (r ranges) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r)) {
		lbas := slices.Sorted(maps.Keys(r[name]))
		fmt.Fprintf(&b, "%s:%d+%d ", name, lbas[0], len(lbas))
	}
	return strings.TrimSpace(b.String())
}

// unreadable reads everything that a model knows. What can be read must be what the model has; it returns what cannot.
func (d *driver) unreadable(p *pool.Pool, m *model) ranges {
	d.tb.Helper()
	out := ranges{}
	read := func(name string, c content) {
		dev, err := openEither(p, name)
		if err != nil {
			d.tb.Fatal(err)
		}
		defer func() { _ = dev.Close() }()
		if dev.SizeBytes() != c.size {
			d.tb.Fatalf("%s has %d bytes, want %d", name, dev.SizeBytes(), c.size)
		}
		b := make([]byte, block.Size)
		for off := int64(0); off < c.size; off += block.Size {
			b = b[:min(block.Size, c.size-off)]
			err := dev.ReadAt(ctx, b, off)
			want := c.blocks[off/block.Size]
			if want == nil {
				want = zeros
			}
			switch {
			case errors.Is(err, block.ErrDamaged):
				if out[name] == nil {
					out[name] = map[int64]bool{}
				}
				out[name][off/block.Size] = true
			case err != nil:
				d.tb.Fatal(err)
			case !bytes.Equal(b, want[:len(b)]):
				d.tb.Fatalf("%s at %d reads as something else", name, off)
			}
		}
	}
	for name, v := range m.volumes {
		read(name, v.content)
		for s, snap := range v.snapshots {
			read(name+"@"+s, snap.content)
		}
	}
	if n := len(p.Volumes()); n != len(m.volumes) {
		d.tb.Fatalf("there are %d volumes, want %d", n, len(m.volumes))
	}
	return out
}

// own lists the findings that are of the pool itself.
func own(rep *pool.CheckReport) []string {
	var out []string
	for _, d := range rep.Damage {
		if d.Offset < 0 {
			out = append(out, d.Object)
		}
	}
	return out
}

// hurt is one kind of damage.
type hurt struct {
	name string
	do   func(d *driver, t *testing.T, fs *crashfs.FS)
	// What a check without a repair says: what is refused, which parts of the pool and which ranges cannot be read.
	refused string
	own     []string
	ranges  string
	leaks   []string
	after   string // ranges that are left by a repair; "same" for what was found
	whole   bool   // everything that ever was in the log is there
	force   bool
	gone    bool // it is no pool any more
	past    int  // states before the present that it goes back to
}

func flip(n node) func(*testing.T, *crashfs.FS) {
	return func(t *testing.T, fs *crashfs.FS) { rot(t, fs, n.file, n.offset+50) }
}

var hurts = []hurt{
	{name: "nothing", do: func(*driver, *testing.T, *crashfs.FS) {}},
	{
		name: "payload in a checkpoint",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			b := payloadOf(t, fs, 0) // the first write of v
			rot(t, fs, b.file, b.offset+b.headerBlocks*block.Size+50*block.Size+9)
		},
		ranges: "c:50+1 v:50+1 v@s1:50+1 v@s2:50+1 v@s3:50+1", after: "same",
	},
	{
		name: "leaf that replay needs not",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			for _, n := range nodes(t, fs) { // all versions of leaf 2, which nobody has changed since s1
				if n.level == 0 && n.first == 512 {
					flip(n)(t, fs)
				}
			}
		},
		ranges: "c:512+11 v:512+11 v@s1:512+11 v@s2:512+11 v@s3:512+11", after: "same",
	},
	{
		name: "leaf of the oldest snapshot alone",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			for _, n := range nodes(t, fs) {
				if n.level == 0 && n.first == 0 && !n.delta { // w's, which is as old, comes later
					flip(n)(t, fs)
					return
				}
			}
		},
		ranges: "v@s1:0+256", after: "same", // what later states share with it must not go
	},
	{
		name: "leaves that replay needs",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			for _, n := range nodes(t, fs) {
				if n.level == 0 && n.first == 0 {
					flip(n)(t, fs)
				}
			}
		},
		refused: "checksum of the node", own: []string{"pool"},
		// What replay wrote is there again: the blocks that v and s3 have got since.
		ranges: "c:0+256 v:0+253 v@s1:0+256 v@s2:0+256 v@s3:0+254 w:1+15 w@s1:0+16", after: "same",
	},
	{
		name: "leaves that replay needs, while the log is whole", whole: true,
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			for _, n := range nodes(t, fs) {
				if n.level == 0 && n.first == 0 {
					flip(n)(t, fs)
				}
			}
		},
		refused: "checksum of the node", own: []string{"pool"}, ranges: "", // all of it is made again from the first batch on
	},
	{
		name: "newest difference",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			flip(newest(t, fs, 0, true))(t, fs)
		},
		// The older checkpoint has another one.
	},
	{
		name: "inner node",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			for _, n := range nodes(t, fs) {
				if n.level == 3 {
					flip(n)(t, fs)
				}
			}
		},
		refused: "checksum of the node", own: []string{"pool"}, ranges: "c:0+523 v:0+520 v@s1:0+523 v@s2:0+523 v@s3:0+521 w:1+15 w@s1:0+16", after: "same",
	},
	{
		name: "newest catalogue image",
		do: func(d *driver, t *testing.T, fs *crashfs.FS) {
			segment, off := d.p.CatalogueAt()
			rot(t, fs, segmentPath(segment), off+10)
		},
		own: []string{"checkpoint 5"},
	},
	{
		name: "both catalogue images",
		do: func(d *driver, t *testing.T, fs *crashfs.FS) {
			var images []batch
			for _, b := range batches(t, fs) {
				if holdsImage(t, fs, b) {
					images = append(images, b)
				}
			}
			for _, b := range images[len(images)-2:] {
				rot(t, fs, b.file, b.offset+b.headerBlocks*block.Size+10)
			}
		},
		refused: "catalogue's image", own: []string{"pool", "checkpoint 4", "checkpoint 5"}, // an older one is still there
	},
	{
		name:    "older superblock slot",
		do:      func(_ *driver, t *testing.T, fs *crashfs.FS) { rot(t, fs, superblockPath, slotOf(4)+20) },
		refused: "", own: []string{"superblock"},
	},
	{
		name: "newer superblock slot",
		do:   func(_ *driver, t *testing.T, fs *crashfs.FS) { rot(t, fs, superblockPath, slotOf(5)+20) },
		own:  []string{"superblock"},
	},
	{
		name: "both superblock slots",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			rot(t, fs, superblockPath, slotOf(4)+20)
			rot(t, fs, superblockPath, slotOf(5)+900)
		},
		refused: "neither slot", own: []string{"pool", "superblock"},
	},
	{
		name: "superblock is missing",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			if err := errors.Join(fs.Remove(superblockPath), fs.SyncDir("/pool")); err != nil {
				t.Fatal(err)
			}
		},
		refused: "no superblock", gone: true, own: []string{"pool", "superblock"},
	},
	{
		name: "flushed header",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			b := last(t, fs, 2) // the write of two blocks before s3
			rot(t, fs, b.file, b.offset+40)
		},
		refused: "batch", own: []string{"pool"}, force: true, past: 6,
	},
	{
		name: "header behind what is known durable",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			all := batches(t, fs)
			rot(t, fs, all[len(all)-1].file, all[len(all)-1].offset+40)
		},
		past: 2, // it cannot be told from a torn tail
	},
	{
		name: "segment of the replay is missing",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			b := last(t, fs, 2)
			if err := errors.Join(fs.Remove(b.file), fs.SyncDir("/pool/log")); err != nil {
				t.Fatal(err)
			}
		},
		refused: "batch", own: []string{"pool", "checkpoint 5"}, force: true, past: 6, // which it is back at
	},
	{
		name: "segment of data is missing",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			b := payloadOf(t, fs, 0)
			if err := errors.Join(fs.Remove(b.file), fs.SyncDir("/pool/log")); err != nil {
				t.Fatal(err)
			}
		},
		ranges: "any", after: "same",
	},
	{
		name: "segment of data is cut short",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			b := payloadOf(t, fs, 0)
			f, err := fs.Open(b.file)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Truncate(b.offset+b.headerBlocks*block.Size+5*block.Size), f.Sync(), f.Close()); err != nil {
				t.Fatal(err)
			}
		},
		ranges: "any", after: "same",
	},
	{
		name: "stray files",
		do: func(_ *driver, t *testing.T, fs *crashfs.FS) {
			for _, name := range []string{"/pool/superblock.new", "/pool/notes", "/pool/log/0000000000000001.dns.new", "/pool/log/other"} {
				f, err := fs.Create(name)
				if err == nil {
					err = errors.Join(f.WriteAt([][]byte{make([]byte, 100)}, 0), f.Sync(), f.Close(), fs.SyncDir(path.Dir(name)))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		},
		leaks: []string{"log/0000000000000001.dns.new", "log/other", "notes", "superblock.new"},
	},
}

// payloadOf returns the n-th batch of a lot of data.
func payloadOf(t *testing.T, fs *crashfs.FS, n int) batch {
	t.Helper()
	for _, b := range batches(t, fs) {
		if b.payloadBlocks >= 100 {
			if n--; n < 0 {
				return b
			}
		}
	}
	t.Fatal("no such batch")
	return batch{}
}

// holdsImage tells whether a batch holds a catalogue image, which begins with a map of five or six keys.
func holdsImage(t *testing.T, fs *crashfs.FS, b batch) bool {
	data := readAll(t, fs, b.file, nil)[b.offset:]
	return data[80] == 4 && b.payloadBlocks > 0 && data[b.headerBlocks*block.Size]&0xf0 == 0xa0
}

// TestRepair damages a pool in every way, and demands that a check finds exactly that and changes nothing, that a repair makes of
// it what it can, and that everything that was not damaged reads right.
func TestRepair(t *testing.T) {
	for _, h := range hurts {
		t.Run(h.name, func(t *testing.T) {
			d := damagedPool(t, h.whole)
			want := d.history[len(d.history)-1-h.past]
			d.p.Abandon()
			d.fs = d.fs.CrashImage(crashfs.ProcessCrash)
			d.opts.FS = d.fs
			h.do(d, t, d.fs)
			before := digest(t, d.fs)
			if h.refused != "" {
				cause := pool.ErrDamagedLog
				if h.gone {
					cause = pool.ErrNotPool
				}
				d.demandRefused(d.fs, cause, h.refused)
			}

			rep, err := pool.CheckOffline(ctx, d.opts, nil)
			if err != nil {
				t.Fatal(err)
			}
			if digest(t, d.fs) != before {
				t.Fatal("the check changed the pool")
			}
			if got := own(&rep.After); !slices.Equal(got, h.own) || (rep.Refused != "") != (h.refused != "") || !strings.Contains(rep.Refused, h.refused) {
				t.Fatalf("refused: %q, damaged: %v of %+v; want %q, %v", rep.Refused, got, rep.After.Damage, h.refused, h.own)
			}
			if got := listed(&rep.After).String(); got != h.ranges && h.ranges != "any" {
				t.Errorf("unreadable: %s\nwant        %s", got, h.ranges)
			}
			var leaks []string
			for _, l := range rep.After.Leaks {
				leaks = append(leaks, l.Object)
			}
			if slices.Sort(leaks); !slices.Equal(leaks, h.leaks) {
				t.Errorf("leaks %v, want %v", leaks, h.leaks)
			}
			if (rep.Cut != nil) != h.force {
				t.Fatalf("cut: %+v", rep.Cut)
			}

			if h.force {
				if _, err := pool.RepairOffline(ctx, d.opts, false, nil); !errors.Is(err, pool.ErrWouldLose) {
					t.Fatalf("a repair that loses batches ends with %v", err)
				}
				if digest(t, d.fs) != before {
					t.Fatal("a repair that was refused changed the pool")
				}
			}
			rep, err = pool.RepairOffline(ctx, d.opts, h.force, nil)
			if err != nil {
				t.Fatal(err)
			}
			found, left := listed(&rep.Before).String(), listed(&rep.After).String()
			if (h.after == "same") != (left != "") || h.after == "same" && left != found || len(own(&rep.After)) > 0 {
				t.Errorf("after the repair: %s, %v; before %s; done: %v, left: %v", left, own(&rep.After), found, rep.Done, rep.Left)
			}
			for _, l := range rep.After.Leaks {
				if !strings.Contains(l.Message, "not of this pool") {
					t.Errorf("after the repair: %+v", l)
				}
			}
			again, err := pool.CheckOffline(ctx, d.opts, nil)
			if err != nil || listed(&again.After).String() != left || len(own(&again.After)) > 0 || again.Refused != "" {
				t.Errorf("checked again: %+v, %v", again.After.Damage, err)
			}
			d.demandHonest(want, &rep.After)
		})
	}
}

// demandHonest opens the pool and demands that it holds what m says, but for the ranges that a check has listed, which
// cannot be read, until they are written.
func (d *driver) demandHonest(m *model, rep *pool.CheckReport) {
	d.tb.Helper()
	d.open()
	got, want := d.unreadable(d.p, m), listed(rep)
	if got.String() != want.String() {
		d.tb.Fatalf("unreadable: %s\nlisted      %s", got, want)
	}
	// What is lost and shown by a volume is there again when it is overwritten, and a snapshot has it in between.
	if _, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "later"}); err != nil {
		d.tb.Fatal(err)
	}
	dev, err := d.p.OpenVolume("v")
	if err != nil {
		d.tb.Fatal(err)
	}
	size := dev.SizeBytes() &^ (block.Size - 1)
	write := &block.Op{Kind: block.OpWrite, Length: size, Data: stamp(size)}
	dev.Submit(ctx, []*block.Op{write})
	back := make([]byte, size)
	if err := errors.Join(write.Err, dev.ReadAt(ctx, back, 0), dev.Close()); err != nil || !bytes.Equal(back, write.Data) {
		d.tb.Fatalf("overwritten: %v", err)
	}
	rep2, err := d.p.Check(ctx, nil)
	if err != nil {
		d.tb.Fatal(err)
	}
	after := listed(&rep2)
	delete(want["v"], dev.SizeBytes()/block.Size-1)
	for lba := range after["v"] {
		if lba*block.Size < size {
			d.tb.Fatalf("overwritten, and still listed: %v", after)
		}
	}
	if fmt.Sprint(len(after["v@later"])) != fmt.Sprint(len(got["v"])) {
		d.tb.Fatalf("a snapshot lists %v, and v had %v", after["v@later"], got["v"])
	}
	if _, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "later"}); err != nil {
		d.tb.Fatal(err)
	}
	if again := d.unreadable(d.p, m); again.String() != got.String() {
		d.tb.Fatalf("rolled back: unreadable %s, and was %s", again, got)
	}
	if _, err := d.p.Reclaim(ctx); err != nil && !strings.Contains(err.Error(), "no such file") {
		d.tb.Fatal(err)
	}
	if err := d.p.Close(ctx); err != nil {
		d.tb.Fatal(err)
	}
}
