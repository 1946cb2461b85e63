package pool

import (
	"bytes"
	"context"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// fill writes to the volume what is to be put back.
func (b *putter) fill(ctx context.Context, progress func(float64) error) error {
	differing, closed, err := b.differing()
	if err != nil {
		return err
	}
	defer closed()
	var total, behind int64
	for _, r := range b.done.Ranges {
		total += r.Length
	}
	for _, r := range b.done.Ranges {
		err := differing(ctx, r.Offset, r.Offset+r.Length, func(off, length int64) error {
			return b.copy(ctx, off, length, func(at int64) error {
				return progress(float64(behind+at-r.Offset) / float64(total))
			})
		})
		if err != nil {
			return err
		}
		behind += r.Length
		if err := progress(float64(behind) / float64(total)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// differing returns what visits the extents between two offsets that differ from the present.
func (b *putter) differing() (each func(ctx context.Context, off, end int64, visit func(off, length int64) error) error, closed func(), err error) {
	p := b.pool
	if b.from.state == 0 {
		present, err := p.openState(b.volume.name(), func(c *catalogue.Catalogue) (*catalogue.State, error) { return c.State(b.kept), nil })
		return func(ctx context.Context, off, end int64, visit func(off, length int64) error) error {
			return b.compare(ctx, present, off, end, visit)
		}, func() { _ = present.Close() }, err // nothing was written to it
	}
	d, err := p.openDiff(func(c *catalogue.Catalogue) (present, then *catalogue.State, err error) {
		if then = c.State(b.from.state); then == nil {
			return nil, nil, ErrNotFound
		}
		return c.State(b.kept), then, nil
	})
	if err != nil {
		return nil, nil, err
	}
	d.name = "the present and then"
	return d.within, d.Close, nil
}

// zeroBytes are zeroed at a time.
const zeroBytes = 64 << 20

// compare visits what differs between two devices, block by block. What lies beyond the end of the present is compared with zeros.
func (b *putter) compare(ctx context.Context, present *Device, off, end int64, visit func(off, length int64) error) error {
	now, then := make([]byte, copyBytes), make([]byte, copyBytes)
	for ; off < end; off += copyBytes {
		n := min(copyBytes, end-off)
		there := max(0, min(present.SizeBytes()-off, n))
		clear(now[there:n])
		if err := present.ReadAt(ctx, now[:there], min(off, present.SizeBytes())); err != nil {
			return err
		}
		if err := b.from.content.ReadAt(ctx, then[:n], off); err != nil {
			return err
		}
		differs := func(i int64) bool {
			to := min(i+block.Size, n)
			return !bytes.Equal(now[i:to], then[i:to])
		}
		for i := int64(0); i < n; {
			from := i
			for i < n && differs(i) {
				i += block.Size
			}
			if i > from {
				if err := visit(off+from, min(i, n)-from); err != nil {
					return err
				}
			}
			i += block.Size
		}
	}
	return nil
}

// copy writes an extent of the former content; reached is told how far it is.
func (b *putter) copy(ctx context.Context, off, length int64, reached func(at int64) error) error {
	for end := off + length; off < end; {
		extents, err := b.from.content.Extents(ctx, off, end-off, 64)
		if err != nil {
			return err
		}
		for _, e := range extents {
			for next := e.Offset + e.Length; off < next; {
				if err := ctx.Err(); err != nil {
					return err
				}
				n := next - off
				op := block.Op{Kind: block.OpZero, Offset: off, Length: min(n, zeroBytes)}
				if !e.Zero {
					if op, err = b.read(ctx, off, min(n, copyBytes)); err != nil {
						return err
					}
				}
				if err := b.write(ctx, &op); err != nil {
					return err
				}
				off += op.Length
				b.done.Bytes += op.Length
				if err := reached(off); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// read returns the write of some former content.
func (b *putter) read(ctx context.Context, off, n int64) (block.Op, error) {
	if b.buf == nil {
		b.buf = make([]byte, copyBytes)
	}
	err := b.from.content.ReadAt(ctx, b.buf[:n], off)
	return block.Op{Kind: block.OpWrite, Offset: off, Length: n, Data: b.buf[:n]}, err
}

// write puts some former content where it is filled in: as ordinary data, or, as the map of an inplace volume has versions alone, as
// new versions that are kept.
func (b *putter) write(ctx context.Context, op *block.Op) error {
	if b.volume.place != nil {
		return b.keep(ctx, op)
	}
	b.device.Submit(ctx, []*block.Op{op})
	return op.Err
}

// keep is write for an inplace volume.
func (b *putter) keep(ctx context.Context, op *block.Op) error {
	p, pl, filled := b.pool, b.volume.place, b.device.volume
	if err := b.device.begin(); err != nil {
		return err
	}
	defer p.end()
	lba, blocks := uint64(op.Offset/block.Size), blocksIn(op.Length)
	room := 2 * int64(block.Size) // of log, for the entries
	if op.Kind == block.OpWrite {
		room += int64(blocks) * block.Size
	}
	if err := p.checkpointer.throttle(ctx, p); err != nil {
		return err
	}
	if err := p.reclaimer.throttle(ctx, p, room); err != nil {
		return err
	}
	defer p.reclaimer.written(room)
	if err := p.space.admitBytes(ctx, p, room); err != nil {
		return err
	}
	defer p.space.release(room)
	w := writes.Get().(*write)
	defer w.release()
	pins := p.store.NewPins()
	version, err := pl.versions(blocks)
	if err != nil {
		return err
	}
	kept := seglog.Entry{Kind: seglog.KindZero, Volume: pl.kept.number, LBA: version, Count: blocks}
	if op.Kind == block.OpWrite {
		data := b.buf[:blocks*block.Size]
		clear(data[op.Length:]) // behind the end of the volume
		kept.Kind, kept.Payload = seglog.KindData, [][]byte{data}
		for at := range blocks {
			w.crcs = append(w.crcs, seglog.Checksum(data[at*block.Size:][:block.Size]))
		}
		kept.CRCs = w.crcs
	}
	for _, of := range []struct { // applying the entries must read nothing
		volume *volume
		from   uint64
	}{{filled, lba}, {pl.kept, version}} {
		var e [1]blockmap.Entry
		for at := of.from; at < of.from+blocks; at = blockmap.LeafOf(at) + blockmap.LeafBlocks {
			if err := of.volume.lookup(pins, at, e[:]); err != nil {
				return damaged(err)
			}
		}
	}
	// Whoever looks for kept versions that nobody has finds these named before they are kept.
	w.changes = append(w.changes,
		change{volume: filled, pins: pins, entry: seglog.Entry{Kind: seglog.KindTouch, Volume: filled.number, LBA: lba, Count: blocks, Version: version}},
		change{volume: pl.kept, pins: pins, entry: kept})
	return p.commitChanges(w)
}
