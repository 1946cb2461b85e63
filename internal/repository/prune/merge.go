package prune

import (
	"context"
	"slices"

	"varve/internal/repository/chunk"
	"varve/internal/repository/index"
)

const (
	// smallEntries is what a run has at most that is merged with others, where there are manyRuns of them.
	smallEntries = 128_000
	manyRuns     = 8
)

// mergeIndex makes few runs of many small ones and of those that mostly speak of packs that are gone, and writes a run for
// packs that no run names, or not wholly. It makes the index faster, and changes nothing that it knows.
func (p *pruner) mergeIndex(ctx context.Context, inv *inventory, s *survey) error {
	if p.o.DryRun {
		return nil
	}
	if err := p.indexUnindexed(ctx, s); err != nil {
		return err
	}
	for set := range uint32(len(inv.table.sets)) {
		if err := p.mergeSet(ctx, inv.table, set, p.chooseRuns(s, set)); err != nil {
			return err
		}
	}
	return nil
}

// indexUnindexed writes runs for packs that are in use and of which the index does not know all.
func (p *pruner) indexUnindexed(ctx context.Context, s *survey) error {
	t := s.inv.table
	for set := range uint32(len(t.sets)) {
		w := p.runWriter(ctx, t.sets[set])
		for n := range t.packs {
			info := &t.packs[n]
			if !info.unindexed || info.set != set || info.deleted || info.live == 0 {
				continue
			}
			d, err := p.repo.Packs().Directory(ctx, info.kind(), info.id)
			if isGone(err) {
				continue
			}
			if err == nil {
				err = w.Add(info.kind(), info.id, d)
			}
			if err != nil {
				return err
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// chooseRuns returns the runs of a set that are to be merged.
func (p *pruner) chooseRuns(s *survey, set uint32) []runInfo {
	var chosen, small []runInfo
	for _, r := range s.runs {
		switch {
		case r.set != set || !r.whole: // check tells of those that are lost
		case r.gone*4 > r.all:
			chosen = append(chosen, r)
		case r.all <= smallEntries:
			small = append(small, r)
		}
	}
	if len(small) >= manyRuns {
		chosen = append(chosen, small...)
	}
	return chosen
}

// mergeSet replaces runs by new ones that say the same of packs that are there. The old ones go when the new are there: who
// looks for one that is gone lists the runs again.
func (p *pruner) mergeSet(ctx context.Context, t *table, set uint32, runs []runInfo) error {
	for group := range slices.Chunk(runs, index.MaxMerge) {
		w := p.runWriter(ctx, t.sets[set])
		ids := make([]chunk.PackID, 0, len(group))
		for _, r := range group {
			if r.gone < r.all {
				ids = append(ids, r.id)
			}
		}
		for e, err := range p.repo.Index().Merge(ctx, ids) {
			if isGone(err) {
				return nil // another pruner is at it
			}
			if err != nil {
				return err
			}
			if n := t.find(keyOf(e.Kind, e.Place.Pack)); n == none || t.packs[n].deleted {
				continue
			}
			if err := w.AddEntry(e); err != nil {
				return err
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, r := range group {
			if err := p.remove(ctx, r.Stored); err != nil {
				return err
			}
			p.report.RunsMerged++
		}
	}
	return nil
}
