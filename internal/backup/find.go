package backup

import (
	"context"
	"iter"

	"varve/internal/block"
	"varve/internal/repository/maptree"
)

// spot is what has to be looked at in a region.
type spot struct {
	index uint64
	look  maptree.Bitmap
	again maptree.Bitmap
}

// find passes on, in ascending order, the regions that have to be looked at.
func (w *writer) find(ctx context.Context, sample *sample, emit func(*job) error) error {
	var errTold, errKnown error
	told := w.told(ctx, sample, &errTold)
	known := w.known(ctx, &errKnown)
	nextTold, stopTold := iter.Pull(told)
	defer stopTold()
	nextKnown, stopKnown := iter.Pull(known)
	defer stopKnown()
	a, okA := nextTold()
	b, okB := nextKnown()
	for okA || okB {
		var s spot
		switch {
		case !okB || okA && a.index < b.index:
			s = a
			a, okA = nextTold()
		case !okA || b.index < a.index:
			s = b
			b, okB = nextKnown()
		default:
			s = spot{a.index, a.look.Or(b.look), b.again}
			a, okA = nextTold()
			b, okB = nextKnown()
		}
		j := &job{index: s.index, look: s.look, again: s.again}
		if w.tree != nil {
			var err error
			if j.base, err = w.tree.Region(ctx, s.index); err != nil {
				return err
			}
		}
		if err := emit(j); err != nil {
			return err
		}
	}
	if errTold != nil {
		return errTold
	}
	return errKnown
}

// told are the regions of the extents that the source names: what changed, or all that holds data.
func (w *writer) told(ctx context.Context, sample *sample, failed *error) iter.Seq[spot] {
	extents := w.source.Changes
	if w.scan || w.tree == nil {
		extents = w.data
	}
	return func(yield func(spot) bool) {
		s := spot{}
		any, stopped := false, false
		size := w.source.Device.SizeBytes()
		*failed = extents(ctx, func(off, length int64) error {
			sample.cover(off, length)
			end := min(off+length, size)
			for at := off / block.Size * block.Size; at < end; at += block.Size {
				index := uint64(at / w.regionBytes)
				if any && index != s.index {
					if !yield(s) {
						stopped = true
						return context.Canceled
					}
					s = spot{}
				}
				any, s.index = true, index
				s.look.Set(int(at % w.regionBytes / block.Size))
			}
			return nil
		})
		if stopped {
			*failed = nil
			return
		}
		if any && *failed == nil {
			yield(s)
		}
	}
}

// data visits what is no hole of the source.
func (w *writer) data(ctx context.Context, visit func(off, length int64) error) error {
	const limit = 1024
	size := w.source.Device.SizeBytes()
	for off := int64(0); off < size; {
		extents, err := w.source.Device.Extents(ctx, off, size-off, limit)
		if err != nil {
			return err
		}
		for _, e := range extents {
			off = e.Offset + e.Length
			if e.Zero {
				continue
			}
			if err := visit(e.Offset, e.Length); err != nil {
				return err
			}
		}
	}
	return nil
}

// known are the regions of the base that have to be looked at whatever the source says: all of them in a scan; what is lost there; and
// where a device that has become smaller ends now.
func (w *writer) known(ctx context.Context, failed *error) iter.Seq[spot] {
	return func(yield func(spot) bool) {
		if w.tree == nil {
			return
		}
		size := w.source.Device.SizeBytes()
		regions := w.repo.Regions(size)
		var tail spot
		if w.source.Base.SizeBytes > size && regions > 0 {
			tail.index = regions - 1
			for i := int(size % w.regionBytes / block.Size); size%w.regionBytes != 0 && i < w.geometry.BlocksPerRegion; i++ {
				tail.look.Set(i)
			}
		}
		anyLost, lost := w.repo.Lost()
		if !w.scan && !anyLost {
			if !tail.look.Empty() {
				yield(tail)
			}
			return
		}
		stopped := false
		*failed = w.tree.Walk(ctx, 0, regions, func(index uint64, r maptree.Region) error {
			s := spot{index: index}
			for i := range w.geometry.BlocksPerRegion {
				c, _, ok := r.Source(i)
				if !ok {
					continue
				}
				gone := anyLost && lost(r.Chunks[c].Place)
				if gone {
					s.again.Set(i)
				}
				if gone || w.scan {
					s.look.Set(i)
				}
			}
			if index == tail.index {
				s.look = s.look.Or(tail.look)
			}
			if !s.look.Empty() && !yield(s) {
				stopped = true
				return context.Canceled
			}
			return nil
		})
		if stopped {
			*failed = nil
		}
	}
}
