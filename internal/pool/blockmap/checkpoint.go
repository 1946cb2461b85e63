package blockmap

import (
	"varve/internal/pool/seglog"
)

// Writer puts a checkpoint's nodes into the log. Append must store p (whose length
// is a multiple of the block size) and return its address.
type Writer struct {
	Append func(p []byte) (seglog.Addr, error)
	// ChunkBytes is how much is given to Append at a time.
	ChunkBytes int
	store      *Store
	buf        []byte
	pending    []pendingNode

	Nodes, Bytes int64 // written
}

type pendingNode struct {
	n      *node
	offset int
	length int
	delta  bool
}

// NewWriter returns a Writer into the log that the store reads.
func (s *Store) NewWriter(appendChunk func(p []byte) (seglog.Addr, error)) *Writer {
	return &Writer{Append: appendChunk, ChunkBytes: 256 << 10, store: s}
}

// Write writes every node below roots that is not yet in the log, children before
// parents, so that each Root.Slot is known afterwards. The roots must be frozen.
// After an error some nodes are in the log and nothing refers to them.
func (w *Writer) Write(roots []Root) error {
	var levels [rootLevel + 1][]*node
	seen := map[*node]bool{}
	for i := range roots {
		collect(&roots[i].c, seen, &levels)
	}
	for level := range levels {
		for _, n := range levels[level] {
			if err := w.add(n); err != nil {
				return err
			}
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
	return nil
}

func collect(c *child, seen map[*node]bool, levels *[rootLevel + 1][]*node) {
	n := c.node
	if n == nil || n.written.Load() != nil || seen[n] {
		return
	}
	seen[n] = true
	levels[n.level] = append(levels[n.level], n)
	for i := range n.children {
		collect(&n.children[i], seen, levels)
	}
}

// add encodes a node behind the others.
func (w *Writer) add(n *node) error {
	n.resolve()
	// A difference pays while it is much shorter than the node and saves more than the
	// second read costs; it is always against a whole piece, so that it never grows into a chain.
	delta := n.base.Addr != 0 && n.changed.count()*4 <= n.slots.count()
	start := len(w.buf)
	w.buf = n.encode(w.buf, delta)
	w.pending = append(w.pending, pendingNode{n: n, offset: start, length: len(w.buf) - start, delta: delta})
	for len(w.buf)%seglog.Granule != 0 {
		w.buf = append(w.buf, 0)
	}
	if len(w.buf) >= w.ChunkBytes {
		return w.flush()
	}
	return nil
}

// flush gives what was encoded to the log and tells the nodes where they lie.
func (w *Writer) flush() error {
	if len(w.pending) == 0 {
		return nil
	}
	for len(w.buf)%4096 != 0 {
		w.buf = append(w.buf, 0)
	}
	addr, err := w.Append(w.buf)
	if err != nil {
		return err
	}
	for _, p := range w.pending {
		at := piece{ptr: Ptr{
			Addr: addr.Plus(int64(p.offset)), Length: uint32(p.length),
			CRC: seglog.Checksum(w.buf[p.offset : p.offset+p.length]),
		}}
		if p.delta {
			at.base, at.changed = p.n.base, p.n.changed
		}
		p.n.written.Store(&at)
		w.store.put(at.ptr, p.n.clean())
	}
	w.Nodes += int64(len(w.pending))
	w.Bytes += int64(len(w.buf))
	w.buf, w.pending = w.buf[:0], w.pending[:0]
	return nil
}

// clean returns the node as it would be loaded from the log: it holds no other node
// in memory. A leaf shares its entries, which never change any more.
func (n *node) clean() *node {
	c := &node{level: n.level, first: n.first, owner: n.owner, epoch: n.epoch, mapped: n.mapped, slots: n.slots, entries: n.entries}
	if n.level > 0 {
		c.children = make([]child, len(n.children))
		for i := range n.children {
			c.children[i] = n.children[i].settled()
		}
	}
	c.written.Store(n.written.Load())
	return c
}

// Settle lets go of nodes that a checkpoint has written, so that they live in the cache
// alone: those from block lba on, as far as some limit of nodes to look at allows. It
// returns where to go on, or that nothing is left. The caller holds the tree as for a change.
func (t *Tree) Settle(lba uint64, limit int) (next uint64, done bool) {
	s := settling{gen: t.gen, from: lba, left: limit}
	s.settle(&t.root, rootLevel, 0)
	return s.next, s.left > 0
}

type settling struct {
	gen  uint64
	from uint64
	left int
	next uint64 // once left is 0
}

func (s *settling) settle(c *child, level int, first uint64) {
	n := c.node
	if n == nil || first+span(level) <= s.from {
		return
	}
	if n.written.Load() != nil {
		*c = c.settled()
	} else if n.gen == s.gen { // the tree's own, so that it may be changed
		if n.prev != nil && n.prev.written.Load() != nil {
			n.resolve() // the node before it holds all that was below
		}
		r := 0
		for i := n.slots.next(0); level > 0 && i >= 0; i = n.slots.next(i + 1) {
			if s.settle(&n.children[r], level-1, first+uint64(i)*span(level-1)); s.left == 0 {
				return
			}
			r++
		}
	}
	if s.left--; s.left == 0 {
		s.next = first + span(level)
	}
}
