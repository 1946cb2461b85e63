package pool_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// stress drives a pool on the real file system from many sides at once. Every block says
// where it belongs and how often it was written, all over, so that a block that is torn,
// misplaced or older than it may be is seen.
type stress struct {
	t    *testing.T
	p    *pool.Pool
	done chan struct{}
	wg   sync.WaitGroup
	// written and acked are the newest version of each block of "a" that was begun and
	// that was acknowledged.
	written, acked [stressBlocks]atomic.Uint32
}

const stressBlocks = 1200 // five leaves

func stamped(lba int64, version uint32) []byte {
	b := make([]byte, block.Size)
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(lba)+1)
		binary.LittleEndian.PutUint32(b[i+8:], version)
	}
	return b
}

// versionOf returns the version of a stamped block, 0 if it was never written.
func versionOf(b []byte, lba int64) (uint32, error) {
	version := binary.LittleEndian.Uint32(b[8:])
	want := make([]byte, block.Size)
	if version > 0 {
		want = stamped(lba, version)
	}
	if sum(b) != sum(want) {
		return 0, fmt.Errorf("block %d is torn or of another place", lba)
	}
	return version, nil
}

// until repeats f until the stress is over, or fails.
func (s *stress) until(f func(rnd *rand.Rand, n int) error) {
	s.wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		for n := 0; ; n++ {
			select {
			case <-s.done:
				return
			default:
			}
			if err := f(rnd, n); err != nil {
				s.t.Error(err)
				return
			}
		}
	})
}

// read verifies some blocks of a device; least gives the oldest version each may have.
func read(dev block.Device, rnd *rand.Rand, least func(lba int64) uint32, most func(lba int64) uint32) error {
	lba := rnd.Int64N(stressBlocks)
	n := min(1+rnd.Int64N(20), stressBlocks-lba)
	low := make([]uint32, n)
	for i := range n {
		low[i] = least(lba + i)
	}
	b := make([]byte, n*block.Size)
	if err := dev.ReadAt(ctx, b, lba*block.Size); err != nil {
		return err
	}
	for i := range n {
		v, err := versionOf(b[i*block.Size:][:block.Size], lba+i)
		if err != nil {
			return err
		}
		if v < low[i] || v > most(lba+i) {
			return fmt.Errorf("block %d is of version %d; %d was acknowledged and %d written", lba+i, v, low[i], most(lba+i))
		}
	}
	return nil
}

// TestStress: writers, readers, snapshots read while the volume goes on, deletions, clones,
// rollbacks, bookmarks and what changed since them, flushes, checks, relayouts, reclaim, and checkpoints in the background, with a map cache that holds next to nothing.
func TestStress(t *testing.T) {
	defer goleak.VerifyNone(t)
	const writes = 2500
	o := pool.Options{
		FS: vfs.OS(), Dir: path.Join(t.TempDir(), "pool"),
		SegmentBytes: 1 << 20, CheckpointBytes: 1 << 20, MapCacheBytes: 64 << 10,
		OnEvent: func(e pool.Event) {
			if e.Kind != "recovered" {
				t.Errorf("event %+v", e)
			}
		},
	}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: stressBlocks * block.Size}); err != nil {
			t.Fatal(err)
		}
	}
	s := &stress{t: t, p: p, done: make(chan struct{})}
	dev, err := p.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}

	const writers = 3
	var writing sync.WaitGroup
	for w := range int64(writers) { // each has blocks of its own, so that it knows their versions
		writing.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(w)))
			for range writes / writers {
				var ops []*block.Op
				var lbas []int64
				for range 1 + rnd.IntN(4) {
					lba := rnd.Int64N(stressBlocks/writers)*writers + w
					b := stamped(lba, s.written[lba].Add(1))
					ops = append(ops, &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: b})
					lbas = append(lbas, lba)
				}
				dev.Submit(ctx, ops)
				for i, o := range ops {
					if o.Err != nil {
						t.Error(o.Err)
						return
					}
					s.acked[lbas[i]].Store(binary.LittleEndian.Uint32(o.Data[8:]))
				}
			}
		})
	}
	for range 2 {
		s.until(func(rnd *rand.Rand, _ int) error {
			return read(dev, rnd, func(lba int64) uint32 { return s.acked[lba].Load() }, func(lba int64) uint32 { return s.written[lba].Load() })
		})
	}
	s.until(func(*rand.Rand, int) error { return dev.Flush(ctx) })
	s.until(s.snapshots)
	s.until(s.rollbacks)
	s.until(s.changes)
	s.until(func(*rand.Rand, int) error {
		_, err := p.Relayout(ctx, "a", pool.RelayoutOptions{})
		return err
	})
	s.until(func(*rand.Rand, int) error {
		rep, err := p.Check(ctx, nil)
		if err == nil && len(rep.Damage) > 0 {
			err = fmt.Errorf("check finds %+v", rep.Damage)
		}
		return err
	})
	s.until(func(*rand.Rand, int) error {
		_, err := p.Reclaim(ctx)
		return err
	})
	writing.Wait()
	close(s.done)
	s.wg.Wait()
	// Whether a relayout beside all that found anything to move is the scheduler's doing; this one does.
	for lba := int64(stressBlocks - 1); lba >= 0; lba-- {
		b := make([]byte, block.Size)
		if err := dev.ReadAt(ctx, b, lba*block.Size); err != nil {
			t.Fatal(err)
		}
		o := &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: b}
		if dev.Submit(ctx, []*block.Op{o}); o.Err != nil {
			t.Fatal(o.Err)
		}
	}
	if done, err := p.Relayout(ctx, "a", pool.RelayoutOptions{}); err != nil || done.Moved == 0 {
		t.Errorf("a relayout of what was written backwards: %+v, %v", done, err)
	}

	for range 2 {
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 300 {
			if err := read(dev, rnd, func(lba int64) uint32 { return s.acked[lba].Load() }, func(lba int64) uint32 { return s.acked[lba].Load() }); err != nil {
				t.Fatal(err)
			}
		}
		if n := p.Info().Checkpoints; n == 0 {
			t.Error("no checkpoint was made")
		}
		if err := errors.Join(dev.Close(), p.Close(ctx)); err != nil {
			t.Fatal(err)
		}
		if p, err = pool.Open(ctx, o); err != nil {
			t.Fatal(err)
		}
		if dev, err = p.OpenVolume("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(dev.Close(), p.Close(ctx)); err != nil {
		t.Fatal(err)
	}
}

// snapshots makes a snapshot and a clone of it, sees that both stay as they are while the
// volume goes on, and deletes them.
func (s *stress) snapshots(rnd *rand.Rand, n int) error {
	ref := pool.SnapshotRef{Volume: "a", Name: fmt.Sprintf("s%d", n)}
	var low, high [stressBlocks]uint32
	for lba := range low {
		low[lba] = s.acked[lba].Load()
	}
	if _, _, err := s.p.CreateSnapshot(ctx, []string{"a", "b"}, pool.SnapshotSpec{Name: ref.Name}); err != nil {
		return err
	}
	for lba := range high {
		high[lba] = s.written[lba].Load()
	}
	clone := fmt.Sprintf("clone%d", n)
	if _, _, err := s.p.CloneVolume(ctx, ref, pool.VolumeSpec{Name: clone}); err != nil {
		return err
	}
	for _, name := range []string{ref.String(), clone} {
		dev, err := openEither(s.p, name)
		if err != nil {
			return err
		}
		first := make([]byte, dev.SizeBytes())
		err = dev.ReadAt(ctx, first, 0)
		for range 20 {
			if err == nil {
				err = read(dev, rnd, func(lba int64) uint32 { return low[lba] }, func(lba int64) uint32 { return high[lba] })
			}
		}
		again := make([]byte, len(first))
		if err = errors.Join(err, dev.ReadAt(ctx, again, 0), dev.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if sum(first) != sum(again) {
			return fmt.Errorf("%s has changed", name)
		}
	}
	if _, err := s.p.SnapshotUsage(ctx, ref); err != nil {
		return err
	}
	if n%2 == 0 { // in either order
		if err := s.p.DeleteVolume(ctx, clone); err != nil {
			return err
		}
	}
	refs := []pool.SnapshotRef{ref, {Volume: "b", Name: ref.Name}}
	if err := s.p.DeleteSnapshots(ctx, refs); err != nil {
		return err
	}
	if n%2 == 1 {
		return s.p.DeleteVolume(ctx, clone)
	}
	return nil
}

// changes bookmarks volume "a" and sees that the volume, as it goes on, and a diff tell what has been written since: each
// block that was acknowledged before it was asked, and none that nobody has begun to write.
func (s *stress) changes(_ *rand.Rand, n int) error {
	ref := pool.SnapshotRef{Volume: "a", Name: fmt.Sprintf("c%d", n)}
	mark := pool.BookmarkRef{Volume: "a", Name: fmt.Sprintf("k%d", n)}
	if _, _, err := s.p.CreateSnapshot(ctx, []string{"a"}, pool.SnapshotSpec{Name: ref.Name}); err != nil {
		return err
	}
	then, err := s.p.OpenSnapshot(ref)
	if err != nil {
		return err
	}
	b := make([]byte, stressBlocks*block.Size)
	if err := errors.Join(then.ReadAt(ctx, b, 0), then.Close()); err != nil {
		return err
	}
	if _, err := s.p.CreateBookmark(ctx, ref, mark.Name); err != nil {
		return err
	}
	if err := s.p.DeleteSnapshots(ctx, []pool.SnapshotRef{ref}); err != nil {
		return err
	}
	dev, err := s.p.OpenVolume("a")
	if err != nil {
		return err
	}
	since, err := dev.ChangesSince(mark.Name)
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	ask := map[string]func(changed *[stressBlocks]bool) error{
		"changes": func(changed *[stressBlocks]bool) error {
			at := 0
			runs, err := since.Runs(ctx, 0, stressBlocks*block.Size, stressBlocks)
			for _, r := range runs {
				for end := at + int(r.Length/block.Size); at < end; at++ {
					changed[at] = r.Changed
				}
			}
			return err
		},
		"diff": func(changed *[stressBlocks]bool) error {
			diff, err := s.p.OpenDiff(pool.PointRef{Volume: "a", Name: mark.Name, Bookmark: true}, pool.PointRef{Volume: "a"})
			if err != nil {
				return err
			}
			defer diff.Close()
			return diff.Each(ctx, func(off, length int64) error {
				for lba := off / block.Size; lba < (off+length)/block.Size; lba++ {
					changed[lba] = true
				}
				return nil
			})
		},
	}
	for range 3 {
		for what, ask := range ask {
			var low, high [stressBlocks]uint32
			for lba := range low {
				low[lba] = s.acked[lba].Load()
			}
			var changed [stressBlocks]bool
			if err := ask(&changed); err != nil {
				return errors.Join(fmt.Errorf("%s: %w", what, err), dev.Close())
			}
			for lba := range high {
				high[lba] = s.written[lba].Load()
			}
			for lba, is := range changed {
				was := binary.LittleEndian.Uint32(b[lba*block.Size+8:])
				if is && high[lba] == was || !is && low[lba] > was {
					return errors.Join(fmt.Errorf("%s: block %d of version %d, then %d to %d: changed %t", what, lba, was, low[lba], high[lba], is), dev.Close())
				}
			}
		}
	}
	if err := dev.Close(); err != nil {
		return err
	}
	return s.p.DeleteBookmark(ctx, mark)
}

// rollbacks writes to volume "b" and takes it back.
func (s *stress) rollbacks(rnd *rand.Rand, n int) error {
	ref := pool.SnapshotRef{Volume: "b", Name: fmt.Sprintf("r%d", n)}
	write := func(version uint32) error {
		dev, err := s.p.OpenVolume("b")
		if err != nil {
			return err
		}
		lba := int64(n*37) % stressBlocks
		o := &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: stamped(lba, version)}
		dev.Submit(ctx, []*block.Op{o})
		return errors.Join(o.Err, dev.Close())
	}
	if err := write(uint32(2*n + 1)); err != nil {
		return err
	}
	if _, _, err := s.p.CreateSnapshot(ctx, []string{"b"}, pool.SnapshotSpec{Name: ref.Name}); err != nil {
		return err
	}
	if err := write(uint32(2*n + 2)); err != nil {
		return err
	}
	kept, _, err := s.p.Rollback(ctx, ref)
	if err != nil {
		return err
	}
	dev, err := s.p.OpenVolume("b")
	if err != nil {
		return err
	}
	lba := int64(n*37) % stressBlocks
	b := make([]byte, block.Size)
	if err := errors.Join(dev.ReadAt(ctx, b, lba*block.Size), dev.Close()); err != nil {
		return err
	}
	if v, err := versionOf(b, lba); err != nil {
		return fmt.Errorf("after a rollback: %w", err)
	} else if v != uint32(2*n+1) {
		return fmt.Errorf("after a rollback block %d is of version %d, not %d", lba, v, 2*n+1)
	}
	return s.p.DeleteSnapshots(ctx, []pool.SnapshotRef{ref, {Volume: "b", Name: kept.Name}})
}
