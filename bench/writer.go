package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/nbd/client"
)

// writer writes blocks at random places over one connection, and knows the slowest.
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
						w.cancel()
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

// wait returns when another n blocks were written: by those that begin has set to work, or, without
// them, by this.
func (w *writer) wait(n int64, load bool) error {
	if !load {
		for range n {
			if err := w.write(); err != nil {
				return err
			}
		}
		return nil
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for until := w.done.Load() + n; w.done.Load() < until; {
		select {
		case <-again.C:
		case <-w.ctx.Done():
			if err := w.failure(); err != nil {
				return err
			}
			return w.ctx.Err()
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

// close waits for what is under way.
func (w *writer) close() error {
	w.cancel()
	w.all.Wait()
	return w.c.Close()
}

func writeSomewhere(ctx context.Context, c *client.Client) error {
	op := &block.Op{Kind: block.OpWrite, Offset: rand.Int64N(c.SizeBytes()/block.Size) * block.Size, Length: block.Size, Data: content}
	c.Submit(ctx, []*block.Op{op})
	return op.Err
}

// scatter writes n blocks at random places over a connection of its own, depth at a time.
func scatter(ctx context.Context, uri string, n int64, depth int) error {
	w, err := newWriter(ctx, uri)
	if err != nil {
		return err
	}
	w.begin(depth)
	err = w.wait(n, true)
	if closed := w.close(); err == nil {
		err = closed
	}
	return err
}
