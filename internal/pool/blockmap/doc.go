// Package blockmap is the pointer table of a volume or snapshot: a persistent
// (path-copying) radix tree from LBA to Entry.
//
// Shape: a leaf maps 256 blocks (1 MiB), an inner node has 128 slots, and a root
// is always at level 5, so that a tree spans 2^43 blocks whatever its volume's
// size; nodes hold only the slots in use. A slot of an inner node is empty, a
// child, or a tombstone that stands for a whole subtree of discarded blocks.
//
// A Tree is a volume's live map. A Root is a frozen state of one: a snapshot's,
// or what a checkpoint writes. A Store keeps clean nodes in a bounded cache and
// loads others from the log.
//
// Invariants:
//   - A node is changed only by the Tree that owns it: its generation is the
//     tree's. Freeze gives the tree a new generation and so makes everything below
//     the returned Root immutable, in constant time.
//   - A clean node (one that lies in the log) is never changed.
//   - Every entry carries the epoch that wrote it, every child the newest epoch
//     below it, which lets walks skip what is not newer.
//   - What cannot be read any more, and was recorded so by a repair, is an entry or a child that is lost. It
//     counts as mapped, and as different from everything else, until it is overwritten or cleared.
//   - A child's pointer carries the child's checksum; the child itself repeats its
//     level and range, and a mismatch is damage.
//
// Locking is the caller's: a Tree is changed by one at a time, with no reader of
// the same Tree meanwhile. Roots may be read by anybody at any time.
package blockmap

import (
	"errors"
	"math/bits"

	"varve/internal/pool/seglog"
)

const (
	leafBits   = 8
	fanoutBits = 7
	leafSlots  = 1 << leafBits
	innerSlots = 1 << fanoutBits
	rootLevel  = 5

	// LeafBlocks is how many blocks a leaf maps.
	LeafBlocks = leafSlots
	// MaxBlocks is how many blocks a tree spans.
	MaxBlocks = 1 << (leafBits + rootLevel*fanoutBits)
)

// LeafOf is the first block of the leaf that lba lies in.
func LeafOf(lba uint64) uint64 { return lba &^ (LeafBlocks - 1) }

// ErrDamaged tells that a map node's bytes are not what its parent says.
var ErrDamaged = errors.New("map node damaged")

// Entry says where a block lies.
type Entry struct {
	Addr  seglog.Addr // 0: nowhere; the block reads as zeros
	Epoch uint64      // that wrote or discarded it; 0: never written
	CRC   uint32      // CRC32C of the block
}

// Mapped tells whether the block holds data, lost or not.
func (e Entry) Mapped() bool { return e.Addr != 0 }

// Ptr is the place of a node in the log.
type Ptr struct {
	Addr   seglog.Addr
	Length uint32 // bytes
	CRC    uint32 // CRC32C of these bytes
}

// span is the number of blocks below a node at level.
func span(level int) uint64 { return 1 << (leafBits + level*fanoutBits) }

// slotOf is the slot of an inner node at level that lba lies in.
func slotOf(lba uint64, level int) int {
	return int(lba>>(leafBits+(level-1)*fanoutBits)) & (innerSlots - 1)
}

// bitmap is a set of slots.
type bitmap [leafSlots / 64]uint64

func (b *bitmap) has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }
func (b *bitmap) set(i int)      { b[i>>6] |= 1 << (i & 63) }
func (b *bitmap) clear(i int)    { b[i>>6] &^= 1 << (i & 63) }

// rank counts the members below i.
func (b *bitmap) rank(i int) int {
	r := 0
	for w := range i >> 6 {
		r += bits.OnesCount64(b[w])
	}
	return r + bits.OnesCount64(b[i>>6]&(1<<(i&63)-1))
}

func (b *bitmap) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

func (b *bitmap) union(o *bitmap) {
	for i := range b {
		b[i] |= o[i]
	}
}

func (b *bitmap) intersect(o *bitmap) {
	for i := range b {
		b[i] &= o[i]
	}
}

func (b *bitmap) subtract(o *bitmap) {
	for i := range b {
		b[i] &^= o[i]
	}
}

// nth returns the member of which r are smaller.
func (b *bitmap) nth(r int) int {
	i := b.next(0)
	for ; r > 0; r-- {
		i = b.next(i + 1)
	}
	return i
}

// next returns the smallest member at or above i, or -1.
func (b *bitmap) next(i int) int {
	for w := i >> 6; w < len(b); w++ {
		word := b[w]
		if w == i>>6 {
			word &^= 1<<(i&63) - 1
		}
		if word != 0 {
			return w<<6 + bits.TrailingZeros64(word)
		}
	}
	return -1
}
