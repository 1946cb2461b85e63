package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// TestProtectACopy: a copy can be protected, which keeps it, also when the pool was opened again.
func TestProtectACopy(t *testing.T) {
	c := copyCase{technique: pool.Clone}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
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

// stopped ends a copy when that much of it is done, as a daemon that stops does.
func stopped(d *inplace, id uuid.UUID, at int64) {
	d.tb.Helper()
	half := errors.New("half")
	_, err := d.p.Copy(ctx, id, pool.CopyOptions{Progress: func(_ context.Context, done, _ int64) error {
		if done >= at {
			return half
		}
		return nil
	}})
	if !errors.Is(err, half) {
		d.tb.Fatalf("stopped on the way: %v", err)
	}
}

// TestFileOfCopyLostOnTheWay: a copy whose file is gone before it is whole is begun again from the first byte, however often it is cut short then.
func TestFileOfCopyLostOnTheWay(t *testing.T) {
	const size = 70 << 20 // more than is copied between two records
	d := newInplace(t, size, 1)
	defer func() { _ = d.p.Close(ctx) }()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i>>12) | 1
	}
	d.write("v", dataOp(0, data))
	id := copyCase{technique: pool.Clone, path: "/copy.img"}.ask(d)
	stopped(d, id, 66<<20)
	d.must(d.fs.Remove("/.copy.img.varve-part"))
	stopped(d, id, 2<<20)
	_, err := d.p.Copy(ctx, id, pool.CopyOptions{})
	d.must(err)
	if !bytes.Equal(d.read("v@c"), data) {
		t.Error("the copy is not what the volume was")
	}
}

// TestFileOfAnEarlierCopyIsNotTakenForThisOne crashes at every operation of the file system that a copy takes whose file has the name that a cancelled one
// had: what a power cut brings back of that is not taken for what was copied.
func TestFileOfAnEarlierCopyIsNotTakenForThisOne(t *testing.T) {
	c := copyCase{technique: pool.Clone, path: "/copy.img"}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	id := c.ask(d)
	stopped(d, id, 1)
	d.must(d.fs.SyncDir("/"))
	d.must(d.p.CancelCopy(ctx, id))
	d.write("v", writeOp(0, 8*block.Size))
	then := d.read("v")
	id = c.ask(d)
	d.fs.OnOp(func(n int, o crashfs.Op, opErr error) {
		a := &inplace{tb: located{t, new(fmt.Sprintf("crash after operation %d (%v: %v)", n, o, opErr))}, fs: d.fs.CrashImage(crashfs.DropAll), clock: d.clock}
		a.opts = options(a.fs, a.clock)
		a.open()
		for _, info := range a.p.Copying() {
			_, err := a.p.Copy(ctx, info.ID, pool.CopyOptions{})
			a.must(err)
		}
		a.same("v@c", then)
		a.must(a.p.Close(ctx))
	})
	_, err := d.p.Copy(ctx, id, pool.CopyOptions{})
	d.must(err)
	d.fs.OnOp(nil)
}

// TestCopiesKeepOffEachOthersFiles: what another copy is made in, or a volume lies in, is left alone, by whatever path it is named, and also where it has the name that
// the file would have until it is whole.
func TestCopiesKeepOffEachOthersFiles(t *testing.T) {
	dir := t.TempDir()
	o := pool.Options{FS: vfs.OS(), Dir: dir + "/pool"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(errors.Join(os.Mkdir(dir+"/real", 0o700), os.Symlink(dir+"/real", dir+"/link"), pool.Create(ctx, o)))
	p, err := pool.Open(ctx, o)
	must(err)
	defer func() { must(p.Close(ctx)) }()
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: block.Size})
	must(err)
	_, err = p.AdoptVolume(ctx, pool.PlaceSpec{Name: "w", Path: dir + "/real/.b.img.varve-part", SizeBytes: block.Size})
	must(err)
	ask := func(name, path string) error {
		_, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name, Copy: &pool.CopySpec{Technique: pool.Clone, Path: path}})
		return err
	}
	must(ask("a", dir+"/real/a.img"))
	for _, path := range []string{"/link/a.img", "/real/b.img", "/link/b.img", "/link/.a.img.varve-part"} {
		before, err := os.Stat(dir + "/real/.a.img.varve-part")
		must(err)
		if err := ask("b", dir+path); !errors.Is(err, pool.ErrInUse) {
			t.Errorf("%s: %v", path, err)
		}
		if after, err := os.Stat(dir + "/real/.a.img.varve-part"); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: the file of the other copy is another: %v", path, err)
		}
	}
	if _, err := os.Stat(dir + "/real/.b.img.varve-part"); err != nil {
		t.Errorf("the volume's file: %v", err)
	}
}

// TestOneFileForTwoCopiesAtOnce: of two who ask for one file at the same time one gets it.
func TestOneFileForTwoCopiesAtOnce(t *testing.T) {
	d := copyCase{}.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	for i := range 50 {
		errs := make(chan error)
		for j := range 2 {
			go func() {
				_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{
					Name: fmt.Sprintf("s%d-%d", i, j), Copy: &pool.CopySpec{Technique: pool.CowCopy, Path: fmt.Sprintf("/%d.img", i)},
				})
				errs <- err
			}()
		}
		if one, other := <-errs, <-errs; (one == nil) == (other == nil) || !errors.Is(errors.Join(one, other), pool.ErrInUse) {
			t.Fatalf("round %d: %v and %v", i, one, other)
		}
	}
}

// slow is a file system in which somebody looks at a file's being opened and described.
type slow struct {
	vfs.FS
	asked func(name string)
}

func (f slow) OpenDisk(name string, write bool) (vfs.File, error) {
	f.asked(name)
	return f.FS.OpenDisk(name, write)
}

func (f slow) Stat(name string) (fs.FileInfo, error) {
	f.asked(name)
	return f.FS.Stat(name)
}

// TestSlowFileHoldsUpNobody: while the file of a copy is opened, or asked what it takes, nothing is held that others need.
func TestSlowFileHoldsUpNobody(t *testing.T) {
	c := copyCase{technique: pool.Clone, path: "/copy.img"}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.must(d.p.Close(ctx))
	looks := 0
	d.opts.FS = slow{d.fs, func(name string) {
		if name != "/copy.img" {
			return
		}
		looks++
		free := make(chan struct{})
		go func() {
			d.p.LockAndUnlock()
			close(free)
		}()
		select {
		case <-free:
		case <-time.After(10 * time.Second):
			t.Errorf("look %d: the pool is held meanwhile", looks)
		}
	}}
	d.open()
	for _, use := range []func() error{
		func() error {
			dev, err := d.p.OpenSnapshot(copyRef)
			if err != nil {
				return err
			}
			return dev.Close()
		},
		func() error { _, err := d.p.Snapshot(copyRef); return err },
		func() error { _, err := d.p.Snapshots("v"); return err },
		func() error { d.p.UsedBy("/other.img"); return nil },
	} {
		before := looks
		if d.must(use()); looks == before {
			t.Error("nobody has looked at the file")
		}
	}
}

// TestParentsAreWhatCanBeSeen: what descends from a copy's content says the copy, and nothing names a snapshot that is not listed.
func TestParentsAreWhatCanBeSeen(t *testing.T) {
	c := copyCase{technique: pool.Clone}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	id := c.ask(d)
	info, err := d.p.Volume("v")
	d.must(err)
	older, err := d.p.Snapshot(pool.SnapshotRef{Volume: "v", Name: "older"})
	d.must(err)
	if info.Parent != "older" || !older.Head {
		t.Errorf("while a clone is made, the volume descends from %q, from the older snapshot: %v", info.Parent, older.Head)
	}
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	if names := dev.OlderNames(10); !slices.Equal(names, []string{"older"}) {
		t.Errorf("the volume can be compared with %q", names)
	}
	d.must(dev.Close())
	_, err = d.p.Copy(ctx, id, pool.CopyOptions{})
	d.must(err)
	_, _, err = d.p.CloneVolume(ctx, copyRef, pool.VolumeSpec{Name: "w"})
	d.must(err)
	made, _, err := d.p.CreateSnapshot(ctx, []string{"w"}, pool.SnapshotSpec{Name: "s"})
	d.must(err)
	if made[0].Parent != "v@c" {
		t.Errorf("a snapshot of a clone of a copy descends from %q", made[0].Parent)
	}
}

// TestFileThatComesAtTheLastMoment, when it was looked whether there is one, is not replaced unless that was asked for.
func TestFileThatComesAtTheLastMoment(t *testing.T) {
	for _, replace := range []bool{false, true} {
		d := copyCase{}.setup(t)
		infos, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "c", Copy: &pool.CopySpec{Technique: pool.CowCopy, Path: "/copy.img", Replace: replace}})
		d.must(err)
		d.must(d.p.Close(ctx))
		d.opts.FS = lastMoment{d.fs}
		d.open()
		_, err = d.p.Copy(ctx, infos[0].ID, pool.CopyOptions{})
		if replace {
			d.must(err)
		} else if got := d.fileContent("/copy.img"); !errors.Is(err, fs.ErrExist) || string(got) != "precious" {
			t.Errorf("%q is there: %v", got, err)
		}
		d.must(d.p.Close(ctx))
	}
}

// lastMoment is a file system in which somebody makes the file of a copy just before that gets its name.
type lastMoment struct{ vfs.FS }

func (f lastMoment) come(name string) error {
	if name != "/copy.img" {
		return nil
	}
	file, err := f.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(file.WriteAt([][]byte{[]byte("precious")}, 0), file.Close())
}

func (f lastMoment) Rename(from, to string) error {
	if err := f.come(to); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

func (f lastMoment) RenameNew(from, to string) error {
	if err := f.come(to); err != nil {
		return err
	}
	return f.FS.RenameNew(from, to)
}

// TestFileChangedWhileTheCopyWaits: when the file is whole, and the copy waits for a reader of the snapshot, somebody changes the file. The snapshot stays.
func TestFileChangedWhileTheCopyWaits(t *testing.T) {
	c := copyCase{technique: pool.CowCopy, path: "/copy.img"}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	id := c.ask(d)
	then := d.read("v@c")
	dev, err := d.p.OpenSnapshot(copyRef)
	d.must(err)
	ends := 0
	_, err = d.p.Copy(ctx, id, pool.CopyOptions{Progress: func(_ context.Context, done, total int64) error {
		if done == total {
			ends++
		}
		if ends == 2 && dev != nil {
			f, err := d.fs.Open("/copy.img")
			d.must(err)
			d.must(errors.Join(f.WriteAt([][]byte{{99}}, 0), f.Close(), dev.Close()))
			dev = nil
		}
		return nil
	}})
	if err == nil {
		t.Error("a file that was changed became the copy")
	}
	d.same("v@c", then)
}
