package blockmap

import (
	"context"
)

// MarkBeyond visits what is r's own and than does not refer to: the
// places of its nodes that lie in the log, of the pieces that they differ from, and its entries. r must be frozen and may
// be in memory; than must lie in the log. What they have in common costs nothing.
func (s *Store) MarkBeyond(ctx context.Context, r, than Root, own Own, node func(Ptr), entries func([]Entry)) error {
	b := beyond{store: s, own: own, node: node, entries: entries}
	return b.walk(ctx, &r.c, &than.c, rootLevel, 0)
}

type beyond struct {
	store   *Store
	own     Own
	node    func(Ptr)
	entries func([]Entry)
}

func (b *beyond) walk(ctx context.Context, c, than *child, level int, first uint64) error {
	if !b.own.walked(c) || c.same(than) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := b.store.uncached(c, level, first)
	if err != nil {
		return err
	}
	if w := n.written.Load(); w != nil && c.newest() > b.own.Nodes {
		b.node(w.ptr)
		if w.base.Addr != 0 {
			b.node(w.base)
		}
	}
	other := &node{}
	if than.ptr.Addr != 0 {
		if other, err = b.store.uncached(than, level, first); err != nil {
			return err
		}
	}
	if level == 0 {
		b.leaf(n, other)
		return nil
	}
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		below := other.child(i)
		if err := b.walk(ctx, &n.children[r], &below, level-1, first+uint64(i)*span(level-1)); err != nil {
			return err
		}
		r++
	}
	return nil
}

func (b *beyond) leaf(n, other *node) {
	var found []Entry
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if e := n.entries[r]; e.Stored() && e.Epoch > b.own.Data && other.entry(i).Addr != e.Addr {
			found = append(found, e)
		}
		r++
	}
	b.entries(found)
}

// uncached returns the child's node, and adds nothing to the cache.
func (s *Store) uncached(c *child, level int, first uint64) (*node, error) {
	if c.node != nil {
		return c.node, nil
	}
	if c.lost {
		return unreadable(level, first, c.epoch, 0, 0), nil
	}
	if c.placed {
		return untouched(level, first, c.epoch, 0, 0), nil
	}
	if n := s.cached(c.ptr); n != nil && n.level == level && n.first == first {
		return n, nil
	}
	return s.load(c.ptr, level, first)
}
