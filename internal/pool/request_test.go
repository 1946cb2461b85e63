package pool_test

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/block"
	"varve/internal/vfs/crashfs"
)

// A write longer than a batch takes several. The first one fails, and would succeed a moment
// later: the write fails, and what follows it in the same request does not.
func TestFailureOfALongWritesFirstPartIsReported(t *testing.T) {
	for name, cause := range map[string]error{"EIO": errIO, "ENOSPC": errNoSpace} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			d.createVolume("v", 10<<20)
			remove := d.fs.Inject(crashfs.Fault{Err: cause, Times: 1, Match: func(op crashfs.Op) bool {
				return op.Kind == crashfs.Write && inLog(op)
			}})
			defer remove()
			dev, err := d.p.OpenVolume("v")
			if err != nil {
				t.Fatal(err)
			}
			long, after := writeOp(0, 9<<20), writeOp(9<<20, 4096)
			dev.Submit(ctx, []*block.Op{long, after})
			if !errors.Is(long.Err, cause) {
				t.Errorf("the write ends with %v", long.Err)
			}
			got := make([]byte, 4096)
			if err := errors.Join(after.Err, dev.ReadAt(ctx, got, 9<<20), dev.Close()); err != nil || !bytes.Equal(got, after.Data) {
				t.Errorf("the write behind it is lost: %v", err)
			}
			d.p.Abandon()
		})
	}
}

// The changes of a request are as many as may be in one when a long write comes: that
// begins another one, which has room for that write and not for the next.
func TestLongWritesBehindManyDiscards(t *testing.T) {
	const batch = 8 << 20
	d := newDriver(t)
	d.createVolume("v", 2*batch)
	var ops []*block.Op
	for i := range int64(1024) {
		ops = append(ops, discardOp(i*block.Size, block.Size))
	}
	ops = append(ops, writeOp(0, batch), writeOp(batch, block.Size))
	d.submit("v", ops...)
	d.verify()
	d.p.Abandon()
}

// The committer compares every block that is written in part with all changes before it in the
// batch, so that a request must not hold many.
func TestPartialWritesOfARequestAreSpreadOverBatches(t *testing.T) {
	const writes, perBatch = 600, 64
	d := newDriver(t)
	d.createVolume("v", 8<<20)
	var ops []*block.Op
	for i := range int64(writes) {
		ops = append(ops, writeOp(i*2*block.Size+512, block.Size)) // two parts of blocks
	}
	before := d.p.Info().LastSeq
	d.submit("v", ops...)
	if n := d.p.Info().LastSeq - before; n < writes/perBatch {
		t.Errorf("%d unaligned writes are in %d batches, want at least %d", writes, n, writes/perBatch)
	}
	d.verify()
	d.p.Abandon()
}
