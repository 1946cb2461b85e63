package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
)

const (
	// jobsAtOnce is how many jobs run that somebody waits for, and behindAtOnce how many that nobody needs to wait for; more
	// wait in the queue. None waits for those of another kind.
	jobsAtOnce   = 2
	behindAtOnce = 4
	// remoteAtOnce is how many jobs run that work on repositories, which may be slow.
	remoteAtOnce = 2
	// maxQueuedJobs bounds the queue.
	maxQueuedJobs = 1000
	// maxFinishedJobs is how many finished jobs are remembered.
	maxFinishedJobs = 200
)

// errCancelled is the cause of a job's context when somebody cancelled it.
var errCancelled = errors.New("cancelled")

// jobs runs long work, a few at a time, and remembers what came of it.
type jobs struct {
	now    func() time.Time
	slots  chan struct{}
	behind chan struct{}
	remote chan struct{}
	ctx    context.Context // of all jobs; cancelled by stop
	stop   context.CancelCauseFunc
	wait   sync.WaitGroup

	mu   sync.Mutex // guards the jobs' fields too
	list []*job     // oldest first
}

// job is one piece of long work.
type job struct {
	owner    *jobs
	pausable bool
	cancel   context.CancelCauseFunc
	giveWay  func()    // lets another job run, when this one has nothing to do but wait; of the work alone
	rolls    uuid.UUID // the volume that it rolls back, or restores in place; zero: none

	view    contract.Job
	resumed chan struct{} // closed unless paused
	changed chan struct{} // closed, and replaced, when view changes
}

func newJobs(now func() time.Time) *jobs {
	ctx, stop := context.WithCancelCause(context.Background())
	return &jobs{now: now, slots: make(chan struct{}, jobsAtOnce), behind: make(chan struct{}, behindAtOnce), remote: make(chan struct{}, remoteAtOnce), ctx: ctx, stop: stop}
}

// run does the work of one job. It reports through j, calls j.pause at points
// where it may be held, and leaves nothing half-made when ctx ends. It is called
// once for every job, with an ended ctx if that was cancelled in the queue.
type run func(ctx context.Context, j *job) (*contract.Result, error)

// start queues work and returns the job at once.
func (js *jobs) start(kind, object string, pausable bool, work run) (contract.Job, error) {
	return js.queue(js.slots, kind, object, pausable, work)
}

// startBehind is start for work that gives way to clients, may take long, and holds up nobody.
func (js *jobs) startBehind(kind, object string, pausable bool, work run) (contract.Job, error) {
	return js.queue(js.behind, kind, object, pausable, work)
}

// startRemote is start for work on a repository. It does not pause: a store that is waited for too long gives sessions up.
func (js *jobs) startRemote(kind, object string, work run) (contract.Job, error) {
	return js.queue(js.remote, kind, object, false, work)
}

func (js *jobs) queue(slots chan struct{}, kind, object string, pausable bool, work run) (contract.Job, error) {
	ctx, cancel := context.WithCancelCause(js.ctx)
	j := &job{
		owner: js, pausable: pausable, cancel: cancel,
		resumed: make(chan struct{}), changed: make(chan struct{}),
	}
	close(j.resumed)
	j.view = contract.Job{
		ID: newJobID(), Kind: kind, Object: object, State: contract.JobQueued,
		CreatedAt: contract.Time{Time: js.now()},
	}

	js.mu.Lock()
	defer js.mu.Unlock()
	if js.ctx.Err() != nil {
		cancel(nil)
		return contract.Job{}, fmt.Errorf("start %s of %s: %w", kind, object, ErrStopping)
	}
	if js.forget() >= maxQueuedJobs {
		cancel(nil)
		return contract.Job{}, fmt.Errorf("start %s of %s: %d jobs are waiting already: %w", kind, object, maxQueuedJobs, ErrJobState)
	}
	js.list = append(js.list, j)
	running := func() { j.view.State, j.view.StartedAt = contract.JobRunning, contract.At(js.now()) }
	free := false // taken here, so that jobs begin in the order of their starts
	select {
	case slots <- struct{}{}:
		free = true
		running()
	default:
	}
	js.wait.Go(func() {
		defer cancel(nil)
		if !free {
			select {
			case slots <- struct{}{}:
				free = true
				j.update(func(*contract.Job) { running() })
			case <-ctx.Done(): // the work is told so, and undoes what was done before it was queued
			}
		}
		j.giveWay = sync.OnceFunc(func() {
			if free {
				<-slots
			}
		})
		defer j.giveWay()
		result, err := work(ctx, j)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		j.finish(result, err)
	})
	return j.view, nil
}

// rollsBack notes which volume a job that has just been started rolls back, whatever it is called later.
func (js *jobs) rollsBack(id string, volume uuid.UUID) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if j, err := js.find(id); err == nil {
		j.rolls = volume
	}
}

// rollingBack names the job that rolls a volume back; empty if none does.
func (js *jobs) rollingBack(volume uuid.UUID) string {
	js.mu.Lock()
	defer js.mu.Unlock()
	for _, j := range js.list {
		if j.rolls == volume && !j.view.State.Final() {
			return j.view.ID
		}
	}
	return ""
}

// newJobID is ten hexadecimal digits: short enough to type, and not reused by the next daemon.
func newJobID() string {
	var b [5]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// forget drops the oldest finished jobs beyond the limit and counts the unfinished ones.
func (js *jobs) forget() (unfinished int) {
	for _, j := range js.list {
		if !j.view.State.Final() {
			unfinished++
		}
	}
	drop := len(js.list) - unfinished - maxFinishedJobs
	kept := js.list[:0]
	for _, j := range js.list {
		if drop > 0 && j.view.State.Final() {
			drop--
			continue
		}
		kept = append(kept, j)
	}
	clear(js.list[len(kept):])
	js.list = kept
	return unfinished
}

// close cancels every job and waits for them to clean up.
func (js *jobs) close() {
	js.mu.Lock()
	js.stop(ErrStopping)
	js.mu.Unlock()
	js.wait.Wait()
}

// update changes the job and wakes those who watch it.
func (j *job) update(change func(*contract.Job)) {
	j.owner.mu.Lock()
	defer j.owner.mu.Unlock()
	change(&j.view)
	close(j.changed)
	j.changed = make(chan struct{})
}

// progress reports how much is done, from 0 to 1.
func (j *job) progress(done float64) {
	j.owner.mu.Lock()
	unchanged := done-j.view.Progress < 0.001
	j.owner.mu.Unlock()
	if !unchanged {
		j.update(func(v *contract.Job) { v.Progress = min(done, 1) })
	}
}

// pause returns at once unless the job is paused; then it waits.
func (j *job) pause(ctx context.Context) error {
	j.owner.mu.Lock()
	resumed := j.resumed
	j.owner.mu.Unlock()
	select {
	case <-resumed:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *job) finish(result *contract.Result, err error) {
	j.update(func(v *contract.Job) {
		v.FinishedAt, v.Result = contract.At(j.owner.now()), result
		switch {
		case err == nil:
			v.State, v.Progress = contract.JobDone, 1
		case errors.Is(err, errCancelled) || errors.Is(err, errDeleting) || errors.Is(err, ErrStopping):
			v.State, v.Reason = contract.JobCancelled, err.Error()
		default:
			v.State, v.Error = contract.JobFailed, Describe(err)
			v.Reason = v.Error.Message
		}
	})
}

func (js *jobs) find(id string) (*job, error) {
	for _, j := range js.list {
		if j.view.ID == id {
			return j, nil
		}
	}
	return nil, fmt.Errorf("job %s: %w", id, ErrNoJob)
}

// Jobs lists what runs, waits, and was finished lately, oldest first.
func (d *Daemon) Jobs() []contract.Job {
	d.jobs.mu.Lock()
	defer d.jobs.mu.Unlock()
	out := make([]contract.Job, 0, len(d.jobs.list))
	for _, j := range d.jobs.list {
		out = append(out, j.view)
	}
	return out
}

// Job describes one job. ErrNoJob.
func (d *Daemon) Job(id string) (contract.Job, error) {
	d.jobs.mu.Lock()
	defer d.jobs.mu.Unlock()
	j, err := d.jobs.find(id)
	if err != nil {
		return contract.Job{}, err
	}
	return j.view, nil
}

// WaitJob returns the job once it is finished, or as it is when ctx ends. ErrNoJob.
func (d *Daemon) WaitJob(ctx context.Context, id string) (contract.Job, error) {
	for {
		d.jobs.mu.Lock()
		j, err := d.jobs.find(id)
		if err != nil {
			d.jobs.mu.Unlock()
			return contract.Job{}, err
		}
		view, changed := j.view, j.changed
		d.jobs.mu.Unlock()
		if view.State.Final() {
			return view, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return view, nil
		}
	}
}

// CancelJob asks a job to stop and to undo what it did; WaitJob tells when it
// has. A finished job is ErrJobState.
func (d *Daemon) CancelJob(id string) (contract.Job, error) {
	d.jobs.mu.Lock()
	defer d.jobs.mu.Unlock()
	j, err := d.jobs.find(id)
	if err != nil {
		return contract.Job{}, err
	}
	if j.view.State.Final() {
		return contract.Job{}, fmt.Errorf("cancel job %s: it is %s: %w", id, j.view.State, ErrJobState)
	}
	j.cancel(errCancelled)
	return j.view, nil
}

// cancel ends a job, if there is one and it has not ended, for a reason.
func (js *jobs) cancel(id string, cause error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if j, err := js.find(id); err == nil {
		j.cancel(cause)
	}
}

// PauseJob holds a running import, export, relayout, copy, copy-back or rollback at its next step; other kinds and states are ErrJobState.
func (d *Daemon) PauseJob(id string) (contract.Job, error) {
	return d.hold(id, contract.JobRunning, contract.JobPaused)
}

// ResumeJob lets a paused job go on; other states are ErrJobState.
func (d *Daemon) ResumeJob(id string) (contract.Job, error) {
	return d.hold(id, contract.JobPaused, contract.JobRunning)
}

func (d *Daemon) hold(id string, from, to contract.JobState) (contract.Job, error) {
	d.jobs.mu.Lock()
	defer d.jobs.mu.Unlock()
	j, err := d.jobs.find(id)
	if err != nil {
		return contract.Job{}, err
	}
	if !j.pausable {
		return contract.Job{}, fmt.Errorf("job %s: a %s does not pause: %w", id, j.view.Kind, ErrJobState)
	}
	if j.view.State != from {
		return contract.Job{}, fmt.Errorf("job %s: it is %s, not %s: %w", id, j.view.State, from, ErrJobState)
	}
	j.view.State = to
	if to == contract.JobPaused {
		j.resumed = make(chan struct{})
	} else {
		close(j.resumed)
	}
	close(j.changed)
	j.changed = make(chan struct{})
	return j.view, nil
}
