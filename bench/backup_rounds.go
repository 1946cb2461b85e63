package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Names of those that keep backups, as results.json and the tables have them.
const (
	keptByDaemon = "varve"
	keptAlone    = "varve without a daemon"
	keptByRestic = "restic"
	keptByBorg   = "borg"
	keptByKopia  = "kopia"
)

// keepers are in the order of the table. A daemon has an image of its own, as it does not share.
var keepers = []struct {
	name  string
	start func(ctx context.Context, s settings, image string) (keeper, error)
	own   bool
}{
	{keptByDaemon, startOwn(true), true},
	{keptAlone, startOwn(false), false},
	{keptByRestic, resticRecipe.start, false},
	{keptByBorg, borgRecipe.start, false},
	{keptByKopia, kopiaRecipe.start, false},
}

func keeperNames() (names []string) {
	for _, k := range keepers {
		names = append(names, k.name)
	}
	return names
}

// backupRound is what one of them did in a round. A step that was not reached took no time.
type backupRound struct {
	First      spent `json:"first"`
	Repository int64 `json:"repository_bytes"` // after that
	Again      spent `json:"again"`
	Verify     spent `json:"verify"`
	Restore    spent `json:"restore"`
}

// backupsFound is all of the section backups.
type backupsFound struct {
	Image    imageFound               `json:"image"`
	Rounds   map[string][]backupRound `json:"rounds"`   // by keeper
	Failures map[string]string        `json:"failures"` // by keeper or part; also what is not installed

	Idle []idleFound `json:"idle,omitempty"`
	Days *daysFound  `json:"days,omitempty"`
	Line *lineFound  `json:"line,omitempty"`

	failed []string // those whose failures are no lack of the machine's
}

// measureBackups goes on where a keeper or a part fails: that costs what it would have found, and the exit status.
func measureBackups(ctx context.Context, s settings, r *results) (err error) {
	found := &backupsFound{Rounds: map[string][]backupRound{}, Failures: map[string]string{}}
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	say("backups: make an image of %d MiB of programs and libraries", s.BackupContent>>20)
	image := filepath.Join(dir, "image")
	if found.Image, err = makeImage(ctx, dir, image, s.BackupContent); err != nil {
		return err
	}
	r.Backups = found
	for round := range s.BackupRounds {
		if err := found.measureRound(ctx, s, round, dir, image); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		name    string
		measure func(ctx context.Context, s settings, dir, image string) error
	}{{"unchanged backups", found.measureIdle}, {"daily backups", found.measureDays}, {"S3", found.measureLine}} {
		err := part.measure(ctx, s, dir, image)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			found.fail(s, part.name, err)
		}
	}
	if len(found.failed) > 0 {
		return fmt.Errorf("nothing, or not all, was found for: %s", strings.Join(found.failed, "; "))
	}
	return nil
}

// fail notes the first reason why something has no figures, without telling where the files lay.
func (b *backupsFound) fail(s settings, name string, err error) {
	say("backups: %s: failed: %v", name, err)
	if b.Failures[name] != "" {
		return
	}
	if !errors.Is(err, errAbsent) {
		b.failed = append(b.failed, name)
	}
	b.Failures[name] = strings.ReplaceAll(firstLine(err.Error()), s.dir, "DIR")
}

// runningKeeper is one in a round.
type runningKeeper struct {
	keeper
	name   string
	found  backupRound
	failed bool
}

// backupSteps are what each does in a round, one right after the other.
var backupSteps = []struct {
	name string
	warm func(keeper) string // what is to be in the page cache
	do   func(ctx context.Context, dir string, k *runningKeeper) error
}{
	{"first backup", keeper.source, func(ctx context.Context, _ string, k *runningKeeper) (err error) {
		if k.found.First, err = k.first(ctx); err != nil {
			return err
		}
		k.found.Repository, err = treeSize(k.repository())
		return err
	}},
	{"unchanged backup", keeper.source, func(ctx context.Context, _ string, k *runningKeeper) (err error) {
		k.found.Again, err = k.again(ctx)
		return err
	}},
	{"verify", keeper.repository, func(ctx context.Context, _ string, k *runningKeeper) (err error) {
		k.found.Verify, err = k.verify(ctx)
		return err
	}},
	{"restore", keeper.repository, restoreAndCompare},
}

// restoreAndCompare fails where what comes back is not what was there.
func restoreAndCompare(ctx context.Context, dir string, k *runningKeeper) (err error) {
	out, err := os.MkdirTemp(dir, "restored")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(out)) }()
	took, file, err := k.restore(ctx, out)
	if err != nil {
		return err
	}
	if err := sameContent(k.source(), file); err != nil {
		return fmt.Errorf("what was restored: %w", err)
	}
	k.found.Restore = took
	return nil
}

// measureRound takes all keepers through the steps, each with an empty repository.
func (b *backupsFound) measureRound(ctx context.Context, s settings, round int, dir, image string) (err error) {
	var all []*runningKeeper
	defer func() {
		for _, k := range all {
			err = errors.Join(err, k.stop())
		}
	}()
	for _, c := range keepers {
		if b.Failures[c.name] != "" && len(b.Rounds[c.name]) == 0 || !s.keepers.MatchString(c.name) {
			continue
		}
		its := image
		if c.own {
			its = image + "-adopted"
			if err := os.RemoveAll(its); err != nil {
				return err
			}
			if _, err := copyFile(image, its, -1); err != nil {
				return err
			}
		}
		k, err := c.start(ctx, s, its)
		if err != nil {
			b.fail(s, c.name, err)
			continue
		}
		all = append(all, &runningKeeper{keeper: k, name: c.name})
	}
	for i, step := range backupSteps {
		for _, n := range inTurn(len(all), round+i) {
			k := all[n]
			if k.failed {
				continue
			}
			err := errors.Join(syncFileSystem(dir), warmFiles(step.warm(k)))
			if err == nil {
				err = step.do(ctx, dir, k)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				k.failed = true
				b.fail(s, k.name, fmt.Errorf("%s: %w", step.name, err))
			}
		}
	}
	for _, k := range all {
		if f := k.found; f.First.Seconds > 0 { // what came before a failure stands
			b.Rounds[k.name] = append(b.Rounds[k.name], f)
			say("backups: round %d of %d: %-22s first %.1f s, unchanged %.1f s, verify %.1f s, restore %.1f s, %d MiB", round+1, s.BackupRounds, k.name,
				f.First.Seconds, f.Again.Seconds, f.Verify.Seconds, f.Restore.Seconds, f.Repository>>20)
		}
	}
	return nil
}

// failures tells why something has no figures, or not all, in the order of the names.
func (b *backupsFound) failures() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(b.Failures)) {
		out = append(out, fmt.Sprintf("**%s: %s**\n", name, b.Failures[name]))
	}
	return out
}
