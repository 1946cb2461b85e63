package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// depth is how many writes are under way while operations are timed under load.
const depth = 32

// between is how many blocks are written before each operation, so that it has something to freeze.
const between = 256

// pauses are the times of one operation on one volume.
type pauses struct {
	volumeBytes int64
	load        bool
	operation   string
	writes      float64 // a second, under load
	// In milliseconds, for each time the operation was done: what the daemon tells, how long the command
	// took, and the slowest of the client's writes that ended meanwhile.
	pause, durable, command, slowest []float64
}

func measurePauses(ctx context.Context, s settings) ([]pauses, error) {
	var all []pauses
	for _, size := range []int64{1 << 30, block.MaxDeviceBytes} {
		for _, load := range []bool{false, true} {
			found, err := measureVolume(ctx, s, size, load)
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
		}
	}
	return all, nil
}

// measureVolume times operations on a fresh pool.
func measureVolume(ctx context.Context, s settings, size int64, load bool) (found []pauses, err error) {
	say("snapshots, rollbacks and clones of %d GiB, under load: %v", size>>30, load)
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return nil, err
	}
	v, err := serveVarve(ctx, s, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, v.stop()) }()
	for _, name := range []string{"bench", "rolled"} {
		if _, err := varve(ctx, s, dir, "volume", "create", name, "--size", strconv.FormatInt(size, 10)); err != nil {
			return nil, err
		}
	}
	if _, err := varve(ctx, s, dir, "snapshot", "create", "rolled", "--name", "origin"); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, varveURI(dir, "bench"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if load {
		w.begin(depth)
	}

	base := pauses{volumeBytes: size, load: load}
	snapshot, rollback, clone, flush, nothing := base, base, base, base, base
	snapshot.operation, rollback.operation, clone.operation = "snapshot", "rollback", "clone"
	flush.operation, nothing.operation = "only a FLUSH", "nothing, for as long as the snapshot's command"
	began := time.Now()
	for n := range s.times {
		name := fmt.Sprintf("s%d", n)
		if err := w.ready(load); err != nil {
			return nil, err
		}
		var made []contract.Snapshot
		if err := snapshot.time(ctx, s, dir, w, &made, "snapshot", "create", "bench", "--name", name); err != nil {
			return nil, err
		}
		snapshot.tell(made[0].PauseMS, made[0].DurableMS)

		if err := w.ready(load); err != nil {
			return nil, err
		}
		var cloned contract.Volume
		if err := clone.time(ctx, s, dir, w, &cloned, "volume", "create", fmt.Sprintf("c%d", n), "--from", "bench@"+name); err != nil {
			return nil, err
		}
		clone.tell(cloned.PauseMS, cloned.DurableMS)

		// What is rolled back is another volume: nobody may write to it, but its pool's writers wait.
		if err := scribble(ctx, varveURI(dir, "rolled")); err != nil {
			return nil, err
		}
		if err := w.ready(load); err != nil {
			return nil, err
		}
		var rolled contract.Rollback
		if err := rollback.time(ctx, s, dir, w, &rolled, "snapshot", "rollback", "rolled@origin"); err != nil {
			return nil, err
		}
		rollback.tell(&rolled.PauseMS, &rolled.DurableMS)

		if load {
			if err := w.ready(load); err != nil {
				return nil, err
			}
			if err := flush.timeFlush(ctx, dir, w); err != nil {
				return nil, err
			}
			w.slowest.Store(0)
			<-time.After(time.Duration(snapshot.command[n] * float64(time.Millisecond)))
			nothing.slowest = append(nothing.slowest, w.slowestMS())
		}
	}
	found = []pauses{snapshot, rollback, clone}
	if load {
		found = append(found, flush, nothing)
		for i := range found {
			found[i].writes = float64(w.done.Load()) / time.Since(began).Seconds()
		}
	}
	return found, w.failure()
}

// time runs a command and decodes its result.
func (p *pauses) time(ctx context.Context, s settings, dir string, w *writer, result any, args ...string) error {
	w.slowest.Store(0)
	began := time.Now()
	out, err := varve(ctx, s, dir, args...)
	p.command = append(p.command, float64(time.Since(began).Microseconds())/1000)
	if p.load {
		p.slowest = append(p.slowest, w.slowestMS())
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(out, result)
}

// timeFlush times a FLUSH of another connection: what waiting for the disk does to writers, lineage aside.
func (p *pauses) timeFlush(ctx context.Context, dir string, w *writer) error {
	c, err := client.Dial(ctx, varveURI(dir, "bench"), client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	w.slowest.Store(0)
	began := time.Now()
	err = c.Flush(ctx)
	p.durable = append(p.durable, float64(time.Since(began).Microseconds())/1000)
	p.slowest = append(p.slowest, w.slowestMS())
	return err
}

func (p *pauses) tell(pause, durable *float64) {
	if pause != nil && durable != nil {
		p.pause, p.durable = append(p.pause, *pause), append(p.durable, *durable)
	}
}

// scribble writes a few blocks over a connection of its own.
func scribble(ctx context.Context, uri string) error {
	c, err := client.Dial(ctx, uri, client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	for range between {
		if err := writeSomewhere(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

var content = func() []byte {
	p := make([]byte, block.Size)
	rand.NewChaCha8([32]byte{}).Read(p)
	return p
}()

func writeSomewhere(ctx context.Context, c *client.Client) error {
	op := &block.Op{Kind: block.OpWrite, Offset: rand.Int64N(c.SizeBytes()/block.Size) * block.Size, Length: block.Size, Data: content}
	c.Submit(ctx, []*block.Op{op})
	return op.Err
}

// writer writes blocks at random places over one connection.
type writer struct {
	ctx     context.Context
	cancel  context.CancelFunc
	c       *client.Client
	all     sync.WaitGroup
	done    atomic.Int64 // writes
	slowest atomic.Int64 // of those that ended since it was last set to 0; ns
	err     atomic.Pointer[error]
}

func newWriter(ctx context.Context, uri string) (*writer, error) {
	c, err := client.Dial(ctx, uri, client.Options{})
	if err != nil {
		return nil, err
	}
	w := &writer{c: c}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w, nil
}

// begin keeps so many writes under way until close.
func (w *writer) begin(depth int) {
	for range depth {
		w.all.Go(func() {
			for w.ctx.Err() == nil {
				if err := w.write(); err != nil {
					if w.ctx.Err() == nil {
						w.err.Store(&err)
					}
					return
				}
			}
		})
	}
}

func (w *writer) write() error {
	began := time.Now()
	if err := writeSomewhere(w.ctx, w.c); err != nil {
		return err
	}
	took := int64(time.Since(began))
	for {
		slowest := w.slowest.Load()
		if took <= slowest || w.slowest.CompareAndSwap(slowest, took) {
			break
		}
	}
	w.done.Add(1)
	return nil
}

// ready returns when enough was written for the next operation: by itself, or, without load, by this.
func (w *writer) ready(load bool) error {
	if !load {
		for range between {
			if err := w.write(); err != nil {
				return err
			}
		}
		return nil
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for until := w.done.Load() + between; w.done.Load() < until; {
		select {
		case <-again.C:
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
		if err := w.failure(); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) slowestMS() float64 { return float64(w.slowest.Load()) / 1e6 }

func (w *writer) failure() error {
	if err := w.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (w *writer) close() error {
	w.cancel()
	w.all.Wait()
	return w.c.Close()
}
