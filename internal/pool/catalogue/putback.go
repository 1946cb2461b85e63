package catalogue

import (
	"fmt"
	"slices"
)

// PutBack ends a rollback that had to copy: a volume goes on as what was filled for it, and that goes.
type PutBack struct {
	Volume uint64 `cbor:"1,keyasint"`
	Filled uint64 `cbor:"2,keyasint"`           // an incomplete volume, cloned from Kept
	Kept   uint64 `cbor:"3,keyasint"`           // the pending snapshot that keeps the present, which counts from now on
	Was    uint64 `cbor:"4,keyasint,omitempty"` // of an inplace volume: ID of the hidden state that its head becomes, a base
}

// putBack hangs the volume's head where that of Filled is, with its size. It goes on in an epoch of its own: what was
// filled is of an earlier one, so that it is not taken for what the head has written.
func (c *Catalogue) putBack(o *PutBack) error {
	v, filled, kept := c.volumes[o.Volume], c.volumes[o.Filled], c.snapshot(o.Kept)
	switch {
	case v == nil || filled == nil || filled == v || kept == nil || kept.Volume != o.Volume || !c.Descends(c.Head(v), kept):
		return fmt.Errorf("put back into volume %d what volume %d has: one is not there, or it does not descend from snapshot %d", o.Volume, o.Filled, o.Kept)
	case !filled.Incomplete || filled.Internal() || v.Internal() || v.Deleted || filled.Base != v.Base || filled.Place != nil || len(c.named[o.Filled])+len(c.marks[o.Filled]) > 0 ||
		c.Head(filled).Parent != c.tip(o.Kept):
		return fmt.Errorf("put back into volume %d: volume %d was not cloned from snapshot %d to be filled", o.Volume, o.Filled, o.Kept)
	case (v.Place != nil) != (o.Was > c.LastState) || v.Place == nil && o.Was != 0:
		return fmt.Errorf("put back into volume %d: its head cannot become state %d", o.Volume, o.Was)
	}
	old, end := c.Head(v), c.Head(filled)
	c.remove(end.ID)
	c.forgetVolume(filled)
	c.LastEpoch++
	c.reparent(old.ID, end.Parent)
	c.replace(old.ID, func(s *State) { s.Epoch, s.SizeBytes = c.LastEpoch, end.SizeBytes })
	c.replace(kept.ID, func(s *State) { s.Pending, s.Automatic = false, true })
	c.unsync(o.Volume)
	if v.Place == nil {
		c.dissolve(old.Parent)
		return nil
	}
	c.addState(&State{ID: o.Was, Kind: Hidden, Volume: o.Volume, Parent: old.Parent, Epoch: old.Epoch, SizeBytes: old.SizeBytes})
	return c.changePlace(o.Volume, func(p *Place) { p.Bases = append(slices.Clone(p.Bases), o.Was) })
}

// Descends tells whether a state is another one or continues from it.
func (c *Catalogue) Descends(s, from *State) bool {
	for s != nil && s != from {
		s = c.states[s.Parent]
	}
	return s != nil
}

// forgetVolume takes a volume out that has no states any more.
func (c *Catalogue) forgetVolume(v *Volume) {
	delete(c.volumes, v.Number)
	delete(c.byName, v.Name)
	delete(c.named, v.Number)
	delete(c.marks, v.Number)
}
