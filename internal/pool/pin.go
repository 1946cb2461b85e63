package pool

import (
	"slices"
	"sync"
	"sync/atomic"

	"varve/internal/pool/blockmap"
)

// pins are the states that somebody walks, which no superblock may know any more. What they
// refer to is not given back: see docs/design/reclaim.md.
type pins struct {
	mu    sync.Mutex
	held  []*pinned
	bytes atomic.Int64 // that they alone refer to, by the last mark

	rootsMu sync.Mutex            // whoever holds it takes no other lock
	roots   map[*lasting]struct{} // that somebody looks blocks up in
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
	one := &pinned{slices.Clone(roots)}
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

// lasting is a map that never changes, for as long as somebody looks blocks up in it. Once it lies in the log it no
// longer keeps the nodes that it had in memory: what is clean is the cache's to keep.
type lasting struct{ root atomic.Pointer[blockmap.Root] }

func (l *lasting) now() blockmap.Root { return *l.root.Load() }

// PlacedRun is blockmap.Root.PlacedRun.
func (l *lasting) PlacedRun(pins *blockmap.Pins, lba, limit uint64) (uint64, error) {
	return l.now().PlacedRun(pins, lba, limit)
}

// keep returns what looks blocks up in a map until drop is called.
func (k *pins) keep(r blockmap.Root) *lasting {
	l := &lasting{}
	l.root.Store(&r)
	k.rootsMu.Lock()
	defer k.rootsMu.Unlock()
	if k.roots == nil {
		k.roots = map[*lasting]struct{}{}
	}
	k.roots[l] = struct{}{}
	return l
}

func (k *pins) drop(l *lasting) {
	k.rootsMu.Lock()
	defer k.rootsMu.Unlock()
	delete(k.roots, l)
}

// settle lets go of the nodes in memory of all maps that lie in the log by now.
func (k *pins) settle() {
	k.rootsMu.Lock()
	for l := range k.roots {
		if r := l.now(); r != r.Settled() {
			r = r.Settled()
			l.root.Store(&r)
		}
	}
	k.rootsMu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range k.held {
		for i := range one.roots {
			one.roots[i].root = one.roots[i].root.Settled()
		}
	}
}
