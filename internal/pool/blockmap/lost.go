package blockmap

import (
	"errors"
	"slices"

	"varve/internal/pool/seglog"
)

// lostAddr is the address of a lost block in memory: no segment has the number 0.
const lostAddr seglog.Addr = 1

func lostEntry(epoch uint64) Entry { return Entry{Addr: lostAddr, Epoch: epoch} }

// Lost tells whether the block held data that cannot be read any more, and was recorded so.
func (e Entry) Lost() bool { return e.Addr == lostAddr }

// Stored tells whether the block's data lies in the log.
func (e Entry) Stored() bool { return e.Mapped() && !e.Lost() && e.Addr&versionBit == 0 }

// What is wrong with a node that can be read.
var (
	// ErrLost: a repair found that these blocks cannot be read any more, and recorded it.
	ErrLost = errors.New("recorded as lost")
	// ErrMiscounted: a node can be read, and what the one above says about it is wrong.
	ErrMiscounted = errors.New("map node miscounted")
)

// NodeError is the error of a map node that cannot be read.
type NodeError struct {
	Ptr   Ptr // zero for one that is recorded as lost
	Level int
	First uint64 // first block that it covers
	Err   error
}

func (e *NodeError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *NodeError) Unwrap() error { return e.Err }

// Blocks is how many blocks the node covers, whatever the volume's size.
func (e *NodeError) Blocks() uint64 { return span(e.Level) }

// unreadable returns a node whose every slot is lost.
func unreadable(level int, first, epoch, owner, gen uint64) *node {
	n := newNode(level, first, owner, gen)
	n.epoch, n.mapped = epoch, span(level)
	if level == 0 {
		n.entries = slices.Repeat([]Entry{lostEntry(epoch)}, leafSlots)
		n.slots = bitmap{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	} else {
		n.children = slices.Repeat([]child{{lost: true, epoch: epoch, mapped: span(level - 1)}}, innerSlots)
		n.slots = bitmap{^uint64(0), ^uint64(0)}
	}
	return n
}

// Lose records that the node at level whose first block is first cannot be read any more: everything below it
// that lies before block limit is lost from now on. The nodes above it must be readable. It changes no
// content: what is lost could not be read before either.
func (t *Tree) Lose(pins *Pins, level int, first, limit uint64) error {
	return t.replace(pins, level, first, func(c *child) (child, error) {
		return t.lostBefore(level, first, c.newest(), limit), nil
	})
}

// Rewrite has the node at level whose first block is first written anew, whole, by the next checkpoint, and counted anew
// in those above. If it is in memory, it may be unreadable in the log.
func (t *Tree) Rewrite(pins *Pins, level int, first uint64) error {
	return t.replace(pins, level, first, func(c *child) (child, error) {
		n, err := t.own(pins, c, level, first)
		if err != nil {
			return child{}, err
		}
		n.prev, n.base, n.epoch = nil, Ptr{}, max(n.epoch, t.owner)
		return child{node: n}, nil
	})
}

// replace puts what change makes of it in the place of the child at level whose first block is first.
func (t *Tree) replace(pins *Pins, level int, first uint64, change func(*child) (child, error)) error {
	c, err := t.replaced(pins, &t.root, rootLevel, level, first, change)
	if err == nil {
		t.root = c
	}
	return err
}

// replaced returns what c, a child at level, becomes when the child at target is replaced.
func (t *Tree) replaced(pins *Pins, c *child, level, target int, first uint64, change func(*child) (child, error)) (child, error) {
	here := first &^ (span(level) - 1)
	if level == target {
		return change(c)
	}
	n, err := t.own(pins, c, level, here)
	if err != nil {
		return child{}, err
	}
	i := slotOf(first, level)
	old := n.child(i)
	now, err := t.replaced(pins, &old, level-1, target, first, change)
	if err != nil {
		return child{}, err
	}
	if n.setChild(i, now); now.node != nil {
		n.changed.set(i)
	}
	n.mapped = 0
	for k := range n.children {
		n.mapped += n.children[k].mappedBlocks()
	}
	n.epoch = max(n.epoch, t.owner)
	return child{node: n}, nil
}

// lostBefore returns a child below which everything before block limit is lost.
func (t *Tree) lostBefore(level int, first, epoch, limit uint64) child {
	switch {
	case first >= limit:
		return child{}
	case first+span(level) <= limit:
		return child{lost: true, epoch: epoch, mapped: span(level)}
	}
	n := newNode(level, first, t.owner, t.gen)
	n.epoch = max(epoch, t.owner)
	if level == 0 {
		for i := range int(limit - first) {
			n.setEntry(i, lostEntry(epoch))
		}
		n.mapped = limit - first
	} else {
		for i := 0; first+uint64(i)*span(level-1) < limit; i++ {
			c := t.lostBefore(level-1, first+uint64(i)*span(level-1), epoch, limit)
			n.setChild(i, c)
			n.mapped += c.mappedBlocks()
		}
	}
	t.dirty += n.memory()
	return child{node: n}
}

// Shows tells whether a root leads to the same unreadable node, or lost child, as another one does where e was found.
// It is not known where a node above cannot be read either, or is lost: what descends from that state may show it.
func (s *Store) Shows(r Root, e *NodeError) (shows, known bool, err error) {
	pins := s.NewPins()
	c := r.c
	for level := rootLevel; level > e.Level; level-- {
		if c.lost {
			return false, false, nil
		}
		if c.tomb || c.empty() {
			return false, true, nil
		}
		n, err := pins.resident(&c, level, e.First&^(span(level)-1))
		if errors.Is(err, ErrDamaged) {
			return false, false, nil
		} else if err != nil {
			return false, false, err
		}
		c = n.child(slotOf(e.First, level))
	}
	if e.Ptr.Addr == 0 || c.lost {
		return e.Ptr.Addr == 0 && c.lost, !c.lost || e.Ptr.Addr == 0, nil
	}
	return c.place() == e.Ptr, true, nil
}
