package pool

import (
	"context"
	"fmt"

	"varve/internal/pool/blockmap"
)

// lostRange is a range of blocks that is lost in a state's map. What the state had of its own there nobody knows any more, and
// those who descend from it and share it must say so themselves.
type lostRange struct {
	lo, hi uint64
	own    blockmap.Own
}

// add adds a range that was found, as part of the one before it if they are adjacent.
func add(to []lostRange, lo, hi uint64, own blockmap.Own) []lostRange {
	if n := len(to); n > 0 && to[n-1].hi == lo && to[n-1].own == own {
		to[n-1].hi = hi
		return to
	}
	return append(to, lostRange{lo, hi, own})
}

// markStates visits what the states of the basis refer to: for each, what its parent does not.
func (p *Pool) markStates(ctx context.Context, basis *frozenState, node func(blockmap.Ptr), entries func([]blockmap.Entry)) error {
	lost := map[uint64][]lostRange{}
	for _, r := range basis.roots {
		err := p.markState(ctx, r, node, entries, func(lo, hi uint64) { lost[r.state] = add(lost[r.state], lo, hi, r.own) })
		if err != nil {
			return fmt.Errorf("mark: %w", err)
		}
	}
	if basis.lost = len(lost) > 0; !basis.lost {
		return nil
	}
	children := map[uint64][]ownedRoot{}
	for _, r := range basis.roots {
		children[r.parent] = append(children[r.parent], r)
	}
	for len(lost) > 0 {
		below := map[uint64][]lostRange{}
		for state, ranges := range lost {
			for _, k := range children[state] {
				for _, l := range ranges {
					own := l.own
					if k.own.Data == blockmap.NoData { // it keeps no blocks, and what descends from it may have them
						own.Data = blockmap.NoData
						below[k.state] = append(below[k.state], l)
					}
					err := p.store.MarkRange(ctx, k.root, own, l.lo, l.hi, node, k.shared(entries), func(lo, hi uint64) {
						below[k.state] = add(below[k.state], lo, hi, l.own)
					})
					if err != nil {
						return fmt.Errorf("mark: %w", err)
					}
				}
			}
		}
		lost = below
	}
	return nil
}

// shared gives those entries on that the state does not own.
func (r *ownedRoot) shared(entries func([]blockmap.Entry)) func([]blockmap.Entry) {
	return func(all []blockmap.Entry) {
		for i := range all {
			if all[i].Epoch <= r.own.Data {
				entries(all[i : i+1])
			}
		}
	}
}

// markState visits what a state of the basis refers to and its parent does not.
func (p *Pool) markState(ctx context.Context, r ownedRoot, node func(blockmap.Ptr), entries func([]blockmap.Entry), lost func(lo, hi uint64)) error {
	if r.hidden {
		return p.store.MarkHeld(ctx, r.root, r.own, r.heirs, node, entries, lost)
	}
	return p.store.Mark(ctx, r.root, r.own, node, entries, lost)
}

// ownOf is what a pinned state has to keep by itself: where anything is lost it may have what its parent lost since.
func (f *frozenState) ownOf(r ownedRoot) blockmap.Own {
	switch {
	case !f.lost:
		return r.own
	case r.own.Data == blockmap.NoData:
		return blockmap.Own{Data: blockmap.NoData}
	}
	return blockmap.Own{}
}
