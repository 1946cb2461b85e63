package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	nbd "varve/internal/nbd/client"
)

// stackedDepths are the numbers of snapshots of one disk. Copies are not among what is stacked: each of theirs
// costs what the first one does, and nothing to whoever writes.
var stackedDepths = []int{1, 10, 100}

var stackedNames = []string{inplaceCOW, redirectRow, xfsReflink, btrfsReflink}

// stacked is a disk with so many snapshots, with a few changed blocks before each.
type stacked struct {
	Snapshots int       `json:"snapshots"` // fewer than wanted, where they took too long
	CreateMS  []float64 `json:"create_ms"` // of those that were made to get there
	First     figures   `json:"first"`     // random writes after the last of them
}

// stackedShare of the blocks of the other runs is written at each depth, so that the disk does not become all scattered
// by what is measured.
const stackedShare = 4

// stackedTime bounds how long snapshots are taken for at each depth: reflinks take the longer the more scattered a file is.
const stackedTime = 20 * time.Second

// measureStacked has each contestant with one snapshot, then each with ten, and so on. One that fails costs its own row.
func measureStacked(ctx context.Context, s settings, found *techniquesFound) (err error) {
	s.FrozenBlocks /= stackedShare
	var all []*runner
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.stop())
		}
	}()
	for _, c := range batches[0] {
		if !slices.Contains(stackedNames, c.name) || found.hopeless(c.name) || !s.techniques.MatchString(c.name) {
			continue
		}
		disk, err := c.start(ctx, s)
		if err != nil {
			found.fail(s, c.name, err)
			continue
		}
		all = append(all, &runner{contestant: c, frozen: disk})
	}
	for i, depth := range stackedDepths {
		for _, k := range inTurn(len(all), i) {
			c := all[k]
			if c.failed {
				continue
			}
			has := 0
			if earlier := found.Stacked[c.name]; len(earlier) > 0 {
				has = earlier[len(earlier)-1].Snapshots
			}
			made, err := stack(ctx, s, c, has, depth)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				c.failed = true
				found.fail(s, c.name, fmt.Errorf("%d snapshots: %w", depth, err))
				continue
			}
			say("techniques: %3d snapshots: %-14s the last in %.1f ms, then %.0f writes/s", made.Snapshots, c.name, made.CreateMS[len(made.CreateMS)-1], made.First.PerSecond)
			found.Stacked[c.name] = append(found.Stacked[c.name], made)
		}
	}
	return nil
}

// stack brings a disk from so many snapshots to so many, and writes.
func stack(ctx context.Context, s settings, c *runner, from, to int) (stacked, error) {
	made := stacked{Snapshots: from}
	client, err := nbd.Dial(ctx, c.disk().uri, nbd.Options{})
	if err != nil {
		return made, err
	}
	defer client.Close()
	for began := time.Now(); made.Snapshots < to && time.Since(began) < stackedTime; made.Snapshots++ {
		if err := change(ctx, client, made.Snapshots); err != nil {
			return made, err
		}
		one, err := c.create(ctx, fmt.Sprintf("stacked-%d", made.Snapshots))
		if err != nil {
			return made, err
		}
		made.CreateMS = append(made.CreateMS, one.Usable)
	}
	c.disk().dirty = true
	if err := c.settle(ctx); err != nil {
		return made, err
	}
	made.First, err = writeOnce(ctx, c, s, to)
	return made, err
}
