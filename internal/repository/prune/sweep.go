package prune

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/pack"
)

// deleters is how many objects are deleted at once.
const deleters = 16

// sweepPacks deletes the packs of ripe marks, after it has rescued what is needed of them. Packs of which nothing is needed go
// first: on a full store they make room.
func (p *pruner) sweepPacks(ctx context.Context, inv *inventory, s *survey) error {
	t := inv.table
	if p.o.DryRun {
		for n := range t.packs {
			if info := &t.packs[n]; info.ripe {
				p.report.Deleted.add(int64(info.bytes))
			}
		}
		return nil
	}
	if err := p.deletePacks(ctx, t, false); err != nil {
		return err
	}
	if _, err := p.rescue(ctx, s); err != nil {
		return err
	}
	if err := p.deletePacks(ctx, t, true); err != nil {
		return err
	}
	for _, m := range inv.marks {
		if !p.old(m.Modified, p.grace) || !t.allGone(m) {
			continue
		}
		if err := p.remove(ctx, m.Stored); err != nil {
			return err
		}
	}
	return nil
}

// allGone tells whether all packs of a mark are deleted.
func (t *table) allGone(m repository.Mark) bool {
	for _, marked := range m.Packs {
		if n := t.find(packKey{marked.ID, marked.Nodes}); n != none && !t.packs[n].deleted {
			return false
		}
	}
	return true
}

// deletePacks deletes ripe packs, those of which something was rescued or the others, but not those that have to be kept.
func (p *pruner) deletePacks(ctx context.Context, t *table, rescued bool) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(deleters)
	for n := range t.packs {
		info := &t.packs[n]
		if !info.ripe || info.holds != rescued || info.keep {
			continue
		}
		o := repository.Stored{Info: objects.Info{Name: info.name()}, Copies: t.copies[uint32(n)]}
		g.Go(func() error {
			err := p.repo.Remove(gctx, o)
			info.deleted = err == nil
			if errors.Is(err, objects.ErrLocked) {
				return nil // it is told, and tried again by the next run
			}
			return err
		})
	}
	err := g.Wait()
	for n := range t.packs {
		info := &t.packs[n]
		switch {
		case !info.ripe || info.holds != rescued:
		case info.deleted:
			p.report.Deleted.add(int64(info.bytes))
		case info.keep:
			p.report.Kept.add(int64(info.bytes))
		case err == nil:
			p.report.Locked.add(int64(info.bytes))
		}
	}
	return err
}

// remove deletes a small object. One that is under a retention stays for a later run.
func (p *pruner) remove(ctx context.Context, o repository.Stored) error {
	_, err := p.removed(ctx, o)
	return err
}

func (p *pruner) removed(ctx context.Context, o repository.Stored) (bool, error) {
	if p.o.DryRun {
		return true, nil
	}
	err := p.repo.Remove(ctx, o)
	if errors.Is(err, objects.ErrLocked) {
		p.report.Locked.add(o.Size)
		return false, nil
	}
	return err == nil, err
}

// sweepRest deletes records all of whose backups are deleted, for longer than the grace and read by nobody; tombstones, once
// another grace has passed, so that a copy of the record which a repair was just writing does not come to life; what
// sessions that ended have left; and expired pins.
func (p *pruner) sweepRest(ctx context.Context, c *repository.Census) error {
	for _, part := range c.Candidates {
		if _, committed := c.PutAt[part.Record]; committed {
			if err := p.remove(ctx, part.Stored); err != nil {
				return err
			}
			p.report.Candidates++
		}
	}
	of := map[string]bool{} // tombstones that still have a record
	readable := map[string]bool{}
	for _, rec := range c.Records {
		readable[rec.ID] = true
		dead := true
		of[rec.ID] = true
		for _, b := range rec.Backups {
			of[b.ID] = true
			dead = dead && p.dead(c, rec.ID, b.ID) && !c.Pins[b.ID]
		}
		if !dead {
			continue
		}
		if err := p.removeRecord(ctx, c.PutAt[rec.ID]); err != nil {
			return err
		}
	}
	for id, o := range c.PutAt {
		if !readable[id] {
			of[id] = true
			if p.dead(c, id, id) {
				if err := p.removeRecord(ctx, o); err != nil {
					return err
				}
			}
		}
	}
	for id, o := range c.Deleted {
		if of[id] || !p.old(o.Modified, 2*p.grace) {
			continue
		}
		gone, err := p.removed(ctx, o)
		if err != nil {
			return err
		}
		if gone {
			p.report.Tombstones++
		}
	}
	for _, pin := range c.Expired {
		if err := p.remove(ctx, pin); err != nil {
			return err
		}
		p.report.Pins++
	}
	return nil
}

// dead tells whether a backup has been deleted for longer than the grace.
func (p *pruner) dead(c *repository.Census, record, backup string) bool {
	for _, id := range []string{backup, record} {
		if o, ok := c.Deleted[id]; ok && p.old(o.Modified, p.grace) {
			return true
		}
	}
	return false
}

func (p *pruner) removeRecord(ctx context.Context, o repository.Stored) error {
	gone, err := p.removed(ctx, o)
	if gone {
		p.report.Records++
	}
	return err
}

// compactLedger makes few pages of the ledger of many, without what they tell of objects that are gone.
func (p *pruner) compactLedger(ctx context.Context, inv *inventory, c *repository.Census) (err error) {
	if p.o.DryRun {
		return nil
	}
	t := inv.table
	runs := map[string]bool{}
	for _, r := range inv.runs {
		runs[r.Name] = true
	}
	p.report.Pages, err = p.repo.CompactLedger(ctx, len(t.packs), func(v repository.Verdict) bool {
		prefix, rest, _ := strings.Cut(v.Object, "/")
		switch prefix {
		case "packs", "nodes":
			kind, id, ok := pack.ParseName(v.Object)
			if n := t.find(keyOf(kind, id)); !ok || n != none {
				return !ok || !t.packs[n].deleted
			}
			// It was deleted, or is missing: then somebody may still have to store again what was in it.
			return v.Condition == repository.Lost && p.report.LostChunks > 0
		case "index":
			return runs[v.Object]
		case "backups":
			_, ok := c.PutAt[rest]
			return ok
		case "config", "keys", "deleted", "fenced":
			return true
		}
		return v.Condition == repository.Lost // of what does not stay for long
	})
	if errors.Is(err, objects.ErrLocked) {
		return nil
	}
	return err
}
