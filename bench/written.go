package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/contract"
)

// writtenBy says what a load made the daemon write, from the end of one checkpoint to the end of a later one.
type writtenBy struct {
	Load        string  `json:"load"`
	Empty       bool    `json:"empty"` // whether the disk was, and each block written once; else it was full
	Checkpoints uint64  `json:"checkpoints"`
	Client      int64   `json:"client_bytes"`
	Log         int64   `json:"log_bytes"`     // records of clients and of checkpoints
	Copied      int64   `json:"copied_bytes"`  // by reclaim, apart
	Dirtied     int64   `json:"dirtied_bytes"` // page cache that the process made dirty, as the kernel counted: all of it
	Seconds     float64 `json:"seconds"`

	// Of the daemon's whole life, which began with filling the disk.
	Stalls map[string]stall `json:"checkpoint_stalls,omitempty"`
}

// sample is what a pool said at one time.
type sample struct {
	at      time.Time
	pool    contract.Pool
	dirtied int64
}

const (
	sampleEvery = 100 * time.Millisecond
	// leastCheckpoints must lie within what is measured.
	leastCheckpoints = 2
	// longestWritten bounds how long is written for them.
	longestWritten = 4 * time.Minute
)

// writtenSize is the size of the disk, bytes: room for some checkpoints.
func writtenSize(s settings) int64 { return max(s.Size, 1<<30) }

func measureWritten(ctx context.Context, s settings, r *results) error {
	for _, l := range chosen([]load{loadNamed("rand-write-4k-qd32"), loadNamed("rand-write-4k-qd1")}, s.loads) {
		if err := measureWrittenBy(ctx, s, l, r); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// measureWrittenBy writes each block of an empty disk once, and then overwrites it.
func measureWrittenBy(ctx context.Context, s settings, l load, r *results) (err error) {
	v, err := startVarve(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.stop()) }()
	size := writtenSize(s)
	if _, err := v.api.CreateVolume(ctx, contract.CreateVolume{Name: volumeName, Size: size}); err != nil {
		return err
	}
	add := func(found writtenBy) error {
		found.Load = l.name
		found.Stalls, err = v.stalls(ctx, s)
		r.Written = append(r.Written, found)
		return err
	}
	say("written: %s, every block once", l.name)
	samples, _, err := runSampled(ctx, v, size, l, limits{time: longestWritten, bytes: size, once: true})
	if err != nil {
		return err
	}
	found, ok := betweenCheckpoints(samples)
	if !ok {
		return fmt.Errorf("fewer than %d checkpoints in %d MiB", leastCheckpoints, size>>20)
	}
	found.Empty = true
	if err := add(found); err != nil {
		return err
	}
	// The longer, the more checkpoints; how many come depends on the machine.
	for length := max(2*s.Time, 5*time.Second); length < longestWritten; length *= 2 {
		if err := (fleet{v}).settle(ctx); err != nil {
			return err
		}
		say("written: %s, overwriting for %s", l.name, length)
		samples, _, err := runSampled(ctx, v, size, l, limits{time: length})
		if err != nil {
			return err
		}
		if found, ok := betweenCheckpoints(samples); ok {
			return add(found)
		}
	}
	return fmt.Errorf("fewer than %d checkpoints in %s", leastCheckpoints, longestWritten)
}

// betweenCheckpoints takes the samples at the ends of the first and the last checkpoint that ended meanwhile.
// ok is false if there are not enough.
func betweenCheckpoints(samples []sample) (found writtenBy, ok bool) {
	var first, last *sample
	for i := 1; i < len(samples); i++ {
		if samples[i].pool.Checkpoints > samples[i-1].pool.Checkpoints {
			if first == nil {
				first = &samples[i]
			}
			last = &samples[i]
		}
	}
	if first == nil || last.pool.Checkpoints < first.pool.Checkpoints+leastCheckpoints {
		return found, false
	}
	return writtenBy{
		Checkpoints: last.pool.Checkpoints - first.pool.Checkpoints,
		Client:      last.pool.ClientBytes - first.pool.ClientBytes,
		Log:         last.pool.LogBytes - first.pool.LogBytes,
		Copied:      last.pool.CopiedBytes - first.pool.CopiedBytes,
		Dirtied:     last.dirtied - first.dirtied,
		Seconds:     round3(last.at.Sub(first.at).Seconds()),
	}, true
}

// runSampled runs a load and asks the pool meanwhile, at the beginning, and at the end.
func runSampled(ctx context.Context, v *server, size int64, l load, by limits) ([]sample, figures, error) {
	var samples []sample
	take := func() error {
		pool, err := v.api.Pool(ctx, 0)
		if err != nil {
			return err
		}
		dirtied, err := v.dirtied()
		samples = append(samples, sample{time.Now(), pool, dirtied})
		return err
	}
	if err := take(); err != nil {
		return nil, figures{}, err
	}
	sampling, enough := context.WithCancel(ctx)
	var failed error
	var all sync.WaitGroup
	all.Go(func() {
		again := time.NewTicker(sampleEvery)
		defer again.Stop()
		for failed == nil {
			select {
			case <-again.C:
				failed = take()
			case <-sampling.Done():
				return
			}
		}
	})
	f, err := runLoad(ctx, v, size, l, by)
	enough()
	all.Wait()
	if err := errors.Join(err, failed); err != nil {
		return nil, f, err
	}
	return samples, f, take()
}

// reclaimFound says what reclaim costs where a full volume without snapshots is overwritten at random.
type reclaimFound struct {
	SizeBytes    int64   `json:"size_bytes"`
	Seconds      float64 `json:"seconds"`
	Client       int64   `json:"client_bytes"`
	Log          int64   `json:"log_bytes"`
	Copied       int64   `json:"copied_bytes"`
	Freed        int64   `json:"freed_bytes"`
	PeakPhysical int64   `json:"peak_physical_bytes"`
	Load         figures `json:"load"`

	Stalls map[string]stall `json:"checkpoint_stalls,omitempty"`
}

// bound is what the pool's files may take: 1.3 times what is live, and 256 MiB.
func (f reclaimFound) bound() int64 { return f.SizeBytes/10*13 + 256<<20 }

func measureReclaim(ctx context.Context, s settings, r *results) (err error) {
	v, err := startVolume(ctx, s, s.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.stop()) }()
	say("reclaim: overwrite every block in random order")
	if _, err := fio(ctx, v.uri, s.Size, "--rw=randwrite", "--bs=4k", "--iodepth=32"); err != nil {
		return err
	}
	say("reclaim: overwrite at random for %s", s.AgeTime)
	samples, f, err := runSampled(ctx, v, s.Size, loadNamed("rand-write-4k-qd32"), limits{time: s.AgeTime})
	if err != nil {
		return err
	}
	first, last := samples[0], samples[len(samples)-1]
	found := &reclaimFound{
		SizeBytes: s.Size, Seconds: round3(last.at.Sub(first.at).Seconds()), Load: f,
		Client: last.pool.ClientBytes - first.pool.ClientBytes, Log: last.pool.LogBytes - first.pool.LogBytes,
		Copied: last.pool.CopiedBytes - first.pool.CopiedBytes, Freed: last.pool.ReclaimedBytes - first.pool.ReclaimedBytes,
	}
	for _, s := range samples {
		found.PeakPhysical = max(found.PeakPhysical, s.pool.PhysicalBytes)
	}
	if found.Stalls, err = v.stalls(ctx, s); err != nil {
		return err
	}
	r.Reclaim = found
	return nil
}
