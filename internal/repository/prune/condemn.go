package prune

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"varve/internal/repository"
	"varve/internal/repository/pack"
)

// wasteShare is what part of the packs that remain may be waste: then they are at most 1.25 times what is needed.
const wasteShare = 5

// Packs of less than smallBytes are made one where they fill at least one, at most an eighth (mergeShare) of what is there at a time: until
// the grace is over they are there twice.
const (
	smallBytes = pack.TargetBytes / 4
	mergeShare = 8
)

// count fills in what the report tells of what was found.
func (p *pruner) count(inv *inventory, s *survey) {
	r := &p.report
	for n := range inv.table.packs {
		info := &inv.table.packs[n]
		r.Packs.add(int64(info.bytes))
		if !info.condemned {
			r.NeededPart += int64(info.part() * float64(info.bytes))
		}
	}
	r.NeededPart += s.rescued
	r.LostChunks, r.LostMaps = s.lost, s.lostMaps
}

// condemn marks the packs of which nothing is needed, and the emptiest of the others until what is waste is little enough; and those that are
// damaged, once all that is needed can be read. Packs that are younger than the grace may belong to a session that has not told of them yet.
func (p *pruner) condemn(ctx context.Context, inv *inventory) error {
	t := inv.table
	var emptiest []uint32
	var total, waste float64
	for n := range t.packs {
		info := &t.packs[n]
		if info.condemned {
			continue
		}
		part, bytes := info.part(), float64(info.bytes)
		total += bytes
		waste += bytes * (1 - part)
		switch {
		case part == 1 || info.lost && part > 0:
		case p.old(info.putAt(), p.grace):
			emptiest = append(emptiest, uint32(n))
		default:
			p.report.Young.add(int64(bytes * (1 - part)))
			p.report.YoungUntil = later(p.report.YoungUntil, info.putAt().Add(p.grace))
		}
	}
	whole := p.report.LostChunks == 0 && len(p.report.LostMaps) == 0
	rank := func(n uint32) float64 {
		if t.packs[n].hurt && whole {
			return 0
		}
		return t.packs[n].part()
	}
	slices.SortFunc(emptiest, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), -cmp.Compare(t.packs[a].bytes, t.packs[b].bytes))
	})
	var marked []repository.MarkedPack
	mark := func(n uint32) {
		info := &t.packs[n]
		info.condemned = true
		marked = append(marked, repository.MarkedPack{ID: info.id, Nodes: info.nodes})
		p.report.Condemned.add(int64(info.bytes))
		p.report.Waiting.add(int64(info.bytes))
	}
	for _, n := range emptiest {
		info := &t.packs[n]
		part, bytes := info.part(), float64(info.bytes)
		if rank(n) > 0 && waste <= total/wasteShare {
			break
		}
		total -= bytes * (1 - part)
		waste -= bytes * (1 - part)
		mark(n)
	}
	for _, n := range p.small(t, int64(total)/mergeShare) {
		mark(n)
	}
	if len(marked) > 0 {
		p.report.WaitingUntil = p.now.Add(p.grace)
	}
	for _, m := range inv.marks {
		waits := !p.old(m.Modified, p.grace)
		for _, mp := range m.Packs {
			if n := t.find(packKey{mp.ID, mp.Nodes}); waits && n != none && !t.packs[n].ripe {
				p.report.Waiting.add(int64(t.packs[n].bytes))
				p.report.WaitingUntil = later(p.report.WaitingUntil, m.Modified.Add(p.grace))
			}
		}
	}
	if p.o.DryRun {
		return nil
	}
	for part := range slices.Chunk(marked, repository.MaxMarked) {
		if err := p.repo.PutMark(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// small returns packs to be made one, the smallest first: those of a kind and set that fill at least a pack, and together with all others
// about limitBytes at most.
func (p *pruner) small(t *table, limitBytes int64) (all []uint32) {
	groups := map[uint64][]uint32{}
	for n := range t.packs {
		info := &t.packs[n]
		if info.bytes < smallBytes && info.live > 0 && !info.condemned && !info.named && !info.keep && !info.lost && !info.copied && p.old(info.putAt(), p.grace) {
			k := uint64(info.set) << 1
			if info.nodes {
				k++
			}
			groups[k] = append(groups[k], uint32(n))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(groups)) {
		group := groups[k]
		slices.SortFunc(group, func(a, b uint32) int {
			return cmp.Or(cmp.Compare(t.packs[a].bytes, t.packs[b].bytes), cmp.Compare(a, b))
		})
		var fill int64
		fits := 0
		for ; fits < len(group) && fill < max(limitBytes, 2*pack.TargetBytes); fits++ {
			fill += int64(t.packs[group[fits]].live)
		}
		if fill >= pack.TargetBytes {
			all = append(all, group[:fits]...)
			limitBytes -= fill
		}
	}
	return all
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
