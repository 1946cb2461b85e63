package pool

import (
	"bytes"
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

// CopyBack copies what a rollback of an inplace volume has put off into its file, and returns when nothing is left to
// do; readers see the snapshot all the time. It may be cut short and begun again. progress may be nil.
func (p *Pool) CopyBack(ctx context.Context, name string, progress func(float64)) error {
	if !p.begin() {
		return fmt.Errorf("copy back: pool: %w", block.ErrClosed)
	}
	defer p.end()
	p.mu.RLock()
	v, err := findVolume(p.cat, name)
	var pl *place
	if err == nil {
		pl = p.volumes[v.Number].place
	}
	p.mu.RUnlock()
	if err == nil && pl != nil {
		err = pl.copyBack(ctx, progress)
	}
	if err != nil {
		return fmt.Errorf("copy back into volume %q: %w", name, err)
	}
	return nil
}

func (pl *place) copyBack(ctx context.Context, progress func(float64)) error {
	p, v := pl.pool, pl.volume
	for pl.pending.Load() {
		p.mu.RLock()
		rec := p.cat.Volume(v.number)
		p.mu.RUnlock()
		if rec == nil {
			return ErrNotFound
		}
		if err := pl.use(); err != nil {
			return err
		}
		blocks := blocksIn(v.size.Load())
		for lba := uint64(0); lba < blocks; {
			if err := ctx.Err(); err != nil {
				return err
			}
			next, err := pl.nextPending(lba, blocks)
			if err != nil {
				return damaged(err)
			}
			if next >= blocks {
				break
			}
			n := min(blocks-next, roundBlks)
			if err := pl.copyRound(ctx, next, n); err != nil {
				return err
			}
			if lba = next + n; progress != nil {
				progress(float64(lba) / float64(blocks))
			}
		}
		// Another rollback may have come meanwhile; then there are more bases than were looked at.
		_, err := p.changeNow(func(c *catalogue.Catalogue) (proposal, error) {
			now := c.Volume(v.number)
			if now == nil {
				return proposal{}, ErrNotFound
			}
			if len(now.Place.Bases) != len(rec.Place.Bases) {
				return proposal{}, nil
			}
			return proposal{op: &catalogue.Op{Settled: &catalogue.Settled{Number: v.number}}, urgent: true}, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nextPending finds the first block at or behind lba that may be pending: in which the head has another version than a base. That
// may have the same content, copied back once before, and still nobody else would keep it for the base.
func (pl *place) nextPending(lba, limit uint64) (uint64, error) {
	next := limit
	pins := pl.pool.store.NewPins()
	for _, base := range pl.bases() {
		for at := lba; at < next; {
			var n uint64
			var differs bool
			err := waitFor(pins, func() (err error) {
				pl.volume.mu.RLock()
				defer pl.volume.mu.RUnlock()
				n, differs, err = blockmap.DiffPlaces(pins, base, pl.volume.tree.View(), at, limit-at)
				return err
			})
			if err != nil {
				return 0, err
			}
			if differs {
				next = at
			}
			at += n
			pins.ForgetBeyond(pinnedNodes)
		}
	}
	return next, nil
}

// copyRound copies the pending ones of some blocks back.
func (pl *place) copyRound(ctx context.Context, lba, blocks uint64) error {
	release := pl.ranges.reserve([]span{{lba, lba + blocks}})
	defer release()
	return pl.copyPending(ctx, lba, blocks)
}

// wholeFirst copies back the pending blocks of which an op sets only a part, so that the file has the rest. They are reserved.
func (pl *place) wholeFirst(ctx context.Context, op *block.Op) error {
	if !pl.pending.Load() {
		return nil
	}
	first, last := op.Offset/block.Size, (op.Offset+op.Length-1)/block.Size
	if op.Offset%block.Size != 0 || first == last && (op.Offset+op.Length)%block.Size != 0 {
		if err := pl.copyPending(ctx, uint64(first), 1); err != nil {
			return err
		}
	}
	if last != first && (op.Offset+op.Length)%block.Size != 0 {
		return pl.copyPending(ctx, uint64(last), 1)
	}
	return nil
}

// copyPending is copyRound for somebody who has reserved the blocks.
func (pl *place) copyPending(ctx context.Context, lba, blocks uint64) error {
	p := pl.pool
	w := writes.Get().(*write)
	defer w.release()
	pins := p.store.NewPins()
	entries := make([]blockmap.Entry, blocks)
	if err := pl.volume.lookup(pins, lba, entries); err != nil {
		return damaged(err)
	}
	var todo []span
	for i, e := range entries {
		v, ok := version(e)
		if !ok {
			continue
		}
		var k [1]blockmap.Entry
		if err := pl.kept.lookup(pins, v, k[:]); err != nil {
			return damaged(err)
		}
		if k[0].Epoch == 0 {
			continue
		}
		at := lba + uint64(i)
		if n := len(todo); n > 0 && todo[n-1].hi == at {
			todo[n-1].hi++
		} else {
			todo = append(todo, span{at, at + 1})
		}
	}
	if len(todo) == 0 {
		return nil
	}
	s := survey{place: pl, pins: pins}
	bases := pl.bases()
	for _, t := range todo {
		if err := s.wanted(t.lo, entries[t.lo-lba:t.hi-lba], nil, bases); err != nil {
			return damaged(err)
		}
	}
	if len(s.keeps) > 0 {
		if err := s.keep(ctx); err != nil {
			return err
		}
	}
	file, err := pl.get()
	if err != nil {
		return err
	}
	for _, t := range todo {
		if err := pl.putBack(file, pins, t, entries[t.lo-lba:t.hi-lba]); err != nil {
			return err
		}
		w.changes = append(w.changes, change{volume: pl.volume, pins: pins, entry: seglog.Entry{
			Kind: seglog.KindBack, Volume: pl.volume.number, LBA: t.lo, Count: t.hi - t.lo,
		}})
	}
	if err := pl.sync(); err != nil {
		return err
	}
	return p.commitChanges(w)
}

// putBack writes kept versions of some blocks into the file; zeros become holes.
func (pl *place) putBack(file vfs.File, pins *blockmap.Pins, t span, entries []blockmap.Entry) error {
	size := pl.volume.size.Load()
	buf := make([]byte, (t.hi-t.lo)*block.Size)
	zero := make([]bool, len(entries))
	for i := range entries {
		v, _ := version(entries[i])
		b := buf[i*block.Size:][:block.Size]
		if there, err := pl.readKept(pins, v, b); err != nil {
			return err
		} else if !there {
			return fmt.Errorf("%w: version %d of block %d is not kept any more", block.ErrDamaged, v, t.lo+uint64(i))
		}
		zero[i] = bytes.Equal(b, zeroBlock)
	}
	for i := 0; i < len(entries); {
		n := 1
		for i+n < len(entries) && zero[i+n] == zero[i] {
			n++
		}
		off := int64(t.lo+uint64(i)) * block.Size
		end := min(off+int64(n)*block.Size, size)
		var err error
		if zero[i] {
			err = zeroFile(file, off, end-off)
		} else {
			err = file.WriteAt([][]byte{buf[i*block.Size:][:end-off]}, off)
		}
		if err != nil {
			return pl.failed("write", seglog.NoSpace(err))
		}
		i += n
	}
	return nil
}
