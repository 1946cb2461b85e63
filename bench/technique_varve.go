package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"varve/internal/contract"
)

// varveDisk is a volume of varve that snapshots are taken of by one technique.
type varveDisk struct {
	*server
	s         settings
	technique string
	inplace   bool
	legs      int // how many files were made for mirrors and clones
}

// redirect starts a volume in the pool, inplace one in a raw file of its own.
func redirect(technique string) func(context.Context, settings) (frozen, error) {
	return func(ctx context.Context, s settings) (frozen, error) { return startVarveDisk(ctx, s, technique, false) }
}

func inplace(technique string) func(context.Context, settings) (frozen, error) {
	return func(ctx context.Context, s settings) (frozen, error) { return startVarveDisk(ctx, s, technique, true) }
}

func startVarveDisk(ctx context.Context, s settings, technique string, inplace bool) (*varveDisk, error) {
	v, err := startVarve(ctx, s)
	if err != nil {
		return nil, err
	}
	d := &varveDisk{server: v, s: s, technique: technique, inplace: inplace}
	request := contract.CreateVolume{Name: volumeName, Size: s.Size}
	if inplace {
		request.Inplace = d.rawFile()
	}
	if _, err := v.api.CreateVolume(ctx, request); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	if err := errors.Join(fill(ctx, v, s.Size), d.settle(ctx)); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return d, nil
}

// rawFile is where the data of an inplace volume lies.
func (d *varveDisk) rawFile() string { return filepath.Join(d.dir, "disk") }

func (d *varveDisk) disk() *server { return d.server }

func ref(name string) string { return volumeName + "@" + name }

// create takes snapshots as a user does, by the command line, but for those that take less than a process needs to start.
func (d *varveDisk) create(ctx context.Context, name string) (creation, error) {
	d.dirty = true
	began := time.Now()
	switch d.technique {
	case contract.TechniqueRow, contract.TechniqueCOW:
		made, err := d.api.CreateSnapshots(ctx, contract.CreateSnapshot{Volumes: []string{volumeName}, Name: name, Technique: d.technique})
		if err != nil {
			return creation{}, err
		}
		return creation{Usable: sinceMS(began), Pause: made[0].PauseMS}, nil
	case contract.TechniqueCOWCopy:
		if err := d.cli(ctx, nil, "--detach", "snapshot", "create", volumeName, "--name", name, "--technique", d.technique); err != nil {
			return creation{}, err
		}
		made, err := d.await(ctx, name, func(contract.Snapshot) bool { return true })
		return creation{Usable: sinceMS(began), Copies: true, Pause: made.PauseMS}, err
	case contract.TechniqueClone:
		args := []string{"snapshot", "create", volumeName, "--name", name, "--technique", d.technique}
		if d.inplace { // who has a raw file wants one
			args = append(args, "--to", d.newFile())
		}
		if err := d.cli(ctx, nil, args...); err != nil {
			return creation{}, err
		}
		made, err := d.await(ctx, name, isPhysical)
		return creation{Usable: sinceMS(began), Copies: true, Whole: sinceMS(began), Pause: made.PauseMS}, err
	case contract.TechniqueMirror:
		if err := d.attachMirror(ctx); err != nil {
			return creation{}, err
		}
		whole := sinceMS(began)
		made, err := d.splitMirror(ctx, name)
		made.Copies, made.Whole = true, whole
		return made, err
	default:
		return creation{}, fmt.Errorf("there is no technique %q", d.technique)
	}
}

// newFile names a file beside the volume's that does not exist.
func (d *varveDisk) newFile() string {
	d.legs++
	return filepath.Join(d.dir, fmt.Sprintf("copy%d", d.legs))
}

// attachMirror returns when the new leg has all that the volume has.
func (d *varveDisk) attachMirror(ctx context.Context) error {
	d.dirty = true
	if err := d.cli(ctx, nil, "mirror", "attach", volumeName, "--to", d.newFile()); err != nil {
		return err
	}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		var status struct {
			State string `json:"state"`
		}
		if err := d.cli(ctx, &status, "mirror", "status", volumeName); err != nil {
			return err
		}
		switch status.State {
		case "in_sync":
			return nil
		case "syncing":
		default:
			return fmt.Errorf("the mirror is %q while it is to come in step", status.State)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// splitMirror tells how long the split took and stopped the writers.
func (d *varveDisk) splitMirror(ctx context.Context, name string) (creation, error) {
	d.dirty = true
	began := time.Now()
	if err := d.cli(ctx, nil, "mirror", "split", volumeName, "--name", name); err != nil {
		return creation{}, err
	}
	usable := sinceMS(began)
	made, err := d.api.Snapshot(ctx, ref(name))
	return creation{Usable: usable, Pause: made.PauseMS}, err
}

func isPhysical(s contract.Snapshot) bool { return s.Class == "physical" }

// await returns when a snapshot is there and is as wanted.
func (d *varveDisk) await(ctx context.Context, name string, wanted func(contract.Snapshot) bool) (contract.Snapshot, error) {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		s, err := d.api.Snapshot(ctx, ref(name))
		var told *contract.Error
		missing := errors.As(err, &told) && told.Code == contract.CodeNotFound
		if err == nil && wanted(s) || err != nil && !missing {
			return s, err
		}
		jobs, err := d.api.Jobs(ctx)
		if err != nil {
			return s, err
		}
		for _, j := range jobs {
			if j.State == contract.JobFailed {
				return s, fmt.Errorf("the job %s on %s failed: %s", j.Kind, j.Object, j.Reason)
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

func (d *varveDisk) whole(ctx context.Context, name string) error {
	if !d.copies() {
		return nil
	}
	_, err := d.await(ctx, name, isPhysical)
	return err
}

// copies tells whether the snapshots are copies of their own, or become such.
func (d *varveDisk) copies() bool {
	return d.technique != contract.TechniqueRow && d.technique != contract.TechniqueCOW
}

func (d *varveDisk) open(_ context.Context, name string) (*server, func() error, error) {
	view := *d.server
	view.uri = d.volumeURI(ref(name))
	return &view, func() error { return nil }, nil
}

func (d *varveDisk) rollback(ctx context.Context, name string) (usable, copied time.Duration, err error) {
	d.dirty = true
	began := time.Now()
	var done contract.Rollback
	if d.copies() { // the command waits for what has to be copied before anybody can see it
		err = d.cli(ctx, &done, "snapshot", "rollback", ref(name))
	} else {
		done, err = d.api.Rollback(ctx, ref(name), false)
	}
	if err != nil {
		return 0, 0, err
	}
	usable = time.Since(began)
	if done.CopyBack == nil {
		return usable, usable, nil
	}
	err = d.finish(ctx, *done.CopyBack)
	return usable, time.Since(began), err
}

func (d *varveDisk) remove(ctx context.Context, name string) error {
	d.dirty = true
	return d.api.DeleteSnapshots(ctx, []string{ref(name)})
}

const (
	quietFor     = 1500 * time.Millisecond // without a byte written, and all is settled: small writes come into an adopted file within a second
	quietAtLast  = 2 * time.Minute         // that a server has for it
	quietSamples = 50 * time.Millisecond
)

// settle waits until the daemon writes nothing any more, before and after what nothing holds is given back: what it does
// in the background is part of what it was asked.
func (d *varveDisk) settle(ctx context.Context) error {
	if d.dirty {
		if err := d.quiet(ctx); err != nil {
			return err
		}
		if err := (fleet{d.server}).settle(ctx); err != nil {
			return err
		}
		if err := d.quiet(ctx); err != nil {
			return err
		}
	}
	return fleet{d.server}.sync()
}

// quiet returns when the daemon has written nothing for a while.
func (d *varveDisk) quiet(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, quietAtLast)
	defer cancel()
	again := time.NewTicker(quietSamples)
	defer again.Stop()
	last, since := int64(-1), time.Now()
	for {
		now, err := d.dirtied()
		if err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) >= quietFor {
			return nil
		}
		select {
		case <-again.C:
		case <-limited.Done():
			return fmt.Errorf("the daemon has nothing to do and goes on writing: %w", limited.Err())
		}
	}
}

func (d *varveDisk) written() (int64, error) { return deviceWritten(d.dir) }

// used is what the pool holds, as a reclaim has just counted it, and the files beside it. Files that the pool keeps to
// write them again belong to nobody.
func (d *varveDisk) used(ctx context.Context) (int64, error) {
	pool, err := d.api.Pool(ctx, 0)
	if err != nil {
		return 0, err
	}
	all, err := allocated(d.dir)
	if err != nil {
		return 0, err
	}
	log, err := allocated(filepath.Join(d.dir, "data"))
	return pool.LiveBytes + all - log, err
}

// cli runs a command of varve and reads what it prints as JSON into out, unless that is nil. The error is what it says.
func (d *varveDisk) cli(ctx context.Context, out any, args ...string) error {
	said, complaint := new(bytes.Buffer), new(bytes.Buffer)
	cmd := exec.CommandContext(ctx, d.s.varve, append([]string{"--data", filepath.Join(d.dir, "data"), "--quiet", "-o", "json"}, args...)...)
	cmd.Stdout, cmd.Stderr = said, complaint
	if err := cmd.Run(); err != nil {
		if text := strings.TrimPrefix(firstLine(complaint.String()), "varve: "); text != "" {
			return errors.New(text)
		}
		return fmt.Errorf("varve %s: %w", strings.Join(args[:min(2, len(args))], " "), err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(said.Bytes(), out); err != nil {
		return fmt.Errorf("varve %s: %w: %.200s", strings.Join(args, " "), err, said)
	}
	return nil
}

// allocated is what all files below a directory take on the disk, bytes.
func allocated(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return ignoreGone(err)
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreGone(err)
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += stat.Blocks * 512
		}
		return nil
	})
	return sum, err
}

// ignoreGone leaves out files that were removed since they were listed.
func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
