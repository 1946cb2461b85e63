package pool_test

import (
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

// TestVersionsAreUsedUp: a volume that has given all its versions refuses the writes that need one, and a rollback, and says what to do; nothing else fails, and the pool can be opened again.
func TestVersionsAreUsedUp(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.snapshot("s")
	d.p.LeaveVersions("v", 2)
	d.submit(writeOp(0, 2*block.Size)) // the last ones
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	o := writeOp(4*block.Size, block.Size)
	if dev.Submit(ctx, []*block.Op{o}); o.Err == nil || !strings.Contains(o.Err.Error(), "version") {
		t.Fatalf("a write: %v", o.Err)
	}
	d.must(dev.Close())
	d.submit(writeOp(0, 2*block.Size)) // which have a version of their own
	if _, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{{Length: block.Size}}, nil); err == nil || !strings.Contains(err.Error(), "version") {
		t.Fatalf("a rollback: %v", err)
	}
	for range 2 {
		d.verify()
		d.must(d.p.Close(ctx))
		d.open()
	}
	d.must(d.p.Close(ctx))
}
