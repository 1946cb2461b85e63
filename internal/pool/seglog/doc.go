// Package seglog is the pool's one append-only log, cut into segment files.
//
// Vocabulary: a batch is what one write puts into the log: a header (one or more
// blocks) and the payload blocks its entries describe. Batches are numbered by
// seq from 1 without gaps, and each header carries the checksum of the one
// before, so that the log is a chain. A segment is a file that holds successive
// batches; a batch never crosses two segments. An Addr is a payload's place.
//
// Invariants:
//   - A batch is in the log wholly or not at all; after a crash the log is a
//     prefix of what was appended and contains everything a Flush covered.
//   - Every header says which batch was known durable when it was written
//     (durable_seq). What is unsound at or below the newest durable_seq is
//     damage; only beyond it is it a torn tail.
//   - Nothing is ever appended to a segment that an earlier process wrote, and
//     segment numbers are never used again.
//   - After a failed sync nothing more is appended (the kernel may have dropped
//     what it could not write, and says so only once).
//
// Left out: what entries mean. The log knows neither volumes nor maps.
package seglog

import (
	"errors"

	"github.com/google/uuid"

	"varve/internal/vfs"
)

// Errors of the log.
var (
	// ErrStopped: an earlier failure makes it unsafe to write; the log must be opened again.
	ErrStopped = errors.New("writes are stopped")
	// ErrDamaged: a part of the log that was durable is unsound or missing.
	ErrDamaged = errors.New("log damaged")
	// ErrNewerFormat: the log was written by a newer version.
	ErrNewerFormat = errors.New("written by a newer version")
)

// Config says where a log lies.
type Config struct {
	FS           vfs.FS
	Dir          string // of the segment files
	Pool         uuid.UUID
	Salt         uint64 // secret of the pool, under the checksums of headers
	SegmentBytes int64  // a multiple of the block size, at most MaxSegmentBytes
	OpenFiles    int    // segment files kept open when idle; 0: 256
	// OnStop is told once why the log accepts no more writes. It is called with
	// locks held and must not use the log. May be nil.
	OnStop func(error)
}

// Position is a point between two batches.
type Position struct {
	Seq     uint64 // the batch before it; 0 at the beginning
	CRC     uint32 // checksum of that batch's header
	Segment uint64 // where the next batch begins, unless it is at the start of a later segment
	Offset  int64
}
