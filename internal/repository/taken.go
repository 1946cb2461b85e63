package repository

import (
	"context"

	"varve/internal/objects"
)

// Taken tells whether a session had the id of a record before: it left the record, a candidate, or the fence of one that was given up.
// Another session that takes it fails.
func (r *Repo) Taken(ctx context.Context, record string) (bool, error) {
	for _, name := range []string{recordPrefix + record, fencePrefix + record} {
		if there, err := r.There(ctx, name); there || err != nil {
			return there, err
		}
	}
	there := false
	err := r.store.List(ctx, candidatePrefix+record+".", func(objects.Info) error {
		there = true
		return nil
	})
	return there, err
}

// WasDeleted tells whether there is a tombstone of a backup: another one of that id would be as invisible, until it is pruned.
func (r *Repo) WasDeleted(ctx context.Context, backup string) (bool, error) {
	return r.There(ctx, deletedPrefix+backup)
}
