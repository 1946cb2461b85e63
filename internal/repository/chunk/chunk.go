// Package chunk holds the identities and places of what a repository's packs
// hold: chunks of a disk's content, nodes of a map, entries of an index.
package chunk

import (
	"bytes"
	"cmp"
	"encoding/hex"
)

// ID identifies content: the keyed BLAKE3 hash of it, before compression.
type ID [32]byte

// PackID names a pack. It is random.
type PackID [16]byte

// Place is where a pack holds something: its frame's number in the pack. As a
// hint it may be wrong, when the pack is gone; the ID tells.
type Place struct {
	Pack  PackID
	Frame uint32
}

// Compare orders places by packs, and in them by frames.
func (p Place) Compare(other Place) int {
	return cmp.Or(bytes.Compare(p.Pack[:], other.Pack[:]), cmp.Compare(p.Frame, other.Frame))
}

// Compare orders ids by their bytes.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

func (id ID) String() string { return hex.EncodeToString(id[:]) }

func (id PackID) String() string { return hex.EncodeToString(id[:]) }
