package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/contract"
	"varve/internal/objects/s3/s3test"
)

// lineFound is a bucket at the end of a line on loopback, and at the end of a longer one.
type lineFound struct {
	DelayMS float64     `json:"delay_ms"` // of the longer, each way
	Near    []lineRound `json:"near"`     // by round
	Far     []lineRound `json:"far"`
}

// lineRound is a first backup of the image, and a restore.
type lineRound struct {
	Backup  spent `json:"backup"`
	Restore spent `json:"restore"`
}

// lineDelay is added to each byte, each way: an answer comes twice as much later.
const lineDelay = 20 * time.Millisecond

// measureLine compares a long line with a short one. Both go through the same proxy, so that it costs both the same.
func (b *backupsFound) measureLine(ctx context.Context, s settings, dir, image string) error {
	found := &lineFound{DelayMS: ms(lineDelay)}
	for round := range s.BackupRounds {
		err := hosted(dir, func(h *host) error { return found.measureRound(ctx, s, h, round, dir, image) })
		if err != nil {
			return err
		}
		say("backups: S3 round %d of %d: backup %.1f s near, %.1f s far, restore %.1f s near, %.1f s far", round+1, s.BackupRounds,
			found.Near[round].Backup.Seconds, found.Far[round].Backup.Seconds, found.Near[round].Restore.Seconds, found.Far[round].Restore.Seconds)
	}
	b.Line = found
	return nil
}

func (f *lineFound) measureRound(ctx context.Context, s settings, h *host, round int, dir, image string) (err error) {
	d, err := openDepot(ctx, s, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	server := s3test.Start(h, s3test.Options{})
	flags, err := d.s3Flags(server.AccessKey, server.SecretKey)
	if err != nil {
		return err
	}
	lines := []struct {
		bucket string
		delay  time.Duration
		found  *[]lineRound
		store  *store
		id     string
		now    lineRound
	}{{bucket: "near", found: &f.Near}, {bucket: "far", delay: lineDelay, found: &f.Far}}
	for i := range lines {
		l := &lines[i]
		server.Bucket(l.bucket, s3test.Plain)
		url := "s3://" + s3test.NewProxy(h, server.Address, l.delay).Address + "/" + l.bucket
		if l.store, err = d.init(ctx, l.bucket, url, flags...); err != nil {
			return err
		}
	}
	disk := volume{volumeName, image}
	for _, i := range inTurn(len(lines), round) {
		l := &lines[i]
		if err := errors.Join(syncFileSystem(dir), warmFiles(image)); err != nil {
			return err
		}
		if l.now.Backup, l.id, err = l.store.backup(ctx, disk, contract.BackupFull); err != nil {
			return fmt.Errorf("%s: %w", l.bucket, err)
		}
	}
	for _, i := range inTurn(len(lines), round+1) {
		l := &lines[i]
		file := filepath.Join(d.dir, "restored")
		if err := syncFileSystem(dir); err != nil {
			return err
		}
		if l.now.Restore, err = l.store.restore(ctx, l.id, file); err != nil {
			return fmt.Errorf("%s: %w", l.bucket, err)
		}
		if err := errors.Join(sameContent(image, file), os.Remove(file)); err != nil {
			return fmt.Errorf("%s: what was restored: %w", l.bucket, err)
		}
	}
	for _, l := range lines {
		*l.found = append(*l.found, l.now)
	}
	return nil
}

// host is what a server that is made for tests is told to be a test: it has a directory, and ends what was begun.
type host struct {
	testing.TB // nothing is called but what is below
	dir        string
	cleanups   []func()
	failed     bool
}

// unhosted is a failure on its way up.
type unhosted struct{ error }

// hosted does something for which a host is needed.
func hosted(dir string, do func(*host) error) (err error) {
	h := &host{dir: dir}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case unhosted:
			err = r.error
		default:
			panic(r)
		}
		h.failed = err != nil
		for len(h.cleanups) > 0 {
			last := len(h.cleanups) - 1
			f := h.cleanups[last]
			h.cleanups = h.cleanups[:last]
			f()
		}
	}()
	return do(h)
}

func (h *host) Helper() {}

func (h *host) Cleanup(f func()) { h.cleanups = append(h.cleanups, f) }

func (h *host) Failed() bool { return h.failed }

func (h *host) Logf(format string, args ...any) { say(format, args...) }

func (h *host) Fatal(args ...any) { panic(unhosted{errors.New(fmt.Sprint(args...))}) }

func (h *host) Fatalf(format string, args ...any) { panic(unhosted{fmt.Errorf(format, args...)}) }

// TempDir is removed in the end, after what was to be cleaned up later than it was asked for.
func (h *host) TempDir() string {
	dir, err := os.MkdirTemp(h.dir, "s3")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = os.RemoveAll(dir) }) // the directory above goes later
	return dir
}
