package blockmap

import (
	"slices"
	"sync/atomic"
	"unsafe"
)

// child is what a slot of an inner node, or a root, holds: nothing, a tombstone,
// a node in memory, or the place of one in the log.
type child struct {
	node   *node // in memory and maybe not yet in the log
	ptr    Ptr   // in the log; ptr.Addr 0: not
	epoch  uint64
	mapped uint64 // blocks below that hold data
	tomb   bool   // everything below was discarded in epoch
	lost   bool   // what lies below cannot be read any more
	placed bool   // all below is in its volume's file as it was found
}

func (c *child) empty() bool {
	return c.node == nil && c.ptr.Addr == 0 && !c.tomb && !c.lost && !c.placed
}

// newest is the newest epoch below the child.
func (c *child) newest() uint64 {
	if c.node != nil {
		return c.node.epoch
	}
	return c.epoch
}

func (c *child) mappedBlocks() uint64 {
	if c.node != nil {
		return c.node.mapped
	}
	return c.mapped
}

// settled is the child as its parent's bytes in the log describe it. The node
// must have been written.
func (c *child) settled() child {
	if c.node == nil {
		return *c
	}
	return child{ptr: c.node.written.Load().ptr, epoch: c.node.epoch, mapped: c.node.mapped}
}

// piece tells how a clean node lies in the log: whole, or as the slots that
// differ from a base piece.
type piece struct {
	ptr     Ptr
	base    Ptr    // Addr 0: ptr is the whole node
	changed bitmap // slots that the piece at ptr holds, if it has a base
}

// node is a leaf (level 0) or an inner node. Which slots are in use is in slots;
// entries (leaf) or children (inner) hold these, packed in order.
type node struct {
	level  int
	first  uint64 // LBA of the first block it covers
	owner  uint64 // epoch that created it
	gen    uint64 // generation of the tree that may change it
	epoch  uint64 // newest epoch at or below
	mapped uint64

	slots    bitmap
	entries  []Entry
	children []child

	// written is set once, when the node lies in the log.
	written atomic.Pointer[piece]
	// For a dirty node: changed are the slots that differ from prev (a frozen node
	// that may be on its way into the log) or else from base. With neither, the node is written whole.
	prev    *node
	base    Ptr
	changed bitmap
}

func newNode(level int, first, owner, gen uint64) *node {
	return &node{level: level, first: first, owner: owner, gen: gen}
}

// copyFor returns a copy for a tree of that epoch and generation to change.
// Only a copy within the same epoch may refer to the original as its base:
// otherwise the two belong to different states, and each may be deleted alone.
func (n *node) copyFor(owner, gen uint64) *node {
	c := &node{
		level: n.level, first: n.first, owner: owner, gen: gen, epoch: n.epoch, mapped: n.mapped, slots: n.slots,
		entries: slices.Clone(n.entries), children: slices.Clone(n.children),
	}
	if n.owner == owner {
		if w := n.written.Load(); w != nil {
			c.base, c.changed = w.basis()
		} else {
			c.prev = n
		}
	}
	return c
}

// basis is what a later version of the node may be written as a difference from.
func (w *piece) basis() (Ptr, bitmap) {
	if w.base.Addr != 0 {
		return w.base, w.changed
	}
	return w.ptr, bitmap{}
}

// resolve replaces prev by what it became in the log. A frozen node that no
// checkpoint reached (it was frozen for a walk) never gets there: what lies behind it counts.
func (n *node) resolve() {
	for p := n.prev; p != nil; p = p.prev {
		if w := p.written.Load(); w != nil {
			base, changed := w.basis()
			n.base = base
			n.changed.union(&changed)
			break
		}
		n.changed.union(&p.changed)
		n.base = p.base
	}
	n.prev = nil
}

func (n *node) entry(i int) Entry {
	if !n.slots.has(i) {
		return Entry{}
	}
	return n.entries[n.slots.rank(i)]
}

func (n *node) setEntry(i int, e Entry) {
	r := n.slots.rank(i)
	if n.slots.has(i) {
		n.entries[r] = e
	} else {
		n.slots.set(i)
		n.entries = slices.Insert(n.entries, r, e)
	}
	n.changed.set(i)
}

func (n *node) dropEntry(i int) {
	r := n.slots.rank(i)
	n.entries = slices.Delete(n.entries, r, r+1)
	n.slots.clear(i)
	n.changed.set(i)
}

func (n *node) child(i int) child {
	if !n.slots.has(i) {
		return child{}
	}
	return n.children[n.slots.rank(i)]
}

// setChild stores c in slot i; an empty c empties the slot.
func (n *node) setChild(i int, c child) {
	r := n.slots.rank(i)
	switch has := n.slots.has(i); {
	case c.empty() && has:
		n.children = slices.Delete(n.children, r, r+1)
		n.slots.clear(i)
	case c.empty():
		return
	case has:
		n.children[r] = c
	default:
		n.slots.set(i)
		n.children = slices.Insert(n.children, r, c)
	}
	n.changed.set(i)
}

// buried returns a node whose every slot was discarded in epoch: what a
// tombstone becomes when something below it is written.
func buried(level int, first, epoch, owner, gen uint64) *node {
	n := newNode(level, first, owner, gen)
	n.epoch = epoch
	if level == 0 {
		n.entries = slices.Repeat([]Entry{{Epoch: epoch}}, leafSlots)
		n.slots = bitmap{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	} else {
		n.children = slices.Repeat([]child{{tomb: true, epoch: epoch}}, innerSlots)
		n.slots = bitmap{^uint64(0), ^uint64(0)}
	}
	return n
}

// What nodes take in memory, in bytes.
const (
	nodeBytes  = int64(unsafe.Sizeof(node{}))
	entryBytes = int64(unsafe.Sizeof(Entry{}))
	childBytes = int64(unsafe.Sizeof(child{}))
	// cachedBytes comes to a clean node: how it lies in the log, and the cache's list and table.
	cachedBytes = int64(unsafe.Sizeof(piece{})) + 120
)

// memory is the size of the node in memory, in bytes.
func (n *node) memory() int64 {
	return nodeBytes + entryBytes*int64(cap(n.entries)) + childBytes*int64(cap(n.children))
}
