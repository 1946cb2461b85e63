package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"varve/internal/block"
)

// frozen is a served disk that snapshots are taken of, by varve or by what its users would otherwise take.
type frozen interface {
	// disk serves the volume.
	disk() *server
	// create takes a snapshot and returns when it can be used.
	create(ctx context.Context, name string) (creation, error)
	// whole returns when nothing is copied for the snapshot any more.
	whole(ctx context.Context, name string) error
	// open serves the snapshot, until the server that it returns is closed.
	open(ctx context.Context, name string) (v *server, closed func() error, err error)
	// rollback makes the snapshot the volume's content and keeps the present. It returns how long it took until clients
	// could read that, and until nothing was copied for it any more. errNone where there is no such thing.
	rollback(ctx context.Context, name string) (usable, copied time.Duration, err error)
	// remove deletes the snapshot.
	remove(ctx context.Context, name string) error
	// settle returns when all that was written is on the disk, and what nothing holds is given back.
	settle(ctx context.Context) error
	// written counts bytes that went to the disk so far; it may count those of others as well.
	// used is what the volume, its snapshots and their maps take there.
	written() (int64, error)
	used(ctx context.Context) (int64, error)
	stop() error
}

// errNone says that a peer has nothing of the kind.
var errNone = errors.New("there is no such thing")

// errAbsent says that this machine lacks what a contestant needs.
var errAbsent = errors.New("this machine has no means for it")

// creation says how a snapshot was made.
type creation struct {
	Usable float64  `json:"usable_ms"`          // until a reader could have it
	Copies bool     `json:"copies"`             // whether it is to be a copy of its own
	Whole  float64  `json:"whole_ms"`           // until it was; first writes come meanwhile
	Pause  *float64 `json:"pause_ms,omitempty"` // of all writers, as the daemon tells
}

// contestant is a technique on a layout, or a peer.
type contestant struct {
	name  string
	start func(ctx context.Context, s settings) (frozen, error) // serves a disk that was filled from end to end
}

// Names of contestants, as results.json and the tables have them.
const (
	redirectRow    = "row"
	redirectCopy   = "cow-copy, redirect"
	redirectClone  = "clone, redirect"
	redirectMirror = "mirror, redirect"
	inplaceCOW     = "cow"
	inplaceCopy    = "cow-copy, inplace"
	inplaceClone   = "clone, inplace"
	inplaceMirror  = "mirror, inplace"
	filterQcow2    = "qemu copy-before-write, qcow2"
	filterRaw      = "qemu copy-before-write, raw"
	xfsReflink     = "XFS reflink"
	btrfsReflink   = "btrfs reflink"
)

// batches are contestants that live at the same time, and take each step one right after the other.
var batches = [][]contestant{
	{
		{inplaceCOW, inplace("cow")}, {filterQcow2, startFilter("qcow2")}, {filterRaw, startFilter("raw")},
		{redirectRow, redirect("row")}, {xfsReflink, startReflink("xfs")}, {btrfsReflink, startReflink("btrfs")},
	},
	{{redirectCopy, redirect("cow-copy")}, {inplaceCopy, inplace("cow-copy")}, {redirectClone, redirect("clone")}, {inplaceClone, inplace("clone")}},
	{{redirectMirror, redirect("mirror")}, {inplaceMirror, inplace("mirror")}},
}

// techniqueNames is the order of the table: varve's own, the peers last.
var techniqueNames = []string{
	redirectRow, inplaceCOW, redirectCopy, inplaceCopy, redirectClone, inplaceClone, redirectMirror, inplaceMirror,
	filterQcow2, filterRaw, xfsReflink, btrfsReflink,
}

// frozenRound is what one contestant did in one round: a filled disk is written to, frozen, written to at the same
// places for the first time and then again, read, rolled back, and the snapshot deleted.
type frozenRound struct {
	Before   figures  `json:"before"` // random writes before there was a snapshot
	Read     figures  `json:"read"`   // sequential, of the disk as it was filled
	Creation creation `json:"creation"`
	First    figures  `json:"first"`   // writes after it
	Rewrite  figures  `json:"rewrite"` // of the same blocks
	Client   int64    `json:"client_bytes"`
	Written  int64    `json:"written_bytes"` // for these first writes, until all was settled
	Space    int64    `json:"space_bytes"`   // more than before the snapshot
	Reread   figures  `json:"reread"`        // sequential, of the volume, after all these writes
	SnapSeq  figures  `json:"snapshot_seq"`
	SnapRand figures  `json:"snapshot_random"`

	NoRollback   bool    `json:"no_rollback,omitempty"`
	RollbackMS   float64 `json:"rollback_ms"`    // until usable
	CopiedBackMS float64 `json:"copied_back_ms"` // until nothing was copied any more
	DeleteMS     float64 `json:"delete_ms"`
	FreedMS      float64 `json:"freed_ms"` // until the space was given back, after that
}

// techniquesFound is what all contestants did.
type techniquesFound struct {
	SizeBytes int64                    `json:"size_bytes"`
	Blocks    int64                    `json:"blocks"` // written in each run
	Rounds    map[string][]frozenRound `json:"rounds"` // by contestant; one that failed has nothing of what comes later
	Stacked   map[string][]stacked     `json:"stacked"`
	Failures  map[string]string        `json:"failures"` // by contestant or comparison
	Close     *closeFound              `json:"close,omitempty"`
	Mirrors   []mirrorFound            `json:"mirrors,omitempty"`

	failed []string // those whose failures are no lack of the machine's
}

// measureTechniques goes on where a contestant fails: that costs its own row, and the exit status.
func measureTechniques(ctx context.Context, s settings, r *results) error {
	s.Size = s.FrozenSize
	found := &techniquesFound{
		SizeBytes: s.Size, Blocks: s.FrozenBlocks, Rounds: map[string][]frozenRound{}, Stacked: map[string][]stacked{}, Failures: map[string]string{},
	}
	r.Techniques = found
	for round := range s.FrozenRounds {
		for _, batch := range batches {
			if err := found.measureBatch(ctx, s, round, batch); err != nil {
				return err
			}
		}
	}
	for _, part := range []struct {
		name    string
		measure func(context.Context, settings, *techniquesFound) error
	}{{"many snapshots", measureStacked}, {"cow against none", measureClose}, {"mirror against a single leg", measureMirrors}} {
		err := part.measure(ctx, s, found)
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

// fail notes why a contestant or comparison has no figures, without telling where the files lay.
func (t *techniquesFound) fail(s settings, name string, err error) {
	say("techniques: %s: failed: %v", name, err)
	if t.Failures[name] == "" && !errors.Is(err, errAbsent) {
		t.failed = append(t.failed, name)
	}
	if t.Failures[name] == "" {
		t.Failures[name] = strings.ReplaceAll(firstLine(err.Error()), s.dir, "DIR")
	}
}

// hopeless tells whether a contestant failed before it had written to a frozen disk even once.
func (t *techniquesFound) hopeless(name string) bool {
	return t.Failures[name] != "" && len(t.Rounds[name]) == 0
}

// runner is a contestant in a round.
type runner struct {
	contestant
	frozen
	found  frozenRound
	failed bool
}

// measureBatch takes some contestants through one round.
func (t *techniquesFound) measureBatch(ctx context.Context, s settings, round int, batch []contestant) (err error) {
	var all []*runner
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.stop())
		}
	}()
	for _, c := range batch {
		if t.hopeless(c.name) || !s.techniques.MatchString(c.name) {
			continue
		}
		say("techniques: round %d of %d: fill a disk of %s", round+1, s.FrozenRounds, c.name)
		disk, err := c.start(ctx, s)
		if err != nil {
			t.fail(s, c.name, err)
			continue
		}
		all = append(all, &runner{contestant: c, frozen: disk})
	}
	for i, step := range steps {
		for _, k := range inTurn(len(all), round+i) {
			c := all[k]
			if c.failed {
				continue
			}
			if err := step.do(ctx, s, round, c); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				c.failed = true
				t.fail(s, c.name, fmt.Errorf("%s: %w", step.name, err))
			}
		}
	}
	for _, c := range all {
		if c.found.First.PerSecond > 0 { // what came before a failure stands
			t.Rounds[c.name] = append(t.Rounds[c.name], c.found)
			say("techniques: round %d of %d: %-30s %6.0f/s before, %6.0f/s first, %6.0f/s again, %.2f bytes for each", round+1, s.FrozenRounds, c.name,
				c.found.Before.PerSecond, c.found.First.PerSecond, c.found.Rewrite.PerSecond, float64(c.found.Written)/float64(c.found.Client))
		}
	}
	return nil
}

// steps are what happens to a disk in a round. Each leaves it settled.
var steps = []struct {
	name string
	do   func(context.Context, settings, int, *runner) error
}{
	{"write before the snapshot", func(ctx context.Context, s settings, round int, c *runner) (err error) {
		if err = warm(ctx, c.disk(), s.Size); err != nil {
			return err
		}
		if c.found.Read, err = readAll(ctx, c.disk(), s); err != nil {
			return err
		}
		c.found.Before, err = writeOnce(ctx, c, s, round)
		return err
	}},
	{"snapshot", freeze},
	{"write again", func(ctx context.Context, s settings, round int, c *runner) (err error) {
		c.found.Rewrite, err = writeOnce(ctx, c, s, round)
		return err
	}},
	{"read the volume", func(ctx context.Context, s settings, _ int, c *runner) (err error) {
		c.found.Reread, err = readAll(ctx, c.disk(), s)
		return err
	}},
	{"read the snapshot", readSnapshot},
	{"roll back", rollBack},
	{"delete", deleteSnapshot},
}

// frozenName is the snapshot's.
const frozenName = "frozen"

// freeze takes the snapshot and writes for the first time after it, also while it is still being copied.
func freeze(ctx context.Context, s settings, round int, c *runner) error {
	used, err := c.used(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if c.found.Creation, err = c.create(ctx, frozenName); err != nil {
		return err
	}
	written, err := c.written()
	if err != nil {
		return err
	}
	c.found.First, err = runLoad(ctx, c.disk(), s.Size, frozenWrites, blocksOnce(s, round))
	if err != nil {
		return err
	}
	if err := c.whole(ctx, frozenName); err != nil {
		return err
	}
	if c.found.Creation.Whole == 0 {
		c.found.Creation.Whole = sinceMS(began)
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	after, err := c.written()
	if err != nil {
		return err
	}
	usedNow, err := c.used(ctx)
	c.found.Client, c.found.Written, c.found.Space = s.FrozenBlocks*block.Size, after-written, usedNow-used
	return err
}

func readSnapshot(ctx context.Context, s settings, round int, c *runner) (err error) {
	v, closed, err := c.open(ctx, frozenName)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closed()) }()
	if c.found.SnapSeq, err = readAll(ctx, v, s); err != nil {
		return err
	}
	c.found.SnapRand, err = runLoad(ctx, v, s.Size, loadNamed("rand-read-4k-qd32"), limits{time: s.PairTime, seed: round})
	return err
}

func rollBack(ctx context.Context, _ settings, _ int, c *runner) error {
	usable, copied, err := c.rollback(ctx, frozenName)
	if errors.Is(err, errNone) {
		c.found.NoRollback = true
		return nil
	}
	if err != nil {
		return err
	}
	c.found.RollbackMS, c.found.CopiedBackMS = ms(usable), ms(copied)
	return c.settle(ctx)
}

func deleteSnapshot(ctx context.Context, _ settings, _ int, c *runner) error {
	began := time.Now()
	if err := c.remove(ctx, frozenName); err != nil {
		return err
	}
	c.found.DeleteMS = sinceMS(began)
	began = time.Now()
	err := c.settle(ctx)
	c.found.FreedMS = sinceMS(began)
	return err
}

// frozenWrites are the writes that snapshots are measured under.
var frozenWrites = loadNamed("rand-write-4k-qd32")

// blocksOnce is a run of so many different blocks in random order, the same for the same seed.
func blocksOnce(s settings, seed int) limits {
	return limits{time: longestRun, bytes: s.FrozenBlocks * block.Size, seed: seed, once: true}
}

// writeOnce writes different blocks of a settled disk in random order, and settles it again.
func writeOnce(ctx context.Context, c frozen, s settings, seed int) (figures, error) {
	f, err := runLoad(ctx, c.disk(), s.Size, frozenWrites, blocksOnce(s, seed))
	return f, errors.Join(err, c.settle(ctx))
}

// readAll reads a disk from its beginning to its end.
func readAll(ctx context.Context, v *server, s settings) (figures, error) {
	return runLoad(ctx, v, s.Size, loadNamed("seq-read-1m"), limits{time: longestRun, bytes: s.Size})
}

func ms(d time.Duration) float64 { return round3(float64(d.Microseconds()) / 1000) }

func sinceMS(t time.Time) float64 { return ms(time.Since(t)) }
