package seglog

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"varve/internal/block"
	"varve/internal/vfs"
)

// packMagic begins a pack: a file with the few blocks that are left of each of several segments, so
// that these take no file each. docs/format.md gives the bytes.
const (
	packMagic     = "VARVEPAK"
	packHeaderLen = 64
	packDirLen    = 16
)

// pack tells which blocks a pack has. Its i-th block is blocks[i]; those of ids[k] are
// blocks[first[k]:first[k+1]], ascending.
type pack struct {
	ids    []uint64 // ascending
	first  []uint32
	blocks []uint32
	header int64 // bytes
}

// newPack describes a pack of the live blocks of segments, in ascending order.
func newPack(ids []uint64, live map[uint64]BlockSet) *pack {
	k := &pack{}
	for _, id := range ids {
		k.begin(id)
		for i := live[id].next(0); i >= 0; i = live[id].next(i + 1) {
			k.blocks = append(k.blocks, uint32(i))
		}
	}
	k.end()
	return k
}

func (k *pack) begin(id uint64) {
	k.ids = append(k.ids, id)
	k.first = append(k.first, uint32(len(k.blocks)))
}

func (k *pack) end() {
	k.first = append(k.first, uint32(len(k.blocks)))
	k.header = roundUp(packHeaderLen + packDirLen*int64(len(k.ids)) + 4*int64(len(k.blocks)))
}

func roundUp(n int64) int64 { return (n + block.Size - 1) &^ (block.Size - 1) }

// place implements index.
func (k *pack) place(id uint64, off int64, n int) (int64, bool) {
	at, ok := slices.BinarySearch(k.ids, id)
	if !ok {
		return 0, false
	}
	have := k.blocks[k.first[at]:k.first[at+1]]
	b, last := uint32(off/block.Size), uint32((off+int64(n)-1)/block.Size)
	i, ok := slices.BinarySearch(have, b)
	if end := i + int(last-b); !ok || end >= len(have) || have[end] != last {
		return 0, false
	}
	return k.header + int64(int(k.first[at])+i)*block.Size + off%block.Size, true
}

func (l *Log) encodePack(number uint64, k *pack) []byte {
	le := binary.LittleEndian
	b := make([]byte, k.header)
	copy(b, packMagic)
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], l.cfg.Pool[:])
	le.PutUint64(b[32:], number)
	le.PutUint32(b[40:], uint32(k.header/block.Size))
	le.PutUint32(b[44:], uint32(len(k.ids)))
	le.PutUint32(b[48:], uint32(len(k.blocks)))
	p := b[packHeaderLen:]
	for i, id := range k.ids {
		le.PutUint64(p, id)
		le.PutUint32(p[8:], k.first[i+1]-k.first[i])
		p = p[packDirLen:]
	}
	for _, n := range k.blocks {
		le.PutUint32(p, n)
		p = p[4:]
	}
	le.PutUint32(b[crcOffset:], headerChecksum(b, l.cfg.Salt))
	return b
}

// decodePack returns what a pack's header describes, nil if it is not sound.
func (l *Log) decodePack(number uint64, b []byte) *pack {
	le := binary.LittleEndian
	if len(b) < packHeaderLen || string(b[:8]) != packMagic || headerChecksum(b, l.cfg.Salt) != le.Uint32(b[crcOffset:]) ||
		[16]byte(b[16:32]) != l.cfg.Pool || le.Uint64(b[32:]) != number {
		return nil
	}
	ids, blocks := int64(le.Uint32(b[44:])), int64(le.Uint32(b[48:]))
	if roundUp(packHeaderLen+packDirLen*ids+4*blocks) != int64(len(b)) {
		return nil
	}
	k := &pack{blocks: make([]uint32, 0, blocks)}
	dir, list := b[packHeaderLen:], b[packHeaderLen+packDirLen*ids:]
	for range ids {
		id, n := le.Uint64(dir), int64(le.Uint32(dir[8:]))
		if n > blocks-int64(len(k.blocks)) || (len(k.ids) > 0 && id <= k.ids[len(k.ids)-1]) {
			return nil
		}
		k.begin(id)
		for i := range n {
			v := le.Uint32(list)
			if i > 0 && v <= k.blocks[len(k.blocks)-1] {
				return nil
			}
			k.blocks = append(k.blocks, v)
			list = list[4:]
		}
		dir = dir[packDirLen:]
	}
	if int64(len(k.blocks)) != blocks {
		return nil
	}
	k.end()
	return k
}

// readPack reads the header of a pack. The same stands at the end: its length must be guessed where the
// first one, which tells it, is unsound.
func (l *Log) readPack(number uint64, f vfs.File) (*pack, error) {
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("size of pack %016x: %w", number, err)
	}
	err = io.EOF
	try := func(off, length int64) *pack {
		if off < 0 || length < block.Size || length > size {
			return nil
		}
		b := make([]byte, length)
		if _, e := f.ReadAt(b, off); e != nil {
			err = e
			return nil
		}
		return l.decodePack(number, b)
	}
	length := func(off int64) int64 {
		var b [packHeaderLen]byte
		if _, e := f.ReadAt(b[:], off); e != nil || string(b[:8]) != packMagic {
			return 0
		}
		return int64(binary.LittleEndian.Uint32(b[40:])) * block.Size
	}
	if k := try(0, length(0)); k != nil {
		return k, nil
	}
	for off := size - block.Size; off >= size/2; off -= block.Size {
		if length(off) == size-off {
			if k := try(off, size-off); k != nil {
				return k, nil
			}
		}
	}
	return nil, fmt.Errorf("both headers of the pack %016x are unsound: %w", number, err)
}

// packed says which pack has a segment.
type packed struct{ segment, pack uint64 }

// loadPacks reads which packs there are. One that cannot be read is left alone: what it has cannot be read either.
func (l *Log) loadPacks() error {
	t := l.segments
	numbers, err := t.packNumbers()
	if err != nil {
		return err
	}
	for _, n := range numbers { // ascending: where two have a segment, the newer counts
		t.lastPack = n
		f, err := t.fs.OpenReadOnly(t.packName(n))
		if err != nil {
			return fmt.Errorf("open pack %016x: %w", n, err)
		}
		k, err := l.readPack(n, f)
		_ = f.Close() // only read
		if err == nil {
			t.setPacked(k.ids, n)
			t.loaded = append(t.loaded, n)
		}
	}
	return nil
}

// setPacked notes that a pack has segments.
func (t *segments) setPacked(ids []uint64, pack uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := slices.DeleteFunc(slices.Clone(t.packed), func(p packed) bool {
		_, moved := slices.BinarySearch(ids, p.segment)
		return moved
	})
	for _, id := range ids {
		kept = append(kept, packed{id, pack})
	}
	slices.SortFunc(kept, func(a, b packed) int { return cmp.Compare(a.segment, b.segment) })
	t.packed = kept
}

// dropPack notes that a pack goes, and what others do not have with it.
func (t *segments) dropPack(pack uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.packed = slices.DeleteFunc(t.packed, func(p packed) bool { return p.pack == pack })
}

// packOf returns the pack that has a segment, 0 if none does; mu is held.
func (t *segments) packOf(id uint64) uint64 {
	i, ok := slices.BinarySearchFunc(t.packed, id, func(p packed, id uint64) int { return cmp.Compare(p.segment, id) })
	if !ok {
		return 0
	}
	return t.packed[i].pack
}

// contents returns which segments each pack has.
func (t *segments) contents() map[uint64][]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[uint64][]uint64{}
	for _, p := range t.packed {
		out[p.pack] = append(out[p.pack], p.segment)
	}
	return out
}
