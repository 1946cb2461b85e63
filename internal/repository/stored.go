package repository

import (
	"context"
	"errors"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// Stored is an object with the copies that repairs made of it. Its Info is the original's, or that of a copy if the
// original is gone; Name is the original's in any case: what loads it looks for copies.
type Stored struct {
	objects.Info
	Copies []string
}

// Stored lists the objects whose names begin with prefix, by their original names, in the order of these.
func (r *Repo) Stored(ctx context.Context, prefix string) ([]Stored, error) {
	var found []Stored
	err := r.store.List(ctx, prefix, func(i objects.Info) error {
		original, repair := envelope.Original(i.Name)
		if repair == 0 {
			found = append(found, Stored{Info: i})
			return nil
		}
		// A hyphen sorts before all else that a name may go on with, so copies follow their original.
		if n := len(found); n == 0 || found[n-1].Name != original {
			found = append(found, Stored{Info: objects.Info{Name: original, Size: i.Size, Modified: i.Modified}})
		}
		last := &found[len(found)-1]
		last.Copies = append(last.Copies, i.Name)
		return nil
	})
	return found, err
}

// Remove deletes an object with its copies, the original last. objects.ErrLocked: some of it is under a retention.
func (r *Repo) Remove(ctx context.Context, o Stored) error {
	var locked error
	for _, name := range append(o.Copies[:len(o.Copies):len(o.Copies)], o.Name) {
		err := r.store.Delete(ctx, name)
		if errors.Is(err, objects.ErrLocked) {
			locked = err
			continue
		}
		if err != nil {
			return err
		}
	}
	return locked
}

// There asks the store whether an object, or a copy of it that a repair made, is there.
func (r *Repo) There(ctx context.Context, name string) (bool, error) {
	_, err := r.store.Stat(ctx, name)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, objects.ErrNotFound) {
		return false, err
	}
	copies, err := envelope.Repairs(ctx, r.store, name)
	return len(copies) > 0, err
}
