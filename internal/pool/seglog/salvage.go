package seglog

import (
	"errors"
	"io"
	"io/fs"
	"syscall"

	"varve/internal/block"
)

// Salvage lets Replay read a log that Recover refuses, and is told what it met:
//
//   - Where a header at or below the newest durable batch is unsound or missing, or one cannot be read at all, the log
//     ends before it. Cut says so.
//   - A payload block beyond the newest durable batch that cannot be read (as opposed to one that reads as something else) does
//     not end the log: that block cannot be read, and everything else counts.
type Salvage struct {
	Cut *Cut // nil: nothing had to be cut off
	// Unreadable are payload blocks beyond the newest durable batch that cannot be read.
	Unreadable []Addr

	headers map[Addr]error // places where a header could not be read
}

// Cut tells what lies behind the end of a log that had to be cut off.
type Cut struct {
	Err     error    // what is wrong there
	End     Position // the log's new end
	Durable uint64   // the newest batch that was durable, at least
	Behind  []Batch  // sound ones of this log behind the end, in the order of the segments
}

// Batch is a batch whose header is sound.
type Batch struct {
	Seq     uint64
	Entries []Entry
}

// isLoss tells errors that mean that stored bytes are gone from those of the moment.
func isLoss(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO)
}

func (s *Salvage) unreadable(seg uint64, off int64, err error) {
	if s.headers == nil {
		s.headers = map[Addr]error{}
	}
	s.headers[MakeAddr(seg, off)] = err
}

// headerAt tells whether the header that should follow, or that of a later segment, could not be read: it may have been flushed.
func (s *Salvage) headerAt(at Position) bool {
	for a := range s.headers {
		if a.Segment() == at.Segment && a.Offset() == at.Offset || a.Segment() > at.Segment && a.Offset() == 0 {
			return true
		}
	}
	return false
}

// cutAt ends the log where r stands, and looks at what lies behind.
func (s *Salvage) cutAt(r *reader, durable uint64, cause error) error {
	s.Cut = &Cut{Err: cause, End: r.at, Durable: durable}
	return r.beyond(func(h *header, entries []Entry, _ int64) {
		if entries != nil {
			s.Cut.Behind = append(s.Cut.Behind, Batch{h.seq, entries})
		}
	})
}

// verifyReadable verifies those payload blocks of an entry that can be read, and remembers the others.
func (r *reader) verifyReadable(h *header, e *Entry) error {
	for j, want := range e.CRCs {
		at := e.Addr.Plus(int64(j) * block.Size)
		p, err := r.bytes(h.segment, at.Offset(), block.Size)
		if isLoss(err) {
			r.salvage.Unreadable = append(r.salvage.Unreadable, at)
			continue
		}
		if err != nil {
			return err
		}
		if Checksum(p) != want {
			return errNotHeader
		}
	}
	return nil
}
