// Package pack bundles frames into objects of some 32 MiB: chunks, nodes of a
// map, or entries of an index, each kind in packs of its own.
//
// A pack's payload is a sealed directory and then sealed frames, back to back.
// The directory is frame number 0 of the object, the frame at position i of the
// directory is number i+1. A frame holds one piece of content, compressed or
// not. The bytes are specified in docs/format-repository.md.
//
// What is read is authenticated, and content of chunks and nodes is compared
// with its id, so a Reader returns what was stored or an error. It reads ranges
// of packs; where one is short or does not open, the whole object is loaded,
// and mended from its parity.
//
// Where content lies is told by package index, which packs may go by package
// prune.
package pack

import (
	"encoding/hex"
	"errors"
	"strings"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

const (
	// TargetBytes is the size of payload at which a pack is finished.
	TargetBytes = 32 << 20
	// MaxFrames is how many frames a pack has at most.
	MaxFrames = 1 << 16
	// MaxPlainBytes is how much content a frame has at most.
	MaxPlainBytes = 4 << 20
)

// ErrElsewhere says that the pack is gone, or holds something else at that place. The index tells where else the content may be.
var ErrElsewhere = errors.New("content is not at this place")

// LostFrames is the error of frames that neither their own bytes nor the parity of the pack give back. It is an envelope.ErrLost.
type LostFrames struct {
	Name   string // of the pack's object
	Frames []uint32
}

func (e *LostFrames) Error() string {
	return e.Name + ": frames " + ranges(e.Frames) + ": " + envelope.ErrLost.Error()
}

// Unwrap returns envelope.ErrLost.
func (e *LostFrames) Unwrap() error { return envelope.ErrLost }

// Name is the name of the object of a pack of chunks, nodes or index entries.
func Name(kind envelope.Kind, id chunk.PackID) string {
	s := id.String()
	switch kind {
	case envelope.Pack:
		return "packs/" + s[:2] + "/" + s
	case envelope.Nodes:
		return "nodes/" + s[:2] + "/" + s
	case envelope.Index:
		return "index/" + s
	default:
		panic("pack: not a kind of pack")
	}
}

// Prefix is what the names of all packs of a kind begin with.
func Prefix(kind envelope.Kind) string {
	name := Name(kind, chunk.PackID{})
	return name[:strings.IndexByte(name, '/')+1]
}

// ParseName returns which pack a name belongs to: that of the pack itself or of a copy that a repair made.
func ParseName(name string) (envelope.Kind, chunk.PackID, bool) {
	stem := envelope.Stem(name)
	digits, err := hex.DecodeString(stem[strings.LastIndexByte(stem, '/')+1:])
	if err != nil || len(digits) != len(chunk.PackID{}) {
		return 0, chunk.PackID{}, false
	}
	id := chunk.PackID(digits)
	for _, kind := range []envelope.Kind{envelope.Pack, envelope.Nodes, envelope.Index} {
		if Name(kind, id) == stem {
			return kind, id, true
		}
	}
	return 0, chunk.PackID{}, false
}
