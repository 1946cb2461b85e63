package depot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"varve/internal/block"
	"varve/internal/vfs"
)

// disk is a raw file or a block device that is restored to.
type disk struct {
	f    vfs.File
	name string
	size int64
}

// zeroStep bounds how long the kernel zeroes before cancellation is looked at.
const zeroStep = 1 << 30

func (d *disk) wrap(op string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s at %d: %w", op, d.name, off, err)
}

// SizeBytes implements block.Device.
func (d *disk) SizeBytes() int64 { return d.size }

// ReadAt implements block.Device.
func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), d.size); err != nil {
		return d.wrap("read", off, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := d.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return d.wrap("read", off, err)
}

// Submit implements block.Device.
func (d *disk) Submit(ctx context.Context, ops []*block.Op) {
	for _, op := range ops {
		if op.Err = block.CheckRange(op.Offset, op.Length, d.size); op.Err != nil {
			continue
		}
		if op.Kind == block.OpWrite {
			op.Err = d.f.WriteAt([][]byte{op.Data}, op.Offset)
			d.f.StartWriteback(op.Offset, op.Length)
		} else {
			op.Err = d.zero(ctx, op.Offset, op.Length)
		}
	}
}

// zero makes a range read as zeros, in the cheapest way that there is.
func (d *disk) zero(ctx context.Context, off, length int64) error {
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-off, zeroStep)
		err := d.f.PunchHole(off, n)
		if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) {
			n = min(n, int64(len(zeros)))
			err = d.f.WriteAt([][]byte{zeros[:n]}, off)
		}
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

var zeros [1 << 20]byte

// Flush implements block.Device.
func (d *disk) Flush(context.Context) error {
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", d.name, err)
	}
	return nil
}

// Extents implements block.Device.
func (d *disk) Extents(_ context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := block.CheckRange(off, length, d.size); err != nil {
		return nil, d.wrap("extents of", off, err)
	}
	var out []block.Extent
	for end := off + length; off < end && len(out) < limit; {
		from, to, err := d.f.NextData(off)
		if err != nil {
			return nil, d.wrap("extents of", off, err)
		}
		from, to = min(from, end), min(to, end)
		if from >= to { // no data any more
			from, to = end, end
		}
		if from > off {
			out = append(out, block.Extent{Offset: off, Length: from - off, Hole: true, Zero: true})
		}
		if to > from && len(out) < limit {
			out = append(out, block.Extent{Offset: from, Length: to - from})
		} else if to > from {
			break
		}
		off = to
	}
	return out, nil
}

// Close implements block.Device.
func (d *disk) Close() error { return d.f.Close() }
