package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// Holder is something that keeps data from being given back.
type Holder struct {
	Name      string // VOLUME or VOLUME@SNAP; empty for a hidden state
	Exclusive int64  // what deleting it alone would free; of a volume, its present content; of a hidden state, what its descendants share
	// Total, of a volume, is what deleting it with all its snapshots would free; -1 where that is not
	// for it to say, as clones of it depend on them, or siblings of a clone.
	Total     int64
	Snapshots int
}

// Holders are all that hold data, each kind the largest first.
type Holders struct {
	Volumes, Snapshots, Hidden []Holder
}

// Holders tells what holds how much. It walks what differs between neighbours, as far
// as that has not been counted before.
func (p *Pool) Holders(ctx context.Context) (Holders, error) {
	if !p.begin() {
		return Holders{}, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	p.mu.RLock()
	view := p.cat.View()
	p.mu.RUnlock()
	volumes := map[uint64]*Holder{}
	copies := map[uint64]*catalogue.State{} // by the internal volume that has the content
	for _, v := range view.Volumes() {
		if !v.Internal() { // what an internal volume keeps, others have
			volumes[v.Number] = &Holder{Name: v.Name}
		}
	}
	for _, v := range view.Volumes() {
		if of := view.State(v.ContentOf); of != nil {
			copies[v.Number], volumes[v.Number] = of, volumes[of.Volume]
		}
	}
	var out Holders
	for _, s := range view.States() {
		if !s.Kind.HoldsData() || s.Kind != catalogue.Hidden && volumes[s.Volume] == nil {
			continue
		}
		exclusive, own, err := p.holds(ctx, s.ID)
		if errors.Is(err, ErrNotFound) {
			continue // deleted since
		} else if err != nil {
			return Holders{}, err
		}
		// Clones and siblings make a volume's total a question about others.
		up := view.DataParent(s)
		v := volumes[s.Volume]
		if up != nil && volumes[up.Volume] != v {
			if origin := volumes[up.Volume]; origin != nil {
				origin.Total = -1
			}
			if up.Kind == catalogue.Hidden && v != nil {
				v.Total = -1
			}
		}
		if v != nil && v.Total >= 0 {
			v.Total += own
		}
		switch s.Kind {
		case catalogue.Head:
			if copies[s.Volume] == nil {
				v.Exclusive = exclusive
			}
		case catalogue.Snapshot:
			if s.Pending {
				continue
			}
			name := s.Name
			if of := copies[s.Volume]; of != nil {
				name = of.Name
			}
			v.Snapshots++
			out.Snapshots = append(out.Snapshots, Holder{Name: SnapshotRef{v.Name, name}.String(), Exclusive: exclusive})
		case catalogue.Hidden:
			out.Hidden = append(out.Hidden, Holder{Exclusive: own})
		}
	}
	for _, v := range view.Volumes() {
		if !v.Incomplete && !v.Internal() {
			out.Volumes = append(out.Volumes, *volumes[v.Number])
		}
	}
	slices.SortStableFunc(out.Volumes, func(a, b Holder) int {
		return cmp.Compare(max(b.Total, b.Exclusive), max(a.Total, a.Exclusive))
	})
	for _, list := range [][]Holder{out.Snapshots, out.Hidden} {
		slices.SortStableFunc(list, func(a, b Holder) int { return cmp.Compare(b.Exclusive, a.Exclusive) })
	}
	return out, nil
}

// holds tells, in bytes, what a state alone holds, and what its parent has not: of that, a hidden state
// holds only what visible states below it have.
func (p *Pool) holds(ctx context.Context, id uint64) (exclusive, own int64, err error) {
	kind := catalogue.Head
	find := func() (*catalogue.State, error) {
		s := p.cat.State(id)
		if s == nil {
			return nil, fmt.Errorf("state %d: %w", id, ErrNotFound)
		}
		kind = s.Kind
		return s, nil
	}
	alone, _, err := p.count(ctx, find, false)
	if err != nil {
		return 0, 0, err
	}
	all, _, err := p.count(ctx, find, true)
	if err != nil {
		return 0, 0, err
	}
	if kind == catalogue.Hidden {
		all -= min(alone, all)
	}
	return int64(alone) * block.Size, int64(all) * block.Size, nil
}

// VolumeTotal is what deleting a volume with all its snapshots would free, in bytes; -1
// where that is not for it to say, as clones of it depend on them, or siblings of a clone.
func (p *Pool) VolumeTotal(ctx context.Context, name string) (int64, error) {
	if !p.begin() {
		return 0, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	p.mu.RLock()
	v, err := findVolume(p.cat, name)
	view := p.cat.View()
	p.mu.RUnlock()
	if err != nil {
		return 0, err
	}
	total := int64(0)
	mine := map[uint64]bool{v.Number: true} // it, and what has the content of its copies
	for _, k := range view.Volumes() {
		if of := view.State(k.ContentOf); of != nil && of.Volume == v.Number {
			mine[k.Number] = true
		}
	}
	for _, s := range view.States() {
		if !s.Kind.HoldsData() {
			continue
		}
		up := view.DataParent(s)
		if up != nil && up.Volume != s.Volume && (mine[up.Volume] || (mine[s.Volume] && up.Kind == catalogue.Hidden)) {
			return -1, nil
		}
		if !mine[s.Volume] {
			continue
		}
		_, own, err := p.holds(ctx, s.ID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		total += own
	}
	return total, nil
}
