package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"varve/internal/contract"
)

// idleFound is a volume that is backed up again and again and does not change.
type idleFound struct {
	What      string  `json:"what"`
	SizeBytes int64   `json:"size_bytes"`
	First     spent   `json:"first"`
	Runs      []spent `json:"runs"`
}

const (
	idleRuns   = 9
	hugeSize   = int64(64) << 40
	hugeBlocks = 1 << 14 // that it holds, scattered
)

// measureIdle backs up, through a daemon that has the repository open, an adopted file and the largest volume there is.
func (b *backupsFound) measureIdle(ctx context.Context, s settings, dir, image string) (err error) {
	if !s.keepers.MatchString(keptByDaemon) {
		return fmt.Errorf("%w: no daemon was asked for", errAbsent)
	}
	d, err := openDepot(ctx, s, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	small := volume{"small", filepath.Join(d.dir, "disk")}
	size, err := b.smallDisk(s, image, small.file)
	if err != nil {
		return err
	}
	if err := d.adopt(ctx, small); err != nil {
		return err
	}
	huge := volume{name: "huge"}
	if _, err := d.daemon.api.CreateVolume(ctx, contract.CreateVolume{Name: huge.name, Size: hugeSize}); err != nil {
		return err
	}
	if err := scatter(ctx, d.daemon.volumeURI(huge.name), hugeBlocks, depth); err != nil {
		return err
	}
	r, err := d.directory(ctx, "repository")
	if err != nil {
		return err
	}
	volumes := []volume{small, huge}
	found := []idleFound{
		{What: "adopted file, full", SizeBytes: size},
		{What: fmt.Sprintf("in the pool, %d scattered blocks", hugeBlocks), SizeBytes: hugeSize},
	}
	for i, v := range volumes {
		if found[i].First, _, err = r.backup(ctx, v, contract.BackupFull); err != nil {
			return err
		}
	}
	for run := range idleRuns {
		for _, i := range inTurn(len(volumes), run) {
			if err := syncFileSystem(dir); err != nil {
				return err
			}
			took, _, err := r.backup(ctx, volumes[i], contract.BackupAuto)
			if err != nil {
				return err
			}
			if took.Told.Type != contract.BackupIncremental {
				return fmt.Errorf("an unchanged backup is %s", took.Told.Type)
			}
			found[i].Runs = append(found[i].Runs, took)
		}
	}
	for _, f := range found {
		say("backups: unchanged, %-8s %.3f s at the command line, %d objects", binary(f.SizeBytes), median(secondsOf(f.Runs)), f.Runs[0].Told.Objects)
	}
	b.Idle = found
	return nil
}

// smallDisk is the beginning of the image, in a file of its own, and its size: some GiB is enough where a volume is backed up often.
func (b *backupsFound) smallDisk(s settings, image, file string) (int64, error) {
	return copyFile(image, file, min(s.BackupDisk, b.Image.SizeBytes))
}

func secondsOf(all []spent) (out []float64) {
	for _, x := range all {
		out = append(out, x.Seconds)
	}
	return out
}
