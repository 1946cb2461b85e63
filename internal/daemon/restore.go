package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/repository"
)

// keptByRestore is what the names begin with of snapshots that keep what was there before a restore.
const keptByRestore = "auto-before-restore"

// RestoreBackup starts a job that brings a backup back: to a new volume, which is seen once it is complete; to a new volume that can be used at
// once; into a volume, which becomes what the backup holds at one instant; to a file, which appears when it is complete; or to a block device.
func (d *Daemon) RestoreBackup(ctx context.Context, r contract.RestoreBackup) (contract.Job, error) {
	targets := 0
	for _, name := range []string{r.ToVolume, r.ToFile, r.InPlace} {
		if name != "" {
			targets++
		}
	}
	usage := func(what string) (contract.Job, error) {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "restore backup %s: %s", r.Backup, what)
	}
	switch {
	case targets != 1:
		return usage("to a volume, to a file, or in place")
	case r.Instant && r.ToVolume == "":
		return usage("instantly is to a new volume")
	case r.Instant && r.SkipDamaged:
		return usage("instantly, nobody knows yet what is lost: leave one of the two out")
	case r.Limit < 0:
		return usage("a limit below 0")
	}
	u, b, err := d.find(ctx, r.Repo, r.Backup, anyOf, d.repositories.use)
	if err != nil {
		return contract.Job{}, err
	}
	defer u.done()
	r.Backup = b.ID
	switch {
	case r.ToFile != "":
		return d.restoreToFile(u.known, r)
	case r.InPlace != "":
		return d.restoreInPlace(ctx, u.known, r, b.Backup)
	case r.Instant:
		return d.restoreInstantly(u, r, b.Backup)
	}
	return d.restoreToVolume(u.known, u.id, r, b.Backup)
}

// restoring starts the job of a restore. work is called with a repository that is open, or else undo.
func (d *Daemon) restoring(k *knownRepository, r contract.RestoreBackup, target string, undo func(), work func(ctx context.Context, j *job, u *use) (contract.BackupRestore, error)) (contract.Job, error) {
	job, err := d.jobs.startRemote(contract.JobRestore, target, func(ctx context.Context, j *job) (*contract.Result, error) {
		u, err := d.repositories.limited(ctx, k, 0, r.Limit)
		if err != nil {
			undo()
			return nil, err
		}
		defer u.done()
		out, err := work(ctx, j, u)
		if err != nil && !isLoss(r, out, err) {
			undo()
			return nil, err
		}
		d.note("restore", target, "backup %s of %s is restored to %s", out.Backup.ID, out.Backup.Volume, target)
		return &contract.Result{Restore: &out}, err
	})
	if err != nil {
		undo()
	}
	return job, err
}

// isLoss tells that a restore is done, and went around what is lost.
func isLoss(r contract.RestoreBackup, out contract.BackupRestore, err error) bool {
	var told *contract.Error
	return r.SkipDamaged && len(out.Lost) > 0 && errors.As(err, &told) && told.Code == contract.CodeDamaged
}

// volumeBytes is the size of a volume that holds a disk of a size.
func volumeBytes(size int64) int64 {
	return max(pool.MinVolumeBytes, (size+block.SectorSize-1)/block.SectorSize*block.SectorSize)
}

func (d *Daemon) restoreToFile(k *knownRepository, r contract.RestoreBackup) (contract.Job, error) {
	if err := d.placeable(r.ToFile); err != nil {
		return contract.Job{}, err
	}
	if info, err := os.Stat(r.ToFile); err == nil && !info.IsDir() && !r.Force {
		return contract.Job{}, fmt.Errorf("restore to %s: %w", r.ToFile, fs.ErrExist)
	}
	if user := d.pool.UsedBy(r.ToFile); user != "" {
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "restore to %s: %s has it", r.ToFile, user).
			WithHint("name another file, or restore into the volume: --in-place VOLUME")
	}
	return d.restoring(k, r, r.ToFile, func() {}, func(ctx context.Context, j *job, u *use) (contract.BackupRestore, error) {
		return u.RestoreFile(ctx, r, j.fraction)
	})
}

// restoreInPlace makes a volume what a backup holds, at one instant, and keeps the present as a snapshot. Until then clients see what
// was there, whatever happens; those that have written stand in the way when it begins and when it ends.
func (d *Daemon) restoreInPlace(ctx context.Context, k *knownRepository, r contract.RestoreBackup, b repository.Backup) (contract.Job, error) {
	info, err := d.volumeInfo(r.InPlace)
	if err != nil {
		return contract.Job{}, err
	}
	if b.SizeBytes != volumeBytes(b.SizeBytes) {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "restore backup %s into volume %q: it has %d bytes, which no volume has", b.ID, r.InPlace, b.SizeBytes).
			WithHint("restore it to a new volume: --to-volume NAME")
	}
	if err := d.pool.CheckRewrite(r.InPlace, b.SizeBytes); err != nil {
		return contract.Job{}, restoreHint(err, r.InPlace)
	}
	if b.VolumeID != info.ID && !r.Force {
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "restore backup %s into volume %q: it is of another volume, %q (%s)", b.ID, r.InPlace, b.Volume, b.VolumeID).
			WithHint("to have that volume's content in this one: --force")
	}
	if err := d.unlessRollingBack(r.InPlace, info.ID); err != nil {
		return contract.Job{}, err
	}
	free := func(ctx context.Context, name string) error {
		if r.Force {
			d.sessions.disconnect(name, true, "the volume is restored from a backup")
		}
		return restoreHint(d.sessions.unlessInUse(ctx, func() error { return d.pool.CheckUnwritten(name) }, name), name)
	}
	if err := free(ctx, r.InPlace); err != nil {
		return contract.Job{}, err
	}
	job, err := d.restoring(k, r, r.InPlace, func() {}, func(ctx context.Context, j *job, u *use) (out contract.BackupRestore, err error) {
		now, found := d.volumeByID(info.ID) // it may have been renamed
		if !found {
			return out, fmt.Errorf("restore into volume %q: %w", r.InPlace, pool.ErrNotFound)
		}
		if err := free(ctx, now.Name); err != nil {
			return out, err
		}
		var lost error
		done, _, err := d.pool.Rewrite(ctx, now.Name, b.SizeBytes, keptByRestore, func(ctx context.Context, target block.Device) error {
			out, lost = u.RestoreTo(ctx, r, target, now.Name, false, j.fraction)
			if lost != nil && !isLoss(r, out, lost) {
				return lost
			}
			if now, found := d.volumeByID(info.ID); found && r.Force { // it may have been renamed since
				d.sessions.disconnect(now.Name, true, "the volume is restored from a backup")
			}
			return nil
		})
		if err != nil {
			return contract.BackupRestore{}, hinted(err, pool.ErrInUse, "nothing is restored; see that nobody writes to the volume meanwhile, and do it again")
		}
		ctx = context.WithoutCancel(ctx)
		d.snapshotsChanged()
		out.CopyBack = d.copyBackAfterRollback(done.Kept.Volume)
		if kept, err := d.snapshot(ctx, done.Kept); err == nil {
			out.Kept = &kept
		}
		if v, err := d.Volume(ctx, done.Kept.Volume); err == nil {
			out.Volume = &v
		}
		return out, lost
	})
	d.jobs.rollsBack(job.ID, info.ID)
	return job, err
}

func restoreHint(err error, volume string) error {
	err = hinted(err, block.ErrReadOnly, "restore it to a new volume or file: --to-volume NAME, or --to FILE")
	return hinted(err, pool.ErrInUse, "it would not notice that the content changes: disconnect it first (varve volume show %s), or have that done: --force", volume)
}
