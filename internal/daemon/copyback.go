package daemon

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/pool"
)

// copyBacks are the jobs that copy rollbacks back into files: one a volume at a time.
type copyBacks struct {
	mu sync.Mutex // taken before that of the jobs
	// jobs has, by volume, the id of the job that looks once more, with mu held, whether anything is left before it ends.
	jobs map[uuid.UUID]string
}

// StartCopyBack starts a job that goes on copying a rollback back into a volume's file, where an earlier one was cancelled
// or has failed; else Rollback does so, and Start for what is left.
func (d *Daemon) StartCopyBack(name string) (contract.Job, error) {
	info, err := d.volumeInfo(name)
	if err != nil {
		return contract.Job{}, err
	}
	if info.Path == "" {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "copy back into volume %q: it lies in the pool, where a rollback leaves nothing to copy", name)
	}
	job, begun, err := d.copyBack(info)
	if err == nil && !begun {
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "copy back into volume %q: job %s does that already", name, job.ID).
			WithHint("wait for it: varve job wait %s", job.ID)
	}
	return job, err
}

// copyBack returns the job that copies back into a volume's file, and whether it was begun here.
func (d *Daemon) copyBack(info pool.VolumeInfo) (doing contract.Job, begun bool, err error) {
	d.copyBacks.mu.Lock()
	defer d.copyBacks.mu.Unlock()
	if id, ok := d.copyBacks.jobs[info.ID]; ok {
		doing, err = d.Job(id)
		return doing, false, err
	}
	doing, err = d.jobs.startBehind(contract.JobCopyBack, info.Name, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		for {
			err := d.copyRest(ctx, j, info.ID)
			if d.copiedBack(info.ID, err) {
				return d.copyBackResult(ctx, info.ID, err)
			}
		}
	})
	if err == nil {
		d.copyBacks.jobs[info.ID] = doing.ID
	}
	return doing, true, err
}

// copiedBack tells whether the job of a volume ends: a rollback that came after it was done is its work too.
func (d *Daemon) copiedBack(id uuid.UUID, err error) bool {
	d.copyBacks.mu.Lock()
	defer d.copyBacks.mu.Unlock()
	if err == nil {
		if info, found := d.volumeByID(id); found && info.CopyingBack {
			return false
		}
	}
	delete(d.copyBacks.jobs, id)
	return true
}

func (d *Daemon) copyRest(ctx context.Context, j *job, id uuid.UUID) error {
	if err := j.pause(ctx); err != nil {
		return err
	}
	info, found := d.volumeByID(id) // it may have been renamed
	if !found {
		return fmt.Errorf("copy back: volume: %w", pool.ErrNotFound)
	}
	return d.pool.CopyBack(ctx, info.Name, func(done float64) {
		j.progress(done)
		_ = j.pause(ctx) // that ctx ended is found out by who copies
	})
}

func (d *Daemon) copyBackResult(ctx context.Context, id uuid.UUID, err error) (*contract.Result, error) {
	if err != nil {
		return nil, err
	}
	info, found := d.volumeByID(id)
	if !found { // deleted as soon as nothing was left
		return nil, nil
	}
	v, err := d.volume(context.WithoutCancel(ctx), info)
	if err != nil {
		return nil, err
	}
	return &contract.Result{Volume: &v}, nil
}

// copyBackAfterRollback returns the job that copies what the volume was rolled back to into its file; nil if there is no need.
func (d *Daemon) copyBackAfterRollback(name string) *contract.Job {
	info, err := d.pool.Volume(name)
	if err != nil || !info.CopyingBack {
		return nil
	}
	job, _, err := d.copyBack(info)
	if err != nil {
		d.note("copy-back", name, "the rollback is done, and is not being copied back into the volume's file: %v; begin it later: varve volume copy-back %s", err, name)
		return nil
	}
	return &job
}

// resumeCopyBacks goes on with what an earlier daemon has left.
func (d *Daemon) resumeCopyBacks() {
	for _, info := range d.pool.Volumes() {
		if !info.CopyingBack {
			continue
		}
		if _, _, err := d.copyBack(info); err != nil {
			d.note("copy-back", info.Name, "a rollback is not being copied back into the volume's file: %v; begin it later: varve volume copy-back %s", err, info.Name)
		}
	}
}

// idleCopyBacks names the volumes into whose files something is to be copied back that no job copies.
func (d *Daemon) idleCopyBacks() (names []string) {
	d.copyBacks.mu.Lock() // first: a job that ends meanwhile would be missing, and its work not
	defer d.copyBacks.mu.Unlock()
	for _, info := range d.pool.Volumes() {
		if _, busy := d.copyBacks.jobs[info.ID]; info.CopyingBack && !busy {
			names = append(names, info.Name)
		}
	}
	return names
}

func (d *Daemon) volumeByID(id uuid.UUID) (pool.VolumeInfo, bool) {
	for _, info := range d.pool.Volumes() {
		if info.ID == id {
			return info, true
		}
	}
	return pool.VolumeInfo{}, false
}
