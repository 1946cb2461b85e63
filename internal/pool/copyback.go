package pool

import (
	"context"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
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

// copyRound brings the pending ones of some blocks into the file.
func (pl *place) copyRound(ctx context.Context, lba, blocks uint64) error {
	release := pl.ranges.reserve([]span{{lba, lba + blocks}})
	defer release()
	pins := pl.pool.store.NewPins()
	late, err := pl.behind(pins, []span{{lba, lba + blocks}})
	if err != nil || len(late) == 0 {
		return err
	}
	return pl.bring(ctx, pins, late)
}

// behind finds which of some blocks, which are reserved, are not in place.
func (pl *place) behind(pins *blockmap.Pins, spans []span) ([]behind, error) {
	s := survey{place: pl, pins: pins}
	now, mine := &s.now, &s.mine
	for _, sp := range spans {
		for lo := sp.lo; lo < sp.hi; {
			n := min(sp.hi-lo, blockmap.LeafBlocks-lo%blockmap.LeafBlocks)
			if err := pl.volume.lookup(pins, lo, now[:n]); err != nil {
				return nil, damaged(err)
			}
			copy(mine[:n], now[:n])
			if err := s.lag(lo, now[:n], mine[:n]); err != nil {
				return nil, damaged(err)
			}
			lo += n
		}
	}
	return s.behind, nil
}

// bring writes blocks, which are reserved, into the file, from where they are kept.
func (pl *place) bring(ctx context.Context, pins *blockmap.Pins, blocks []behind) error {
	for some := range slices.Chunk(blocks, roundBlks) {
		err := pl.clearWay(ctx, pins, some)
		if err == nil {
			err = pl.putBack(pins, some)
		}
		if err == nil {
			err = pl.syncFile()
		}
		if err == nil {
			err = pl.inPlace(pins, some)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clearWay sees to it that nobody wants what is in place of blocks: it is kept, and that is durable.
func (pl *place) clearWay(ctx context.Context, pins *blockmap.Pins, blocks []behind) error {
	if pl.pending.Load() {
		s := survey{place: pl, pins: pins}
		bases := pl.bases()
		for _, b := range blocks {
			if err := s.wanted(b.lba, []blockmap.Entry{b.kept}, nil, bases); err != nil {
				return damaged(err)
			}
		}
		if len(s.keeps) > 0 {
			if err := s.keep(ctx); err != nil {
				return err
			}
		}
	}
	return pl.pool.log.Flush(pl.pool.log.LastSeq())
}

// inPlace says of blocks that they are in place, once that is durable. One that is of the head's own epoch is let go of in the log: also if a
// snapshot has just come to share it, which finds it in the file then. Who else may have what is kept of another one is not asked: the head goes on with a
// version of its own.
func (pl *place) inPlace(pins *blockmap.Pins, blocks []behind) error {
	w := writes.Get().(*write)
	defer w.release()
	_, epoch, err := pl.volume.present()
	if err != nil {
		return err
	}
	var own []uint64
	var others []span
	for _, b := range blocks {
		if v, _ := version(b.head); b.head.Epoch == epoch {
			own = append(own, v)
		} else if n := len(others); n > 0 && others[n-1].hi == b.lba {
			others[n-1].hi++
		} else {
			others = append(others, span{b.lba, b.lba + 1})
		}
	}
	slices.Sort(own)
	for _, r := range spansOf(own) {
		w.changes = append(w.changes, change{volume: pl.kept, pins: pins, entry: seglog.Entry{
			Kind: seglog.KindClear, Volume: pl.kept.number, LBA: r.lo, Count: r.hi - r.lo,
		}})
	}
	for _, t := range others {
		first, err := pl.lastVersions(t.hi - t.lo)
		if err != nil {
			return err
		}
		w.changes = append(w.changes, pl.versioned(seglog.KindBack, t, first, pins))
	}
	if err := pl.pool.commitChanges(w); err != nil {
		return err
	}
	lbas := make([]uint64, len(blocks))
	for i, b := range blocks {
		lbas[i] = b.lba
	}
	pl.overlay.remove(lbas)
	return nil
}

// putBack writes blocks into the file, from where they are kept. What is kept as zeros becomes a hole.
func (pl *place) putBack(pins *blockmap.Pins, blocks []behind) error {
	file, err := pl.get()
	if err != nil {
		return err
	}
	size := pl.volume.size.Load()
	buf := make([]byte, len(blocks)*block.Size)
	if err := pl.readBehind(pins, blocks, buf); err != nil {
		return err
	}
	for i := 0; i < len(blocks); {
		n := 1
		zero := !blocks[i].kept.Mapped()
		for i+n < len(blocks) && blocks[i+n].lba == blocks[i].lba+uint64(n) && !blocks[i+n].kept.Mapped() == zero {
			n++
		}
		off := int64(blocks[i].lba) * block.Size
		end := min(off+int64(n)*block.Size, size)
		var err error
		if zero {
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

// readBehind reads what is kept of blocks.
func (pl *place) readBehind(pins *blockmap.Pins, blocks []behind, to []byte) error {
	pieces := make([]seglog.Piece, 0, len(blocks))
	for i, b := range blocks {
		if b.kept.Stored() {
			pieces = append(pieces, seglog.Piece{Addr: b.kept.Addr, To: to[i*block.Size:][:block.Size]})
		}
	}
	failed := pl.pool.log.ReadPieces(pieces, true)
	for i, b := range blocks {
		one := to[i*block.Size:][:block.Size]
		if failed == nil && b.kept.Stored() && seglog.Checksum(one) == b.kept.CRC || !b.kept.Mapped() {
			continue
		}
		// It may lie elsewhere by now.
		v, _ := version(b.head)
		there, err := pl.readKept(pins, v, one)
		if err == nil && !there {
			err = fmt.Errorf("%w: version %d is not kept any more", block.ErrDamaged, v)
		}
		if err != nil {
			return fmt.Errorf("block %d: %w", b.lba, err)
		}
	}
	return nil
}
