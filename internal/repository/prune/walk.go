package prune

import (
	"context"
	"fmt"

	"varve/internal/repository/envelope"
	"varve/internal/repository/maptree"
	"varve/internal/repository/mapwalk"
)

// readers is how many packs are read at once.
const readers = 8

// walked is what became of a walk through maps.
type walked struct {
	s     *survey
	roots []root
	lost  map[uint32]bool // roots of which a node is lost
	why   error           // the first
}

// walk finds out all that the roots need.
func (s *survey) walk(ctx context.Context, roots []root) error {
	w := &walked{s: s, roots: roots, lost: map[uint32]bool{}}
	repo := s.p.repo
	walk := mapwalk.Walk{
		Packs: repo.Packs(), Geometry: repo.Geometry(), Space: s.p.space,
		Read:   func(ctx context.Context, n mapwalk.Node) ([]byte, error) { return repo.ReadNode(ctx, n.ID, n.Place) },
		Needed: func(_ int, n mapwalk.Node) error { return s.need(envelope.Nodes, n.Set, n.ID, n.Place) },
		Found: func(_ int, n mapwalk.Node, decoded maptree.Node) error {
			for _, r := range decoded.Regions {
				for _, c := range r.Region.Chunks {
					if err := s.need(envelope.Pack, n.Set, c.ID, c.Place); err != nil {
						return err
					}
				}
			}
			return nil
		},
		Lost: func(_ int, n mapwalk.Node, err error) error {
			w.lost[n.Root] = true
			if roots[n.Root].required && w.why == nil {
				w.why = err
			}
			return nil
		},
	}
	maps := make([]mapwalk.Root, 0, len(roots))
	for _, r := range roots {
		maps = append(maps, mapwalk.Root{Root: r.Root, Set: s.inv.table.set(r.Set)})
	}
	if err := walk.Down(ctx, maps); err != nil {
		return err
	}
	return w.verdict(ctx)
}

// verdict is an error if the map of a backup is lost in part; not if the backup has been deleted since the walk began, and others
// have pruned it.
func (w *walked) verdict(ctx context.Context) error {
	if len(w.lost) == 0 {
		return nil
	}
	visible := map[string]bool{}
	all, _, err := w.s.p.repo.Backups(ctx)
	if err != nil {
		return err
	}
	for _, b := range all {
		visible[b.ID] = true
	}
	for i, r := range w.roots {
		if w.lost[uint32(i)] {
			w.s.mapsLost++
			if r.required && visible[r.ID] {
				w.s.lostMaps = append(w.s.lostMaps, r.ID)
			}
		}
	}
	if len(w.s.lostMaps) == 0 || w.s.p.o.IgnoreLost {
		return nil
	}
	return fmt.Errorf("%w: what backup %s needs cannot be told (repair or delete it): %w", ErrMapLost, w.s.lostMaps[0], w.why)
}
