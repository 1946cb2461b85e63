package pool

import (
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// resolve replaces entries whose versions are kept by where these lie; a *blockmap.Miss if that must wait.
func (pl *place) resolve(pins *blockmap.Pins, entries []blockmap.Entry) error {
	return pl.resolveBefore(pins, entries, 0)
}

// resolveBefore is resolve for somebody to whom only what was kept before an epoch is what it should be; 0: all is.
func (pl *place) resolveBefore(pins *blockmap.Pins, entries []blockmap.Entry, epoch uint64) error {
	pl.kept.mu.RLock()
	defer pl.kept.mu.RUnlock()
	kept := pl.kept.tree.View()
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

// inFile tells whether an entry, resolved, says that the block is in place.
func inFile(e blockmap.Entry) bool {
	_, ok := e.Version()
	return ok
}

// errSuspect is why what a snapshot has in place is not served.
var errSuspect = errors.New("its file was changed by somebody else since, and this block may not be what it was")

// readHead reads from the file where all of it is in place.
func (d *Device) readHead(b []byte, off int64, wait bool) (done bool, err error) {
	pl := d.volume.place
	if pl == nil || !pl.whole() {
		return false, nil
	}
	return true, pl.read(b, off, wait)
}

// extentsInFile describes a volume's file from off on, in at most limit runs.
func (pl *place) extentsInFile(off, length int64, limit int) ([]block.Extent, error) {
	file, err := pl.get()
	if err != nil {
		return nil, err
	}
	out, err := fileExtents(file, off, length, limit)
	if err != nil {
		return nil, pl.failed("describe", err)
	}
	return out, nil
}

// suspected returns from which epoch on what was kept is not what a state had, because somebody else has changed the file; 0 if
// nobody has since the state was new. mu is held.
func (p *Pool) suspected(s *catalogue.State) uint64 {
	for ; s != nil; s = p.cat.State(s.Parent) {
		v := p.cat.Volume(s.Volume)
		if v != nil && v.Place != nil && s.Kind != catalogue.Head {
			if s.ID <= v.Place.Suspect {
				return v.Place.SuspectEpoch
			}
			return 0
		}
	}
	return 0
}

// based is a view of a state some of whose blocks may lie in a file.
type based struct {
	view
	place   *place
	suspect uint64 // if not 0, what is in place is not to be relied on, nor what was kept in this epoch or a newer one
}

func (b based) look(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error {
	if err := b.view.look(pins, lba, out); err != nil {
		return err
	}
	return b.place.resolveBefore(pins, out, b.suspect)
}

func (b based) file() (*place, error) {
	if b.suspect != 0 {
		return nil, fmt.Errorf("%w: %w", block.ErrDamaged, errSuspect)
	}
	return b.place, nil
}

// run tells runs of data and zeros: by what is kept, and by the holes of the file.
func (b based) run(pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
	blocks, mapped, err := b.view.run(pins, lba, limit)
	if err != nil || !mapped {
		return blocks, mapped, err
	}
	// A stretch that is as the file was found can be long; of others the leaf is looked at.
	placed, err := b.view.placed(pins, lba, blocks)
	if err != nil {
		return 0, false, err
	}
	if placed > 0 {
		b.place.kept.mu.RLock()
		n, kept, err := b.place.kept.tree.View().RunKnown(pins, lba, placed)
		b.place.kept.mu.RUnlock()
		if err != nil {
			return 0, false, err
		}
		if !kept {
			return b.hole(lba, n, func(n uint64) (bool, error) {
				b.place.kept.mu.RLock()
				defer b.place.kept.mu.RUnlock()
				same, kept, err := b.place.kept.tree.View().RunKnown(pins, lba, n)
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
		return b.hole(lba, n, func(n uint64) (bool, error) {
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

// hole tells whether a stretch that is in place begins with a hole of the file, and how long that or the data before the next one is. Who zeroes
// a part of the file keeps what was there first; so after a hole was found, still must tell that nothing was kept meanwhile.
func (b based) hole(lba, blocks uint64, still func(blocks uint64) (bool, error)) (uint64, bool, error) {
	file, err := b.place.get()
	if err != nil || b.suspect != 0 {
		return blocks, true, nil // whoever reads it is told
	}
	off := int64(lba) * block.Size
	from, to, err := file.NextData(off)
	if err != nil {
		return 0, false, b.place.failed("describe", err)
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

func (v *volume) placed(pins *blockmap.Pins, lba, limit uint64) (uint64, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree.View().PlacedRun(pins, lba, limit)
}

func (f frozen) placed(pins *blockmap.Pins, lba, limit uint64) (uint64, error) {
	return f.root.PlacedRun(pins, lba, limit)
}

// readVersion fills b, one block, with what an entry says that is not in the log, or was not.
func (pl *place) readVersion(pins *blockmap.Pins, lba uint64, e blockmap.Entry, b []byte) error {
	v, _ := version(e)
	for {
		if there, err := pl.readKept(pins, v, b); there || err != nil {
			return err
		}
		if err := pl.read(b, int64(lba)*block.Size, true); err != nil {
			return err
		}
		// It may have been kept, and then overwritten, before it was read.
		var k [1]blockmap.Entry
		if err := pl.kept.lookup(pins, v, k[:]); err != nil || k[0].Epoch == 0 {
			return damaged(err)
		}
	}
}

// readKept fills b, one block, with a version that is kept; false if it is in place.
func (pl *place) readKept(pins *blockmap.Pins, v uint64, b []byte) (bool, error) {
	var e [1]blockmap.Entry
	if err := pl.kept.lookup(pins, v, e[:]); err != nil {
		return false, damaged(err)
	}
	if e[0].Epoch == 0 {
		return false, nil
	}
	err := pl.kept.readCurrent(&e[0], pins, v, b)
	return e[0].Epoch != 0, err // it may have come into the file meanwhile
}
