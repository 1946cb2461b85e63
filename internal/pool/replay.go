package pool

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// replayer folds batches of the log into the pool. Nothing of the maps is in memory when a
// pool is opened, and each node is a read or two from anywhere in the log; one after the other
// they would be most of the time that opening takes. So it collects entries and reads what
// many of them need at once, before it applies them in their order.
type replayer struct {
	pool    *Pool
	pending []seglog.Entry
	leaves  map[leafAt]struct{} // that the pending entries change
	limit   int                 // of leaves
	readers int

	salvaged *salvaged // nil: damage ends the replay
}

// leafAt is a leaf of a volume's map: the block that it begins with.
type leafAt struct{ volume, lba uint64 }

const (
	replayReaders = 32
	// replayShare is how much of the map cache a leaf and what leads to it may take, so that what
	// was read ahead is still there when it is needed.
	replayShare     = 64 << 10
	maxReplayLeaves = 4096
)

func (p *Pool) newReplayer(s *salvaged) *replayer {
	limit := min(max(p.opts.MapCacheBytes/replayShare, 1), maxReplayLeaves)
	r := &replayer{pool: p, leaves: map[leafAt]struct{}{}, limit: int(limit), readers: replayReaders, salvaged: s}
	if p.opts.Manual {
		r.readers = 1
	}
	return r
}

// add takes the entries of the next batch.
func (r *replayer) add(_ uint64, entries []seglog.Entry) error {
	for i := range entries {
		switch e := &entries[i]; e.Kind {
		case seglog.KindData, seglog.KindClear, seglog.KindMove, seglog.KindTouch, seglog.KindBack, seglog.KindZero:
			r.pending = append(r.pending, *e)
			r.note(e)
			if len(r.leaves) >= r.limit || len(r.pending) >= maxBatchChanges {
				if err := r.flush(); err != nil {
					return err
				}
			}
		case seglog.KindCatalogue:
			if err := r.flush(); err != nil { // it may change what the next entries refer to
				return err
			}
			op, err := catalogue.DecodeOp(e.Inline)
			if err == nil {
				err = r.pool.applyOp(op)
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrDamagedLog, err)
			}
		}
	}
	return nil
}

// note remembers which leaves an entry needs: those of all its blocks, or, of a range that
// is cleared, those at its ends.
func (r *replayer) note(e *seglog.Entry) {
	if e.Count == 0 || e.LBA >= blockmap.MaxBlocks || e.Count > blockmap.MaxBlocks-e.LBA {
		return // apply refuses it
	}
	first, last := blockmap.LeafOf(e.LBA), blockmap.LeafOf(e.LBA+e.Count-1)
	if e.Kind == seglog.KindClear {
		r.leaves[leafAt{e.Volume, first}] = struct{}{}
		r.leaves[leafAt{e.Volume, last}] = struct{}{}
		return
	}
	for lba := first; lba <= last; lba += blockmap.LeafBlocks {
		r.leaves[leafAt{e.Volume, lba}] = struct{}{}
	}
}

// flush applies what is pending.
func (r *replayer) flush() error {
	r.readAhead()
	for i := range r.pending {
		e := &r.pending[i]
		v := r.pool.volumes[e.Volume]
		if v == nil {
			return fmt.Errorf("%w: an entry is of volume %d, which is not there", ErrDamagedLog, e.Volume)
		}
		if err := r.salvaged.apply(v, r.pool.store.NewPins(), e); err != nil {
			return fmt.Errorf("volume %q: %w", v.name(), err)
		}
	}
	clear(r.pending)
	clear(r.leaves)
	r.pending = r.pending[:0]
	return nil
}

// readAhead brings the nodes that lead to the leaves into the cache. What cannot be read is
// for apply to find, if it needs it.
func (r *replayer) readAhead() {
	leaves := make([]leafAt, 0, len(r.leaves))
	for l := range r.leaves {
		leaves = append(leaves, l)
	}
	slices.SortFunc(leaves, func(a, b leafAt) int { // neighbours share nodes: one reader takes them
		return cmp.Or(cmp.Compare(a.volume, b.volume), cmp.Compare(a.lba, b.lba))
	})
	var wg sync.WaitGroup
	for part := range slices.Chunk(leaves, max((len(leaves)+r.readers-1)/r.readers, 1)) {
		wg.Go(func() {
			for _, l := range part {
				if v := r.pool.volumes[l.volume]; v != nil {
					var e [1]blockmap.Entry
					_ = v.lookup(r.pool.store.NewPins(), l.lba, e[:])
				}
			}
		})
	}
	wg.Wait()
}
