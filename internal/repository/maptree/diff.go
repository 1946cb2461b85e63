package maptree

import (
	"context"
	"fmt"
)

// Diff visits the regions whose maps differ in a and b, in ascending order; a region that one of them does not
// have is a hole there. What both have in common is not read: subtrees of the same id, whatever their heights.
// Maps that differ may still have the same content, in other chunks; those that differ in places alone are not
// visited. Chunks must not be changed. An error of visit ends the walk and is returned as it is.
func Diff(ctx context.Context, a, b *Tree, visit func(index uint64, a, b Region) error) error {
	if a.g != b.g {
		return fmt.Errorf("%w: the difference of maps with regions of %d and of %d blocks", ErrInvalid, a.g.BlocksPerRegion, b.g.BlocksPerRegion)
	}
	if err := a.check(); err != nil {
		return err
	}
	if err := b.check(); err != nil {
		return err
	}
	d := differ{a: a, b: b, visit: visit}
	return d.nodes(ctx, a.subtree(), b.subtree(), max(a.root.Level, b.root.Level), 0)
}

type differ struct {
	a, b  *Tree
	visit func(index uint64, a, b Region) error
}

// subtree is a node, or nothing. Where it is looked at from a greater level than its own it stands for the
// nodes that would have it as their first child, and nothing else.
type subtree struct {
	Child
	level int
	none  bool
}

func (t *Tree) subtree() subtree {
	return subtree{Child: t.root.child(), level: t.root.Level, none: t.root.Empty}
}

// children are what a subtree has in the slots of a node of that level.
func (t *Tree) children(ctx context.Context, s subtree, level int, first uint64) (children [slots]subtree, err error) {
	for i := range children {
		children[i].none = true
	}
	switch {
	case s.none:
	case s.level < level:
		children[0] = s
	default:
		n, err := t.node(ctx, s.Child, level, first)
		if err != nil {
			return children, err
		}
		for _, c := range n.Children {
			children[c.Slot] = subtree{Child: c, level: level - 1}
		}
	}
	return children, nil
}

// regions are what a subtree has in the slots of a leaf.
func (t *Tree) regions(ctx context.Context, s subtree, first uint64) (regions [slots]Region, err error) {
	if s.none {
		return regions, nil
	}
	n, err := t.node(ctx, s.Child, 0, first)
	if err != nil {
		return regions, err
	}
	for _, r := range n.Regions {
		regions[r.Slot] = r.Region
	}
	return regions, nil
}

func (d *differ) nodes(ctx context.Context, a, b subtree, level int, first uint64) error {
	if a.none && b.none || !a.none && !b.none && a.ID == b.ID {
		return nil
	}
	if level == 0 {
		return d.leaves(ctx, a, b, first)
	}
	below, err := d.a.children(ctx, a, level, first)
	if err != nil {
		return err
	}
	other, err := d.b.children(ctx, b, level, first)
	if err != nil {
		return err
	}
	for slot := range below {
		if err := d.nodes(ctx, below[slot], other[slot], level-1, first+uint64(slot)*span(level-1)); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) leaves(ctx context.Context, a, b subtree, first uint64) error {
	below, err := d.a.regions(ctx, a, first)
	if err != nil {
		return err
	}
	other, err := d.b.regions(ctx, b, first)
	if err != nil {
		return err
	}
	for slot := range below {
		if !below[slot].Equal(other[slot]) {
			if err := d.visit(first+uint64(slot), below[slot], other[slot]); err != nil {
				return err
			}
		}
	}
	return nil
}
