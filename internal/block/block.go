// Package block defines what every virtual disk in Varve looks like to those
// who read and write it: a Device. Volumes, snapshots, image files and foreign
// NBD exports all are Devices; the NBD server, importers, exporters and backups
// are written against it and nothing else.
//
// Vocabulary: a block is 4096 bytes, the unit of mapping and of checksums; an
// LBA is a block's number within its device. Devices themselves are addressed
// in bytes, at any offset and length within their size.
package block

import (
	"context"
	"errors"
)

// Size is the length of a block in bytes.
const Size = 4096

// SectorSize is the granularity of a device's size, in bytes.
const SectorSize = 512

// MaxDeviceBytes is the largest size of a device: 64 TiB.
const MaxDeviceBytes = int64(64) << 40

// Errors that every Device reports in the same way. They are wrapped with the
// device's name and the operation; test with errors.Is.
var (
	// ErrOutOfRange: the request reaches beyond the end of the device.
	ErrOutOfRange = errors.New("beyond the end of the device")
	// ErrReadOnly: the device cannot be written.
	ErrReadOnly = errors.New("read-only")
	// ErrNoSpace: the store below has no room for the write, which may have been made in part.
	ErrNoSpace = errors.New("no space left")
	// ErrDamaged: stored content failed its checksum, or is gone; it is never returned.
	ErrDamaged = errors.New("damaged")
	// ErrClosed: the device was closed or its user was disconnected.
	ErrClosed = errors.New("closed")
)

// OpKind says what an Op does to its range.
type OpKind uint8

// The kinds of Op.
const (
	// OpWrite stores Data at Offset.
	OpWrite OpKind = iota
	// OpZero makes the range read as zeros, unmapping what it can.
	OpZero
	// OpZeroAllocated makes the range read as zeros and keeps it allocated
	// (NBD_CMD_FLAG_NO_HOLE).
	OpZeroAllocated
	// OpDiscard tells that the range is no longer needed. Whole blocks in it
	// read as zeros afterwards; the partial blocks at its edges are left alone.
	OpDiscard
)

// Op is one change to a device.
type Op struct {
	Kind   OpKind
	Offset int64  // bytes
	Length int64  // bytes; for OpWrite it equals len(Data)
	Data   []byte // OpWrite only; must not change until Submit returns
	Err    error  // set by Submit: nil if the op was performed
}

// Extent is a run of bytes of one kind.
type Extent struct {
	Offset int64 // bytes
	Length int64 // bytes
	// Hole tells that no space is allocated; Zero that the run reads as zeros.
	Hole, Zero bool
}

// Device is a virtual disk. All methods may be called concurrently. A request
// that is not wholly within SizeBytes fails with ErrOutOfRange and does nothing.
type Device interface {
	// SizeBytes is the present size; a multiple of SectorSize.
	SizeBytes() int64

	// ReadAt fills p with the content at off. Content that fails its checksum
	// is ErrDamaged, never wrong data.
	ReadAt(ctx context.Context, p []byte, off int64) error

	// Submit performs ops in order as one batch and sets each op's Err. An op
	// without error is visible to every later read on any handle; it survives a
	// crash of the process, and a power cut after the next Flush.
	Submit(ctx context.Context, ops []*Op)

	// Flush returns once everything that was performed before it, through any
	// handle of the same store, is durable.
	Flush(ctx context.Context) error

	// Extents describes [off, off+length) from off on, in order, without gaps
	// and merged, in at most limit runs; it may end early only after limit runs.
	Extents(ctx context.Context, off, length int64, limit int) ([]Extent, error)

	// Close releases the handle. It does not flush.
	Close() error
}

// ResidentReader is implemented by devices that can tell whether a read would
// have to wait for a disk. The NBD server uses it to answer at once what is in
// memory, and to hand only the rest to another goroutine.
type ResidentReader interface {
	// TryReadAt is ReadAt if all of it is in memory; otherwise it returns false
	// at once and p's content is undefined.
	TryReadAt(p []byte, off int64) (done bool, err error)
}

// CheckRange returns ErrOutOfRange unless [off, off+length) lies within size.
func CheckRange(off, length, size int64) error {
	if off < 0 || length < 0 || off > size || length > size-off {
		return ErrOutOfRange
	}
	return nil
}
