package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

const (
	// destageAfter is how long blocks lie in the log alone before they are brought into the file, where too few come for more to be worth it.
	destageAfter = time.Second
	// destageAgain is how long nothing is tried after something went wrong.
	destageAgain = 2 * time.Second
	// destageBlocks is how many blocks are kept from writers at once, while they are written into the page cache.
	destageBlocks = 512
)

// startDestaging has blocks that lie in the log alone brought into the file in the background, until the place is closed.
func (pl *place) startDestaging() {
	if pl.pool.opts.Manual || pl.readOnly {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	pl.stop = cancel
	pl.pool.destaging.Go(func() { pl.destages(ctx) })
}

// startDestaging is that of all places whose files are open.
func (p *Pool) startDestaging() {
	for _, v := range p.volumes {
		if v.place != nil {
			if _, err := v.place.get(); err == nil {
				v.place.startDestaging()
			}
		}
	}
}

// stopDestaging ends what destages all places, and waits for it.
func (p *Pool) stopDestaging() {
	for _, v := range p.volumes {
		if v.place != nil && v.place.stop != nil {
			v.place.stop()
		}
	}
	p.destaging.Wait()
}

func (pl *place) destages(ctx context.Context) {
	o := pl.overlay
	for known := o.known(); ; known = true {
		if known {
			select {
			case <-o.kick:
			case <-ctx.Done():
				return
			}
			pause(ctx, o.much, destageAfter)
		}
		if err := pl.destage(ctx); err != nil && ctx.Err() == nil {
			if first, _ := pl.pool.told.first("destage " + pl.path); first {
				pl.pool.event(EventPlaceLost, pl.volume.name(), fmt.Sprintf("what lies in the log cannot be brought into its file: %v", err))
			}
			pause(ctx, nil, destageAgain)
			signal(o.kick)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// pause waits for a while, unless something comes earlier.
func pause(ctx context.Context, early <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-early:
	case <-t.C:
	case <-ctx.Done():
	}
}

// destage brings what lies in the log alone when it begins into the file. No writer is kept from a block while anything is synced; what was logged
// again meanwhile stays for the next time.
func (pl *place) destage(ctx context.Context) error {
	if pl.overlay.empty.Load() || pl.readOnly {
		return nil
	}
	if err := pl.pool.log.Failure(); err != nil { // it could never be said that they are in place
		return err
	}
	turn := pl.turn.Load()
	written, failed := pl.writeLogged(ctx)
	if failed != nil && !errors.Is(failed, block.ErrDamaged) {
		return failed
	}
	err := pl.settleWritten(written, turn)
	if err == nil {
		err = pl.noteWhole()
	}
	return errors.Join(failed, err)
}

// writeLogged writes what lies in the log alone into the file, once what was in place of it is kept durably. Of blocks that cannot be read it
// returns an error, and the others.
func (pl *place) writeLogged(ctx context.Context) (written []behind, err error) {
	if !pl.overlay.known() && !pl.pending.Load() { // what a rollback has left may be much, and is for who copies it back; and this is for afterwards
		if err := pl.findLogged(ctx); err != nil {
			return nil, err
		}
	}
	log := pl.pool.log
	if err := log.Flush(log.LastSeq()); err != nil {
		return nil, err
	}
	durable := log.DurableSeq()
	var failed error
	for lbas := range slices.Chunk(pl.overlay.upTo(durable), destageBlocks) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		some, err := pl.writeSome(ctx, lbas, durable)
		if written = append(written, some...); err != nil && !errors.Is(err, block.ErrDamaged) {
			return nil, err
		}
		failed = errors.Join(failed, err)
	}
	return written, failed
}

// settleWritten syncs the file, once for all blocks that were written, and then says that they are in place, as far as they are still what was
// written, and the volume was not rolled back since the turn in which that was.
func (pl *place) settleWritten(written []behind, turn uint64) error {
	if len(written) == 0 {
		return nil
	}
	if err := pl.syncFile(); err != nil {
		return err
	}
	for some := range slices.Chunk(written, destageBlocks) {
		if err := pl.unchanged(some, turn); err != nil {
			return err
		}
	}
	return nil
}

// writeSome writes blocks into the file, and returns which; of those that cannot be read it returns an error.
func (pl *place) writeSome(ctx context.Context, lbas []uint64, durable uint64) ([]behind, error) {
	release := pl.ranges.reserve(spansOf(lbas))
	defer release()
	lbas = slices.DeleteFunc(slices.Clone(lbas), func(lba uint64) bool { return !pl.overlay.durable(lba, durable) })
	pins := pl.pool.store.NewPins()
	some, err := pl.behind(pins, spansOf(lbas))
	if err != nil {
		return nil, err
	}
	pl.overlay.remove(except(lbas, some))
	if pl.pending.Load() {
		if err := pl.clearWay(ctx, pins, some); err != nil {
			return nil, err
		}
	}
	if err = pl.putBack(pins, some); !errors.Is(err, block.ErrDamaged) {
		return some, err
	}
	var good []behind
	for i := range some {
		if e := pl.putBack(pins, some[i:i+1]); e == nil {
			good = append(good, some[i])
		} else if !errors.Is(e, block.ErrDamaged) {
			return good, e
		}
	}
	return good, err
}

// except returns those of some LBAs, in order, that are not of blocks.
func except(lbas []uint64, blocks []behind) []uint64 {
	var out []uint64
	for _, lba := range lbas {
		if len(blocks) > 0 && blocks[0].lba == lba {
			blocks = blocks[1:]
		} else {
			out = append(out, lba)
		}
	}
	return out
}

// unchanged says of blocks that they are in place, as far as they are still what was written. After a rollback a block may be behind as it was
// then, and somebody have come to want what is in place meanwhile.
func (pl *place) unchanged(blocks []behind, turn uint64) error {
	lbas := make([]uint64, len(blocks))
	for i, b := range blocks {
		lbas[i] = b.lba
	}
	release := pl.ranges.reserve(spansOf(lbas))
	defer release()
	if pl.turn.Load() != turn {
		return nil
	}
	pins := pl.pool.store.NewPins()
	now, err := pl.behind(pins, spansOf(lbas))
	if err != nil {
		return err
	}
	same := now[:0]
	for _, b := range now {
		for blocks[0].lba < b.lba {
			blocks = blocks[1:]
		}
		if b == blocks[0] {
			same = append(same, b)
		}
	}
	if len(same) == 0 {
		return nil
	}
	return pl.inPlace(pins, same)
}

// findLogged finds which blocks lie in the log alone after a crash. Readers look at the maps meanwhile.
func (pl *place) findLogged(ctx context.Context) error {
	p := pl.pool
	var head, kept blockmap.Root
	var since uint64
	release, err := p.pin(func() (walked []ownedRoot, err error) {
		v := p.cat.Volume(pl.volume.number)
		if v == nil {
			return nil, ErrNotFound
		}
		own := blockmap.Own{Data: blockmap.NoData}
		headState, keptState := p.cat.Head(v), p.cat.Head(p.cat.Volume(v.Place.Kept))
		head, kept = p.frozenRoot(headState), p.frozenRoot(keptState)
		if v.Place.Whole > 0 {
			since = v.Place.Whole - 1
		}
		return []ownedRoot{{state: headState.ID, root: head, own: own}, {state: keptState.ID, root: kept, own: own}}, nil
	})
	if err != nil {
		return err
	}
	defer release()
	as := logged{since + 1, p.log.LastSeq()}
	pins := p.store.NewPins()
	var e [1]blockmap.Entry
	err = p.store.EachVersion(ctx, head, since, func(lba uint64, from blockmap.Version, blocks uint64) error {
		var failed error
		err := p.keptWithin(ctx, kept, uint64(from), uint64(from)+blocks, func(lo, hi uint64) {
			for at := lba + lo - uint64(from); lo < hi && failed == nil; lo, at = lo+1, at+1 {
				failed = waitFor(pins, func() error { return head.Lookup(pins, at, e[:]) })
				if failed == nil && e[0].Epoch > since { // an older one is for who copies a rollback back
					pl.overlay.add(at, as)
				}
			}
			pins.ForgetBeyond(pinnedNodes)
		})
		return errors.Join(failed, err)
	})
	if err == nil {
		pl.overlay.all()
	}
	return damaged(err)
}

// noteWhole has the pool know from which epoch on blocks may lie in the log alone, so that after a crash it looks at no others.
func (pl *place) noteWhole() error {
	p := pl.pool
	p.mu.RLock()
	v := p.cat.Volume(pl.volume.number)
	var epoch, known uint64
	if v != nil {
		epoch, known = p.cat.Head(v).Epoch, v.Place.Whole
	}
	p.mu.RUnlock()
	since := pl.overlay.since(epoch)
	if v == nil || since <= known {
		return nil
	}
	_, err := p.changeNow(func(c *catalogue.Catalogue) (proposal, error) {
		now := c.Volume(pl.volume.number)
		if now == nil || now.Place.Whole >= since {
			return proposal{}, nil
		}
		return proposal{op: &catalogue.Op{SetPlace: &catalogue.SetPlace{Number: now.Number, Whole: since}}, urgent: true}, nil
	})
	return err
}
