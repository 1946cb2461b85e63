package pool_test

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// Whoever comes upon the failed sync first, the operator is told once, and once only.
func TestFailedSyncIsToldOnceByEveryPath(t *testing.T) {
	anySync := func(op crashfs.Op) bool { return op.Kind == crashfs.Sync }
	superblockSync := func(op crashfs.Op) bool { return anySync(op) && op.Path == superblockPath }
	namesSync := func(op crashfs.Op) bool { return op.Kind == crashfs.SyncDir }
	flush := func(d *driver) error {
		dev, err := d.p.OpenVolume("v")
		if err != nil {
			return err
		}
		return errors.Join(dev.Flush(ctx), dev.Close())
	}
	snapshot := func(d *driver) error {
		_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
		return err
	}
	checkpoint := func(d *driver) error { return d.p.Checkpoint(ctx) }
	closing := func(d *driver) error { return d.p.Close(ctx) }
	for name, c := range map[string]struct {
		fails func(crashfs.Op) bool
		do    func(*driver) error
	}{
		"flush":                 {anySync, flush},
		"flush of a name":       {namesSync, flush},
		"snapshot":              {anySync, snapshot},
		"checkpoint":            {anySync, checkpoint},
		"checkpoint superblock": {superblockSync, checkpoint},
		"close":                 {anySync, closing},
		"close superblock":      {superblockSync, closing},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			d.createVolume("v", 128<<10)
			events := d.listen()
			d.reopen()
			d.submit("v", writeOp(0, 4096), writeOp(4096, 80<<10)) // exceeds a segment
			d.submit("v", writeOp(0, 4096))
			d.fs.Inject(crashfs.Fault{Err: errIO, Match: c.fails})
			if err := c.do(d); !errors.Is(err, errIO) {
				t.Errorf("it ends with %v", err)
			}
			reason := d.p.Info().ReadOnlyReason
			if !strings.Contains(reason, errIO.Error()) {
				t.Errorf("writes are stopped because of %q", reason)
			}
			for _, again := range []func(*driver) error{snapshot, checkpoint, closing} {
				if err := again(d); err == nil {
					t.Error("then something succeeded")
				}
			}
			told := slices.DeleteFunc(*events, func(kind string) bool { return kind != pool.EventWriteStop })
			if len(told) != 1 {
				t.Errorf("told %d times", len(told))
			}
		})
	}
}

// A full disk is no failure to reach the disk: with room for the superblock again all goes on.
func TestNoSpaceForTheSuperblockStopsNothing(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	events := d.listen()
	d.reopen()
	d.submit("v", writeOp(0, 4096))
	remove := d.fs.Inject(crashfs.Fault{Err: errNoSpace, Match: func(op crashfs.Op) bool {
		return op.Kind == crashfs.Write && op.Path == superblockPath
	}})
	if err := d.p.Checkpoint(ctx); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("the checkpoint ends with %v", err)
	}
	remove()
	if reason := d.p.Info().ReadOnlyReason; reason != "" || len(*events) > 0 {
		t.Errorf("writes are stopped: %q, %v", reason, *events)
	}
	d.submit("v", writeOp(4096, 4096))
	d.checkpoint()
	d.verify()
	d.p.Abandon()
	d.crash(crashfs.DropAll)
	d.verify()
	d.p.Abandon()
}

// Running out of file handles, in the read of a map node or of data, says nothing about what is stored.
func TestPassingErrorsAreNotCalledDamage(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 8192))
	events := d.listen()
	for n := 0; ; n++ {
		d.reopen() // nothing is in memory
		dev, err := d.p.OpenVolume("v")
		if err != nil {
			t.Fatal(err)
		}
		remove := d.fs.Inject(crashfs.Fault{Err: syscall.EMFILE, Skip: n, Times: 1, Match: func(op crashfs.Op) bool {
			return inLog(op) && (op.Kind == crashfs.Open || op.Kind == crashfs.Read)
		}})
		b := make([]byte, 8192)
		first := dev.ReadAt(ctx, b, 0)
		remove()
		if first != nil && (!errors.Is(first, syscall.EMFILE) || errors.Is(first, block.ErrDamaged)) {
			t.Errorf("with read %d failing: %v", n, first)
		}
		if err := errors.Join(dev.ReadAt(ctx, b, 0), dev.Close()); err != nil {
			t.Errorf("then %v", err)
		}
		if first == nil {
			if n < 2 {
				t.Errorf("%d reads were made to fail, want those of a node and of data", n)
			}
			break
		}
	}
	if len(*events) > 0 {
		t.Errorf("told: %v", *events)
	}
	d.verify()
	d.p.Abandon()
}

// A flush covers the pool, whichever device it comes through.
func TestFlushThroughASnapshotsDevice(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.snapshot("s", "v")
	d.submit("v", writeOp(0, 4096))
	d.step("flush", true, func(*model) error { return nil }, func() error {
		dev, err := d.p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: "s"})
		if err != nil {
			return err
		}
		return errors.Join(dev.Flush(ctx), dev.Close())
	})
	d.p.Abandon()
	d.crash(crashfs.DropAll)
	d.verify()
	d.p.Abandon()
}

// A pool that is closed says so, and is not touched any more.
func TestClosedPoolRefusesEverything(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	events := d.listen()
	d.reopen()
	dev, err := d.p.OpenVolume("v")
	if err == nil {
		err = d.p.Close(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	ops := d.fs.Ops()
	for name, do := range map[string]func() error{
		"checkpoint": func() error { return d.p.Checkpoint(ctx) },
		"snapshot": func() error {
			_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
			return err
		},
		"check":  func() error { _, err := d.p.Check(ctx, nil); return err },
		"resize": func() error { return d.p.ResizeVolume(ctx, "v", 128<<10, false) },
		"open":   func() error { _, err := d.p.OpenVolume("v"); return err },
		"read":   func() error { return dev.ReadAt(ctx, make([]byte, 512), 0) },
		"flush":  func() error { return dev.Flush(ctx) },
		"write": func() error {
			o := writeOp(0, 512)
			dev.Submit(ctx, []*block.Op{o})
			return o.Err
		},
	} {
		if err := do(); !errors.Is(err, block.ErrClosed) {
			t.Errorf("%s ends with %v", name, err)
		}
	}
	if n := d.fs.Ops() - ops; n > 0 || len(*events) > 0 {
		t.Errorf("%d operations on the disk, events %v", n, *events)
	}
	d.open()
	d.verify()
	d.p.Abandon()
}
