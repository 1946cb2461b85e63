package pool

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"varve/internal/pool/blockmap"
)

// keptDamage is what was found in what is kept of an origin: there, blocks are versions.
type keptDamage struct {
	finding
	reach uint64 // the end of what lies furthest, of this one and those before it
	told  bool
}

// keepDamage notes damage of kept versions, until all is known.
func (c *checker) keepDamage(of *origin, f *finding) {
	if c.kept == nil {
		c.kept = map[*origin][]keptDamage{}
	}
	found := c.kept[of]
	if n := len(found); n > 0 && f.node == nil {
		last := &found[n-1]
		if last.node == nil && last.lost == f.lost && last.lba+last.blocks == f.lba {
			last.blocks += f.blocks
			return
		}
	}
	if c.kepts == maxFindings {
		c.more = true
		return
	}
	c.kepts++
	c.kept[of] = append(found, keptDamage{finding: *f})
}

// tellKept reports damage of kept versions for each snapshot and clone that has them.
func (c *checker) tellKept() error {
	for _, found := range c.kept {
		slices.SortStableFunc(found, func(a, b keptDamage) int { return cmp.Compare(a.lba, b.lba) })
		reach := uint64(0)
		for i := range found {
			reach = max(reach, found[i].lba+found[i].blocks)
			found[i].reach = reach
		}
	}
	for _, s := range c.subjects {
		found := c.kept[s.base]
		if s.base == nil || len(found) == 0 || s.noData || s.volume == "" {
			continue
		}
		err := c.pool.store.EachReadableVersion(c.ctx, s.root, func(lba uint64, v blockmap.Version, blocks uint64) error {
			from, to := uint64(v), uint64(v)+blocks
			for i := sort.Search(len(found), func(i int) bool { return found[i].reach > from }); i < len(found) && found[i].lba < to; i++ {
				k := &found[i]
				lo, hi := max(from, k.lba), min(to, k.lba+k.blocks)
				if lo >= hi {
					continue
				}
				k.told = true
				if at := lba + lo - from; at < s.blocks {
					c.add(s, at, min(hi-lo, s.blocks-at), &k.finding)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for of, found := range c.kept {
		for i := range found {
			if k := &found[i]; !k.told {
				c.report.Damage = append(c.report.Damage, Damage{
					Object: fmt.Sprintf("%s (what is kept of it)", of.kept.name()), Offset: -1, Lost: k.lost, Message: k.message,
				})
			}
		}
	}
	return nil
}
