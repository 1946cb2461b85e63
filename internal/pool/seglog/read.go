package seglog

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"varve/internal/vfs"
)

// Piece is a place in the log and where its bytes go.
type Piece struct {
	Addr Addr
	To   []byte
}

const (
	// readGap is how many bytes between two pieces are read along rather than make another system call.
	readGap = 8 << 10
	// maxSpanPieces bounds how many are read at once.
	maxSpanPieces = 256
)

// span is the memory of one read.
type span struct {
	bufs [][]byte
	gap  [readGap]byte // takes what is read along
}

var spans = sync.Pool{New: func() any { return &span{bufs: make([][]byte, 0, 2*maxSpanPieces)} }}

// ReadPieces fills pieces, and sorts them. What lies close together in a segment is read at once. It
// verifies nothing. Without wait it is vfs.ErrWouldBlock unless all of it is in memory.
func (l *Log) ReadPieces(pieces []Piece, wait bool) error {
	if len(pieces) > 1 {
		slices.SortFunc(pieces, func(a, b Piece) int { return cmp.Compare(a.Addr, b.Addr) })
	}
	m := spans.Get().(*span)
	defer spans.Put(m)
	for len(pieces) > 0 {
		n := 1
		for n < len(pieces) && pieces[n].Addr.Segment() == pieces[0].Addr.Segment() {
			n++
		}
		if err := l.readSegment(m, pieces[:n], wait); err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	return nil
}

// readSegment fills pieces of one segment, in order.
func (l *Log) readSegment(m *span, pieces []Piece, wait bool) error {
	s, err := l.segments.acquire(pieces[0].Addr.Segment())
	if err != nil {
		return err
	}
	defer l.segments.release(s)
	for len(pieces) > 0 {
		off, n, err := m.describe(s, pieces)
		switch {
		case err != nil:
		case len(m.bufs) == 1 && wait: // a vector of one costs the kernel a tenth more
			_, err = s.file.ReadAt(m.bufs[0], off)
		default:
			err = s.file.ReadVector(m.bufs, off, wait)
		}
		clear(m.bufs)
		if err != nil && !wait {
			return vfs.ErrWouldBlock // whatever it is, waiting will tell
		}
		for i := 0; i < n && err != nil; i++ { // it may be the fault of what was read along
			p := pieces[i]
			if err := s.readAt(p.Addr.Segment(), p.Addr.Offset(), p.To); err != nil {
				return fmt.Errorf("read %d bytes at %s: %w", len(p.To), p.Addr, err)
			}
		}
		pieces = pieces[n:]
	}
	return nil
}

// describe makes buffers of the first pieces that lie close together in the file, and of what lies between
// them. It tells where they begin and how many they are.
func (m *span) describe(s *segment, pieces []Piece) (off int64, n int, err error) {
	m.bufs = m.bufs[:0]
	var end int64
	for n < len(pieces) && n < maxSpanPieces {
		at, ok := s.place(pieces[n].Addr.Segment(), pieces[n].Addr.Offset(), len(pieces[n].To))
		switch {
		case n == 0 && !ok:
			return 0, 1, errGivenBack
		case n == 0:
			off = at
		case !ok || at < end || at-end > readGap:
			return off, n, nil
		case at > end:
			m.bufs = append(m.bufs, m.gap[:at-end])
		}
		m.bufs = append(m.bufs, pieces[n].To)
		end = at + int64(len(pieces[n].To))
		n++
	}
	return off, n, nil
}

// errGivenBack tells that a rewritten segment does not have the place any more.
var errGivenBack = fmt.Errorf("the place was given back: %w", fs.ErrNotExist)

// place returns where n bytes from off on, an offset in segment id as it was written, lie in the file.
func (s *segment) place(id uint64, off int64, n int) (int64, bool) {
	if s.index == nil {
		return off, true
	}
	return s.index.place(id, off, n)
}

// readAt reads from an offset in segment id as it was written.
func (s *segment) readAt(id uint64, off int64, p []byte) error {
	off, ok := s.place(id, off, len(p))
	if !ok {
		return errGivenBack
	}
	_, err := s.file.ReadAt(p, off)
	return err
}
