package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/internal/repository/envelope"
)

// HoldFor is how long a hold keeps a backup's data after it was renewed, by the store's clock.
const HoldFor = 30 * 24 * time.Hour

// holdParts is how many parts a hold has: a listing may miss what comes and what goes meanwhile, but not both of two, and one may be damaged.
const holdParts = 2

// NewHold is the name of a hold that there is none of yet.
func NewHold() string { return newObjectID() }

// ValidHold tells whether s can be the name of a hold.
func ValidHold(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

// Hold makes, or renews, a hold: a pin of a name that its owner remembers, which outlasts every process of his. For HoldFor from now on
// the backup's data is not pruned, and OpenHeld opens it, also if somebody deletes it. ErrNotFound: it was deleted, and this hold had not been made by
// then, or was not renewed in time.
func (r *Repo) Hold(ctx context.Context, hold, backup string) error {
	if err := r.renewHold(ctx, hold, backup); err != nil {
		return fmt.Errorf("hold backup %s: %w", backup, err)
	}
	return nil
}

func (r *Repo) renewHold(ctx context.Context, hold, backup string) error {
	if r.noWrite != nil {
		return r.noWrite
	}
	if _, err := r.Held(ctx, backup, hold); err != nil {
		return err
	}
	parts, err := r.partsOf(ctx, hold)
	if err != nil {
		return err
	}
	next := 0
	if n := len(parts); n > 0 {
		next = parts[n-1].seq + 1
	}
	plain, err := encodePin(wirePin{Backup: idBytes(backup), For: int64(HoldFor)})
	if err != nil {
		return err
	}
	var fresh []string
	for range max(1, holdParts-len(parts)) {
		name := pinName(hold, next+len(fresh))
		if _, err := r.putSmall(ctx, envelope.Pin, name, plain); err != nil {
			return err
		}
		fresh = append(fresh, name)
	}
	// As with any pin: they count if the backup is there by then, or a part from before still holds.
	if _, err := r.Held(ctx, backup, hold, fresh...); err != nil {
		for _, name := range fresh {
			_ = r.store.Delete(ctx, name) // if this fails it expires
		}
		return err
	}
	for _, p := range parts[:max(0, len(parts)+len(fresh)-holdParts)] {
		_ = r.Remove(ctx, p.Stored) // the next renewal tries again
	}
	return nil
}

// Unhold gives a hold back; it is no error if there is none.
func (r *Repo) Unhold(ctx context.Context, hold string) error {
	parts, err := r.partsOf(ctx, hold)
	for _, p := range parts {
		err = errors.Join(err, r.Remove(ctx, p.Stored))
	}
	if err != nil {
		return fmt.Errorf("give back hold %s: %w", hold, err)
	}
	return nil
}

// holdPart is a hold as it was renewed once.
type holdPart struct {
	Stored
	seq int
}

// partsOf lists the parts of a hold, the oldest first.
func (r *Repo) partsOf(ctx context.Context, hold string) (out []holdPart, err error) {
	prefix := pinPrefix + hold + "."
	found, err := r.Stored(ctx, prefix)
	for _, s := range found {
		if seq, err := strconv.Atoi(strings.TrimPrefix(s.Name, prefix)); err == nil {
			out = append(out, holdPart{s, seq})
		}
	}
	slices.SortFunc(out, func(a, b holdPart) int { return a.seq - b.seq })
	return out, err
}

// Held finds a backup by its whole id, as Backup does, but also one that was deleted, as long as a hold keeps its data; parts of that by the
// names but do not count. ErrNotFound.
func (r *Repo) Held(ctx context.Context, backup, hold string, but ...string) (Listed, error) {
	b, err := r.Backup(ctx, backup)
	if hold == "" || r.noWrite != nil || !errors.Is(err, ErrNotFound) {
		return b, err
	}
	held, failed := r.isHeld(ctx, backup, hold, but)
	if failed != nil || !held {
		return b, cmp.Or(failed, err)
	}
	l, failed := r.list(ctx)
	if failed != nil {
		return b, failed
	}
	records, _, failed := r.load(ctx, l)
	for _, rec := range records {
		if i := slices.IndexFunc(rec.Backups, func(b Backup) bool { return b.ID == backup }); i >= 0 {
			_, fenced := l.fenced[rec.ID]
			return Listed{Backup: rec.Backups[i], Record: rec, PutAt: l.records[rec.ID].Modified, Doubtful: fenced}, nil
		}
	}
	return b, cmp.Or(failed, err)
}

// isHeld tells whether a part of a hold that can be read, but for some, holds a backup.
func (r *Repo) isHeld(ctx context.Context, backup, hold string, but []string) (bool, error) {
	now, err := r.Now(ctx)
	if err != nil {
		return false, err
	}
	parts, err := r.partsOf(ctx, hold)
	if err != nil {
		return false, err
	}
	for _, p := range parts {
		if slices.Contains(but, p.Name) {
			continue
		}
		of, holds, err := r.readPin(ctx, p.Stored, now)
		if err != nil && !IsLost(err) {
			return false, err
		}
		if err == nil && holds && of == backup {
			return true, nil
		}
	}
	return false, nil
}
