package pool_test

import (
	"bytes"
	"errors"
	"path"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// TestLoggedBlockIsLost: what cannot be read from the log is an error, and never what the file happens to have; the volume is not let go of
// until the block is written again, however.
func TestLoggedBlockIsLost(t *testing.T) {
	for _, again := range []func(*inplace) *block.Op{
		func(*inplace) *block.Op { return writeOp(4096, 4096) },
		func(*inplace) *block.Op { return bigWrite(0) },
	} {
		d := newInplace(t, 1<<20, 1)
		d.opts.OnEvent = func(pool.Event) {}
		d.must(d.p.Close(ctx))
		d.open()
		d.snapshot("s")
		d.submit(writeOp(4096, 4096), writeOp(12288, 4096))
		content := d.head.data[4096:8192]
		d.flush()
		rotContent(t, d.fs, content)
		b := make([]byte, 4096)
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		if err := dev.ReadAt(ctx, b, 4096); !errors.Is(err, block.ErrDamaged) {
			t.Errorf("read: %v", err)
		}
		part := writeOp(4096, 100)
		if dev.Submit(ctx, []*block.Op{part}); !errors.Is(part.Err, block.ErrDamaged) {
			t.Errorf("a write to a part of it: %v", part.Err)
		}
		d.must(dev.Close())
		report, err := d.p.Check(ctx, nil)
		d.must(err)
		if len(report.Damage) != 1 || report.Damage[0].Object != "v" || report.Damage[0].Offset != 4096 {
			t.Errorf("check: %+v", report.Damage)
		}
		_, _, err = d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "t"})
		d.must(err)
		d.submit(writeOp(20480, 4096))
		if err := d.p.Destage(ctx, "v"); !errors.Is(err, block.ErrDamaged) { // and goes on with the others
			t.Errorf("destage: %v", err)
		}
		d.flush()
		d.crash(crashfs.DropAll, false)
		dev, err = d.p.OpenVolume("v")
		d.must(err)
		if err := errors.Join(dev.ReadAt(ctx, b, 4096), dev.Close()); !errors.Is(err, block.ErrDamaged) {
			t.Errorf("read after a crash: %v", err)
		}
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}, {Volume: "v", Name: "t"}}))
		delete(d.snapshots, "s")
		if err := d.p.DeleteVolume(ctx, "v"); !errors.Is(err, block.ErrDamaged) || !strings.Contains(err.Error(), "written again") {
			t.Errorf("detach does not say what to do: %v", err)
		}
		if n := d.p.Logged("v"); n != 1 {
			t.Errorf("%d blocks are left in the log of three, one of which cannot be read", n)
		}
		d.submit(again(d))
		d.must(d.p.Cycle(ctx)) // what the snapshot had of it is gone
		d.verify()
		d.must(d.p.DeleteVolume(ctx, "v"))
		if !bytes.Equal(d.inFile(), d.head.data) {
			t.Error("the file is not what the volume was")
		}
		d.must(d.p.Close(ctx))
	}
}

// TestRollbackPutsLostBlocksRight: what cannot be read is the kept present's then, and the volume can be let go of.
func TestRollbackPutsLostBlocksRight(t *testing.T) {
	d := newQuiet(t, 1<<20)
	d.snapshot("s")
	d.submit(writeOp(4096, 4096))
	content := d.head.data[4096:8192]
	d.flush()
	rotContent(t, d.fs, content)
	kept, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"})
	d.must(err)
	d.head = d.snapshots["s"]
	d.must(d.p.CopyBack(ctx, "v", nil))
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}, {Volume: "v", Name: kept.Name}}))
	delete(d.snapshots, "s")
	d.must(d.p.Cycle(ctx))
	d.detached()
}

// TestUnreadableBlockFailsItsOwnWriteAlone: of writes that are done together, only the one fails that needs a block which cannot be read.
func TestUnreadableBlockFailsItsOwnWriteAlone(t *testing.T) {
	for _, long := range []bool{false, true} {
		d := newQuiet(t, 1<<20)
		d.snapshot("s")
		d.submit(writeOp(4096, 4096))
		content := d.head.data[4096:8192]
		d.flush()
		rotContent(t, d.fs, content)
		ops := []*block.Op{writeOp(20480, 4096), writeOp(4196, 100), writeOp(24576, 4096)}
		if long {
			ops = []*block.Op{bigWrite(256 << 10), writeOp(4196, 68<<10), bigWrite(512 << 10)}
		}
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		dev.Submit(ctx, ops)
		for i, o := range ops {
			if i == 1 {
				if !errors.Is(o.Err, block.ErrDamaged) {
					t.Errorf("a write to a part of it: %v", o.Err)
				}
				continue
			}
			d.must(o.Err)
			d.applied(dev, o)
		}
		d.must(dev.Close())
		d.submit(writeOp(4096, 4096))
		d.verify()
		d.must(d.p.Close(ctx))
	}
}

// TestUnreadablePlaceFailsItsOwnWriteAlone: nor does a place of the file that cannot be kept fail others.
func TestUnreadablePlaceFailsItsOwnWriteAlone(t *testing.T) {
	d := newQuiet(t, 1<<20)
	d.snapshot("s")
	remove := d.fs.Inject(crashfs.Fault{Err: errIO, Match: func(o crashfs.Op) bool {
		return o.Kind == crashfs.Read && o.Path == diskImage && o.Offset < 8192 && o.Offset+o.Length > 4096
	}})
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	ops := []*block.Op{writeOp(0, 4096), writeOp(4096, 4096), writeOp(8192, 4096)}
	dev.Submit(ctx, ops)
	for i, o := range ops {
		if i == 1 {
			if !errors.Is(o.Err, errIO) {
				t.Errorf("what a snapshot has cannot be read, and is overwritten: %v", o.Err)
			}
			continue
		}
		d.must(o.Err)
		d.applied(dev, o)
	}
	remove()
	d.must(dev.Close())
	d.verify()
	d.must(d.p.Close(ctx))
}

// rotContent changes a byte of where the log has some content.
func rotContent(t *testing.T, fs *crashfs.FS, content []byte) {
	t.Helper()
	names, err := fs.List("/pool/log")
	for _, name := range names {
		name = path.Join("/pool/log", name)
		var f vfs.File
		if f, err = fs.OpenReadOnly(name); err != nil {
			break
		}
		size, e := f.Size()
		b := make([]byte, size)
		if e == nil {
			_, e = f.ReadAt(b, 0)
		}
		if err = errors.Join(e, f.Close()); err != nil {
			break
		}
		if at := bytes.Index(b, content); at >= 0 {
			rot(t, fs, name, int64(at))
			return
		}
	}
	t.Fatalf("the log does not have it: %v", err)
}
