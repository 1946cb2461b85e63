package depot

import (
	"context"
	"time"

	"varve/internal/contract"
	"varve/internal/objects"
	"varve/internal/repository"
)

// Checker looks for damage in a repository and mends what can be; it fills in what it found, and fails only if it could not go on.
type Checker func(ctx context.Context, repo *repository.Repo, r contract.CheckRepository, found *contract.RepositoryCheck, progress Progress) error

// SealedChecker is a Checker that has no key.
type SealedChecker func(ctx context.Context, st objects.Store, r contract.CheckRepository, found *contract.RepositoryCheck, progress Progress) error

// Check looks for damage and mends what can be. The error, with the code of damage, says so if something is lost; then the result tells what.
func (d *Depot) Check(ctx context.Context, r contract.CheckRepository, progress Progress) (contract.RepositoryCheck, error) {
	out := contract.RepositoryCheck{Repository: d.name, Sealed: r.Sealed, Damage: []contract.DamagedObject{}, Harmed: []contract.HarmedBackup{}}
	began := time.Now()
	if err := checker(ctx, d.repo, r, &out, monotone(progress)); err != nil {
		return out, err
	}
	out.Seconds = seconds(began)
	return out, checkError(out)
}

// CheckSealed is Check without a key, of a repository that need not be open: envelopes are looked at, and mended, and nothing else.
func CheckSealed(ctx context.Context, a contract.RepositoryAccess, r contract.CheckRepository, progress Progress) (contract.RepositoryCheck, error) {
	out := contract.RepositoryCheck{Repository: a.URL, Sealed: true, Damage: []contract.DamagedObject{}, Harmed: []contract.HarmedBackup{}}
	st, err := openStore(ctx, a, Options{}, false)
	if err != nil {
		return out, err
	}
	defer st.Close()
	began := time.Now()
	if err := sealedChecker(ctx, st, r, &out, monotone(progress)); err != nil {
		return out, err
	}
	out.Seconds = seconds(began)
	return out, checkError(out)
}

func checkError(c contract.RepositoryCheck) error {
	if !c.Lost() {
		return nil
	}
	lost := 0
	for _, o := range c.Damage {
		if o.State == contract.ObjectLost {
			lost++
		}
	}
	return contract.Errorf(contract.CodeDamaged, "repository %s: %d objects are lost, which harms %d backups", c.Repository, lost, len(c.Harmed)).
		WithHint("a backup stores again what is lost if its source still has it; to restore what is left: varve backup restore --skip-damaged")
}
