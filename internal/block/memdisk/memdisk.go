// Package memdisk is a virtual disk in memory: a sparse, thread-safe
// block.Device for tests, benchmarks and scratch work. What was never written,
// zeroed or discarded takes no memory. Everything it holds counts as durable;
// FlushCount tells tests how often that was asked for.
package memdisk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"varve/internal/block"
)

// A region is a run of chunks, the unit of the disk's directory; a chunk is the
// unit of allocation.
const (
	chunkBytes      = 64 << 10
	chunksPerRegion = 1024
	regionBytes     = chunksPerRegion * chunkBytes
)

// chunk holds the content of chunkBytes of the disk. Its lock covers all fields.
type chunk struct {
	mu        sync.RWMutex
	data      []byte // nil while nothing is allocated
	allocated uint16 // bit i: block i is allocated
	written   uint16 // bit i: block i may hold something other than zeros; within allocated
}

type region [chunksPerRegion]chunk

// content is what all handles of a disk share.
type content struct {
	sizeBytes int64
	regions   []atomic.Pointer[region] // nil: never written
	flushes   atomic.Int64
}

// Disk is a handle of a disk in memory. It implements block.Device and
// block.ResidentReader.
type Disk struct {
	*content
	closed atomic.Bool
}

// New makes an empty disk. The size must be a positive multiple of
// block.SectorSize, at most block.MaxDeviceBytes.
func New(sizeBytes int64) (*Disk, error) {
	if sizeBytes <= 0 || sizeBytes > block.MaxDeviceBytes || sizeBytes%block.SectorSize != 0 {
		return nil, fmt.Errorf("memory disk: size %d is not a positive multiple of %d up to 64 TiB", sizeBytes, block.SectorSize)
	}
	regions := make([]atomic.Pointer[region], (sizeBytes+regionBytes-1)/regionBytes)
	return &Disk{content: &content{sizeBytes: sizeBytes, regions: regions}}, nil
}

// Open makes another handle of the same disk; each is closed on its own.
func (d *Disk) Open() *Disk { return &Disk{content: d.content} }

// SizeBytes is the size of the disk.
func (d *Disk) SizeBytes() int64 { return d.sizeBytes }

// FlushCount is the number of flushes through all handles so far.
func (d *Disk) FlushCount() int64 { return d.flushes.Load() }

// chunkAt returns the chunk that holds off. If the disk has none there, it makes
// one if create is set, else it returns nil.
func (d *Disk) chunkAt(off int64, create bool) *chunk {
	slot := &d.regions[off/regionBytes]
	r := slot.Load()
	if r == nil {
		if !create {
			return nil
		}
		slot.CompareAndSwap(nil, new(region))
		r = slot.Load()
	}
	return &r[off%regionBytes/chunkBytes]
}

// ReadAt implements block.Device.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := d.TryReadAt(p, off)
	return err
}

// TryReadAt implements block.ResidentReader; all of a Disk is always in memory.
func (d *Disk) TryReadAt(p []byte, off int64) (done bool, err error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return true, fmt.Errorf("memory disk: read %d+%d: %w", off, len(p), err)
	}
	for len(p) > 0 {
		at := off % chunkBytes
		n := min(int64(len(p)), chunkBytes-at)
		if c := d.chunkAt(off, false); c == nil {
			clear(p[:n])
		} else {
			c.read(p[:n], at)
		}
		p, off = p[n:], off+n
	}
	return true, nil
}

// Submit implements block.Device.
func (d *Disk) Submit(ctx context.Context, ops []*block.Op) {
	for _, op := range ops {
		op.Err = d.submit(ctx, op)
	}
}

func (d *Disk) submit(ctx context.Context, op *block.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if op.Kind == block.OpWrite && op.Length != int64(len(op.Data)) {
		return errors.New("memory disk: write: length differs from data")
	}
	if err := d.check(op.Offset, op.Length); err != nil {
		return fmt.Errorf("memory disk: write %d+%d: %w", op.Offset, op.Length, err)
	}
	off, end := op.Offset, op.Offset+op.Length
	if op.Kind == block.OpDiscard {
		// The last block of the disk may be a partial one and still is a whole block.
		off = (off + block.Size - 1) / block.Size * block.Size
		if end != d.sizeBytes {
			end = end / block.Size * block.Size
		}
	}
	for off < end {
		at := off % chunkBytes
		n := min(end-off, chunkBytes-at)
		c := d.chunkAt(off, op.Kind == block.OpWrite || op.Kind == block.OpZeroAllocated)
		if c == nil {
			off += min(end-off, regionBytes-off%regionBytes)
			continue
		}
		c.mu.Lock()
		switch op.Kind {
		case block.OpWrite:
			c.write(at, op.Data[off-op.Offset:][:n])
		case block.OpZeroAllocated:
			c.zero(at, n, true)
		default:
			// A partial last block of the disk counts as covered when its bytes are.
			if off+n == d.sizeBytes {
				n = chunkBytes - at
			}
			c.zero(at, n, false)
		}
		c.mu.Unlock()
		off += n
	}
	return nil
}

func (c *chunk) read(p []byte, at int64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.data == nil {
		clear(p)
	} else {
		copy(p, c.data[at:])
	}
}

func (c *chunk) write(at int64, p []byte) {
	if c.data == nil {
		c.data = make([]byte, chunkBytes)
	}
	copy(c.data[at:], p)
	m := blockMask(at, int64(len(p)))
	c.allocated |= m
	c.written |= m
}

// zero clears a range; blocks wholly inside are unmapped unless keep is set.
func (c *chunk) zero(at, n int64, keep bool) {
	whole := wholeMask(at, n)
	if keep {
		if c.data == nil {
			c.data = make([]byte, chunkBytes)
		}
		c.allocated |= blockMask(at, n)
	} else {
		c.allocated &^= whole
	}
	c.written &^= whole
	if c.allocated == 0 {
		c.data = nil
		return
	}
	clear(c.data[at : at+n])
}

// blockMask has the bits of the blocks that [at, at+n) touches.
func blockMask(at, n int64) uint16 {
	return bits(at/block.Size, (at+n+block.Size-1)/block.Size)
}

// wholeMask has the bits of the blocks that lie wholly in [at, at+n).
func wholeMask(at, n int64) uint16 {
	return bits((at+block.Size-1)/block.Size, (at+n)/block.Size)
}

func bits(first, end int64) uint16 {
	if first >= end {
		return 0
	}
	return uint16((1<<end - 1) &^ (1<<first - 1))
}

// Flush implements block.Device.
func (d *Disk) Flush(ctx context.Context) error {
	if d.closed.Load() {
		return fmt.Errorf("memory disk: flush: %w", block.ErrClosed)
	}
	d.flushes.Add(1)
	return ctx.Err()
}

// Extents implements block.Device.
func (d *Disk) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := d.check(off, length); err != nil {
		return nil, fmt.Errorf("memory disk: extents of %d+%d: %w", off, length, err)
	}
	var runs []block.Extent
	// add appends a run and tells whether there was room.
	add := func(e block.Extent) bool {
		if k := len(runs) - 1; k >= 0 && runs[k].Hole == e.Hole && runs[k].Zero == e.Zero {
			runs[k].Length += e.Length
			return true
		}
		if len(runs) == limit {
			return false
		}
		runs = append(runs, e)
		return true
	}
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := d.chunkAt(off, false)
		if c == nil {
			n := min(end-off, regionBytes-off%regionBytes)
			if !add(block.Extent{Offset: off, Length: n, Hole: true, Zero: true}) {
				break
			}
			off += n
			continue
		}
		c.mu.RLock()
		allocated, written := c.allocated, c.written
		c.mu.RUnlock()
		for chunkEnd := min(end, off-off%chunkBytes+chunkBytes); off < chunkEnd; {
			i := off % chunkBytes / block.Size
			n := min(chunkEnd-off, block.Size-off%block.Size)
			if !add(block.Extent{Offset: off, Length: n, Hole: allocated>>i&1 == 0, Zero: written>>i&1 == 0}) {
				return runs, nil
			}
			off += n
		}
	}
	return runs, nil
}

// Close makes every later call fail with block.ErrClosed.
func (d *Disk) Close() error {
	d.closed.Store(true)
	return nil
}

func (d *Disk) check(off, length int64) error {
	if d.closed.Load() {
		return block.ErrClosed
	}
	return block.CheckRange(off, length, d.sizeBytes)
}
