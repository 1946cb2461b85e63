package maptree

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// Builder makes a tree from a base and what is different, given in ascending order. It keeps in memory the
// nodes from the root to one leaf, reads of the base only nodes that something changes below, and
// writes none that came out as it was. After an error it can only be thrown away.
type Builder struct {
	r    NodeReader
	w    NodeWriter
	g    Geometry
	base Root

	level int         // of the root so far
	root  Child       // where it lies, while it is not open
	empty bool        // there is no root
	open  []*openNode // from the root down, each a child of the one before

	next uint64 // the first region that may still be changed
	err  error
}

// openNode is a node that may be changed.
type openNode struct {
	Node
	first   uint64 // region that it covers
	stored  Child  // the node as it lies in the repository, and its bytes there; nil: it does not
	plain   []byte
	changed bool
}

func (n *openNode) covers(region uint64) bool { return region-n.first < span(n.Level) }

// NewBuilder starts from base. w is where new nodes go, r where those of the base are read; nothing
// that was written is read again.
func NewBuilder(r NodeReader, w NodeWriter, g Geometry, base Root) *Builder {
	b := &Builder{r: r, w: w, g: g, base: base, root: base.child(), empty: base.Empty}
	if !base.Empty {
		b.level = base.Level
	}
	switch {
	case !g.valid():
		b.err = fmt.Errorf("%w: regions of %d blocks", ErrInvalid, g.BlocksPerRegion)
	case b.level < 0 || b.level > maxLevel:
		b.err = fmt.Errorf("%w: a root at level %d", ErrInvalid, b.level)
	}
	return b
}

// Set gives a region its map; the zero Region, or one without any block, is a hole. Regions come in ascending order, each once.
func (b *Builder) Set(ctx context.Context, index uint64, r Region) error {
	if err := b.advance(index, index+1); err != nil {
		return err
	}
	r, err := r.normal(b.g)
	if err != nil {
		return b.fail(fmt.Errorf("region %d: %w", index, err))
	}
	if len(r.Chunks) == 0 {
		return b.fail(b.clear(ctx, index, index+1))
	}
	return b.fail(b.set(ctx, index, r))
}

// Clear makes holes of the regions from from to to-1, without reading what lies wholly within. It takes part in the order of Set.
func (b *Builder) Clear(ctx context.Context, from, to uint64) error {
	if from >= to {
		return b.err
	}
	if err := b.advance(from, to); err != nil {
		return err
	}
	return b.fail(b.clear(ctx, from, to))
}

// Finish ends the tree of a device of so many regions, writes what is left to write, and returns its root. What the base has at or
// beyond regions is cut off; that something there was set or cleared is an error.
func (b *Builder) Finish(ctx context.Context, regions uint64) (Root, error) {
	switch {
	case b.err != nil:
		return Root{}, b.err
	case regions > MaxRegions:
		return Root{}, b.fail(fmt.Errorf("%w: a device of %d regions, and %d is the most", ErrInvalid, regions, MaxRegions))
	case regions < b.next:
		return Root{}, b.fail(fmt.Errorf("%w: a device of %d regions, of which region %d was changed", ErrInvalid, regions, b.next-1))
	}
	root, err := b.finish(ctx, regions)
	if err != nil {
		return Root{}, b.fail(err)
	}
	b.err = fmt.Errorf("%w: the tree is finished", ErrInvalid)
	return root, nil
}

func (b *Builder) finish(ctx context.Context, regions uint64) (Root, error) {
	level := height(regions)
	for b.level > level {
		if err := b.lower(ctx); err != nil {
			return Root{}, err
		}
	}
	if known := b.base.Regions > 0 && b.base.Level == height(b.base.Regions); !known || regions < b.base.Regions {
		if err := b.clear(ctx, regions, MaxRegions); err != nil {
			return Root{}, err
		}
	}
	if err := b.close(ctx, 0); err != nil {
		return Root{}, err
	}
	for b.level < level && !b.empty {
		if err := b.raise(ctx); err != nil {
			return Root{}, err
		}
		if err := b.close(ctx, 0); err != nil {
			return Root{}, err
		}
	}
	if b.empty {
		return Root{Empty: true, Regions: regions}, nil
	}
	return Root{ID: b.root.ID, Place: b.root.Place, Level: b.level, Regions: regions}, nil
}

// advance checks that regions from to to-1 may be changed now.
func (b *Builder) advance(from, to uint64) error {
	switch {
	case b.err != nil:
		return b.err
	case from >= MaxRegions || to > MaxRegions:
		return b.fail(fmt.Errorf("%w: region %d, and %d is the last", ErrInvalid, max(from, to-1), MaxRegions-1))
	case from < b.next:
		return b.fail(fmt.Errorf("%w: region %d after region %d", ErrInvalid, from, b.next-1))
	}
	b.next = to
	return nil
}

func (b *Builder) fail(err error) error {
	if err != nil {
		b.err = err
	}
	return err
}

func (b *Builder) set(ctx context.Context, index uint64, r Region) error {
	for index >= span(b.level) {
		if err := b.raise(ctx); err != nil {
			return err
		}
	}
	n, err := b.seek(ctx, index)
	if err != nil {
		return err
	}
	if n == nil {
		n = b.push(&openNode{Node: Node{Level: b.level}})
	}
	for n.Level > 0 {
		level, slot := n.Level-1, slotOf(index, n.Level)
		if i, ok := n.findChild(slot); ok {
			n, err = b.read(ctx, n.Children[i], level, index)
		} else {
			n = b.push(&openNode{Node: Node{Level: level}, first: index &^ (span(level) - 1)})
		}
		if err != nil {
			return err
		}
	}
	at := RegionAt{Slot: slotOf(index, 0), Region: r}
	if i, ok := n.findRegion(at.Slot); ok {
		n.Regions[i] = at
	} else {
		n.Regions = slices.Insert(n.Regions, i, at)
	}
	n.changed = true
	return nil
}

func (b *Builder) clear(ctx context.Context, from, to uint64) error {
	for to = min(to, span(b.level)); from < to; {
		n, err := b.seek(ctx, from)
		if n == nil || err != nil {
			return err
		}
		if n.Level == 0 {
			end := min(to, n.first+span(0))
			n.drop(slotOf(from, 0), slotOf(end-1, 0))
			from = end
			continue
		}
		// All children that lie wholly within go at once; the one that lies partly within is entered.
		size := span(n.Level - 1)
		whole := min(to, n.first+span(n.Level)) / size * size
		switch i, ok := n.findChild(slotOf(from, n.Level)); {
		case from%size == 0 && from < whole:
			n.drop(slotOf(from, n.Level), slotOf(whole-1, n.Level))
			from = whole
		case !ok:
			from = min(to, (from/size+1)*size)
		default:
			if _, err := b.read(ctx, n.Children[i], n.Level-1, from); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop empties the slots from first to last.
func (n *openNode) drop(first, last int) {
	count := len(n.Regions) + len(n.Children)
	n.Regions = slices.DeleteFunc(n.Regions, func(r RegionAt) bool { return r.Slot >= first && r.Slot <= last })
	n.Children = slices.DeleteFunc(n.Children, func(c Child) bool { return c.Slot >= first && c.Slot <= last })
	n.changed = n.changed || len(n.Regions)+len(n.Children) != count
}

// seek closes what does not cover a region, and returns the lowest open node that does, which may be the
// root that it opens; nil if there is none.
func (b *Builder) seek(ctx context.Context, region uint64) (*openNode, error) {
	keep := len(b.open)
	for keep > 0 && !b.open[keep-1].covers(region) {
		keep--
	}
	if err := b.close(ctx, keep); err != nil {
		return nil, err
	}
	switch {
	case len(b.open) > 0:
		return b.open[len(b.open)-1], nil
	case b.empty:
		return nil, nil
	}
	return b.read(ctx, b.root, b.level, 0)
}

func (b *Builder) push(n *openNode) *openNode {
	b.open = append(b.open, n)
	return n
}

// read opens a node of the base that covers a region.
func (b *Builder) read(ctx context.Context, c Child, level int, region uint64) (*openNode, error) {
	first := region &^ (span(level) - 1)
	n, plain, err := load(ctx, b.r, b.g, c, level)
	if err != nil {
		return nil, nodeError(c, level, first, err)
	}
	return b.push(&openNode{Node: n, first: first, stored: c, plain: plain}), nil
}

// raise puts a node above the root.
func (b *Builder) raise(ctx context.Context) error {
	if err := b.close(ctx, 0); err != nil {
		return err
	}
	b.level++
	if !b.empty {
		b.root.Slot = 0
		b.push(&openNode{Node: Node{Level: b.level, Children: []Child{b.root}}, changed: true})
	}
	return nil
}

// lower makes the root's first child the root, and cuts off all others: that child is
// open, or was never opened, as all that was changed is below it.
func (b *Builder) lower(ctx context.Context) error {
	if len(b.open) == 0 && !b.empty {
		if _, err := b.read(ctx, b.root, b.level, 0); err != nil {
			return err
		}
	}
	b.level--
	switch {
	case len(b.open) == 0:
	case len(b.open) > 1 && b.open[1].first == 0:
		b.open = b.open[1:]
	default:
		root := b.open[0]
		b.open = nil
		i, ok := root.findChild(0)
		if b.empty = !ok; ok {
			b.root = root.Children[i]
		}
	}
	return nil
}

// close closes open nodes until only the first keep are open: each is written if it changed, and its parent, or root, refers to it.
func (b *Builder) close(ctx context.Context, keep int) error {
	for len(b.open) > keep {
		n := b.open[len(b.open)-1]
		b.open = b.open[:len(b.open)-1]
		stored, err := b.store(ctx, n)
		if err != nil {
			return err
		}
		if len(b.open) == 0 {
			b.root, b.empty = stored, n.empty()
			continue
		}
		b.open[len(b.open)-1].adopt(slotOf(n.first, n.Level+1), stored, n.empty())
	}
	return nil
}

// adopt makes a slot refer to a child.
func (n *openNode) adopt(slot int, c Child, empty bool) {
	c.Slot = slot
	i, ok := n.findChild(slot)
	switch {
	case empty && ok:
		n.Children = slices.Delete(n.Children, i, i+1)
	case empty || ok && n.Children[i] == c:
		return
	case ok:
		n.Children[i] = c
	default:
		n.Children = slices.Insert(n.Children, i, c)
	}
	n.changed = true
}

// store writes a node unless it is empty, or lies there as it is.
func (b *Builder) store(ctx context.Context, n *openNode) (Child, error) {
	if !n.changed || n.empty() {
		return n.stored, nil
	}
	plain := n.encode(b.g)
	if bytes.Equal(plain, n.plain) {
		return n.stored, nil
	}
	id, place, err := b.w.WriteNode(ctx, plain)
	if err != nil {
		return Child{}, fmt.Errorf("write map node of regions %d to %d: %w", n.first, n.first+span(n.Level)-1, err)
	}
	return Child{ID: id, Place: place}, nil
}
