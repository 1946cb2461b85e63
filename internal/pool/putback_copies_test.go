package pool_test

import (
	"errors"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

// TestRollbackToACopy, wholly and by range: it is copied, the present is kept, and the copy stays what it is.
func TestRollbackToACopy(t *testing.T) {
	for _, c := range copyCases() {
		t.Run(c.String(), func(t *testing.T) {
			d := c.setup(t)
			then := d.read("v")
			_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
			d.must(err)
			d.write("v", writeOp(0, 5*block.Size), writeOp(20*block.Size, block.Size))
			present := d.read("v")
			if _, _, err := d.p.Rollback(ctx, copyRef); !errors.Is(err, pool.ErrInvalid) {
				t.Fatalf("at once: %v", err)
			}
			kept := func(done pool.PutBack, err error, bytes int64) {
				t.Helper()
				d.must(err)
				if done.Bytes != bytes {
					t.Errorf("%d bytes were put back, want %d", done.Bytes, bytes)
				}
				d.same("v@"+done.Kept.Name, present)
				d.same("v@c", then)
				d.clock.now = d.clock.now.Add(1e9)
			}
			done, _, err := d.p.RollbackRanges(ctx, copyRef, []pool.Range{{Offset: 4 * block.Size, Length: 19 * block.Size}}, nil)
			kept(done, err, 2*block.Size)
			d.same("v", append(append([]byte{}, present[:4*block.Size]...), then[4*block.Size:]...))
			_, _, err = d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: done.Kept.Name})
			d.must(err)
			d.clock.now = d.clock.now.Add(1e9)
			d.same("v", present)
			done, _, err = d.p.RollbackCopy(ctx, copyRef, nil)
			kept(done, err, 6*block.Size)
			d.same("v", then)
			d.must(d.p.CopyBack(ctx, "v", nil))
			d.same("v", then)
			d.must(d.p.Cycle(ctx))
			d.must(d.p.CheckOwners())
			d.must(d.p.Close(ctx))
			d.open()
			d.same("v", then)
			d.must(d.p.Close(ctx))
		})
	}
}

// TestRollbackToACopyOfAnotherSize gives a redirect volume the copy's.
func TestRollbackToACopyOfAnotherSize(t *testing.T) {
	for _, size := range []int64{8 * block.Size, copiedBlocks*block.Size - 512, 40 * block.Size} {
		c := copyCase{technique: pool.Clone}
		d := c.setup(t)
		then := d.read("v")
		_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
		d.must(err)
		d.must(d.p.ResizeVolume(ctx, "v", size, true))
		_, _, err = d.p.RollbackCopy(ctx, copyRef, nil)
		d.must(err)
		d.same("v", then)
		d.must(d.p.Close(ctx))
	}
}

// TestRollbackToACopyAfterTheFileWasChanged by somebody else: nobody knows what differs, so all is compared.
func TestRollbackToACopyAfterTheFileWasChanged(t *testing.T) {
	c := copyCase{inplace: true, technique: pool.Clone}
	d := c.setup(t)
	then := d.read("v")
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.must(d.p.Close(ctx))
	f, err := d.fs.Open(diskImage)
	d.must(err)
	d.must(errors.Join(f.WriteAt([][]byte{stamp(3 * block.Size)}, 8*block.Size), f.Sync(), f.Close()))
	d.opts.OnEvent = func(pool.Event) {}
	d.open()
	if _, err := d.p.OpenDiff(pool.PointRef{Volume: "v", Name: "c"}, pool.PointRef{Volume: "v"}); !errors.Is(err, pool.ErrInvalid) {
		t.Fatalf("a diff knows what differs: %v", err)
	}
	done, _, err := d.p.RollbackCopy(ctx, copyRef, nil)
	d.must(err)
	if done.Bytes != 3*block.Size {
		t.Errorf("%d bytes were put back", done.Bytes)
	}
	d.same("v", then)
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.same("v", then)
	d.must(d.p.Close(ctx))
}
