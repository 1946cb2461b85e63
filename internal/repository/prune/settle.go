package prune

import (
	"context"
	"errors"
	"slices"

	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/maptree"
)

// settle gives up sessions that have not been heard of for twice the grace, and decides about records that were put after
// that had happened to their session.
func (p *pruner) settle(ctx context.Context) error {
	if _, err := p.repo.Condemned(ctx); err != nil {
		return err // before anything is deleted
	}
	c, err := p.repo.Census(ctx, p.now)
	if err != nil {
		return err
	}
	if err := p.giveUp(ctx, c); err != nil {
		return err
	}
	if len(p.report.GivenUp) > 0 { // some may have been put just now
		if c, err = p.repo.Census(ctx, p.now); err != nil {
			return err
		}
	}
	for _, rec := range c.Records {
		if !c.Fenced[rec.ID] || !slices.ContainsFunc(rec.Backups, func(b repository.Backup) bool { return !c.Gone(rec, b.ID) }) {
			continue
		}
		if err := p.decide(ctx, rec); err != nil {
			return err
		}
	}
	return nil
}

// giveUp puts fences for candidates whose newest part is old, then deletes these. The fence comes first: who put the record
// before it was committed while the candidate protected him, who puts it later sees the fence.
func (p *pruner) giveUp(ctx context.Context, c *repository.Census) error {
	parts := map[string][]repository.CandidatePart{}
	for _, part := range c.Candidates {
		if _, committed := c.PutAt[part.Record]; !committed {
			parts[part.Record] = append(parts[part.Record], part)
		}
	}
	for record, known := range parts {
		if slices.ContainsFunc(known, func(c repository.CandidatePart) bool { return !p.old(c.Modified, 2*p.grace) }) {
			continue
		}
		if now, err := p.repo.Stored(ctx, "candidates/"+record+"."); err != nil || len(now) != len(known) {
			if err != nil {
				return err
			}
			continue // it goes on, or has ended
		}
		p.report.GivenUp = append(p.report.GivenUp, record)
		if p.o.DryRun {
			continue
		}
		if _, err := p.repo.Fence(ctx, record); err != nil {
			return err
		}
		for _, part := range known {
			if err := p.remove(ctx, part.Stored); err != nil {
				return err
			}
			p.report.Candidates++
		}
	}
	slices.Sort(p.report.GivenUp)
	return nil
}

// decide makes a doubtful record visible if it is whole, or else deletes its backups. It is whole if all that it needs lies in packs
// that are not condemned, by marks and packs that were listed when the record was there: then whoever condemns one of
// these later sees the record before he deletes the pack. What lies in condemned packs alone is rescued first.
func (p *pruner) decide(ctx context.Context, rec *repository.Record) error {
	if p.o.DryRun {
		p.report.Doubtful = append(p.report.Doubtful, rec.ID)
		return nil
	}
	inv, err := p.inventory(ctx)
	if err != nil {
		return err
	}
	s := newSurvey(p, inv)
	defer s.close()
	s.all = true
	var roots []root
	for _, b := range rec.Backups {
		roots = append(roots, root{Backup: b})
	}
	if err := s.walk(ctx, roots); err != nil {
		return err
	}
	if err := s.locate(ctx); err != nil {
		return err
	}
	all, err := p.rescue(ctx, s)
	if err != nil {
		return err
	}
	if s.lost == 0 && s.mapsLost == 0 && all {
		p.report.Whole = append(p.report.Whole, rec.ID)
		return p.repo.Unfence(ctx, rec.ID)
	}
	// Another pruner may have moved what was not found.
	for _, b := range rec.Backups {
		missing, err := p.missing(ctx, b)
		if err != nil {
			return err
		}
		if missing {
			p.report.Buried = append(p.report.Buried, rec.ID)
			return p.repo.Bury(ctx, rec)
		}
	}
	p.report.Doubtful = append(p.report.Doubtful, rec.ID)
	return nil
}

// missing tells whether something that a backup needs is in no pack that is there.
func (p *pruner) missing(ctx context.Context, b repository.Backup) (bool, error) {
	if err := p.repo.RefreshIndex(ctx); err != nil {
		return false, err
	}
	tree := p.repo.Tree(b.Root)
	there := map[packKey]bool{}
	err := tree.Walk(ctx, 0, p.repo.Regions(b.SizeBytes), func(_ uint64, r maptree.Region) error {
		for _, c := range r.Chunks {
			ok, err := p.exists(ctx, there, envelope.Pack, c.ID, c.Place)
			if err == nil && !ok {
				err = errMissing
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	var node *maptree.NodeError
	switch {
	case errors.Is(err, errMissing):
		return true, nil
	case errors.As(err, &node) && repository.IsLost(err):
		ok, err := p.exists(ctx, there, envelope.Nodes, node.ID, node.Place)
		return !ok && err == nil, err
	}
	return false, err
}

var errMissing = errors.New("missing")

// exists tells whether a pack is there that holds content, readable or not.
func (p *pruner) exists(ctx context.Context, there map[packKey]bool, kind envelope.Kind, id chunk.ID, hint chunk.Place) (bool, error) {
	places := []chunk.Place{hint}
	found, err := p.repo.Places(ctx, id)
	if err != nil && !repository.IsLost(err) {
		return false, err
	}
	for _, e := range found {
		if e.Kind == kind {
			places = append(places, e.Place)
		}
	}
	for _, at := range places {
		k := keyOf(kind, at.Pack)
		is, known := there[k]
		if !known {
			if is, err = p.repo.There(ctx, k.name()); err != nil {
				return false, err
			}
			there[k] = is
		}
		if !is {
			continue
		}
		d, err := p.repo.Packs().Directory(ctx, kind, at.Pack)
		if err != nil && !repository.IsLost(err) {
			return false, err
		}
		if err != nil && !isGone(err) || err == nil && int(at.Frame) < d.Len() && d.Entry(at.Frame).ID == id {
			return true, nil
		}
	}
	return false, nil
}
