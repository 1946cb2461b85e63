package pool_test

import (
	"errors"
	"testing"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestCopiesAreProtected: a copy is guarded from deletion as a snapshot is, and in the log that is what it was.
func TestCopiesAreProtected(t *testing.T) {
	d := attached(t, "redirect", 1<<20)
	d.split()
	d.must(d.p.ProtectSnapshot(ctx, splitRef, true))
	d.crash(crashfs.DropAll)
	if err := d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{splitRef}); !errors.Is(err, pool.ErrProtected) {
		t.Errorf("deleting a copy that is protected: %v", err)
	}
	d.must(d.p.ProtectSnapshot(ctx, splitRef, false))
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{splitRef}))
	d.must(d.p.Close(ctx))
}
