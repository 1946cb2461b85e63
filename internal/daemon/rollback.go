package daemon

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
)

// Rollback makes the snapshot the content of its volume; the present is kept as
// an automatic snapshot. Into the file of an inplace volume the content is copied
// back by a job, which nobody has to wait for. A connection that has written stands in the way unless
// force, which disconnects it and waits for that.
func (d *Daemon) Rollback(ctx context.Context, name string, force bool) (contract.Rollback, error) {
	ref, info, err := d.rollable(name)
	if err != nil {
		return contract.Rollback{}, err
	}
	if isCopy(info) {
		return contract.Rollback{}, contract.Errorf(contract.CodeUsage, "roll back to %s: it is a copy, whose content has to be copied into the volume", ref).
			WithHint("varve snapshot rollback has a job do that; so does POST /v1/snapshots/%s/rollback-ranges without ranges", ref)
	}
	if force {
		d.sessions.disconnect(ref.Volume, true, "the volume is rolled back")
	}
	var kept pool.SnapshotInfo
	var took pool.Timing
	err = d.sessions.unlessInUse(ctx, func() (err error) {
		kept, took, err = d.pool.Rollback(ctx, ref)
		return err
	}, ref.Volume)
	if err != nil {
		return contract.Rollback{}, rollbackHint(err, ref)
	}
	return d.rolledBack(ctx, ref, kept, took)
}

// rollable finds the snapshot that a volume is to be rolled back to.
func (d *Daemon) rollable(name string) (pool.SnapshotRef, pool.SnapshotInfo, error) {
	ref, err := parseRef(name)
	if err != nil {
		return ref, pool.SnapshotInfo{}, err
	}
	info, err := d.snapshotInfo(ref)
	if err == nil && info.Suspect && techniqueOf(info) == contract.TechniqueCOW { // nobody is cut off for what cannot be
		err = contract.Errorf(contract.CodeDamaged,
			"roll back to %s: somebody else has changed the volume's file since, and what the snapshot has in it may not be what it was", ref).
			WithHint("read what was kept before that over NBD: the export %s; the rest of it is I/O errors", ref)
	}
	return ref, info, err
}

func rollbackHint(err error, ref pool.SnapshotRef) error {
	err = hinted(err, block.ErrReadOnly, "copy it out instead, to another volume or file: varve volume create NAME --from %[1]s, or varve volume export %[1]s FILE", ref)
	return hinted(err, pool.ErrInUse, "it would not notice that the content changes: disconnect it first, or have that done: --force")
}

// rolledBack tells what a rollback did, and sees to it that it is copied back.
func (d *Daemon) rolledBack(ctx context.Context, ref pool.SnapshotRef, kept pool.SnapshotInfo, took pool.Timing) (contract.Rollback, error) {
	d.snapshotsChanged()
	ref.Volume = kept.Volume // it may have been renamed
	copyBack := d.copyBackAfterRollback(ref.Volume)
	keptAs, err := d.snapshot(ctx, kept)
	if err != nil {
		return contract.Rollback{}, fmt.Errorf("rolled back, but the snapshot that keeps the present cannot be described: %w", err)
	}
	return contract.Rollback{
		Volume: ref.Volume, Snapshot: ref.String(), Kept: keptAs,
		PauseMS: contract.Milliseconds(took.Pause), DurableMS: contract.Milliseconds(took.Durable), CopyBack: copyBack,
	}, nil
}

// StartRollbackRanges starts a job that makes ranges of a volume what they are in a snapshot, or, if there are none, all of it what a copy
// holds; at once for all who read it when it is done. The present is kept as Rollback does. What stands in the way of that does so when it begins and when it ends. A job that ends
// early has changed nothing.
func (d *Daemon) StartRollbackRanges(ctx context.Context, name string, r contract.RollBackRanges) (contract.Job, error) {
	ref, info, err := d.rollable(name)
	if err != nil {
		return contract.Job{}, err
	}
	ranges := make([]pool.Range, len(r.Ranges))
	for i, e := range r.Ranges {
		ranges[i] = pool.Range{Offset: e.Offset, Length: e.Length}
	}
	if len(ranges) == 0 && isCopy(info) {
		ranges = nil // all of it
	}
	if err := d.pool.CheckRollback(ref, ranges); err != nil {
		return contract.Job{}, rollbackHint(err, ref)
	}
	if err := d.unlessRollingBack(ref.Volume, info.VolumeID); err != nil {
		return contract.Job{}, err
	}
	free := func(ctx context.Context) error {
		if r.Force {
			d.sessions.disconnect(ref.Volume, true, "the volume is rolled back")
		}
		err := d.sessions.unlessInUse(ctx, func() error { return d.pool.CheckUnwritten(ref.Volume) }, ref.Volume)
		return rollbackHint(err, ref)
	}
	if err := free(ctx); err != nil {
		return contract.Job{}, err
	}
	job, err := d.jobs.start(contract.JobRollback, ref.String(), true, func(ctx context.Context, j *job) (*contract.Result, error) {
		if err := j.pause(ctx); err != nil {
			return nil, err
		}
		if now, found := d.volumeByID(info.VolumeID); found { // it may have been renamed
			ref.Volume = now.Name
		}
		if err := free(ctx); err != nil {
			return nil, err
		}
		progress := func(part float64) error {
			j.progress(part)
			return j.pause(ctx)
		}
		rollBack := func() (pool.PutBack, pool.Timing, error) { return d.pool.RollbackRanges(ctx, ref, ranges, progress) }
		if ranges == nil {
			rollBack = func() (pool.PutBack, pool.Timing, error) { return d.pool.RollbackCopy(ctx, ref, progress) }
		}
		done, took, err := rollBack()
		if err != nil {
			return nil, hinted(err, pool.ErrInUse, "nothing is rolled back; see that nobody writes to the volume meanwhile, and do it again")
		}
		out, err := d.rolledBack(context.WithoutCancel(ctx), ref, done.Kept, took)
		if err != nil {
			return nil, err
		}
		out.PutBackBytes = done.Bytes
		if ranges != nil {
			for _, r := range done.Ranges {
				out.Ranges = append(out.Ranges, contract.Extent{Offset: r.Offset, Length: r.Length})
			}
		}
		return &contract.Result{Rollback: &out}, nil
	})
	d.jobs.rollsBack(job.ID, info.VolumeID)
	return job, err
}

// unlessRollingBack refuses what a job that rolls the volume back stands in the way of.
func (d *Daemon) unlessRollingBack(name string, volume uuid.UUID) error {
	if job := d.jobs.rollingBack(volume); job != "" {
		return contract.Errorf(contract.CodeRefused, "volume %q: job %s rolls it back", name, job).
			WithHint("wait for it, or cancel it: varve job wait %[1]s, or varve job cancel %[1]s", job)
	}
	return nil
}
