package pool_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path"
	"runtime"
	"sync"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// openMirroredOS makes a pool on the real file system with a volume.
func openMirroredOS(tb testing.TB, layout string, size int64) (p *pool.Pool, leg string) {
	tb.Helper()
	dir := tb.TempDir()
	o := pool.Options{FS: vfs.OS(), Dir: path.Join(dir, "pool"), SegmentBytes: 4 << 20}
	if err := pool.Create(ctx, o); err != nil {
		tb.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		tb.Fatal(err)
	}
	if layout == "inplace" {
		_, err = p.AdoptVolume(ctx, pool.PlaceSpec{Name: "v", Path: path.Join(dir, "disk"), SizeBytes: size})
	} else {
		_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size})
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p, path.Join(dir, "leg")
}

func sameAsLeg(t *testing.T, p *pool.Pool, leg string) {
	t.Helper()
	want := contentOf(t, p, "v")
	got, err := os.ReadFile(leg)
	if err != nil {
		t.Fatal(err)
	}
	for b := 0; b < len(want); b += block.Size {
		if !bytes.Equal(got[b:b+block.Size], want[b:b+block.Size]) {
			t.Fatalf("block %d differs", b/block.Size)
		}
	}
}

// TestMirrorUnderLoad: writers of the same blocks, whose writes overlap in every way, while the leg is attached, copied to, cleared, detached and
// attached again: whenever they pause and it is in sync, both sides are the same.
func TestMirrorUnderLoad(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		const blocks, writers = 3 * 256, 4
		p, leg := openMirroredOS(t, layout, blocks*block.Size)
		for round := range 6 {
			work, stop := context.WithCancel(ctx)
			var wg sync.WaitGroup
			for w := range writers {
				dev, err := p.OpenVolume("v")
				if err != nil {
					t.Fatal(err)
				}
				r := rand.New(rand.NewPCG(uint64(w), uint64(round)))
				wg.Go(func() {
					defer func() { _ = dev.Close() }()
					for n := 0; work.Err() == nil; n++ {
						lba, count := r.Int64N(8)*64, 1+r.Int64N(64)
						o := &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: count * block.Size, Data: bytes.Repeat([]byte{byte(w), byte(n)}, int(count)*block.Size/2)}
						if n%16 == 15 {
							o.Kind, o.Data = block.OpZero, nil
						}
						if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
							t.Errorf("write: %v", o.Err)
							return
						}
					}
				})
			}
			if _, err := p.AttachMirror(ctx, "v", pool.LegSpec{Path: leg, Force: true}); err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := p.SyncMirror(short, "v", nil)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if err := p.ClearRegions("v"); err != nil {
					t.Fatal(err)
				}
				if err := flushOf(p); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			wg.Wait()
			if info, err := p.Mirror("v"); err != nil || info.State != pool.MirrorInSync {
				t.Fatalf("the mirror is %+v (%v)", info, err)
			}
			sameAsLeg(t, p, leg)
			if round%2 == 0 {
				work, stop = context.WithCancel(ctx)
				dev, err := p.OpenVolume("v")
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					for n := byte(0); work.Err() == nil; n++ {
						o := &block.Op{Kind: block.OpWrite, Offset: int64(n) * block.Size, Length: block.Size, Data: bytes.Repeat([]byte{n}, block.Size)}
						if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
							t.Errorf("write: %v", o.Err)
							return
						}
					}
				})
				if err := p.DetachMirror(ctx, "v"); err != nil {
					t.Fatal(err)
				}
				stop()
				wg.Wait()
				_ = dev.Close()
				continue
			}
			if err := p.DetachMirror(ctx, "v"); err != nil {
				t.Fatal(err)
			}
			sameAsLeg(t, p, leg)
		}
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

// beforeLeg is a file system in which something happens just before a leg is written.
type beforeLeg struct {
	vfs.FS
	do     func(off int64, length int)
	synced func() // behind a sync of the leg; nil: nothing
}

func (f *beforeLeg) OpenDisk(name string, write bool) (vfs.File, error) {
	file, err := f.FS.OpenDisk(name, write)
	if err == nil && name == legImage {
		file = &writtenLeg{file, f}
	}
	return file, err
}

type writtenLeg struct {
	vfs.File
	fs *beforeLeg
}

func (f *writtenLeg) WriteAt(bufs [][]byte, off int64) error {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	f.fs.do(off, n)
	return f.File.WriteAt(bufs, off)
}

func (f *writtenLeg) Sync() error {
	err := f.File.Sync()
	if do := f.fs.synced; do != nil {
		f.fs.synced = nil
		do()
	}
	return err
}

// TestMirrorHoldsWhoWritesWhileItIsCleared: a region that is written to behind the sync is not cleared.
func TestMirrorHoldsWhoWritesWhileItIsCleared(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := attached(t, layout, 3<<20)
		d.must(d.p.Close(ctx))
		fs := &beforeLeg{FS: d.fs, do: func(int64, int) {}}
		d.opts.FS = fs
		d.open()
		d.submit(writeOp(0, 4096), writeOp(1<<20, 4096))
		fs.synced = func() { d.submit(writeOp(8192, 4096)) }
		d.must(d.p.ClearRegions("v"))
		if n := d.p.Recorded("v"); n != 1 {
			t.Errorf("%d regions are recorded, want the one that was written to", n)
		}
		d.must(d.p.Checkpoint(ctx)) // so that what was cleared is durable
		d.crash(crashfs.DropAll)
		d.verify()
		d.sync()
		d.must(d.p.Close(ctx))
	})
}

// TestMirrorKnowsWhoCameBeforeTheCopying: somebody begins to write to a region that is still to be copied, which needs no record; before the leg has
// what he writes the region has been copied, and recorded as being the same.
func TestMirrorKnowsWhoCameBeforeTheCopying(t *testing.T) {
	eachLayout(t, func(t *testing.T, layout string) {
		d := newMirrored(t, layout, 3<<20)
		d.must(d.p.Close(ctx))
		const mine = 4096
		var once sync.Once
		begun, copied := make(chan struct{}), make(chan struct{})
		wrote := make(chan error)
		d.opts.FS = &beforeLeg{FS: d.fs, do: func(_ int64, length int) {
			if length == mine {
				<-copied
				return
			}
			once.Do(func() { // the first region is being copied
				go func() {
					dev, err := d.p.OpenVolume("v")
					if err == nil {
						close(begun)
						o := &block.Op{Kind: block.OpWrite, Offset: 8192, Length: mine, Data: bytes.Repeat([]byte{99}, mine)}
						dev.Submit(ctx, []*block.Op{o})
						err = errors.Join(o.Err, dev.Close())
					}
					wrote <- err
				}()
				<-begun
				for d.p.Busy("v") == 0 {
					runtime.Gosched()
				}
			})
		}}
		d.open()
		_, err := d.p.AttachMirror(ctx, "v", pool.LegSpec{Path: legImage})
		d.must(err)
		d.must(d.p.SyncMirror(ctx, "v", nil))
		close(copied)
		d.must(<-wrote)
		copy(d.data[8192:], bytes.Repeat([]byte{99}, mine))
		d.dirty[2] = true
		d.crash(crashfs.DropAll)
		d.verify()
		d.sync()
		d.must(d.p.Close(ctx))
	})
}

func flushOf(p *pool.Pool) error {
	dev, err := p.OpenVolume("v")
	if err != nil {
		return err
	}
	defer func() { _ = dev.Close() }()
	return dev.Flush(ctx)
}
