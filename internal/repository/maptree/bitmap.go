package maptree

import (
	"iter"
	"math/bits"
)

// Bitmap is a set of the blocks of a region, by their numbers in it. A region of
// fewer than MaxBlocks blocks leaves the upper bits clear.
type Bitmap [4]uint64

// First is the set of blocks 0 to n-1.
func First(n int) Bitmap {
	var b Bitmap
	for i := range b {
		switch left := n - 64*i; {
		case left >= 64:
			b[i] = ^uint64(0)
		case left > 0:
			b[i] = 1<<left - 1
		}
	}
	return b
}

// Set puts block i into the set.
func (b *Bitmap) Set(i int) { b[i>>6] |= 1 << (i & 63) }

// Clear takes block i out of the set.
func (b *Bitmap) Clear(i int) { b[i>>6] &^= 1 << (i & 63) }

// Has tells whether block i is in the set.
func (b Bitmap) Has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }

// Count is how many blocks are in the set.
func (b Bitmap) Count() int {
	return bits.OnesCount64(b[0]) + bits.OnesCount64(b[1]) + bits.OnesCount64(b[2]) + bits.OnesCount64(b[3])
}

// Rank is how many blocks below i are in the set.
func (b Bitmap) Rank(i int) int {
	n := bits.OnesCount64(b[i>>6] & (1<<(i&63) - 1))
	for _, w := range b[:i>>6] {
		n += bits.OnesCount64(w)
	}
	return n
}

// Empty tells whether the set is.
func (b Bitmap) Empty() bool { return b == Bitmap{} }

// And is what is in both sets.
func (b Bitmap) And(o Bitmap) Bitmap {
	return Bitmap{b[0] & o[0], b[1] & o[1], b[2] & o[2], b[3] & o[3]}
}

// Or is what is in either set.
func (b Bitmap) Or(o Bitmap) Bitmap {
	return Bitmap{b[0] | o[0], b[1] | o[1], b[2] | o[2], b[3] | o[3]}
}

// AndNot is what is in b and not in o.
func (b Bitmap) AndNot(o Bitmap) Bitmap {
	return Bitmap{b[0] &^ o[0], b[1] &^ o[1], b[2] &^ o[2], b[3] &^ o[3]}
}

// Each yields the blocks of the set in ascending order.
func (b Bitmap) Each() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range b {
			for ; w != 0; w &= w - 1 {
				if !yield(64*i + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}
