package daemon

import (
	"context"
	"fmt"

	"varve/internal/contract"
	"varve/internal/depot"
)

// damagedEvent tells that backups are damaged.
const damagedEvent = "backup-damaged"

// VerifyBackups starts a job that reads backups as a restore does, into nothing. It fails with code damaged, and its result says what, if
// anything is lost.
func (d *Daemon) VerifyBackups(ctx context.Context, r contract.VerifyBackups) (contract.Job, error) {
	if len(r.Backups) == 0 {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "verify: no backup is named")
	}
	found, err := d.findAll(ctx, r.Repo, r.Backups, anyOf)
	if err != nil {
		return contract.Job{}, err
	}
	object := found[0].ids[0]
	if n := len(r.Backups); n > 1 {
		object = count(n, "backup")
	}
	known := make([]*knownRepository, len(found))
	for i, one := range found {
		known[i] = one.u.known
	}
	found.done()
	return d.jobs.startRemote(contract.JobVerify, object, func(ctx context.Context, j *job) (*contract.Result, error) {
		out := []contract.BackupVerification{}
		var bad error
		for i, one := range found {
			u, err := d.repositories.limited(ctx, known[i], 0, r.Limit)
			if err != nil {
				return nil, err
			}
			verified, err := u.Verify(ctx, one.ids, part(j, i, len(found)))
			u.done()
			out = append(out, verified...)
			if err != nil && (ctx.Err() != nil || Describe(err).Code != contract.CodeDamaged) {
				return nil, err
			}
			if err != nil {
				bad = err
				d.note(damagedEvent, u.Name(), "verification: %v", err)
			}
		}
		return &contract.Result{Verified: out}, bad
	})
}

// part is the progress of one of several pieces of work.
func part(j *job, i, n int) depot.Progress {
	return func(done, total int64) { j.progress((float64(i) + float64(done)/float64(max(total, 1))) / float64(n)) }
}

// CheckRepository starts a job that looks for damage in a repository, and mends what can be; sealed, without a key. It fails with code
// damaged, and its result says what, if anything is lost.
func (d *Daemon) CheckRepository(_ context.Context, name string, r contract.CheckRepository) (contract.Job, error) {
	k, err := d.repositories.named(name)
	if err != nil {
		return contract.Job{}, err
	}
	return d.jobs.startRemote(contract.JobRepositoryCheck, name, func(ctx context.Context, j *job) (*contract.Result, error) {
		var found contract.RepositoryCheck
		if r.Sealed {
			e := d.repositories.now(k)
			found, err = depot.CheckSealed(ctx, e.Access, r, j.fraction)
			found.Repository = e.Name
		} else {
			u, failed := d.repositories.use(ctx, k)
			if failed != nil {
				return nil, failed
			}
			defer u.done()
			found, err = u.Check(ctx, r, j.fraction)
		}
		if err != nil && !found.Lost() {
			return nil, err
		}
		if err != nil {
			d.note(damagedEvent, name, "check: %v", err)
		}
		return &contract.Result{RepoCheck: &found}, err
	})
}

// PruneRepository starts a job that gives back the space of what nothing needs.
func (d *Daemon) PruneRepository(_ context.Context, name string, r contract.PruneRepository) (contract.Job, error) {
	return d.onRepository(contract.JobRepositoryPrune, name, func(ctx context.Context, j *job, u *use) (*contract.Result, error) {
		done, err := u.Prune(ctx, r, j.fraction)
		if err != nil {
			return nil, err
		}
		return &contract.Result{RepoPrune: &done}, nil
	})
}

// onRepository starts a job that works on a repository.
func (d *Daemon) onRepository(kind, name string, work func(ctx context.Context, j *job, u *use) (*contract.Result, error)) (contract.Job, error) {
	k, err := d.repositories.named(name)
	if err != nil {
		return contract.Job{}, err
	}
	return d.jobs.startRemote(kind, name, func(ctx context.Context, j *job) (*contract.Result, error) {
		u, err := d.repositories.use(ctx, k)
		if err != nil {
			return nil, err
		}
		defer u.done()
		return work(ctx, j, u)
	})
}

// CopyRepository starts a job that copies backups from one repository to another.
func (d *Daemon) CopyRepository(_ context.Context, name string, r contract.CopyRepository) (contract.Job, error) {
	from, err := d.repositories.named(name)
	if err != nil {
		return contract.Job{}, err
	}
	to, err := d.repositories.named(r.To)
	if err != nil {
		return contract.Job{}, err
	}
	if from == to {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "copy %s to %s: they are the same repository", name, r.To)
	}
	return d.jobs.startRemote(contract.JobRepositoryCopy, name+" to "+r.To, func(ctx context.Context, j *job) (*contract.Result, error) {
		a, err := d.repositories.limited(ctx, from, 0, r.Limit)
		if err != nil {
			return nil, err
		}
		defer a.done()
		b, err := d.repositories.limited(ctx, to, r.Limit, 0)
		if err != nil {
			return nil, err
		}
		defer b.done()
		done, err := depot.Copy(ctx, a.Depot, b.Depot, r, j.fraction)
		if err != nil {
			return nil, fmt.Errorf("copy %s to %s: %w", name, r.To, err)
		}
		return &contract.Result{RepoCopy: &done}, nil
	})
}
