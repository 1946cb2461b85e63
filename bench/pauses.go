package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

const (
	// depth is how many writes are under way while operations are timed under load.
	depth = 32
	// between is how many blocks are written before each operation, so that it has something to freeze.
	between = 256
	// scattered is how many blocks are written at random places of a volume before anything is timed.
	scattered = 100_000
)

// pausedSizes are the volumes that operations are timed on, bytes.
var pausedSizes = []int64{1 << 30, block.MaxDeviceBytes}

// pausedVolume are the operations that were timed on one volume.
type pausedVolume struct {
	SizeBytes  int64       `json:"size_bytes"`
	Load       bool        `json:"load"`         // whether blocks were written meanwhile
	Writes     float64     `json:"writes_per_s"` // a second, under load
	Operations []operation `json:"operations"`

	Stalls map[string]stall `json:"checkpoint_stalls,omitempty"`
}

// operation holds times in milliseconds, one for each time it was done; empty where it does not apply.
type operation struct {
	Name     string    `json:"name"`
	Pause    []float64 `json:"pause_ms"`    // of all writers, as the daemon tells
	Durable  []float64 `json:"durable_ms"`  // until its record was on disk, pause included
	Answered []float64 `json:"answered_ms"` // until the API's answer
	Slowest  []float64 `json:"slowest_ms"`  // the slowest of the client's writes that ended meanwhile
}

// Names of operations.
const (
	opSnapshot = "snapshot create"
	opRollback = "rollback"
	opClone    = "clone"
	opDelete   = "snapshot delete"
	opFlush    = "(a FLUSH alone)"
	opNothing  = "(nothing, for as long as a snapshot takes)"
)

func measurePauses(ctx context.Context, s settings, r *results) error {
	for _, size := range pausedSizes {
		for _, load := range []bool{false, true} {
			say("pauses: a volume of %s, under load: %v", binary(size), load)
			found, err := measureVolume(ctx, s, size, load)
			if err != nil {
				return err
			}
			r.Pauses = append(r.Pauses, *found)
		}
	}
	return nil
}

// timing is the measurement on one volume.
type timing struct {
	v    *server
	w    *writer
	load bool
}

// measureVolume times operations on a fresh pool.
func measureVolume(ctx context.Context, s settings, size int64, load bool) (_ *pausedVolume, err error) {
	v, err := startVarve(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.stop()) }()
	// What is rolled back is another volume: nobody may write to it, but its pool's writers wait.
	for _, name := range []string{volumeName, "rolled"} {
		if _, err := v.api.CreateVolume(ctx, contract.CreateVolume{Name: name, Size: size}); err != nil {
			return nil, err
		}
		if err := scatter(ctx, v.volumeURI(name), scattered, depth); err != nil {
			return nil, err
		}
	}
	if _, err := v.api.CreateSnapshots(ctx, contract.CreateSnapshot{Volumes: []string{"rolled"}, Name: "origin"}); err != nil {
		return nil, err
	}
	if err := (fleet{v}).settle(ctx); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, v.uri)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if load {
		w.begin(depth)
	}
	t := timing{v, w, load}
	began := time.Now()
	found := &pausedVolume{SizeBytes: size, Load: load}
	if found.Operations, err = t.creations(ctx, s.Times); err != nil {
		return nil, err
	}
	deletions, err := t.deletions(ctx, s.Times)
	if err != nil {
		return nil, err
	}
	found.Operations = append(found.Operations, deletions)
	if load {
		found.Writes = round3(float64(w.done.Load()) / time.Since(began).Seconds())
	}
	for i, o := range found.Operations {
		found.Operations[i] = operation{o.Name, rounded(o.Pause), rounded(o.Durable), rounded(o.Answered), rounded(o.Slowest)}
	}
	if found.Stalls, err = v.stalls(ctx, s); err != nil {
		return nil, err
	}
	return found, w.failure()
}

func snapshotName(n int) string { return fmt.Sprintf("s%d", n) }

// creations times snapshots, clones of them and rollbacks, in turn.
func (t timing) creations(ctx context.Context, times int) ([]operation, error) {
	snapshot, clone, rollback := operation{Name: opSnapshot}, operation{Name: opClone}, operation{Name: opRollback}
	flush, nothing := operation{Name: opFlush}, operation{Name: opNothing}
	for n := range times {
		if err := t.time(&snapshot, func() (pause, durable *float64, err error) {
			made, err := t.v.snapshot(ctx, snapshotName(n))
			return made.PauseMS, made.DurableMS, err
		}); err != nil {
			return nil, err
		}
		if err := t.time(&clone, func() (pause, durable *float64, err error) {
			made, err := t.v.api.CreateVolume(ctx, contract.CreateVolume{Name: fmt.Sprintf("c%d", n), From: volumeName + "@" + snapshotName(n)})
			return made.PauseMS, made.DurableMS, err
		}); err != nil {
			return nil, err
		}
		if err := scatter(ctx, t.v.volumeURI("rolled"), between, 1); err != nil {
			return nil, err
		}
		if err := t.time(&rollback, func() (pause, durable *float64, err error) {
			done, err := t.v.api.Rollback(ctx, "rolled@origin", false)
			return &done.PauseMS, &done.DurableMS, err
		}); err != nil {
			return nil, err
		}
		if t.load {
			if err := t.alone(ctx, &flush, &nothing, snapshot.Answered[n]); err != nil {
				return nil, err
			}
		}
	}
	if t.load {
		return []operation{snapshot, clone, rollback, flush, nothing}, nil
	}
	return []operation{snapshot, clone, rollback}, nil
}

// deletions deletes what creations made: the clones, untimed, then the snapshots in random order, so
// that most of them lie between others.
func (t timing) deletions(ctx context.Context, times int) (operation, error) {
	o := operation{Name: opDelete}
	for n := range times {
		if err := t.v.api.DeleteVolume(ctx, fmt.Sprintf("c%d", n), false); err != nil {
			return o, err
		}
	}
	for _, n := range rand.New(rand.NewPCG(1, 1)).Perm(times) {
		if err := t.time(&o, func() (pause, durable *float64, err error) {
			return nil, nil, t.v.api.DeleteSnapshots(ctx, []string{volumeName + "@" + snapshotName(n)})
		}); err != nil {
			return o, err
		}
	}
	return o, nil
}

// time does an operation once enough was written, and notes how long it took.
func (t timing) time(o *operation, do func() (pause, durable *float64, err error)) error {
	if err := t.w.wait(between, t.load); err != nil {
		return err
	}
	t.w.slowest.Store(0)
	began := time.Now()
	pause, durable, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	o.Answered = append(o.Answered, float64(time.Since(began).Microseconds())/1000)
	if t.load {
		o.Slowest = append(o.Slowest, t.w.slowestMS())
	}
	if pause != nil && durable != nil {
		o.Pause, o.Durable = append(o.Pause, *pause), append(o.Durable, *durable)
	}
	return nil
}

// alone times what the disk and the machine do to writers by themselves: a FLUSH of another connection,
// lineage aside, and nothing for as long as given, in milliseconds.
func (t timing) alone(ctx context.Context, flush, nothing *operation, length float64) error {
	c, err := client.Dial(ctx, t.v.uri, client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := t.time(flush, func() (pause, durable *float64, err error) { return nil, nil, c.Flush(ctx) }); err != nil {
		return err
	}
	return t.time(nothing, func() (pause, durable *float64, err error) {
		select {
		case <-time.After(time.Duration(length * float64(time.Millisecond))):
			return nil, nil, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	})
}
