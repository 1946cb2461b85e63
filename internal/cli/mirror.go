package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"varve/internal/contract"
)

type mirrorCommands struct {
	Attach mirrorAttach `cmd:"" help:"Have a volume written to a file as well. What the file lacks is copied meanwhile; one whose mirror has failed gets only what was written since."`
	Status mirrorStatus `cmd:"" help:"Show a volume's mirror."`
	Split  mirrorSplit  `cmd:"" help:"Make a full copy, as of this instant, of a mirror that is in sync, and detach it."`
	Resync mirrorResync `cmd:"" help:"Make the file of a full copy the mirror of its volume again, which the copy is given up for. Only what has changed since is copied."`
	Detach mirrorDetach `cmd:"" help:"Write a volume to its mirror no more; the file stays."`
}

// absolute is a path as the daemon wants it; an empty one stays so.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return abs, nil
}

type mirrorAttach struct {
	Volume string `arg:"" help:"Volume."`
	To     string `required:"" help:"Raw file or block device; a file is made if it does not exist, and what exists needs --force." placeholder:"FILE"`
}

// Run attaches a mirror.
func (c mirrorAttach) Run(t *terminal) error {
	to, err := absolute(c.To)
	if err != nil {
		return err
	}
	m, err := t.client.AttachMirror(t.ctx, c.Volume, contract.AttachMirror{To: to, Force: t.Force})
	if err != nil {
		return err
	}
	err = t.showMirror(m)
	if m.Job != "" {
		t.chat("job %s copies what differs; clients need not wait for it", m.Job)
	}
	return err
}

func (t *terminal) showMirror(m contract.Mirror) error {
	return t.print(m, func(w *table) { drawMirror(w, m) })
}

func drawMirror(w *table, m contract.Mirror) {
	w.row("volume", m.Volume)
	w.row("file", m.File)
	w.row("state", m.State)
	w.row("the same", percent(m.Progress))
	w.row("to be copied", humanSize(m.DifferingBytes))
	w.field("reason", m.Reason)
	w.field("by job", m.Job)
}

type mirrorStatus struct {
	Volume string `arg:"" help:"Volume."`
}

// Run shows a mirror.
func (c mirrorStatus) Run(t *terminal) error {
	m, err := t.client.Mirror(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.showMirror(m)
}

type mirrorSplit struct {
	Volume  string            `arg:"" help:"Volume."`
	Name    string            `required:"" help:"Name of the snapshot." placeholder:"SNAP"`
	Next    string            `help:"Mirror the volume to this file from then on." placeholder:"FILE"`
	KeepFor keepFor           `help:"Delete the snapshot after this time: 90m, 36h, 7d. The file stays." placeholder:"DURATION"`
	Label   map[string]string `help:"Label, repeatable." placeholder:"K=V" mapsep:"none"`
}

// Run splits a mirror off.
func (c mirrorSplit) Run(t *terminal) error {
	next, err := absolute(c.Next)
	if err != nil {
		return err
	}
	s, err := t.client.SplitMirror(t.ctx, c.Volume, contract.SplitMirror{
		Name: c.Name, Next: next, Labels: c.Label, KeepFor: time.Duration(c.KeepFor).Seconds(), Force: t.Force,
	})
	if err != nil {
		return err
	}
	err = t.print(s.Snapshot, func(w *table) { drawMade(w, []contract.Snapshot{s.Snapshot}) })
	if s.Next != nil {
		t.chat("the volume is mirrored to %s from now on", s.Next.File)
	}
	return err
}

type mirrorResync struct {
	Snapshot string `arg:"" help:"Snapshot, VOLUME@NAME, whose content lies in a file."`
	Reverse  bool   `help:"Make the volume what the copy is rather than the other way round, which keeps the present, and the copy: the same as snapshot rollback."`
}

// Run makes a mirror of a copy.
func (c mirrorResync) Run(t *terminal) error {
	if c.Reverse {
		return snapshotRollback{Snapshot: c.Snapshot}.Run(t)
	}
	m, err := t.client.ResyncMirror(t.ctx, c.Snapshot)
	if err != nil {
		return err
	}
	return t.showMirror(m)
}

type mirrorDetach struct {
	Volume string `arg:"" help:"Volume."`
}

// Run detaches a mirror.
func (c mirrorDetach) Run(t *terminal) error {
	m, err := t.client.Mirror(t.ctx, c.Volume)
	if err == nil {
		err = t.client.DetachMirror(t.ctx, c.Volume)
	}
	if err != nil {
		return err
	}
	t.chat("detached: %s; the file stays", m.File)
	return nil
}

// mirrored sees to it that a volume is mirrored to a file, and in sync: what it attached for that it detaches if that fails.
func (t *terminal) mirrored(volume, file string) (err error) {
	_, err = t.client.Mirror(t.ctx, volume)
	var told *contract.Error
	if err == nil || !errors.As(err, &told) || told.Code != contract.CodeNotFound {
		return err
	}
	m, err := t.client.AttachMirror(t.ctx, volume, contract.AttachMirror{To: file, Force: t.Force})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.client.DetachMirror(context.WithoutCancel(t.ctx), volume))
		}
	}()
	if m.Job == "" { // it is done, or has not begun
		return nil
	}
	job, err := t.client.Job(t.ctx, m.Job, 0)
	if err != nil {
		return err
	}
	_, err = t.await(job)
	return err
}
