package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// Listed is a backup and what is known of its state.
type Listed struct {
	Backup
	Record   *Record   // shared: not to be changed
	PutAt    time.Time // when its record was put, by the store's clock
	Doubtful bool      // its session had been given up when it ended: prune decides whether it is whole
}

// Unreadable is a record that cannot be read.
type Unreadable struct {
	Record string
	Err    error
}

// listing is what the store's names say.
type listing struct {
	records map[string]objects.Info
	deleted map[string]bool // backups
	fenced  map[string]bool // records
}

func (r *Repo) list(ctx context.Context) (l listing, err error) {
	l = listing{records: map[string]objects.Info{}, deleted: map[string]bool{}, fenced: map[string]bool{}}
	g, gctx := errgroup.WithContext(ctx)
	each := func(prefix string, visit func(id string, i objects.Info)) {
		g.Go(func() error {
			return r.store.List(gctx, prefix, func(i objects.Info) error {
				if id := strings.TrimPrefix(i.Name, prefix); ValidID(id) {
					visit(id, i)
				} else if id := strings.TrimPrefix(envelope.Stem(i.Name), prefix); ValidID(id) && prefix == recordPrefix {
					visit(id, i) // a copy that a repair made: the original may be gone
				}
				return nil
			})
		})
	}
	each(recordPrefix, func(id string, i objects.Info) {
		if _, ok := l.records[id]; !ok {
			l.records[id] = i
		}
	})
	each(deletedPrefix, func(id string, _ objects.Info) { l.deleted[id] = true })
	each(fencePrefix, func(id string, _ objects.Info) { l.fenced[id] = true })
	return l, g.Wait()
}

// Records loads all records that exist, also those whose backups are deleted, oldest first.
func (r *Repo) Records(ctx context.Context) ([]*Record, []Unreadable, error) {
	l, err := r.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	return r.load(ctx, l)
}

func (r *Repo) load(ctx context.Context, l listing) (records []*Record, unreadable []Unreadable, err error) {
	r.mu.Lock()
	for id := range r.records {
		if _, ok := l.records[id]; !ok {
			delete(r.records, id)
		}
	}
	var missing []string
	for id := range l.records {
		if _, ok := r.records[id]; !ok {
			missing = append(missing, id)
		}
	}
	r.mu.Unlock()
	slices.Sort(missing)
	failed := make([]error, len(missing))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, id := range missing {
		g.Go(func() error {
			rec, err := r.loadRecord(gctx, id)
			switch {
			case errors.Is(err, objects.ErrNotFound): // deleted since it was listed
			case errors.Is(err, envelope.ErrLost), errors.Is(err, ErrDamaged), errors.Is(err, envelope.ErrForeign):
				failed[i] = err
			case err != nil:
				return err
			default:
				r.recordKnown(rec)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for i, err := range failed {
		if err != nil {
			unreadable = append(unreadable, Unreadable{missing[i], err})
		}
	}
	r.mu.Lock()
	for id := range l.records {
		if rec, ok := r.records[id]; ok {
			records = append(records, rec)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(records, func(a, b *Record) int {
		if c := a.StartedAt.Compare(b.StartedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return records, unreadable, nil
}

func (r *Repo) loadRecord(ctx context.Context, id string) (*Record, error) {
	name := recordPrefix + id
	_, plain, err := r.keys.LoadObject(ctx, r.store, name, envelope.Record)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	rec, err := decodeRecord(plain, id)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	for i := range rec.Backups {
		b := &rec.Backups[i]
		b.Root.Regions = r.Regions(b.SizeBytes)
	}
	return &rec, nil
}

func (r *Repo) recordKnown(rec *Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records[rec.ID] = rec
}

// Backups lists the backups that exist, oldest first, and the records that cannot be read.
func (r *Repo) Backups(ctx context.Context) ([]Listed, []Unreadable, error) {
	l, err := r.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	records, unreadable, err := r.load(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	var out []Listed
	for _, rec := range records {
		for _, b := range rec.Backups {
			if !l.deleted[b.ID] {
				out = append(out, Listed{Backup: b, Record: rec, PutAt: l.records[rec.ID].Modified, Doubtful: l.fenced[rec.ID]})
			}
		}
	}
	return out, unreadable, nil
}

// Backup finds one by its id or the beginning of it: ErrNotFound, ErrAmbiguous.
func (r *Repo) Backup(ctx context.Context, id string) (Listed, error) {
	all, unreadable, err := r.Backups(ctx)
	if err != nil {
		return Listed{}, err
	}
	var found []Listed
	for _, b := range all {
		if b.ID == id {
			return b, nil
		}
		if len(id) >= 4 && strings.HasPrefix(b.ID, id) {
			found = append(found, b)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if len(found) > 1 {
		return Listed{}, fmt.Errorf("backup %s: %w", id, ErrAmbiguous)
	}
	for _, u := range unreadable {
		if u.Record == id || len(id) >= 4 && strings.HasPrefix(u.Record, id) {
			return Listed{}, fmt.Errorf("backup %s: %w", id, u.Err)
		}
	}
	return Listed{}, fmt.Errorf("backup %s: %w", id, ErrNotFound)
}

// Delete makes a backup invisible at once; prune gives its space back. It harms no other. ErrNotFound.
func (r *Repo) Delete(ctx context.Context, id string) error {
	if r.noWrite != nil {
		return fmt.Errorf("delete backup %s: %w", id, r.noWrite)
	}
	b, err := r.Backup(ctx, id)
	if err != nil {
		return err
	}
	return r.tombstone(ctx, b.ID)
}

func (r *Repo) tombstone(ctx context.Context, id string) error {
	_, err := r.putSmall(ctx, envelope.Tombstone, deletedPrefix+id, []byte(id))
	if errors.Is(err, objects.ErrExists) {
		return nil
	}
	return err
}

// bury deletes the backups of a record that was put too late.
func (r *Repo) bury(ctx context.Context, rec *Record) error {
	for _, b := range rec.Backups {
		if err := r.tombstone(ctx, b.ID); err != nil {
			return err
		}
	}
	return nil
}
