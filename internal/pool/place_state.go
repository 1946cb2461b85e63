package pool

import (
	"errors"
	"fmt"

	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// addPlace makes what a new inplace volume has in memory; mu is held.
func (p *Pool) addPlace(v *catalogue.Volume) {
	kept := p.cat.Volume(v.Place.Kept)
	p.volumes[kept.Number] = p.newVolume(kept, p.cat.Head(kept), blockmap.Root{})
	w, head := p.volumes[v.Number], p.cat.Head(v)
	w.tree = blockmap.NewTree(blockmap.PlacedRoot(blocksIn(head.SizeBytes), head.Epoch, p.nextGen()), head.Epoch, 0, p.nextGen())
	p.joinPlace(v)
}

// joinPlace ties an inplace volume to the internal one, and to all whose blocks may lie in its file.
func (p *Pool) joinPlace(v *catalogue.Volume) {
	w := p.volumes[v.Number]
	w.place = p.newPlace(v)
	w.place.volume, w.place.kept = w, p.volumes[v.Place.Kept]
	w.place.join()
}

// noteVersions has the catalogue know which versions were given; mu is held.
func (p *Pool) noteVersions() {
	for _, v := range p.volumes {
		if v.place != nil {
			p.cat.SetNext(v.number, v.place.next.Load())
		}
	}
}

// errVersions refuses a change for which a volume has no version any more.
var errVersions = errors.New("all versions that its blocks can have were given: delete it, which leaves its file, and adopt that again")

// versions gives n versions, of which it returns the first. As many as a volume has blocks are left for lastVersions.
func (pl *place) versions(n uint64) (uint64, error) {
	return pl.versionsBelow(uint64(catalogue.KeptBlocks)-catalogue.FirstVersion, n)
}

// lastVersions is versions for what brings blocks into the file.
func (pl *place) lastVersions(n uint64) (uint64, error) {
	return pl.versionsBelow(uint64(catalogue.KeptBlocks), n)
}

func (pl *place) versionsBelow(end, n uint64) (uint64, error) {
	for {
		next := pl.next.Load()
		if next > end || n > end-next {
			return 0, fmt.Errorf("volume %q: %w", pl.volume.name(), errVersions)
		}
		if pl.next.CompareAndSwap(next, next+n) {
			return next, nil
		}
	}
}

// placeBelow returns the file in which blocks of the volume may lie, or nil.
func (v *volume) placeBelow() *place {
	if v.origin == nil {
		return nil
	}
	pl, _ := v.origin.rest.(*place)
	return pl
}

// applyVersions folds a Touch or Back into the map; mu is held.
func (v *volume) applyVersions(pins *blockmap.Pins, e *seglog.Entry) error {
	pl := v.placeBelow()
	switch {
	case pl == nil:
		return fmt.Errorf("%w: volume %q has no blocks in a file, and an entry says so", ErrDamagedLog, v.name())
	case e.Version < catalogue.FirstVersion || e.Version > uint64(catalogue.KeptBlocks)-e.Count:
		return fmt.Errorf("%w: version %d of volume %q", ErrDamagedLog, e.Version, v.name())
	case e.Kind == seglog.KindTouch && e.Epoch != v.tree.Epoch():
		return fmt.Errorf("%w: blocks of epoch %d where the volume is in epoch %d", ErrDamagedLog, e.Epoch, v.tree.Epoch())
	}
	if next := e.Version + e.Count; next > pl.next.Load() { // on replay
		pl.next.Store(next)
	}
	for done := uint64(0); done < e.Count; {
		n := min(e.Count-done, blockmap.LeafBlocks)
		v.scratch = v.scratch[:0]
		for i := range n {
			v.scratch = append(v.scratch, blockmap.InPlace(blockmap.Version(e.Version+done+i), e.Epoch))
		}
		if e.Kind == seglog.KindBack {
			if err := v.keepEpochsOf(pins, e.LBA+done, v.scratch); err != nil {
				return err
			}
		}
		if err := v.tree.Set(pins, e.LBA+done, v.scratch); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// keepEpochsOf gives entries the epochs of those that they replace; mu is held.
func (v *volume) keepEpochsOf(pins *blockmap.Pins, lba uint64, entries []blockmap.Entry) error {
	now := make([]blockmap.Entry, len(entries))
	if err := v.lookupLocked(pins, lba, now); err != nil {
		return err
	}
	for i := range entries {
		entries[i].Epoch = now[i].Epoch
	}
	return nil
}
