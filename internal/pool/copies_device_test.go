package pool_test

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// devices has a file be a block device, whose node somebody makes anew when the machine starts.
type devices struct {
	vfs.FS
	name string
	made *time.Time
}

type deviceNode struct {
	fs.FileInfo
	made time.Time
}

func (n deviceNode) Mode() fs.FileMode  { return fs.ModeDevice | 0o600 }
func (n deviceNode) ModTime() time.Time { return n.made }

func (f devices) Stat(name string) (fs.FileInfo, error) {
	info, err := f.FS.Stat(name)
	if err == nil && name == f.name {
		info = deviceNode{info, *f.made}
	}
	return info, err
}

// withDevice makes a file of the pool's file system a block device.
func (d *inplace) withDevice(name string, size int64) devices {
	d.tb.Helper()
	d.must(d.p.Close(ctx))
	f, err := d.fs.Create(name)
	if errors.Is(err, fs.ErrExist) {
		f, err = d.fs.Open(name)
	}
	d.must(err)
	d.must(errors.Join(f.Truncate(size), f.Close()))
	dev := devices{d.fs, name, new(d.clock.now)}
	d.opts.FS = dev
	d.open()
	return dev
}

// TestDeviceIsTheSameAfterAReboot: the node of a device is made anew whenever the machine starts, which changes nothing of what it holds.
func TestDeviceIsTheSameAfterAReboot(t *testing.T) {
	d := copyCase{}.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	dev := d.withDevice("/sdx", 1<<20)
	then := d.read("v")
	infos, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "c", Copy: &pool.CopySpec{Technique: pool.Clone, Path: "/sdx", Replace: true}})
	d.must(err)
	_, err = d.p.Copy(ctx, infos[0].ID, pool.CopyOptions{})
	d.must(err)
	d.same("v@c", then)
	d.must(d.p.Close(ctx))
	*dev.made = dev.made.Add(time.Hour)
	d.open()
	d.same("v@c", then)
	f, err := d.fs.Open("/sdx")
	d.must(err)
	d.must(errors.Join(f.WriteAt([][]byte{{99}}, 0), f.Close()))
	if _, err := d.p.OpenSnapshot(copyRef); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("another content: %v", err)
	}
}

// TestVolumeOnADeviceIsTheSameAfterAReboot, too: its snapshots are not suspected.
func TestVolumeOnADeviceIsTheSameAfterAReboot(t *testing.T) {
	d := newInplace(t, 64<<10, 1)
	defer func() { _ = d.p.Close(ctx) }()
	dev := d.withDevice(diskImage, 64<<10)
	d.snapshot("s")
	d.submit(writeOp(0, 4096))
	d.must(d.p.Close(ctx))
	*dev.made = dev.made.Add(time.Hour)
	d.open() // an event fails the test
	d.verify()
}

// TestDeviceOfCopyGone: a copy to a device that is not there any more does not go on in a file of the name, nor one to a file in a device.
func TestDeviceOfCopyGone(t *testing.T) {
	d := copyCase{}.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	d.withDevice("/sdx", 1<<20)
	ask := func(name, path string) pool.SnapshotInfo {
		infos, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name, Copy: &pool.CopySpec{Technique: pool.CowCopy, Path: path, Replace: true}})
		d.must(err)
		return infos[0]
	}
	toDevice, toFile := ask("device", "/sdx"), ask("file", "/sdy")
	d.must(d.p.Close(ctx))
	d.must(d.fs.Rename("/sdx", "/sdy"))
	d.opts.FS = devices{d.fs, "/sdy", new(d.clock.now)}
	d.open()
	before := d.fileContent("/sdy")
	for _, info := range []pool.SnapshotInfo{toDevice, toFile} {
		if _, err := d.p.Copy(ctx, info.ID, pool.CopyOptions{}); !errors.Is(err, pool.ErrInvalid) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("to %s: %v", info.Copy.Path, err)
		}
	}
	if _, err := d.fs.Stat("/sdx"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file takes the place of the device: %v", err)
	}
	if string(d.fileContent("/sdy")) != string(before) {
		t.Error("a device was overwritten that was not asked for")
	}
}
