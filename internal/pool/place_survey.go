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
}

type keptVersion struct{ version, lba uint64 }

func (s *survey) look(spans []span) error {
	pl := s.place
	var err error
	if _, s.epoch, err = pl.volume.present(); err != nil {
		return err
	}
	touches, parent := pl.watched()
	pending := pl.pending.Load()
	if !touches && !pending {
		return nil
	}
	var bases []blockmap.Root
	if pending {
		bases = pl.bases()
	}
	var now [blockmap.LeafBlocks]blockmap.Entry
	for _, sp := range spans {
		for lo := sp.lo; lo < sp.hi; {
			n := min(sp.hi-lo, blockmap.LeafBlocks-lo%blockmap.LeafBlocks)
			if err := pl.volume.lookup(s.pins, lo, now[:n]); err != nil {
				return err
			}
			for i := uint64(0); i < n; {
				own := now[i].Epoch == s.epoch
				k := i + 1
				for k < n && (now[k].Epoch == s.epoch) == own {
					k++
				}
				if !own {
					s.touched = append(s.touched, span{lo + i, lo + k})
					if err := s.wanted(lo+i, now[i:k], parent, bases); err != nil {
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

// wanted finds which of the blocks from lba on, which are not the head's own, somebody has in the version that is in place: the
// parent, where that is the head's version; or a base, where the head's is kept.
func (s *survey) wanted(lba uint64, now []blockmap.Entry, parent *catalogue.State, bases []blockmap.Root) error {
	mine, err := s.resolved(func(out []blockmap.Entry) error { copy(out, now); return nil }, len(now))
	if err != nil {
		return err
	}
	var its []blockmap.Entry
	if parent != nil {
		if its, err = s.entries(parent.Root, lba, len(now)); err != nil {
			return err
		}
	}
	pending := 0
	found := make([]bool, len(now))
	for i := range now {
		v, inPlace := version(mine[i])
		if found[i] = inPlace; !inPlace {
			pending++
		} else if parent != nil {
			if w, there := version(its[i]); there && w == v {
				s.keeps = append(s.keeps, keptVersion{v, lba + uint64(i)})
			}
		}
	}
	for _, root := range slices.Backward(bases) { // the newest whose version is not kept is the one that is in place
		if pending == 0 {
			break
		}
		has, err := s.entries(root, lba, len(now))
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
	return s.resolved(func(out []blockmap.Entry) error { return root.Lookup(s.pins, lba, out) }, n)
}

func (s *survey) resolved(look func([]blockmap.Entry) error, n int) ([]blockmap.Entry, error) {
	out := make([]blockmap.Entry, n)
	err := waitFor(s.pins, func() error {
		if err := look(out); err != nil {
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
		if (st.Kind == catalogue.Snapshot || st.Kind == catalogue.Head && st.Volume != pl.volume.number) && p.basedOn(p.cat, st) == pl {
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
		w.changes = append(w.changes, change{volume: pl.volume, pins: s.pins, epoch: s.epoch, entry: seglog.Entry{
			Kind: seglog.KindTouch, Volume: pl.volume.number, LBA: t.lo, Count: t.hi - t.lo,
		}})
	}
	if err := p.commitChanges(w); err != nil {
		return err
	}
	return p.log.Flush(p.log.LastSeq())
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
	buf := make([]byte, len(s.keeps)*block.Size)
	for i := 0; i < len(s.keeps); { // what lies together is read together
		n := 1
		for i+n < len(s.keeps) && s.keeps[i+n].lba == s.keeps[i].lba+uint64(n) {
			n++
		}
		if err := pl.read(buf[i*block.Size:(i+n)*block.Size], int64(s.keeps[i].lba)*block.Size, true); err != nil {
			return err
		}
		i += n
	}
	w.crcs = slices.Grow(w.crcs[:0], len(s.keeps))
	var e [1]blockmap.Entry
	for i := 0; i < len(s.keeps); {
		first := s.keeps[i]
		zero := bytes.Equal(buf[i*block.Size:(i+1)*block.Size], zeroBlock)
		n := 1
		for i+n < len(s.keeps) && n < seglog.MaxPayloadBlocks && s.keeps[i+n].version == first.version+uint64(n) &&
			bytes.Equal(buf[(i+n)*block.Size:(i+n+1)*block.Size], zeroBlock) == zero {
			n++
		}
		entry := seglog.Entry{Kind: seglog.KindZero, Volume: pl.kept.number, LBA: first.version, Count: uint64(n)}
		if !zero {
			entry.Kind = seglog.KindData
			entry.Payload = [][]byte{buf[i*block.Size : (i+n)*block.Size]}
			from := len(w.crcs)
			for k := range n {
				w.crcs = append(w.crcs, seglog.Checksum(buf[(i+k)*block.Size:(i+k+1)*block.Size]))
			}
			entry.CRCs = w.crcs[from:len(w.crcs):len(w.crcs)]
		}
		for at := first.version; at < first.version+uint64(n); at = blockmap.LeafOf(at) + blockmap.LeafBlocks { // applying it must read nothing
			if err := pl.kept.lookup(s.pins, at, e[:]); err != nil {
				return damaged(err)
			}
		}
		w.changes = append(w.changes, change{volume: pl.kept, pins: s.pins, entry: entry})
		i += n
	}
	return nil
}
