package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// errStrange is why a leg is not written: what is found by its path may be anybody's.
var errStrange = errors.New("this is not the leg it was")

// strange says of what is found by a leg's path why it cannot be taken for the leg.
func (m *mirror) strange(format string, args ...any) error {
	return fmt.Errorf("file %s: %w: %w; attach it again with --force to overwrite it", m.path, errStrange, fmt.Errorf(format, args...))
}

// recognise returns nil if a file is the leg that was sealed, or in use: by its seal, by its identity, and by what of it should be the same as
// the volume. Else it tells why not.
func (m *mirror) recognise(l *leg, then *catalogue.Seal) error {
	if then.Closed {
		if err := changedSince(m.pool.opts.FS, m.path, l, then); err != nil {
			return m.strange("%w", err)
		}
	} else if l.inUse.SizeBytes != then.SizeBytes {
		return m.strange("its size was %d and is %d", then.SizeBytes, l.inUse.SizeBytes)
	}
	untouched := then.Closed && then.ModTime != 0 // since it was sealed: of a device that is not known
	known, why := untouched, errors.New("nothing tells it from others, and it has nothing in common with the volume yet")
	if now := l.inUse.Identity; now != "" && then.Identity != "" {
		known, why = now == then.Identity, fmt.Errorf("it was %s, and is %s", then.Identity, now)
		if !known && !untouched {
			return m.strange("%w", why)
		}
	}
	alike, err := m.alike(l)
	if err != nil {
		return m.strange("%w", err)
	}
	if !known && !alike {
		return m.strange("%w", why)
	}
	return nil
}

// sealed returns what is recorded of the leg. errDetached.
func (m *mirror) sealed() (catalogue.Seal, error) {
	m.pool.mu.RLock()
	defer m.pool.mu.RUnlock()
	if v := m.pool.cat.Volume(m.volume.number); v != nil && v.Mirror != nil {
		return v.Mirror.Seal, nil
	}
	return catalogue.Seal{}, errDetached
}

// alike compares blocks of the volume with a file's, from all over the regions in which they are the same, whatever a crash has left. It returns an
// error if one differs, and whether any had something in it.
func (m *mirror) alike(l *leg) (known bool, err error) {
	total := blocksIn(m.volume.size.Load())
	for i := range uint64(sampled) {
		lo, hi := m.regions.same(total*i/sampled, total*(i+1)/sampled)
		if lo == hi {
			continue
		}
		at := []uint64{lo}
		if data, found := m.dataWithin(lo, hi); found && data != lo { // holes look all the same
			at = append(at, data)
		}
		for _, lba := range at {
			has, err := m.compare(l, lba)
			if err != nil {
				return false, err
			}
			known = known || has
		}
	}
	return known, nil
}

// same finds the first of some blocks that lie in regions in which both sides are the same, and how far that goes: [lo, hi).
func (r *regions) same(from, to uint64) (lo, hi uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	is := func(lba uint64) bool {
		return lba < to && lba/regionBlocks < r.copied && !r.recorded.has(lba/regionBlocks)
	}
	behind := func(lba uint64) uint64 { return min((lba/regionBlocks+1)*regionBlocks, to) }
	for lo = from; lo < to && !is(lo); {
		lo = behind(lo)
	}
	for hi = lo; is(hi); {
		hi = behind(hi)
	}
	return lo, hi
}

// dataWithin finds the first block with data; of a base, which may take its time, nothing is asked.
func (m *mirror) dataWithin(lo, hi uint64) (uint64, bool) {
	if b := m.volume.baseBelow(); b != nil && !b.whole() {
		return 0, false
	}
	d, ctx := m.volume.device(), context.Background()
	from, to := int64(lo)*block.Size, min(int64(hi)*block.Size, m.volume.size.Load())
	for _, length := range []int64{min(block.Size, to-from), to - from} { // of data it does not matter how far it goes
		found, err := d.extents(ctx, from, length, 1)
		switch {
		case err != nil || len(found) == 0: // it is damaged, which says nothing of the leg
			return 0, false
		case !found[0].Zero:
			return lo, true
		case found[0].Length < length:
			return lo + uint64(found[0].Length)/block.Size, true
		}
	}
	return 0, false
}

// compare returns an error if a block differs that should be the same, and whether it has anything in it.
func (m *mirror) compare(l *leg, lba uint64) (has bool, err error) {
	if m.lacks(lba) {
		return false, nil
	}
	off := int64(lba) * block.Size
	its, ours := make([]byte, min(block.Size, m.volume.size.Load()-off)), make([]byte, block.Size)
	if _, err := l.ReadAt(its, off); err != nil {
		return false, err
	}
	ours = ours[:len(its)]
	if err := m.volume.device().read(context.Background(), ours, off); err != nil {
		return false, nil // that says nothing of the leg
	}
	if bytes.Equal(its, ours) {
		return !bytes.Equal(its, zeroBlock[:len(its)]), nil
	}
	m.pool.mu.RLock() // who changes all at once has said so when he lets go of it
	lo, hi := m.regions.same(lba, lba+1)
	m.pool.mu.RUnlock()
	if lo == hi { // somebody has written there meanwhile
		return false, nil
	}
	return false, fmt.Errorf("it has something else at %d than the volume, and should have the same", off)
}

// lacks tells whether a block would have to be read from a base.
func (m *mirror) lacks(lba uint64) bool {
	b := m.volume.baseBelow()
	if b == nil || b.whole() {
		return false
	}
	pins := m.pool.store.NewPins()
	var e [1]blockmap.Entry
	if m.volume.lookup(pins, lba, e[:]) != nil {
		return true
	}
	lacks, err := b.lacks(pins, lba, e[0])
	return lacks || err != nil
}
