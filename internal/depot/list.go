package depot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/repository"
)

// Backups lists the backups of a volume, by its name or UUID, or all if that is empty, oldest first. Records that cannot be
// read are told by warnings.
func (d *Depot) Backups(ctx context.Context, volume string) (out []contract.Backup, warnings []string, err error) {
	all, unreadable, err := d.repo.Backups(ctx)
	if err != nil {
		return nil, nil, err
	}
	harmed, err := d.Harmed(ctx, all)
	if err != nil {
		return nil, nil, err
	}
	out = []contract.Backup{}
	for _, b := range all {
		if volume == "" || b.Volume == volume || b.VolumeID.String() == volume {
			out = append(out, d.view(b, all, harmed))
		}
	}
	for _, u := range unreadable {
		warnings = append(warnings, fmt.Sprintf("backup %s cannot be read: %v", u.Record, u.Err))
	}
	return out, warnings, nil
}

// Backup describes one, by its id or the beginning of it.
func (d *Depot) Backup(ctx context.Context, id string) (contract.Backup, error) {
	b, err := d.repo.Backup(ctx, id)
	if err != nil {
		return contract.Backup{}, err
	}
	return d.describe(ctx, b)
}

func (d *Depot) describe(ctx context.Context, b repository.Listed) (contract.Backup, error) {
	all, _, err := d.repo.Backups(ctx)
	if err != nil {
		return contract.Backup{}, err
	}
	harmed, err := d.Harmed(ctx, []repository.Listed{b})
	if err != nil {
		return contract.Backup{}, err
	}
	return d.view(b, all, harmed), nil
}

// Made describes the backups of a record that has just been committed, though the store may be gone by now. all are those that
// exist, as far as it is known.
func (d *Depot) Made(rec *repository.Record, all []repository.Listed) []contract.Backup {
	members := make([]repository.Listed, len(rec.Backups))
	for i, b := range rec.Backups {
		members[i] = repository.Listed{Backup: b, Record: rec}
		if at := slices.IndexFunc(all, func(other repository.Listed) bool { return other.ID == b.ID }); at >= 0 {
			members[i] = all[at]
		}
	}
	out := make([]contract.Backup, len(members))
	for i, b := range members {
		out[i] = d.view(b, members, nil)
	}
	return out
}

// find looks several up; all are there, or none is returned. Each appears once. Of those whose records cannot be read, which are errors
// unless anyhow, the ids are known.
func (d *Depot) find(ctx context.Context, ids []string, anyhow bool) (out []repository.Listed, err error) {
	seen := map[string]bool{}
	for _, id := range ids {
		b, err := d.repo.Backup(ctx, id)
		if lost, ok := errors.AsType[*repository.Unreadable](err); ok && anyhow {
			b, err = repository.Listed{Backup: repository.Backup{ID: lost.Record}, Record: &repository.Record{ID: lost.Record}}, nil
		}
		if err != nil {
			return nil, err
		}
		if !seen[b.ID] {
			seen[b.ID] = true
			out = append(out, b)
		}
	}
	return out, nil
}

// view is a backup as the contract has it. all are those that exist.
func (d *Depot) view(b repository.Listed, all []repository.Listed, harmed map[string]bool) contract.Backup {
	rec := b.Record
	out := contract.Backup{
		ID: b.ID, Repo: d.name, Volume: b.Volume, VolumeID: b.VolumeID.String(), CreatedAt: contract.Time{Time: b.PointAt},
		Type: b.Type.String(), BaseID: b.Base, FullID: b.Full, Reason: b.Reason, Consistency: b.Consistency, Size: b.SizeBytes,
		ReadBytes: b.ReadBytes, StoredBytes: rec.Stats.StoredBytes, FreezeMS: contract.Milliseconds(b.FreezeTime),
		Seconds:   rec.FinishedAt.Sub(rec.StartedAt).Seconds(),
		DependsOn: []string{}, State: contract.BackupGood, GroupID: rec.ID, Group: []string{},
		Source: b.Source, Labels: map[string]string{}, Host: rec.Host, Program: rec.Program,
		MappedBytes: b.MappedBytes, ChangedBytes: b.ChangedBytes, Sampled: b.Sampled, Mismatched: b.Mismatched,
		NewBytes: rec.Stats.NewBytes, DuplicateBytes: rec.Stats.DuplicateBytes, CompressedBytes: rec.Stats.CompressedBytes,
		MapBytes: rec.Stats.NodeBytes, ParityBytes: rec.Stats.ParityBytes, Objects: rec.Stats.Objects, Requests: rec.Stats.Requests,
		Stages: steps(rec.Stats.Stages), Freeze: steps(b.Steps),
		StartedAt: contract.Time{Time: rec.StartedAt}, FinishedAt: contract.Time{Time: rec.FinishedAt}, StoredAt: contract.At(b.PutAt),
	}
	maps.Copy(out.Labels, b.Labels)
	if b.PointID != uuid.Nil {
		out.PointID = b.PointID.String()
	}
	if b.Policy != uuid.Nil {
		out.PolicyID = b.Policy.String()
	}
	switch b.Type {
	case repository.Incremental:
		out.DependsOn = append(out.DependsOn, b.Base)
	case repository.Differential:
		out.DependsOn = append(out.DependsOn, b.Full)
	}
	switch {
	case harmed[b.ID]:
		out.State = contract.BackupDamaged
	case b.Doubtful:
		out.State = contract.BackupDoubtful
	}
	for _, other := range all {
		if other.Record.ID == rec.ID && other.ID != b.ID {
			out.Group = append(out.Group, other.ID)
		}
	}
	return out
}

func steps(in []repository.Step) []contract.Step {
	out := make([]contract.Step, 0, len(in))
	for _, s := range in {
		out = append(out, contract.Step{Name: s.Name, MS: contract.Milliseconds(s.Took)})
	}
	return out
}

// Delete deletes backups, all of them or, as far as they can be found, none; others are not harmed. Space is given back by prune, which
// a record that cannot be read stops: it is deleted with all its backups.
func (d *Depot) Delete(ctx context.Context, ids []string) ([]contract.Backup, error) {
	found, err := d.find(ctx, ids, true)
	if err != nil {
		return nil, err
	}
	all, _, err := d.repo.Backups(ctx)
	if err != nil {
		return nil, err
	}
	deleted := []contract.Backup{}
	for _, b := range found {
		if err := d.repo.Delete(ctx, b.ID); err != nil && !errors.Is(err, repository.ErrNotFound) {
			if len(deleted) > 0 {
				err = fmt.Errorf("%w (%d of %d are deleted)", err, len(deleted), len(found))
			}
			return deleted, err
		}
		deleted = append(deleted, d.view(b, all, nil))
	}
	return deleted, nil
}

// volumes counts the volumes that have backups.
func volumes(all []repository.Listed) int {
	ids := map[uuid.UUID]bool{}
	for _, b := range all {
		ids[b.VolumeID] = true
	}
	return len(ids)
}

// newest is the backup of the latest instant; nil if there is none.
func newest(all []repository.Listed) *repository.Listed {
	if len(all) == 0 {
		return nil
	}
	b := slices.MaxFunc(all, func(a, b repository.Listed) int { return a.PointAt.Compare(b.PointAt) })
	return &b
}
