package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/contract"
)

// working is a Daemon that has jobs and nothing else.
func working(t *testing.T) *Daemon {
	d := &Daemon{jobs: newJobs(time.Now)}
	t.Cleanup(d.jobs.close)
	return d
}

func (d *Daemon) mustStart(t *testing.T, pausable bool, work run) contract.Job {
	t.Helper()
	j, err := d.jobs.start(contract.JobCheck, "it", pausable, work)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (d *Daemon) ended(t *testing.T, id string) contract.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	j, err := d.WaitJob(ctx, id)
	if err != nil || !j.State.Final() {
		t.Fatalf("job %s is %s, %v", id, j.State, err)
	}
	return j
}

func TestJobReportsHowItEnded(t *testing.T) {
	d := working(t)
	for _, c := range []struct {
		err   error
		state contract.JobState
		code  contract.Code
	}{
		{nil, contract.JobDone, ""},
		{contract.Errorf(contract.CodeDamaged, "bad"), contract.JobFailed, contract.CodeDamaged},
		{errors.New("bad"), contract.JobFailed, contract.CodeFailed},
	} {
		j := d.mustStart(t, false, func(_ context.Context, j *job) (*contract.Result, error) {
			j.progress(0.5)
			return &contract.Result{Warnings: []string{"w"}}, c.err
		})
		j = d.ended(t, j.ID)
		if j.State != c.state || j.StartedAt == nil || j.FinishedAt == nil || j.Result == nil {
			t.Errorf("%+v", j)
		}
		if c.err == nil && (j.Progress != 1 || j.Reason != "" || j.Error != nil) {
			t.Errorf("done: %+v", j)
		}
		if c.err != nil && (j.Progress != 0.5 || j.Reason != "bad" || j.Error.Code != c.code) {
			t.Errorf("failed: %+v", j)
		}
	}
}

// TestCancelledInTheQueueStillCleansUp: work that was never started is told so.
func TestCancelledInTheQueueStillCleansUp(t *testing.T) {
	d := working(t)
	release := make(chan struct{})
	for range jobsAtOnce {
		d.mustStart(t, false, func(context.Context, *job) (*contract.Result, error) { <-release; return nil, nil })
	}
	defer close(release)
	told := make(chan error, 1)
	j := d.mustStart(t, false, func(ctx context.Context, _ *job) (*contract.Result, error) {
		told <- ctx.Err()
		return nil, ctx.Err()
	})
	if j.State != contract.JobQueued {
		t.Fatalf("a job beyond the limit is %s", j.State)
	}
	if _, err := d.CancelJob(j.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-told; !errors.Is(err, context.Canceled) {
		t.Fatalf("the work's context: %v", err)
	}
	if j = d.ended(t, j.ID); j.State != contract.JobCancelled || j.StartedAt != nil {
		t.Fatalf("%+v", j)
	}
	_, err := d.CancelJob(j.ID)
	wantCode(t, err, contract.CodeRefused)
}

// TestPauseHoldsUntilResumed: a paused job does no step, and can be cancelled.
func TestPauseHoldsUntilResumed(t *testing.T) { synctest.Test(t, pauseHoldsUntilResumed) }

func pauseHoldsUntilResumed(t *testing.T) {
	d := working(t)
	step, stepped := make(chan struct{}), make(chan error)
	j := d.mustStart(t, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		for range step {
			err := j.pause(ctx)
			stepped <- err
			if err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	step <- struct{}{}
	if err := <-stepped; err != nil {
		t.Fatal(err)
	}
	if j, err := d.PauseJob(j.ID); err != nil || j.State != contract.JobPaused {
		t.Fatalf("%+v, %v", j, err)
	}
	_, err := d.PauseJob(j.ID)
	wantCode(t, err, contract.CodeRefused)
	step <- struct{}{}
	synctest.Wait()
	select {
	case <-stepped:
		t.Fatal("it went on while paused")
	default:
	}
	if j, err := d.ResumeJob(j.ID); err != nil || j.State != contract.JobRunning {
		t.Fatalf("%+v, %v", j, err)
	}
	if err := <-stepped; err != nil {
		t.Fatal(err)
	}
	if _, err := d.PauseJob(j.ID); err != nil {
		t.Fatal(err)
	}
	step <- struct{}{}
	if _, err := d.CancelJob(j.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-stepped; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled while paused: %v", err)
	}
	if j := d.ended(t, j.ID); j.State != contract.JobCancelled || j.Reason == "" {
		t.Fatalf("%+v", j)
	}
}

// TestFinishedJobsAreForgotten: the list is bounded, and loses the oldest first.
func TestFinishedJobsAreForgotten(t *testing.T) {
	d := working(t)
	var last contract.Job
	for range maxFinishedJobs + 10 {
		last = d.mustStart(t, false, func(context.Context, *job) (*contract.Result, error) { return nil, nil })
		d.ended(t, last.ID)
	}
	d.mustStart(t, false, func(context.Context, *job) (*contract.Result, error) { return nil, nil })
	list := d.Jobs()
	if len(list) != maxFinishedJobs+1 {
		t.Fatalf("%d jobs are remembered", len(list))
	}
	if list[len(list)-2].ID != last.ID {
		t.Fatal("the newest was forgotten")
	}
}

func TestNoJobsAfterStop(t *testing.T) {
	d := working(t)
	j := d.mustStart(t, false, func(ctx context.Context, _ *job) (*contract.Result, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	d.StopJobs()
	if j = d.ended(t, j.ID); j.State != contract.JobCancelled {
		t.Fatalf("%+v", j)
	}
	if _, err := d.jobs.start(contract.JobCheck, "it", false, nil); !errors.Is(err, ErrStopping) {
		t.Fatalf("%v", err)
	}
}

// TestCancelledImportLeavesNothing: the volume is never seen, its name is taken
// while the import lasts, and free again afterwards.
func TestCancelledImportLeavesNothing(t *testing.T) {
	dir := scratch(t)
	d := start(t, filepath.Join(dir, "data"))
	file := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(file, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	for range jobsAtOnce { // so that the import waits in the queue
		d.mustStart(t, false, func(context.Context, *job) (*contract.Result, error) { <-release; return nil, nil })
	}
	j, err := d.StartImport(contract.Import{Name: "web", File: file})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.CreateVolume(t.Context(), contract.CreateVolume{Name: "web", Size: 4096})
	wantCode(t, err, contract.CodeRefused)
	_, err = d.Volume(t.Context(), "web")
	wantCode(t, err, contract.CodeNotFound)
	if _, err := d.CancelJob(j.ID); err != nil {
		t.Fatal(err)
	}
	if j = d.ended(t, j.ID); j.State != contract.JobCancelled {
		t.Fatalf("%+v", j)
	}
	close(release)
	if v, err := d.Volumes(t.Context()); err != nil || len(v) != 0 {
		t.Fatalf("left: %+v, %v", v, err)
	}
	if j, err = d.StartImport(contract.Import{Name: "web", File: file}); err != nil {
		t.Fatal(err)
	}
	if j = d.ended(t, j.ID); j.State != contract.JobDone || j.Result.Volume.Name != "web" {
		t.Fatalf("%+v", j)
	}
}

// TestCancelledExportLeavesNothing: neither a file nor the snapshot it was made from.
func TestCancelledExportLeavesNothing(t *testing.T) {
	dir := scratch(t)
	d := start(t, filepath.Join(dir, "data"))
	d.mustCreate(t, "web")
	release := make(chan struct{})
	for range jobsAtOnce {
		d.mustStart(t, false, func(context.Context, *job) (*contract.Result, error) { <-release; return nil, nil })
	}
	file := filepath.Join(dir, "out.img")
	j, err := d.StartExport(contract.ExportFile{Source: "web", File: file, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.CancelJob(j.ID); err != nil {
		t.Fatal(err)
	}
	if j = d.ended(t, j.ID); j.State != contract.JobCancelled {
		t.Fatalf("%+v", j)
	}
	close(release)
	check := func(wantFiles int) {
		t.Helper()
		if files, err := os.ReadDir(dir); err != nil || len(files) != wantFiles {
			t.Fatalf("%v, %v", files, err)
		}
		if s, err := d.Snapshots(t.Context(), ""); err != nil || len(s) != 0 {
			t.Fatalf("snapshots left: %+v, %v", s, err)
		}
	}
	check(1)
	if j, err = d.StartExport(contract.ExportFile{Source: "web", File: file, Format: "raw"}); err != nil {
		t.Fatal(err)
	}
	if j = d.ended(t, j.ID); j.State != contract.JobDone || j.Result.Export.Size != 1<<20 {
		t.Fatalf("%+v", j)
	}
	check(2)
}
