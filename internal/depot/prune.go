package depot

import (
	"context"
	"time"

	"varve/internal/contract"
	"varve/internal/repository"
)

// Pruner gives back what nothing needs; it fills in what it did.
type Pruner func(ctx context.Context, repo *repository.Repo, r contract.PruneRepository, done *contract.RepositoryPrune, progress Progress) error

// Prune gives back the space of what nothing needs any more and whose grace is over.
func (d *Depot) Prune(ctx context.Context, r contract.PruneRepository, progress Progress) (contract.RepositoryPrune, error) {
	out := contract.RepositoryPrune{Repository: d.name, DryRun: r.DryRun}
	began := time.Now()
	err := pruner(ctx, d.repo, r, &out, monotone(progress))
	out.Seconds = seconds(began)
	return out, err
}
