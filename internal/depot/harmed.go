package depot

import (
	"context"
	"errors"

	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/maptree"
)

// Harmed are those of some backups, by their ids, that need what is known to be lost. While nothing is that costs one list of the store, else a walk of each map.
func (d *Depot) Harmed(ctx context.Context, backups []repository.Listed) (map[string]bool, error) {
	if err := d.repo.RefreshLost(ctx); err != nil {
		return nil, err
	}
	any, lost := d.repo.Lost()
	if !any {
		return nil, nil
	}
	if err := d.repo.Index().Refresh(ctx); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	elsewhere := map[chunk.ID]bool{}
	for _, b := range backups {
		err := d.repo.Tree(b.Root).Walk(ctx, 0, d.repo.Regions(b.SizeBytes), func(_ uint64, r maptree.Region) error {
			for c, supplied := range r.Supplied() {
				if supplied.Empty() || !lost(r.Chunks[c].Place) {
					continue
				}
				id := r.Chunks[c].ID
				there, known := elsewhere[id]
				if !known {
					places, err := d.repo.Places(ctx, id)
					if err != nil {
						return err
					}
					for _, p := range places {
						there = there || !lost(p.Place)
					}
					elsewhere[id] = there
				}
				if !there {
					return errHarmed
				}
			}
			return nil
		})
		switch {
		case errors.Is(err, errHarmed), repository.IsLost(err):
			out[b.ID] = true
		case err != nil:
			return nil, err
		}
	}
	return out, nil
}

var errHarmed = errors.New("something of it is lost")
