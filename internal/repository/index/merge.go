package index

import (
	"container/heap"
	"context"
	"fmt"
	"iter"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

const (
	// MaxMerge is how many runs are merged at once, in 32 MiB of memory. Who has more merges some of them first.
	MaxMerge = 128
	// aheadFrames is how many frames of each run are read at once.
	aheadFrames = 4
)

// Merge returns the entries of some runs, at most MaxMerge, in their order and each once. It ends with an error:
// pack.ErrElsewhere if a run is gone, envelope.ErrLost, or one of the store.
func (x *Index) Merge(ctx context.Context, runs []chunk.PackID) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if len(runs) > MaxMerge {
			yield(Entry{}, fmt.Errorf("merge %d runs at once, at most %d", len(runs), MaxMerge))
			return
		}
		var h cursors
		for _, run := range runs {
			c := &cursor{packs: x.packs, run: run}
			if err := c.next(ctx); err != nil {
				yield(Entry{}, err)
				return
			}
			if len(c.entries) > 0 {
				h = append(h, c)
			}
		}
		heap.Init(&h)
		var last Entry
		for first := true; len(h) > 0; first = false {
			c := h[0]
			e := c.entries[0]
			if (first || e != last) && !yield(e, nil) {
				return
			}
			last = e
			if err := c.next(ctx); err != nil {
				yield(Entry{}, err)
				return
			}
			if len(c.entries) == 0 {
				heap.Pop(&h)
			} else {
				heap.Fix(&h, 0)
			}
		}
	}
}

// cursor is a place in a run.
type cursor struct {
	packs   *pack.Reader
	run     chunk.PackID
	entries []Entry // the next ones, none at the end
	frame   int     // that follows them
}

// next goes to the next entry, at first to the first one.
func (c *cursor) next(ctx context.Context) error {
	if len(c.entries) > 0 {
		c.entries = c.entries[1:]
	}
	if len(c.entries) > 0 {
		return nil
	}
	d, err := c.packs.Directory(ctx, envelope.Index, c.run)
	if err != nil {
		return runError(c.run, err)
	}
	var frames []uint32
	for ; c.frame < d.Len() && len(frames) < aheadFrames; c.frame++ {
		frames = append(frames, uint32(c.frame))
	}
	if len(frames) == 0 {
		return nil
	}
	var entries []Entry
	err = c.packs.Frames(ctx, envelope.Index, c.run, frames, func(_ int, plain []byte) error {
		more, err := decodeEntries(plain)
		if err != nil {
			return fmt.Errorf("%w: %w", envelope.ErrLost, err)
		}
		if len(entries) > 0 && len(more) > 0 && entries[len(entries)-1].Compare(more[0]) >= 0 {
			return fmt.Errorf("%w: frames are out of order", envelope.ErrLost)
		}
		entries = append(entries, more...)
		return nil
	})
	if err != nil {
		return runError(c.run, err)
	}
	c.entries = entries
	return nil
}

// cursors are a heap, the least entry first.
type cursors []*cursor

func (h cursors) Len() int           { return len(h) }
func (h cursors) Less(i, j int) bool { return h[i].entries[0].Compare(h[j].entries[0]) < 0 }
func (h cursors) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(c any)        { *h = append(*h, c.(*cursor)) }
func (h *cursors) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
