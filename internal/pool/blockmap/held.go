package blockmap

import "context"

// MarkHeld is Mark for a root that is there for the sake of others alone: of its
// entries it visits those that one of others has as well. All roots must lie in the log.
func (s *Store) MarkHeld(ctx context.Context, r Root, own Own, others []Root, node func(Ptr), entries func([]Entry), lost func(lo, hi uint64)) error {
	h := held{store: s, own: own, node: node, entries: entries, lost: lost}
	cs := make([]*child, len(others))
	for i := range others {
		cs[i] = &others[i].c
	}
	return h.walk(ctx, &r.c, cs, rootLevel, 0)
}

type held struct {
	store   *Store
	own     Own
	node    func(Ptr)
	entries func([]Entry)
	lost    func(lo, hi uint64)
}

func (h *held) walk(ctx context.Context, c *child, others []*child, level int, first uint64) error {
	if c.lost {
		h.lost(first, first+span(level))
		return nil
	}
	if !h.own.walked(c) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := h.store.uncached(c, level, first)
	if err != nil {
		return err
	}
	if c.newest() > h.own.Nodes {
		h.node(c.ptr)
		if base := n.written.Load().base; base.Addr != 0 {
			h.node(base)
		}
	}
	var nodes []*node // of others, as far as they have anything here
	for _, o := range others {
		if o.mappedBlocks() == 0 {
			continue
		}
		if o.same(c) {
			nodes = []*node{n}
			break
		}
		other, err := h.store.uncached(o, level, first)
		if err != nil {
			return err
		}
		nodes = append(nodes, other)
	}
	if level == 0 {
		n.tellLost(h.lost)
		h.leaf(n, nodes)
		return nil
	}
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		below := make([]*child, len(nodes))
		for k, o := range nodes {
			c := o.child(i)
			below[k] = &c
		}
		if err := h.walk(ctx, &n.children[r], below, level-1, first+uint64(i)*span(level-1)); err != nil {
			return err
		}
		r++
	}
	return nil
}

func (h *held) leaf(n *node, others []*node) {
	var found []Entry
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if e := n.entries[r]; e.Stored() && e.Epoch > h.own.Data && heldBy(others, i, e) {
			found = append(found, e)
		}
		r++
	}
	h.entries(found)
}
