package pool

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// survey finds what has to be done before blocks can be overwritten.
type survey struct {
	place   *place
	pins    *blockmap.Pins
	epoch   uint64
	touched []span        // blocks that get new versions
	keeps   []keptVersion // what is in place and somebody else has
	behind  []behind      // blocks that are not in place, though the head has them
	old     []byte        // content of keeps

	now, mine, its [blockmap.LeafBlocks]blockmap.Entry // scratch
}

type keptVersion struct{ version, lba uint64 }

// behind is a block whose place in the file has not what the head has: that is kept.
type behind struct {
	lba        uint64
	head, kept blockmap.Entry // in the head's map, and where the content lies
}

func (s *survey) look(spans []span) error {
	pl := s.place
	var err error
	if _, s.epoch, err = pl.volume.present(); err != nil {
		return err
	}
	touches, parent := pl.watched()
	whole := pl.whole()
	if !touches && whole {
		return pl.pool.goneDurably() // what they had is overwritten at once
	}
	var bases []blockmap.Root
	if pl.pending.Load() {
		bases = pl.bases()
	}
	now, mine := &s.now, &s.mine
	for _, sp := range spans {
		for lo := sp.lo; lo < sp.hi; {
			n := min(sp.hi-lo, blockmap.LeafBlocks-lo%blockmap.LeafBlocks)
			if err := pl.volume.lookup(s.pins, lo, now[:n]); err != nil {
				return err
			}
			copy(mine[:n], now[:n])
			if !whole {
				if err := s.lag(lo, now[:n], mine[:n]); err != nil {
					return err
				}
			}
			for i := uint64(0); i < n; {
				own := now[i].Epoch == s.epoch
				k := i + 1
				for k < n && (now[k].Epoch == s.epoch) == own {
					k++
				}
				if !own {
					s.touched = append(s.touched, span{lo + i, lo + k})
					if err := s.wanted(lo+i, mine[i:k], parent, bases); err != nil {
						return err
					}
				}
				i = k
			}
			lo += n
		}
	}
	return nil
}

// lag finds which of the blocks from lba on are not in place, and replaces them in mine by where they are kept.
func (s *survey) lag(lba uint64, now, mine []blockmap.Entry) error {
	pl := s.place
	all := pl.pending.Load()
	for i := 0; i < len(now); {
		n := 1
		if !all && !pl.overlay.may(lba+uint64(i)) {
			i++
			continue
		}
		for i+n < len(now) && (all || pl.overlay.may(lba+uint64(i+n))) {
			n++
		}
		if err := waitFor(s.pins, func() error { return pl.resolve(s.pins, mine[i:i+n]) }); err != nil {
			return err
		}
		for k := i; k < i+n; k++ {
			if inFile(now[k]) && !inFile(mine[k]) {
				s.behind = append(s.behind, behind{lba + uint64(k), now[k], mine[k]})
			}
		}
		i += n
	}
	return nil
}

// wanted finds which of the blocks from lba on, which are not the head's own, somebody has in the version that is in place: the
// parent, where that is the head's version; or a base, where the head's is kept. mine are the head's, resolved.
func (s *survey) wanted(lba uint64, mine []blockmap.Entry, parent *catalogue.State, bases []blockmap.Root) error {
	if parent != nil {
		its := s.its[:len(mine)]
		if err := waitFor(s.pins, func() error { return parent.Root.Lookup(s.pins, lba, its) }); err != nil {
			return err
		}
		for i := range its {
			v, there := version(mine[i])
			if w, ok := version(its[i]); ok && there && w == v {
				s.keeps = append(s.keeps, keptVersion{v, lba + uint64(i)})
			}
		}
	}
	if len(bases) == 0 {
		return nil
	}
	pending := 0
	found := make([]bool, len(mine))
	for i := range mine {
		if found[i] = inFile(mine[i]); !found[i] {
			pending++
		}
	}
	for _, root := range slices.Backward(bases) { // the newest whose version is not kept is the one that is in place
		if pending == 0 {
			break
		}
		has, err := s.entries(root, lba, len(mine))
		if err != nil {
			return err
		}
		for i := range has {
			if v, there := version(has[i]); there && !found[i] {
				found[i] = true
				pending--
				s.keeps = append(s.keeps, keptVersion{v, lba + uint64(i)})
			}
		}
	}
	return nil
}

// entries looks blocks of a map up, and what is kept of them.
func (s *survey) entries(root blockmap.Root, lba uint64, n int) ([]blockmap.Entry, error) {
	out := make([]blockmap.Entry, n)
	err := waitFor(s.pins, func() error {
		if err := root.Lookup(s.pins, lba, out); err != nil {
			return err
		}
		return s.place.resolve(s.pins, out)
	})
	return out, err
}

// forgo leaves out what nobody can read any more, where there is no room to keep it: a deleted snapshot stays as a base
// until a rollback has been copied back. False if that is nothing.
func (s *survey) forgo() (bool, error) {
	p, pl := s.place.pool, s.place
	p.mu.RLock()
	var visible []blockmap.Root
	for _, st := range p.cat.States() {
		if (st.Kind == catalogue.Snapshot || st.Kind == catalogue.Head && st.Volume != pl.volume.number) && p.basedOn(p.cat, st) == &pl.origin {
			root := st.Root
			if st.Kind == catalogue.Head {
				v := p.volumes[st.Volume]
				v.mu.Lock()
				root = v.tree.Freeze(v.tree.Epoch(), p.nextGen())
				v.mu.Unlock()
			}
			visible = append(visible, root)
		}
	}
	p.mu.RUnlock()
	kept := s.keeps[:0:0]
	for _, k := range s.keeps {
		wanted := false
		for i := 0; i < len(visible) && !wanted; i++ {
			var err error
			if wanted, err = p.hasVersion(s.pins, visible[i], k.lba, k.version); err != nil {
				return false, err
			}
		}
		if wanted {
			kept = append(kept, k)
		}
	}
	less := len(kept) < len(s.keeps)
	s.keeps = kept
	return less, nil
}

// keep logs what is in place and wanted, and that the blocks change, and returns when that is durable. errEpochPassed if a snapshot
// was made since it was looked at, which may want what nobody wanted then: in its epoch the blocks must not count as changed already.
func (s *survey) keep(ctx context.Context) error {
	err := s.keepAll(ctx)
	if errors.Is(err, block.ErrNoSpace) {
		if less, e := s.forgo(); e != nil || !less {
			return errors.Join(err, e)
		}
		err = s.keepAll(ctx)
	}
	return err
}

func (s *survey) keepAll(ctx context.Context) error {
	pl := s.place
	p := pl.pool
	granted := int64(len(s.keeps)) * block.Size
	if err := p.reclaimer.throttle(ctx, p, granted); err != nil {
		return err
	}
	defer p.reclaimer.written(granted)
	if len(s.keeps) > 0 { // touches alone are small, and may use the reserve
		n := int64(len(s.keeps)+2) * block.Size
		if err := p.space.admitBytes(ctx, p, n); err != nil {
			return err
		}
		defer p.space.release(n)
	}
	w := writes.Get().(*write)
	defer w.release()
	if err := s.keepOld(w); err != nil {
		return err
	}
	for _, t := range s.touched {
		first, err := pl.versions(t.hi - t.lo)
		if err != nil {
			return err
		}
		w.changes = append(w.changes, s.touch(t, first))
	}
	if err := p.commitChanges(w); err != nil {
		return err
	}
	return p.log.Flush(p.log.LastSeq())
}

// touch is a change that gives blocks new versions, unless a snapshot was made since the survey looked.
func (s *survey) touch(of span, first uint64) change {
	ch := s.place.versioned(seglog.KindTouch, of, first, s.pins)
	ch.epoch = s.epoch
	return ch
}

// commitChanges puts a request's changes into the log and the maps.
func (p *Pool) commitChanges(w *write) error {
	p.committer.do(&w.request)
	err := w.err
	for i := range w.changes {
		err = errors.Join(err, w.changes[i].err)
	}
	p.checkpointer.noticed(p)
	p.reclaimer.noticed(p)
	p.space.noticed(p)
	return err
}

// keepOld reads what is in place and wanted, and adds it to w.
func (s *survey) keepOld(w *write) error {
	pl := s.place
	slices.SortFunc(s.keeps, func(a, b keptVersion) int {
		return int(int64(a.lba) - int64(b.lba))
	})
	n := len(s.keeps) * block.Size
	s.old = slices.Grow(s.old[:0], n)[:n]
	for i := 0; i < len(s.keeps); { // what lies together is read together
		n := 1
		for i+n < len(s.keeps) && s.keeps[i+n].lba == s.keeps[i].lba+uint64(n) {
			n++
		}
		if err := pl.read(s.old[i*block.Size:(i+n)*block.Size], int64(s.keeps[i].lba)*block.Size, true); err != nil {
			return err
		}
		i += n
	}
	return pl.addKept(w, s.pins, len(s.keeps), func(i int) (uint64, []byte) {
		b := s.old[i*block.Size : (i+1)*block.Size]
		if bytes.Equal(b, zeroBlock) {
			b = nil
		}
		return s.keeps[i].version, b
	})
}
