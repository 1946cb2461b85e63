// Package format_test proves docs/format.md: it reads pools with a reader of its own
// that knows nothing but that document (no code of the pool), and compares what it finds with
// what the pool serves. The files log_test.go, map_test.go and catalogue_test.go are the reader.
//
// Left out: writing, and bounds on forged input; package seglog and its kin are tested for that.
package format_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const blockBytes = 4096

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func crc32c(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// crcWithout is the CRC32C of salt and b, with b's four bytes at offset 12 as zeros.
func crcWithout(salt, b []byte) uint32 {
	c := bytes.Clone(b)
	clear(c[12:16])
	return crc32c(slices.Concat(salt, c))
}

type pointer struct {
	address     uint64
	length, crc uint32
}

func pointerAt(b []byte) pointer { return pointer{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])} }

type superblock struct {
	pool                 [16]byte
	generation, durable  uint64
	seq, segment, offset uint64
	crc                  uint32
	catalogueBytes       uint64
	salt                 []byte
	chunks               []pointer
}

func readSlot(b []byte) (superblock, error) {
	if string(b[:8]) != "VARVESUP" || le.Uint32(b[12:]) != crcWithout(nil, b) {
		return superblock{}, fmt.Errorf("slot is not sound")
	}
	if v := le.Uint32(b[8:]); v != 1 {
		return superblock{}, fmt.Errorf("version %d", v)
	}
	s := superblock{
		pool: [16]byte(b[16:32]), generation: le.Uint64(b[48:]), durable: le.Uint64(b[56:]),
		seq: le.Uint64(b[64:]), crc: le.Uint32(b[72:]), segment: le.Uint64(b[80:]), offset: le.Uint64(b[88:]),
		catalogueBytes: le.Uint64(b[96:]), salt: b[104:112],
	}
	for i := range int(le.Uint32(b[76:])) {
		s.chunks = append(s.chunks, pointerAt(b[112+16*i:]))
	}
	return s, nil
}

// files are a pool's directory in memory: the segments by their number.
type files struct {
	super    superblock
	segments map[uint64][]byte
	order    []uint64

	differences int // nodes read that were stored as one
	rewritten   int // segments
	moved       int // blocks, by what was replayed
	packs       int
}

func readFiles(dir fs.FS) (*files, error) {
	raw, err := fs.ReadFile(dir, "superblock")
	if err != nil {
		return nil, err
	}
	f := &files{segments: map[uint64][]byte{}}
	sound := 0
	for i := range 2 {
		s, err := readSlot(raw[i*4096 : (i+1)*4096])
		if err != nil {
			continue
		}
		if int(s.generation%2) != i {
			return nil, fmt.Errorf("generation %d lies in slot %d", s.generation, i)
		}
		if sound++; sound == 1 || s.generation > f.super.generation {
			f.super = s
		}
	}
	if sound == 0 {
		return nil, fmt.Errorf("no sound slot")
	}
	names, err := fs.Glob(dir, "log/*.seg")
	if err != nil {
		return nil, err
	}
	rewritten, err := fs.Glob(dir, "log/*.dns")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		id, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(name, "log/"), ".seg"), 16, 64)
		if err != nil {
			return nil, err
		}
		if f.segments[id], err = fs.ReadFile(dir, name); err != nil {
			return nil, err
		}
	}
	for _, name := range rewritten {
		id, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(name, "log/"), ".dns"), 16, 64)
		if err != nil {
			return nil, err
		}
		b, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		if f.segments[id], err = f.spread(b, id); err != nil {
			return nil, err
		}
		f.rewritten++
	}
	packs, err := fs.Glob(dir, "log/*.pak")
	if err != nil {
		return nil, err
	}
	for _, name := range packs { // ascending, so that the newest remains
		number, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(name, "log/"), ".pak"), 16, 64)
		if err != nil {
			return nil, err
		}
		b, err := fs.ReadFile(dir, name)
		if err == nil {
			err = f.unpack(b, number)
		}
		if err != nil {
			return nil, err
		}
		f.packs++
	}
	f.order = slices.Sorted(maps.Keys(f.segments))
	return f, nil
}

// spread puts the blocks that a rewritten segment keeps back to where they were.
func (f *files) spread(b []byte, id uint64) ([]byte, error) {
	header := b[:int(le.Uint32(b[40:]))*blockBytes]
	if string(b[:8]) != "VARVEDNS" || le.Uint32(b[12:]) != crcWithout(f.super.salt, header) ||
		[16]byte(b[16:32]) != f.super.pool || le.Uint64(b[32:]) != id || !bytes.Equal(b[len(b)-len(header):], header) {
		return nil, fmt.Errorf("rewritten segment %d is not sound", id)
	}
	bits, kept := int(le.Uint32(b[44:])), b[len(header):len(b)-len(header)]
	out := make([]byte, bits*blockBytes)
	for i := range bits {
		if le.Uint64(b[64+i/64*8:])>>(i%64)&1 != 0 {
			copy(out[i*blockBytes:], kept[:blockBytes])
			kept = kept[blockBytes:]
		}
	}
	if len(kept) != 0 {
		return nil, fmt.Errorf("rewritten segment %d has %d bytes too many", id, len(kept))
	}
	return out, nil
}

// unpack puts the blocks of a pack back to where they were in their segments.
func (f *files) unpack(b []byte, number uint64) error {
	header := b[:int(le.Uint32(b[40:]))*blockBytes]
	if string(b[:8]) != "VARVEPAK" || le.Uint32(b[8:]) != 1 || le.Uint32(b[12:]) != crcWithout(f.super.salt, header) ||
		[16]byte(b[16:32]) != f.super.pool || le.Uint64(b[32:]) != number || !bytes.Equal(b[len(b)-len(header):], header) {
		return fmt.Errorf("pack %d is not sound", number)
	}
	segments, blocks, kept := int(le.Uint32(b[44:])), int(le.Uint32(b[48:])), b[len(header):len(b)-len(header)]
	list := b[64+16*segments:][:4*blocks]
	if len(kept) != blocks*blockBytes {
		return fmt.Errorf("pack %d has %d bytes for %d blocks", number, len(kept), blocks)
	}
	for i := range segments {
		dir := b[64+16*i:]
		var out []byte
		for range le.Uint32(dir[8:]) {
			at := int(le.Uint32(list)) * blockBytes
			if at < len(out) {
				return fmt.Errorf("the list of pack %d does not ascend", number)
			}
			out = append(append(out, make([]byte, at-len(out))...), kept[:blockBytes]...)
			list, kept = list[4:], kept[blockBytes:]
		}
		f.segments[le.Uint64(dir)] = out
	}
	if len(list) > 0 {
		return fmt.Errorf("pack %d lists %d bytes too many", number, len(list))
	}
	return nil
}

// at returns the bytes that a pointer refers to, nil if they do not match it.
func (f *files) at(p pointer) []byte {
	seg, off := f.segments[p.address>>24], (p.address&(1<<24-1))*64
	if off+uint64(p.length) > uint64(len(seg)) || crc32c(seg[off:off+uint64(p.length)]) != p.crc {
		return nil
	}
	return seg[off : off+uint64(p.length)]
}

type entry struct {
	kind               byte
	volume, lba, count uint64
	version            uint64
	address            uint64 // of the first payload block
	crcs               []uint32
	content            []byte
}

type batch struct {
	seq, durable uint64
	prev, crc    uint32
	segment, end uint64 // where it ends, which may lie beyond the segment if it is torn
	entries      []entry
}

// batchAt reads the header at a place, nil if there is no sound one.
func (f *files) batchAt(segment, offset uint64) *batch {
	seg := f.segments[segment]
	if offset+blockBytes > uint64(len(seg)) {
		return nil
	}
	h := seg[offset:]
	n := uint64(le.Uint32(h[64:]))
	if string(h[:8]) != "VARVEBAT" || le.Uint32(h[8:]) != 1 || n < 1 || n > 64 || offset+n*blockBytes > uint64(len(seg)) ||
		le.Uint32(h[12:]) != crcWithout(f.super.salt, h[:n*blockBytes]) || [16]byte(h[16:32]) != f.super.pool ||
		le.Uint64(h[48:]) != segment || uint64(le.Uint32(h[56:]))*blockBytes != offset {
		return nil
	}
	payload := offset + n*blockBytes
	b := &batch{
		seq: le.Uint64(h[32:]), durable: le.Uint64(h[40:]), prev: le.Uint32(h[60:]), crc: le.Uint32(h[12:]),
		segment: segment, end: payload + uint64(le.Uint32(h[68:]))*blockBytes,
	}
	count, rest := le.Uint32(h[72:]), h[80:80+le.Uint32(h[76:])]
	for range count {
		e := entry{kind: rest[0], address: segment<<24 | payload/64}
		length, blocks := 8, 0
		switch e.kind {
		case 1, 7:
			blocks, length = int(le.Uint32(rest[4:])), 32
			e.volume, e.lba, e.count = le.Uint64(rest[8:]), le.Uint64(rest[16:]), uint64(blocks)
		case 2:
			e.volume, e.lba, e.count = le.Uint64(rest[8:]), le.Uint64(rest[16:]), le.Uint64(rest[24:])
			length = 32
		case 8, 9, 10:
			e.volume, e.lba, e.count, e.version = le.Uint64(rest[8:]), le.Uint64(rest[16:]), uint64(le.Uint32(rest[4:])), le.Uint64(rest[32:])
			length = 40
		case 3, 5:
			n := int(le.Uint32(rest[4:]))
			e.content = rest[8 : 8+n]
			length = 8 + (n+7)/8*8
		case 4:
			blocks = int(le.Uint32(rest[4:]))
		case 6:
		default:
			return nil
		}
		for i := range blocks {
			e.crcs = append(e.crcs, le.Uint32(rest[length+4*i:]))
		}
		payload += uint64(blocks) * blockBytes
		rest = rest[length+4*blocks:]
		b.entries = append(b.entries, e)
	}
	if len(rest) != 0 || payload != b.end {
		return nil
	}
	return b
}

// whole tells whether every payload block matches its checksum.
func (f *files) whole(b *batch) bool {
	for _, e := range b.entries {
		for i, crc := range e.crcs {
			if f.at(pointer{e.address + uint64(i)*64, blockBytes, crc}) == nil {
				return false
			}
		}
	}
	return true
}

// batches returns what is to be replayed: the chain from the superblock's position to the torn tail.
func (f *files) batches() ([]*batch, error) {
	type link struct {
		seq  uint64
		prev uint32
	}
	heads := map[link]*batch{}
	for _, id := range f.order {
		if b := f.batchAt(id, 0); b != nil && id > f.super.segment {
			heads[link{b.seq, b.prev}] = b // ascending, so that the highest segment stays
		}
	}
	var chain []*batch
	last := &batch{seq: f.super.seq, crc: f.super.crc, segment: f.super.segment, end: f.super.offset}
	durable := f.super.durable
	for {
		next := heads[link{last.seq + 1, last.crc}]
		if next == nil {
			next = f.batchAt(last.segment, last.end)
		}
		if next == nil || next.seq != last.seq+1 || next.prev != last.crc {
			break
		}
		chain, last = append(chain, next), next
		durable = max(durable, next.durable)
	}
	for _, id := range f.order {
		off := uint64(0)
		if id == last.segment {
			off = last.end
		}
		for id >= last.segment && off < uint64(len(f.segments[id])) {
			b := f.batchAt(id, off)
			if b == nil {
				off += blockBytes
				continue
			}
			if off = b.end; b.seq > last.seq {
				durable = max(durable, b.durable)
			}
		}
	}
	if last.seq < durable {
		return nil, fmt.Errorf("damage: the chain ends at %d, and %d was durable", last.seq, durable)
	}
	for i, b := range chain {
		if b.seq > durable && !f.whole(b) {
			return chain[:i], nil
		}
	}
	return chain, nil
}
