package maptree

import (
	"fmt"
	"math/bits"
	"slices"

	"varve/internal/repository/chunk"
)

const (
	// MaxChunks is how many chunks a region may have.
	MaxChunks = 4
	// MaxBlocks is how many blocks a region may have, and minBlocks how few.
	MaxBlocks = 256
	minBlocks = 16
)

// Geometry is what all maps of a repository have in common.
type Geometry struct {
	BlocksPerRegion int // a power of two from 16 (64 KiB) to MaxBlocks (1 MiB)
}

func (g Geometry) valid() bool {
	n := g.BlocksPerRegion
	return n >= minBlocks && n <= MaxBlocks && bits.OnesCount(uint(n)) == 1
}

// all is the set of all blocks of a region.
func (g Geometry) all() Bitmap { return First(g.BlocksPerRegion) }

// Chunk is one chunk of a region, with the blocks that it holds, dense and in ascending order.
type Chunk struct {
	ID    chunk.ID
	Place chunk.Place // a hint
	Held  Bitmap
}

// Region is the map of one region: a block is a hole if it is in Zero or no chunk holds it, and else
// its content is in the youngest chunk that holds it. The zero Region is all hole.
type Region struct {
	Chunks []Chunk // at most MaxChunks, oldest first
	Zero   Bitmap
}

// Source tells where a block's content is: in which chunk, and as how manieth block of it. ok is false for a hole.
func (r Region) Source(block int) (chunkIndex, position int, ok bool) {
	if r.Zero.Has(block) {
		return 0, 0, false
	}
	for i := len(r.Chunks) - 1; i >= 0; i-- {
		if held := r.Chunks[i].Held; held.Has(block) {
			return i, held.Rank(block), true
		}
	}
	return 0, 0, false
}

// Mapped is the set of blocks that are no holes.
func (r Region) Mapped() Bitmap {
	var held Bitmap
	for i := range r.Chunks {
		held = held.Or(r.Chunks[i].Held)
	}
	return held.AndNot(r.Zero)
}

// Supplied is, for each chunk, the set of blocks whose content is in it. The sets are disjoint.
func (r Region) Supplied() [MaxChunks]Bitmap {
	var supplied [MaxChunks]Bitmap
	covered := r.Zero
	for i := len(r.Chunks) - 1; i >= 0; i-- {
		supplied[i] = r.Chunks[i].Held.AndNot(covered)
		covered = covered.Or(r.Chunks[i].Held)
	}
	return supplied
}

// Equal tells whether both say the same of every block and of every chunk. Places are hints and do not count.
func (r Region) Equal(o Region) bool {
	return r.Zero == o.Zero && slices.EqualFunc(r.Chunks, o.Chunks, func(a, b Chunk) bool {
		return a.ID == b.ID && a.Held == b.Held
	})
}

// normal is the region in the one form that is stored: every chunk supplies a block, and Zero says
// nothing of blocks that no chunk holds. It shares nothing with r.
func (r Region) normal(g Geometry) (Region, error) {
	if len(r.Chunks) > MaxChunks {
		return Region{}, fmt.Errorf("%w: %d chunks, and %d is the most", ErrInvalid, len(r.Chunks), MaxChunks)
	}
	n := Region{}
	var held Bitmap
	supplied := r.Supplied()
	for i, c := range r.Chunks {
		if beyond := c.Held.AndNot(g.all()); !beyond.Empty() {
			return Region{}, fmt.Errorf("%w: chunk %s holds blocks beyond the %d of a region", ErrInvalid, c.ID, g.BlocksPerRegion)
		}
		if supplied[i].Empty() {
			continue
		}
		if n.Chunks == nil {
			n.Chunks = make([]Chunk, 0, len(r.Chunks)-i)
		}
		n.Chunks = append(n.Chunks, c)
		held = held.Or(c.Held)
	}
	n.Zero = r.Zero.And(held)
	return n, nil
}
