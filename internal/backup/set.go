package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"varve/internal/repository"
)

// errSets means that the bases of a group are in several sets: ChooseGroup never lets that happen.
var errSets = errors.New("the bases belong to different sets")

// setOf is the set that a record belongs to, in scope set: that of its bases, or of an interrupted attempt, or a new one.
func setOf(ctx context.Context, repo *repository.Repo, sources []*Source) (uuid.UUID, error) {
	if !repo.Sets() {
		return uuid.Nil, nil
	}
	var volumes []uuid.UUID
	var set uuid.UUID
	for i, s := range sources {
		of := uuid.Nil
		if s.Base != nil {
			of = s.Base.Set
		}
		if i > 0 && of != set {
			return uuid.Nil, fmt.Errorf("back up %s: %w", s.Name, errSets)
		}
		set = of
		volumes = append(volumes, s.VolumeID)
	}
	if set != uuid.Nil {
		return set, nil
	}
	set, err := interruptedSet(ctx, repo, volumes)
	if err != nil || set != uuid.Nil {
		return set, err
	}
	return uuid.New(), nil
}

// interruptedSet is that of the newest attempt at the same volumes that left no record; sets of records are never shared.
func interruptedSet(ctx context.Context, repo *repository.Repo, volumes []uuid.UUID) (uuid.UUID, error) {
	all, _, err := repo.Records(ctx)
	if err != nil {
		return uuid.Nil, err
	}
	taken := map[uuid.UUID]bool{uuid.Nil: true}
	for _, r := range all {
		for _, b := range r.Backups {
			taken[b.Set] = true
		}
	}
	var newest repository.CandidatePart
	err = repo.Candidates(ctx, func(c repository.CandidatePart) error {
		if !taken[c.Set] && slices.Equal(c.Volumes, volumes) && c.Modified.After(newest.Modified) {
			newest = c
		}
		return nil
	})
	return newest.Set, err
}
