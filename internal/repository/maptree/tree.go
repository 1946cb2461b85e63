package maptree

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"

	"varve/internal/repository/chunk"
)

// Tree reads a map. All methods may be called concurrently.
type Tree struct {
	r    NodeReader
	g    Geometry
	root Root

	cacheBytes int64
	reads      singleflight.Group // by node id
	mu         sync.Mutex         // guards the cache
	cache      *simplelru.LRU[chunk.ID, *cachedNode]
	cached     int64 // bytes
}

type cachedNode struct {
	Node
	bytes int64
}

// NewTree keeps about cacheBytes of nodes in memory, but always the last.
func NewTree(r NodeReader, g Geometry, root Root, cacheBytes int64) *Tree {
	t := &Tree{r: r, g: g, root: root, cacheBytes: cacheBytes}
	t.cache, _ = simplelru.NewLRU(1<<30, func(_ chunk.ID, n *cachedNode) { t.cached -= n.bytes }) // bounded by bytes, see keep
	return t
}

// Root is the root of the tree.
func (t *Tree) Root() Root { return t.root }

// Region returns the map of a region; beyond the device all is hole. Its chunks must not be changed. A node
// that cannot be read is a *NodeError.
func (t *Tree) Region(ctx context.Context, index uint64) (Region, error) {
	if err := t.check(); err != nil {
		return Region{}, err
	}
	if t.root.Empty || index >= span(t.root.Level) {
		return Region{}, nil
	}
	for c, level := t.root.child(), t.root.Level; ; level-- {
		n, err := t.node(ctx, c, level, index&^(span(level)-1))
		if err != nil {
			return Region{}, err
		}
		slot := slotOf(index, level)
		if level == 0 {
			if i, ok := n.findRegion(slot); ok {
				return n.Regions[i].Region, nil
			}
			return Region{}, nil
		}
		i, ok := n.findChild(slot)
		if !ok {
			return Region{}, nil
		}
		c = n.Children[i]
	}
}

// Random returns a region that is not all hole, found by choosing a slot in use of each node on the way: choose returns a number
// below n. ok is false if all is hole.
func (t *Tree) Random(ctx context.Context, choose func(n int) int) (index uint64, r Region, ok bool, err error) {
	if err := t.check(); err != nil || t.root.Empty {
		return 0, Region{}, false, err
	}
	for c, level := t.root.child(), t.root.Level; ; level-- {
		n, err := t.node(ctx, c, level, index)
		if err != nil {
			return 0, Region{}, false, err
		}
		if level == 0 {
			at := n.Regions[choose(len(n.Regions))]
			return index + uint64(at.Slot), at.Region, true, nil
		}
		c = n.Children[choose(len(n.Children))]
		index += uint64(c.Slot) * span(level-1)
	}
}

// Walk visits the regions from from to to-1 that are not all hole, in ascending order. Their chunks must not
// be changed. An error of visit ends the walk and is returned as it is.
func (t *Tree) Walk(ctx context.Context, from, to uint64, visit func(index uint64, r Region) error) error {
	if err := t.check(); err != nil || t.root.Empty {
		return err
	}
	w := walk{Tree: t, ahead: 1, from: from, to: to, visit: visit}
	return w.node(ctx, t.root.child(), t.root.Level, 0)
}

// walk is one Walk.
type walk struct {
	*Tree
	ahead    int // how many leaves are read together
	from, to uint64
	visit    func(index uint64, r Region) error
}

// outside tells that the node of a level that begins with region first has none of the regions.
func (w *walk) outside(level int, first uint64) bool {
	return w.to <= first || w.from >= first+span(level)
}

func (w *walk) node(ctx context.Context, c Child, level int, first uint64) error {
	if w.outside(level, first) {
		return nil
	}
	n, err := w.Tree.node(ctx, c, level, first)
	if err != nil {
		return err
	}
	for _, r := range n.Regions {
		if index := first + uint64(r.Slot); index >= w.from && index < w.to {
			if err := w.visit(index, r.Region); err != nil {
				return err
			}
		}
	}
	read := 0 // children that were read ahead
	for i, c := range n.Children {
		at := first + uint64(c.Slot)*span(level-1)
		if level == 1 && i >= read && !w.outside(0, at) {
			read = i + w.readAhead(ctx, n.Children[i:], first)
		}
		if err := w.node(ctx, c, level-1, at); err != nil {
			return err
		}
	}
	return nil
}

// maxAhead is how many leaves are read together at most: all that one node has.
const maxAhead = slots

// readAhead reads leaves together with the first of them, twice as many as the last time, so that a walk that ends soon reads little for
// nothing. It returns how many it looked at; what could not be read is read once more when the walk comes to it, and an error then.
func (w *walk) readAhead(ctx context.Context, leaves []Child, first uint64) int {
	r, ok := w.r.(AheadReader)
	if !ok {
		return len(leaves)
	}
	var missing []Child
	n := 0
	for ; n < len(leaves) && n < w.ahead && !w.outside(0, first+uint64(leaves[n].Slot)*span(0)); n++ {
		if w.lookUp(leaves[n].ID) == nil {
			missing = append(missing, leaves[n])
		}
	}
	w.ahead = min(2*w.ahead, maxAhead)
	if len(missing) > 1 {
		r.ReadNodes(ctx, missing, func(i int, plain []byte) {
			if n, err := Decode(plain, w.g); err == nil && n.Level == 0 {
				w.keep(missing[i].ID, n)
			}
		})
	}
	return n
}

// check fails for a root that no tree has.
func (t *Tree) check() error {
	if t.root.Level < 0 || t.root.Level > maxLevel {
		return fmt.Errorf("%w: a root at level %d", ErrInvalid, t.root.Level)
	}
	return nil
}

// node returns a node from the cache or reads it. Of several who want it at once one reads.
func (t *Tree) node(ctx context.Context, c Child, level int, first uint64) (*cachedNode, error) {
	for {
		err := ctx.Err()
		if err != nil {
			return nil, err
		}
		if n := t.lookUp(c.ID); n != nil && n.Level == level {
			return n, nil
		}
		mine := false
		n, err, _ := t.reads.Do(string(append(c.ID[:], byte(level))), func() (any, error) {
			mine = true
			if n := t.lookUp(c.ID); n != nil && n.Level == level { // since we looked
				return n, nil
			}
			n, _, err := load(ctx, t.r, t.g, c, level)
			if err != nil {
				return nil, err
			}
			return t.keep(c.ID, n), nil
		})
		switch {
		case err == nil:
			return n.(*cachedNode), nil
		case mine || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
			return nil, nodeError(c, level, first, err)
		}
		// Whoever read for all has given up.
	}
}

func (t *Tree) lookUp(id chunk.ID) *cachedNode {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, _ := t.cache.Get(id)
	return n
}

func (t *Tree) keep(id chunk.ID, node Node) *cachedNode {
	n := &cachedNode{Node: node, bytes: node.memory()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cache.Remove(id) // the node at another level, which would be damage
	t.cache.Add(id, n)
	for t.cached += n.bytes; t.cached > t.cacheBytes && t.cache.Len() > 1; {
		t.cache.RemoveOldest()
	}
	return n
}

// memory is what a node takes in the cache, in bytes.
func (n *Node) memory() int64 {
	const overhead = 200 // of the cache's list and table
	sum := overhead + uintptr(len(n.Children))*unsafe.Sizeof(Child{}) + uintptr(len(n.Regions))*unsafe.Sizeof(RegionAt{})
	for i := range n.Regions {
		sum += uintptr(len(n.Regions[i].Region.Chunks)) * unsafe.Sizeof(Chunk{})
	}
	return int64(sum)
}
