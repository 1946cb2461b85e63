package pool

import (
	"slices"
	"sync"
	"sync/atomic"
)

// pins are the states that somebody walks, which no superblock may know any more. What they
// refer to is not given back: see docs/design/reclaim.md.
type pins struct {
	mu    sync.Mutex
	held  []*pinned
	bytes atomic.Int64 // that they alone refer to, by the last mark
}

// pinned are maps as they were at one instant.
type pinned struct{ roots []ownedRoot }

// pin holds what choose returns until release is called. choose runs with mu held for reading and returns maps
// as they are then, in the log or in memory; of each, what its state's parent does not have is kept.
func (p *Pool) pin(choose func() ([]ownedRoot, error)) (release func(), err error) {
	k := &p.reclaimer.pins
	k.mu.Lock() // held so that a basis is chosen either before, and then refers to all of it, or with it
	defer k.mu.Unlock()
	p.mu.RLock()
	roots, err := choose()
	p.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	one := &pinned{roots}
	k.held = append(k.held, one)
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.held = slices.DeleteFunc(k.held, func(o *pinned) bool { return o == one })
		if len(k.held) == 0 {
			k.bytes.Store(0)
		}
	}, nil
}

// marked notes how much pinned states were found to hold.
func (k *pins) marked(bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.held) > 0 {
		k.bytes.Store(bytes)
	}
}

// basis returns the state that a sweep may go by, and what is pinned beside it.
func (p *Pool) basis() (*frozenState, []ownedRoot) {
	p.checkpointMu.Lock()
	defer p.checkpointMu.Unlock()
	k := &p.reclaimer.pins
	k.mu.Lock()
	defer k.mu.Unlock()
	var roots []ownedRoot
	for _, one := range k.held {
		roots = append(roots, one.roots...)
	}
	return p.reclaimer.older, roots
}
