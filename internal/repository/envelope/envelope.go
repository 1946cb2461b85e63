// Package envelope is what every object of a repository looks like from
// outside. It needs no key: whoever can read the store can find damage and mend it.
//
// A *payload* is cut into *shards*; shards taken at equal distances are a *group*,
// with parity shards of its own (Reed-Solomon). The *table* has a checksum for
// each shard, the *header* says what the object is and how it is cut; both come
// twice, before and after:
//
//	header │ table │ payload │ parity │ table │ header
//
// docs/format-repository.md has the bytes. What a payload means, and whether it
// was forged, is for others to say: checksums find accidents.
package envelope

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Errors of this package, wrapped with the object and what is wrong with it.
var (
	// ErrDamaged: the object is not as it was written.
	ErrDamaged = errors.New("object is damaged")
	// ErrLost: the object is damaged, and its parity does not suffice to restore it.
	ErrLost = errors.New("object is lost")
	// ErrNewer: the object is of a newer version of the format.
	ErrNewer = errors.New("object is of a newer version of the format")
	// ErrForeign: the object is whole but belongs to another repository, or is another one of this.
	ErrForeign = errors.New("object belongs elsewhere")
)

// Open returns the header and the payload, which lies in object, if all of the
// object is as it was written: else ErrDamaged, ErrNewer.
func Open(object []byte) (Header, []byte, error) {
	h, err := DecodeHeader(object)
	if err != nil {
		return Header{}, nil, err
	}
	g := h.geometry()
	if int64(len(object)) != g.objectBytes() {
		return Header{}, nil, fmt.Errorf("%w: it has %d bytes of %d", ErrDamaged, len(object), g.objectBytes())
	}
	l := layoutOf(object, g)
	switch {
	case !bytes.Equal(l.headers[0], l.headers[1]):
		return Header{}, nil, fmt.Errorf("%w: its two headers differ", ErrDamaged)
	case !bytes.Equal(l.tables[0], l.tables[1]):
		return Header{}, nil, fmt.Errorf("%w: its two tables differ", ErrDamaged)
	case !tableMatches(l.headers[0], l.tables[0]):
		return Header{}, nil, fmt.Errorf("%w: the table's checksum does not match", ErrDamaged)
	}
	for s := range g.shards() {
		if entry(l.tables[0], s) != l.sum(s) {
			return Header{}, nil, fmt.Errorf("%w: the checksum of shard %d of %d does not match", ErrDamaged, s, g.shards())
		}
	}
	return h, l.payload(), nil
}

// layout is an object of the right length, in parts.
type layout struct {
	geometry
	object  []byte
	headers [2][]byte
	tables  [2][]byte
}

func layoutOf(object []byte, g geometry) layout {
	front, back := g.payloadOffset(), int64(len(object))-g.payloadOffset()
	return layout{
		geometry: g,
		object:   object,
		headers:  [2][]byte{object[:HeaderBytes], object[len(object)-HeaderBytes:]},
		tables:   [2][]byte{object[HeaderBytes:front], object[back : len(object)-HeaderBytes]},
	}
}

func (l layout) payload() []byte {
	from := l.payloadOffset()
	return l.object[from : from+l.payloadBytes : from+l.payloadBytes]
}

func (l layout) bytesOf(s int) []byte {
	from, to := l.shard(s)
	return l.object[from:to:to]
}

func (l layout) sum(s int) uint32 { return crc32.Checksum(l.bytesOf(s), castagnoli) }

func entry(table []byte, s int) uint32 { return binary.LittleEndian.Uint32(table[4*s:]) }

func putEntry(table []byte, s int, sum uint32) { binary.LittleEndian.PutUint32(table[4*s:], sum) }

// tableSum is the checksum of a table and its header. It goes on from the header's own: over the
// whole header it would be the same for all, as of anything that ends in its CRC.
func tableSum(header, table []byte) uint32 {
	return crc32.Update(binary.LittleEndian.Uint32(header[124:]), castagnoli, table[:len(table)-4])
}

func closeTable(header, table []byte) {
	binary.LittleEndian.PutUint32(table[len(table)-4:], tableSum(header, table))
}

func tableMatches(header, table []byte) bool {
	return tableSum(header, table) == binary.LittleEndian.Uint32(table[len(table)-4:])
}
