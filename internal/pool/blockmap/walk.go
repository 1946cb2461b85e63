package blockmap

import (
	"context"
	"errors"
	"fmt"
)

// resident returns the child's node, from memory or the log.
func (p *Pins) resident(c *child, level int, first uint64) (*node, error) {
	if c.node != nil {
		return c.node, nil
	}
	if c.lost {
		return unreadable(level, first, c.epoch, 0, 0), nil
	}
	if c.placed {
		return untouched(level, first, c.epoch, 0, 0), nil
	}
	return p.fetch(c, level, first)
}

// runs visits the leaf's entries newer than since, in runs of successive blocks.
func (n *node) runs(first, since uint64, visit func(uint64, []Entry) error) error {
	start, length := 0, 0 // in n.entries
	startSlot := 0
	r := 0
	emit := func() error {
		if length == 0 {
			return nil
		}
		l := length
		length = 0
		return visit(first+uint64(startSlot), n.entries[start:start+l])
	}
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if n.entries[r].Epoch > since {
			if length == 0 || startSlot+length != i {
				if err := emit(); err != nil {
					return err
				}
				start, startSlot = r, i
			}
			length++
		}
		r++
	}
	return emit()
}

// Exclusive counts the mapped blocks of r newer than epoch since that none of the
// others has: what would be freed if r went, where since is the epoch of the state
// that r descends from and others are the states that descend from r.
func (s *Store) Exclusive(ctx context.Context, r Root, since uint64, others []Root) (uint64, error) {
	cs := make([]*child, len(others))
	for i := range others {
		cs[i] = &others[i].c
	}
	return s.exclusive(ctx, &r.c, cs, rootLevel, 0, since)
}

func (s *Store) exclusive(ctx context.Context, c *child, others []*child, level int, first, since uint64) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if c.newest() <= since || c.mappedBlocks() == 0 || c.lost || c.placed {
		return 0, nil
	}
	var left []*child // others that hold anything here
	for _, o := range others {
		if o.same(c) {
			return 0, nil
		}
		if o.mappedBlocks() > 0 {
			left = append(left, o)
		}
	}
	pins := s.NewPins()
	n, err := pins.resident(c, level, first)
	if err != nil {
		return 0, err
	}
	nodes := make([]*node, len(left))
	for i, o := range left {
		if nodes[i], err = pins.resident(o, level, first); err != nil {
			return 0, err
		}
	}
	var sum uint64
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if level == 0 {
			if e := n.entries[r]; e.Epoch > since && e.Stored() && !heldBy(nodes, i, e) {
				sum++
			}
		} else {
			below := make([]*child, len(nodes))
			for k, o := range nodes {
				c := o.child(i)
				below[k] = &c
			}
			n, err := s.exclusive(ctx, &n.children[r], below, level-1, first+uint64(i)*span(level-1), since)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		r++
	}
	return sum, nil
}

// same tells whether two children are one and the same subtree.
func (c *child) same(o *child) bool {
	if c.node != nil && c.node == o.node {
		return true
	}
	if c.lost || o.lost || c.placed || o.placed {
		return c.lost == o.lost && c.placed == o.placed && c.epoch == o.epoch
	}
	a, b := c.place(), o.place()
	return a.Addr != 0 && a == b
}

func (c *child) place() Ptr {
	if c.node != nil {
		if w := c.node.written.Load(); w != nil {
			return w.ptr
		}
		return Ptr{}
	}
	return c.ptr
}

func heldBy(nodes []*node, i int, e Entry) bool {
	for _, n := range nodes {
		if o := n.entry(i); o.Addr == e.Addr || o.Lost() { // where it is lost there, one below may have it all the same
			return true
		}
	}
	return false
}

// Own says what a root's state shares with no ancestor: entries newer than epoch Data, and
// nodes newer than epoch Nodes, which is not less unless Data is NoData.
type Own struct{ Data, Nodes uint64 }

// NoData is newer than all entries: what keeps a map and none of its data owns no entry.
const NoData = ^uint64(0)

// walked tells whether there may be anything of its own at or below c.
func (o Own) walked(c *child) bool {
	return !c.empty() && !c.tomb && !c.lost && !c.placed && c.newest() > min(o.Data, o.Nodes)
}

// Check reads the nodes that lead to what is a root's own, past the cache, and calls visit for its own entries and for
// what is lost in the nodes that it reads. Damaged nodes, and what is recorded as lost, are given to
// damaged; any other error ends the check. node is told the places of the root's own nodes.
func (s *Store) Check(r Root, own Own, node func(Ptr), visit func(lba uint64, entries []Entry) error, damaged func(*NodeError)) error {
	return s.CheckRange(r, own, 0, MaxBlocks, node, visit, damaged)
}

// CheckRange is Check for the nodes that have any of the blocks from lo up to hi.
func (s *Store) CheckRange(r Root, own Own, lo, hi uint64, node func(Ptr), visit func(lba uint64, entries []Entry) error, damaged func(*NodeError)) error {
	k := check{store: s, own: own, lo: lo, hi: hi, node: node, visit: visit, damaged: damaged}
	return k.walk(&r.c, rootLevel, 0)
}

type check struct {
	store   *Store
	own     Own
	lo, hi  uint64
	visit   func(uint64, []Entry) error
	damaged func(*NodeError)
	node    func(Ptr)
}

func (k *check) walk(c *child, level int, first uint64) error {
	if first >= k.hi || first+span(level) <= k.lo {
		return nil
	}
	if c.lost {
		k.damaged(&NodeError{Level: level, First: first, Err: ErrLost})
		return nil
	}
	// What a tree owns it marks with its epoch, so that what is not newer is shared.
	if !k.own.walked(c) {
		return nil
	}
	n := c.node
	if ptr := c.place(); ptr.Addr != 0 {
		loaded, err := k.store.load(ptr, level, first)
		if errors.Is(err, ErrDamaged) {
			k.damaged(err.(*NodeError))
			return nil
		} else if err != nil {
			return fmt.Errorf("check map node at %s: %w", ptr.Addr, err)
		}
		if c.newest() > k.own.Nodes {
			k.node(ptr)
			if base := loaded.written.Load().base; base.Addr != 0 {
				k.node(base)
			}
		}
		if loaded.mapped != c.mappedBlocks() || loaded.epoch > c.newest() {
			k.damaged(&NodeError{Ptr: ptr, Level: level, First: first, Err: fmt.Errorf("%w: the node at %s (level %d, block %d) maps %d blocks up to epoch %d, and the one above says %d up to %d",
				ErrMiscounted, ptr.Addr, level, first, loaded.mapped, loaded.epoch, c.mappedBlocks(), c.newest())})
		}
		n = loaded
	}
	if level == 0 {
		for i, e := range n.entries {
			if e.Lost() && e.Epoch <= k.own.Data {
				if err := k.visit(first+uint64(n.slots.nth(i)), n.entries[i:i+1]); err != nil {
					return err
				}
			}
		}
		return n.runs(first, k.own.Data, k.visit)
	}
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if err := k.walk(&n.children[r], level-1, first+uint64(i)*span(level-1)); err != nil {
			return err
		}
		r++
	}
	return nil
}

// Mark visits what is a root's own: the places of its nodes, and of the pieces that they differ
// from, and its entries. The root must lie in the log. lost is told the ranges of blocks that are lost in the nodes that it
// reads, whoever's they are: what the state had of its own there nobody knows.
// It reads past the cache, and adds nothing to it.
func (s *Store) Mark(ctx context.Context, r Root, own Own, node func(Ptr), entries func([]Entry), lost func(lo, hi uint64)) error {
	return s.MarkRange(ctx, r, own, 0, MaxBlocks, node, entries, lost)
}

// MarkRange is Mark for the nodes that have any of the blocks from lo up to hi.
func (s *Store) MarkRange(ctx context.Context, r Root, own Own, lo, hi uint64, node func(Ptr), entries func([]Entry), lost func(lo, hi uint64)) error {
	m := mark{store: s, own: own, lo: lo, hi: hi, node: node, entries: entries, lost: lost}
	return m.walk(ctx, &r.c, rootLevel, 0)
}

type mark struct {
	store   *Store
	own     Own
	lo, hi  uint64
	node    func(Ptr)
	entries func([]Entry)
	lost    func(lo, hi uint64)
}

func (m *mark) walk(ctx context.Context, c *child, level int, first uint64) error {
	if first >= m.hi || first+span(level) <= m.lo {
		return nil
	}
	if c.lost {
		m.lost(first, first+span(level))
		return nil
	}
	if !m.own.walked(c) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n := m.store.cached(c.ptr)
	if n == nil {
		var err error
		if n, err = m.store.load(c.ptr, level, first); err != nil {
			return err
		}
	}
	if c.newest() > m.own.Nodes {
		m.node(c.ptr)
		if base := n.written.Load().base; base.Addr != 0 {
			m.node(base)
		}
	}
	if level == 0 {
		n.tellLost(m.lost)
		return n.runs(first, m.own.Data, func(_ uint64, e []Entry) error {
			m.entries(e)
			return nil
		})
	}
	r := 0
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if err := m.walk(ctx, &n.children[r], level-1, first+uint64(i)*span(level-1)); err != nil {
			return err
		}
		r++
	}
	return nil
}

// tellLost tells the blocks of a leaf that are lost.
func (n *node) tellLost(lost func(lo, hi uint64)) {
	for i, e := range n.entries {
		if e.Lost() {
			lba := n.first + uint64(n.slots.nth(i))
			lost(lba, lba+1)
		}
	}
}
