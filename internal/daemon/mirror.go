package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/image"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// mirrors are the jobs that copy what differs to legs: one a volume at a time.
type mirrors struct {
	mu      sync.Mutex // taken before that of the jobs
	jobs    map[uuid.UUID]string
	stopped map[uuid.UUID]bool // whose job was cancelled or has failed: who attaches the file again has it begun again
}

func newMirrors() mirrors {
	return mirrors{jobs: map[uuid.UUID]string{}, stopped: map[uuid.UUID]bool{}}
}

// mirrorsEvery is how often it is looked whether a mirror is not in sync any more.
const mirrorsEvery = 2 * time.Second

// keepMirrors copies to legs what differs, whenever something does: when the daemon starts, and after a rollback.
func (d *Daemon) keepMirrors(ctx context.Context) {
	tick := time.NewTicker(mirrorsEvery)
	defer tick.Stop()
	for {
		for _, info := range d.pool.Mirrors() {
			if info.State == pool.MirrorSyncing {
				_, _ = d.syncMirror(info, false) // the next look begins it, if too many jobs wait now
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// syncMirror returns the id of the job that copies to a volume's leg, which it begins if there is none; again: also where one was
// cancelled or has failed.
func (d *Daemon) syncMirror(info pool.MirrorInfo, again bool) (string, error) {
	m := &d.mirrors
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, busy := m.jobs[info.VolumeID]; busy {
		return id, nil
	}
	if again {
		delete(m.stopped, info.VolumeID)
	}
	if m.stopped[info.VolumeID] {
		return "", nil
	}
	job, err := d.jobs.startBehind(contract.JobMirror, info.Volume, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		err := d.copyToMirror(ctx, j, info.VolumeID)
		m.mu.Lock()
		delete(m.jobs, info.VolumeID)
		m.stopped[info.VolumeID] = err != nil && !errors.Is(context.Cause(ctx), ErrStopping)
		m.mu.Unlock()
		if err != nil {
			return nil, err
		}
		volume, found := d.volumeByID(info.VolumeID)
		if !found { // deleted as soon as it was done
			return nil, nil
		}
		mirror, err := d.Mirror(volume.Name)
		return &contract.Result{Mirror: &mirror}, err
	})
	if err != nil {
		return "", err
	}
	m.jobs[info.VolumeID] = job.ID
	return job.ID, nil
}

func (d *Daemon) copyToMirror(ctx context.Context, j *job, id uuid.UUID) error {
	if err := j.pause(ctx); err != nil {
		return err
	}
	info, found := d.volumeByID(id) // it may have been renamed
	if !found {
		return fmt.Errorf("copy to the mirror: volume: %w", pool.ErrNotFound)
	}
	return d.pool.SyncMirror(ctx, info.Name, func(done float64) {
		j.progress(done)
		_ = j.pause(ctx) // that ctx ended is found out by who copies
	})
}

// mirror describes a mirror.
func (d *Daemon) mirror(info pool.MirrorInfo) contract.Mirror {
	d.mirrors.mu.Lock()
	defer d.mirrors.mu.Unlock()
	return contract.Mirror{
		Volume: info.Volume, VolumeID: info.VolumeID.String(), File: info.Path, State: info.State, Progress: info.Progress,
		DifferingBytes: info.Differing, Reason: info.Reason, Job: d.mirrors.jobs[info.VolumeID],
	}
}

// Mirror describes a volume's mirror. pool.ErrNotFound if it has none.
func (d *Daemon) Mirror(volume string) (contract.Mirror, error) {
	if _, err := d.volumeInfo(volume); err != nil {
		return contract.Mirror{}, err
	}
	info, err := d.pool.Mirror(volume)
	if err != nil {
		return contract.Mirror{}, hinted(err, pool.ErrNotFound, "mirror it: varve mirror attach %s --to FILE", volume)
	}
	return d.mirror(info), nil
}

// AttachMirror has a volume written to a file as well, and starts the job that makes it the same. Of a leg that has failed, or whose
// job was cancelled, it goes on with that.
func (d *Daemon) AttachMirror(volume string, r contract.AttachMirror) (contract.Mirror, error) {
	info, err := d.volumeInfo(volume)
	if err != nil {
		return contract.Mirror{}, err
	}
	if err := d.legible(volume, r.To); err != nil {
		return contract.Mirror{}, err
	}
	mirror, err := d.pool.Mirror(volume)
	if err != nil || mirror.State != pool.MirrorSyncing || vfs.Resolved(mirror.Path) != vfs.Resolved(r.To) {
		mirror, err = d.pool.AttachMirror(context.Background(), volume, pool.LegSpec{Path: filepath.Clean(r.To), Force: r.Force})
	}
	if err != nil {
		err = hinted(err, pool.ErrExists, "name a file that does not exist yet; to overwrite this one: --force")
		return contract.Mirror{}, hinted(err, pool.ErrInUse, "see what the volume is mirrored to: varve mirror status %s; a file is one thing's: name another one", info.Name)
	}
	if _, err := d.syncMirror(mirror, true); err != nil {
		d.note("mirror", volume, "nothing is copied to its mirror yet: %v", err)
	}
	return d.mirror(mirror), nil
}

// legible tells why a file cannot become a leg, as far as the pool does not: it lies in the data directory, or is no file or disk, or a
// program has it open.
func (d *Daemon) legible(volume, path string) error {
	if err := d.placeable(path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mirror volume %q to %s: %w", volume, path, err)
	}
	// A pipe or a terminal would only be found out by opening it, which may wait for ever.
	if kind := info.Mode().Type(); kind != 0 && kind != fs.ModeDevice {
		return contract.Errorf(contract.CodeUsage, "mirror volume %q to %s: it is no raw file or block device, but %s", volume, path, kindOf(kind))
	}
	if _, err := image.Detect(path); errors.Is(err, image.ErrInUse) {
		return fmt.Errorf("mirror volume %q to %s: %w", volume, path, err)
	}
	return nil
}

// DetachMirror ends a volume's mirror; the file stays.
func (d *Daemon) DetachMirror(ctx context.Context, volume string) error {
	info, err := d.volumeInfo(volume)
	if err != nil {
		return err
	}
	if err := d.pool.DetachMirror(ctx, volume); err != nil {
		return hinted(err, pool.ErrNotFound, "see what is mirrored: varve volume show %s", volume)
	}
	return d.endMirrorJob(ctx, info.ID)
}

// endMirrorJob ends the job that copied to a leg that a volume has no more, and returns when it has ended: the next leg gets one of its own.
func (d *Daemon) endMirrorJob(ctx context.Context, volume uuid.UUID) error {
	d.mirrors.mu.Lock()
	id := d.mirrors.jobs[volume]
	d.mirrors.mu.Unlock()
	if id != "" { // it would find out of itself, but for a paused one
		d.jobs.cancel(id, errCancelled)
		if _, err := d.WaitJob(ctx, id); err != nil {
			return err
		}
	}
	d.mirrors.mu.Lock()
	defer d.mirrors.mu.Unlock()
	delete(d.mirrors.stopped, volume)
	return nil
}

// SplitMirror makes a copy of a volume in its leg's file, and mirrors it to another file, if r names one.
func (d *Daemon) SplitMirror(ctx context.Context, volume string, r contract.SplitMirror) (contract.Split, error) {
	if r.Next != "" { // before anything is split off for it
		if err := d.legible(volume, r.Next); err != nil {
			return contract.Split{}, err
		}
		if _, err := os.Stat(r.Next); err == nil && !r.Force {
			return contract.Split{}, contract.Errorf(contract.CodeRefused, "split the mirror of volume %q: the next file %s exists, and what it holds would be lost", volume, r.Next).
				WithHint("name a file that does not exist yet; to overwrite this one: --force")
		}
		if user := d.pool.UsedBy(r.Next); user != "" {
			return contract.Split{}, contract.Errorf(contract.CodeRefused, "split the mirror of volume %q: %s has the next file %s", volume, user, r.Next)
		}
	}
	made, err := d.CreateSnapshots(ctx, contract.CreateSnapshot{
		Volumes: []string{volume}, Name: r.Name, Labels: r.Labels, KeepFor: r.KeepFor, Technique: contract.TechniqueMirror,
	})
	if err != nil {
		return contract.Split{}, err
	}
	out := contract.Split{Snapshot: made[0]}
	if r.Next != "" {
		next, err := d.AttachMirror(volume, contract.AttachMirror{To: r.Next, Force: r.Force})
		if err != nil {
			return out, fmt.Errorf("snapshot %q is split off, but the volume is not mirrored to another file: %w", made[0].Ref(), err)
		}
		out.Next = &next
	}
	return out, nil
}

// checkMirrored tells why no mirror can be split off as r asks.
func (d *Daemon) checkMirrored(r contract.CreateSnapshot) error {
	refuse := func(code contract.Code, format string, args ...any) *contract.Error {
		return contract.Errorf(code, "create snapshot %s: "+format, append([]any{r.Name}, args...)...)
	}
	if len(r.Volumes) != 1 {
		return refuse(contract.CodeUsage, "technique mirror is of one volume at a time")
	}
	if r.OnFull == contract.OnFullDropSnapshot {
		return refuse(contract.CodeUsage, "drop-snapshot is of snapshots for which something is kept").WithHint("leave --on-full out")
	}
	volume := r.Volumes[0]
	mirror, err := d.Mirror(volume)
	switch {
	case err != nil:
		return err
	case r.To != "" && vfs.Resolved(r.To) != vfs.Resolved(mirror.File):
		return refuse(contract.CodeRefused, "volume %q is mirrored to %s already", volume, mirror.File).WithHint("leave --to out")
	case mirror.State == contract.MirrorFailed:
		return refuse(contract.CodeRefused, "the mirror of volume %q has failed: %s", volume, mirror.Reason).
			WithHint("once that is mended: varve mirror attach %s --to %s", volume, mirror.File)
	case mirror.State != contract.MirrorInSync:
		return refuse(contract.CodeRefused, "the mirror of volume %q is not in sync: %s", volume, mirror.State).
			WithHint("wait for it: varve mirror status %s", volume)
	}
	return nil
}

// splitOff is pool.CreateSnapshot of a mirrored volume, by its leg.
func (d *Daemon) splitOff(ctx context.Context, volumes []string, spec pool.SnapshotSpec) ([]pool.SnapshotInfo, pool.Timing, error) {
	info, took, err := d.pool.SplitMirror(ctx, volumes[0], spec)
	if err == nil {
		err = d.endMirrorJob(ctx, info.VolumeID) // it may still be about to find out that it has done all
	}
	return []pool.SnapshotInfo{info}, took, err
}

// ResyncMirror makes the leg of a volume of a copy in a file, which is no copy then.
func (d *Daemon) ResyncMirror(ctx context.Context, name string) (contract.Mirror, error) {
	ref, err := parseRef(name)
	if err != nil {
		return contract.Mirror{}, err
	}
	copied, err := d.snapshotInfo(ref)
	if err != nil {
		return contract.Mirror{}, err
	}
	var mirror pool.MirrorInfo
	err = d.sessions.unlessInUse(ctx, func() (err error) {
		mirror, err = d.pool.ResyncMirror(ctx, ref)
		return err
	}, ref.Volume)
	if err != nil {
		err = hinted(err, pool.ErrInvalid, "a copy in a file is made by --technique clone --to FILE, or split off a mirror")
		err = hinted(err, block.ErrReadOnly, "mirror the volume to another file: varve mirror attach %s --to FILE", ref.Volume)
		return contract.Mirror{}, hinted(err, pool.ErrInUse, seeReaders)
	}
	d.timings.forget(copied.ID.String())
	d.snapshotsChanged()
	if _, err := d.syncMirror(mirror, true); err != nil {
		d.note("mirror", ref.Volume, "nothing is copied to its mirror yet: %v", err)
	}
	return d.mirror(mirror), nil
}

// mirrorProblems tells which legs have failed.
func (d *Daemon) mirrorProblems() (out []string) {
	for _, m := range d.pool.Mirrors() {
		if m.State == pool.MirrorFailed {
			out = append(out, fmt.Sprintf("%s: it is not mirrored any more: %s; once that is mended: varve mirror attach %s --to %s", m.Volume, m.Reason, m.Volume, m.Path))
		}
	}
	return out
}

// idleMirrors names the volumes whose mirrors are not in sync, and that no job copies.
func (d *Daemon) idleMirrors() (names []string) {
	d.mirrors.mu.Lock() // first: a job that ends meanwhile would be missing, and its work not
	defer d.mirrors.mu.Unlock()
	for _, m := range d.pool.Mirrors() {
		if d.mirrors.jobs[m.VolumeID] == "" && d.mirrors.stopped[m.VolumeID] && m.State == pool.MirrorSyncing {
			names = append(names, m.Volume)
		}
	}
	return names
}
