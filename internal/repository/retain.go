package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/maptree"
	"varve/internal/repository/pack"
)

// retain extends the retention of all packs that the new backups need and that the session did not put itself, so that nobody
// can take them away before the session's own retention ends; and of what opens the repository, as nothing can be read without. The candidate
// must be put before. The maps are read whole: what is inherited from a base lies in packs of which only they tell.
func (s *Session) retain(ctx context.Context, rec *Record) error {
	if s.o.LockUntil.IsZero() {
		return nil
	}
	err := s.retainAccess(ctx)
	if err == nil {
		err = s.retainAll(ctx, rec)
	}
	if err != nil {
		return fmt.Errorf("extend the retention of what backup %s needs: %w", s.o.ID, err)
	}
	return nil
}

// retainAccess extends the retention of configuration and keys.
func (s *Session) retainAccess(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, prefix := range []string{"config.", "keys/"} {
		err := s.repo.store.List(ctx, prefix, func(i objects.Info) error {
			g.Go(func() error {
				err := s.repo.store.Retain(gctx, i.Name, s.o.LockUntil)
				if errors.Is(err, objects.ErrNotFound) {
					return nil // a change of keys has deleted it meanwhile
				}
				return err
			})
			return nil
		})
		if err != nil {
			return errors.Join(err, g.Wait())
		}
	}
	return g.Wait()
}

func (s *Session) retainAll(ctx context.Context, rec *Record) error {
	packs := map[chunk.PackID]envelope.Kind{}
	err := s.eachNeed(ctx, rec, func(kind envelope.Kind, _ chunk.ID, hint chunk.Place) error {
		packs[hint.Pack] = kind
		return nil
	})
	if err != nil {
		return err
	}
	gone, err := s.extend(ctx, packs)
	if err != nil || len(gone) == 0 {
		return err
	}
	// Content that was moved: a map tells where it was, the index where it is.
	packs = map[chunk.PackID]envelope.Kind{}
	err = s.eachNeed(ctx, rec, func(kind envelope.Kind, id chunk.ID, hint chunk.Place) error {
		if !gone[hint.Pack] {
			return nil
		}
		places, err := s.repo.Places(ctx, id)
		for _, e := range places {
			if e.Kind == kind {
				packs[e.Place.Pack] = kind
			}
		}
		if errors.Is(err, envelope.ErrLost) {
			err = nil // a run of the index; the others tell
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = s.extend(ctx, packs)
	return err
}

// extend puts packs under the session's retention, and returns those that are not there.
func (s *Session) extend(ctx context.Context, packs map[chunk.PackID]envelope.Kind) (gone map[chunk.PackID]bool, err error) {
	gone = map[chunk.PackID]bool{}
	maps.DeleteFunc(packs, func(id chunk.PackID, _ envelope.Kind) bool { return s.retained[id] })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for id, kind := range packs {
		g.Go(func() error {
			there, err := s.extendOne(gctx, pack.Name(kind, id))
			s.mu.Lock()
			defer s.mu.Unlock()
			s.retained[id], gone[id] = there, !there
			return err
		})
	}
	err = g.Wait()
	maps.DeleteFunc(gone, func(_ chunk.PackID, gone bool) bool { return !gone })
	return gone, err
}

func (s *Session) extendOne(ctx context.Context, name string) (there bool, err error) {
	st := s.repo.store
	err = st.Retain(ctx, name, s.o.LockUntil)
	if !errors.Is(err, objects.ErrNotFound) {
		return err == nil, err
	}
	copies, err := envelope.Repairs(ctx, st, name)
	for _, name := range copies {
		if err == nil {
			err = st.Retain(ctx, name, s.o.LockUntil)
		}
	}
	return len(copies) > 0, err
}

// eachNeed visits all nodes and chunks of the record's maps.
func (s *Session) eachNeed(ctx context.Context, rec *Record, visit func(kind envelope.Kind, id chunk.ID, hint chunk.Place) error) error {
	for _, m := range rec.Backups {
		nodes := visited{s.repo, func(id chunk.ID, hint chunk.Place) error { return visit(envelope.Nodes, id, hint) }}
		tree := maptree.NewTree(nodes, s.repo.Geometry(), m.Root, nodeCacheBytes)
		err := tree.Walk(ctx, 0, s.repo.Regions(m.SizeBytes), func(_ uint64, region maptree.Region) error {
			for _, c := range region.Chunks {
				if err := visit(envelope.Pack, c.ID, c.Place); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// visited is a NodeReader that tells what is read.
type visited struct {
	repo  *Repo
	visit func(id chunk.ID, hint chunk.Place) error
}

func (v visited) ReadNode(ctx context.Context, id chunk.ID, hint chunk.Place) ([]byte, error) {
	if err := v.visit(id, hint); err != nil {
		return nil, err
	}
	return v.repo.ReadNode(ctx, id, hint)
}
