package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"varve/internal/block"
	"varve/internal/block/zeros"
	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// RestoreOptions say how a backup is brought back.
type RestoreOptions struct {
	// Fresh tells that the target reads as zeros all over. Otherwise what it holds is compared with the
	// backup, and only what differs is fetched and written: also what an earlier restore has not done yet.
	Fresh bool
	// SkipDamaged goes on around what is lost: it reads as zeros in the target, and Lost lists it.
	SkipDamaged bool
	Progress    Progress // may be nil
}

// Range is a run of bytes.
type Range struct{ Offset, Length int64 }

// Restored tells what a restore did.
type Restored struct {
	WrittenBytes int64 // of content
	ZeroedBytes  int64
	SameBytes    int64 // found in the target already
	Lost         []Range
}

// restoreWorkers is how many regions are written at once.
const restoreWorkers = 4

// Restore brings a backup into a device of at least its size, and flushes it. What lies beyond the
// backup's end is left alone. ErrTooSmall before anything is written; ErrDamaged where content is lost.
func Restore(ctx context.Context, repo *repository.Repo, b repository.Backup, target block.Device, o RestoreOptions) (Restored, error) {
	if target.SizeBytes() < b.SizeBytes {
		return Restored{}, fmt.Errorf("restore backup %s of %d bytes to %d: %w", b.ID, b.SizeBytes, target.SizeBytes(), ErrTooSmall)
	}
	pin, err := repo.Pin(ctx, b.ID)
	if err != nil {
		return Restored{}, err
	}
	defer pin.Release()
	r := &restorer{repo: repo, b: b, target: target, o: o, pin: pin, regionBytes: int64(repo.ChunkBytes()), per: repo.Geometry().BlocksPerRegion}
	r.plans = map[uint64]*delta{}
	var want repository.Want
	if !o.Fresh {
		want = r.compare
	}
	tree := repo.Tree(b.Root)
	whole := []stretch{{0, repo.Regions(b.SizeBytes)}}
	if o.SkipDamaged {
		if whole, r.lost, _, err = around(ctx, repo, tree, b); err != nil {
			return r.report(), fmt.Errorf("restore backup %s: %w", b.ID, err)
		}
	}
	if err := r.stretches(ctx, tree, whole, want); err != nil {
		return r.report(), fmt.Errorf("restore backup %s: %w", b.ID, err)
	}
	if err := target.Flush(ctx); err != nil {
		return r.report(), fmt.Errorf("restore backup %s: %w", b.ID, err)
	}
	if o.Progress != nil {
		o.Progress(b.SizeBytes, b.SizeBytes)
	}
	return r.report(), nil
}

// stretches brings back what the map says of some stretches, and zeros between them.
func (r *restorer) stretches(ctx context.Context, tree *maptree.Tree, all []stretch, want repository.Want) error {
	end := uint64(0)
	for _, s := range all {
		if err := r.gap(ctx, end, s.from); err != nil {
			return err
		}
		end = s.to
		err := r.repo.Scan(ctx, tree, s.from, s.to, want, restoreWorkers, func(s *repository.Scanned) error { return r.region(ctx, s) })
		if err != nil {
			return err
		}
		if err := r.clearHoles(ctx, tree, s); err != nil {
			return err
		}
	}
	return r.gap(ctx, end, r.repo.Regions(r.b.SizeBytes))
}

type restorer struct {
	repo        *repository.Repo
	b           repository.Backup
	target      block.Device
	o           RestoreOptions
	pin         *repository.Pin
	regionBytes int64
	per         int

	buffers sync.Pool // of *[]byte, a region each

	written, zeroed, same atomic.Int64
	mu                    sync.Mutex
	lost                  []Range
	plans                 map[uint64]*delta // of regions that were compared and not written yet
}

// delta is what of a region's blocks differs.
type delta struct {
	write, zero maptree.Bitmap
}

func (r *restorer) report() Restored {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.lost, func(a, b Range) int { return int(min(max(a.Offset-b.Offset, -1), 1)) })
	var merged []Range
	for _, l := range r.lost {
		if n := len(merged); n > 0 && merged[n-1].Offset+merged[n-1].Length == l.Offset {
			merged[n-1].Length += l.Length
		} else {
			merged = append(merged, l)
		}
	}
	return Restored{WrittenBytes: r.written.Load(), ZeroedBytes: r.zeroed.Load(), SameBytes: r.same.Load(), Lost: merged}
}

// length of block i of a region: the last one of a device may be shorter.
func (r *restorer) length(off int64) int64 { return min(block.Size, r.b.SizeBytes-off) }

// compare reads the target's region and tells which blocks have to be fetched.
func (r *restorer) compare(ctx context.Context, index uint64, region maptree.Region) (maptree.Bitmap, error) {
	start := int64(index) * r.regionBytes
	p, free := r.buffer()
	defer free()
	have := min(r.regionBytes, r.b.SizeBytes-start)
	clear(p[have:])
	bad, err := r.present(ctx, p[:have], start)
	if err != nil {
		return maptree.Bitmap{}, err
	}
	d := &delta{}
	known := make([][]uint64, len(region.Chunks))
	for i := 0; i < r.per && int64(i)*block.Size < have; i++ {
		b := p[i*block.Size : (i+1)*block.Size]
		c, pos, mapped := region.Source(i)
		if !mapped {
			if bad.Has(i) || !zeros.All(b) {
				d.zero.Set(i)
			}
			continue
		}
		if bad.Has(i) {
			d.write.Set(i)
			continue
		}
		if known[c] == nil {
			h, err := r.repo.Hashes(ctx, region.Chunks[c])
			if err != nil {
				return maptree.Bitmap{}, err
			}
			if h == nil {
				h = []uint64{} // lost: fetching it says so, or finds it elsewhere
			}
			known[c] = h
		}
		if len(known[c]) > pos && known[c][pos] == r.repo.BlockHash(b) {
			r.same.Add(r.length(start + int64(i)*block.Size))
			continue
		}
		d.write.Set(i)
	}
	r.mu.Lock()
	r.plans[index] = d
	r.mu.Unlock()
	return d.write, nil
}

// present reads what a region of the target holds. Blocks of it that are damaged are bad: they will be overwritten, which mends them.
func (r *restorer) present(ctx context.Context, p []byte, start int64) (bad maptree.Bitmap, err error) {
	err = r.target.ReadAt(ctx, p, start)
	if isBad(err) {
		for off := 0; off < len(p); off += block.Size {
			b := p[off:min(off+block.Size, len(p))]
			if err = r.target.ReadAt(ctx, b, start+int64(off)); isBad(err) {
				bad.Set(off / block.Size)
				err = nil
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return bad, fmt.Errorf("read the target at %d: %w", start, err)
	}
	return bad, nil
}

// isBad tells of a read that fails because of what is stored just there: it is no use to try again, and of use to write.
func isBad(err error) bool { return errors.Is(err, block.ErrDamaged) || errors.Is(err, syscall.EIO) }

// region writes what was scanned.
func (r *restorer) region(ctx context.Context, s *repository.Scanned) error {
	if err := r.pin.Check(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	d := r.plans[s.Index]
	delete(r.plans, s.Index)
	r.mu.Unlock()
	start := int64(s.Index) * r.regionBytes
	buffer, free := r.gather(s)
	defer free()
	var ops []*block.Op
	add := func(off int64, data []byte) {
		n := r.length(off)
		op := block.Op{Kind: block.OpZero, Offset: off, Length: n}
		count := &r.zeroed
		if data != nil {
			op.Kind, op.Data = block.OpWrite, data[:n]
			count = &r.written
		}
		count.Add(n)
		if last := len(ops) - 1; last < 0 || !join(ops[last], &op) {
			ops = append(ops, new(op))
		}
	}
	for i := 0; i < r.per && start+int64(i)*block.Size < r.b.SizeBytes; i++ {
		off := start + int64(i)*block.Size
		if d != nil && d.zero.Has(i) {
			add(off, nil)
		}
		if d != nil && !d.write.Has(i) {
			continue
		}
		data, err := s.Block(i)
		if err != nil {
			if !r.o.SkipDamaged || !errors.Is(err, ErrDamaged) {
				return fmt.Errorf("at %d: %w", off, err)
			}
			r.lose(off, r.length(off))
			if !r.o.Fresh {
				add(off, nil)
			}
			continue
		}
		if data != nil && buffer != nil {
			data = buffer[i*block.Size:][:copy(buffer[i*block.Size:], data)]
		}
		if data != nil {
			add(off, data)
		}
	}
	if err := submit(ctx, r.target, ops); err != nil {
		return err
	}
	if r.o.Progress != nil {
		r.o.Progress(start, r.b.SizeBytes)
	}
	return nil
}

// gather returns memory for a region whose blocks come from several chunks, so that what follows each other on the target is written at
// once: a file system has far more work with many small writes. It is nil where one chunk has them all.
func (r *restorer) gather(s *repository.Scanned) (buffer []byte, free func()) {
	read := 0
	for _, plain := range s.Plain {
		if plain != nil {
			read++
		}
	}
	if read < 2 {
		return nil, func() {}
	}
	return r.buffer()
}

// buffer returns memory of a region's size and unknown content, and what gives it back.
func (r *restorer) buffer() (b []byte, free func()) {
	p, _ := r.buffers.Get().(*[]byte)
	if p == nil {
		p = new(make([]byte, r.regionBytes))
	}
	return *p, func() { r.buffers.Put(p) }
}

// lose notes a range that cannot be read. Those of a region come in ascending order.
func (r *restorer) lose(off, length int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.lost); n > 0 && r.lost[n-1].Offset+r.lost[n-1].Length == off {
		r.lost[n-1].Length += length
		return
	}
	r.lost = append(r.lost, Range{off, length})
}

// join makes one op of two if the other follows, and its data does so in memory, or both zero.
func join(op, other *block.Op) bool {
	if op.Kind != other.Kind || op.Offset+op.Length != other.Offset {
		return false
	}
	if op.Kind == block.OpWrite {
		if !follows(op.Data, other.Data) {
			return false
		}
		op.Data = op.Data[:len(op.Data)+len(other.Data)]
	}
	op.Length += other.Length
	return true
}

// follows tells that b lies right behind a in the same array.
func follows(a, b []byte) bool {
	return cap(a) >= len(a)+len(b) && len(b) > 0 && &a[:len(a)+1][len(a)] == &b[0]
}

func submit(ctx context.Context, d block.Device, ops []*block.Op) error {
	if len(ops) == 0 {
		return nil
	}
	d.Submit(ctx, ops)
	for _, op := range ops {
		if op.Err != nil {
			return fmt.Errorf("write the target at %d: %w", op.Offset, op.Err)
		}
	}
	return nil
}

// clearHoles zeroes what the target has in regions that are all hole in the backup.
func (r *restorer) clearHoles(ctx context.Context, tree *maptree.Tree, s stretch) error {
	if r.o.Fresh {
		return nil
	}
	next := s.from
	err := tree.Walk(ctx, s.from, s.to, func(index uint64, _ maptree.Region) error {
		from := next
		next = index + 1
		return r.gap(ctx, from, index)
	})
	if err != nil {
		return err
	}
	return r.gap(ctx, next, s.to)
}

// gap zeroes what the target has in regions [from, to).
func (r *restorer) gap(ctx context.Context, from, to uint64) error {
	if r.o.Fresh {
		return nil
	}
	return r.clear(ctx, int64(from)*r.regionBytes, min(int64(to)*r.regionBytes, r.b.SizeBytes))
}

func (r *restorer) clear(ctx context.Context, from, to int64) error {
	const limit = 1024
	p := make([]byte, 1<<20)
	for from < to {
		extents, err := r.target.Extents(ctx, from, to-from, limit)
		if err != nil {
			return fmt.Errorf("extents of the target at %d: %w", from, err)
		}
		for _, e := range extents {
			from = e.Offset + e.Length
			if e.Zero {
				continue
			}
			for off := e.Offset; off < from; off += int64(len(p)) {
				b := p[:min(int64(len(p)), from-off)]
				err := r.target.ReadAt(ctx, b, off)
				if err != nil && !isBad(err) {
					return fmt.Errorf("read the target at %d: %w", off, err)
				}
				if err == nil && zeros.All(b) {
					continue
				}
				r.zeroed.Add(int64(len(b)))
				if err := submit(ctx, r.target, []*block.Op{{Kind: block.OpZero, Offset: off, Length: int64(len(b))}}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
