package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

const putBackBytes = 1<<20 + 4608 // of the volume that is rolled back

// putBackStory is a volume of either layout with a snapshot s, in which everything was written, and of which blocks 0 to 9 and the last were
// overwritten since.
func putBackStory(t *testing.T, layout string) *inplace {
	t.Helper()
	d := newInplace(t, putBackBytes, 1)
	if layout == "redirect" {
		d.must(d.p.DeleteVolume(ctx, "v"))
		_, err := d.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: putBackBytes})
		d.must(err)
	}
	d.submit(writeOp(0, putBackBytes))
	d.snapshot("s")
	d.submit(writeOp(0, 10*block.Size), writeOp(putBackBytes-512, 512))
	return d
}

// layouts runs a test for each layout.
func layouts(t *testing.T, f func(t *testing.T, d *inplace)) {
	for _, layout := range []string{"redirect", "inplace"} {
		t.Run(layout, func(t *testing.T) {
			d := putBackStory(t, layout)
			f(t, d)
			d.must(d.p.Close(ctx))
		})
	}
}

var ofStory = pool.SnapshotRef{Volume: "v", Name: "s"}

// owned fails unless every place has one owner, and what is there is in order.
func (d *inplace) owned() {
	d.tb.Helper()
	d.must(d.p.Cycle(ctx))
	d.must(d.p.CheckOwners())
	d.verify()
}

// TestRollbackRanges: what differs in the ranges is put back, and nothing else; the rest is told as unchanged; the way back is a rollback.
func TestRollbackRanges(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		present := d.head.clone()
		d.putBack("s", pool.Range{Offset: 8 * block.Size, Length: 4 * block.Size}, pool.Range{Offset: 4096, Length: 8192}, pool.Range{Offset: 8192, Length: 4096},
			pool.Range{Offset: 1 << 20, Length: 4608})
		d.owned()
		if d.head.data[0] != present.data[0] || d.head.data[4096] != d.snapshots["s"].data[4096] || d.head.data[putBackBytes-1] != d.snapshots["s"].data[putBackBytes-1] {
			t.Error("the model does not do what it is for")
		}
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.owned()
		kept := d.newest()
		info, err := d.p.Snapshot(pool.SnapshotRef{Volume: "v", Name: kept})
		d.must(err)
		if !info.Automatic || !strings.HasPrefix(kept, "auto-before-rollback-") || !info.Head {
			t.Errorf("what is kept is %+v", info)
		}
		d.rollback(kept)
		if !slices.Equal(d.head.data, present.data) {
			t.Error("undone, it is not what it was")
		}
		d.owned()
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.owned()
		done, _, err := d.p.RollbackRanges(ctx, ofStory, []pool.Range{{Offset: 4096, Length: 4096}, {Offset: 0, Length: 4096}, {Offset: 9 * block.Size, Length: 1<<20 + 4608 - 9*block.Size}}, nil)
		d.must(err)
		if want := []pool.Range{{Offset: 0, Length: 8192}, {Offset: 9 * block.Size, Length: 1<<20 + 4608 - 9*block.Size}}; !slices.Equal(done.Ranges, want) || done.Bytes != 3*block.Size+512 {
			t.Errorf("put back were %d bytes of %v", done.Bytes, done.Ranges)
		}
		d.snapshots, d.bookmarks = map[string]heldState{}, nil // the model was not told
	})
}

// TestRollbackRangesRefuses what is no range of the volume and the snapshot.
func TestRollbackRangesRefuses(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		for _, c := range []struct {
			ranges []pool.Range
			says   string
		}{
			{nil, "no range"},
			{[]pool.Range{{0, 4096}, {4096, 0}}, "range 4096+0: it is empty"},
			{[]pool.Range{{-4096, 8192}}, "negative"},
			{[]pool.Range{{0, -4096}}, "negative"},
			{[]pool.Range{{512, 4096}}, "its offset is no multiple of 4096"},
			{[]pool.Range{{0, 512}}, "its length is no multiple of 4096"},
			{[]pool.Range{{1 << 20, 8192}}, fmt.Sprintf("beyond the volume, which has %d bytes", putBackBytes)},
			{[]pool.Range{{1 << 62, 1 << 62}}, "beyond the volume"},
			{[]pool.Range{{1 << 40, 4096}}, "beyond the volume"},
		} {
			if _, _, err := d.p.RollbackRanges(ctx, ofStory, c.ranges, nil); !errors.Is(err, pool.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v: %v", c.ranges, err)
			}
		}
		_, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "none"}, []pool.Range{{0, 4096}}, nil)
		if !errors.Is(err, pool.ErrNotFound) {
			t.Errorf("no snapshot: %v", err)
		}
		d.owned()
	})
}

// TestRollbackRangesOfASmallerSnapshot: what it has ends before the volume does.
func TestRollbackRangesOfASmallerSnapshot(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 8704)
	d.submit("a", writeOp(0, 8704))
	d.snapshot("s", "a")
	d.resize("a", 20<<10)
	d.submit("a", writeOp(0, 20<<10))
	d.putBack("a", "s", pool.Range{Offset: 4096, Length: 4608}) // ends where the snapshot does
	d.verify()
	_, _, err := d.p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "a", Name: "s"}, []pool.Range{{Offset: 8192, Length: 4096}}, nil)
	if !errors.Is(err, pool.ErrInvalid) || !strings.Contains(err.Error(), "beyond the snapshot, which has 8704 bytes") {
		t.Errorf("%v", err)
	}
	if err := d.p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// underWay rolls all of the story's volume back by ranges, and does something once when a part of it is done.
func (d *inplace) underWay(ctx context.Context, do func()) (pool.PutBack, error) {
	d.tb.Helper()
	done, _, err := d.p.RollbackRanges(ctx, ofStory, []pool.Range{{Offset: 0, Length: putBackBytes}}, func(part float64) error {
		if do != nil && part > 0 && part < 1 {
			do()
			do = nil
		}
		return nil
	})
	if do != nil && err == nil {
		d.tb.Fatal("there was no progress")
	}
	return done, err
}

// seen is all that the pool shows of volumes and snapshots.
func (d *inplace) seen() string {
	d.tb.Helper()
	snapshots, err := d.p.Snapshots("")
	d.must(err)
	holders, err := d.p.Holders(ctx)
	d.must(err)
	names := []string{}
	for _, h := range slices.Concat(holders.Volumes, holders.Snapshots) {
		names = append(names, h.Name)
	}
	return fmt.Sprintf("%+v %+v %v", d.p.Volumes(), snapshots, names)
}

// TestRollbackRangesIsSeenByNobody before it is done, and stands in the way of nothing but of deleting the volume and of another one.
func TestRollbackRangesIsSeenByNobody(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		before := d.seen()
		_, err := d.underWay(ctx, func() {
			if now := d.seen(); now != before {
				t.Errorf("while it is under way there is\n%s\nand was\n%s", now, before)
			}
			d.same("v", d.head.data)
			if err := d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{ofStory}); !errors.Is(err, pool.ErrInUse) {
				t.Errorf("deleting the snapshot: %v", err)
			}
			if _, err := d.underWay(ctx, nil); !errors.Is(err, pool.ErrInUse) {
				t.Errorf("another one: %v", err)
			}
			d.must(d.p.RenameVolume(ctx, "v", "w"))
			if err := d.p.DeleteVolume(ctx, "w"); !errors.Is(err, pool.ErrInUse) {
				t.Errorf("deleting the volume: %v", err)
			}
			d.must(d.p.Checkpoint(ctx))
			d.must(d.p.Cycle(ctx))
		})
		d.must(err)
		if got, want := d.read("w"), d.snapshots["s"].data; !slices.Equal(got, want) {
			t.Error("it is not put back")
		}
		list, err := d.p.Snapshots("w")
		d.must(err)
		if len(list) != 2 || !slices.Equal(d.read("w@"+list[1].Name), d.head.data) {
			t.Errorf("what was before is not kept: %+v", list)
		}
	})
}

// TestRollbackRangesIsUndone, with all that it made, where it is not wanted any more, or the volume is not what was kept.
func TestRollbackRangesIsUndone(t *testing.T) {
	var client *pool.Device
	for name, c := range map[string]struct {
		do   func(d *inplace, cancel func())
		want error
	}{
		"cancelled":  {func(_ *inplace, cancel func()) { cancel() }, context.Canceled},
		"written to": {func(d *inplace, _ func()) { d.submit(writeOp(1<<20, 512)) }, pool.ErrInUse},
		"a client has written, and what it wrote was there": {func(d *inplace, _ func()) {
			var err error
			client, err = d.p.OpenVolume("v")
			d.must(err)
			client.Submit(ctx, []*block.Op{{Kind: block.OpDiscard, Offset: 0, Length: 1}}) // in part of a block: nothing
		}, pool.ErrInUse},
		"rolled back": {func(d *inplace, _ func()) { d.rollback("s") }, pool.ErrInUse},
	} {
		t.Run(name, func(t *testing.T) {
			layouts(t, func(t *testing.T, d *inplace) {
				d.must(d.p.Cycle(ctx))
				states, volumes := len(d.p.States()), len(d.p.Volumes())
				work, cancel := context.WithCancel(ctx)
				defer cancel()
				if _, err := d.underWay(work, func() { c.do(d, cancel) }); !errors.Is(err, c.want) {
					t.Fatal(err)
				}
				if client != nil {
					d.must(client.Close())
					client = nil
				}
				if name == "rolled back" {
					states++ // what that kept
				}
				if n := len(d.p.States()); n != states || len(d.p.Volumes()) != volumes {
					t.Errorf("%d states were there, and %d are", states, n)
				}
				d.owned()
				if _, err := d.underWay(ctx, nil); err != nil {
					t.Errorf("another time: %v", err)
				}
				d.snapshots[d.newest()] = d.head.clone()
				d.head.data = d.snapshots["s"].data
				d.same("v", d.head.data)
			})
		})
	}
}

// TestRollbackRangesRefusesWriters before anything is made.
func TestRollbackRangesRefusesWriters(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		dev, err := d.p.OpenVolume("v")
		d.must(err)
		o := writeOp(0, 512)
		dev.Submit(ctx, []*block.Op{o})
		d.must(o.Err)
		d.applied(dev, o)
		reached := func(part float64) error {
			if part > 0 {
				return errors.New("it has begun")
			}
			return nil
		}
		if _, _, err := d.p.RollbackRanges(ctx, ofStory, []pool.Range{{Offset: 0, Length: 4096}}, reached); !errors.Is(err, pool.ErrInUse) {
			t.Errorf("%v", err)
		}
		d.must(dev.Close())
		d.owned()
	})
}

// TestSnapshotsMayBeMadeWhileRangesAreRolledBack, and what an earlier rollback left is copied back: all of them stay what they are.
func TestSnapshotsMayBeMadeWhileRangesAreRolledBack(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		d.snapshot("two")
		d.submit(writeOp(0, 4*block.Size))
		d.rollback("two") // blocks 0 to 3 have to be copied back
		present := d.head.clone()
		done, err := d.underWay(ctx, func() {
			d.must(d.p.CopyBack(ctx, "v", nil))
			d.snapshot("meanwhile")
		})
		d.must(err)
		d.snapshots[done.Kept.Name] = present
		d.head = d.snapshots["s"].clone()
		for b, v := range d.head.version {
			if v != present.version[b] {
				d.names++
				d.head.version[b] = d.names
			}
		}
		d.owned()
		d.submit(writeOp(0, 10*block.Size))
		d.owned()
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.owned()
		d.submit(writeOp(0, putBackBytes))
		d.owned()
		d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "meanwhile"}, {Volume: "v", Name: done.Kept.Name}}))
		delete(d.snapshots, "meanwhile")
		delete(d.snapshots, done.Kept.Name)
		d.owned()
	})
}

// TestRollbackRangesOnAFullPool is refused, undone, and gives back what it took.
func TestRollbackRangesOnAFullPool(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		full := 0
		d.must(d.p.Close(ctx))
		d.opts.OnEvent = func(e pool.Event) {
			if full++; !strings.HasPrefix(e.Kind, "space-") {
				t.Errorf("event %+v", e)
			}
		}
		d.open()
		d.submit(writeOp(0, putBackBytes))
		d.must(d.p.Cycle(ctx))
		states := len(d.p.States())
		size := d.p.Info().LogSizeBytes
		d.must(d.p.SetQuota(ctx, size+1<<20, 0))
		live := d.p.Info().LiveBytes
		_, _, err := d.p.RollbackRanges(ctx, ofStory, []pool.Range{{Offset: 0, Length: putBackBytes}}, nil)
		if !errors.Is(err, block.ErrNoSpace) || !strings.Contains(err.Error(), "quota") {
			t.Fatalf("%v", err)
		}
		if full == 0 {
			t.Error("nobody is told")
		}
		if n := len(d.p.States()); n != states {
			t.Errorf("%d states were there, and %d are", states, n)
		}
		d.owned()
		if now := d.p.Info().LiveBytes; now > live+1<<16 {
			t.Errorf("%d bytes are live, and %d were", now, live)
		}
		if now := d.p.Info().LogSizeBytes; now > size+1<<18 {
			t.Errorf("the log has %d bytes, and had %d", now, size)
		}
	})
}

// TestRollbackRangesUnderLoad: others write, delete and reclaim all the time while one volume is rolled back again and again.
func TestRollbackRangesUnderLoad(t *testing.T) {
	for _, layout := range []string{"redirect", "inplace"} {
		t.Run(layout, func(t *testing.T) { rollbackUnderLoad(t, layout == "inplace") })
	}
}

func rollbackUnderLoad(t *testing.T, inplace bool) {
	const blocks, rounds = 2048, 8
	dir := t.TempDir()
	p := openInplaceOS(t, inplaceOptions(dir), path.Join(dir, "disk"), blocks*block.Size)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if !inplace {
		must(p.DeleteVolume(ctx, "v"))
		_, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: blocks * block.Size})
		must(err)
	}
	_, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "other", SizeBytes: 8 << 20})
	must(err)
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := int64(0); work.Err() == nil; n++ {
			dev, err := p.OpenVolume("other")
			if err != nil {
				t.Error(err)
				return
			}
			o := writeOp(n%7<<20, 1<<20)
			if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
				t.Error(o.Err)
			}
			_ = dev.Close()
		}
	})
	wg.Go(func() {
		for work.Err() == nil {
			if _, err := p.Reclaim(work); err != nil && work.Err() == nil {
				t.Error(err)
			}
		}
	})
	content := make([]byte, blocks*block.Size)
	write := func(lba, n int64) {
		dev, err := p.OpenVolume("v")
		must(err)
		o := writeOp(lba*block.Size, n*block.Size)
		dev.Submit(ctx, []*block.Op{o})
		must(errors.Join(o.Err, dev.Close()))
		copy(content[o.Offset:], o.Data)
	}
	for n := range int64(rounds) {
		then := bytes.Clone(content)
		_, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
		must(err)
		write(n*37%1024, 512)
		write(n*53%1024, 1024)
		present := bytes.Clone(content)
		r := pool.Range{Offset: n * 41 % 1024 * block.Size, Length: 700 * block.Size}
		done, _, err := p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{r}, nil)
		must(err)
		copy(content[r.Offset:r.Offset+r.Length], then[r.Offset:])
		if n%2 == 0 && inplace {
			must(p.CopyBack(ctx, "v", nil))
		}
		if n%3 == 0 {
			write(n*29%1024, 100)
		}
		for name, want := range map[string][]byte{"v": content, "v@s": then, "v@" + done.Kept.Name: present} {
			if !bytes.Equal(contentOf(t, p, name), want) {
				t.Fatalf("round %d: %s is not what it was", n, name)
			}
		}
		must(p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}, {Volume: "v", Name: done.Kept.Name}}))
		if !bytes.Equal(contentOf(t, p, "v"), content) {
			t.Fatalf("round %d: without its snapshots the volume is not what it was", n)
		}
	}
	stop()
	wg.Wait()
	report, err := p.Check(ctx, nil)
	must(errors.Join(err, p.Close(ctx)))
	if len(report.Damage) > 0 {
		t.Errorf("%+v", report.Damage)
	}
}

// TestRollbackRangesOfHoles: what was a hole takes no data to be put back, however much was written there since.
func TestRollbackRangesOfHoles(t *testing.T) {
	const size = 80 << 20
	dir := t.TempDir()
	p := openInplaceOS(t, inplaceOptions(dir), path.Join(dir, "disk"), size)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"})
	must(err)
	dev, err := p.OpenVolume("v")
	must(err)
	for off := int64(0); off < size; off += 4 << 20 {
		o := writeOp(off, 4<<20)
		dev.Submit(ctx, []*block.Op{o})
		must(o.Err)
	}
	must(dev.Close())
	before := p.Info().LogBytes
	done, _, err := p.RollbackRanges(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}, []pool.Range{{Offset: 0, Length: size}}, nil)
	must(err)
	if n := p.Info().LogBytes - before; done.Bytes != size || n > size/20 {
		t.Errorf("putting %d bytes of holes back took %d bytes", done.Bytes, n)
	}
	zero := func() {
		t.Helper()
		if b := contentOf(t, p, "v"); !bytes.Equal(b, make([]byte, size)) {
			t.Error("the volume is not empty again")
		}
	}
	zero()
	must(p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: done.Kept.Name}}))
	must(p.CopyBack(ctx, "v", nil))
	zero()
	if info, err := p.Volume("v"); err != nil || info.MappedBytes != 0 {
		t.Errorf("the file takes %d bytes, %v", info.MappedBytes, err)
	}
	must(p.Close(ctx))
}
