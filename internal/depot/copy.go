package depot

import (
	"context"
	"errors"
	"strings"
	"time"

	"varve/internal/backup"
	"varve/internal/contract"
	"varve/internal/repository"
)

// Copy copies backups to another repository, sealed with its keys: all that were not deleted there if none is named. Those of one instant stay
// one record. Of all, those that are damaged stay behind and do not keep the others from being copied; the error, with the code of damage, names
// them, and the result tells what was done.
func Copy(ctx context.Context, from, to *Depot, r contract.CopyRepository, progress Progress) (contract.RepositoryCopy, error) {
	out := contract.RepositoryCopy{From: from.name, To: to.name, Copied: []contract.Backup{}, Present: []string{}}
	if from.repo.ID() == to.repo.ID() {
		return out, contract.Errorf(contract.CodeUsage, "copy %s to %s: they are the same repository", from.name, to.name)
	}
	records, ids, err := from.chosen(ctx, r.Backups)
	if err != nil {
		return out, err
	}
	o := backup.Options{Program: to.program, LockUntil: lockUntil(r.LockDays)}
	made := map[string]bool{}
	var damaged []string
	var why error
	for i, rec := range records {
		o.Progress = monotone(each(progress, i, len(records)))
		o.Host = rec.Host
		copied, err := backup.Copy(ctx, from.repo, to.repo, rec, ids, o)
		if len(r.Backups) == 0 && errors.Is(err, repository.ErrDeleted) {
			for _, b := range rec.Backups {
				delete(ids, b.ID) // nobody asked for this one, and there it is not wanted any more
			}
			continue
		}
		if len(r.Backups) == 0 && repository.IsLost(err) {
			if damaged = append(damaged, rec.ID); why == nil {
				why = err
			}
			continue
		}
		if err != nil {
			return out, err
		}
		if copied != nil {
			for _, b := range copied.Backups {
				made[b.ID] = true
			}
		}
		for _, b := range rec.Backups {
			if ids[b.ID] && !made[b.ID] {
				out.Present = append(out.Present, b.ID)
			}
		}
	}
	all, _, err := to.Backups(ctx, "")
	for _, b := range all {
		if made[b.ID] {
			out.Copied = append(out.Copied, b)
		}
	}
	if err == nil && why != nil {
		err = contract.Errorf(contract.CodeDamaged, "copy %s to %s: %d of %d are damaged and not copied: %s: %s", from.name, to.name, len(damaged), len(records), strings.Join(damaged, ", "), why).
			WithHint("see what is damaged: varve repo check; to save what is left of one: varve backup restore --skip-damaged")
	}
	return out, err
}

// chosen are the records of backups, oldest first so that bases come before what is made from them, and their ids.
func (d *Depot) chosen(ctx context.Context, names []string) (records []*repository.Record, ids map[string]bool, err error) {
	ids = map[string]bool{}
	for _, name := range names {
		b, err := d.repo.Backup(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		ids[b.ID] = true
	}
	all, _, err := d.repo.Backups(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, b := range all {
		if len(names) == 0 {
			ids[b.ID] = true
		}
		if n := len(records); ids[b.ID] && (n == 0 || records[n-1] != b.Record) {
			records = append(records, b.Record)
		}
	}
	return records, ids, nil
}

// lockUntil is the end of a retention that begins now; zero for none.
func lockUntil(days int) time.Time {
	if days <= 0 {
		return time.Time{}
	}
	return time.Now().AddDate(0, 0, days)
}
