package blockmap

import (
	"slices"

	"varve/internal/pool/seglog"
)

// Version names a version of a block of an inplace volume: what it held between two changes. An entry has it
// in the place of an address while the pool is not known to have the content. Docs/design/inplace.md.
type Version uint64

// MaxVersion is the largest that an entry has room for.
const MaxVersion Version = 1<<56 - 1

// versionBit marks the address of an entry that has a version instead. No segment's number reaches it.
const versionBit seglog.Addr = 1 << 63

// InPlace is the entry of a block that lies in its volume's file, or did.
func InPlace(v Version, epoch uint64) Entry {
	return Entry{Addr: versionBit | seglog.Addr(v)*(4096/seglog.Granule), Epoch: epoch}
}

// Version returns the version of a block that lies in its volume's file, or did; false if the entry is no such.
func (e Entry) Version() (Version, bool) {
	return Version((e.Addr &^ versionBit) / (4096 / seglog.Granule)), e.Addr&versionBit != 0
}

// PlacedRoot is the map of a file as it was found: each of so many blocks is in place, in the version that has the number of its LBA.
func PlacedRoot(blocks, epoch, gen uint64) Root {
	return Root{placedBefore(rootLevel, 0, epoch, gen, blocks)}
}

// placedBefore returns a child below which everything before block limit is in place.
func placedBefore(level int, first, epoch, gen, limit uint64) child {
	switch {
	case first >= limit:
		return child{}
	case first+span(level) <= limit:
		return child{placed: true, epoch: epoch, mapped: span(level)}
	}
	n := newNode(level, first, epoch, gen)
	n.epoch = epoch
	if level == 0 {
		for i := range int(limit - first) {
			n.setEntry(i, InPlace(Version(first)+Version(i), epoch))
		}
		n.mapped = limit - first
	} else {
		for i := 0; i < innerSlots && first+uint64(i)*span(level-1) < limit; i++ {
			c := placedBefore(level-1, first+uint64(i)*span(level-1), epoch, gen, limit)
			n.setChild(i, c)
			n.mapped += c.mappedBlocks()
		}
	}
	return child{node: n}
}

// untouched returns a node whose every block is in place: what a placed child becomes when something below it changes.
func untouched(level int, first, epoch, owner, gen uint64) *node {
	n := newNode(level, first, owner, gen)
	n.epoch, n.mapped = epoch, span(level)
	if level == 0 {
		n.entries = make([]Entry, leafSlots)
		for i := range n.entries {
			n.entries[i] = InPlace(Version(first)+Version(i), epoch)
		}
		n.slots = bitmap{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	} else {
		n.children = slices.Repeat([]child{{placed: true, epoch: epoch, mapped: span(level - 1)}}, innerSlots)
		n.slots = bitmap{^uint64(0), ^uint64(0)}
	}
	return n
}
