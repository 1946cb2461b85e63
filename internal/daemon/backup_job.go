package daemon

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/repository"
)

const (
	// backupAttempts is how often a backup is tried whose base was deleted, or whose session was given up, just before it was committed.
	backupAttempts = 3
	// tidyPatience is how long is waited for a store when a backup is made or has failed, and it is looked which bookmarks can go.
	tidyPatience = 10 * time.Second
	// mismatchEvent tells that a volume had changed where that was not tracked.
	mismatchEvent = "tracking-mismatch"
	// backupFailed tells that a backup has failed.
	backupFailed = "backup-failed"
)

// CreateBackup starts a job that backs up volumes, or snapshots of them, all of one instant and as one, or a foreign source. Until it is
// done there is nothing of it to be seen in the repository.
func (d *Daemon) CreateBackup(_ context.Context, r contract.CreateBackup) (contract.Job, error) {
	k, err := d.repositories.named(r.Repo)
	if err != nil {
		return contract.Job{}, err
	}
	if r.Foreign != nil {
		return d.backUpForeign(k, r)
	}
	run, err := d.newBackup(k, r)
	if err != nil {
		return contract.Job{}, err
	}
	return d.repositories.backUp(k, run.members, func() (contract.Job, error) {
		return d.jobs.startRemote(contract.JobBackup, strings.Join(r.Volumes, ","), func(ctx context.Context, j *job) (*contract.Result, error) {
			defer d.repositories.backedUp(k, run.members)
			run.job = j
			made, err := run.do(ctx)
			if err != nil {
				return nil, d.noteBackup(ctx, j, err)
			}
			return &contract.Result{Backups: made}, nil
		})
	})
}

// noteBackup has an event of a backup that failed, and passes the error on.
func (d *Daemon) noteBackup(ctx context.Context, j *job, err error) error {
	if ctx.Err() == nil {
		d.note(backupFailed, j.view.Object, "the backup has failed: %v", err)
	}
	return err
}

// backUpForeign starts the backup of a disk that is no volume.
func (d *Daemon) backUpForeign(k *knownRepository, r contract.CreateBackup) (contract.Job, error) {
	f := r.Foreign
	if len(r.Volumes) > 0 {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "back up %s: volumes or a source that is none, not both", f.Source)
	}
	if !strings.Contains(f.Source, "://") {
		if !strings.HasPrefix(f.Source, "/") {
			return contract.Job{}, contract.Errorf(contract.CodeUsage, "back up %s: the path is not absolute", f.Source)
		}
		if name := d.volumeIn(f.Source); name != "" {
			return contract.Job{}, contract.Errorf(contract.CodeRefused, "back up %s: volume %q lies in it", f.Source, name).
				WithHint("back up the volume, which is frozen for that: varve backup create %s --repo %s", name, r.Repo)
		}
	}
	return d.jobs.startRemote(contract.JobBackup, f.As, func(ctx context.Context, j *job) (*contract.Result, error) {
		u, err := d.repositories.limited(ctx, k, r.Limit, 0)
		if err != nil {
			return nil, d.noteBackup(ctx, j, err)
		}
		defer u.done()
		made, warnings, err := u.BackupForeign(ctx, r, j.fraction)
		if err != nil {
			return &contract.Result{Warnings: warnings}, d.noteBackup(ctx, j, err)
		}
		made.Repo = d.repositories.now(k).Name
		d.noteMade(made)
		return &contract.Result{Backups: []contract.Backup{made}, Warnings: warnings}, nil
	})
}

func (d *Daemon) noteMade(b contract.Backup) {
	d.note("backup", b.Volume, "backup %s of %s to %s: %s, %s", b.ID, b.Volume, b.Repo, b.Type, b.Reason)
	if b.Mismatched > 0 {
		d.note(mismatchEvent, b.Volume, "a block had changed of which nothing was tracked; backup %s has compared all of them, and is right", b.ID)
	}
}

// backupRun is the backup of volumes of the pool.
type backupRun struct {
	d       *Daemon
	known   *knownRepository
	request contract.CreateBackup
	want    backup.Want
	policy  uuid.UUID
	members []*backupMember
	job     *job

	use       *use
	temporary bool // the snapshots are the run's own
	keep      bool // they stay if the attempt is cut short
	took      pool.Timing
	steps     []repository.Step
	record    string // what the snapshots are called after, and what the first attempt will be
	reused    string // what is to be said of snapshots that an earlier attempt left

	bookmarks map[string]pool.BookmarkRef // made by this attempt, by the id of the backup
}

// backupMember is one of the volumes.
type backupMember struct {
	name     string // as the user said
	volume   uuid.UUID
	snapshot uuid.UUID // what is copied; zero as long as it is not made
	// unusable are backups that cannot be the base, and why.
	unusable map[string]string
}

// newBackup looks at what is to be backed up.
func (d *Daemon) newBackup(k *knownRepository, r contract.CreateBackup) (*backupRun, error) {
	run := &backupRun{d: d, known: k, request: r, want: backup.WantAuto}
	usage := func(format string, args ...any) (*backupRun, error) {
		return nil, contract.Errorf(contract.CodeUsage, "back up %s: "+format, append([]any{strings.Join(r.Volumes, ", ")}, args...)...)
	}
	var err error
	if r.Type != "" {
		if run.want, err = backup.ParseWant(r.Type); err != nil {
			return usage("%s", err)
		}
	}
	if r.PolicyID != "" {
		if run.policy, err = uuid.Parse(r.PolicyID); err != nil {
			return usage("policy %q: %s", r.PolicyID, err)
		}
	}
	switch {
	case len(r.Volumes) == 0:
		return nil, contract.Errorf(contract.CodeUsage, "back up: no volume is named")
	case len(r.Volumes) > repository.MaxMembers:
		return usage("more than %d volumes", repository.MaxMembers)
	case r.LockDays < 0 || r.Limit < 0:
		return usage("a limit or retention below 0")
	}
	seen := map[uuid.UUID]bool{}
	groups := map[uuid.UUID]bool{}
	for _, name := range r.Volumes {
		m := &backupMember{name: name, unusable: map[string]string{}}
		if strings.Contains(name, "@") {
			ref, err := parseRef(name)
			if err != nil {
				return nil, err
			}
			info, err := d.snapshotInfo(ref)
			if err != nil {
				return nil, err
			}
			m.volume, m.snapshot = info.VolumeID, info.ID
			groups[info.GroupID] = true
		} else {
			info, err := d.volumeInfo(name)
			if err != nil {
				return nil, err
			}
			m.volume = info.ID
			groups[uuid.Nil] = true
		}
		if seen[m.volume] {
			return usage("%s is named twice", name)
		}
		seen[m.volume] = true
		run.members = append(run.members, m)
	}
	if len(groups) > 1 {
		return nil, contract.Errorf(contract.CodeUsage, "back up %s: they are not of one instant", strings.Join(r.Volumes, ", ")).
			WithHint("name volumes, or snapshots that were made together")
	}
	run.temporary = groups[uuid.Nil]
	return run, nil
}

func (b *backupRun) volumes() (out []uuid.UUID) {
	for _, m := range b.members {
		out = append(out, m.volume)
	}
	return out
}

// do makes the backup and describes what was made, in the order of the volumes.
func (b *backupRun) do(ctx context.Context) (made []contract.Backup, err error) {
	if err := ctx.Err(); err != nil { // cancelled in the queue
		return nil, err
	}
	if b.use, err = b.d.repositories.limited(ctx, b.known, b.request.Limit, 0); err != nil {
		return nil, err
	}
	defer b.use.done()
	var rec *repository.Record
	for try := 1; ; try++ {
		rec, err = b.attempt(ctx)
		if try == backupAttempts || !errors.Is(err, repository.ErrBaseGone) && !errors.Is(err, repository.ErrFenced) {
			break
		}
	}
	b.dropSnapshots(ctx, err == nil)
	if err != nil {
		return nil, err
	}
	return b.made(ctx, rec), nil
}

// attempt chooses and copies once.
func (b *backupRun) attempt(ctx context.Context) (*repository.Record, error) {
	for {
		choices, err := b.choose(ctx)
		if err != nil {
			return nil, err
		}
		if err := b.freeze(ctx, choices); err != nil {
			return nil, err
		}
		sources, done, err := b.sources(choices)
		if errors.Is(err, errChooseAgain) {
			continue
		}
		if err != nil {
			return nil, err
		}
		rec, err := b.create(ctx, sources)
		done()
		return rec, err
	}
}

// create stores the sources. The bookmarks are there before the record is, and go if it then is not.
func (b *backupRun) create(ctx context.Context, sources []*backup.Source) (*repository.Record, error) {
	b.bookmarks = map[string]pool.BookmarkRef{}
	o := backup.Options{
		Record: b.record, Program: b.d.repositories.program, Progress: b.job.fraction, BeforeCommit: b.bookmark,
		Mismatch: func(volume string, offset int64) {
			b.d.note(mismatchEvent, volume, "the block at %d has changed, and nothing was tracked of that: all blocks are compared with the last backup", offset)
		},
	}
	if b.request.LockDays > 0 {
		o.LockUntil = b.d.now().AddDate(0, 0, b.request.LockDays)
	}
	b.record = "" // what has been given up is never the name of another one
	rec, err := backup.Create(ctx, b.use.Repo(), sources, o)
	if err != nil {
		b.forgetBookmarks(ctx)
	}
	return rec, err
}

// bookmark makes a bookmark of each snapshot, for its backup. A pool that has no room for that is one more reason to have the backup.
func (b *backupRun) bookmark(rec *repository.Record) error {
	for i, m := range b.members {
		info, err := b.d.snapshotByID(m.snapshot.String())
		if err != nil {
			return err
		}
		ref := pool.BookmarkRef{Volume: info.Volume, Name: bookmarkName(rec.Backups[i].ID, b.use.id)}
		_, err = b.d.pool.CreateBookmark(context.Background(), pool.SnapshotRef{Volume: info.Volume, Name: info.Name}, ref.Name)
		if errors.Is(err, block.ErrNoSpace) {
			b.d.note("backup", info.Volume, "the next backup cannot be an incremental of this one: %v", err)
			continue
		}
		if err != nil {
			return err
		}
		b.bookmarks[rec.Backups[i].ID] = ref
	}
	return nil
}

// forgetBookmarks deletes those of backups that are not in the repository after all. Where that cannot be found out they stay: they count only
// for a backup that is there, and go with the next one.
func (b *backupRun) forgetBookmarks(ctx context.Context) {
	if len(b.bookmarks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyPatience)
	defer cancel()
	all, _, err := b.use.Repo().Backups(ctx)
	if err != nil {
		return
	}
	for _, is := range all {
		delete(b.bookmarks, is.ID)
	}
	for _, ref := range b.bookmarks {
		b.d.deleteBookmark(ctx, ref)
	}
}

// made describes the backups, and leaves only the bookmarks that the next ones need: where the store cannot be asked, the next one does.
func (b *backupRun) made(ctx context.Context, rec *repository.Record) []contract.Backup {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyPatience)
	defer cancel()
	all, _, err := b.use.Repo().Backups(ctx)
	if err == nil {
		for _, m := range b.members {
			b.d.pruneBookmarks(ctx, m.volume, b.use.id, all)
		}
	}
	b.d.repositories.learn(b.known, rec)
	out := b.use.Made(rec, all)
	for _, view := range out {
		b.d.note("backup", view.Volume, "backup %s of %s to %s: %s, %s", view.ID, view.Volume, view.Repo, view.Type, view.Reason)
	}
	return out
}

// learn notes what has just been backed up.
func (rs *repositories) learn(k *knownRepository, rec *repository.Record) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, b := range rec.Backups {
		if k.points != nil {
			k.points[b.PointID.String()] = true
		}
	}
}
