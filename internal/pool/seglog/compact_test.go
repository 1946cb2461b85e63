package seglog

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"varve/internal/block"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// cleaning is a log whose old segments are compacted, with the blocks that must stay.
type cleaning struct {
	t    *testing.T
	fs   *crashfs.FS
	log  *Log
	crcs map[Addr]uint32 // of live blocks
	from Position
}

func cleaningConfig(fs *crashfs.FS) Config {
	c := config(fs)
	c.SegmentBytes = 1 << 20
	return c
}

// newCleaning returns a log of some full segments of 256 blocks.
func newCleaning(t *testing.T, segments uint64) *cleaning {
	t.Helper()
	c := &cleaning{t: t, fs: crashfs.New(), crcs: map[Addr]uint32{}}
	if err := errors.Join(c.fs.Mkdir("/log"), c.fs.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	c.log = New(cleaningConfig(c.fs))
	if _, err := c.log.Recover(Position{}, 0, func(uint64, []Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); c.log.Position().Segment <= segments; n++ {
		batch := numbered(n, 20)
		if _, err := c.log.Append(batch); err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			for i, crc := range e.CRCs {
				c.crcs[e.Addr.Plus(int64(i)*block.Size)] = crc
			}
		}
	}
	if err := c.log.Flush(c.log.LastSeq()); err != nil {
		t.Fatal(err)
	}
	c.from = c.log.Position()
	return c
}

// kill makes blocks of a segment dead.
func (c *cleaning) kill(segment uint64, dead func(i int) bool) {
	for _, a := range slices.Sorted(maps.Keys(c.crcs)) { // in order, so that what is random can be repeated
		if a.Segment() == segment && dead(int(a.Offset()/block.Size)) {
			delete(c.crcs, a)
		}
	}
}

// of are the live blocks of a segment.
func (c *cleaning) of(segment uint64) map[Addr]uint32 {
	m := maps.Clone(c.crcs)
	maps.DeleteFunc(m, func(a Addr, _ uint32) bool { return a.Segment() != segment })
	return m
}

// live gives the sets of live blocks of a file.
func (c *cleaning) live(files ...File) map[uint64]BlockSet {
	sets := map[uint64]BlockSet{}
	for a := range c.crcs {
		if slices.ContainsFunc(files, func(f File) bool { return slices.Contains(f.Segments, a.Segment()) }) {
			if sets[a.Segment()] == nil {
				sets[a.Segment()] = NewBlockSet(c.log.SegmentBlocks())
			}
			sets[a.Segment()].Add(int(a.Offset() / block.Size))
		}
	}
	return sets
}

// demand reads every live block.
func (c *cleaning) demand(l *Log, where string) {
	c.t.Helper()
	b := make([]byte, block.Size)
	for a, crc := range c.crcs {
		if err := l.ReadAt(a, b); err != nil || Checksum(b) != crc {
			c.t.Fatalf("%s: block at %s: %v", where, a, err)
		}
	}
}

// demandCrash opens what a crash leaves.
func (c *cleaning) demandCrash(fs *crashfs.FS, where string) *Log {
	c.t.Helper()
	l := New(cleaningConfig(fs))
	if _, err := l.Recover(c.from, 0, func(uint64, []Entry) error { return nil }); err != nil {
		c.t.Fatalf("%s: %v", where, err)
	}
	c.demand(l, where)
	return l
}

func (c *cleaning) files() []File {
	c.t.Helper()
	files, err := c.log.Files()
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f File) bool {
		return len(f.Segments) == 0 || f.Segments[len(f.Segments)-1] >= c.from.Segment
	})
}

// compact compacts files and returns what was done.
func (c *cleaning) compact(files ...File) Compacted {
	c.t.Helper()
	k := c.log.NewCompactor()
	var sum Compacted
	sets := c.live(files...)
	for _, f := range files {
		done, err := k.Compact(f, sets)
		if err != nil {
			c.t.Fatal(err)
		}
		sum.add(done)
	}
	done, err := k.Flush()
	if err != nil {
		c.t.Fatal(err)
	}
	sum.add(done)
	return sum
}

// Each of the ways to make a file smaller is taken where it gives most, and what is live stays.
func TestCompact(t *testing.T) {
	all := func(int) bool { return true }
	for name, k := range map[string]struct {
		dead func(i int) bool
		want Compacted
	}{
		"all dead":                {all, Compacted{Removed: 1}},
		"few left":                {func(i int) bool { return i%40 != 7 }, Compacted{Packed: 1}},
		"one left":                {func(i int) bool { return i != 7 }, Compacted{Packed: 1}},
		"every second":            {func(i int) bool { return i%2 == 0 }, Compacted{Rewritten: 1}},
		"a long run":              {func(i int) bool { return i > 40 && i < 70 }, Compacted{Punched: 1}},
		"one half":                {func(i int) bool { return i >= 128 }, Compacted{Punched: 1}},
		"long runs, little each":  {func(i int) bool { return i%20 >= 2 }, Compacted{Rewritten: 1}},
		"a run and every second":  {func(i int) bool { return i < 100 || i%2 == 0 }, Compacted{Rewritten: 1}},
		"next to nothing is dead": {func(i int) bool { return i%30 == 3 }, Compacted{}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCleaning(t, 2)
			c.kill(1, k.dead)
			before := c.files()[0]
			done := c.compact(before)
			copied := done.Copied
			freed := done.Freed
			done.Freed, done.Copied = 0, 0
			if done != k.want {
				t.Errorf("done: %+v, want %+v", done, k.want)
			}
			after := int64(0)
			for _, f := range c.files() {
				if f.Segments[0] == 1 {
					after = f.Bytes
				}
			}
			if freed != before.Bytes-after {
				t.Errorf("%d bytes were freed, and the file went from %d to %d", freed, before.Bytes, after)
			}
			if (copied > 0) != (k.want.Rewritten+k.want.Packed > 0) || copied > after {
				t.Errorf("%d bytes were copied for a file of %d", copied, after)
			}
			c.demand(c.log, "now")
			c.log.Close()
			c.demandCrash(c.fs.CrashImage(crashfs.DropAll), "after a power cut")
		})
	}
}

// Random blocks die and random files are compacted, together in any number; a crash at any operation leaves
// every live block, and nothing of what is no longer needed once the log was opened.
func TestCompactAtEveryCrash(t *testing.T) {
	var sum Compacted
	for seed := range uint64(5) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		c := newCleaning(t, 4)
		for round := range 5 {
			for segment := uint64(1); segment < c.from.Segment; segment++ {
				switch rnd.IntN(4) {
				case 0: // scattered
					c.kill(segment, func(int) bool { return rnd.IntN(3) == 0 })
				case 1: // long runs
					from := rnd.IntN(256)
					c.kill(segment, func(i int) bool { return i >= from && i < from+80 })
				case 2: // nearly all, or all
					if n := rnd.IntN(4); n < 2 {
						c.kill(segment, func(int) bool { return n == 0 || rnd.IntN(30) != 0 })
					}
				}
			}
			files := c.files()
			rnd.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
			files = files[:rnd.IntN(len(files)+1)]
			c.fs.OnOp(func(n int, op crashfs.Op, _ error) {
				for _, p := range []crashfs.Policy{crashfs.ProcessCrash, crashfs.KeepAll, crashfs.DropAll, crashfs.Torn, crashfs.Random(uint64(n))} {
					where := fmt.Sprintf("seed %d, round %d, after %v, %v", seed, round, op, p)
					l := c.demandCrash(c.fs.CrashImage(p), where)
					l.Close()
				}
			})
			sum.add(c.compact(files...))
			c.fs.OnOp(nil)
			c.demand(c.log, "now")
			if rnd.IntN(3) == 0 { // what a crash left goes on
				c.log.Close()
				c.fs = c.fs.CrashImage(crashfs.Random(seed))
				c.log = c.demandCrash(c.fs, "reopened")
			}
		}
		c.log.Close()
	}
	if sum.Packed == 0 || sum.Rewritten == 0 || sum.Punched == 0 || sum.Removed == 0 {
		t.Errorf("done: %+v", sum)
	}
}

// Leftovers of many segments share a file, which one read error does not keep from being made, and which is found by
// either of its headers.
func TestPacks(t *testing.T) {
	const segments = 20
	c := newCleaning(t, segments)
	for id := uint64(1); id <= segments; id++ {
		c.kill(id, func(i int) bool { return i != int(id) && i != 100 })
	}
	files := c.files()
	bad := c.log.segments.name(3)
	remove := c.fs.Inject(crashfs.Fault{Err: syscall.EIO, Times: 1 << 30, Match: func(op crashfs.Op) bool {
		return op.Kind == crashfs.Read && op.Path == bad
	}})
	k, sets := c.log.NewCompactor(), c.live(files...)
	for _, f := range files {
		if _, err := k.Compact(f, sets); err != nil {
			t.Fatal(err)
		}
	}
	done, err := k.Flush()
	if !errors.Is(err, syscall.EIO) || done.Packed != segments-1 {
		t.Fatalf("done: %+v, %v", done, err)
	}
	remove()
	c.demand(c.log, "now")
	if n := len(c.files()); n != 2 {
		t.Fatalf("%d files", n)
	}
	c.log.Close()
	for _, at := range []string{"first", "second", "both"} {
		fs := c.fs.CrashImage(crashfs.KeepAll)
		f, err := fs.Open(c.log.segments.packName(2)) // the first attempt took a number, too
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		rot := func(off int64) {
			if err := f.WriteAt([][]byte{{0xff}}, off); err != nil {
				t.Fatal(err)
			}
		}
		if at != "second" {
			rot(9)
		}
		if at != "first" {
			rot(size - block.Size + 9)
		}
		if at != "both" {
			c.demandCrash(fs, at+" header unsound").Close()
			continue
		}
		// What cannot be found is lost, is said to be, and is kept.
		l := New(cleaningConfig(fs))
		if _, err := l.Recover(c.from, 0, func(uint64, []Entry) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := l.ReadAt(MakeAddr(5, 5*block.Size), make([]byte, block.Size)); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("a block of an unreadable pack: %v", err)
		}
		files, err := l.Files()
		if err != nil || !slices.ContainsFunc(files, func(f File) bool { return f.Pack == 2 && f.Segments == nil && f.Bytes > 0 }) {
			t.Errorf("files: %+v, %v", files, err)
		}
		l.Close()
	}
}

// Without any room for a copy, short holes give back what is dead.
func TestCompactOnAFullDisk(t *testing.T) {
	c := newCleaning(t, 4)
	for id := uint64(1); id <= 3; id++ {
		c.kill(id, func(i int) bool { return i%2 == 0 })
	}
	total, free, err := c.fs.Space("/log")
	if err != nil {
		t.Fatal(err)
	}
	c.fs.SetCapacity(total - free)
	files := c.files()
	done := c.compact(files[:3]...)
	if done.Punched != 3 || done.Copied != 0 || done.Freed < (files[0].Bytes+files[1].Bytes+files[2].Bytes)/3 {
		t.Errorf("done: %+v", done)
	}
	c.demand(c.log, "now")
	c.log.Close()
	c.fs.SetCapacity(1 << 40) // holes that a power cut forgets leave none
	c.demandCrash(c.fs.CrashImage(crashfs.DropAll), "after a power cut")
}

// Where little is left of each of many segments, and the disk has no room for one pack of it all, smaller packs make room for
// each other; and where there is none for any, holes do.
func TestPacksOnAFullDisk(t *testing.T) {
	const segments = 40
	for _, room := range []int64{0, 64 << 10} {
		t.Run(fmt.Sprintf("%d KiB are left", room>>10), func(t *testing.T) {
			c := newCleaning(t, segments)
			for id := uint64(1); id <= segments; id++ {
				c.kill(id, func(i int) bool { return i%24 != 5 })
			}
			c.fs.SetCapacity(c.fs.UsedBytes() + room)
			files := c.files()
			done := c.compact(files...)
			if room == 0 && done.Punched == 0 || room > 0 && (done.Packed != segments || len(c.files()) > 10) {
				t.Errorf("done: %+v; %d files", done, len(c.files()))
			}
			if all := int64(segments) << 20; done.Freed < all*9/10 {
				t.Errorf("%d of %d bytes were given back", done.Freed, all)
			}
			c.demand(c.log, "now")
			c.log.Close()
			c.fs.SetCapacity(1 << 40) // holes that a power cut forgets leave none
			c.demandCrash(c.fs.CrashImage(crashfs.DropAll), "after a power cut")
		})
	}
}

// What is dead in a pack is given back on a disk that has no room for another one.
func TestHolesInPacks(t *testing.T) {
	const segments = 30
	c := newCleaning(t, segments)
	for id := uint64(1); id <= segments; id++ {
		c.kill(id, func(i int) bool { return i%40 != 5 })
	}
	c.compact(c.files()...)
	for id := uint64(1); id <= segments; id++ {
		c.kill(id, func(i int) bool { return id%3 == 0 || i > 100 })
	}
	c.fs.SetCapacity(c.fs.UsedBytes())
	files := c.files()
	if len(files) != 1 || files[0].Pack == 0 {
		t.Fatalf("files: %+v", files)
	}
	if done := c.compact(files...); done.Punched != 1 || done.Freed < files[0].Bytes/2 {
		t.Errorf("of %d bytes: %+v", files[0].Bytes, done)
	}
	c.demand(c.log, "now")
	c.log.Close()
	c.fs.SetCapacity(1 << 40)
	c.demandCrash(c.fs.CrashImage(crashfs.DropAll), "after a power cut")
}

// A file system that does not free what is punched is asked once.
func TestHolesThatGiveNothing(t *testing.T) {
	c := newCleaning(t, 3)
	c.log.noHoles.Store(true)
	c.kill(1, func(i int) bool { return i >= 128 })
	if done := c.compact(c.files()[0]); done.Rewritten != 1 {
		t.Errorf("done: %+v", done)
	}
	c.demand(c.log, "now")
	c.log.Close()
}

// A reader that opens a segment's file while another takes its place, or while it is written again as another segment,
// finds what it looks for.
func TestOpenWhileFilesChange(t *testing.T) {
	c := newCleaning(t, 2)
	c.kill(1, func(i int) bool { return i%2 == 0 })
	opens := 0
	var inside func()
	fs := &openHook{FS: c.fs, opened: func() {
		opens++
		if f := inside; f != nil {
			inside = nil
			f()
		}
	}}
	c.log.Close()
	cfg := cleaningConfig(c.fs)
	cfg.FS = fs
	c.log = New(cfg)
	if _, err := c.log.Recover(c.from, 0, func(uint64, []Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.log.KeepSpares(1 << 30); err != nil {
		t.Fatal(err)
	}
	inside = func() {
		c.compact(c.files()[0])
		for at := c.log.Position().Segment; c.log.Position().Segment < at+2; { // the spare among them
			if _, err := c.log.Append(numbered(1000, 20)); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.crcs = c.of(1)
	c.demand(c.log, "while it was rewritten")
	if opens == 0 || inside != nil {
		t.Error("nothing was opened")
	}
	c.demand(c.log, "later")
	c.log.Close()
}

// openHook tells of every file that was opened, before its opener has it.
type openHook struct {
	vfs.FS
	opened func()
}

func (h *openHook) Open(name string) (vfs.File, error) {
	f, err := h.FS.Open(name)
	if err == nil {
		h.opened()
	}
	return f, err
}
