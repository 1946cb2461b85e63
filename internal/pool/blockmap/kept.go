package blockmap

import "context"

// ExclusiveKept counts the blocks of r that are in place in the version of their LBA, of which kept has the content at the same LBA, and
// which none of the others has in that version. Only where r or one of the others differs from how it was found are nodes read.
func (s *Store) ExclusiveKept(ctx context.Context, r, kept Root, others []Root) (uint64, error) {
	cs := make([]*child, len(others))
	for i := range others {
		cs[i] = &others[i].c
	}
	return s.exclusiveKept(ctx, &r.c, &kept.c, cs, rootLevel, 0)
}

func (s *Store) exclusiveKept(ctx context.Context, c, kept *child, others []*child, level int, first uint64) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if c.mappedBlocks() == 0 || c.lost || kept.mappedBlocks() == 0 {
		return 0, nil
	}
	var left []*child // others that hold anything here
	for _, o := range others {
		if o.same(c) {
			return 0, nil
		}
		if o.mappedBlocks() > 0 {
			left = append(left, o)
		}
	}
	if c.placed && len(left) == 0 {
		return kept.mappedBlocks(), nil
	}
	pins := s.NewPins()
	nodes := make([]*node, 2+len(left))
	for i, k := range append([]*child{c, kept}, left...) {
		var err error
		if nodes[i], err = pins.resident(k, level, first); err != nil {
			return 0, err
		}
	}
	n, its := nodes[0], nodes[2:]
	var sum uint64
	for i := n.slots.next(0); i >= 0; i = n.slots.next(i + 1) {
		if level == 0 {
			v, ok := n.entry(i).Version()
			if ok && v == Version(first)+Version(i) && nodes[1].entry(i).Stored() && !heldBy(its, i, n.entry(i)) {
				sum++
			}
			continue
		}
		mine, its := n.child(i), make([]*child, len(its))
		for k := range its {
			its[k] = nodes[2+k].childOrNone(i)
		}
		below, err := s.exclusiveKept(ctx, &mine, nodes[1].childOrNone(i), its, level-1, first+uint64(i)*span(level-1))
		if err != nil {
			return 0, err
		}
		sum += below
	}
	return sum, nil
}
