package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"varve/internal/block"
)

// Rewrite makes a volume what write makes of it, at one instant for all others, and keeps the present as an automatic snapshot, whose
// name begins with keptAs. write gets a device of sizeBytes that holds what the volume does, and that nobody else sees: it may read it, and
// write and zero whole blocks of it (or up to its end), from several goroutines; what it returns ends the work. A redirect volume gets
// that size, an inplace one has it already.
//
// What holds of RollbackRanges does of Rewrite: it leaves nothing behind if it fails, or the pool is closed or crashes before the
// one record at its end. ErrInvalid, ErrNotFound; ErrInUse: a device that has written is open, at the beginning or the end, or the volume
// was changed meanwhile; block.ErrNoSpace; block.ErrReadOnly; and what write returns.
func (p *Pool) Rewrite(ctx context.Context, name string, sizeBytes int64, keptAs string, write func(ctx context.Context, target block.Device) error) (PutBack, Timing, error) {
	fail := func(err error) (PutBack, Timing, error) {
		return PutBack{}, Timing{}, fmt.Errorf("rewrite volume %q: %w", name, err)
	}
	v, err := p.rewritable(name, sizeBytes, keptAs)
	if err != nil {
		return fail(err)
	}
	done, t, err := p.rollbackByCopy(ctx, v, former{sizeBytes: sizeBytes, write: write, keptAs: keptAs}, nil, nil)
	if err != nil {
		return fail(err)
	}
	return done, t, nil
}

// CheckRewrite tells why Rewrite would refuse, but for whoever has the volume open.
func (p *Pool) CheckRewrite(name string, sizeBytes int64) error {
	if _, err := p.rewritable(name, sizeBytes, keptByRollback); err != nil {
		return fmt.Errorf("rewrite volume %q: %w", name, err)
	}
	return nil
}

func (p *Pool) rewritable(name string, sizeBytes int64, keptAs string) (*volume, error) {
	if err := errors.Join(checkSize(sizeBytes), checkName("snapshot", keptAs)); err != nil {
		return nil, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	rec, err := findLive(p.cat, name)
	if err != nil {
		return nil, err
	}
	return p.volumes[rec.Number], p.fits(p.cat, rec, sizeBytes)
}

// rewriting is what of a volume is filled, for who writes to it.
type rewriting struct {
	*putter
	mu sync.Mutex // the putter writes one thing at a time
}

// SizeBytes implements block.Device.
func (r *rewriting) SizeBytes() int64 { return r.device.SizeBytes() }

// ReadAt implements block.Device.
func (r *rewriting) ReadAt(ctx context.Context, p []byte, off int64) error {
	return r.device.ReadAt(ctx, p, off)
}

// Extents implements block.Device.
func (r *rewriting) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	return r.device.Extents(ctx, off, length, limit)
}

// Flush implements block.Device. The record at the end is durable with all that comes before it.
func (r *rewriting) Flush(ctx context.Context) error { return ctx.Err() }

// Close implements block.Device.
func (r *rewriting) Close() error { return nil }

// Submit implements block.Device.
func (r *rewriting) Submit(ctx context.Context, ops []*block.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		op.Err = r.submit(ctx, op)
	}
}

func (r *rewriting) submit(ctx context.Context, op *block.Op) error {
	size := r.device.SizeBytes()
	if err := block.CheckRange(op.Offset, op.Length, size); err != nil {
		return err
	}
	end := op.Offset + op.Length
	if op.Offset%block.Size != 0 || end%block.Size != 0 && end != size {
		return fmt.Errorf("write %d+%d: %w: not whole blocks", op.Offset, op.Length, ErrInvalid)
	}
	if op.Kind != block.OpWrite && op.Kind != block.OpZero {
		return fmt.Errorf("write %d+%d: %w: neither content nor zeros", op.Offset, op.Length, ErrInvalid)
	}
	if r.buf == nil {
		r.buf = make([]byte, copyBytes)
	}
	for off := op.Offset; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := block.Op{Kind: op.Kind, Offset: off, Length: min(end-off, zeroBytes)}
		if op.Kind == block.OpWrite {
			piece.Length = min(piece.Length, copyBytes)
			piece.Data = r.buf[:copy(r.buf, op.Data[off-op.Offset:][:piece.Length])]
		}
		if err := r.write(ctx, &piece); err != nil {
			return err
		}
		r.done.Bytes += piece.Length
		off += piece.Length
	}
	return nil
}
