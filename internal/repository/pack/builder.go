package pack

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// Builder makes one pack. It is used by one goroutine at a time, and holds the pack and little more.
type Builder struct {
	id     chunk.PackID
	name   string
	header envelope.Header
	frames *seal.Frames
	err    error // of frames

	entries  []Entry
	hashes   []uint64 // of all entries, in their order
	places   map[chunk.ID]uint32
	segments *segments
	bytes    int    // of frames
	straddle []byte // a frame that lies in two segments
}

// Packed is a finished pack.
type Packed struct {
	Kind    envelope.Kind
	Set     uuid.UUID
	ID      chunk.PackID
	Name    string   // of the object
	Object  [][]byte // what is put, valid until Release
	Entries []Entry
	Bytes   int64 // of the object

	opened   *opened
	segments *segments
}

// NewBuilder begins a pack of the given kind with a random id, sealed with the newest key. Set is zero in
// repositories that have none.
func NewBuilder(k *seal.Keys, kind envelope.Kind, set uuid.UUID, parityPercent int) *Builder {
	b := &Builder{places: make(map[chunk.ID]uint32), segments: new(segments)}
	_, _ = rand.Read(b.id[:]) // never fails
	b.name = Name(kind, b.id)
	b.header = k.NewHeader(kind, b.name, set, parityPercent)
	b.frames, b.err = k.Frames(b.header)
	return b
}

// ID is that of the pack.
func (b *Builder) ID() chunk.PackID { return b.id }

// Bytes is the size of the pack's payload so far.
func (b *Builder) Bytes() int {
	return b.bytes + directoryBytes(len(b.entries), len(b.hashes)) + seal.Overhead
}

// Count is how many frames were appended.
func (b *Builder) Count() int { return len(b.entries) }

// Full tells that the pack is to be finished, and another one to be begun.
func (b *Builder) Full() bool { return b.Bytes() >= TargetBytes || len(b.entries) >= MaxFrames }

// Find returns where the pack holds content that was appended before.
func (b *Builder) Find(id chunk.ID) (chunk.Place, bool) {
	frame, ok := b.places[id]
	return chunk.Place{Pack: b.id, Frame: frame}, ok
}

// Append seals what Encode returned for plainBytes of content, at most MaxPlainBytes, as the pack's next frame.
// Nothing that is passed is kept. The pack must not be Full.
func (b *Builder) Append(id chunk.ID, encoded []byte, enc Encoding, plainBytes int, hashes []uint64) chunk.Place {
	frame := uint32(len(b.entries))
	place := chunk.Place{Pack: b.id, Frame: frame}
	e := Entry{ID: id, Offset: uint32(b.bytes), SealedBytes: uint32(len(encoded) + seal.Overhead), PlainBytes: uint32(plainBytes), Encoding: enc}
	switch err := e.check(); {
	case b.err != nil:
		return place
	case err != nil:
		b.err = fmt.Errorf("frame %d: %w", frame, err)
		return place
	case frame >= MaxFrames:
		b.err = fmt.Errorf("more than %d frames", MaxFrames)
		return place
	}
	if room := b.segments.room(); cap(room) >= int(e.SealedBytes) {
		b.frames.Seal(room, encoded, uint64(frame)+1)
		b.segments.extend(int(e.SealedBytes))
	} else {
		b.straddle = b.frames.Seal(b.straddle[:0], encoded, uint64(frame)+1)
		b.segments.write(b.straddle)
	}
	b.hashes = append(b.hashes, hashes...)
	e.Hashes = b.hashes[len(b.hashes)-len(hashes):] // its length is kept, the memory is settled when the pack is finished
	b.entries = append(b.entries, e)
	b.bytes += int(e.SealedBytes)
	if _, ok := b.places[id]; !ok {
		b.places[id] = frame
	}
	return place
}

// Finish returns the pack, and ends the builder. An empty pack is an error.
func (b *Builder) Finish() (Packed, error) {
	if b.err == nil && len(b.entries) == 0 {
		b.err = errors.New("no frames")
	}
	if b.err != nil {
		b.segments.free()
		return Packed{}, fmt.Errorf("pack %s: %w", b.name, b.err)
	}
	hashes := b.hashes
	for i := range b.entries {
		n := len(b.entries[i].Hashes)
		b.entries[i].Hashes, hashes = hashes[:n:n], hashes[n:]
	}
	plain := encodeDirectory(b.entries, len(b.hashes))
	directory := b.frames.Seal(make([]byte, 0, len(plain)+seal.Overhead), plain, directoryNumber)
	b.header.DirectoryBytes = uint32(len(directory))
	object, err := envelope.Build(b.header, append([][]byte{directory}, b.segments.slices...)...)
	if err != nil {
		b.segments.free()
		return Packed{}, fmt.Errorf("pack %s: %w", b.name, err)
	}
	h, err := envelope.DecodeHeader(object[0]) // with the geometry
	if err != nil {
		b.segments.free()
		return Packed{}, fmt.Errorf("pack %s: %w", b.name, err)
	}
	return Packed{
		Kind:    h.Kind,
		Set:     h.Set,
		ID:      b.id,
		Name:    b.name,
		Object:  object,
		Entries: b.entries,
		Bytes:   h.ObjectBytes(),
		opened: &opened{
			key:       packKey{h.Kind, b.id},
			Directory: &Directory{entries: b.entries, hashes: len(b.hashes), set: h.Set},
			object:    b.name,
			base:      h.PayloadOffset() + int64(h.DirectoryBytes),
			frames:    b.frames,
		},
		segments: b.segments,
	}, nil
}

// Directory is the pack's.
func (p Packed) Directory() *Directory { return p.opened.Directory }

// Release gives the object's memory to packs that are built later. Object must not be used any more, by nobody.
func (p Packed) Release() {
	if p.segments != nil {
		p.segments.free()
	}
}
