package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/google/uuid"

	"varve/internal/block"
)

// Addr is the place of stored bytes: segment number << 24 | offset in the
// segment / Granule. It never changes and is never used again. Zero is no place.
type Addr uint64

// Granule is the resolution of an Addr in bytes.
const Granule = 64

// MaxSegmentBytes is the largest segment that an Addr can reach into.
const MaxSegmentBytes = Granule << 24

// MakeAddr returns the address of byte offset (a multiple of Granule) in segment.
func MakeAddr(segment uint64, offset int64) Addr {
	return Addr(segment<<24 | uint64(offset)/Granule)
}

// Segment returns the number of the segment that a lies in.
func (a Addr) Segment() uint64 { return uint64(a) >> 24 }

// Offset returns the byte offset of a in its segment.
func (a Addr) Offset() int64 { return int64(a&(1<<24-1)) * Granule }

// Plus returns the address n bytes (a multiple of Granule) further in the same segment.
func (a Addr) Plus(n int64) Addr { return a + Addr(n/Granule) }

func (a Addr) String() string { return fmt.Sprintf("%016x+%d", a.Segment(), a.Offset()) }

// Kind says what an Entry is.
type Kind uint8

// The kinds of entries. docs/format.md gives their bytes.
const (
	KindData       Kind = 1  // payload blocks for a volume
	KindClear      Kind = 2  // a range of a volume reads as zeros from here on
	KindCatalogue  Kind = 3  // a catalogue operation, in the header
	KindBlob       Kind = 4  // payload blocks that only pointers give a meaning: map nodes, catalogue images
	KindCheckpoint Kind = 5  // a checkpoint record, in the header
	KindOpen       Kind = 6  // the pool was opened: the log goes on in a new segment
	KindMove       Kind = 7  // payload blocks that a volume has already, at new places
	KindTouch      Kind = 8  // blocks of an inplace volume are about to change: they get new versions
	KindBack       Kind = 9  // blocks of an inplace volume lie in its file again, as new versions with the same content
	KindZero       Kind = 10 // a range of a volume reads as zeros, which is more than that nothing is known of it
)

// Entry is one record of a batch.
type Entry struct {
	Kind   Kind
	Volume uint64 // of all but Catalogue, Blob, Checkpoint and Open: the volume's number
	LBA    uint64 // first block
	Count  uint64 // blocks; of Data, Blob and Move: payload blocks
	Epoch  uint64 // Data, Move, Touch, Zero: the volume's, so that a segment alone tells whose its blocks are
	// Version, of Touch and Back, is the first block's; the others follow it.
	Version uint64

	// Payload is what Data, Blob and Move store: Count blocks in all, cut into slices of
	// whole blocks in any way. Nil when read back.
	Payload [][]byte
	// CRCs holds the CRC32C of each payload block.
	CRCs []uint32
	// Inline is the content of Catalogue and Checkpoint.
	Inline []byte

	// Addr is the first payload block's place; the others follow it. Set by Append
	// and when read back.
	Addr Addr
}

func (e *Entry) payloadBlocks() int {
	if e.Kind == KindData || e.Kind == KindBlob || e.Kind == KindMove {
		return int(e.Count)
	}
	return 0
}

// encodedLen is the entry's length in the header, in bytes.
func (e *Entry) encodedLen() int {
	switch e.Kind {
	case KindData, KindMove:
		return 32 + 4*int(e.Count)
	case KindClear:
		return 32
	case KindTouch, KindBack, KindZero:
		return 40
	case KindBlob:
		return 8 + 4*int(e.Count)
	case KindCatalogue, KindCheckpoint:
		return 8 + (len(e.Inline)+7)&^7
	default:
		return 8
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C that guards everything in the pool.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

const (
	formatVersion  = 1 // docs/format.md says what stays at its place in every version
	headerMagic    = "VARVEBAT"
	fixedHeaderLen = 80
	crcOffset      = 12
)

// MaxHeaderBlocks bounds the header of a batch.
const MaxHeaderBlocks = 64

// MaxPayloadBlocks bounds a batch; a longer write is several batches.
const MaxPayloadBlocks = 2048

// MaxTouched bounds the blocks of a Touch, Back or Zero.
const MaxTouched = 1 << 20

// maxSeq is more batches than there is time for.
const maxSeq = 1 << 62

// MaxInlineBytes bounds the inline content of a batch.
const MaxInlineBytes = 128 << 10

// header is the fixed part of a batch header.
type header struct {
	version       uint32
	pool          uuid.UUID
	seq           uint64 // number of the batch
	durableSeq    uint64 // newest batch known durable when this one was written
	segment       uint64 // where this header lies
	blockIndex    uint32
	prevCRC       uint32 // headerCRC of batch seq-1
	headerBlocks  int
	payloadBlocks int
	entries       int
	entriesLen    int
	crc           uint32 // of this header
}

func (h *header) offset() int64 { return int64(h.blockIndex) * block.Size }
func (h *header) bytes() int64  { return int64(h.headerBlocks+h.payloadBlocks) * block.Size }

// headerBlocksFor returns how many header blocks entries of that encoded length take.
func headerBlocksFor(entriesLen int) int {
	return (fixedHeaderLen + entriesLen + block.Size - 1) / block.Size
}

// encodeHeader writes h and the entries into buf, whose length is h.headerBlocks blocks.
func encodeHeader(buf []byte, h *header, entries []Entry, salt uint64) {
	clear(buf)
	le := binary.LittleEndian
	copy(buf, headerMagic)
	le.PutUint32(buf[8:], formatVersion)
	copy(buf[16:], h.pool[:])
	le.PutUint64(buf[32:], h.seq)
	le.PutUint64(buf[40:], h.durableSeq)
	le.PutUint64(buf[48:], h.segment)
	le.PutUint32(buf[56:], h.blockIndex)
	le.PutUint32(buf[60:], h.prevCRC)
	le.PutUint32(buf[64:], uint32(h.headerBlocks))
	le.PutUint32(buf[68:], uint32(h.payloadBlocks))
	le.PutUint32(buf[72:], uint32(h.entries))
	le.PutUint32(buf[76:], uint32(h.entriesLen))
	p := buf[fixedHeaderLen:]
	for i := range entries {
		e := &entries[i]
		p[0] = byte(e.Kind)
		switch e.Kind {
		case KindData, KindMove:
			le.PutUint32(p[4:], uint32(e.Count))
			le.PutUint64(p[8:], e.Volume)
			le.PutUint64(p[16:], e.LBA)
			le.PutUint64(p[24:], e.Epoch)
			for j, c := range e.CRCs {
				le.PutUint32(p[32+4*j:], c)
			}
		case KindClear:
			le.PutUint64(p[8:], e.Volume)
			le.PutUint64(p[16:], e.LBA)
			le.PutUint64(p[24:], e.Count)
		case KindTouch, KindBack, KindZero:
			le.PutUint32(p[4:], uint32(e.Count))
			le.PutUint64(p[8:], e.Volume)
			le.PutUint64(p[16:], e.LBA)
			le.PutUint64(p[24:], e.Epoch)
			le.PutUint64(p[32:], e.Version)
		case KindBlob:
			le.PutUint32(p[4:], uint32(e.Count))
			for j, c := range e.CRCs {
				le.PutUint32(p[8+4*j:], c)
			}
		case KindCatalogue, KindCheckpoint:
			le.PutUint32(p[4:], uint32(len(e.Inline)))
			copy(p[8:], e.Inline)
		}
		p = p[e.encodedLen():]
	}
	h.crc = headerChecksum(buf, salt)
	le.PutUint32(buf[crcOffset:], h.crc)
}

// errNotHeader: these bytes are not a sound batch header of this pool at this place.
var errNotHeader = errors.New("no batch header here")

// decodeFixed reads the fixed part, enough to know how long the header is. It
// verifies no checksum.
func decodeFixed(buf []byte) (header, error) {
	le := binary.LittleEndian
	if len(buf) < fixedHeaderLen || string(buf[:8]) != headerMagic {
		return header{}, errNotHeader
	}
	h := header{
		crc:           le.Uint32(buf[crcOffset:]),
		seq:           le.Uint64(buf[32:]),
		durableSeq:    le.Uint64(buf[40:]),
		segment:       le.Uint64(buf[48:]),
		blockIndex:    le.Uint32(buf[56:]),
		prevCRC:       le.Uint32(buf[60:]),
		headerBlocks:  int(le.Uint32(buf[64:])),
		payloadBlocks: int(le.Uint32(buf[68:])),
		entries:       int(le.Uint32(buf[72:])),
		entriesLen:    int(le.Uint32(buf[76:])),
	}
	copy(h.pool[:], buf[16:32])
	h.version = le.Uint32(buf[8:])
	if h.headerBlocks < 1 || h.headerBlocks > MaxHeaderBlocks ||
		h.payloadBlocks < 0 || h.payloadBlocks > MaxPayloadBlocks ||
		h.entriesLen < 0 || headerBlocksFor(h.entriesLen) > h.headerBlocks ||
		h.entries < 0 || h.entries > h.entriesLen/8 {
		return header{}, errNotHeader
	}
	return h, nil
}

// decodeEntries verifies the checksum of a whole header and returns its entries,
// with addresses. Inline content is copied; buf may be used again. A sound header that
// cannot be understood is no torn one: ErrNewerFormat, or ErrDamaged.
func decodeEntries(buf []byte, h *header, salt uint64) ([]Entry, error) {
	if headerChecksum(buf, salt) != h.crc {
		return nil, errNotHeader
	}
	if h.version != formatVersion {
		return nil, fmt.Errorf("%w: batch %d is of format %d, and this program knows %d", ErrNewerFormat, h.seq, h.version, formatVersion)
	}
	entries, ok := parseEntries(buf, h)
	if !ok {
		return nil, fmt.Errorf("%w: the entries of batch %d", ErrDamaged, h.seq)
	}
	return entries, nil
}

func parseEntries(buf []byte, h *header) ([]Entry, bool) {
	le := binary.LittleEndian
	p := buf[fixedHeaderLen : fixedHeaderLen+h.entriesLen]
	entries := make([]Entry, 0, h.entries)
	addr := MakeAddr(h.segment, h.offset()+int64(h.headerBlocks)*block.Size)
	blocks := 0
	for range h.entries {
		if len(p) < 8 {
			return nil, false
		}
		e := Entry{Kind: Kind(p[0])}
		n := int(le.Uint32(p[4:]))
		var crcs []byte
		switch e.Kind {
		case KindData, KindMove:
			if n < 1 || n > MaxPayloadBlocks || len(p) < 32+4*n {
				return nil, false
			}
			e.Volume, e.LBA, e.Epoch, e.Count = le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), uint64(n)
			crcs = p[32 : 32+4*n]
		case KindClear:
			if len(p) < 32 {
				return nil, false
			}
			e.Volume, e.LBA, e.Count = le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
		case KindTouch, KindBack, KindZero:
			if n < 1 || n > MaxTouched || len(p) < 40 {
				return nil, false
			}
			e.Volume, e.LBA, e.Epoch, e.Count = le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), uint64(n)
			e.Version = le.Uint64(p[32:])
		case KindBlob:
			if n < 1 || n > MaxPayloadBlocks || len(p) < 8+4*n {
				return nil, false
			}
			e.Count = uint64(n)
			crcs = p[8 : 8+4*n]
		case KindCatalogue, KindCheckpoint:
			if n < 0 || n > MaxInlineBytes || len(p) < 8+n {
				return nil, false
			}
			e.Inline = append([]byte(nil), p[8:8+n]...)
		case KindOpen:
		default:
			return nil, false
		}
		if crcs != nil {
			e.CRCs = make([]uint32, n)
			for j := range e.CRCs {
				e.CRCs[j] = le.Uint32(crcs[4*j:])
			}
			e.Addr = addr.Plus(int64(blocks) * block.Size)
			blocks += n
		}
		if l := e.encodedLen(); l <= len(p) {
			p = p[l:]
		} else {
			return nil, false
		}
		entries = append(entries, e)
	}
	if blocks != h.payloadBlocks || len(p) != 0 {
		return nil, false
	}
	return entries, true
}

// headerChecksum is the CRC32C of a header without its checksum, behind the pool's salt:
// clients choose what payload says, and must not be able to make it say that it is a header.
func headerChecksum(buf []byte, salt uint64) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], salt)
	c := crc32.Checksum(b[:], castagnoli)
	c = crc32.Update(c, castagnoli, buf[:crcOffset])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(c, castagnoli, buf[crcOffset+4:])
}
