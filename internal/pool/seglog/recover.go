package seglog

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"varve/internal/block"
)

// Recovery tells what Recover found behind the last checkpoint.
type Recovery struct {
	Batches   int    // replayed
	LastSeq   uint64 // the newest of them
	TornBytes int64  // cut off behind it, as far as headers tell: batches that no Flush had covered

	end     Position
	numbers []uint64
	keep    bool // what lies behind the end stays where it is
}

// Recover finds the end of the log: from the position of the last checkpoint it
// follows the chain of batches to the torn tail, makes them durable, hands each to apply
// in order, and begins a new segment for what is to come. Afterwards the log can
// be appended to; apply may already read from it, and keep the entries.
//
// durable is the newest batch that is known to be durable from elsewhere.
// ErrDamaged if a header at or below the newest known durable batch is unsound
// or missing; what lies beyond is then untouched.
func (l *Log) Recover(from Position, durable uint64, apply func(seq uint64, entries []Entry) error) (Recovery, error) {
	rec, err := l.Replay(from, durable, nil, apply)
	if err == nil {
		err = l.Resume(&rec)
	}
	return rec, err
}

// Replay is Recover without writing anything. The log cannot be appended to until Resume. With s, it
// goes on where Recover refuses, as Salvage says.
func (l *Log) Replay(from Position, durable uint64, s *Salvage, apply func(seq uint64, entries []Entry) error) (Recovery, error) {
	if from.Segment >= maxSegments-1 || from.Offset > MaxSegmentBytes || from.Seq >= maxSeq {
		return Recovery{}, fmt.Errorf("%w: no log reaches batch %d in segment %016x at %d", ErrDamaged, from.Seq, from.Segment, from.Offset)
	}
	if err := l.loadPacks(); err != nil {
		return Recovery{}, err
	}
	numbers, err := l.segments.numbers()
	if err != nil {
		return Recovery{}, err
	}
	r, err := l.newReader(numbers, from, nil, s)
	if err != nil {
		return Recovery{}, err
	}

	// First by what the cache holds: find the newest batch known durable, and with
	// it the place from which the cache must not be trusted.
	trusted := from
	durable = max(durable, from.Seq)
	var untrusted []Position // positions behind each batch beyond durable
	for {
		h, _, err := r.next(false)
		if errors.Is(err, errEndOfChain) {
			break
		} else if err != nil {
			return Recovery{}, err
		}
		untrusted = append(untrusted, r.at)
		for durable = max(durable, h.durableSeq); len(untrusted) > 0 && untrusted[0].Seq <= durable; untrusted = untrusted[1:] {
			trusted = untrusted[0]
		}
	}
	for link, seg := range r.heads {
		if seg > r.at.Segment && link.seq <= r.at.Seq {
			return Recovery{}, fmt.Errorf("%w: segment %016x goes on from batch %d, and the log that ends with batch %d does not lead to it", ErrDamaged, seg, link.seq-1, r.at.Seq)
		}
	}
	beyond, err := r.durableBeyond()
	if err != nil {
		return Recovery{}, err
	}
	rec := Recovery{numbers: numbers}
	if durable = max(durable, beyond); durable > r.at.Seq || s != nil && s.headerAt(r.at) {
		err := fmt.Errorf("%w: batch %d should be at %s or at the start of a later segment, and batches up to %d were durable",
			ErrDamaged, r.at.Seq+1, MakeAddr(r.at.Segment, min(r.at.Offset, MaxSegmentBytes-Granule)), durable)
		if s == nil {
			return Recovery{}, err
		}
		if err := s.cutAt(r, durable, err); err != nil {
			return Recovery{}, err
		}
		rec.keep = true
	}
	for ; len(untrusted) > 0 && untrusted[0].Seq <= durable; untrusted = untrusted[1:] {
		trusted = untrusted[0]
	}

	// Then replay, beyond that place by what is on the disk, payload included. An earlier process
	// may have been told of a failed sync: its pages look clean and were never written.
	for _, id := range numbers {
		if id < trusted.Segment {
			continue
		}
		if err := l.settle(id); err != nil {
			return Recovery{}, err
		}
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return Recovery{}, fmt.Errorf("sync directory of segments: %w", err)
	}
	if r, err = l.newReader(numbers, from, r.buf, s); err != nil {
		return Recovery{}, err
	}
	for {
		h, entries, err := r.next(r.at.Seq >= trusted.Seq)
		if errors.Is(err, errEndOfChain) && r.at.Seq < trusted.Seq {
			err = fmt.Errorf("%w: it was there a moment ago", ErrDamaged)
		} else if errors.Is(err, errEndOfChain) {
			break
		}
		if err != nil {
			return Recovery{}, fmt.Errorf("replay batch %d: %w", r.at.Seq+1, err)
		}
		if err := apply(h.seq, entries); err != nil {
			return Recovery{}, fmt.Errorf("replay batch %d: %w", h.seq, err)
		}
		rec.Batches++
	}
	end := r.at
	rec.LastSeq, rec.end = end.Seq, end

	l.seq, l.prevCRC = end.Seq, end.CRC
	l.appended.Store(end.Seq)
	l.durable.Store(end.Seq)
	l.next = max(end.Segment, slices.Max(append(numbers, 0))) + 1
	if !rec.keep {
		rec.TornBytes, err = r.torn()
	}
	return rec, err
}

// Resume makes a log that was replayed one that can be appended to.
func (l *Log) Resume(rec *Recovery) (err error) {
	if err := l.begin(); err != nil {
		return err
	}
	if !rec.keep {
		if err := l.cutTail(rec.end, rec.numbers); err != nil {
			return err
		}
	}
	return l.removeLeftovers()
}

// settle writes out what the kernel holds of a segment and forgets it.
func (l *Log) settle(id uint64) error {
	s, err := l.segments.acquire(id)
	if err != nil {
		return err
	}
	defer l.segments.release(s)
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync segment %016x: %w", id, err)
	}
	if err := s.file.DropCache(); err != nil {
		return fmt.Errorf("drop cache of segment %016x: %w", id, err)
	}
	return nil
}

// begin makes the log go on in a segment of its own. Only when that is durable may
// what is behind the end be removed: a crash in between must find the same end again.
func (l *Log) begin() error {
	seq, err := l.Append([]Entry{{Kind: KindOpen}})
	if err != nil {
		return fmt.Errorf("begin a segment: %w", err)
	}
	return l.Flush(seq)
}

// cutTail removes what lies behind the end of the recovered log.
func (l *Log) cutTail(end Position, numbers []uint64) error {
	for _, id := range numbers {
		if id < end.Segment {
			continue
		}
		s, err := l.segments.acquire(id)
		if err != nil {
			return err
		}
		if id == end.Segment {
			var size int64
			if size, err = s.file.Size(); err == nil && size > end.Offset {
				err = s.file.Truncate(end.Offset)
			}
		}
		l.segments.release(s)
		if err == nil && id > end.Segment {
			l.segments.forget(id)
			err = l.cfg.FS.Remove(l.segments.name(id))
		}
		if err != nil {
			return fmt.Errorf("cut torn tail in segment %016x: %w", id, err)
		}
	}
	return nil
}

// errEndOfChain: no sound batch follows.
var errEndOfChain = errors.New("end of the log")

// reader follows the chain of batches.
type reader struct {
	log     *Log
	numbers []uint64 // segments that exist, ascending
	at      Position
	heads   map[chainLink]uint64 // later segments by the batch that they begin with
	salvage *Salvage             // nil: what cannot be read is an error

	window    []byte // bytes of segment windowSeg from windowOff on
	windowSeg uint64
	windowOff int64
	buf       []byte
}

const windowBytes = 128 << 10

// newReader returns a reader that stands at a position and reads into buf if it can.
//
// Where the batch behind n could be both right behind it and at the start of a later
// segment, the latest segment is right: it was begun by somebody who had found that
// the log ends at n, and what lies behind n is what he meant to cut off. So the
// first header of each later segment is looked at beforehand.
func (l *Log) newReader(numbers []uint64, at Position, buf []byte, s *Salvage) (*reader, error) {
	r := &reader{log: l, numbers: numbers, at: at, heads: map[chainLink]uint64{}, buf: buf, salvage: s}
	for _, seg := range numbers {
		if seg <= at.Segment {
			continue
		}
		h, _, err := r.batch(seg, 0)
		if err == nil {
			r.heads[chainLink{h.seq, h.prevCRC}] = seg // ascending: the latest remains
		} else if !errors.Is(err, errNotHeader) {
			return nil, err
		}
	}
	return r, nil
}

// chainLink identifies the batch that follows another one.
type chainLink struct {
	seq     uint64
	prevCRC uint32
}

// next returns the batch that follows r.at and moves behind it. With payload it also
// demands that every payload block matches its checksum. errEndOfChain if no sound batch follows.
func (r *reader) next(payload bool) (*header, []Entry, error) {
	seg, off := r.at.Segment, r.at.Offset
	if later, ok := r.heads[chainLink{r.at.Seq + 1, r.at.CRC}]; ok && later > seg {
		seg, off = later, 0
	} else if _, exists := slices.BinarySearch(r.numbers, seg); !exists {
		return nil, nil, errEndOfChain
	}
	h, entries, err := r.batch(seg, off)
	if err == nil && (h.seq != r.at.Seq+1 || h.prevCRC != r.at.CRC) {
		err = errNotHeader
	}
	if err == nil && payload {
		err = r.verify(h, entries)
	}
	if errors.Is(err, errNotHeader) {
		err = errEndOfChain
	}
	if err != nil {
		return nil, nil, err
	}
	r.at = Position{Seq: h.seq, CRC: h.crc, Segment: seg, Offset: off + h.bytes()}
	return h, entries, nil
}

// batch reads and verifies the header at a place. With errNotHeader it returns what a header that was
// written for this place, and is not sound, says of itself; nil if there is none.
func (r *reader) batch(seg uint64, off int64) (*header, []Entry, error) {
	h, entries, err := r.readBatch(seg, off)
	if r.salvage != nil && isLoss(err) {
		r.salvage.unreadable(seg, off, err)
		err = errNotHeader
	}
	return h, entries, err
}

func (r *reader) readBatch(seg uint64, off int64) (*header, []Entry, error) {
	head, err := r.bytes(seg, off, block.Size)
	if err != nil {
		return nil, nil, err
	}
	h, err := decodeFixed(head)
	if err != nil {
		return nil, nil, err
	}
	if h.pool != r.log.cfg.Pool || h.segment != seg || h.offset() != off {
		return nil, nil, errNotHeader
	}
	if head, err = r.bytes(seg, off, h.headerBlocks*block.Size); err != nil {
		return &h, nil, err
	}
	entries, err := decodeEntries(head, &h, r.log.cfg.Salt)
	if err != nil {
		return &h, nil, err
	}
	return &h, entries, nil
}

// verify reads the payload of a batch and compares checksums.
func (r *reader) verify(h *header, entries []Entry) error {
	for i := range entries {
		e := &entries[i]
		if len(e.CRCs) == 0 {
			continue
		}
		p, err := r.bytes(h.segment, e.Addr.Offset(), len(e.CRCs)*block.Size)
		if r.salvage != nil && isLoss(err) {
			if err := r.verifyReadable(h, e); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for j, want := range e.CRCs {
			if Checksum(p[j*block.Size:(j+1)*block.Size]) != want {
				return errNotHeader
			}
		}
	}
	return nil
}

// bytes returns n bytes of a segment, valid until the next call; errNotHeader
// where the file is shorter.
func (r *reader) bytes(seg uint64, off int64, n int) ([]byte, error) {
	if seg == r.windowSeg && off >= r.windowOff && off+int64(n) <= r.windowOff+int64(len(r.window)) {
		p := r.window[off-r.windowOff:]
		return p[:n], nil
	}
	s, err := r.log.segments.acquire(seg)
	if err != nil {
		return nil, err
	}
	defer r.log.segments.release(s)
	if size := max(n, windowBytes); cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	r.window = nil // it lies in buf
	got, err := s.file.ReadAt(r.buf[:max(n, windowBytes)], off)
	if got < n && err != nil && !errors.Is(err, io.EOF) { // what else the window reached may be unreadable
		return nil, fmt.Errorf("read segment %016x at %d: %w", seg, off, err)
	}
	r.window, r.windowSeg, r.windowOff = r.buf[:got], seg, off
	if got < n {
		return nil, errNotHeader
	}
	return r.window[:n], nil
}

// durableBeyond looks behind the end of the chain for sound headers of this log
// and returns the newest durable_seq that any of them claims.
func (r *reader) durableBeyond() (uint64, error) {
	var durable uint64
	err := r.beyond(func(h *header, entries []Entry, _ int64) {
		if entries != nil {
			durable = max(durable, h.durableSeq)
		}
	})
	return durable, err
}

// torn measures what was written behind the end of the chain. It reaches to the end of the last
// batch whose header, sound or not, says that it was written there: a file may be longer, and hold what it did
// as a segment before.
func (r *reader) torn() (int64, error) {
	ends := map[uint64]int64{}
	err := r.beyond(func(h *header, _ []Entry, size int64) {
		ends[h.segment] = max(ends[h.segment], min(h.offset()+h.bytes(), size))
	})
	var sum int64
	for seg, end := range ends {
		if seg == r.at.Segment {
			end -= r.at.Offset
		}
		sum += end
	}
	return sum, err
}

// beyond visits the headers of later batches behind the end of the chain, with the size of the file. Entries are nil where
// the header is not sound.
func (r *reader) beyond(visit func(h *header, entries []Entry, size int64)) error {
	for _, seg := range r.numbers {
		if seg < r.at.Segment {
			continue
		}
		s, err := r.log.segments.acquire(seg)
		if err != nil {
			return err
		}
		size, err := s.file.Size()
		r.log.segments.release(s)
		if err != nil {
			return fmt.Errorf("size of segment %016x: %w", seg, err)
		}
		off := int64(0)
		if seg == r.at.Segment {
			off = r.at.Offset
		}
		for off < size {
			h, entries, err := r.batch(seg, off)
			if err != nil && !errors.Is(err, errNotHeader) {
				return err
			}
			if h != nil && h.seq > r.at.Seq {
				visit(h, entries, size)
			}
			if err == nil {
				off += h.bytes()
			} else {
				off += block.Size
			}
		}
	}
	return nil
}
