package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/pool"
)

// copies are the jobs that make copies of snapshots, by the snapshots' ids: one each.
type copies struct {
	mu   sync.Mutex // taken before that of the jobs
	jobs map[uuid.UUID]string
}

// errDeleting is the cause of a copying that ends because its snapshot is to be deleted.
var errDeleting = errors.New("its snapshot is to be deleted")

// copySpec is what r asks for a copy; nil if it asks for none.
func copySpec(r contract.CreateSnapshot) *pool.CopySpec {
	spec := &pool.CopySpec{Path: r.To, Replace: r.Force}
	switch r.Technique {
	case contract.TechniqueCOWCopy:
		spec.Technique = pool.CowCopy
	case contract.TechniqueClone:
		spec.Technique = pool.Clone
	default:
		return nil
	}
	return spec
}

// StartCopy starts a job that goes on with the copy of a snapshot, where an earlier one has failed; else
// CreateSnapshots does so, and Start for what is left.
func (d *Daemon) StartCopy(name string) (contract.Job, error) {
	ref, err := parseRef(name)
	if err != nil {
		return contract.Job{}, err
	}
	info, err := d.snapshotInfo(ref)
	switch {
	case err != nil:
		return contract.Job{}, err
	case info.Copy == nil:
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "copy snapshot %q: it was not made to become a copy", ref).
			WithHint("make one that is: varve snapshot create %s --name NAME --technique cow-copy", ref.Volume)
	case info.Copy.Finished:
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "copy snapshot %q: it is a copy already", ref)
	}
	job, begun, err := d.copy(info)
	if err == nil && !begun {
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "copy snapshot %q: job %s does that already", ref, job.ID).
			WithHint("wait for it: varve job wait %s", job.ID)
	}
	return job, err
}

// startCopies starts the jobs of snapshots that were just made. If that cannot be, none of them is left.
func (d *Daemon) startCopies(ctx context.Context, infos []pool.SnapshotInfo) error {
	for _, info := range infos {
		_, _, err := d.copy(info)
		if err == nil {
			continue
		}
		for _, made := range infos {
			ref := pool.SnapshotRef{Volume: made.Volume, Name: made.Name}
			if e := d.stopCopy(ctx, made); e != nil {
				return errors.Join(err, e)
			}
			e := d.pool.CancelCopy(context.WithoutCancel(ctx), made.ID)
			if e == nil && made.Copy.Technique == pool.CowCopy {
				e = d.pool.DeleteSnapshots(context.WithoutCancel(ctx), []pool.SnapshotRef{ref})
			}
			if e != nil && !isGone(e) {
				err = errors.Join(err, e)
			}
		}
		return err
	}
	return nil
}

// copy returns the job that makes the copy of a snapshot, and whether it was begun here.
func (d *Daemon) copy(info pool.SnapshotInfo) (doing contract.Job, begun bool, err error) {
	d.copies.mu.Lock()
	defer d.copies.mu.Unlock()
	if id, ok := d.copies.jobs[info.ID]; ok {
		doing, err = d.Job(id)
		return doing, false, err
	}
	ref := pool.SnapshotRef{Volume: info.Volume, Name: info.Name}.String()
	doing, err = d.jobs.startBehind(contract.JobCopy, ref, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		defer func() {
			d.copies.mu.Lock()
			defer d.copies.mu.Unlock()
			delete(d.copies.jobs, info.ID)
		}()
		return d.makeCopy(ctx, j, info)
	})
	if err == nil {
		d.copies.jobs[info.ID] = doing.ID
	}
	return doing, true, err
}

func (d *Daemon) makeCopy(ctx context.Context, j *job, info pool.SnapshotInfo) (*contract.Result, error) {
	copied, err := d.pool.Copy(ctx, info.ID, pool.CopyOptions{Progress: func(ctx context.Context, done, total int64) error {
		if j.fraction(done, total); done == total { // it may wait long for readers of the snapshot
			j.giveWay()
		}
		return j.pause(ctx)
	}})
	ref := pool.SnapshotRef{Volume: info.Volume, Name: info.Name}
	cause := context.Cause(ctx)
	clone := info.Copy.Technique == pool.Clone
	switch {
	case err == nil:
		if !clone {
			d.note("copied", ref.String(), "it is a full copy now, and needs volume %q no more", copied.Volume)
		}
		s, err := d.snapshot(context.WithoutCancel(ctx), copied)
		if err != nil {
			return nil, err
		}
		return &contract.Result{Snapshot: &s}, nil
	case errors.Is(cause, ErrStopping), errors.Is(cause, errDeleting):
		return nil, err // gone on with, or deleted
	case clone || errors.Is(cause, errCancelled): // nothing half-made; the snapshot that a cow-copy is stays
		if e := d.pool.CancelCopy(context.WithoutCancel(ctx), info.ID); e != nil && !isGone(e) {
			d.note("copy", ref.String(), "what there is of it cannot be removed, and is gone on with when the daemon starts: %v", e)
		}
		d.timings.forget(info.ID.String())
	default:
		err = Describe(err).WithHint("it stays a snapshot that needs its volume; to go on: varve snapshot copy %s", ref)
	}
	return nil, err
}

// resumeCopies goes on with what an earlier daemon has left.
func (d *Daemon) resumeCopies() { d.resumeCopiesOf(func(uuid.UUID) bool { return true }) }

func (d *Daemon) resumeCopiesOf(these func(id uuid.UUID) bool) {
	for _, info := range d.pool.Copying() {
		if !these(info.ID) {
			continue
		}
		if _, _, err := d.copy(info); err != nil {
			d.note("copy", info.Volume+"@"+info.Name, "it is not being copied: %v", err)
		}
	}
}

// copiedBy is the id of the job that makes the copy of a snapshot; empty if none does.
func (d *Daemon) copiedBy(id uuid.UUID) string {
	d.copies.mu.Lock()
	defer d.copies.mu.Unlock()
	return d.copies.jobs[id]
}

// stopCopy ends the copying of a snapshot that is to be deleted, and waits until it has.
func (d *Daemon) stopCopy(ctx context.Context, info pool.SnapshotInfo) error {
	id := d.copiedBy(info.ID)
	if id == "" {
		return nil
	}
	d.jobs.cancel(id, errDeleting)
	job, err := d.WaitJob(ctx, id)
	if err == nil && !job.State.Final() {
		err = fmt.Errorf("stop job %s: %w", id, ctx.Err())
	}
	return err
}

// stopCopies is stopCopy for several, and returns what has the copying go on of those that are not deleted after all.
func (d *Daemon) stopCopies(ctx context.Context, infos []pool.SnapshotInfo) (resume func(), err error) {
	stopped := map[uuid.UUID]bool{}
	for _, info := range infos {
		if d.copiedBy(info.ID) == "" {
			continue
		}
		stopped[info.ID] = true
		if err = d.stopCopy(ctx, info); err != nil {
			break
		}
	}
	return func() { d.resumeCopiesOf(func(id uuid.UUID) bool { return stopped[id] }) }, err
}

// idleCopies names the snapshots that were to become copies and that no job copies.
func (d *Daemon) idleCopies() (names []string) {
	for _, info := range d.pool.Copying() {
		if d.copiedBy(info.ID) == "" {
			names = append(names, info.Volume+"@"+info.Name)
		}
	}
	return names
}
