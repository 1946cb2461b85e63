// Package maptree is the map of a backup: for each block of a device, in which
// chunk of the repository its content is.
//
// A region is one chunk size of the device, 16 to 256 blocks. Its map names up
// to four chunks and which blocks each of them holds; the youngest that holds a
// block has its content. Regions hang from a tree: a leaf (level 0) has 64 of
// them, an inner node 64 children, and the tree is as high as the device is
// large. What is all hole is absent. A Root stands for a whole tree and never
// changes.
//
// Invariants:
//   - Nodes have one form: equal content is equal bytes, hence an equal id, so
//     that equal subtrees are one and a difference of two trees skips them.
//   - The level of a child is one less than its parent's, and whoever reads it
//     checks that. Whatever a node says, a walk ends.
//   - A chunk that supplies no block is named by no region.
//
// A Builder makes a tree from another one and what changed, a Tree answers
// look-ups and walks, Diff compares two, and Patch decides what a changed region
// stores. Where nodes and chunks lie, and how they are sealed, is not known
// here: a place is a hint that is passed on.
package maptree

import "errors"

// Errors, wrapped with the node or region.
var (
	// ErrDamaged: a node's bytes are not those of any node, or not of one that belongs there.
	ErrDamaged = errors.New("map node damaged")
	// ErrNewer: a node is of a format that this version does not know.
	ErrNewer = errors.New("map node of a newer format")
	// ErrInvalid: an argument that no map can have, or that comes out of order.
	ErrInvalid = errors.New("not possible in a map")
)
