package pool_test

import (
	"bytes"
	"testing"

	"varve/internal/pool"
)

// detached deletes the volume, whose file must have everything then.
func (d *inplace) detached() {
	d.tb.Helper()
	d.verify()
	d.must(d.p.DeleteVolume(ctx, "v"))
	if !bytes.Equal(d.inFile(), d.head.data) {
		d.tb.Fatalf("the file is not what the volume was")
	}
	d.must(d.p.Close(ctx))
}

// TestReadOnlyFileIsLetGoOf: nothing was ever written to it, so all of it is there, also after the pool was opened again.
func TestReadOnlyFileIsLetGoOf(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	d.must(d.p.DeleteVolume(ctx, "v"))
	d.must(d.p.Close(ctx))
	d.opts.FS = unwritable{d.fs}
	d.open()
	_, err := d.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: diskImage})
	d.must(err)
	d.snapshot("s")
	d.must(d.p.Close(ctx))
	d.open()
	if info, err := d.p.Volume("v"); err != nil || info.Behind {
		t.Errorf("what nobody can write to needs the pool: %+v, %v", info, err)
	}
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	delete(d.snapshots, "s")
	d.detached()
}
