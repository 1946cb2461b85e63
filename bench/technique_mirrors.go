package main

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
)

// splitTimes is how often a mirror is split while somebody writes.
const splitTimes = 5

// mirrorFound compares a volume with a mirror in step to one without, and tells how long the split takes.
type mirrorFound struct {
	Inplace   bool      `json:"inplace"`
	Pairs     []pair    `json:"pairs"`
	SplitMS   []float64 `json:"split_ms"`   // until the command ended
	PauseMS   []float64 `json:"pause_ms"`   // of writers, as the daemon tells
	SlowestMS []float64 `json:"slowest_ms"` // the slowest of the client's writes that ended meanwhile
}

func measureMirrors(ctx context.Context, s settings, found *techniquesFound) error {
	for _, inplace := range []bool{false, true} {
		name := mirrorName(inplace)
		if found.hopeless(name) || !s.techniques.MatchString(name) {
			continue // the reason is told already
		}
		one, err := measureMirror(ctx, s, inplace)
		if err != nil {
			return err
		}
		found.Mirrors = append(found.Mirrors, *one)
	}
	return nil
}

func measureMirror(ctx context.Context, s settings, inplace bool) (_ *mirrorFound, err error) {
	s.FrozenBlocks = s.Size / 4 / block.Size
	var servers fleet
	defer func() { err = errors.Join(err, servers.stop()) }()
	var both [2]*varveDisk
	for i := range both {
		if both[i], err = startVarveDisk(ctx, s, "mirror", inplace); err != nil {
			return nil, err
		}
		servers = append(servers, both[i].server)
	}
	single, mirrored := both[0], both[1]
	if err := mirrored.attachMirror(ctx); err != nil {
		return nil, err
	}
	t := &mirrorFound{Inplace: inplace}
	for n := range s.Pairs {
		p, err := writePair(ctx, s, n, single, mirrored)
		if err != nil {
			return nil, err
		}
		t.Pairs = append(t.Pairs, p)
	}
	for n := range splitTimes {
		if n > 0 {
			if err := mirrored.attachMirror(ctx); err != nil {
				return nil, err
			}
		}
		if err := t.split(ctx, mirrored, fmt.Sprintf("split-%d", n)); err != nil {
			return nil, err
		}
	}
	say("techniques: mirror (inplace: %v): %.3f of a single leg, split in %.2f ms", inplace, median(speedUps(t.Pairs, frozenWrites)), median(t.SplitMS))
	return t, nil
}

// split splits a mirror while somebody writes.
func (t *mirrorFound) split(ctx context.Context, d *varveDisk, name string) (err error) {
	w, err := newWriter(ctx, d.uri)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	w.begin(depth)
	if err := w.wait(between, true); err != nil {
		return err
	}
	w.slowest.Store(0)
	made, err := d.splitMirror(ctx, name)
	if err != nil {
		return err
	}
	t.SplitMS, t.SlowestMS = append(t.SplitMS, made.Usable), append(t.SlowestMS, w.slowestMS())
	if made.Pause != nil {
		t.PauseMS = append(t.PauseMS, *made.Pause)
	}
	return w.failure()
}
