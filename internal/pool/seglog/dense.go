package seglog

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"varve/internal/block"
	"varve/internal/vfs"
)

// BlockSet is a set of a segment's blocks, by their number in the segment as it
// was written: Offset / block.Size.
type BlockSet []uint64

// NewBlockSet returns an empty set of blocks below n.
func NewBlockSet(n int) BlockSet { return make(BlockSet, (n+63)/64) }

// Add adds a block; one beyond the set's bound is ignored.
func (b BlockSet) Add(i int) {
	if w := i >> 6; w < len(b) {
		b[w] |= 1 << (i & 63)
	}
}

// Has tells whether a block is in the set.
func (b BlockSet) Has(i int) bool { return i>>6 < len(b) && b[i>>6]>>(i&63)&1 != 0 }

// next returns the smallest block in the set at or above i, or -1.
func (b BlockSet) next(i int) int {
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

// Count is the number of blocks in the set.
func (b BlockSet) Count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// index tells where the blocks of rewritten segments lie in a file.
type index interface {
	// place returns where n bytes lie that were at off in the segment as it was written. False if
	// the file does not have them all.
	place(id uint64, off int64, n int) (int64, bool)
}

// denseMagic begins a segment that was rewritten: a header with the set of blocks that
// are kept, and these blocks, in order. docs/format.md gives the bytes.
const (
	denseMagic     = "VARVEDNS"
	denseHeaderLen = 64
)

// dense tells where the blocks of a rewritten segment lie.
type dense struct {
	live   BlockSet
	rank   []uint32 // of each word of live: blocks before it
	header int64    // bytes
}

func newDense(live BlockSet) *dense {
	d := &dense{live: live, rank: make([]uint32, len(live))}
	n := uint32(0)
	for i, w := range live {
		d.rank[i] = n
		n += uint32(bits.OnesCount64(w))
	}
	d.header = (denseHeaderLen + int64(len(live))*8 + block.Size - 1) &^ (block.Size - 1)
	return d
}

// place implements index.
func (d *dense) place(_ uint64, off int64, n int) (int64, bool) {
	first := int(off / block.Size)
	for i := first; i <= int((off+int64(n)-1)/block.Size); i++ {
		if !d.live.Has(i) {
			return 0, false
		}
	}
	r := int64(d.rank[first>>6]) + int64(bits.OnesCount64(d.live[first>>6]&(1<<(first&63)-1)))
	return d.header + r*block.Size + off%block.Size, true
}

func (l *Log) encodeDense(id uint64, d *dense) []byte {
	le := binary.LittleEndian
	b := make([]byte, d.header)
	copy(b, denseMagic)
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], l.cfg.Pool[:])
	le.PutUint64(b[32:], id)
	le.PutUint32(b[40:], uint32(d.header/block.Size))
	le.PutUint32(b[44:], uint32(len(d.live)*64))
	le.PutUint32(b[48:], uint32(d.live.Count()))
	for i, w := range d.live {
		le.PutUint64(b[denseHeaderLen+8*i:], w)
	}
	le.PutUint32(b[crcOffset:], headerChecksum(b, l.cfg.Salt))
	return b
}

// SegmentBlocks is how many blocks a segment can have: also the last batch that went into it.
func (l *Log) SegmentBlocks() int {
	return int(l.cfg.SegmentBytes/block.Size) + MaxHeaderBlocks + MaxPayloadBlocks
}

// readDense reads the header of a rewritten segment, of which there are two: without it nothing
// else in the file could be found.
func (l *Log) readDense(id uint64, f vfs.File) (*dense, error) {
	words := (l.SegmentBlocks() + 63) / 64
	b := make([]byte, newDense(make(BlockSet, words)).header)
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("size of segment %016x: %w", id, err)
	}
	err = io.EOF
	for _, off := range []int64{0, size - int64(len(b))} {
		if off < 0 {
			continue
		}
		if _, e := f.ReadAt(b, off); e != nil {
			err = e
		} else if d := l.decodeDense(id, b, words); d != nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("both headers of the rewritten segment %016x are unsound: %w", id, err)
}

func (l *Log) decodeDense(id uint64, b []byte, words int) *dense {
	le := binary.LittleEndian
	if string(b[:8]) != denseMagic || headerChecksum(b, l.cfg.Salt) != le.Uint32(b[crcOffset:]) ||
		[16]byte(b[16:32]) != l.cfg.Pool || le.Uint64(b[32:]) != id || int(le.Uint32(b[44:])) != words*64 {
		return nil
	}
	live := make(BlockSet, words)
	for i := range live {
		live[i] = le.Uint64(b[denseHeaderLen+8*i:])
	}
	return newDense(live)
}
