package cli

import (
	"context"
	"errors"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"varve/internal/contract"
)

const (
	// progressEvery is how often a bar moves.
	progressEvery = 200 * time.Millisecond
	// patience is how long one request waits for a job where no bar is drawn.
	patience = 30 * time.Second
	// barSteps is the resolution of a bar.
	barSteps = 1000
)

// await waits for a job of this command and passes its error on. An interrupt
// cancels the job and waits for it to clean up.
func (t *terminal) await(job contract.Job) (contract.Job, error) {
	job, err := t.follow(job)
	if t.ctx.Err() != nil && !job.State.Final() {
		return job, t.abandon(job)
	}
	return job, err
}

// follow waits for a job, with a bar on a terminal, and passes its error on.
func (t *terminal) follow(job contract.Job) (contract.Job, error) {
	every := patience
	if t.chatty {
		every = progressEvery
	}
	draw, done := t.bar(job.Kind + " " + job.Object)
	defer done()
	for !job.State.Final() {
		next, err := t.client.Job(t.ctx, job.ID, every)
		if err != nil {
			return job, forgotten(job, err)
		}
		job = next
		draw(job.Progress)
	}
	return job, outcome(job)
}

// forgotten tells of a job that was there just now, and is not, why that is.
func forgotten(job contract.Job, err error) error {
	var told *contract.Error
	if !errors.As(err, &told) || told.Code != contract.CodeNotFound {
		return err
	}
	return contract.Errorf(contract.CodeFailed, "%s of %s: the daemon was started again meanwhile, and has no job %s", job.Kind, job.Object, job.ID).
		WithHint("see whether it was done; if not, do it again")
}

// bar draws how much is done of something, from 0 to 1, if somebody looks.
func (t *terminal) bar(label string) (draw func(float64), done func()) {
	if !t.chatty {
		return func(float64) {}, func() {}
	}
	bars := mpb.New(mpb.WithOutput(t.stderr), mpb.WithWidth(40))
	bar := bars.AddBar(barSteps, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(label+" ")),
		mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.Elapsed(decor.ET_STYLE_GO, decor.WC{W: 6})))
	return func(done float64) { bar.SetCurrent(int64(done * barSteps)) }, func() {
		bar.Abort(true)
		bars.Wait()
	}
}

// outcome is what a finished job's command ends with.
func outcome(job contract.Job) error {
	switch job.State {
	case contract.JobFailed:
		return job.Error
	case contract.JobCancelled:
		return contract.Errorf(contract.CodeFailed, "%s of %s: %s", job.Kind, job.Object, job.Reason)
	default:
		return nil
	}
}

// abandon cancels a job whose command was interrupted.
func (t *terminal) abandon(job contract.Job) error {
	ctx := context.WithoutCancel(t.ctx)
	if _, err := t.client.CancelJob(ctx, job.ID); err != nil {
		var told *contract.Error
		if !errors.As(err, &told) || told.Code != contract.CodeRefused {
			return err
		}
	}
	for !job.State.Final() {
		var err error
		if job, err = t.client.Job(ctx, job.ID, patience); err != nil {
			return err
		}
	}
	return contract.Errorf(contract.CodeFailed, "interrupted: %s of %s is %s", job.Kind, job.Object, job.State)
}

// finish waits for a job and prints what show makes of its result; with
// --detach it prints the job instead.
func (t *terminal) finish(job contract.Job, show func(*contract.Result) error) error {
	if t.Detach {
		return t.print(job, func(w *table) { w.row(job.ID) })
	}
	job, err := t.await(job)
	if job.Result != nil {
		t.warn(job.Result.Warnings...)
		if shown := show(job.Result); err == nil {
			err = shown
		}
	}
	return err
}
