package pool_test

import (
	"errors"
	"testing"

	"varve/internal/pool"
)

// TestProtectACopy: a copy can be protected, which keeps it, also when the pool was opened again.
func TestProtectACopy(t *testing.T) {
	c := copyCase{technique: pool.Clone}
	d := c.setup(t)
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.must(d.p.ProtectSnapshot(ctx, copyRef, true))
	d.must(d.p.Close(ctx))
	d.open()
	if err := d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}); !errors.Is(err, pool.ErrProtected) {
		t.Fatalf("delete: %v", err)
	}
	d.must(d.p.ProtectSnapshot(ctx, copyRef, false))
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
}
