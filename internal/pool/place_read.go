package pool

import (
	"context"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// inFile tells whether an entry, resolved, says that the block is in place.
func inFile(e blockmap.Entry) bool {
	_, ok := e.Version()
	return ok
}

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

// readRest implements rest.
func (pl *place) readRest(_ context.Context, b []byte, off int64, wait bool) error {
	return pl.read(b, off, wait)
}

// nextData implements rest.
func (pl *place) nextData(_ context.Context, off, length int64) (from, to int64, err error) {
	file, err := pl.get()
	if err != nil {
		return off, off + length, nil // whoever reads it is told
	}
	if from, to, err = file.NextData(off); err != nil {
		return 0, 0, pl.failed("describe", err)
	}
	return from, to, nil
}

func (v *volume) placed(pins *blockmap.Pins, lba, limit uint64) (uint64, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree.View().PlacedRun(pins, lba, limit)
}

func (f frozen) placed(pins *blockmap.Pins, lba, limit uint64) (uint64, error) {
	return f.root.PlacedRun(pins, lba, limit)
}
