package catalogue

import (
	"fmt"

	"varve/internal/block"
)

// RegionBytes is how much of a volume one region of its mirror is.
const RegionBytes = 1 << 20

// regionsBytes is the size of the internal volume of regions: a block for each that a volume may have.
const regionsBytes = block.MaxDeviceBytes / RegionBytes * block.Size

// Mirroring is of a volume that is mirrored: its leg is a file that is written in step with it. Mirrorings in a Catalogue are never changed, but replaced.
type Mirroring struct {
	Path    string
	Regions uint64 // the number of the internal volume in which those regions are mapped that may differ
	Synced  uint64 // regions from this one on may differ too
	Failed  string // why the leg is not written any more; empty: it is
	Seal    Seal
	// Joining: the file is not the leg yet, whatever Failed says. Only regions are recorded, until a Join; what is joining when the pool is
	// opened is detached.
	Joining bool
}

// AttachMirror makes a file the leg of a volume, and the internal volume that comes with it.
type AttachMirror struct {
	Volume      uint64 `cbor:"1,keyasint"`
	Path        string `cbor:"2,keyasint"`
	Regions     uint64 `cbor:"3,keyasint"` // number
	RegionsHead uint64 `cbor:"4,keyasint"` // state
	CreatedAt   int64  `cbor:"5,keyasint"`
	Joining     bool   `cbor:"6,keyasint,omitempty"`
	Seal        Seal   `cbor:"7,keyasint"` // of the file, which is in use
}

// SetMirror tells what is known about a volume's leg.
type SetMirror struct {
	Volume uint64 `cbor:"1,keyasint"`
	Synced uint64 `cbor:"2,keyasint,omitempty"`
	Failed string `cbor:"3,keyasint,omitempty"`
	Seal   Seal   `cbor:"4,keyasint"`
}

// DetachMirror makes a volume's leg a file like any other, and forgets the regions.
type DetachMirror struct {
	Volume uint64 `cbor:"1,keyasint"`
}

// SplitMirror detaches a volume's leg, and makes a snapshot, which was to become a copy there, one whose content it has.
type SplitMirror struct {
	Volume uint64 `cbor:"1,keyasint"`
	Of     uint64 `cbor:"2,keyasint"` // the snapshot
	ID     uint64 `cbor:"3,keyasint"` // of the copy
	Seal   Seal   `cbor:"4,keyasint"` // of the file
}

// JoinMirror makes the leg that is joining one, of which only what is recorded, or lies from Synced on, differs, and deletes
// the copy that it was.
type JoinMirror struct {
	Volume uint64 `cbor:"1,keyasint"`
	Copy   uint64 `cbor:"2,keyasint"` // a state's ID
	Synced uint64 `cbor:"3,keyasint,omitempty"`
}

// regionsName is the name of the internal volume of another one's mirror, which no user can give.
func regionsName(number uint64) string { return fmt.Sprintf("(regions of %d)", number) }

func (c *Catalogue) attachMirror(o *AttachMirror) error {
	v := c.volumes[o.Volume]
	if v == nil || v.Internal() || v.Incomplete || v.Deleted || v.Mirror != nil || o.Regions <= c.LastVolume || o.RegionsHead <= c.LastState {
		return fmt.Errorf("attach a mirror to volume %d: it is not there or not whole, has one, or the number of its regions is taken", o.Volume)
	}
	m := &Mirroring{Path: o.Path, Regions: o.Regions, Joining: o.Joining, Seal: o.Seal}
	if err := c.changeVolume(o.Volume, func(v *Volume) { v.Mirror = m }); err != nil {
		return err
	}
	regions := &Volume{Number: o.Regions, UUID: v.UUID, Name: regionsName(o.Volume), CreatedAt: unix(o.CreatedAt), Head: o.RegionsHead, RegionsOf: o.Volume}
	c.volumes[o.Regions] = regions
	c.byName[regions.Name] = o.Regions
	c.LastVolume = o.Regions
	c.LastEpoch++
	c.addState(&State{ID: o.RegionsHead, Kind: Head, Volume: o.Regions, Epoch: c.LastEpoch, SizeBytes: regionsBytes, CreatedAt: unix(o.CreatedAt)})
	return nil
}

func (c *Catalogue) changeMirror(number uint64, change func(*Mirroring)) error {
	v := c.volumes[number]
	if v == nil || v.Mirror == nil {
		return fmt.Errorf("no mirror of volume %d", number)
	}
	return c.changeVolume(number, func(v *Volume) {
		m := *v.Mirror
		change(&m)
		v.Mirror = &m
	})
}

// unsync notes that nothing of a volume's leg, if it has one, is what the volume is now.
func (c *Catalogue) unsync(number uint64) {
	if v := c.volumes[number]; v != nil && v.Mirror != nil {
		_ = c.changeMirror(number, func(m *Mirroring) { m.Synced = 0 }) // there is one
	}
}

func (c *Catalogue) setMirror(o *SetMirror) error {
	return c.changeMirror(o.Volume, func(m *Mirroring) { m.Synced, m.Failed, m.Seal = o.Synced, o.Failed, o.Seal })
}

func (c *Catalogue) detachMirror(number uint64) error {
	v := c.volumes[number]
	if v == nil || v.Mirror == nil {
		return fmt.Errorf("detach: no mirror of volume %d", number)
	}
	regions := v.Mirror.Regions
	if err := c.changeVolume(number, func(v *Volume) { v.Mirror = nil }); err != nil {
		return err
	}
	return c.deleteVolume(regions)
}

func (c *Catalogue) splitMirror(o *SplitMirror) error {
	s := c.copying(o.Of)
	if s == nil || s.Volume != o.Volume || s.Copying.Technique != Mirror {
		return fmt.Errorf("split mirror: no snapshot %d of volume %d that is to be one", o.Of, o.Volume)
	}
	if err := c.finishCopy(&FinishCopy{Of: o.Of, ID: o.ID, Seal: o.Seal}); err != nil {
		return err
	}
	return c.detachMirror(o.Volume)
}

func (c *Catalogue) joinMirror(o *JoinMirror) error {
	s := c.states[o.Copy]
	if s == nil || s.Kind != Copy || s.Volume != o.Volume || s.Copy.Path == "" {
		return fmt.Errorf("join mirror: no copy %d of volume %d in a file", o.Copy, o.Volume)
	}
	if err := c.changeMirror(o.Volume, func(m *Mirroring) { m.Joining, m.Synced = false, o.Synced }); err != nil {
		return err
	}
	return c.deleteSnapshots([]uint64{o.Copy})
}

// verifyMirror checks that a mirrored volume and that of its regions name each other.
func (c *Catalogue) verifyMirror(v *Volume) error {
	if m := v.Mirror; m != nil {
		regions := c.volumes[m.Regions]
		if regions == nil || regions.RegionsOf != v.Number || v.Internal() {
			return fmt.Errorf("volume %d, which should have the regions of its mirror, is not there", m.Regions)
		}
	}
	if of := c.volumes[v.RegionsOf]; v.RegionsOf != 0 && (of == nil || of.Mirror == nil || of.Mirror.Regions != v.Number) {
		return fmt.Errorf("the volume %d that it has the regions of is not there, or not mirrored", v.RegionsOf)
	}
	return nil
}
