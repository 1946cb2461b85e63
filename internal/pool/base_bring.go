package pool

import (
	"bytes"
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
)

// lacks tells whether a block that an entry is of has to be read from the base.
func (b *base) lacks(pins *blockmap.Pins, lba uint64, e blockmap.Entry) (bool, error) {
	if !inFile(e) || int64(lba)*block.Size < b.done.Load() {
		return false, nil
	}
	var k [1]blockmap.Entry
	err := b.origin.kept.lookup(pins, lba, k[:])
	return k[0].Epoch == 0, damaged(err)
}

// bring brings a block of a volume from the base into the pool, unless it is there.
func (b *base) bring(ctx context.Context, v *volume, lba uint64) error {
	pins := b.pool.store.NewPins()
	var e [1]blockmap.Entry
	if err := v.lookup(pins, lba, e[:]); err != nil {
		return damaged(err)
	}
	if lacks, err := b.lacks(pins, lba, e[0]); err != nil || !lacks {
		return err
	}
	data := make([]byte, block.Size)
	if err := b.readRest(ctx, data, int64(lba)*block.Size, true); err != nil {
		return err
	}
	if bytes.Equal(data, zeroBlock) {
		data = nil
	}
	return b.keep(ctx, pins, 1, func(int) (uint64, []byte) { return lba, data })
}

// bringEdges brings what ops set in part from the base into the pool, so that nothing is held while the base is read. Of those for which that
// fails it returns why.
func (v *volume) bringEdges(ctx context.Context, ops []*block.Op) map[*block.Op]error {
	b := v.baseBelow()
	if b == nil || b.whole() {
		return nil
	}
	var failed map[*block.Op]error
	size := v.size.Load()
	for _, op := range ops {
		if block.CheckRange(op.Offset, op.Length, size) != nil || op.Length == 0 { // told by who performs them
			continue
		}
		for _, part := range pieces(op, size) {
			for _, edge := range []int64{part.lo, part.hi} {
				if !part.data || edge%block.Size == 0 || failed[op] != nil {
					continue
				}
				if err := b.bring(ctx, v, uint64(edge/block.Size)); err != nil {
					if failed == nil {
						failed = map[*block.Op]error{}
					}
					failed[op] = fmt.Errorf("write volume %q at %d: %w", v.name(), op.Offset, err)
				}
			}
		}
	}
	return failed
}

// bringEnd is volume.bringEnd of a volume that is named. One that is not there is told by who resizes it.
func (p *Pool) bringEnd(ctx context.Context, name string, sizeBytes int64) error {
	p.mu.RLock()
	var v *volume
	if found, err := findLive(p.cat, name); err == nil {
		v = p.volumes[found.Number]
	}
	p.mu.RUnlock()
	if v == nil || !p.begin() {
		return nil
	}
	defer p.end()
	return v.bringEnd(ctx, sizeBytes)
}

// bringEnd brings the block that a new end of a volume lies in from the base into the pool.
func (v *volume) bringEnd(ctx context.Context, sizeBytes int64) error {
	b := v.baseBelow()
	if b == nil || b.whole() || sizeBytes%block.Size == 0 || sizeBytes >= v.size.Load() {
		return nil
	}
	return b.bring(ctx, v, uint64(sizeBytes/block.Size))
}
