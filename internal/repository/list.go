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
	"varve/internal/repository/seal"
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

func (u *Unreadable) Error() string { return fmt.Sprintf("record %s: %v", u.Record, u.Err) }

// Unwrap returns the reason.
func (u *Unreadable) Unwrap() error { return u.Err }

// listing is what the store's names say.
type listing struct {
	deleted map[string]Stored // tombstones, by backup
	records map[string]Stored
	fenced  map[string]Stored // by record
}

// gone tells whether a backup was deleted. A record that could not be read is deleted as a whole, under its own id.
func (l *listing) gone(rec *Record, backup string) bool {
	_, one := l.deleted[backup]
	_, all := l.deleted[rec.ID]
	return one || all
}

// list lists tombstones before records: they are deleted after them, so that a record that was seen without a tombstone was not
// deleted when the listing began. Fences come last: a record was put without one if there is none now, or was found whole.
func (r *Repo) list(ctx context.Context) (l listing, err error) {
	for _, part := range []struct {
		prefix string
		to     *map[string]Stored
	}{{deletedPrefix, &l.deleted}, {recordPrefix, &l.records}, {fencePrefix, &l.fenced}} {
		if *part.to, err = r.byID(ctx, part.prefix); err != nil {
			return l, err
		}
	}
	return l, nil
}

// byID lists objects that are named by the ids of backups or records.
func (r *Repo) byID(ctx context.Context, prefix string) (map[string]Stored, error) {
	found, err := r.Stored(ctx, prefix)
	out := make(map[string]Stored, len(found))
	for _, o := range found {
		if id := strings.TrimPrefix(o.Name, prefix); ValidID(id) {
			out[id] = o
		}
	}
	return out, err
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
			case errors.Is(err, envelope.ErrLost), errors.Is(err, ErrDamaged), errors.Is(err, envelope.ErrForeign), errors.Is(err, seal.ErrForged):
				failed[i] = err
			case err != nil:
				return err
			default:
				rec.Stats.StoredBytes += l.records[id].Size // of itself it could not tell
				rec.Stats.Objects++
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
			if !l.gone(rec, b.ID) {
				_, fenced := l.fenced[rec.ID]
				out = append(out, Listed{Backup: b, Record: rec, PutAt: l.records[rec.ID].Modified, Doubtful: fenced})
			}
		}
	}
	unreadable = slices.DeleteFunc(unreadable, func(u Unreadable) bool { _, gone := l.deleted[u.Record]; return gone })
	return out, unreadable, nil
}

// Backup finds one by its id or the beginning of it: ErrNotFound, ErrAmbiguous.
func (r *Repo) Backup(ctx context.Context, id string) (Listed, error) {
	all, unreadable, err := r.Backups(ctx)
	if err != nil {
		return Listed{}, err
	}
	begins := func(whole string) bool { return len(id) >= 4 && strings.HasPrefix(whole, id) }
	var found []Listed
	for _, b := range all {
		if b.ID == id {
			return b, nil
		}
		if begins(b.ID) {
			found = append(found, b)
		}
	}
	var lost []Unreadable
	for _, u := range unreadable {
		if u.Record == id {
			return Listed{}, &u
		}
		if begins(u.Record) {
			lost = append(lost, u)
		}
	}
	switch {
	case len(found)+len(lost) > 1:
		return Listed{}, fmt.Errorf("backup %s: %w", id, ErrAmbiguous)
	case len(found) == 1:
		return found[0], nil
	case len(lost) == 1:
		return Listed{}, &lost[0]
	}
	return Listed{}, fmt.Errorf("backup %s: %w", id, ErrNotFound)
}

// Delete makes a backup invisible at once; prune gives its space back. It harms no other. A record that cannot be read is
// deleted whole, by its id or that of its only backup. ErrNotFound.
func (r *Repo) Delete(ctx context.Context, id string) error {
	if r.noWrite != nil {
		return fmt.Errorf("delete backup %s: %w", id, r.noWrite)
	}
	b, err := r.Backup(ctx, id)
	if lost := (*Unreadable)(nil); errors.As(err, &lost) {
		return r.tombstone(ctx, lost.Record)
	}
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
