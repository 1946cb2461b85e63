package pool_test

import (
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

// What is overwritten, discarded and deleted is given back, and nothing else: content, snapshots
// and clones stay, also across a reopening.
func TestReclaimGivesBackWhatIsDead(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	fill := func() {
		for off := int64(0); off < 1<<20; off += 64 << 10 {
			d.submit("a", writeOp(off, 64<<10))
		}
	}
	reclaim := func() pool.Reclaimed {
		t.Helper()
		got, err := d.p.Reclaim(ctx)
		if err != nil {
			t.Fatal(err)
		}
		d.verify()
		return got
	}
	fill()
	fill()
	if got := reclaim(); got.FreedBytes < 1<<20 || got.Removed == 0 {
		t.Errorf("overwritten once: %+v", got)
	}
	d.snapshot("s", "a")
	fill()
	if got := reclaim(); got.FreedBytes > 512<<10 {
		t.Errorf("held by a snapshot: %+v", got)
	}
	for lba := int64(0); lba < 256; lba += 2 {
		d.submit("a", op(block.OpDiscard, lba*block.Size, block.Size))
	}
	if got := reclaim(); got.Rewritten == 0 || got.FreedBytes < 256<<10 {
		t.Errorf("every second block discarded: %+v", got)
	}
	d.cloneVolume("a", "s", "c")
	d.deleteSnapshot("a", "s")
	if got := reclaim(); got.FreedBytes > 128<<10 {
		t.Errorf("a clone holds what the deleted snapshot held: %+v", got)
	}
	d.reopen()
	d.verify()
	d.deleteVolume("c")
	if got := reclaim(); got.FreedBytes < 1<<20 {
		t.Errorf("the clone is gone: %+v", got)
	}
	d.deleteVolume("a")
	reclaim()
	if got := d.p.Info().PhysicalBytes; got > 9<<20 { // the reserve takes 8 MiB
		t.Errorf("an empty pool takes %d bytes", got)
	}
}
