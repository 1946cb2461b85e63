package backup

import (
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// job is a region on its way from the source into the map.
type job struct {
	index uint64
	look  maptree.Bitmap // blocks to look at
	base  maptree.Region
	again maptree.Bitmap // of these, blocks that are stored whatever the base has: it is lost there

	buffer *[]byte        // each block that was read, at its own place
	zero   maptree.Bitmap // those of the blocks that are all zeros
	err    error
	done   chan struct{} // the blocks have been read

	// What becomes of it: nothing if it is as it was.
	changed bool
	region  maptree.Region
	pending *repository.Pending
	held    maptree.Bitmap // of the new chunk
}

// plan decides what of a region is stored, and hands it to the session.
func (w *writer) plan(ctx context.Context, j *job) error {
	var changed, zero maptree.Bitmap
	known := w.hashesOf(j.base)
	for i := range j.look.Each() {
		c, pos, mapped := j.base.Source(i)
		switch {
		case j.zero.Has(i):
			if mapped {
				zero.Set(i)
			}
		case !mapped || j.again.Has(i):
			changed.Set(i)
		default:
			was, err := known(ctx, c)
			if err != nil {
				return err
			}
			if was == nil || was[pos] != w.repo.BlockHash(blockOf(j.buffer, i)) {
				changed.Set(i)
			}
		}
	}
	if changed.Empty() && zero.Empty() {
		w.session.Release(j.buffer)
		return nil
	}
	w.changedBytes += int64(changed.Count()+zero.Count()) * block.Size
	plan := maptree.Patch(j.base, w.geometry, changed, zero, w.limit(j.base))
	j.changed, j.region, j.held = true, plan.Region, plan.Store
	if plan.Store.Empty() {
		w.session.Release(j.buffer)
		return nil
	}
	if err := w.merge(ctx, j, plan.Merged, known); err != nil {
		return err
	}
	var err error
	j.pending, err = w.session.Store(ctx, j.buffer, dense(j.buffer, plan.Store))
	return err
}

// limit is how many chunks a region may have: a differential adds one to those of its full.
func (w *writer) limit(base maptree.Region) int {
	if w.source.Type == repository.Differential {
		return min(len(base.Chunks)+1, maptree.MaxChunks)
	}
	return maptree.MaxChunks
}

// merge reads blocks that did not change and are stored once more with those that did. They are compared with their hashes.
func (w *writer) merge(ctx context.Context, j *job, merged maptree.Bitmap, known hashes) error {
	unread := merged.AndNot(j.look)
	if err := w.read(ctx, j, unread); err != nil {
		return err
	}
	for i := range unread.Each() {
		c, pos, ok := j.base.Source(i)
		if !ok {
			continue
		}
		was, err := known(ctx, c)
		if err != nil {
			return err
		}
		if was != nil && was[pos] != w.repo.BlockHash(blockOf(j.buffer, i)) {
			return w.mismatch(int64(j.index)*w.regionBytes + int64(i)*block.Size)
		}
	}
	return nil
}

// dense moves blocks to the front of a buffer, and returns how many bytes they are.
func dense(buffer *[]byte, blocks maptree.Bitmap) int {
	n := 0
	for i := range blocks.Each() {
		if n != i {
			copy((*buffer)[n*block.Size:], blockOf(buffer, i))
		}
		n++
	}
	return n * block.Size
}

func (w *writer) mismatch(offset int64) error {
	w.tell(offset)
	return fmt.Errorf("%s at %d: %w", w.source.Name, offset, errMismatch)
}

func blockOf(buffer *[]byte, i int) []byte { return (*buffer)[i*block.Size : (i+1)*block.Size] }

// hashes gives those of the blocks of a region's c-th chunk; nil if they are lost.
type hashes func(ctx context.Context, c int) ([]uint64, error)

func (w *writer) hashesOf(r maptree.Region) hashes {
	known := make([][]uint64, len(r.Chunks))
	asked := make([]bool, len(r.Chunks))
	return func(ctx context.Context, c int) ([]uint64, error) {
		if !asked[c] {
			h, err := w.repo.Hashes(ctx, r.Chunks[c])
			if err != nil {
				return nil, err
			}
			known[c], asked[c] = h, true
		}
		return known[c], nil
	}
}
