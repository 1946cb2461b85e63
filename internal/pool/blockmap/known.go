package blockmap

// Empty tells whether a root maps nothing and has no tombstones.
func (r Root) Empty() bool { return r.c.empty() }

// RunKnown tells whether there is an entry for the block lba, be it a tombstone, and for how many blocks from there on, at
// most limit, the same is known from one subtree. If a node is not in memory it returns a *Miss.
func (r Root) RunKnown(pins *Pins, lba, limit uint64) (blocks uint64, known bool, err error) {
	c := &r.c
	for level := rootLevel; ; level-- {
		first := lba &^ (span(level) - 1)
		n := c.node
		if n == nil && c.ptr.Addr == 0 {
			return min(first+span(level)-lba, limit), !c.empty(), nil
		}
		if n == nil {
			if n, err = pins.find(c, level, first); err != nil {
				return 0, false, err
			}
		}
		if level > 0 {
			c = n.childOrNone(slotOf(lba, level))
			continue
		}
		i := int(lba - first)
		known = n.slots.has(i)
		for blocks = 1; blocks < limit && i+int(blocks) < leafSlots && n.slots.has(i+int(blocks)) == known; {
			blocks++
		}
		return blocks, known, nil
	}
}
