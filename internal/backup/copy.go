package backup

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// Copy brings backups of one record from a repository into another, sealed with its keys and in its chunk size. The
// ids stay. A backup whose base is in the other repository already is copied as what it is, any other as a
// full. Those that are there already are left out; nil if all of them are. repository.ErrDeleted: one was deleted there.
func Copy(ctx context.Context, from, to *repository.Repo, record *repository.Record, ids map[string]bool, o Options) (*repository.Record, error) {
	there := map[string]repository.Listed{}
	all, _, err := to.Backups(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range all {
		there[b.ID] = b
	}
	var sources []*Source
	for _, b := range record.Backups {
		if !ids[b.ID] {
			continue
		}
		if _, ok := there[b.ID]; ok {
			continue
		}
		if deleted, err := to.WasDeleted(ctx, b.ID); deleted || err != nil {
			if err == nil {
				err = repository.ErrDeleted
			}
			return nil, fmt.Errorf("copy backup %s to %s: %w", b.ID, to.URL(), err)
		}
		device, err := from.OpenDevice(ctx, b.ID)
		if err != nil {
			return nil, err
		}
		defer device.Close()
		s := &Source{
			Device: device, Volume: b.Volume, VolumeID: b.VolumeID, Name: b.Source, PointID: b.PointID, PointAt: b.PointAt,
			Consistency: b.Consistency, FreezeTime: b.FreezeTime, Steps: b.Steps, Policy: b.Policy, Labels: b.Labels,
			ID: b.ID, Type: repository.Full, Reason: fmt.Sprintf("copied from repository %s", from.ID()),
		}
		if err := rebase(ctx, from, s, b, there); err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	if len(sources) == 0 {
		return nil, nil
	}
	if to.Sets() {
		oneSet(sources)
	}
	if o.Record, err = recordID(ctx, to, record, sources); err != nil {
		return nil, err
	}
	return Create(ctx, to, sources, o)
}

// rebase makes the copy one of b's type, if the other repository has its base.
func rebase(ctx context.Context, from *repository.Repo, s *Source, b repository.Backup, there map[string]repository.Listed) error {
	base, ok := there[b.Base]
	if !ok || b.Base == "" || base.Doubtful {
		return nil
	}
	older, err := from.Backup(ctx, b.Base)
	if errors.Is(err, repository.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s.Type, s.Base = b.Type, &base.Backup
	s.Changes = func(ctx context.Context, visit func(off, length int64) error) error {
		size := int64(from.ChunkBytes())
		return maptree.Diff(ctx, from.Tree(older.Root), from.Tree(b.Root), func(index uint64, _, _ maptree.Region) error {
			off := int64(index) * size
			if off >= b.SizeBytes {
				return nil
			}
			return visit(off, min(size, (b.SizeBytes+block.Size-1)/block.Size*block.Size-off))
		})
	}
	return nil
}

// oneSet makes fulls of sources whose bases are in different sets.
func oneSet(sources []*Source) {
	same := true
	for _, s := range sources {
		a, b := sources[0].Base, s.Base
		same = same && (a == nil) == (b == nil) && (a == nil || a.Set == b.Set)
	}
	for _, s := range sources {
		if !same {
			s.Type, s.Base, s.Changes = repository.Full, nil, nil
		}
	}
}

// recordID keeps the record's id where all of it is copied, so that of two who copy it at once one fails; but not that which an
// earlier copy had that was interrupted.
func recordID(ctx context.Context, to *repository.Repo, record *repository.Record, sources []*Source) (string, error) {
	if len(sources) < len(record.Backups) {
		return "", nil
	}
	if taken, err := to.Taken(ctx, record.ID); taken || err != nil {
		return "", err
	}
	return record.ID, nil
}
