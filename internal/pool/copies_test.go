package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// copyCase is a way to make a copy.
type copyCase struct {
	inplace   bool
	based     bool // over a base, of which nothing is filled
	technique pool.Technique
	path      string // empty: into the pool
}

func (c copyCase) String() string {
	return fmt.Sprintf("%s of %s to %s", map[pool.Technique]string{pool.CowCopy: "cow-copy", pool.Clone: "clone"}[c.technique],
		map[bool]string{false: "redirect", true: "inplace"}[c.inplace]+map[bool]string{true: " over a base"}[c.based], map[bool]string{true: "pool", false: "file"}[c.path == ""])
}

func copyCases() (out []copyCase) {
	for _, inplace := range []bool{false, true} {
		for _, technique := range []pool.Technique{pool.CowCopy, pool.Clone} {
			for _, path := range []string{"", "/copy.img"} {
				out = append(out, copyCase{inplace, false, technique, path})
				if !inplace {
					out = append(out, copyCase{inplace, true, technique, path})
				}
			}
		}
	}
	return out
}

const copiedBlocks = 24

var copyRef = pool.SnapshotRef{Volume: "v", Name: "c"}

// newCopied makes a pool with a volume v of 24 blocks and a bit, of which some are data, some were never written, and some were overwritten since
// snapshot "older".
func (c copyCase) setup(t *testing.T) *inplace {
	d := newInplace(t, copiedBlocks*block.Size-512, 1)
	if !c.inplace {
		d.must(d.p.DeleteVolume(ctx, "v"))
		spec := pool.VolumeSpec{Name: "v", SizeBytes: copiedBlocks*block.Size - 512}
		if c.based {
			ref, _ := smallBases.add(d.head.data[:10*block.Size])
			spec.Base = &pool.Base{Ref: ref, SizeBytes: 10 * block.Size}
		}
		_, err := d.p.CreateVolume(ctx, spec)
		d.must(err)
		if !c.based {
			d.write("v", dataOp(0, d.head.data[:10*block.Size]))
		}
	}
	_, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "older"})
	d.must(err)
	d.write("v", writeOp(3*block.Size, 2*block.Size), writeOp(23*block.Size, 3584))
	return d
}

func dataOp(off int64, data []byte) *block.Op {
	return &block.Op{Kind: block.OpWrite, Offset: off, Length: int64(len(data)), Data: data}
}

func (d *inplace) write(name string, ops ...*block.Op) {
	d.tb.Helper()
	dev, err := d.p.OpenVolume(name)
	d.must(err)
	dev.Submit(ctx, ops)
	for _, o := range ops {
		d.must(o.Err)
	}
	d.must(dev.Flush(ctx))
	d.must(dev.Close())
}

// ask makes the snapshot that is to become a copy.
func (c copyCase) ask(d *inplace) uuid.UUID {
	d.tb.Helper()
	infos, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "c", Copy: &pool.CopySpec{Technique: c.technique, Path: c.path}})
	d.must(err)
	return infos[0].ID
}

// copyThere tells whether the copy is in the list, and whether it is whole.
func copyThere(d *inplace) (there, whole bool) {
	info, err := d.p.Snapshot(copyRef)
	return err == nil, err == nil && info.Copy != nil && info.Copy.Finished
}

// TestCopyIsWhatTheVolumeWas: at every technique, layout and target the copy is the instant; it needs nothing of its volume, which can be deleted; it can be cloned,
// compared with, marked, and deleted, and nothing of it is left then.
func TestCopyIsWhatTheVolumeWas(t *testing.T) {
	for _, c := range copyCases() {
		t.Run(c.String(), func(t *testing.T) {
			d := c.setup(t)
			states, volumes := d.p.Counts()
			then := d.read("v")
			id := c.ask(d)
			if there, whole := copyThere(d); there != (c.technique == pool.CowCopy) || whole {
				t.Fatalf("before it is copied: listed %v, whole %v", there, whole)
			}
			d.write("v", writeOp(0, 5*block.Size), writeOp(20*block.Size, block.Size))
			half := errors.New("half")
			_, err := d.p.Copy(ctx, id, pool.CopyOptions{Progress: func(_ context.Context, done, _ int64) error {
				if done > 0 {
					return half
				}
				return nil
			}})
			if !errors.Is(err, half) {
				t.Fatalf("stopped on the way: %v", err)
			}
			d.must(d.p.Close(ctx))
			d.open()
			if waiting := d.p.Copying(); len(waiting) != 1 || waiting[0].ID != id {
				t.Fatalf("to be copied: %+v", waiting)
			}
			info, err := d.p.Copy(ctx, id, pool.CopyOptions{})
			d.must(err)
			if info.ID != id || info.Copy == nil || !info.Copy.Finished || info.Copy.Path != c.path || len(d.p.Copying()) != 0 {
				t.Fatalf("%+v", info)
			}
			d.same("v@c", then)
			if u, err := d.p.SnapshotUsage(ctx, copyRef); c.path == "" && (err != nil || u.Exclusive != u.Mapped || u.Mapped != map[bool]int64{false: 11, true: 13}[c.inplace]*block.Size) {
				t.Errorf("it holds %+v, %v", u, err)
			}

			// What changed since is known, as is what a bookmark of it says.
			_, err = d.p.CreateBookmark(ctx, copyRef, "mark")
			d.must(err)
			for _, from := range []pool.PointRef{{Volume: "v", Name: "c"}, {Volume: "v", Name: "mark", Bookmark: true}} {
				if got := changedBlocks(d, from, pool.PointRef{Volume: "v"}); !slices.Equal(got, []int64{0, 1, 2, 3, 4, 20}) {
					t.Errorf("changed since %s: %v", from, got)
				}
			}
			if got := changedBlocks(d, pool.PointRef{Volume: "v", Name: "older"}, pool.PointRef{Volume: "v", Name: "c"}); !slices.Equal(got, []int64{3, 4, 23}) {
				t.Errorf("changed before: %v", got)
			}
			dev, err := d.p.OpenSnapshot(copyRef)
			d.must(err)
			changes, err := dev.ChangesSince("older")
			d.must(err)
			runs, err := changes.Runs(ctx, 3*block.Size, 3*block.Size, 10)
			d.must(err)
			if len(runs) != 2 || runs[0] != (pool.Run{Length: 2 * block.Size, Changed: true}) {
				t.Errorf("changed in the open copy: %+v", runs)
			}
			if err := d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}); !errors.Is(err, pool.ErrInUse) {
				t.Errorf("deleting it while it is read: %v", err)
			}
			d.must(dev.Close())

			_, _, err = d.p.CloneVolume(ctx, copyRef, pool.VolumeSpec{Name: "w"})
			if c.path == "" {
				d.must(err)
				d.write("w", writeOp(0, block.Size))
				d.same("v@c", then)
			} else if !errors.Is(err, pool.ErrInvalid) {
				t.Errorf("a clone of a file: %v", err)
			}

			// The volume goes, and the copy stays.
			if err := d.p.DeleteVolume(ctx, "v"); !errors.Is(err, pool.ErrInUse) {
				t.Errorf("deleting the volume of a logical snapshot: %v", err)
			}
			d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "older"}}))
			d.must(d.p.DeleteVolume(ctx, "v"))
			if c.inplace {
				d.must(d.fs.Remove(diskImage))
			}
			for range 2 {
				d.same("v@c", then)
				if info, err := d.p.Volume("v"); err != nil || !info.Deleted || info.Path != "" {
					t.Fatalf("the deleted volume: %+v, %v", info, err)
				}
				if _, err := d.p.OpenVolume("v"); !errors.Is(err, pool.ErrNotFound) {
					t.Errorf("opening it: %v", err)
				}
				d.must(d.p.Cycle(ctx))
				d.must(d.p.CheckOwners())
				d.clean()
				d.must(d.p.Close(ctx))
				d.open()
			}
			d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
			if _, err := d.p.Volume("v"); !errors.Is(err, pool.ErrNotFound) {
				t.Errorf("the volume without copies: %v", err)
			}
			if c.path == "" {
				d.must(d.p.DeleteVolume(ctx, "w"))
			} else if _, err := d.fs.Stat(c.path); err != nil {
				t.Errorf("the file of the deleted copy: %v", err)
			}
			if s, v := d.p.Counts(); s != 0 || v != 0 {
				t.Errorf("%d states and %d volumes are left; at first %d and %d", s, v, states, volumes)
			}
			d.must(d.p.Cycle(ctx))
			d.must(d.p.Cycle(ctx))
			if live := d.p.Info().LiveBytes; live != 0 {
				t.Errorf("%d bytes live in an empty pool", live)
			}
			d.must(d.p.Close(ctx))
		})
	}
}

func changedBlocks(d *inplace, from, to pool.PointRef) (out []int64) {
	d.tb.Helper()
	diff, err := d.p.OpenDiff(from, to)
	d.must(err)
	defer diff.Close()
	d.must(diff.Each(ctx, func(off, length int64) error {
		for b := off / block.Size; b*block.Size < off+length; b++ {
			out = append(out, b)
		}
		return nil
	}))
	return out
}

// clean demands that a check finds nothing.
func (d *inplace) clean() {
	d.tb.Helper()
	report, err := d.p.Check(ctx, nil)
	d.must(err)
	if len(report.Damage) > 0 {
		d.tb.Fatalf("damage: %+v", report.Damage)
	}
}

// TestCancelledCopyLeavesNothing: a clone is gone, a cow-copy is the snapshot that it was, and no file or volume is left.
func TestCancelledCopyLeavesNothing(t *testing.T) {
	for _, c := range copyCases() {
		t.Run(c.String(), func(t *testing.T) {
			d := c.setup(t)
			defer func() { _ = d.p.Close(ctx) }()
			states, volumes := d.p.Counts()
			then := d.read("v")
			id := c.ask(d)
			stop, cancel := context.WithCancel(ctx)
			_, err := d.p.Copy(stop, id, pool.CopyOptions{Progress: func(_ context.Context, done, _ int64) error {
				if done > 0 {
					if err := d.p.CancelCopy(ctx, id); !errors.Is(err, pool.ErrInUse) {
						t.Errorf("cancelled while it is copied: %v", err)
					}
					cancel()
				}
				return nil
			}})
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			d.must(d.p.CancelCopy(ctx, id))
			if there, _ := copyThere(d); there != (c.technique == pool.CowCopy) {
				t.Errorf("listed: %v", there)
			} else if there {
				d.write("v", writeOp(0, block.Size))
				d.same("v@c", then)
				d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
			}
			if s, v := d.p.Counts(); s != states || v != volumes {
				t.Errorf("%d states and %d volumes, and before %d and %d", s, v, states, volumes)
			}
			names, err := d.fs.List("/")
			d.must(err)
			for _, n := range names {
				if strings.Contains(n, "copy.img") {
					t.Errorf("%s is left", n)
				}
			}
			d.clean()
		})
	}
}

// TestCopyRefuses: what cannot take a copy is refused at once, and nothing is left of it.
func TestCopyRefuses(t *testing.T) {
	c := copyCase{inplace: true, technique: pool.Clone}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	f, err := d.fs.Create("/there.img")
	d.must(err)
	d.must(errors.Join(f.WriteAt([][]byte{[]byte("precious")}, 0), f.Close()))
	d.must(d.fs.Mkdir("/dir"))
	_, err = d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "w", SizeBytes: block.Size})
	d.must(err)
	_, _, err = d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "going", Copy: &pool.CopySpec{Technique: pool.CowCopy, Path: "/going.img"}})
	d.must(err)
	states, _ := d.p.Counts()
	for _, r := range []struct {
		what    string
		volumes []string
		spec    pool.CopySpec
		want    error
	}{
		{"a file that exists", []string{"v"}, pool.CopySpec{Path: "/there.img"}, fs.ErrExist},
		{"a directory", []string{"v"}, pool.CopySpec{Path: "/dir", Replace: true}, pool.ErrInvalid},
		{"no such directory", []string{"v"}, pool.CopySpec{Path: "/none/x.img"}, fs.ErrNotExist},
		{"the volume's own file", []string{"v"}, pool.CopySpec{Path: diskImage, Replace: true}, pool.ErrInUse},
		{"what another copy is made in", []string{"v"}, pool.CopySpec{Path: "/going.img", Replace: true}, pool.ErrInUse},
		{"what another copy is made in, by its name until then", []string{"v"}, pool.CopySpec{Path: "/.going.img.varve-part", Replace: true}, pool.ErrInUse},
		{"a relative path", []string{"v"}, pool.CopySpec{Path: "x.img"}, pool.ErrInvalid},
		{"a file of the pool", []string{"v"}, pool.CopySpec{Path: "/pool/x.img"}, pool.ErrInvalid},
		{"one file for two volumes", []string{"v", "w"}, pool.CopySpec{Path: "/x.img"}, pool.ErrInvalid},
	} {
		r.spec.Technique = pool.Clone
		if _, _, err := d.p.CreateSnapshot(ctx, r.volumes, pool.SnapshotSpec{Name: "c", Copy: &r.spec}); !errors.Is(err, r.want) {
			t.Errorf("%s: %v", r.what, err)
		}
	}
	if s, _ := d.p.Counts(); s != states {
		t.Errorf("%d states are there, and %d were", s, states)
	}
	if _, err := d.fs.Stat("/.x.img.varve-part"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused copy leaves its file: %v", err)
	}
	_, _, err = d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "c", Copy: &pool.CopySpec{Technique: pool.Clone, Path: "/there.img", Replace: true}})
	d.must(err)
	if got := d.fileContent("/there.img"); !bytes.HasPrefix(got, []byte("precious")) {
		t.Error("a file is gone before what replaces it is whole")
	}
	for _, info := range d.p.Copying() {
		_, err := d.p.Copy(ctx, info.ID, pool.CopyOptions{})
		d.must(err)
	}
	if got := d.fileContent("/there.img"); !bytes.Equal(got, d.read("v@c")) {
		t.Error("the file is not what the copy is")
	}
}

func (d *inplace) fileContent(name string) []byte {
	d.tb.Helper()
	f, err := d.fs.OpenReadOnly(name)
	d.must(err)
	size, err := f.Size()
	d.must(err)
	b := make([]byte, size)
	_, err = f.ReadAt(b, 0)
	d.must(err)
	d.must(f.Close())
	return b
}

// TestFileOfCopyChanged: what somebody else has made of a copy's file is refused, not served.
func TestFileOfCopyChanged(t *testing.T) {
	c := copyCase{technique: pool.Clone, path: "/copy.img"}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
	d.must(err)
	d.clock.now = d.clock.now.Add(1e9)
	f, err := d.fs.Open("/copy.img")
	d.must(err)
	d.must(errors.Join(f.WriteAt([][]byte{{1}}, 5*block.Size), f.Close()))
	if _, err := d.p.OpenSnapshot(copyRef); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("a changed file: %v", err)
	}
	d.must(d.fs.Remove("/copy.img"))
	if _, err := d.p.OpenSnapshot(copyRef); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is gone: %v", err)
	}
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
}

// TestCopyAtEveryCrash crashes at every operation of the file system that making, cancelling and deleting a copy takes. The copy is wholly there or is gone on with, the
// volume and its snapshot are what they were, and in the end nothing is left.
func TestCopyAtEveryCrash(t *testing.T) {
	t.Parallel()
	for _, c := range copyCases() {
		t.Run(c.String(), func(t *testing.T) {
			d := c.setup(t)
			older, then := d.read("v@older"), d.read("v")
			images := 0
			asked := false
			d.fs.OnOp(func(n int, o crashfs.Op, opErr error) {
				if n%thin(2) != 0 {
					return
				}
				for _, p := range append(crashfs.Policies(len(d.fs.Pending())), crashfs.ProcessCrash, crashfs.Random(uint64(n))) {
					images++
					a := &inplace{tb: located{t, new(fmt.Sprintf("crash after operation %d (%v: %v), %v", n, o, opErr, p))}, fs: d.fs.CrashImage(p), clock: d.clock}
					a.opts = options(a.fs, a.clock)
					a.open()
					a.same("v@older", older)
					if there, _ := copyThere(a); there {
						a.same("v@c", then)
					}
					left := a.p.Copying()
					if asked && len(left) == 0 {
						if _, whole := copyThere(a); !whole {
							a.tb.Fatal("what was asked for is neither made nor to be made")
						}
					}
					for _, info := range left {
						_, err := a.p.Copy(ctx, info.ID, pool.CopyOptions{})
						a.must(err)
						a.same("v@c", then)
					}
					a.clean()
					a.must(a.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "older"}}))
					a.must(a.p.DeleteVolume(ctx, "v"))
					if there, _ := copyThere(a); there {
						a.same("v@c", then)
						a.must(a.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
					}
					if s, v := a.p.Counts(); s != 0 || v != 0 {
						a.tb.Fatalf("%d states and %d volumes are left", s, v)
					}
					a.must(a.p.Close(ctx))
				}
			})
			id := c.ask(d)
			asked = true
			_, err := d.p.Copy(ctx, id, pool.CopyOptions{})
			d.must(err)
			d.fs.OnOp(nil)
			d.must(d.p.Close(ctx))
			t.Logf("%d crashes", images)
		})
	}
}

// TestLettingCopiesGoAtEveryCrash crashes at every operation of the file system that cancelling a copy, deleting one, its volume and then itself take: the
// pool is sound, what is left of the copy reads as it did, and nothing is left of what can be deleted.
func TestLettingCopiesGoAtEveryCrash(t *testing.T) {
	t.Parallel()
	for _, c := range copyCases() {
		t.Run(c.String(), func(t *testing.T) {
			d := c.setup(t)
			then := d.read("v")
			cancelled := c.ask(d)
			look := func(n int, o crashfs.Op, opErr error) {
				for _, p := range append(crashfs.Policies(len(d.fs.Pending())), crashfs.ProcessCrash, crashfs.Random(uint64(n))) {
					a := &inplace{tb: located{t, new(fmt.Sprintf("crash after operation %d (%v: %v), %v", n, o, opErr, p))}, fs: d.fs.CrashImage(p), clock: d.clock}
					a.opts = options(a.fs, a.clock)
					a.open()
					a.clean()
					for _, info := range a.p.Copying() {
						a.must(a.p.CancelCopy(ctx, info.ID))
					}
					infos, err := a.p.Snapshots("")
					a.must(err)
					for _, info := range infos {
						ref := pool.SnapshotRef{Volume: info.Volume, Name: info.Name}
						if info.Name == "c" {
							a.same(ref.String(), then)
						}
						a.must(a.p.DeleteSnapshots(ctx, []pool.SnapshotRef{ref}))
					}
					for _, v := range a.p.Volumes() {
						a.must(a.p.DeleteVolume(ctx, v.Name))
					}
					if s, v := a.p.Counts(); s != 0 || v != 0 {
						a.tb.Fatalf("%d states and %d volumes are left", s, v)
					}
					a.must(a.p.Close(ctx))
				}
			}
			d.fs.OnOp(look)
			d.must(d.p.CancelCopy(ctx, cancelled))
			d.fs.OnOp(nil)
			if c.technique == pool.CowCopy {
				d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
			}
			_, err := d.p.Copy(ctx, c.ask(d), pool.CopyOptions{})
			d.must(err)
			d.fs.OnOp(look)
			d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "older"}}))
			d.must(d.p.DeleteVolume(ctx, "v"))
			d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{copyRef}))
			d.fs.OnOp(nil)
			d.must(d.p.Close(ctx))
		})
	}
}

// TestCopyWhileSomebodyReads: the snapshot that becomes a copy is there for those who read it until they are done.
func TestCopyWhileSomebodyReads(t *testing.T) {
	c := copyCase{inplace: true, technique: pool.CowCopy}
	d := c.setup(t)
	defer func() { _ = d.p.Close(ctx) }()
	id := c.ask(d)
	then := d.read("v@c")
	dev, err := d.p.OpenSnapshot(copyRef)
	d.must(err)
	size := dev.SizeBytes()
	ends := 0
	_, err = d.p.Copy(ctx, id, pool.CopyOptions{Progress: func(_ context.Context, done, total int64) error {
		if done < total {
			return nil
		}
		if ends++; ends == 3 { // it waits for the reader
			got := make([]byte, size)
			d.must(dev.ReadAt(ctx, got, 0))
			if !bytes.Equal(got, then) {
				t.Error("the reader sees something else")
			}
			d.must(dev.Close())
		}
		return nil
	}})
	d.must(err)
	if ends < 3 {
		t.Errorf("it did not wait: %d", ends)
	}
	d.same("v@c", then)
}

// TestFullPoolDropsWhatIsCopied: a cow-copy that may be given up where there is no room is given up also while it is copied.
func TestFullPoolDropsWhatIsCopied(t *testing.T) {
	d := newInplace(t, 8<<20, 1)
	var events []string
	d.opts.OnEvent = func(e pool.Event) { events = append(events, e.Kind) }
	d.must(d.p.Close(ctx))
	d.open()
	defer func() { _ = d.p.Close(ctx) }()
	d.must(d.p.SetQuota(ctx, 1<<20, 0))
	infos, _, err := d.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{
		Name: "c", DropWhenFull: true, Copy: &pool.CopySpec{Technique: pool.CowCopy, Path: "/copy.img"},
	})
	d.must(err)
	begun, ended := make(chan struct{}), make(chan error, 1)
	waiting := begun
	go func() {
		_, err := d.p.Copy(ctx, infos[0].ID, pool.CopyOptions{Progress: func(ctx context.Context, _, _ int64) error {
			if begun != nil { // and then it is paused
				close(begun)
				begun = nil
			}
			<-ctx.Done()
			return ctx.Err()
		}})
		ended <- err
	}()
	<-waiting
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	for off := int64(0); off < 4<<20; off += 64 << 10 {
		o := writeOp(off, 64<<10)
		if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
			t.Fatalf("a write at %d: %v", off, o.Err)
		}
	}
	d.must(dev.Close())
	if err := <-ended; err == nil || !slices.Contains(events, pool.EventSnapshotDropped) {
		t.Errorf("the copy ended with %v, events %v", err, events)
	}
	if _, err := d.fs.Stat("/.copy.img.varve-part"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what there was of the copy: %v", err)
	}
	if s, _ := d.p.Counts(); s != 2 {
		t.Errorf("%d states are left, not the two heads", s)
	}
}
