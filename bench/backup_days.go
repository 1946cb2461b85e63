package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"varve/internal/block"
	"varve/internal/contract"
)

// daysFound is a volume of which a part changes each day and is backed up.
type daysFound struct {
	Daemon    bool  `json:"daemon"` // else a file, which has to be read to know what changed
	SizeBytes int64 `json:"size_bytes"`
	First     spent `json:"first"`
	Days      []day `json:"days"`
	Busy      day   `json:"busy"` // one more, on which busyDay times as much changes

	// Restores of the last day's backup, before the busy one, and of a full of the same content, in pairs.
	LastRestores  []spent `json:"last_restores"`
	FreshRestores []spent `json:"fresh_restores"`
}

// day is one backup.
type day struct {
	Changed int64 `json:"changed_bytes"`
	Grew    int64 `json:"grew_bytes"` // the repository, all its files
	Took    spent `json:"took"`
}

const (
	dailyShare   = 100 // one block in so many changes each day
	busyDay      = 4
	restorePairs = 5
)

// dayDisk is what changes.
type dayDisk struct {
	volume
	size int64
	r    *store
}

// measureDays goes through the daemon, or without one where none is asked for.
func (b *backupsFound) measureDays(ctx context.Context, s settings, _, image string) (err error) {
	found := &daysFound{Daemon: s.keepers.MatchString(keptByDaemon)}
	d, err := openDepot(ctx, s, found.Daemon)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	disk := dayDisk{volume: volume{"daily", filepath.Join(d.dir, "disk")}}
	if disk.size, err = b.smallDisk(s, image, disk.file); err != nil {
		return err
	}
	found.SizeBytes = disk.size
	if err := d.adopt(ctx, disk.volume); err != nil {
		return err
	}
	if disk.r, err = d.directory(ctx, "repository"); err != nil {
		return err
	}
	var last string
	if found.First, last, err = disk.r.backup(ctx, disk.volume, contract.BackupFull); err != nil {
		return err
	}
	blocks := max(1, disk.size/block.Size/dailyShare)
	for n := range s.BackupDays {
		var today day
		if today, last, err = disk.pass(ctx, blocks, uint64(n)); err != nil {
			return fmt.Errorf("day %d: %w", n+1, err)
		}
		found.Days = append(found.Days, today)
	}
	b.Days = found
	if len(found.Days) == 0 {
		return nil
	}
	stored, changed := found.over(len(found.Days))
	say("backups: %s: %.2f bytes for each changed one, %.2f s a day", count(len(found.Days), "day"), float64(stored)/float64(changed), median(found.seconds()))
	if err := found.measureRestores(ctx, disk, last); err != nil {
		return err
	}
	found.Busy, _, err = disk.pass(ctx, busyDay*blocks, uint64(s.BackupDays))
	return err
}

// pass lets a day go by: so many blocks change, and an incremental is made.
func (d dayDisk) pass(ctx context.Context, blocks int64, seed uint64) (today day, id string, err error) {
	if err := d.r.change(ctx, d.volume, d.size, blocks, seed); err != nil {
		return today, "", err
	}
	if err := syncFileSystem(d.r.dir); err != nil {
		return today, "", err
	}
	before, err := treeSize(d.r.url)
	if err != nil {
		return today, "", err
	}
	if today.Took, id, err = d.r.backup(ctx, d.volume, contract.BackupIncremental); err != nil {
		return today, "", err
	}
	if today.Took.Told.Type != contract.BackupIncremental {
		return today, "", fmt.Errorf("the backup is %s", today.Took.Told.Type)
	}
	after, err := treeSize(d.r.url)
	today.Changed, today.Grew = blocks*block.Size, after-before
	return today, id, err
}

// measureRestores compares the last backup with the full of a fresh repository.
func (f *daysFound) measureRestores(ctx context.Context, d dayDisk, last string) error {
	fresh, err := d.r.directory(ctx, "fresh")
	if err != nil {
		return err
	}
	_, full, err := fresh.backup(ctx, d.volume, contract.BackupFull)
	if err != nil {
		return err
	}
	of := []struct {
		r    *store
		id   string
		file string
		took *[]spent
	}{
		{d.r, last, filepath.Join(d.r.dir, "restored-last"), &f.LastRestores},
		{fresh, full, filepath.Join(d.r.dir, "restored-fresh"), &f.FreshRestores},
	}
	for pair := range restorePairs {
		for _, i := range inTurn(len(of), pair) {
			x := of[i]
			if err := errors.Join(os.RemoveAll(x.file), syncFileSystem(d.r.dir), warmFiles(x.r.url)); err != nil {
				return err
			}
			took, err := x.r.restore(ctx, x.id, x.file)
			if err != nil {
				return err
			}
			*x.took = append(*x.took, took)
		}
		if err := sameContent(of[0].file, of[1].file); err != nil {
			return fmt.Errorf("the last backup and a full of the same content: %w", err)
		}
	}
	return nil
}

// over sums up the first n days: bytes stored and bytes changed.
func (f *daysFound) over(n int) (stored, changed int64) {
	for _, d := range f.Days[:n] {
		stored, changed = stored+d.Grew, changed+d.Changed
	}
	return stored, changed
}

func (f *daysFound) seconds() (out []float64) {
	for _, d := range f.Days {
		out = append(out, d.Took.Seconds)
	}
	return out
}
