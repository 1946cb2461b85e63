package pool

import (
	"cmp"
	"errors"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
)

const (
	// maxFindings bounds a report; a pool that lost a disk has no use for a longer one. Beyond it each state is still named, once,
	// as many of them again.
	maxFindings = 10000
	// followedAtOnce is how many findings are followed to those that share them at a time.
	followedAtOnce = 1 << 14
	// maxShown bounds the lists of who shows which damaged parts of maps; the rest is found by the next check.
	maxShown = 1 << 22
)

// finding is a range of a state's blocks that cannot be read.
type finding struct {
	lba, blocks uint64
	node        *nodeDamage // a part of the map; nil: data
	lost        bool
	message     string
	elsewhere   bool // it was not found here, but may be in what descends from this state
}

// found adds a finding to those that are to be told.
func (c *blockCheck) found(f finding) {
	if f.node == nil {
		c.badBlocks += f.blocks
	}
	c.bad = appended(c.bad, f)
}

// appended adds a finding, as part of the last one if that is of blocks and continues.
func appended(to []finding, f finding) []finding {
	if n := len(to); n > 0 && f.node == nil {
		last := &to[n-1]
		if last.node == nil && last.lost == f.lost && last.elsewhere == f.elsewhere && last.lba+last.blocks == f.lba {
			last.blocks += f.blocks
			return to
		}
	}
	return append(to, f)
}

// tell tells what was found, if that is much or all there is.
func (c *blockCheck) tell(all bool) error {
	if len(c.bad) == 0 || !all && len(c.bad) < followedAtOnce && c.badBlocks < checkedAtOnce {
		return nil
	}
	found := joined(c.bad)
	for some := range slices.Chunk(found, followedAtOnce) {
		if err := c.checker.tell(c.of, some); err != nil {
			return err
		}
	}
	c.bad, c.badBlocks = c.bad[:0], 0
	if cap(c.bad) > followedAtOnce {
		c.bad = nil
	}
	return nil
}

// joined sorts findings and joins blocks that are adjacent.
func joined(found []finding) []finding {
	slices.SortStableFunc(found, func(a, b finding) int { return cmp.Compare(a.lba, b.lba) })
	out := found[:0]
	for _, f := range found {
		out = appended(out, f)
	}
	return out
}

// weigh counts for each state those that descend from it, and has the children with many be the last.
func (c *checker) weigh() {
	of := make(map[uint64]*checkedState, len(c.subjects))
	for _, s := range c.subjects {
		of[s.state] = s
	}
	for _, s := range slices.Backward(c.subjects) {
		s.descent++
		if s.named = s.noData || s.keeps != nil; !s.named {
			s.unnamed++
		}
		if s.up = of[s.parent]; s.up != nil {
			s.up.descent += s.descent
			s.up.unnamed += s.unnamed
		}
	}
	for _, kids := range c.children {
		slices.SortStableFunc(kids, func(a, b *checkedState) int { return cmp.Compare(a.descent, b.descent) })
	}
}

// tell adds what was found in a state to the report, for it and for all that share it with it: these descend
// from it, and from each other. What is common to a state's children is kept until the last of them, which has the
// most descendants, is looked at; so it is kept for few states at a time, however long a line of them is.
func (c *checker) tell(s *checkedState, found []finding) error {
	type step struct {
		found    []finding
		children []*checkedState
	}
	for i := range found {
		if n := found[i].node; n != nil && !found[i].lost && len(c.report.nodes) < maxFindings && (c.shown == 0 || c.shown+s.descent <= maxShown) {
			n.listed = true
			c.shown += s.descent
			c.report.nodes = append(c.report.nodes, n)
		}
	}
	c.note(s, found)
	steps := []step{{found, c.children[s.state]}}
	for len(steps) > 0 {
		last := &steps[len(steps)-1]
		if len(last.children) == 0 {
			steps = steps[:len(steps)-1]
			continue
		}
		k, of := last.children[0], last.found
		if last.children = last.children[1:]; len(last.children) == 0 {
			steps = steps[:len(steps)-1]
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
		shared, err := c.shared(s, k, of)
		if err != nil {
			return err
		}
		if len(shared) > 0 {
			c.note(k, shared)
			steps = append(steps, step{shared, c.children[k.state]})
		}
	}
	for i := range found {
		if n := found[i].node; n != nil && n.listed {
			c.shown -= s.descent - len(n.states)
		}
	}
	return nil
}

// note adds what a state shows to the report.
func (c *checker) note(s *checkedState, found []finding) {
	for i := range found {
		f := &found[i]
		if f.elsewhere {
			continue
		}
		if f.node != nil && f.node.listed {
			f.node.states = append(f.node.states, s.state)
		}
		switch {
		case f.node == nil && s.noData:
		case s.keeps != nil:
			c.keepDamage(s.keeps, f)
		default:
			c.add(s, f.lba, f.blocks, f)
		}
	}
}

// add adds blocks of a state to the report.
func (c *checker) add(s *checkedState, lba, blocks uint64, f *finding) {
	d := Damage{
		Object: s.name, Volume: s.volume, Snapshot: s.snapshot, Offset: int64(lba) * block.Size, Length: int64(blocks) * block.Size,
		Lost: f.lost, Message: f.message,
	}
	if s.last > 0 {
		if last := &c.report.Damage[s.last-1]; last.Lost == d.Lost && last.Offset <= d.Offset && d.Offset <= last.Offset+last.Length {
			last.Length = max(last.Length, d.Offset+d.Length-last.Offset)
			return
		}
	}
	if len(c.report.Damage) >= maxFindings {
		if s.named || len(c.report.Damage) >= 2*maxFindings {
			c.more = true
			return
		}
	}
	c.report.Damage = append(c.report.Damage, d)
	s.last = len(c.report.Damage)
	if !s.named {
		s.named = true
		for up := s; up != nil; up = up.up {
			up.unnamed--
		}
	}
}

// wanted returns what of the findings is still asked for of a state and its descendants.
func (c *checker) wanted(k *checkedState, found []finding) []finding {
	if len(c.report.Damage) < maxFindings || k.unnamed > 0 && len(c.report.Damage) < 2*maxFindings {
		return found
	}
	var out []finding
	for _, f := range found {
		if f.node != nil && f.node.listed {
			out = append(out, f)
		} else {
			c.more = true
		}
	}
	return out
}

// shared returns what of the findings in s a state has that descends from it, and what it may have.
func (c *checker) shared(s, k *checkedState, found []finding) ([]finding, error) {
	var out []finding
	pins := c.pool.store.NewPins()
	for _, f := range c.wanted(k, found) {
		if f.lba >= k.blocks {
			continue
		}
		f.blocks = min(f.blocks, k.blocks-f.lba)
		if f.node == nil {
			var err error
			if out, err = c.sharedBlocks(pins, s, k, f, out); err != nil {
				return nil, err
			}
			continue
		}
		shows, known, err := c.pool.store.Shows(k.root, f.node.err)
		if err != nil {
			return nil, err
		}
		if shows || !known {
			f.elsewhere = !shows
			out = append(out, f)
		}
	}
	return out, nil
}

// sharedBlocks adds to out what of the blocks that were found in s a state has as well, and what it may have.
func (c *checker) sharedBlocks(pins *blockmap.Pins, s, k *checkedState, f finding, out []finding) ([]finding, error) {
	add := func(lba, blocks uint64, elsewhere bool) {
		f.lba, f.blocks, f.elsewhere = lba, blocks, elsewhere
		out = appended(out, f)
	}
	for at, end := f.lba, f.lba+f.blocks; at < end; {
		var n uint64
		var differs bool
		err := waitFor(pins, func() (err error) {
			n, differs, err = blockmap.DiffPlaces(pins, s.root, k.root, at, end-at)
			return err
		})
		if err == nil && differs {
			n = min(n, blockmap.LeafBlocks-at%blockmap.LeafBlocks)
			err = waitFor(pins, func() error { return k.root.Lookup(pins, at, c.entries[:n]) })
		}
		pins.ForgetBeyond(pinnedNodes)
		switch node, unreadable := errors.AsType[*blockmap.NodeError](err); {
		case unreadable: // which is told by itself
			n = min(end, node.First+node.Blocks()) - at
			add(at, n, true)
		case err != nil:
			return nil, err
		case !differs:
			add(at, n, false)
		case !f.lost:
			for i := range n {
				if c.entries[i].Lost() { // which is told by itself
					add(at+i, 1, true)
				}
			}
		}
		at += n
	}
	return out, nil
}

// merged sorts findings, the pool's own first, and joins those that are of one kind and adjacent.
func merged(all []Damage) []Damage {
	slices.SortStableFunc(all, func(a, b Damage) int {
		own := func(d *Damage) int { return min(int(d.Offset), 0) }
		return cmp.Or(cmp.Compare(own(&a), own(&b)), cmp.Compare(a.Object, b.Object), cmp.Compare(max(a.Offset, 0), max(b.Offset, 0)))
	})
	out := all[:0]
	for _, d := range all {
		if n := len(out); n > 0 && d.Offset >= 0 {
			// What is shared may have been found by itself as well.
			if last := &out[n-1]; last.Object == d.Object && last.Lost == d.Lost && last.Offset >= 0 && last.Offset+last.Length >= d.Offset {
				last.Length = max(last.Length, d.Offset+d.Length-last.Offset)
				continue
			}
		}
		out = append(out, d)
	}
	return out
}
