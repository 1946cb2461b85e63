package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/repository"
)

// A restore to a new volume that is cut short leaves it, unseen, for the next one of the same backup to the same name to go on with: what
// is there is compared, and the rest fetched. It goes when it is cancelled, when there is no room for it, when the name is wanted for another
// backup, and after a week.

const (
	// restoreLabel is what the volume has until it is whole: REPOSITORY/BACKUP.
	restoreLabel = "varve.restore-of"
	// begunFor is how long what was begun is kept.
	begunFor = 7 * 24 * time.Hour
)

func restoreOf(repository uuid.UUID, backup string) string { return repository.String() + "/" + backup }

// keepBegun tells whether a volume stays that is not whole.
func keepBegun(v pool.VolumeInfo, now time.Time) bool {
	age := now.Sub(v.CreatedAt)
	return v.Labels[restoreLabel] != "" && age > -begunFor && age < begunFor
}

// dropBegun gives up what was begun too long ago.
func (d *Daemon) dropBegun(now time.Time) {
	d.begins.Lock()
	defer d.begins.Unlock()
	for _, v := range d.pool.Incomplete() {
		if v.Labels[restoreLabel] == "" || keepBegun(v, now) || d.restoresTo(v.Name) {
			continue
		}
		if err := d.pool.DeleteIncomplete(context.Background(), v.Name); err != nil {
			d.log.Warn("what a restore has begun, will try again", "volume", v.Name, "error", err)
			continue
		}
		d.note("restore", v.Name, "what a restore had begun a week ago is given up")
	}
}

// begun finds a volume that a restore has begun, and that none works on; begins is held.
func (d *Daemon) begun(name string) (pool.VolumeInfo, bool) {
	for _, v := range d.pool.Incomplete() {
		if v.Name == name && v.Labels[restoreLabel] != "" && !d.restoresTo(name) {
			return v, true
		}
	}
	return pool.VolumeInfo{}, false
}

// restoresTo tells whether a job restores to a volume of that name.
func (d *Daemon) restoresTo(name string) bool {
	for _, j := range d.Jobs() {
		if j.Kind == contract.JobRestore && j.Object == name && !j.State.Final() {
			return true
		}
	}
	return false
}

// beginVolume makes the volume of a restore, or takes over what an earlier one has begun: then it is not fresh. begins is held until its
// job has been started.
func (d *Daemon) beginVolume(of string, name string, size int64) (fresh bool, err error) {
	if v, ok := d.begun(name); ok {
		if v.Labels[restoreLabel] == of && v.SizeBytes == size {
			return false, nil
		}
		if err := d.pool.DeleteIncomplete(context.Background(), name); err != nil {
			return false, err
		}
	}
	spec := pool.VolumeSpec{Name: name, SizeBytes: size, Incomplete: true, Labels: map[string]string{restoreLabel: of}}
	_, err = d.pool.CreateVolume(context.Background(), spec)
	return true, err
}

func (d *Daemon) restoreToVolume(k *knownRepository, id uuid.UUID, r contract.RestoreBackup, b repository.Backup) (contract.Job, error) {
	d.begins.Lock()
	defer d.begins.Unlock()
	fresh, err := d.beginVolume(restoreOf(id, b.ID), r.ToVolume, volumeBytes(b.SizeBytes))
	if err != nil {
		return contract.Job{}, err
	}
	remove := func() {
		if err := d.pool.DeleteIncomplete(context.Background(), r.ToVolume); err != nil {
			d.note("restore", r.ToVolume, "what the restore made cannot be removed: %v", err)
		}
	}
	begun := false
	undo := func() {
		if !begun && fresh {
			remove()
		}
	}
	return d.restoring(k, r, r.ToVolume, undo, func(ctx context.Context, j *job, u *use) (contract.BackupRestore, error) {
		volume, err := d.pool.OpenIncomplete(r.ToVolume)
		if err != nil {
			return contract.BackupRestore{}, err
		}
		begun = true
		out, lost := u.RestoreTo(ctx, r, volume, r.ToVolume, fresh, j.fraction)
		if err := volume.Close(); err != nil {
			return out, err
		}
		if lost != nil && !isLoss(r, out, lost) {
			if errors.Is(context.Cause(ctx), errCancelled) || errors.Is(lost, block.ErrNoSpace) {
				remove()
				return out, lost
			}
			return out, goesOn(lost, b.ID, r.ToVolume)
		}
		if err := d.pool.CompleteVolume(ctx, r.ToVolume, restoreLabel); err != nil {
			return contract.BackupRestore{}, err
		}
		if v, err := d.Volume(context.WithoutCancel(ctx), r.ToVolume); err == nil {
			out.Volume = &v
		}
		return out, lost
	})
}

// goesOn says that what a restore has begun stays.
func goesOn(err error, backup, volume string) error {
	told := Describe(err)
	hint := fmt.Sprintf("what is there stays for a week; to go on: varve backup restore %s --to-volume %s; to give it up: varve volume delete %s", backup, volume, volume)
	if told.Hint != "" {
		hint = told.Hint + "; " + hint
	}
	return told.WithHint("%s", hint)
}

// deleteBegun gives up what a restore has begun; false if there is nothing of that name.
func (d *Daemon) deleteBegun(name string) (bool, error) {
	d.begins.Lock()
	defer d.begins.Unlock()
	if _, ok := d.begun(name); !ok {
		return false, nil
	}
	return true, d.pool.DeleteIncomplete(context.Background(), name)
}

// begunRestores says what was begun and is not gone on with.
func (d *Daemon) begunRestores() (out []string) {
	for _, v := range d.pool.Incomplete() {
		if _, backup, ok := strings.Cut(v.Labels[restoreLabel], "/"); ok && !d.restoresTo(v.Name) {
			out = append(out, fmt.Sprintf("%s: a restore of backup %s to it was cut short; to go on: varve backup restore %s --to-volume %s; to give it up: varve volume delete %s", v.Name, backup, backup, v.Name, v.Name))
		}
	}
	return out
}
