package qcow2

import (
	"context"
	"fmt"

	"varve/internal/block"
)

// ReadAt implements block.Device.
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), im.sizeBytes); err != nil {
		return fmt.Errorf("read %s at %d+%d: %w", im.path, off, len(p), err)
	}
	c := cursor{ctx: ctx, im: im}
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := c.run(off, off+int64(len(p)))
		if err != nil {
			return err
		}
		part := p[:r.length]
		switch r.kind {
		case unallocated:
			if err := im.readBacking(ctx, part, off); err != nil {
				return err // the backing file's error names it
			}
		case zeroPlain, zeroAllocated:
			clear(part)
		case data:
			err = im.readData(ctx, part, r.host)
		case compressed:
			err = im.readCompressed(ctx, part, off, r.entry)
		}
		if err != nil {
			return fmt.Errorf("read %s at %d+%d: %w", im.path, off, len(part), err)
		}
		p, off = p[r.length:], off+r.length
	}
	return nil
}

// backingBytes is how much of [off, off+length) the backing file covers.
func (im *Image) backingBytes(off, length int64) int64 {
	if im.backing == nil {
		return 0
	}
	return max(0, min(length, im.backing.SizeBytes()-off))
}

func (im *Image) readBacking(ctx context.Context, p []byte, off int64) error {
	n := im.backingBytes(off, int64(len(p)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return im.backing.ReadAt(ctx, p[:n], off)
}

// fileEnd is where the last cluster of the file ends. The file itself may end
// before, and goes on with zeros; a cluster that begins here or later is lost.
func (im *Image) fileEnd() int64 {
	return (im.file.SizeBytes() + im.clusterBytes() - 1) &^ (im.clusterBytes() - 1)
}

// readData reads what lies in the file at host.
func (im *Image) readData(ctx context.Context, p []byte, host int64) error {
	if int64(len(p)) > im.fileEnd()-host {
		return corrupt("data at %d+%d lies beyond the end of the file; it was cut short", host, len(p))
	}
	inFile := max(0, min(int64(len(p)), im.file.SizeBytes()-host))
	clear(p[inFile:])
	if inFile == 0 {
		return nil
	}
	return im.file.ReadAt(ctx, p[:inFile], host)
}

// Extents implements block.Device. Holes of the file itself count as holes too.
func (im *Image) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := block.CheckRange(off, length, im.sizeBytes); err != nil {
		return nil, fmt.Errorf("extents of %s at %d+%d: %w", im.path, off, length, err)
	}
	c := cursor{ctx: ctx, im: im}
	list := extentList{limit: limit}
	for end := off + length; off < end; {
		r, err := c.run(off, end)
		if err != nil {
			return nil, err
		}
		var more bool
		switch r.kind {
		case unallocated:
			more, err = list.addBacking(ctx, im, off, r.length)
		case zeroPlain:
			more = list.add(block.Extent{Offset: off, Length: r.length, Hole: true, Zero: true})
		case zeroAllocated:
			more = list.add(block.Extent{Offset: off, Length: r.length, Zero: true})
		case data:
			more, err = list.addData(ctx, im, off, r)
		case compressed:
			more = list.add(block.Extent{Offset: off, Length: r.length})
		}
		if err != nil {
			return nil, fmt.Errorf("extents of %s at %d+%d: %w", im.path, off, r.length, err)
		}
		if !more {
			break
		}
		off += r.length
	}
	return list.extents, nil
}

// extentList merges extents up to a limit.
type extentList struct {
	extents []block.Extent
	limit   int
}

// add appends e, which follows the last one; false: it would be one too many.
func (l *extentList) add(e block.Extent) bool {
	if n := len(l.extents); n > 0 && l.extents[n-1].Hole == e.Hole && l.extents[n-1].Zero == e.Zero {
		l.extents[n-1].Length += e.Length
		return true
	}
	if len(l.extents) >= l.limit {
		return false
	}
	l.extents = append(l.extents, e)
	return true
}

// addFrom appends the extents of [from, from+length) of another device as those from off on.
func (l *extentList) addFrom(ctx context.Context, d block.Device, from, off, length int64) (more bool, err error) {
	for length > 0 {
		// One more than there is room for: the first may join the last one here.
		extents, err := d.Extents(ctx, from, length, l.limit-len(l.extents)+1)
		if err != nil {
			return false, err
		}
		for _, e := range extents {
			e.Offset = off
			if !l.add(e) {
				return false, nil
			}
			off, from, length = off+e.Length, from+e.Length, length-e.Length
		}
	}
	return true, nil
}

func (l *extentList) addBacking(ctx context.Context, im *Image, off, length int64) (more bool, err error) {
	n := im.backingBytes(off, length)
	if n > 0 {
		if more, err := l.addFrom(ctx, im.backing, off, off, n); !more || err != nil {
			return false, err
		}
	}
	if n == length {
		return true, nil
	}
	return l.add(block.Extent{Offset: off + n, Length: length - n, Hole: true, Zero: true}), nil
}

// addData appends a run of data, less the holes that preallocation left in the file.
func (l *extentList) addData(ctx context.Context, im *Image, off int64, r run) (more bool, err error) {
	inFile := max(0, min(r.length, im.file.SizeBytes()-r.host))
	if inFile > 0 {
		if more, err := l.addFrom(ctx, im.file, r.host, off, inFile); !more || err != nil {
			return false, err
		}
	}
	if inFile == r.length {
		return true, nil
	}
	// What is lost counts as data, so that whoever reads it learns of the loss.
	cutShort := r.length <= im.fileEnd()-r.host
	return l.add(block.Extent{Offset: off + inFile, Length: r.length - inFile, Hole: cutShort, Zero: cutShort}), nil
}
