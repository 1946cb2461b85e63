package catalogue

import "slices"

// Internal tells whether the volume is a part of another one, which nobody sees.
func (v *Volume) Internal() bool {
	return v.KeptOf != 0 || v.ContentOf != 0 || v.RegionsOf != 0 || v.Filling != nil
}

// namesInternal tells whether an operation is on what goes with another volume or a copy, and with nothing else.
func (c *Catalogue) namesInternal(op *Op) bool {
	internal := func(number uint64) bool { v := c.volumes[number]; return v != nil && v.Internal() }
	of := func(id uint64) bool { s := c.states[id]; return s != nil && internal(s.Volume) }
	switch {
	case op.SetVolume != nil:
		return internal(op.SetVolume.Number)
	case op.ResizeVolume != nil:
		return internal(op.ResizeVolume.Number)
	case op.DeleteVolume != nil:
		return internal(op.DeleteVolume.Number)
	case op.CreateSnapshots != nil:
		return slices.ContainsFunc(op.CreateSnapshots.Of, func(n NewSnapshot) bool { return internal(n.Volume) })
	case op.DeleteSnapshots != nil:
		return slices.ContainsFunc(op.DeleteSnapshots.IDs, of)
	case op.Protect != nil:
		return of(op.Protect.ID)
	case op.CreateBookmark != nil:
		return of(op.CreateBookmark.Of)
	case op.Rollback != nil:
		return internal(op.Rollback.Volume)
	}
	return false
}
