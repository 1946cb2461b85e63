package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// What a disk says.
const (
	errIO      = syscall.EIO
	errNoSpace = syscall.ENOSPC
)

// fault makes the nth operation that it matches fail, once.
type fault struct {
	name    string
	err     error
	prefix  int64 // bytes that a failing write stores nevertheless
	matches func(crashfs.Op) bool
}

func changes(op crashfs.Op) bool { return op.Kind >= crashfs.Create }

var faults = []fault{
	{"EIO", errIO, 0, func(crashfs.Op) bool { return true }},
	{"EIO after a part", errIO, 4096, func(op crashfs.Op) bool { return op.Kind == crashfs.Write }},
	{"ENOSPC", errNoSpace, 0, changes},
	{"ENOSPC after a part", errNoSpace, 6000, func(op crashfs.Op) bool { return op.Kind == crashfs.Write }},
}

// TestEveryErrorPoint fails each operation of the file system that an action takes, one
// at a time. The action succeeds or says what failed; the pool holds it wholly or not at all,
// goes on or says why it does not, and every crash then leaves what may be left.
func TestEveryErrorPoint(t *testing.T) {
	t.Parallel()
	points := 0
	for _, f := range faults {
		for _, a := range actions {
			t.Run(f.name+"/"+a.name, func(t *testing.T) {
				for n := 0; failAt(t, f, n, a); n += thin(8) {
					points++
				}
			})
		}
	}
	t.Logf("%d error points", points)
}

// failAt reports whether the action came to a matching operation number n, from 0.
func failAt(t *testing.T, f fault, n int, a action) bool {
	d := crashSetup(t)
	unflushed(d)
	var hit *crashfs.Op
	seen := 0
	d.tolerant = true
	where := "no fault"
	d.tb = located{t, &where}
	remove := d.fs.Inject(crashfs.Fault{Err: f.err, Skip: n, Times: 1, Prefix: f.prefix, Match: func(op crashfs.Op) bool {
		if !f.matches(op) {
			return false
		}
		if seen++; seen == n+1 {
			hit = &op
			where = fmt.Sprintf("%s at operation %d (%v)", f.name, n, op)
		}
		return true
	}})
	a.do(d)
	remove()
	if hit == nil {
		d.p.Abandon()
		return false
	}
	if d.failed != nil {
		if !errors.Is(d.failed, f.err) {
			d.tb.Fatalf("the cause is missing from %q", d.failed)
		}
		afterFailure(d, *hit)
	} else {
		d.verify()
		d.submit("a", writeOp(512, 4096))
		d.flush("a")
		d.verify()
	}
	d.p.Abandon()
	for _, p := range []crashfs.Policy{crashfs.ProcessCrash, crashfs.KeepAll, crashfs.DropAll, crashfs.Torn} {
		if !changes(*hit) && p.String() != crashfs.ProcessCrash.String() {
			continue
		}
		e := *d
		e.tolerant, e.failed, e.possible = false, nil, slices.Clone(d.possible)
		e.crash(p)
		e.verify()
		e.submit("a", writeOp(512, 4096)) // it takes writes again
		e.flush("a")
		e.verify()
		e.p.Abandon()
	}
	return true
}

// afterFailure looks at a pool right after an action failed in it.
func afterFailure(d *driver, hit crashfs.Op) {
	d.tb.Helper()
	if d.closedOrNot() {
		return
	}
	last := len(d.possible) - 1
	before, after := d.possible[max(last-1, 0)], d.present()
	holds := d.dump(d.p)
	if strings.HasPrefix(d.failed.Error(), "write a:") { // what failed of a request is not done, the rest is
		before = d.withBlocksOf(before, after)
		d.possible = slices.Insert(d.possible, last, before)
	}
	if holds != before.String() && holds != after.String() {
		d.tb.Fatalf("%v; then the pool holds\n%s\nbefore it was\n%s\nwithout the failure it would be\n%s", d.failed, holds, before, after)
	}
	stopped := d.p.Info().ReadOnlyReason
	dev, err := d.p.OpenVolume("a")
	if err != nil {
		d.tb.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	write := writeOp(0, 4096)
	dev.Submit(ctx, []*block.Op{write})
	err = errors.Join(write.Err, dev.Flush(ctx))
	// A rewritten segment that cannot be synced is thrown away, and the old one stays.
	logSync := (hit.Kind == crashfs.Sync || hit.Kind == crashfs.SyncDir) && strings.HasPrefix(hit.Path, "/pool/log") && !strings.HasSuffix(hit.Path, ".new")
	switch {
	case stopped == "" && logSync:
		d.tb.Fatalf("a sync failed (%v) and the pool goes on", d.failed)
	case stopped == "" && err != nil:
		d.tb.Fatalf("after %v the pool takes no writes: %v", d.failed, err)
	case stopped != "" && !errors.Is(write.Err, pool.ErrWriteStopped):
		d.tb.Fatalf("writes are stopped (%s), and a write ends with %v", stopped, write.Err)
	case stopped == "":
		now := after
		if holds == before.String() {
			now = before
		}
		now = now.clone()
		now.volumes["a"].apply(write)
		d.possible = append(d.possible, now)
		if holds := d.dump(d.p); holds != now.String() {
			d.tb.Fatalf("then a write: the pool holds\n%s\nwant\n%s", holds, now)
		}
		d.possible = []*model{now}
	}
}

// withBlocksOf returns before with what volume "a" holds now, of which every block must
// be that of one of the two.
func (d *driver) withBlocksOf(before, after *model) *model {
	d.tb.Helper()
	v, err := d.p.Volume("a")
	if err != nil {
		d.tb.Fatal(err)
	}
	dev, err := d.p.OpenVolume("a")
	if err != nil {
		d.tb.Fatal(err)
	}
	now := before.clone()
	holds, was, should := d.volumeContent(d.p, dev, v), before.volumes["a"], after.volumes["a"]
	for lba := range blocksUpTo(v.SizeBytes) {
		is := holds.blocks[lba]
		from := was
		if !bytes.Equal(is, was.blocks[lba]) {
			from = should
		}
		if !bytes.Equal(is, from.blocks[lba]) {
			d.tb.Fatalf("%v; then block %d is neither what it was nor what it should be", d.failed, lba)
		}
		if n := from.versions[lba]; n != 0 {
			holds.versions[lba] = n
		}
	}
	now.volumes["a"].content = holds
	return now
}

// closedOrNot tells whether the pool is closed.
func (d *driver) closedOrNot() bool {
	dev, err := d.p.OpenVolume("a")
	if err == nil {
		err = dev.Close()
	}
	return errors.Is(err, block.ErrClosed)
}

// A read that fails is an error with its cause, never wrong data, and the next one succeeds.
func TestEveryReadErrorPoint(t *testing.T) {
	d := crashSetup(t)
	d.checkpoint()
	d.p.Abandon()
	want := d.present().volumes["a"].digest()
	for n := 0; ; n++ {
		d.crash(crashfs.ProcessCrash) // nothing is cached
		dev, err := d.p.OpenVolume("a")
		if err != nil {
			t.Fatal(err)
		}
		hit := false
		seen := 0
		remove := d.fs.Inject(crashfs.Fault{Err: errIO, Skip: n, Times: 1, Match: func(op crashfs.Op) bool {
			reads := op.Kind == crashfs.Read || op.Kind == crashfs.Open
			if reads {
				seen++
			}
			return reads
		}})
		for range 2 {
			b := make([]byte, dev.SizeBytes())
			err = dev.ReadAt(ctx, b, 0)
			got := newContent(int64(len(b)))
			got.write(0, b, got.size)
			if err == nil && got.digest() != want {
				t.Fatalf("with read %d failing the data is wrong", n)
			}
			if err != nil && (hit || !errors.Is(err, errIO) || !errors.Is(err, block.ErrDamaged)) {
				t.Fatalf("with read %d failing: %v", n, err)
			}
			hit = hit || err != nil
		}
		remove()
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		d.p.Abandon()
		if seen <= n {
			t.Logf("%d reads", n)
			return
		}
	}
}
