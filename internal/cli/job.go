package cli

import (
	"fmt"

	"varve/internal/contract"
)

type jobCommands struct {
	List   jobList   `cmd:"" help:"List jobs, those finished lately too."`
	Show   jobShow   `cmd:"" help:"Show a job."`
	Wait   jobWait   `cmd:"" help:"Wait for a job and end as it ended."`
	Cancel jobCancel `cmd:"" help:"Have a job stop and undo what it did (but for what a relayout has moved or a copy-back has copied); returns when it has."`
	Pause  jobPause  `cmd:"" help:"Hold a running import, export, relayout, copy, copy-back or rollback."`
	Resume jobResume `cmd:"" help:"Let a paused job go on."`
}

type jobList struct{}

// Run lists jobs.
func (jobList) Run(t *terminal) error {
	jobs, err := t.client.Jobs(t.ctx)
	if err != nil {
		return err
	}
	return t.print(jobs, func(w *table) {
		w.row("ID", "KIND", "OBJECT", "STATE", "PROGRESS", "STARTED", "FINISHED", "REASON")
		for _, j := range jobs {
			w.row(j.ID, j.Kind, j.Object, j.State, percent(j.Progress), localTime(j.StartedAt), localTime(j.FinishedAt), j.Reason)
		}
	})
}

func percent(done float64) string { return fmt.Sprintf("%.0f%%", done*100) }

type jobShow struct {
	ID string `arg:"" name:"id" help:"Job."`
}

// Run shows a job.
func (c jobShow) Run(t *terminal) error {
	job, err := t.client.Job(t.ctx, c.ID, 0)
	if err != nil {
		return err
	}
	return t.showJob(job)
}

func (t *terminal) showJob(j contract.Job) error {
	return t.print(j, func(w *table) {
		w.row("id", j.ID)
		w.row("kind", j.Kind)
		w.row("object", j.Object)
		w.row("state", j.State)
		w.row("progress", percent(j.Progress))
		w.row("created", localTime(&j.CreatedAt))
		w.field("started", localTime(j.StartedAt))
		w.field("finished", localTime(j.FinishedAt))
		w.field("reason", j.Reason)
		if j.Error != nil {
			w.field("hint", j.Error.Hint)
		}
		if j.Result != nil {
			w.row()
			drawResult(w, j.Kind, j.Result)
		}
	})
}

// drawResult shows what came of a job, as the command that began it would have.
func drawResult(w *table, kind string, r *contract.Result) {
	switch {
	case r.Restore != nil:
		drawRestored(w, r.Restore)
	case r.Backups != nil:
		drawBackups(w, r.Backups, false)
	case r.Verified != nil:
		drawVerified(w, r.Verified)
	case r.RepoCheck != nil:
		drawRepoCheck(w, r.RepoCheck)
	case r.RepoPrune != nil:
		drawPrune(w, r.RepoPrune)
	case r.RepoCopy != nil:
		drawCopied(w, r.RepoCopy)
	case r.Volume != nil:
		drawVolume(w, *r.Volume)
	case r.Snapshot != nil:
		drawSnapshot(w, *r.Snapshot)
	case r.Export != nil:
		drawExport(w, r.Export)
	case r.Relayout != nil:
		drawRelayout(w, r.Relayout)
	case r.Rollback != nil:
		drawRollback(w, r.Rollback)
	case r.Reclaim != nil:
		drawReclaim(w, r.Reclaim)
	case r.Check != nil:
		drawCheck(w, r.Check, kind == contract.JobRepair)
	}
}

type jobWait struct {
	ID string `arg:"" name:"id" help:"Job."`
}

// Run waits for a job. An interrupt ends the waiting, not the job.
func (c jobWait) Run(t *terminal) error {
	job, err := t.client.Job(t.ctx, c.ID, 0)
	if err != nil {
		return err
	}
	job, err = t.follow(job)
	if job.State.Final() {
		if shown := t.showJob(job); err == nil {
			err = shown
		}
	}
	return err
}

type jobCancel struct {
	ID string `arg:"" name:"id" help:"Job."`
}

// Run cancels a job and waits until it has cleaned up.
func (c jobCancel) Run(t *terminal) error {
	job, err := t.client.CancelJob(t.ctx, c.ID)
	for err == nil && !job.State.Final() {
		job, err = t.client.Job(t.ctx, job.ID, patience)
	}
	if err != nil {
		return err
	}
	return t.showJob(job)
}

type jobPause struct {
	ID string `arg:"" name:"id" help:"Job."`
}

// Run pauses a job.
func (c jobPause) Run(t *terminal) error {
	job, err := t.client.PauseJob(t.ctx, c.ID)
	if err != nil {
		return err
	}
	return t.showJob(job)
}

type jobResume struct {
	ID string `arg:"" name:"id" help:"Job."`
}

// Run resumes a job.
func (c jobResume) Run(t *terminal) error {
	job, err := t.client.ResumeJob(t.ctx, c.ID)
	if err != nil {
		return err
	}
	return t.showJob(job)
}
