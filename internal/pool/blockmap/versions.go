package blockmap

import (
	"context"
	"errors"
)

// EachVersion visits the versions that the nodes of a root name which are newer than epoch since, in runs: the blocks from
// lba on have the versions from v on. Also those of blocks that are not newer themselves. It reads past the cache.
func (s *Store) EachVersion(ctx context.Context, r Root, since uint64, visit func(lba uint64, v Version, blocks uint64) error) error {
	return s.EachVersionOf(ctx, r, since, 0, MaxBlocks, visit)
}

// EachVersionOf is EachVersion for the nodes that have any of the blocks from lo up to hi.
func (s *Store) EachVersionOf(ctx context.Context, r Root, since, lo, hi uint64, visit func(lba uint64, v Version, blocks uint64) error) error {
	w := versionWalk{store: s, since: since, lo: lo, hi: hi, visit: visit}
	return w.walk(ctx, &r.c, rootLevel, 0)
}

// EachReadableVersion is EachVersion of all nodes, but that it passes over those that cannot be read.
func (s *Store) EachReadableVersion(ctx context.Context, r Root, visit func(lba uint64, v Version, blocks uint64) error) error {
	w := versionWalk{store: s, hi: MaxBlocks, visit: visit, passOver: true}
	return w.walk(ctx, &r.c, rootLevel, 0)
}

type versionWalk struct {
	store    *Store
	since    uint64
	lo, hi   uint64
	visit    func(lba uint64, v Version, blocks uint64) error
	passOver bool // what is damaged
}

func (w *versionWalk) walk(ctx context.Context, c *child, level int, first uint64) error {
	switch {
	case first >= w.hi || first+span(level) <= w.lo:
		return nil
	case c.placed:
		return w.visit(first, Version(first), span(level))
	case c.empty() || c.tomb || c.lost || c.newest() <= w.since:
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := w.store.uncached(c, level, first)
	if w.passOver && errors.Is(err, ErrDamaged) {
		return nil
	} else if err != nil {
		return err
	}
	if level == 0 {
		return n.eachVersion(first, w.visit)
	}
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if err := w.walk(ctx, &n.children[r], level-1, first+uint64(i)*span(level-1)); err != nil {
			return err
		}
		r++
	}
	return nil
}

// eachVersion visits a leaf's.
func (n *node) eachVersion(first uint64, visit func(lba uint64, v Version, blocks uint64) error) error {
	var lba, blocks uint64
	var from Version
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		v, ok := n.entries[r].Version()
		r++
		at := first + uint64(i)
		if ok && blocks > 0 && at == lba+blocks && v == from+Version(blocks) {
			blocks++
			continue
		}
		if blocks > 0 {
			if err := visit(lba, from, blocks); err != nil {
				return err
			}
		}
		if lba, from, blocks = at, v, 0; ok {
			blocks = 1
		}
	}
	if blocks == 0 {
		return nil
	}
	return visit(lba, from, blocks)
}

// PlacedRun tells for how many blocks from lba on, at most limit, a root is known, without looking further, to be as its
// volume's file was found; 0 if that is not known.
func (r Root) PlacedRun(pins *Pins, lba, limit uint64) (uint64, error) {
	c := &r.c
	for level := rootLevel; ; level-- {
		first := lba &^ (span(level) - 1)
		if c.placed {
			return min(first+span(level)-lba, limit), nil
		}
		if level == 0 || c.node == nil && c.ptr.Addr == 0 {
			return 0, nil
		}
		n := c.node
		if n == nil {
			var err error
			if n, err = pins.find(c, level, first); err != nil {
				return 0, err
			}
		}
		c = n.childOrNone(slotOf(lba, level))
	}
}
