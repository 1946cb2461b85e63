package pool_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// until writes to volume a until a write is refused, and returns how many were not.
func (d *driver) until() int {
	d.tb.Helper()
	d.tolerant = true
	defer func() { d.tolerant, d.failed = false, nil }()
	length := int64(32 << 10)
	for n := range 1000 {
		if d.submit("a", writeOp(0, length)); d.failed != nil {
			if !errors.Is(d.failed, block.ErrNoSpace) {
				d.tb.Fatalf("a write that there is no room for ends with %v", d.failed)
			}
			d.possible = slices.Delete(d.possible, len(d.possible)-1, len(d.possible)) // the write that failed
			if length == block.Size {
				return n
			}
			length, d.failed = block.Size, nil
		}
	}
	d.tb.Fatal("writes are never refused")
	return 0
}

// At its quota a pool refuses what would take more, does all that gives space back, and takes writes
// again when that was done.
func TestQuota(t *testing.T) {
	const quota = 1 << 20
	d := crashSetup(t)
	d.setQuota(quota)
	if n := d.until(); n < 2 {
		t.Error("all writes are refused")
	}
	size := func() int64 {
		info := d.p.Info()
		return info.PhysicalBytes - 2*4096 - pool.ReserveBytes
	}
	if got := size(); got > quota-pool.DefaultReserve(quota) {
		t.Errorf("clients filled the log up to %d bytes, of a quota of %d", got, quota)
	}
	d.verify()
	for what, err := range map[string]error{
		"a snapshot": func() error {
			_, _, err := d.p.CreateSnapshot(ctx, []string{"a"}, pool.SnapshotSpec{Name: "no"})
			return err
		}(),
		"a volume": func() error {
			_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "no", SizeBytes: 1 << 20})
			return err
		}(),
	} {
		if !errors.Is(err, block.ErrNoSpace) || !strings.Contains(err.Error(), "quota") {
			t.Errorf("making %s ends with %v", what, err)
		}
	}
	d.flush("a")
	d.protect("a", "s1", true)
	d.protect("a", "s1", false)
	d.submit("a", discardOp(4096, 8192))
	d.rollback("a", "s3")
	d.deleteSnapshot("a", "s2")
	d.deleteVolume("c")
	d.verify()
	d.reopen()
	d.verify()
	d.until()
	for range 3 { // the last segments lie behind the older checkpoint
		d.reclaim()
	}
	if n := d.until(); n < 2 {
		t.Error("after reclaim no write is taken")
	}
	d.setQuota(0)
	for range 50 {
		d.submit("a", writeOp(0, 32<<10))
	}
	d.setQuota(4 * 64 << 10) // less than there is
	if n := d.until(); n > 1 {
		t.Errorf("%d writes were taken beyond a quota that had been exceeded", n)
	}
	d.verify()
	d.p.Abandon()
}

func TestQuotaArguments(t *testing.T) {
	d := newDriver(t)
	for _, bad := range [][2]int64{{-1, 0}, {1 << 30, -1}, {1, 0}, {4*64<<10 - 1, 0}, {1 << 20, 1<<19 + 1}, {0, 1}} {
		if err := d.p.SetQuota(ctx, bad[0], bad[1]); !errors.Is(err, pool.ErrInvalid) {
			t.Errorf("quota %d with reserve %d: %v", bad[0], bad[1], err)
		}
	}
	for _, good := range [][2]int64{{1 << 20, 1 << 19}, {1 << 40, 0}, {0, 0}} {
		if err := d.p.SetQuota(ctx, good[0], good[1]); err != nil {
			t.Error(err)
		}
		want := good[1]
		if want == 0 {
			want = pool.DefaultReserve(good[0])
		}
		if info := d.p.Info(); info.QuotaBytes != good[0] || info.ReserveBytes != want {
			t.Errorf("after %v it is %d with reserve %d", good, info.QuotaBytes, info.ReserveBytes)
		}
	}
	d.p.Abandon()
}

// On a disk without any room discards are taken, out of the reserve.
func TestDiscardOnAFullDisk(t *testing.T) {
	d := crashSetup(t)
	d.fs.SetCapacity(d.fs.UsedBytes())
	for lba := int64(0); lba < 6; lba++ {
		d.submit("a", discardOp(lba*block.Size, block.Size))
	}
	d.verify()
	d.rollback("a", "s3")
	d.verify()
	d.reopen()
	d.verify()
	d.fs.SetCapacity(math.MaxInt64)
	d.submit("a", writeOp(0, 8192))
	d.verify()
	d.p.Abandon()
}

// Levels are told once when they are reached, and again only after the pool was well below them.
func TestSpaceIsToldOncePerLevel(t *testing.T) {
	d := newDriver(t)
	var told []string
	d.p.Abandon()
	d.opts.OnEvent = func(e pool.Event) {
		if strings.HasPrefix(e.Kind, "space") {
			told = append(told, e.Kind)
		}
	}
	d.open()
	d.createVolume("a", 4<<20)
	demand := func(when string, want ...string) {
		t.Helper()
		if !slices.Equal(told, want) {
			t.Errorf("%s: told %q, want %q", when, told, want)
		}
		told = nil
	}
	d.setQuota(2 << 20)
	for off := int64(0); off < 1<<20; off += 32 << 10 {
		d.submit("a", writeOp(off, 32<<10))
	}
	demand("at 60 percent")
	d.until()
	low := pool.EventSpace
	demand("when it is full", low, low, low, pool.EventSpaceFull)
	d.until()
	demand("while it is full")
	d.clock.now = d.clock.now.Add(time.Hour)
	d.submit("a", discardOp(0, 4<<20))
	for range 3 {
		d.reclaim()
	}
	demand("when it was emptied")
	d.until()
	demand("when it is full again", low, low, low, pool.EventSpaceFull)
	d.fs.SetCapacity(d.fs.UsedBytes() * 100 / 99)
	d.setQuota(0)
	d.until()
	d.verify()
	d.p.Abandon()
}

// While reclaim gives enough back, writers at the quota wait and are not refused; when it cannot they are, and
// go on when something was discarded.
func TestWritersWaitAtTheQuota(t *testing.T) {
	throttled := make(chan struct{}, 1)
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "pool"), SegmentBytes: 1 << 20, OnEvent: func(e pool.Event) {
		switch e.Kind {
		case pool.EventSpaceThrottled:
			select {
			case throttled <- struct{}{}:
			default:
			}
		case pool.EventSpace, pool.EventSpaceFull:
		default:
			t.Error(e)
		}
	}}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(ctx) }()
	const quota, size = 96 << 20, 128 << 20
	if err := p.SetQuota(ctx, quota, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	d, err := p.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	write := func(off int64, kind block.OpKind) error {
		op := &block.Op{Kind: kind, Offset: off, Length: 1 << 20}
		if kind == block.OpWrite {
			op.Data = stamp(op.Length)
		}
		d.Submit(ctx, []*block.Op{op})
		return op.Err
	}
	demand := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v: %+v", what, err, p.Info())
		}
	}
	for i := range int64(20 * 16) { // 16 MiB, twenty times over
		demand(fmt.Sprintf("overwrite %d", i), write(i%16<<20, block.OpWrite))
	}
	select {
	case <-throttled:
	default:
		t.Error("writers at the quota are not told of")
	}
	refused := int64(0)
	for off := int64(16 << 20); off < size; off += 1 << 20 {
		if err := write(off, block.OpWrite); errors.Is(err, block.ErrNoSpace) {
			refused = off
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused < quota/2 {
		t.Fatalf("with a quota of %d MiB, the write at %d MiB was refused", quota>>20, refused>>20)
	}
	for off := int64(0); off < 32<<20; off += 1 << 20 {
		demand("discard", write(off, block.OpDiscard))
	}
	for off := int64(0); off < 16<<20; off += 1 << 20 {
		demand("write after discarding", write(off, block.OpWrite))
	}
	if info := p.Info(); info.PhysicalBytes > quota+2*o.SegmentBytes+pool.ReserveBytes {
		t.Errorf("it takes %d bytes of a quota of %d", info.PhysicalBytes, quota)
	}
	demand("close", d.Close())
}
