package pool

import (
	"context"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// collect gives back kept versions that no state has any more.
func (p *Pool) collect(ctx context.Context) error {
	p.mu.RLock()
	var origins []*origin
	for _, v := range p.volumes {
		if o := v.provides(); o != nil {
			origins = append(origins, o)
		}
	}
	p.mu.RUnlock()
	for _, o := range origins {
		if err := o.collect(ctx); err != nil {
			return fmt.Errorf("volume %q: %w", o.kept.name(), err)
		}
	}
	return nil
}

// windowVersions is how many versions are collected at a time: 2 MiB of bits.
const windowVersions = 1 << 24

// versionSet is a set of versions of a window.
type versionSet struct {
	lo    uint64
	words []uint64
	count int
}

// within is the part of [lo, hi) that lies in the window, by bits.
func (s *versionSet) within(lo, hi uint64) (from, to uint64) {
	lo, hi = max(lo, s.lo), min(hi, s.lo+windowVersions)
	if lo >= hi {
		return 0, 0
	}
	return lo - s.lo, hi - s.lo
}

func (s *versionSet) add(lo, hi uint64) {
	for i, to := s.within(lo, hi); i < to; i++ {
		s.words[i/64] |= 1 << (i % 64)
		s.count++
	}
}

// each calls f for the members of [lo, hi).
func (s *versionSet) each(lo, hi uint64, f func(v uint64) error) error {
	for i, to := s.within(lo, hi); i < to; i++ {
		if s.words[i/64] == 0 {
			i |= 63
			continue
		}
		if s.words[i/64]>>(i%64)&1 != 0 {
			if err := f(s.lo + i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *versionSet) remove(v uint64) {
	i := v - s.lo
	s.words[i/64] &^= 1 << (i % 64)
	s.count--
}

// collected is a state whose versions are alive; of a hidden one, those that a visible one or a base has.
type collected struct {
	root    blockmap.Root
	since   uint64
	hidden  bool
	visible []blockmap.Root
}

// collect clears kept versions that nobody has. A version that nobody has at one instant nobody will have later.
func (o *origin) collect(ctx context.Context) error {
	var states []collected
	var kept blockmap.Root
	release, err := o.pool.pin(func() (walked []ownedRoot, err error) {
		states, kept, walked = o.lineage()
		return walked, nil
	})
	if err != nil {
		return err
	}
	defer release()
	_, byLBA := o.rest.(*base)
	for at := uint64(0); at < catalogue.KeptBlocks; {
		next, err := o.pool.nextKept(kept, at)
		if err != nil || next >= catalogue.KeptBlocks {
			return err
		}
		w := versionSet{lo: next &^ (windowVersions - 1), words: make([]uint64, windowVersions/64)}
		if err := o.pool.keptWithin(ctx, kept, w.lo, w.lo+windowVersions, w.add); err != nil {
			return err
		}
		for i := range states {
			if err := o.pool.forget(ctx, &w, &states[i], byLBA); err != nil {
				return err
			}
		}
		if w.count > 0 {
			if err := o.kept.clearVersions(ctx, &w); err != nil {
				return err
			}
		}
		at = w.lo + windowVersions
	}
	return nil
}

// lineage freezes the maps of all states that have versions, and of what is kept; mu is held.
func (o *origin) lineage() (states []collected, kept blockmap.Root, walked []ownedRoot) {
	p, cat := o.pool, o.pool.cat
	if cat.Volume(o.number) == nil { // it was deleted, and all with it
		return nil, blockmap.Root{}, nil
	}
	pin := func(s *catalogue.State) blockmap.Root {
		r := p.frozenRoot(s)
		walked = append(walked, ownedRoot{state: s.ID, root: r, own: blockmap.Own{Data: blockmap.NoData}})
		return r
	}
	kept = pin(cat.Head(cat.Volume(o.kept.number))) // first: a new version is named before it is kept
	roots := map[uint64]blockmap.Root{}
	for _, s := range cat.States() {
		if s.Kind.HoldsData() && p.basedOn(cat, s) == o {
			roots[s.ID] = pin(s)
		}
	}
	var bases []uint64
	if pl := cat.Volume(o.number).Place; pl != nil {
		bases = pl.Bases
	}
	for _, s := range cat.States() {
		r, ok := roots[s.ID]
		if !ok {
			continue
		}
		c := collected{root: r, since: cat.DataSince(s)}
		if s.Kind == catalogue.Hidden && !slices.Contains(bases, s.ID) {
			c.hidden = true
			for _, k := range cat.VisibleBelow(s.ID) {
				c.visible = append(c.visible, roots[k.ID])
			}
			for _, id := range bases { // which say what is in place by what is kept
				c.visible = append(c.visible, roots[id])
			}
		}
		states = append(states, c)
	}
	return states, kept, walked
}

// forget takes out of a set what a state has. byLBA tells that each version has the number of the one block that may have it.
func (p *Pool) forget(ctx context.Context, dead *versionSet, s *collected, byLBA bool) error {
	pins := p.store.NewPins()
	lo, hi := uint64(0), uint64(blockmap.MaxBlocks)
	if byLBA {
		lo, hi = dead.lo, dead.lo+windowVersions
	}
	return p.store.EachVersionOf(ctx, s.root, s.since, lo, hi, func(lba uint64, from blockmap.Version, blocks uint64) error {
		return dead.each(uint64(from), uint64(from)+blocks, func(v uint64) error {
			alive := !s.hidden
			for i := 0; i < len(s.visible) && !alive; i++ {
				var err error
				if alive, err = p.hasVersion(pins, s.visible[i], lba+v-uint64(from), v); err != nil {
					return err
				}
			}
			if alive {
				dead.remove(v)
			}
			pins.ForgetBeyond(pinnedNodes)
			return nil
		})
	})
}

// hasVersion tells whether a state has a version of a block, or may have, because its map was lost there.
func (p *Pool) hasVersion(pins *blockmap.Pins, r blockmap.Root, lba, v uint64) (bool, error) {
	var e [1]blockmap.Entry
	if err := waitFor(pins, func() error { return r.Lookup(pins, lba, e[:]) }); err != nil {
		return false, err
	}
	now, ok := version(e[0])
	return ok && now == v || e[0].Lost(), nil
}

// nextKept finds the first version at or behind at that is kept.
func (p *Pool) nextKept(kept blockmap.Root, at uint64) (uint64, error) {
	pins := p.store.NewPins()
	for at < catalogue.KeptBlocks {
		var n uint64
		var known bool
		if err := waitFor(pins, func() (err error) {
			n, known, err = kept.RunKnown(pins, at, catalogue.KeptBlocks-at)
			return err
		}); err != nil || known {
			return at, err
		}
		at += n
		pins.ForgetBeyond(pinnedNodes)
	}
	return at, nil
}

// keptWithin visits the runs of [lo, hi) that are kept.
func (p *Pool) keptWithin(ctx context.Context, kept blockmap.Root, lo, hi uint64, visit func(lo, hi uint64)) error {
	pins := p.store.NewPins()
	for at := lo; at < hi; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var n uint64
		var known bool
		if err := waitFor(pins, func() (err error) {
			n, known, err = kept.RunKnown(pins, at, hi-at)
			return err
		}); err != nil {
			return err
		}
		if known {
			visit(at, at+n)
		}
		at += n
		pins.ForgetBeyond(pinnedNodes)
	}
	return nil
}

// exclusiveKept counts the kept versions that a state has, in nodes newer than epoch since, and none of others has.
func (p *Pool) exclusiveKept(ctx context.Context, r blockmap.Root, since uint64, others []blockmap.Root, kept blockmap.Root) (uint64, error) {
	var count uint64
	pins := p.store.NewPins()
	err := p.store.EachVersion(ctx, r, since, func(lba uint64, from blockmap.Version, blocks uint64) error {
		var failed error
		err := p.keptWithin(ctx, kept, uint64(from), uint64(from)+blocks, func(lo, hi uint64) {
			for v := lo; v < hi && failed == nil; v++ {
				alone := true
				for i := 0; i < len(others) && alone && failed == nil; i++ {
					var has bool
					has, failed = p.hasVersion(pins, others[i], lba+v-uint64(from), v)
					alone = !has
				}
				if alone {
					count++
				}
				pins.ForgetBeyond(pinnedNodes)
			}
		})
		if err == nil {
			err = failed
		}
		return err
	})
	return count, err
}

// clearVersions gives back kept versions.
func (v *volume) clearVersions(ctx context.Context, dead *versionSet) error {
	b := builder{volume: v}
	b.begin()
	defer func() { b.write.release() }()
	var run span
	var op block.Op
	emit := func() {
		if run.lo < run.hi {
			p := piece{lo: int64(run.lo) * block.Size, hi: int64(run.hi) * block.Size}
			for p.blocks() > 0 && op.Err == nil {
				b.add(&op, &p)
			}
		}
	}
	err := dead.each(dead.lo, dead.lo+windowVersions, func(at uint64) error {
		if at == run.hi && run.lo < run.hi {
			run.hi++
			return nil
		}
		emit()
		run = span{at, at + 1}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	emit()
	b.flush()
	return op.Err
}
