package pool_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// Damage that clients meet is an event that names volume, offset and place, once for each place, however often and through
// whatever it is read or written.
func TestDamageIsToldOnce(t *testing.T) {
	var events []pool.Event
	d := newDriver(t)
	d.opts.OnEvent = func(e pool.Event) {
		if e.Kind == pool.EventDamage {
			events = append(events, e)
		}
	}
	d.createVolume("v", 1<<20)
	d.submit("v", writeOp(0, 64<<10))
	d.snapshot("s", "v")
	d.checkpoint()
	d.submit("v", writeOp(512<<10, 64<<10))
	d.flush("v")
	for _, b := range batches(t, d.fs) {
		if b.payloadBlocks == 16 { // both writes
			rot(t, d.fs, b.file, b.offset+(b.headerBlocks+3)*block.Size)
			rot(t, d.fs, b.file, b.offset+(b.headerBlocks+5)*block.Size)
		}
	}
	d.reopen()
	for range 3 {
		for _, name := range []string{"v", "v@s"} {
			dev, err := openEither(d.p, name)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 64<<10)
			if err := dev.ReadAt(ctx, b, 0); !errors.Is(err, block.ErrDamaged) {
				t.Fatal(err)
			}
			if err := dev.ReadAt(ctx, b[:8192], 16<<10+1000); !errors.Is(err, block.ErrDamaged) {
				t.Fatal(err)
			}
			if name == "v" { // a part of a block needs the rest of it
				w := writeOp(512<<10+3*block.Size+7, 100)
				dev.Submit(ctx, []*block.Op{w})
				if !errors.Is(w.Err, block.ErrDamaged) {
					t.Fatal(w.Err)
				}
			}
			if err := dev.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got []string
	for _, e := range events {
		got = append(got, e.Object+" "+e.Message)
	}
	want := []string{`volume "v" reading 4096 bytes at 12288: `, `volume "v" reading 4096 bytes at 20480: `, `volume "v" writing 4096 bytes at 536576: `}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("told:\n%s", strings.Join(got, "\n"))
	}
	d.p.Abandon()
}

// A sector in a payload that may not have been flushed cannot be read: the pool is refused, and a repair keeps the
// batch and everything else in it.
func TestRepairKeepsABatchWithAnUnreadableSector(t *testing.T) {
	d := crashSetup(t)
	d.submit("b", writeOp(0, 16<<10))
	hurt := last(t, d.fs, 4)
	d.p.Abandon()
	d.fs = d.fs.CrashImage(crashfs.KeepAll)
	k := &disk{FS: d.fs, bad: &crashfs.Op{Path: hurt.file, Offset: hurt.offset + (hurt.headerBlocks+2)*block.Size, Length: block.Size}}
	d.opts.FS = k
	if p, err := pool.Open(ctx, d.opts); err == nil {
		p.Abandon()
		t.Fatal("the pool is opened")
	}
	rep, err := pool.CheckOffline(ctx, d.opts, nil)
	if got := listed(&rep.After).String(); err != nil || rep.Refused == "" || rep.Cut != nil || got != "b:2+1" {
		t.Fatalf("%+v, %s, %v", rep, got, err)
	}
	rep, err = pool.RepairOffline(ctx, d.opts, false, nil)
	if got := listed(&rep.After).String(); err != nil || got != "b:2+1" {
		t.Fatalf("%s, %v", got, err)
	}
	d.open()
	if got := d.unreadable(d.p, d.present()).String(); got != "b:2+1" {
		t.Errorf("unreadable: %s", got)
	}
	d.p.Abandon()
	// The sector comes back, and nothing was lost.
	k.bad = nil
	d.open()
	d.verify()
	d.p.Abandon()
}

// A header that cannot be read may have been flushed: the log is cut off there only by an explicit choice.
func TestRepairDoesNotCutAtAnUnreadableHeaderByItself(t *testing.T) {
	d := crashSetup(t)
	before := d.present()
	d.submit("b", writeOp(0, 16<<10))
	hurt := last(t, d.fs, 4)
	d.p.Abandon()
	d.fs = d.fs.CrashImage(crashfs.KeepAll)
	k := &disk{FS: d.fs, bad: &crashfs.Op{Path: hurt.file, Offset: hurt.offset, Length: block.Size}}
	d.opts.FS = k
	rep, err := pool.CheckOffline(ctx, d.opts, nil)
	if err != nil || rep.Cut == nil || rep.Cut.FirstSeq != hurt.seq {
		t.Fatalf("%+v, %v", rep, err)
	}
	if _, err := pool.RepairOffline(ctx, d.opts, false, nil); !errors.Is(err, pool.ErrWouldLose) {
		t.Fatalf("repaired: %v", err)
	}
	rep, err = pool.RepairOffline(ctx, d.opts, true, nil)
	if err != nil || rep.Cut == nil || len(rep.After.Damage) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	d.open()
	if got := d.dump(d.p); got != before.String() {
		t.Errorf("the pool holds\n%s\nwant\n%s", got, before)
	}
	d.p.Abandon()
}

// A forced repair says what it gives up, for each volume, and what happened to volumes and snapshots. What it has
// given up does not come back, not even where the superblock is lost later.
func TestForcedRepairSaysWhatIsLost(t *testing.T) {
	d := damagedPool(t, false)
	d.snapshot("s4", "v", "w")
	d.rename("c", "clone")
	d.deleteSnapshot("v", "s1")
	d.submit("w", writeOp(0, 8192))
	d.checkpoint()
	want := d.history[len(d.history)-1-11]
	d.p.Abandon()
	d.fs = d.fs.CrashImage(crashfs.KeepAll)
	d.opts.FS = d.fs
	// The newest checkpoint would lead past the damage.
	rot(t, d.fs, superblockPath, slotOf(d.p.Info().Checkpoints)+20)
	for _, b := range batches(t, d.fs) {
		data := readAll(t, d.fs, b.file, nil)[b.offset:]
		if b.seq > last(t, d.fs, 2).seq && data[80] == 5 { // its record
			rot(t, d.fs, b.file, b.offset+100)
		}
	}
	var twos []batch // writes of two blocks: the last but one is that to v before s3
	for _, b := range batches(t, d.fs) {
		if data := readAll(t, d.fs, b.file, nil)[b.offset:]; b.payloadBlocks == 2 && data[80] == 1 {
			twos = append(twos, b)
		}
	}
	bad := twos[len(twos)-2]
	rot(t, d.fs, bad.file, bad.offset+40)
	rep, err := pool.RepairOffline(ctx, d.opts, true, nil)
	if err != nil || rep.Cut == nil {
		t.Fatalf("%+v, %v", rep, err)
	}
	c := rep.Cut
	if c.FirstSeq != bad.seq || c.LastSeq <= c.FirstSeq || c.Unreadable < 1 {
		t.Errorf("%+v", c)
	}
	var writes []string
	for _, w := range c.Writes {
		writes = append(writes, fmt.Sprintf("%s %d", w.Volume, w.Blocks))
	}
	if want := []string{"v 1", "w 3"}; !slices.Equal(writes, want) {
		t.Errorf("writes %v, want %v", writes, want)
	}
	if want := []string{
		"snapshots created: v@s3", "snapshots created: v@s4 w@s4", `volume "c" renamed or labelled, as "clone"`, "snapshots deleted: v@s1",
	}; !slices.Equal(c.Operations, want) {
		t.Errorf("operations %q, want %q", c.Operations, want)
	}
	d.open()
	if got := d.dump(d.p); got != want.String() {
		t.Errorf("the pool holds\n%s\nwant\n%s", got, want)
	}
	d.possible = []*model{want}
	d.submit("w", writeOp(4096, 4096))
	d.flush("w")
	d.reopen()
	d.verify()
	if err := d.p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	rot(t, d.fs, superblockPath, 20)
	rot(t, d.fs, superblockPath, block.Size+20)
	if rep, err = pool.RepairOffline(ctx, d.opts, false, nil); err != nil || rep.Cut != nil {
		t.Fatalf("%+v, %v", rep, err)
	}
	d.open()
	d.verify()
	d.p.Abandon()
}

// A rewritten segment has its header twice. Without either, what it holds cannot be read, and nothing else.
func TestCheckOfRewrittenSegments(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 1<<20)
	for i := range int64(8) {
		d.submit("v", writeOp(i*64<<10, 64<<10))
	}
	d.submit("v", writeOp(8<<10, 12<<10)) // most of the first segment stays
	d.snapshot("s", "v")
	d.reclaim()
	names, err := d.fs.List("/pool/log")
	if err != nil {
		t.Fatal(err)
	}
	var rewritten []string
	for _, n := range names {
		if path.Ext(n) == ".dns" || path.Ext(n) == ".pak" {
			rewritten = append(rewritten, path.Join("/pool/log", n))
		}
	}
	if len(rewritten) == 0 {
		t.Fatalf("nothing is rewritten: %v", names)
	}
	d.p.Abandon()
	one := d.fs.CrashImage(crashfs.KeepAll)
	rot(t, one, rewritten[0], 70)
	d.opts.FS = one
	if rep, err := pool.CheckOffline(ctx, d.opts, nil); err != nil || len(rep.After.Damage) > 0 {
		t.Errorf("with one header: %+v, %v", rep.After.Damage, err)
	}
	both := one.CrashImage(crashfs.KeepAll)
	rot(t, both, rewritten[0], int64(len(readAll(t, both, rewritten[0], nil)))-block.Size+70)
	d.opts.FS = both
	rep, err := pool.CheckOffline(ctx, d.opts, nil)
	if err != nil || len(rep.After.Damage) == 0 {
		t.Fatalf("with none: %+v, %v", rep.After.Damage, err)
	}
	found := listed(&rep.After)
	rep, err = pool.RepairOffline(ctx, d.opts, false, nil)
	if err != nil || listed(&rep.After).String() != found.String() {
		t.Errorf("%s, %v; want %s", listed(&rep.After), err, found)
	}
	d.fs = both
	d.open()
	if got := d.unreadable(d.p, d.present()); got.String() != found.String() {
		t.Errorf("unreadable %s, listed %s", got, found)
	}
	d.p.Abandon()
}

// A repair of a pool in use mends maps from memory, leaves the snapshots that are being read, and mends them later.
func TestRepairWhileInUse(t *testing.T) {
	d := damagedPool(t, false)
	d.checkpoint()
	for _, n := range nodes(t, d.fs) { // what nobody has changed since s1
		if n.level == 0 && n.first == 512 {
			rot(t, d.fs, n.file, n.offset+50)
		}
	}
	d.fs = d.fs.CrashImage(crashfs.KeepAll)
	d.opts.FS = d.fs
	d.open()
	reader, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: "s2"})
	if err != nil {
		t.Fatal(err)
	}
	lost := "c:512+11 v:512+11 v@s1:512+11 v@s2:512+11 v@s3:512+11"
	rep, err := d.p.Repair(ctx, nil)
	if err != nil || listed(&rep.After).String() != lost {
		t.Fatalf("%+v, %v", rep, err)
	}
	recorded := map[string]bool{}
	for _, f := range rep.After.Damage {
		recorded[f.Object] = f.Lost
	}
	if !recorded["v"] || !recorded["v@s3"] || !recorded["c"] || recorded["v@s2"] || recorded["v@s1"] || len(rep.Left) == 0 {
		t.Errorf("recorded: %v, left: %v", recorded, rep.Left)
	}
	if got := d.unreadable(d.p, d.present()).String(); got != lost {
		t.Errorf("unreadable: %s", got)
	}
	b := make([]byte, 400<<10)
	if err := reader.ReadAt(ctx, b, 0); err != nil {
		t.Error(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if rep, err = d.p.Repair(ctx, nil); err != nil || listed(&rep.After).String() != lost {
		t.Fatalf("%+v, %v", rep, err)
	}
	for _, f := range rep.After.Damage {
		if !f.Lost {
			t.Errorf("%+v", f)
		}
	}
	if _, err := d.p.Reclaim(ctx); err != nil { // which nothing hinders any more
		t.Error(err)
	}
	d.reopen()
	if got := d.unreadable(d.p, d.present()).String(); got != lost {
		t.Errorf("opened again: unreadable: %s", got)
	}
	d.p.Abandon()
}

// What is still in memory is written anew.
func TestRepairFromMemory(t *testing.T) {
	d := newDriver(t)
	d.opts.MapCacheBytes = 64 << 20
	d.reopen()
	d.createVolume("v", 3<<20)
	d.submit("v", writeOp(0, 400<<10), writeOp(1<<20, 400<<10))
	d.snapshot("s", "v")
	d.submit("v", writeOp(0, 4096))
	d.checkpoint()
	d.verify() // reads all
	for _, n := range nodes(t, d.fs) {
		rot(t, d.fs, n.file, n.offset+20)
	}
	rep, err := d.p.Check(ctx, nil)
	if err != nil || len(rep.Damage) == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for range 6 { // from the root down, what is found each time
		if rep, err := d.p.Repair(ctx, nil); err != nil {
			t.Fatal(err)
		} else if len(rep.After.Damage) == 0 {
			break
		}
	}
	d.verify()
	d.reopen()
	d.verify()
	d.p.Abandon()
}

// Garbage beyond what reclaim leaves is a leak, by file, and given back by a repair.
func TestLeaksAreGivenBack(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 8<<20)
	for range 13 {
		d.submit("v", writeOp(0, 8<<20))
	}
	d.checkpoint()
	d.checkpoint()
	rep, err := d.p.Check(ctx, nil)
	if err != nil || len(rep.Damage) > 0 || rep.GarbageBytes < 72<<20 || len(rep.Leaks) < 10 || rep.LiveBytes < 8<<20 || rep.LiveBytes > 9<<20 || rep.EstimatedBytes < 8<<20 {
		t.Fatalf("%d leaks of %d bytes, live %d: %v, %v", len(rep.Leaks), rep.GarbageBytes, rep.LiveBytes, rep.Damage, err)
	}
	fixed, err := d.p.Repair(ctx, nil)
	if err != nil || len(fixed.After.Leaks) > 0 || fixed.After.GarbageBytes > 1<<20 || fixed.After.EstimatedBytes != fixed.After.LiveBytes {
		t.Errorf("%+v, %v", fixed, err)
	}
	d.verify()
	d.p.Abandon()
}

// A check without a daemon needs nothing but reading, and tells a pool that is open elsewhere.
func TestCheckOfAReadOnlyPool(t *testing.T) {
	d := damagedPool(t, false)
	busy := d.opts
	if _, err := pool.CheckOffline(ctx, busy, nil); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a pool in use: %v", err)
	}
	d.p.Abandon()
	d.fs = d.fs.CrashImage(crashfs.ProcessCrash)
	d.opts.FS = vfs.ReadOnly(d.fs)
	rep, err := pool.CheckOffline(ctx, d.opts, nil)
	if err != nil || len(rep.After.Damage) > 0 || rep.After.Blocks == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if _, err := pool.RepairOffline(ctx, d.opts, false, nil); err == nil {
		t.Error("what cannot be written was repaired")
	}
	if err := d.fs.Remove("/pool/LOCK"); err != nil {
		t.Fatal(err)
	}
	before := digest(t, d.fs)
	if rep, err = pool.CheckOffline(ctx, d.opts, nil); err != nil || len(rep.After.Damage) > 0 || digest(t, d.fs) != before {
		t.Errorf("without a lock file: %+v, %v", rep.After.Damage, err)
	}
	if _, err := d.fs.Stat("/pool/LOCK"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a lock file was made")
	}
}
