package pool

import (
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
)

// keptDamage is what was found in what is kept of an inplace volume: there, blocks are versions.
type keptDamage struct {
	of *place
	finding
}

// tellKept reports damage of kept versions for each snapshot and clone that has them.
func (c *checker) tellKept() error {
	for _, k := range c.kept {
		told := false
		for _, s := range c.subjects {
			if s.base != k.of || s.noData || s.volume == "" {
				continue
			}
			err := c.pool.store.EachVersion(c.ctx, s.root, 0, func(lba uint64, v blockmap.Version, blocks uint64) error {
				lo, hi := max(uint64(v), k.lba), min(uint64(v)+blocks, k.lba+k.blocks)
				if lo >= hi || len(c.report.Damage) >= maxFindings {
					return nil
				}
				told = true
				at := lba + lo - uint64(v)
				if at >= s.blocks {
					return nil
				}
				c.report.Damage = append(c.report.Damage, Damage{
					Object: s.name, Volume: s.volume, Snapshot: s.snapshot, Offset: int64(at) * block.Size, Length: int64(min(hi-lo, s.blocks-at)) * block.Size,
					Lost: k.lost, Message: k.message,
				})
				return nil
			})
			if err != nil {
				return err
			}
		}
		if !told {
			c.report.Damage = append(c.report.Damage, Damage{
				Object: fmt.Sprintf("%s (what is kept of it)", k.of.volume.name()), Offset: -1, Lost: k.lost, Message: k.message,
			})
		}
	}
	return nil
}
