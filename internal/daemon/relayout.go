package daemon

import (
	"context"

	"varve/internal/contract"
	"varve/internal/pool"
)

// StartRelayout starts a job that rewrites what a volume has for itself in order. A
// job that ends early leaves the volume partly in order; another one goes on from there. The result tells
// what was done also where it fails, with code damaged if blocks cannot be read.
func (d *Daemon) StartRelayout(name string) (contract.Job, error) {
	info, err := d.volumeInfo(name)
	if err != nil {
		return contract.Job{}, err
	}
	if info.Path != "" {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "relayout volume %q: it lies in a file of its own, where every block has its place already", name)
	}
	for _, j := range d.Jobs() {
		if j.Kind == contract.JobRelayout && j.Object == name && !j.State.Final() {
			return contract.Job{}, contract.Errorf(contract.CodeRefused, "relayout volume %q: job %s does that already", name, j.ID).
				WithHint("wait for it: varve job wait %s", j.ID)
		}
	}
	return d.jobs.start(contract.JobRelayout, name, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		done, err := d.pool.Relayout(ctx, name, pool.RelayoutOptions{
			Progress: func(done, total int64) error {
				j.fraction(done, total)
				return j.pause(ctx)
			},
		})
		return &contract.Result{Relayout: &contract.Relayout{
			Volume: name, MovedBytes: done.Moved, OrderedBytes: done.Ordered, SharedBytes: done.Shared,
			ChangedBytes: done.Changed, DamagedBytes: done.Damaged,
		}}, err
	})
}
