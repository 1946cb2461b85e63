package pool_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

// What a checkpoint leads to is verified on the disk while the pool is in use, the older
// one's too, which is needed when the newer one rots.
func TestCheckFindsRottenCheckpoints(t *testing.T) {
	type place struct {
		file string
		off  int64
	}
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	images := map[string]place{}
	for _, which := range []string{"older", "newer"} {
		d.submit("v", writeOp(0, 4096))
		d.checkpoint()
		segment, off := d.p.CatalogueAt()
		images[which] = place{segmentPath(segment), off + 10}
	}
	newer := d.p.Info().Checkpoints
	for name, c := range map[string]struct {
		place
		object string
	}{
		"newer superblock": {place{superblockPath, slotOf(newer) + 20}, "superblock"},
		"older superblock": {place{superblockPath, slotOf(newer-1) + 20}, "superblock"},
		"newer catalogue":  {images["newer"], fmt.Sprintf("checkpoint %d", newer)},
		"older catalogue":  {images["older"], fmt.Sprintf("checkpoint %d", newer-1)},
	} {
		d.verify()
		rot(t, d.fs, c.file, c.off)
		rep, err := d.p.Check(ctx, nil)
		if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Object != c.object || rep.Damage[0].Offset != -1 || rep.Damage[0].Message == "" {
			t.Errorf("%s: found %+v, %v", name, rep.Damage, err)
		}
		rot(t, d.fs, c.file, c.off) // back again
	}
	d.verify()
	d.p.Abandon()
}

// States share what they have in common, and Check reads it once: with a fork, a hidden state,
// a clone, discards and blocks that came back, and whatever of it is in a checkpoint.
func TestCheckReadsEveryBlockOnce(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 64<<10)) // 16 blocks
	d.snapshot("s1", "v")
	d.submit("v", writeOp(0, 8192), discardOp(16<<10, 8192)) // and 2
	d.snapshot("s2", "v")
	d.cloneVolume("v", "s2", "c")
	d.submit("c", writeOp(16<<10, 4096)) // and 1
	d.submit("v", writeOp(0, 4096))      // and 1, which a snapshot keeps
	d.rollback("v", "s2")
	d.submit("v", writeOp(4096, 4096)) // and 1
	d.deleteSnapshot("v", "s2")        // three others descend from it
	if n := d.p.Info().HiddenStates; n != 1 {
		t.Fatalf("%d hidden states", n)
	}
	const stored = 16 + 2 + 1 + 1 + 1
	for _, when := range []string{"before", "after"} {
		rep, err := d.p.Check(ctx, nil)
		if err != nil || len(rep.Damage) > 0 || rep.Blocks != stored || rep.Bytes != stored*block.Size {
			t.Errorf("%s a checkpoint: %+v, %v; want %d blocks", when, rep, err, stored)
		}
		d.checkpoint()
	}
	// Whichever of them rots is found, in every state that has it.
	found := 0
	for _, b := range batches(t, d.fs) {
		for i := range b.payloadBlocks {
			off := b.offset + (b.headerBlocks+i)*block.Size
			rot(t, d.fs, b.file, off)
			rep, err := d.p.Check(ctx, nil)
			one := func(x pool.Damage) bool {
				return x.Offset != rep.Damage[0].Offset || x.Length != rep.Damage[0].Length || x.Message != rep.Damage[0].Message
			}
			if err != nil || slices.ContainsFunc(rep.Damage, one) {
				t.Errorf("block %d of batch %d: found %+v, %v", i, b.seq, rep.Damage, err)
			}
			if len(rep.Damage) > 0 && rep.Damage[0].Length == block.Size { // a map node hides more
				found++
			}
			rot(t, d.fs, b.file, off)
		}
	}
	if found != stored {
		t.Errorf("%d rotten blocks are found, want %d", found, stored)
	}
	d.verify()
	d.p.Abandon()
}

// Check remembers nothing about the nodes it has read, of which a pool may have millions.
func TestCheckTakesConstantMemory(t *testing.T) {
	const leaves, leafBytes = 4096, 2 << 20
	d := newDriver(t)
	d.createVolume("a", leaves*leafBytes)
	d.createVolume("b", 4096)
	dev, err := d.p.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	ops := make([]*block.Op, 0, leaves)
	data := stamp(block.Size)
	for i := range int64(leaves) {
		ops = append(ops, &block.Op{Kind: block.OpWrite, Offset: i * leafBytes, Length: block.Size, Data: data})
	}
	dev.Submit(ctx, ops)
	for _, o := range ops {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.p.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	var heap []uint64 // in use after each volume
	live := func() {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap = append(heap, m.HeapAlloc)
	}
	live()
	rep, err := d.p.Check(ctx, func(float64) { live() })
	if err != nil || len(rep.Damage) > 0 || rep.MapNodes < leaves {
		t.Fatalf("%+v, %v", rep, err)
	}
	if grown := int64(heap[1]) - int64(heap[0]); grown > leaves*8 {
		t.Errorf("with %d nodes read, check holds %d bytes", rep.MapNodes, grown)
	}
	d.p.Abandon()
}
