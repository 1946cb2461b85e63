package blockmap

// Root is a frozen state of a tree. The zero Root maps nothing.
type Root struct {
	c child
}

// RootAt returns the root that lies at ptr in the log, as a Slot described it.
func RootAt(s Slot) Root {
	return Root{child{ptr: s.Ptr, epoch: s.Epoch, mapped: s.Mapped, tomb: s.Tomb, lost: s.Lost}}
}

// Slot is a root as it is stored: all fields zero for an empty one.
type Slot struct {
	Ptr    Ptr
	Epoch  uint64 // newest below it
	Mapped uint64 // blocks
	Tomb   bool
	Lost   bool
}

// Slot returns how to store the root, and whether it lies in the log (or is empty).
func (r Root) Slot() (Slot, bool) {
	if r.c.node != nil && r.c.node.written.Load() == nil {
		return Slot{}, false
	}
	c := r.c.settled()
	return Slot{Ptr: c.ptr, Epoch: c.epoch, Mapped: c.mapped, Tomb: c.tomb, Lost: c.lost}, true
}

// Settled returns the same root without the nodes that it keeps in memory, if it lies in the log.
func (r Root) Settled() Root {
	if r.c.node != nil && r.c.node.written.Load() != nil {
		return Root{r.c.settled()}
	}
	return r
}

// Mapped is the number of blocks that hold data.
func (r Root) Mapped() uint64 { return r.c.mappedBlocks() }

var noChild child

// Lookup fills out with the entries of the blocks from lba on. If a node is not in
// memory it returns a *Miss.
func (r Root) Lookup(pins *Pins, lba uint64, out []Entry) error {
	for len(out) > 0 {
		n, err := r.lookupLeaf(pins, lba, out)
		if err != nil {
			return err
		}
		lba += uint64(n)
		out = out[n:]
	}
	return nil
}

// lookupLeaf fills the part of out that one subtree answers, and returns its length.
func (r Root) lookupLeaf(pins *Pins, lba uint64, out []Entry) (int, error) {
	c := &r.c
	for level := rootLevel; ; level-- {
		first := lba &^ (span(level) - 1)
		if c.node == nil && c.ptr.Addr == 0 {
			rest := int(min(first+span(level)-lba, uint64(len(out))))
			for i := range rest {
				out[i] = c.entry(lba + uint64(i))
			}
			return rest, nil
		}
		n := c.node
		if n == nil {
			var err error
			if n, err = pins.find(c, level, first); err != nil {
				return 0, err
			}
		}
		if level == 0 {
			return n.copyEntries(int(lba-first), out), nil
		}
		i := slotOf(lba, level)
		if n.slots.has(i) {
			c = &n.children[n.slots.rank(i)]
		} else {
			c = &noChild
		}
	}
}

// entry is what a child without a node says about a block.
func (c *child) entry(lba uint64) Entry {
	switch {
	case c.tomb:
		return Entry{Epoch: c.epoch}
	case c.lost:
		return lostEntry(c.epoch)
	case c.placed:
		return InPlace(Version(lba), c.epoch)
	}
	return Entry{}
}

// Run tells whether the block lba holds data, and for how many blocks from there on,
// at most limit, the same is known from one subtree: at least 1, maybe not all that are alike. If a
// node is not in memory it returns a *Miss.
func (r Root) Run(pins *Pins, lba, limit uint64) (blocks uint64, mapped bool, err error) {
	c := &r.c
	for level := rootLevel; ; level-- {
		first := lba &^ (span(level) - 1)
		if c.empty() || c.tomb || c.mappedBlocks() == 0 {
			return min(first+span(level)-lba, limit), false, nil
		}
		if c.lost || c.placed {
			return min(first+span(level)-lba, limit), true, nil
		}
		n := c.node
		if n == nil {
			if n, err = pins.find(c, level, first); err != nil {
				return 0, false, err
			}
		}
		if level > 0 {
			if i := slotOf(lba, level); n.slots.has(i) {
				c = &n.children[n.slots.rank(i)]
			} else {
				c = &noChild
			}
			continue
		}
		i := int(lba - first)
		mapped = n.entry(i).Mapped()
		for blocks = 1; blocks < limit && i+int(blocks) < leafSlots && n.entry(i+int(blocks)).Mapped() == mapped; {
			blocks++
		}
		return blocks, mapped, nil
	}
}

// NextNewer finds the first leaf, at or behind the one of lba, that holds data and anything newer than
// epoch since, without reading what is not newer. It returns the leaf's first block, and how many blocks that hold
// data were passed over. If a node is not in memory it returns a *Miss.
func (r Root) NextNewer(pins *Pins, lba, since uint64) (at, passed uint64, found bool, err error) {
	if lba >= MaxBlocks {
		return 0, 0, false, nil
	}
	at, found, err = r.c.nextNewer(pins, rootLevel, 0, lba, since, &passed)
	return at, passed, found, err
}

func (c *child) nextNewer(pins *Pins, level int, first, lba, since uint64, passed *uint64) (uint64, bool, error) {
	if c.mappedBlocks() == 0 || c.newest() <= since || (c.lost || c.placed) && level > 0 {
		*passed += c.mappedBlocks()
		return 0, false, nil
	}
	if level == 0 {
		return first, true, nil
	}
	n := c.node
	if n == nil {
		var err error
		if n, err = pins.find(c, level, first); err != nil {
			return 0, false, err
		}
	}
	from := 0
	if lba > first {
		from = slotOf(lba, level)
	}
	for i := n.slots.next(from); i >= 0; i = n.slots.next(i + 1) {
		at, found, err := n.children[n.slots.rank(i)].nextNewer(pins, level-1, first+uint64(i)*span(level-1), lba, since, passed)
		if found || err != nil {
			return at, found, err
		}
	}
	return 0, false, nil
}

// copyEntries fills out with the leaf's entries from slot i on, and returns how many.
func (n *node) copyEntries(i int, out []Entry) int {
	count := min(leafSlots-i, len(out))
	r := n.slots.rank(i)
	for k := range count {
		if n.slots.has(i + k) {
			out[k] = n.entries[r]
			r++
		} else {
			out[k] = Entry{}
		}
	}
	return count
}

// Tree is a volume's live map.
type Tree struct {
	root  child
	owner uint64 // the head's epoch
	gen   uint64
	since uint64 // epoch of the state that the tree descends from
	dirty int64
	live  int64
	// unsure blocks were cleared of which some may be shared with older states.
	unsure int64
	// unversioned blocks had a version and have none any more; or may have had one, of those that were cleared.
	unversioned int64
}

// NewTree returns a tree that starts as root and descends from the state of epoch since.
// gen must never have been used before.
func NewTree(root Root, epoch, since, gen uint64) *Tree {
	return &Tree{root: root.c, owner: epoch, since: since, gen: gen}
}

// View is the tree's present root, for look-ups by whoever holds the caller's lock.
func (t *Tree) View() Root { return Root{t.root} }

// Epoch is the epoch that writes are marked with.
func (t *Tree) Epoch() uint64 { return t.owner }

// Freeze returns the present state and lets the tree go on in epoch, with gen.
func (t *Tree) Freeze(epoch, gen uint64) Root {
	t.owner, t.gen = epoch, gen
	return Root{t.root}
}

// Since is the epoch of the state that the tree descends from: entries newer than it are the tree's
// own, and no other state has them.
func (t *Tree) Since() uint64 { return t.since }

// SetSince tells the tree that it descends from the state of another epoch now.
func (t *Tree) SetSince(epoch uint64) { t.since = epoch }

// TakeUnsure returns how many blocks were cleared since the last call of which nobody counted whether an older
// state shares them, so that TakeLive leaves them out.
func (t *Tree) TakeUnsure() int64 {
	n := t.unsure
	t.unsure = 0
	return n
}

// TakeUnversioned returns how many blocks have lost a version since the last call: at most so many.
func (t *Tree) TakeUnversioned() int64 {
	n := t.unversioned
	t.unversioned = 0
	return n
}

// TakeLive returns by how many blocks what the pool refers to has grown since the last
// call: exactly, but that what TakeUnsure tells may have gone as well.
func (t *Tree) TakeLive() int64 {
	n := t.live
	t.live = 0
	return n
}

// TakeDirty returns approximately how many bytes of nodes were changed in memory since
// the last call.
func (t *Tree) TakeDirty() int64 {
	d := t.dirty
	t.dirty = 0
	return d
}

// own returns a node that the tree may change and that replaces c.
func (t *Tree) own(pins *Pins, c *child, level int, first uint64) (*node, error) {
	switch {
	case c.node != nil:
		if c.node.gen == t.gen {
			return c.node, nil
		}
		n := c.node.copyFor(t.owner, t.gen)
		t.dirty += n.memory()
		return n, nil
	case c.tomb:
		n := buried(level, first, c.epoch, t.owner, t.gen)
		t.dirty += n.memory()
		return n, nil
	case c.lost:
		n := unreadable(level, first, c.epoch, t.owner, t.gen)
		t.dirty += n.memory()
		return n, nil
	case c.placed:
		n := untouched(level, first, c.epoch, t.owner, t.gen)
		t.dirty += n.memory()
		return n, nil
	case c.ptr.Addr == 0:
		n := newNode(level, first, t.owner, t.gen)
		t.dirty += n.memory()
		return n, nil
	}
	clean, err := pins.fetch(c, level, first)
	if err != nil {
		return nil, err
	}
	n := clean.copyFor(t.owner, t.gen)
	t.dirty += n.memory()
	return n, nil
}

// path is the way from the root to a leaf, all owned by the tree.
type path [rootLevel + 1]*node

// ownPath makes the nodes down to lba's leaf the tree's own.
func (t *Tree) ownPath(pins *Pins, lba uint64) (p path, err error) {
	n, err := t.own(pins, &t.root, rootLevel, 0)
	if err != nil {
		return p, err
	}
	p[rootLevel] = n
	for level := rootLevel - 1; level >= 0; level-- {
		i := slotOf(lba, level+1)
		c := n.child(i)
		if p[level], err = t.own(pins, &c, level, lba&^(span(level)-1)); err != nil {
			return p, err
		}
		n = p[level]
	}
	return p, nil
}

// link hangs an owned path into the tree. Until then nothing has changed, so that
// a failure to load a node leaves the tree as it was.
func (t *Tree) link(p *path, lba uint64) {
	t.root = child{node: p[rootLevel]}
	for level := rootLevel; level > 0; level-- {
		i := slotOf(lba, level)
		if n := p[level]; n.child(i).node != p[level-1] {
			before := cap(n.children)
			n.setChild(i, child{node: p[level-1]})
			t.dirty += childBytes * int64(cap(n.children)-before)
		} else {
			n.changed.set(i)
		}
		p[level].epoch = max(p[level].epoch, t.owner)
	}
}

// Set maps the blocks from lba on; an entry without an address is a tombstone. Each entry's Epoch must be the tree's, or where a block
// only gets another place, that of the entry it replaces. On an
// error (damage or I/O below a node that had to be loaded) blocks before the
// failing leaf are set and the rest is unchanged.
func (t *Tree) Set(pins *Pins, lba uint64, entries []Entry) error {
	for len(entries) > 0 {
		p, err := t.ownPath(pins, lba)
		if err != nil {
			return err
		}
		t.link(&p, lba)
		leaf := p[0]
		i := int(lba & (leafSlots - 1))
		count := min(leafSlots-i, len(entries))
		var added int64
		before := cap(leaf.entries)
		for k := range count {
			old, now := leaf.entry(i+k), entries[k]
			added += count1(now.Mapped()) - count1(old.Mapped())
			t.unversioned += count1(old.versioned() && !now.versioned())
			t.live += count1(now.takesRoom()) - count1(old.takesRoom() && old.Epoch > t.since)
			leaf.setEntry(i+k, now)
		}
		t.dirty += entryBytes * int64(cap(leaf.entries)-before)
		leaf.epoch = max(leaf.epoch, t.owner)
		for _, n := range p {
			n.mapped = uint64(int64(n.mapped) + added)
		}
		lba += uint64(count)
		entries = entries[count:]
	}
	return nil
}

// takesRoom tells whether an entry's block takes room in the log, or did when it was lost.
func (e Entry) takesRoom() bool { return e.Mapped() && e.Addr&versionBit == 0 }

// versioned tells whether an entry has a version instead of an address.
func (e Entry) versioned() bool { return e.Addr&versionBit != 0 }

func count1(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// Clear makes count blocks from lba on read as zeros. With keep, tombstones of the
// tree's epoch take the place of what was mapped, because an older state may have
// it; without, the entries go.
func (t *Tree) Clear(pins *Pins, lba, count uint64, keep bool) error {
	c, err := t.cleared(pins, &t.root, rootLevel, 0, lba, lba+count, keep)
	if err == nil {
		t.root = c
	}
	return err
}

// cleared returns what c becomes when [lo, hi) is cleared below it.
func (t *Tree) cleared(pins *Pins, c *child, level int, first, lo, hi uint64, keep bool) (child, error) {
	if c.empty() || (keep && c.mappedBlocks() == 0) {
		return *c, nil
	}
	if lo <= first && first+span(level) <= hi {
		t.unversioned += int64(c.mappedBlocks())
		if keep {
			if c.newest() > t.since { // some of it may be shared; counting would mean reading all of it
				t.unsure += int64(c.mappedBlocks())
			}
			return child{tomb: true, epoch: t.owner}, nil
		}
		if !c.placed {
			t.live -= int64(c.mappedBlocks())
		}
		return child{}, nil
	}
	n, err := t.own(pins, c, level, first)
	if err != nil {
		return child{}, err
	}
	if level == 0 {
		t.clearLeaf(n, first, lo, hi, keep)
	} else {
		for i := n.slots.next(0); i >= 0 && i < innerSlots; i = n.slots.next(i + 1) {
			childFirst := first + uint64(i)*span(level-1)
			if childFirst >= hi {
				break
			}
			if childFirst+span(level-1) <= lo {
				continue
			}
			old := n.child(i)
			now, err := t.cleared(pins, &old, level-1, childFirst, lo, hi, keep)
			if err != nil {
				return child{}, err
			}
			if now != old {
				n.setChild(i, now)
			} else if now.node != nil {
				n.changed.set(i)
			}
		}
		n.mapped = 0
		for i := range n.children {
			n.mapped += n.children[i].mappedBlocks()
		}
	}
	n.epoch = max(n.epoch, t.owner)
	if n.slots == (bitmap{}) {
		return child{}, nil
	}
	return child{node: n}, nil
}

func (t *Tree) clearLeaf(n *node, first, lo, hi uint64, keep bool) {
	from, to := max(lo, first)-first, min(hi, first+leafSlots)-first
	for i := int(from); i < int(to); i++ {
		e := n.entry(i)
		if e.Mapped() {
			n.mapped--
			if e.takesRoom() && e.Epoch > t.since {
				t.live--
			}
			t.unversioned += count1(e.versioned())
		}
		switch {
		case !n.slots.has(i):
		case !keep:
			n.dropEntry(i)
		case e.Mapped():
			n.setEntry(i, Entry{Epoch: t.owner})
		}
	}
}
