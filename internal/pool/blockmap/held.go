package blockmap

import "context"

// Heir is a state that descends directly from one that is there for the sake of others alone. What these others are, and which
// descend from further such states between, is said once for all of them: a chain of n is n heirs.
type Heir struct {
	Root  Root
	Shown bool    // it has its blocks for itself; else for the sake of those below it
	Below []*Heir // if not Shown
}

// MarkHeld is Mark for a root that is there for the sake of others alone: of its
// entries it visits those that one of its heirs has as well, or one below them. All roots must lie in the log.
func (s *Store) MarkHeld(ctx context.Context, r Root, own Own, heirs []*Heir, node func(Ptr), entries func([]Entry), lost func(lo, hi uint64)) error {
	h := held{store: s, own: own, heirs: heirs, trails: map[*Heir]*trail{}, node: node, entries: entries, lost: lost}
	return h.walk(ctx, &r.c, rootLevel, 0)
}

type held struct {
	store   *Store
	own     Own
	heirs   []*Heir
	above   [rootLevel + 1]*child // by level, on the way to what is walked
	trails  map[*Heir]*trail
	node    func(Ptr)
	entries func([]Entry)
	lost    func(lo, hi uint64)
}

// trail has the inner nodes, by level, that led to what was last looked up in a heir.
type trail [rootLevel + 1]*node

// heldTrails bounds the trails that are remembered.
const heldTrails = 256

func (h *held) walk(ctx context.Context, c *child, level int, first uint64) error {
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
	h.above[level] = c
	if level == 0 {
		n.tellLost(h.lost)
		return h.leaf(ctx, n)
	}
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if err := h.walk(ctx, &n.children[r], level-1, first+uint64(i)*span(level-1)); err != nil {
			return err
		}
		r++
	}
	return nil
}

// leaf visits those of a leaf's own entries that somebody has.
func (h *held) leaf(ctx context.Context, n *node) error {
	var own bitmap // slots
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if e := n.entries[r]; e.Stored() && e.Epoch > h.own.Data {
			own.set(i)
		}
		r++
	}
	left, err := h.unheld(ctx, n, own)
	if err != nil {
		return err
	}
	var found []Entry
	for i := own.next(0); i >= 0; i = own.next(i + 1) {
		if !left.has(i) {
			found = append(found, n.entry(i))
		}
	}
	h.entries(found)
	return nil
}

// unheld returns which of some slots of a leaf nobody has. No map gains what one that it descends from has not: so the search goes
// on below a heir for those alone that it has.
func (h *held) unheld(ctx context.Context, n *node, left bitmap) (bitmap, error) {
	type wanted struct {
		heirs []*Heir
		slots bitmap
	}
	for todo := []wanted{{h.heirs, left}}; len(todo) > 0; {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, shown := range []bool{true, false} { // whoever ends the search, first
			for _, k := range w.heirs {
				slots := w.slots
				if slots.intersect(&left); k.Shown != shown || slots.count() == 0 {
					continue
				}
				if err := ctx.Err(); err != nil {
					return left, err
				}
				if err := h.has(k, n, &slots); err != nil {
					return left, err
				}
				if shown {
					left.subtract(&slots)
				} else if slots.count() > 0 {
					todo = append(todo, wanted{k.Below, slots})
				}
			}
		}
	}
	return left, nil
}

// has leaves those of a leaf's slots that a heir has, or may have: what is lost there one below it may have all the same.
func (h *held) has(k *Heir, n *node, slots *bitmap) error {
	c, err := h.seek(k, n.first)
	if err != nil || c.same(h.above[0]) {
		return err
	}
	other := &node{}
	if c.mappedBlocks() > 0 { // else tombstones, or nothing
		if other, err = h.store.uncached(&c, 0, n.first); err != nil {
			return err
		}
	}
	for i := slots.next(0); i >= 0; i = slots.next(i + 1) {
		if !heldBy([]*node{other}, i, n.entry(i)) {
			slots.clear(i)
		}
	}
	return nil
}

// seek returns a heir's leaf. What is the same as above that of the walk leads to the same leaf.
func (h *held) seek(k *Heir, lba uint64) (child, error) {
	p := h.trails[k]
	if p == nil {
		if len(h.trails) >= heldTrails {
			clear(h.trails)
		}
		p = &trail{}
		h.trails[k] = p
	}
	c := k.Root.c
	for level := rootLevel; level > 0; level-- {
		if c.same(h.above[level]) {
			return *h.above[0], nil
		}
		if c.mappedBlocks() == 0 || c.lost || c.placed {
			return c, nil
		}
		first := lba &^ (span(level) - 1)
		if p[level] == nil || p[level].first != first {
			n, err := h.store.uncached(&c, level, first)
			if err != nil {
				return child{}, err
			}
			p[level] = n
		}
		c = p[level].child(slotOf(lba, level))
	}
	return c, nil
}
