package seglog

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/vfs"
)

// Record is a checkpoint record in a log of which nobody knows yet whose it is.
type Record struct {
	Seq     uint64
	Pool    uuid.UUID // as the header says
	Content []byte
	header  []byte
}

// SoundUnder tells whether the header that holds the record is sound under a pool's salt.
func (r *Record) SoundUnder(salt uint64) bool { return soundUnder(r.header, salt) }

func soundUnder(header []byte, salt uint64) bool {
	h, err := decodeFixed(header)
	return err == nil && headerChecksum(header, salt) == h.crc
}

// Finder finds what a log says about the pool that it is of, when nobody else does any more.
type Finder struct {
	Records []Record
	firsts  [][]byte // the headers that segments begin with
}

// Find reads the segments of a directory. What clients store could look like a header, also at the place where it lies; so what is
// found counts only under a salt that Votes confirms: no payload lies at the start of a segment.
func Find(fs vfs.FS, dir string) (*Finder, error) {
	l := New(Config{FS: fs, Dir: dir})
	defer l.Close()
	numbers, err := l.segments.numbers()
	if err != nil {
		return nil, err
	}
	f := &Finder{}
	for _, id := range numbers {
		if err := f.segment(l, id); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(f.Records, func(a, b Record) int { return int(int64(b.Seq) - int64(a.Seq)) })
	return f, nil
}

// segment looks at one segment as it was written. A rewritten one lies before every checkpoint that counts.
func (f *Finder) segment(l *Log, id uint64) error {
	file, err := l.cfg.FS.OpenReadOnly(l.segments.name(id))
	if isLoss(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // only read
	size, err := file.Size()
	if err != nil {
		return fmt.Errorf("size of segment %016x: %w", id, err)
	}
	first := make([]byte, block.Size)
	for off := int64(0); off < size; {
		head, h, err := f.header(file.ReadAt, first, id, off)
		if errors.Is(err, errNotHeader) || isLoss(err) {
			off += block.Size
			continue
		} else if err != nil {
			return fmt.Errorf("read segment %016x at %d: %w", id, off, err)
		}
		if off == 0 {
			f.firsts = append(f.firsts, head)
		}
		if entries, ok := parseEntries(head, &h); ok {
			for i := range entries {
				if entries[i].Kind == KindCheckpoint {
					f.Records = append(f.Records, Record{Seq: h.seq, Pool: h.pool, Content: entries[i].Inline, header: head})
				}
			}
		}
		off += h.bytes()
	}
	return nil
}

// header reads what looks like a batch header of the segment, whoever it is from.
func (f *Finder) header(read func([]byte, int64) (int, error), first []byte, id uint64, off int64) ([]byte, header, error) {
	if _, err := read(first, off); err != nil {
		return nil, header{}, err
	}
	h, err := decodeFixed(first)
	if err != nil || h.segment != id || h.offset() != off {
		return nil, header{}, errNotHeader
	}
	head := make([]byte, h.headerBlocks*block.Size)
	_, err = read(head, off)
	return head, h, err
}

// Votes counts the segments that begin with a header which is sound for that pool and salt.
func (f *Finder) Votes(pool uuid.UUID, salt uint64) int {
	n := 0
	for _, head := range f.firsts {
		if h, err := decodeFixed(head); err == nil && h.pool == pool && soundUnder(head, salt) {
			n++
		}
	}
	return n
}
