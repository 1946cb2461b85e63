package pool_test

import (
	"errors"
	"testing"
	"time"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// What could not be read back is refused before it is logged: CBOR's strings are UTF-8.
func TestLabelsThatAreNotUTF8AreRefused(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.snapshot("s", "v")
	for name, labels := range map[string]map[string]string{
		"key":   {"\xff\xfe": "v"},
		"value": {"k": "a\xc3"},
	} {
		_, created := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "w", SizeBytes: 4096, Labels: labels})
		_, _, cloned := d.p.CloneVolume(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, pool.VolumeSpec{Name: "w", Labels: labels})
		_, _, snapped := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "t", Labels: labels})
		for of, err := range map[string]error{
			"volume": created, "clone": cloned, "snapshot": snapped, "existing volume": d.p.LabelVolume(ctx, "v", labels),
		} {
			if !errors.Is(err, pool.ErrInvalid) {
				t.Errorf("%s of a label of a %s: %v", name, of, err)
			}
		}
	}
	d.label("v", "Größe", "日本")
	d.reopen()
	d.verify()
	d.p.Abandon()
}

// Times are kept in nanoseconds of 64 bits: what would run over is refused, and does not expire in the past.
func TestKeepForHasAnEnd(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, c := range []struct {
		keep time.Duration
		ok   bool
	}{{-1, false}, {0, true}, {1, true}, {100 * year, true}, {100*year + 1, false}, {260 * year, false}, {1<<63 - 1, false}} {
		d := newDriver(t)
		d.createVolume("v", 64<<10)
		made, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s", KeepFor: c.keep})
		switch {
		case !c.ok && !errors.Is(err, pool.ErrInvalid):
			t.Errorf("keeping it for %s ends with %v", c.keep, err)
		case c.ok && err != nil:
			t.Errorf("keeping it for %s: %v", c.keep, err)
		case c.ok && c.keep == 0 && !made[0].ExpiresAt.IsZero():
			t.Errorf("what is kept for ever expires at %s", made[0].ExpiresAt)
		case c.ok && c.keep > 0 && !made[0].ExpiresAt.Equal(d.clock.now.Add(c.keep)):
			t.Errorf("kept for %s it expires at %s", c.keep, made[0].ExpiresAt)
		}
		d.p.Abandon()
	}
}

// A volume or snapshot is not opened while its deletion is being logged: the device would outlive
// it. If the deletion fails, it can be opened again.
func TestWhatIsBeingDeletedIsNotOpened(t *testing.T) {
	for _, fails := range []bool{false, true} {
		for name, remove := range map[string]func(*driver) error{
			"w":   func(d *driver) error { return d.p.DeleteVolume(ctx, "w") },
			"v@s": func(d *driver) error { return d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}) },
		} {
			d := newDriver(t)
			d.createVolume("v", 64<<10)
			d.createVolume("w", 64<<10)
			d.snapshot("s", "v")
			opened := 0
			var during error
			d.fs.OnOp(func(_ int, op crashfs.Op, _ error) {
				if op.Kind == crashfs.Write && inLog(op) {
					opened++
					during = openAndClose(d.p, name)
				}
			})
			if fails {
				d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: func(op crashfs.Op) bool {
					return op.Kind == crashfs.Write && inLog(op)
				}})
			}
			err := remove(d)
			d.fs.OnOp(nil)
			if opened != 1 || !errors.Is(during, pool.ErrNotFound) {
				t.Errorf("opening %s while it is being deleted (%d times) ends with %v", name, opened, during)
			}
			after := openAndClose(d.p, name)
			switch {
			case fails && (!errors.Is(err, errIO) || after != nil):
				t.Errorf("after a deletion of %s that fails (%v) opening ends with %v", name, err, after)
			case !fails && (err != nil || !errors.Is(after, pool.ErrNotFound)):
				t.Errorf("after deleting %s (%v) opening ends with %v", name, err, after)
			}
			d.p.Abandon()
		}
	}
}

// openAndClose opens VOLUME or VOLUME@SNAP.
func openAndClose(p *pool.Pool, name string) error {
	dev, err := openEither(p, name)
	if err != nil {
		return err
	}
	return dev.Close()
}
