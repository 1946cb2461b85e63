package maptree

import "math/bits"

// Plan is what becomes of a region some of whose blocks changed: if Store is not empty, a chunk of
// exactly these blocks is appended to Region's chunks, as the youngest.
type Plan struct {
	Region Region // with the chunks that stay; its Zero is already what it must be with the new chunk
	Store  Bitmap // blocks that the new chunk holds, whose content is taken from the source
	Merged Bitmap // those of Store that did not change: the source must have them as the old map has
}

// Patch plans the change of a region: the blocks of changed have new content that is not zero, those of
// zero became zero (a block in both counts as changed).
//
// limit, 1 to MaxChunks, is the most chunks that the region will have, whatever it had. With 1 a region is
// always stored whole. A differential patches its full's region with all that has changed since, never what an
// earlier differential made of it: its regions have the full's chunks and one patch, with a limit of 2 where
// the full has one chunk. A full that was written over shared chunks may have up to four; with a limit of
// MaxChunks only a region that has all four loses some to the patch.
//
// Chunks that supply no block any more are dropped. If those that stay are too many for the new one to come
// beside them, some are merged into it; fewestRewrites says which.
func Patch(r Region, g Geometry, changed, zero Bitmap, limit int) Plan {
	return patch(r, g, changed, zero, min(max(limit, 1), MaxChunks), fewestRewrites)
}

// supply is how many blocks each chunk of a region still supplies; 0: none, or there is no such chunk.
type supply [MaxChunks]int

// mergePolicy chooses the chunks to merge into a new one of fresh blocks, as a bitmap: all but at most
// room of those that supply anything.
type mergePolicy func(live supply, fresh, room int) uint

func patch(r Region, g Geometry, changed, zero Bitmap, limit int, choose mergePolicy) Plan {
	changed = changed.And(g.all())
	zero = r.Zero.Or(zero).AndNot(changed)

	supplied := r.Supplied()
	var live supply
	staying := 0
	for i := range r.Chunks {
		supplied[i] = supplied[i].AndNot(changed).AndNot(zero)
		if live[i] = supplied[i].Count(); live[i] > 0 {
			staying++
		}
	}
	plan := Plan{Store: changed}
	if room := limit - min(changed.Count(), 1); staying > room {
		for merge := choose(live, changed.Count(), limit-1); merge != 0; merge &= merge - 1 {
			i := bits.TrailingZeros(merge)
			plan.Merged = plan.Merged.Or(supplied[i])
			live[i] = 0
		}
		plan.Store = plan.Store.Or(plan.Merged)
	}

	var held Bitmap
	for i, c := range r.Chunks {
		if live[i] > 0 {
			plan.Region.Chunks = append(plan.Region.Chunks, c)
			held = held.Or(c.Held)
		}
	}
	plan.Region.Zero = zero.And(held)
	return plan
}

// fewestRewrites merges the chunk that supplies the fewest blocks, and on from the smallest as long as the next is
// no larger than all that is gathered already: so each time a block is rewritten it is as part of a chunk at
// least twice as large, and room is made for the small ones to come. All are merged, and the region is stored
// whole, where without the largest they supply more than half of the blocks. docs/design/repository.md
// compares it with others.
func fewestRewrites(live supply, fresh, room int) (merge uint) {
	largest, mapped, staying := 0, fresh, 0
	for i, n := range live {
		mapped += n
		if n > 0 {
			staying++
		}
		if n > live[largest] {
			largest = i
		}
	}
	whole := room == 0 || 2*(mapped-live[largest]) > mapped
	for gathered := fresh; staying > 0; staying-- {
		next := -1
		for i, n := range live {
			if n > 0 && merge>>i&1 == 0 && (i != largest || whole) && (next < 0 || n < live[next]) {
				next = i
			}
		}
		if next < 0 || staying <= room && live[next] > gathered && !whole {
			break
		}
		merge |= 1 << next
		gathered += live[next]
	}
	return merge
}
