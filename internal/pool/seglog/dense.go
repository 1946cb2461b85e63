package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"path"
	"slices"
	"strings"

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

// Count is the number of blocks in the set.
func (b BlockSet) Count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
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

// place returns where n bytes from off on, an offset in the segment as it was written, lie now.
func (d *dense) place(off int64, n int) (int64, bool) {
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

const rewriteSuffix = ".new"

// CompactBelow is the share of a segment that may be live for a rewrite to be worth it at all.
const CompactBelow = 0.9

// Compact keeps only the live blocks of a segment: it removes the segment if there are none,
// and rewrites it densely if that makes it shorter than CompactBelow of what it was. The segment must not be
// written to or replayed any more. It returns how many bytes the file has become shorter by, and
// how long it is now. After a crash the segment is as before or as after.
func (l *Log) Compact(id uint64, live BlockSet) (freed, size int64, err error) {
	s, err := l.segments.acquire(id)
	if err != nil {
		return 0, 0, err
	}
	defer l.segments.release(s)
	if size, err = s.file.Size(); err != nil {
		return 0, 0, fmt.Errorf("size of segment %016x: %w", id, err)
	}
	d := newDense(live)
	if live.Count() == 0 {
		l.segments.retire(s)
		if err := l.discard(s, size); err != nil {
			return 0, size, err
		}
		return size, 0, nil
	}
	want := 2*d.header + int64(live.Count())*block.Size
	if float64(want) > CompactBelow*float64(size) {
		return 0, size, nil
	}
	err = l.rewrite(s, d)
	if errors.Is(NoSpace(err), block.ErrNoSpace) && l.SpareBytes() > 0 {
		if err = l.KeepSpares(0); err == nil {
			err = l.rewrite(s, d)
		}
	}
	if err != nil {
		return 0, size, fmt.Errorf("rewrite segment %016x: %w", id, NoSpace(err))
	}
	l.segments.retire(s)
	if s.dense == nil {
		if err := l.discard(s, size); err != nil {
			return 0, size, err
		}
	}
	return size - want, want, nil
}

// rewrite puts a dense file beside a segment's, or in the place of an older dense one. Where both have a name the dense one counts.
func (l *Log) rewrite(s *segment, d *dense) error {
	target := l.segments.denseName(s.id)
	name := target + rewriteSuffix
	if err := l.cfg.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := l.cfg.FS.Create(name)
	if err != nil {
		return err
	}
	err = l.copyLive(f.WriteAt, s, d)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = l.cfg.FS.Rename(name, target)
	}
	if err != nil {
		_ = l.cfg.FS.Remove(name) // it is removed when the pool is opened, too
		return err
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		// It may have been the one report that the name of a new segment is lost.
		return l.stop(fmt.Errorf("sync directory of segments: %w", err))
	}
	return nil
}

func (l *Log) copyLive(write func([][]byte, int64) error, s *segment, d *dense) error {
	const run = 256 // blocks copied at a time
	buf := make([]byte, run*block.Size)
	header := l.encodeDense(s.id, d)
	if err := write([][]byte{header}, 0); err != nil {
		return err
	}
	out := d.header
	for i := 0; i < len(d.live)*64; {
		if !d.live.Has(i) {
			i++
			continue
		}
		n := 1
		for n < run && d.live.Has(i+n) {
			n++
		}
		p := buf[:n*block.Size]
		if err := s.readAt(s.file.ReadAt, int64(i)*block.Size, p); err != nil {
			return err
		}
		if err := write([][]byte{p}, out); err != nil {
			return err
		}
		out += int64(len(p))
		i += n
	}
	return write([][]byte{header}, out)
}

// readAt reads from an offset in the segment as it was written.
func (s *segment) readAt(read func([]byte, int64) (int, error), off int64, p []byte) error {
	if s.dense != nil {
		var ok bool
		if off, ok = s.dense.place(off, len(p)); !ok {
			return fmt.Errorf("the place was given back: %w", fs.ErrNotExist)
		}
	}
	_, err := read(p, off)
	return err
}

// removeLeftovers removes what interrupted rewrites left, and the spares of an earlier process.
func (l *Log) removeLeftovers() error {
	names, err := l.cfg.FS.List(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		number, written := strings.CutSuffix(n, segmentSuffix)
		superseded := written && slices.Contains(names, number+denseSuffix)
		if superseded || strings.HasSuffix(n, rewriteSuffix) || strings.HasSuffix(n, spareSuffix) {
			if err := l.cfg.FS.Remove(path.Join(l.cfg.Dir, n)); err != nil {
				return fmt.Errorf("remove the leftover %s: %w", n, err)
			}
		}
	}
	return nil
}
