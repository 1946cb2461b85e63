package maptree

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"varve/internal/repository/chunk"
)

const (
	slotBits = 6
	slots    = 1 << slotBits // of a node: regions of a leaf, children of an inner node
	maxLevel = 9

	// MaxRegions is how many regions a tree can span.
	MaxRegions uint64 = 1 << (slotBits * (maxLevel + 1))
)

// NodeReader reads nodes.
type NodeReader interface {
	// ReadNode returns the bytes of the node id, which it has checked to be the node's; p is a hint. The
	// bytes are not changed by anybody afterwards.
	ReadNode(ctx context.Context, id chunk.ID, p chunk.Place) ([]byte, error)
}

// AheadReader is a NodeReader that reads many nodes with few requests. A walk asks it for those that it comes to next.
type AheadReader interface {
	NodeReader
	// ReadNodes passes on the bytes of nodes, which it has checked; i is an index into nodes. It may leave out any, whatever
	// the reason: they are read one by one then. plain is valid during the call, and several may be made at once.
	ReadNodes(ctx context.Context, nodes []Child, found func(i int, plain []byte))
}

// NodeWriter stores nodes.
type NodeWriter interface {
	// WriteNode stores a node, or finds it stored, and tells its id and where it is. plain is not kept.
	WriteNode(ctx context.Context, plain []byte) (chunk.ID, chunk.Place, error)
}

// Root is a whole tree.
type Root struct {
	ID    chunk.ID
	Place chunk.Place // a hint
	Level int         // of the root node; a leaf is at level 0
	Empty bool        // there is no node: all is hole

	// Regions is how many the device had: all beyond is hole. 0: not known. It saves a Builder that need
	// not cut anything off from looking.
	Regions uint64
}

func (r Root) child() Child { return Child{ID: r.ID, Place: r.Place} }

// Node is one node of a tree.
type Node struct {
	Level    int
	Children []Child    // of an inner node, by ascending slots; never none
	Regions  []RegionAt // of a leaf, by ascending slots; never none
}

// Child is a slot of an inner node.
type Child struct {
	Slot  int
	ID    chunk.ID
	Place chunk.Place // a hint
}

// RegionAt is a slot of a leaf.
type RegionAt struct {
	Slot   int
	Region Region
}

func (n *Node) findChild(slot int) (int, bool) {
	return slices.BinarySearchFunc(n.Children, slot, func(c Child, slot int) int { return cmp.Compare(c.Slot, slot) })
}

func (n *Node) findRegion(slot int) (int, bool) {
	return slices.BinarySearchFunc(n.Regions, slot, func(r RegionAt, slot int) int { return cmp.Compare(r.Slot, slot) })
}

func (n *Node) empty() bool { return len(n.Children) == 0 && len(n.Regions) == 0 }

// span is how many regions a node of a level covers.
func span(level int) uint64 { return 1 << (slotBits * (level + 1)) }

// slotOf is the slot of a node of a level on the way to a region.
func slotOf(region uint64, level int) int { return int(region>>(slotBits*level)) & (slots - 1) }

// height is the level of the root of a device of so many regions.
func height(regions uint64) int {
	level := 0
	for level < maxLevel && span(level) < regions {
		level++
	}
	return level
}

// load reads a node, which must be of that level.
func load(ctx context.Context, r NodeReader, g Geometry, c Child, level int) (Node, []byte, error) {
	plain, err := r.ReadNode(ctx, c.ID, c.Place)
	if err != nil {
		return Node{}, nil, err
	}
	n, err := Decode(plain, g)
	if err == nil && n.Level != level {
		err = fmt.Errorf("%w: it is of level %d", ErrDamaged, n.Level)
	}
	return n, plain, err
}

// NodeError tells which node could not be read, and of which regions the map is lost with it.
type NodeError struct {
	ID    chunk.ID
	Place chunk.Place
	Level int
	First uint64 // the first region that the node covers
	Err   error
}

// Regions is how many regions the node covers, from First on.
func (e *NodeError) Regions() uint64 { return span(e.Level) }

func (e *NodeError) Error() string {
	return fmt.Sprintf("map node %s (level %d, regions %d to %d, in pack %s): %v",
		e.ID, e.Level, e.First, e.First+span(e.Level)-1, e.Place.Pack, e.Err)
}

// Unwrap returns the cause.
func (e *NodeError) Unwrap() error { return e.Err }

func nodeError(c Child, level int, first uint64, err error) error {
	return &NodeError{ID: c.ID, Place: c.Place, Level: level, First: first, Err: err}
}
