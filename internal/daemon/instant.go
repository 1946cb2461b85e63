package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/repository"
	"varve/internal/repository/envelope"
)

// baseRef is what a volume is filled from: a backup in a repository, which reads at no more than a rate, in bytes a second; 0: no limit. hold is the
// volume's hold of the backup.
type baseRef struct {
	repository uuid.UUID
	backup     string
	limit      int64
	hold       string
}

// basePrefix begins a reference; it has the version of what follows.
const basePrefix = "varve-backup-1"

// bytes are what the pool keeps.
func (r baseRef) bytes() []byte {
	return fmt.Appendf(nil, "%s:%s:%s:%d:%s", basePrefix, r.repository, r.backup, r.limit, r.hold)
}

func parseBase(b []byte) (r baseRef, err error) {
	parts := strings.Split(string(b), ":")
	if len(parts) == 5 && parts[0] == basePrefix && repository.ValidID(parts[2]) && repository.ValidHold(parts[4]) {
		r.backup, r.hold = parts[2], parts[4]
		var failed error
		r.repository, err = uuid.Parse(parts[1])
		r.limit, failed = strconv.ParseInt(parts[3], 10, 64)
		if err = errors.Join(err, failed); err == nil {
			return r, nil
		}
	}
	return r, fmt.Errorf("what it is filled from, %.80q, is not known to this version of varve", b)
}

// openBase opens a backup for the pool, also one that somebody has deleted since the volume was made.
func (d *Daemon) openBase(ctx context.Context, ref []byte) (block.Device, error) {
	r, err := parseBase(ref)
	if err != nil {
		return nil, err
	}
	k := d.repositories.byID(r.repository)
	if k == nil {
		return nil, fmt.Errorf("backup %s: its repository %s is not known here: varve repo add", r.backup, r.repository)
	}
	u, err := d.repositories.limited(ctx, k, 0, r.limit)
	if err != nil {
		return nil, err
	}
	device, err := u.Repo().OpenHeld(ctx, r.backup, r.hold)
	if err != nil {
		u.done()
		return nil, err
	}
	return &backupDevice{Device: device, use: u}, nil
}

// backupDevice is a backup in the words of block devices; its repository stays open as long as it does.
type backupDevice struct {
	*repository.Device
	use *use
}

// ReadAt implements block.Device.
func (b *backupDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	return damagedBlocks(b.Device.ReadAt(ctx, p, off))
}

// Extents implements block.Device.
func (b *backupDevice) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	out, err := b.Device.Extents(ctx, off, length, limit)
	return out, damagedBlocks(err)
}

// Close implements block.Device.
func (b *backupDevice) Close() error {
	err := b.Device.Close()
	b.use.done()
	return err
}

func damagedBlocks(err error) error {
	if errors.Is(err, repository.ErrDamaged) || errors.Is(err, envelope.ErrLost) {
		return fmt.Errorf("%w: %w", block.ErrDamaged, err)
	}
	return err
}

// restoreInstantly makes a volume that can be used at once; what fills it is looked for by keepFilling.
func (d *Daemon) restoreInstantly(u *use, r contract.RestoreBackup, b repository.Backup) (contract.Job, error) {
	if b.SizeBytes != volumeBytes(b.SizeBytes) {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "restore backup %s instantly: it has %d bytes, which no volume has", b.ID, b.SizeBytes).
			WithHint("leave --instant out")
	}
	ref := baseRef{u.id, b.ID, r.Limit, repository.NewHold()}
	return d.restoring(u.known, r, r.ToVolume, func() {}, func(ctx context.Context, _ *job, u *use) (out contract.BackupRestore, err error) {
		began, before := time.Now(), u.Repo().Counts()
		device, err := u.Repo().OpenDevice(ctx, b.ID) // it is there, and nobody prunes it before the pool has it open
		if err != nil {
			return out, err
		}
		defer device.Close()
		if out.Backup, err = u.Backup(ctx, b.ID); err != nil {
			return out, err
		}
		its := held{renewed: d.now().Round(0)}
		if err := u.Repo().Hold(ctx, ref.hold, b.ID); err != nil { // who may not write, for one
			its = held{failed: its.renewed}
			d.note("fill", r.ToVolume, "whoever deletes the backup while this daemon is away takes what is not filled: %v", err)
		}
		info, err := d.pool.CreateVolume(ctx, pool.VolumeSpec{Name: r.ToVolume, Base: &pool.Base{Ref: ref.bytes(), SizeBytes: b.SizeBytes}})
		d.holds.set(ref, its)
		if err != nil {
			d.keepHolds(context.WithoutCancel(ctx)) // which gives it back
			return out, err
		}
		fill, err := d.fillFrom(info)
		if err != nil {
			d.note("fill", info.Name, "nothing fills it yet: %v", err)
		}
		out.Target, out.Size, out.Lost = info.Name, b.SizeBytes, []contract.Extent{}
		out.Seconds, out.Requests = time.Since(began).Seconds(), u.Repo().Counts().Minus(before).Requests()
		if fill.ID != "" {
			out.Fill = &fill
		}
		if v, err := d.Volume(context.WithoutCancel(ctx), info.Name); err == nil {
			out.Volume = &v
		}
		return out, nil
	})
}

// fills are the jobs that fill volumes from backups, one for what shares a base.
type fills struct {
	mu      sync.Mutex           // taken before that of the jobs
	jobs    map[string]string    // by the volume's id
	again   map[string]time.Time // of one that has failed: when it is tried again
	stopped map[string]bool      // that were cancelled: the next daemon goes on
}

const (
	// fillsEvery is how often it is looked whether a volume has to be filled.
	fillsEvery = 2 * time.Second
	// fillPatience is how long after a failure a fill is begun again, if its backup can be opened then, and damagePatience how long after it
	// met damage.
	fillPatience   = time.Minute
	damagePatience = time.Hour
)

func newFills() fills {
	return fills{jobs: map[string]string{}, again: map[string]time.Time{}, stopped: map[string]bool{}}
}

// filledVolume is a volume that is being filled, and what from.
type filledVolume struct {
	volume string
	base   baseRef
}

// filling are the volumes that need a backup.
func (d *Daemon) filling() (out []filledVolume) {
	for _, info := range d.pool.Volumes() {
		if info.FilledFrom == nil {
			continue
		}
		if base, err := parseBase(info.FilledFrom.Ref); err == nil {
			out = append(out, filledVolume{info.Name, base})
		}
	}
	return out
}

// keepFilling fills what has to be filled, until ctx ends.
func (d *Daemon) keepFilling(ctx context.Context) {
	tick := time.NewTicker(fillsEvery)
	defer tick.Stop()
	for {
		for _, info := range d.pool.Volumes() {
			if info.FilledFrom != nil && !info.Deleted && d.reachable(ctx, info) {
				_, _ = d.fillFrom(info) // the next look begins it, if too many jobs wait now
			}
		}
		d.keepHolds(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reachable tells whether a fill that has failed may be tried again: not before its time, and not while its backup cannot be opened, or
// the list of jobs would be full of such attempts.
func (d *Daemon) reachable(ctx context.Context, info pool.VolumeInfo) bool {
	f, id := &d.fills, info.ID.String()
	f.mu.Lock()
	again, failed := f.again[id]
	f.mu.Unlock()
	if !failed || d.now().Before(again) {
		return !failed
	}
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	base, err := d.openBase(ctx, info.FilledFrom.Ref)
	if err == nil {
		base.Close()
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again[id] = d.now().Add(fillPatience)
	return false
}

// fillFrom returns the job that fills a volume, which it begins if there is none.
func (d *Daemon) fillFrom(info pool.VolumeInfo) (contract.Job, error) {
	f := &d.fills
	f.mu.Lock()
	defer f.mu.Unlock()
	id := info.ID.String()
	if job, busy := f.jobs[id]; busy {
		return d.Job(job)
	}
	if f.stopped[id] || d.now().Before(f.again[id]) || d.fillsFromAnother(info) {
		return contract.Job{}, nil
	}
	job, err := d.jobs.startBehind(contract.JobFill, info.Name, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		err := d.fillAll(ctx, j, info.ID)
		if err == nil {
			d.keepHolds(ctx)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.jobs, id)
		delete(f.again, id)
		switch {
		case err == nil, errors.Is(context.Cause(ctx), ErrStopping):
		case errors.Is(context.Cause(ctx), errCancelled):
			f.stopped[id] = true
		case errors.Is(err, block.ErrDamaged):
			f.again[id] = d.now().Add(damagePatience)
		default:
			f.again[id] = d.now().Add(fillPatience)
		}
		return nil, err
	})
	if err == nil {
		f.jobs[id] = job.ID
	}
	return job, err
}

func (d *Daemon) fillAll(ctx context.Context, j *job, id uuid.UUID) error {
	if err := j.pause(ctx); err != nil {
		return err
	}
	info, found := d.volumeByID(id) // it may have been renamed
	if !found {
		return nil // deleted since
	}
	err := d.pool.Fill(ctx, info.Name, func(done, total int64) error {
		j.fraction(done, total)
		return j.pause(ctx)
	})
	return err
}

// fillsFromAnother tells of a clone whose origin fills what they share.
func (d *Daemon) fillsFromAnother(info pool.VolumeInfo) bool {
	return info.Origin != "" && slices.ContainsFunc(d.pool.Volumes(), func(v pool.VolumeInfo) bool {
		return v.Origin == "" && v.FilledFrom != nil && bytes.Equal(v.FilledFrom.Ref, info.FilledFrom.Ref)
	})
}

// idleFills names the volumes that nothing fills, because that was cancelled.
func (d *Daemon) idleFills() (names []string) {
	d.fills.mu.Lock()
	defer d.fills.mu.Unlock()
	for _, info := range d.pool.Volumes() {
		if info.FilledFrom != nil && d.fills.stopped[info.ID.String()] {
			names = append(names, info.Name)
		}
	}
	return names
}

// baseProblems tells of which volumes what is not filled yet cannot be read.
func (d *Daemon) baseProblems() (out []string) {
	for _, info := range d.pool.Volumes() {
		if f := info.FilledFrom; f != nil && f.Problem != "" {
			out = append(out, fmt.Sprintf("%s: what is not filled yet cannot be read from its backup: %s", info.Name, f.Problem))
		}
	}
	return out
}

// StartFill goes on filling a volume, where that was cancelled or has failed.
func (d *Daemon) StartFill(name string) (contract.Job, error) {
	info, err := d.volumeInfo(name)
	if err != nil {
		return contract.Job{}, err
	}
	if info.FilledFrom == nil {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "fill volume %q: it is not filled from a backup, or wholly filled", name)
	}
	d.fills.mu.Lock()
	delete(d.fills.stopped, info.ID.String())
	delete(d.fills.again, info.ID.String())
	d.fills.mu.Unlock()
	return d.fillFrom(info)
}
