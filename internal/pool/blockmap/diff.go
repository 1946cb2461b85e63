package blockmap

// Diff tells whether the block lba differs between two states, and for how many blocks from
// there on, at most limit, the same is known from one pair of nodes: at least 1, maybe not all that are alike. A
// block is alike iff neither state maps it, or both map it in one epoch, wherever it lies. What two trees share is not
// looked into. What a repair recorded as lost differs from everything but the same loss. If a node is not in memory it returns a *Miss.
func Diff(pins *Pins, from, to Root, lba, limit uint64) (blocks uint64, differs bool, err error) {
	return diff(pins, from, to, lba, limit, Entry.differs)
}

// DiffPlaces is Diff, but that blocks are alike iff they are in the same place, or in the same version.
func DiffPlaces(pins *Pins, from, to Root, lba, limit uint64) (blocks uint64, differs bool, err error) {
	return diff(pins, from, to, lba, limit, func(e, f Entry) bool { return e.Addr != f.Addr })
}

func diff(pins *Pins, from, to Root, lba, limit uint64, unlike func(e, f Entry) bool) (blocks uint64, differs bool, err error) {
	a, b := &from.c, &to.c
	if known, differs := compare(a, b, rootLevel); known {
		return min(MaxBlocks-lba, limit), differs, nil
	}
	for level := rootLevel; ; level-- {
		first := lba &^ (span(level) - 1)
		n, err := pins.compared(a, level, first)
		if err != nil {
			return 0, false, err
		}
		m, err := pins.compared(b, level, first)
		if err != nil {
			return 0, false, err
		}
		if level == 0 {
			blocks, differs = diffLeaves(n, m, int(lba-first), min(limit, leafSlots), unlike)
			return blocks, differs, nil
		}
		i := slotOf(lba, level)
		a, b = n.childOrNone(i), m.childOrNone(i)
		known, differs := compare(a, b, level-1)
		if !known {
			continue
		}
		next := first + uint64(i+1)*span(level-1)
		for i++; i < innerSlots && next-lba < limit; i++ {
			if k, d := compare(n.childOrNone(i), m.childOrNone(i), level-1); !k || d != differs {
				break
			}
			next += span(level - 1)
		}
		return min(next-lba, limit), differs, nil
	}
}

// compare tells whether it is known, without looking into them, that all blocks below two
// children at level are alike, or that all differ.
func compare(a, b *child, level int) (known, differ bool) {
	if a.same(b) {
		return true, false
	}
	if a.lost || b.lost { // nobody can tell
		return true, true
	}
	n, m := a.mappedBlocks(), b.mappedBlocks()
	return n+m == 0 || (n == 0 || m == 0) && n+m == span(level), n+m > 0
}

// compared returns the child's node, or an empty one for a child that maps nothing.
func (p *Pins) compared(c *child, level int, first uint64) (*node, error) {
	switch {
	case c.mappedBlocks() == 0:
		return &emptyNode, nil
	case c.node != nil:
		return c.node, nil
	case c.placed:
		return untouched(level, first, c.epoch, 0, 0), nil
	}
	return p.find(c, level, first)
}

var emptyNode node

// childOrNone returns what slot i holds, to be read only.
func (n *node) childOrNone(i int) *child {
	if !n.slots.has(i) {
		return &noChild
	}
	return &n.children[n.slots.rank(i)]
}

// diffLeaves compares two leaves from slot i on.
func diffLeaves(n, m *node, i int, limit uint64, unlike func(e, f Entry) bool) (blocks uint64, differs bool) {
	end := min(i+int(limit), leafSlots)
	differs = unlike(n.entry(i), m.entry(i))
	j := i + 1
	for j < end && unlike(n.entry(j), m.entry(j)) == differs {
		j++
	}
	return uint64(j - i), differs
}

func (e Entry) differs(f Entry) bool {
	return e.Mapped() != f.Mapped() || e.Mapped() && (e.Epoch != f.Epoch || e.Lost() != f.Lost())
}
