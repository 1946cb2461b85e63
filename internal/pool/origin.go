package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// origin is where blocks are of which maps have versions: what the pool has kept of them, and the rest, where it was found. There is one for
// an inplace volume and one for a base outside of the pool, and for all that descends from what began there.
type origin struct {
	pool   *Pool
	number uint64  // of the volume that is the Base of all whose maps have such versions
	kept   *volume // what is kept, by version
	rest   rest
}

// rest is what is not kept of an origin: each block lies at its LBA.
type rest interface {
	// readRest fills b from off on; what lies beyond the end is zeros. Without wait it is vfs.ErrWouldBlock if that takes time.
	readRest(ctx context.Context, b []byte, off int64, wait bool) error
	// nextData finds the first data within [off, off+length), from == to if there is none. What cannot be told counts as data.
	nextData(ctx context.Context, off, length int64) (from, to int64, err error)
}

// provides returns the origin of those whose Base a volume is, or nil.
func (v *volume) provides() *origin {
	switch {
	case v.place != nil:
		return &v.place.origin
	case v.basis != nil:
		return &v.basis.origin
	}
	return nil
}

// originOf returns where blocks of a volume are of which its map has versions, or nil; mu is held.
func (p *Pool) originOf(number uint64) *origin {
	v := p.cat.Volume(number)
	if v == nil || v.Base == 0 || p.volumes[v.Base] == nil {
		return nil
	}
	return p.volumes[v.Base].provides()
}

// join has all whose Base is the origin's volume read from it; mu is held.
func (o *origin) join() {
	for _, v := range o.pool.cat.Volumes() {
		if v.Base == o.number {
			o.pool.volumes[v.Number].origin = o
		}
	}
}

// basedOn returns where blocks of a state are of which its map has versions, or nil; mu is held.
func (p *Pool) basedOn(c *catalogue.Catalogue, s *catalogue.State) *origin {
	// A hidden state may have outlived its volume. All that descend from one state have one origin.
	for up := s; up != nil; up = c.State(up.Parent) {
		if c.Volume(up.Volume) != nil {
			return p.originOf(up.Volume)
		}
	}
	for _, k := range c.VisibleBelow(s.ID) {
		return p.originOf(k.Volume)
	}
	return nil
}

// resolve replaces entries whose versions are kept by where these lie; a *blockmap.Miss if that must wait.
func (o *origin) resolve(pins *blockmap.Pins, entries []blockmap.Entry) error {
	return o.resolveBefore(pins, entries, 0)
}

// resolveBefore is resolve for somebody to whom only what was kept before an epoch is what it should be; 0: all is.
func (o *origin) resolveBefore(pins *blockmap.Pins, entries []blockmap.Entry, epoch uint64) error {
	o.kept.mu.RLock()
	defer o.kept.mu.RUnlock()
	kept := o.kept.tree.View()
	if kept.Empty() {
		return nil
	}
	var found [blockmap.LeafBlocks]blockmap.Entry
	for i := 0; i < len(entries); {
		from, ok := version(entries[i])
		if !ok {
			i++
			continue
		}
		n := 1
		for i+n < len(entries) && n < len(found) {
			if v, ok := version(entries[i+n]); !ok || v != from+uint64(n) {
				break
			}
			n++
		}
		if err := kept.Lookup(pins, from, found[:n]); err != nil {
			return err
		}
		for k, e := range found[:n] {
			if e.Epoch != 0 && (epoch == 0 || e.Epoch < epoch) {
				entries[i+k] = e
			}
		}
		i += n
	}
	return nil
}

// readVersion fills b, one block, with what an entry says that is not in the log, or was not.
func (o *origin) readVersion(pins *blockmap.Pins, lba uint64, e blockmap.Entry, b []byte) error {
	v, _ := version(e)
	for {
		if there, err := o.readKept(pins, v, b); there || err != nil {
			return err
		}
		if err := o.rest.readRest(context.Background(), b, int64(lba)*block.Size, true); err != nil {
			return err
		}
		// It may have been kept, and then overwritten, before it was read.
		var k [1]blockmap.Entry
		if err := o.kept.lookup(pins, v, k[:]); err != nil || k[0].Epoch == 0 {
			return damaged(err)
		}
	}
}

// readKept fills b, one block, with a version that is kept; false if it is in place.
func (o *origin) readKept(pins *blockmap.Pins, v uint64, b []byte) (bool, error) {
	var e [1]blockmap.Entry
	if err := o.kept.lookup(pins, v, e[:]); err != nil {
		return false, damaged(err)
	}
	if e[0].Epoch == 0 {
		return false, nil
	}
	err := o.kept.readCurrent(&e[0], pins, v, b)
	return e[0].Epoch != 0, err // it may have come into the file meanwhile
}

// addKept adds the content of n versions to a request, in runs; what tells a version and its block, nil if that is zeros.
func (o *origin) addKept(w *write, pins *blockmap.Pins, n int, what func(i int) (version uint64, data []byte)) error {
	w.crcs, w.slices = slices.Grow(w.crcs, n), slices.Grow(w.slices, n)
	var e [1]blockmap.Entry
	for i := 0; i < n; {
		first, data := what(i)
		entry := seglog.Entry{Kind: seglog.KindZero, Volume: o.kept.number, LBA: first}
		crc, slice := len(w.crcs), len(w.slices)
		for zero := data == nil; i < n && entry.Count < seglog.MaxPayloadBlocks; i++ {
			v, data := what(i)
			if v != first+entry.Count || (data == nil) != zero {
				break
			}
			if entry.Count++; !zero {
				w.crcs = append(w.crcs, seglog.Checksum(data))
				w.slices = append(w.slices, data)
			}
		}
		if data != nil {
			entry.Kind = seglog.KindData
			entry.Payload, entry.CRCs = w.slices[slice:len(w.slices):len(w.slices)], w.crcs[crc:len(w.crcs):len(w.crcs)]
		}
		for at := first; at < first+entry.Count; at = blockmap.LeafOf(at) + blockmap.LeafBlocks { // applying it must read nothing
			if err := o.kept.lookup(pins, at, e[:]); err != nil {
				return damaged(err)
			}
		}
		w.changes = append(w.changes, change{volume: o.kept, pins: pins, entry: entry})
	}
	return nil
}

// errSuspect is why what a snapshot has in place is not served.
var errSuspect = errors.New("its file was changed by somebody else since, and this block may not be what it was")

// based is a view of a state whose map may have versions.
type based struct {
	view
	from    *origin
	suspect uint64 // if not 0, what is in place is not to be relied on, nor what was kept in this epoch or a newer one
}

func (b based) look(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error {
	if err := b.view.look(pins, lba, out); err != nil {
		return err
	}
	return b.from.resolveBefore(pins, out, b.suspect)
}

func (b based) below() (*origin, error) {
	if b.suspect != 0 {
		return nil, fmt.Errorf("%w: %w", block.ErrDamaged, errSuspect)
	}
	return b.from, nil
}

// run tells runs of data and zeros: by what is kept, and by the holes of the rest.
func (b based) run(ctx context.Context, pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
	blocks, mapped, err := b.view.run(ctx, pins, lba, limit)
	if err != nil || !mapped {
		return blocks, mapped, err
	}
	// A stretch that is as it was found can be long; of others the leaf is looked at.
	placed, err := b.view.placed(pins, lba, blocks)
	if err != nil {
		return 0, false, err
	}
	if placed > 0 {
		n, kept, err := b.from.known(pins, lba, placed)
		if err != nil {
			return 0, false, err
		}
		if !kept {
			return b.hole(ctx, lba, n, func(n uint64) (bool, error) {
				same, kept, err := b.from.known(pins, lba, n)
				return same == n && !kept, err
			})
		}
		blocks = n
	}
	entries := make([]blockmap.Entry, min(blocks, blockmap.LeafBlocks))
	if err := b.look(pins, lba, entries); err != nil {
		return 0, false, err
	}
	n := uint64(1)
	for n < uint64(len(entries)) && inFile(entries[n]) == inFile(entries[0]) && entries[n].Mapped() == entries[0].Mapped() {
		n++
	}
	if inFile(entries[0]) {
		return b.hole(ctx, lba, n, func(n uint64) (bool, error) {
			again := entries[:n]
			err := b.look(pins, lba, again)
			for i := range again {
				if !inFile(again[i]) {
					return false, err
				}
			}
			return true, err
		})
	}
	return n, entries[0].Mapped(), nil
}

// known is blockmap.Root.RunKnown of what is kept.
func (o *origin) known(pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
	o.kept.mu.RLock()
	defer o.kept.mu.RUnlock()
	return o.kept.tree.View().RunKnown(pins, lba, limit)
}

// hole tells whether a stretch that is in place begins with a hole there, and how long that or the data before the next one is. Who zeroes
// a part of a file keeps what was there first; so after a hole was found, still must tell that nothing was kept meanwhile.
func (b based) hole(ctx context.Context, lba, blocks uint64, still func(blocks uint64) (bool, error)) (uint64, bool, error) {
	if b.suspect != 0 {
		return blocks, true, nil // whoever reads it is told
	}
	off := int64(lba) * block.Size
	from, to, err := b.from.rest.nextData(ctx, off, int64(blocks)*block.Size)
	if err != nil {
		return 0, false, err
	}
	n := min(blocks, uint64(from-off)/block.Size)
	if from == to {
		n = blocks
	}
	if n == 0 {
		return min(blocks, max(blocksIn(to)-lba, 1)), true, nil
	}
	same, err := still(n)
	return n, !same, err // data, if in doubt: it is read, and found to be what it is
}
