package pool_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// fill writes to volume a until the disk is full; what was acknowledged is in the model.
func (d *driver) fill() {
	d.tb.Helper()
	d.fs.SetCapacity(d.fs.UsedBytes() + 40<<10)
	d.tolerant = true
	for range 100 {
		if d.submit("a", writeOp(512, 9000)); d.failed != nil {
			break
		}
	}
	if !errors.Is(d.failed, block.ErrNoSpace) {
		d.tb.Fatalf("on a full disk a write ends with %v", d.failed)
	}
	d.tolerant, d.failed = false, nil
	d.possible = slices.Delete(d.possible, len(d.possible)-1, len(d.possible)) // the write that failed
}

// On a full disk nothing that was acknowledged goes, every state can be read and deleted, and writes go on
// when there is room again.
func TestFullDisk(t *testing.T) {
	d := crashSetup(t)
	d.fill()
	d.verify()
	d.flush("a")
	d.verify()
	d.deleteSnapshot("a", "s1")
	d.deleteVolume("c")
	d.verify()
	d.crash(crashfs.DropAll) // opening needs room, too
	d.verify()
	d.reopen()
	d.deleteSnapshot("a", "s2")
	d.verify()
	d.fs.SetCapacity(math.MaxInt64)
	d.submit("a", writeOp(512, 9000))
	d.checkpoint()
	d.reopen()
	d.verify()
	d.p.Abandon()
}

// A disk that filled up while the pool was closed: the reserve lets it be opened, again and again.
func TestOpenOnAFullDisk(t *testing.T) {
	for _, p := range []crashfs.Policy{crashfs.ProcessCrash, crashfs.KeepAll, crashfs.DropAll} {
		d := crashSetup(t)
		unflushed(d)
		d.p.Abandon()
		d.fs.SetCapacity(d.fs.UsedBytes())
		d.crash(p)
		d.verify()
		d.p.Abandon()
		for range 5 {
			d.crash(p)
			d.verify()
			d.deleteSnapshot("a", []string{"s1", "s2", "s3"}[len(d.present().volumes["a"].snapshots)-1])
			d.p.Abandon()
			if len(d.present().volumes["a"].snapshots) == 0 {
				break
			}
		}
	}
}

// A power cut that keeps the reserve's name and loses its room does not leave
// the pool without one.
func TestReserveIsMadeAgain(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 40<<10)
	d.flush("a")
	named := slices.IndexFunc(d.fs.Pending(), func(op crashfs.Op) bool {
		return op.Kind == crashfs.Create && op.Path == "/pool/reserve"
	})
	d.p.Abandon()
	d.crash(crashfs.KeepOnly(named))
	if info, err := d.fs.Stat("/pool/reserve"); err != nil || info.Size() == 0 {
		t.Fatalf("the reserve is empty: %v", err)
	}
	d.fill()
	d.deleteVolume("a")
	d.verify()
	d.p.Abandon()
}

// A write that fails for lack of space is cut off, so that those which follow it in the log are
// found: ENOSPC tears batch n, batches n+1 and later are acknowledged and flushed.
func TestTornBatchIsCutOffBeforeLaterOnes(t *testing.T) {
	for prefix := int64(0); prefix <= 12<<10; prefix += 2048 {
		d := crashSetup(t)
		unflushed(d)
		remove := d.fs.Inject(crashfs.Fault{Err: errNoSpace, Times: 1, Prefix: prefix, Match: func(op crashfs.Op) bool {
			return op.Kind == crashfs.Write
		}})
		d.tolerant = true
		d.submit("a", writeOp(0, 8192))
		remove()
		if !errors.Is(d.failed, block.ErrNoSpace) {
			t.Fatalf("the write ends with %v", d.failed)
		}
		d.tolerant, d.failed = false, nil
		d.possible = slices.Delete(d.possible, len(d.possible)-1, len(d.possible))
		d.verify()
		unflushed(d)
		d.snapshot("after", "a")
		unflushed(d)
		d.flush("c")
		for _, p := range []crashfs.Policy{crashfs.ProcessCrash, crashfs.KeepAll, crashfs.DropAll} {
			e := *d
			e.possible = slices.Clone(d.possible)
			e.crash(p)
			e.verify()
			e.p.Abandon()
		}
		d.p.Abandon()
	}
}

// A failed sync ends all writing, is told, and leaves everything readable.
func TestFailedSyncStopsWrites(t *testing.T) {
	d := crashSetup(t)
	var events []pool.Event
	d.p.Abandon()
	d.opts.OnEvent = func(e pool.Event) { events = append(events, e) }
	d.crash(crashfs.ProcessCrash)
	unflushed(d)
	remove := d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: func(op crashfs.Op) bool { return op.Kind == crashfs.Sync }})
	d.tolerant = true
	d.flush("a")
	remove()
	if !errors.Is(d.failed, pool.ErrWriteStopped) || !errors.Is(d.failed, errIO) {
		t.Fatalf("the flush ends with %v", d.failed)
	}
	if !slices.ContainsFunc(events, func(e pool.Event) bool { return e.Kind == "write-stop" }) {
		t.Fatalf("nobody is told: %v", events)
	}
	d.failed = nil
	for name, do := range map[string]func(){
		"write":      func() { d.submit("a", writeOp(0, 512)) },
		"flush":      func() { d.flush("a") },
		"snapshot":   func() { d.snapshot("late", "a") },
		"delete":     func() { d.deleteSnapshot("a", "s1") },
		"rollback":   func() { d.rollback("a", "s1") },
		"clone":      func() { d.cloneVolume("a", "s1", "late") },
		"checkpoint": func() { d.checkpoint() },
	} {
		present := len(d.possible)
		if do(); !errors.Is(d.failed, pool.ErrWriteStopped) {
			t.Fatalf("after a failed sync %s ends with %v", name, d.failed)
		}
		d.failed = nil
		d.possible = d.possible[:present]
		d.verify()
	}
	if err := d.p.Close(ctx); !errors.Is(err, pool.ErrWriteStopped) {
		t.Fatalf("closing says %v", err)
	}
}
