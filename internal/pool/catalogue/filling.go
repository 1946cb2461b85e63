package catalogue

import (
	"fmt"
	"slices"

	"varve/internal/block"
)

// Filling is what an internal volume is filled from: a base that is not the pool's. Fillings in a Catalogue are never changed, but replaced.
type Filling struct {
	Ref       []byte // what the base is called by whoever can open it
	SizeBytes int64  // of the base
	// DoneBytes: of what lies below, the volume has all that any state has and that is not zeros. At SizeBytes the base is needed no more.
	DoneBytes int64
}

// MaxRefBytes is how long a reference to a base may be.
const MaxRefBytes = 1024

// NewFilling is the base of a new volume, and the internal volume that comes with it, whose number is the new one's Base.
type NewFilling struct {
	Ref       []byte `cbor:"1,keyasint"`
	SizeBytes int64  `cbor:"2,keyasint"`
	HeadID    uint64 `cbor:"3,keyasint"` // state of the internal volume
}

// FillProgress says how far an internal volume is filled.
type FillProgress struct {
	Number    uint64 `cbor:"1,keyasint"`
	DoneBytes int64  `cbor:"2,keyasint"`
}

// fillingName is the name of the internal volume of another one's base, which no user can give.
func fillingName(number uint64) string { return fmt.Sprintf("(base of %d)", number) }

// Whole tells whether the base is needed no more.
func (f *Filling) Whole() bool { return f.DoneBytes == f.SizeBytes }

// verify refuses what cannot be.
func (f *Filling) verify() error {
	if len(f.Ref) == 0 || len(f.Ref) > MaxRefBytes {
		return fmt.Errorf("a reference of %d bytes to a base", len(f.Ref))
	}
	if err := checkSize(f.SizeBytes); err != nil {
		return fmt.Errorf("a base: %w", err)
	}
	if f.DoneBytes < 0 || f.DoneBytes > f.SizeBytes || f.DoneBytes%block.Size != 0 && !f.Whole() {
		return fmt.Errorf("%d of the %d bytes of a base are done", f.DoneBytes, f.SizeBytes)
	}
	return nil
}

// createFilling makes the internal volume that a new volume's base is copied into.
func (c *Catalogue) createFilling(o *CreateVolume) error {
	n := o.Filling
	f := &Filling{Ref: slices.Clone(n.Ref), SizeBytes: n.SizeBytes}
	if err := f.verify(); err != nil {
		return fmt.Errorf("create volume %q: %w", o.Name, err)
	}
	if o.Base <= c.LastVolume || n.HeadID <= c.LastState || o.From != 0 || o.Place != nil || n.SizeBytes > o.SizeBytes {
		return fmt.Errorf("create volume %q: the number of its base is taken, or it cannot have one", o.Name)
	}
	v := &Volume{Number: o.Base, UUID: o.UUID, Name: fillingName(o.Number), CreatedAt: unix(o.CreatedAt), Head: n.HeadID, Filling: f}
	c.volumes[v.Number] = v
	c.byName[v.Name] = v.Number
	c.LastVolume = v.Number
	c.LastEpoch++
	c.addState(&State{
		ID: n.HeadID, Kind: Head, Volume: v.Number, Epoch: c.LastEpoch, CreatedAt: v.CreatedAt,
		SizeBytes: (n.SizeBytes + block.Size - 1) / block.Size * block.Size,
	})
	return nil
}

func (c *Catalogue) fillProgress(o *FillProgress) error {
	v := c.volumes[o.Number]
	if v == nil || v.Filling == nil || o.DoneBytes < v.Filling.DoneBytes {
		return fmt.Errorf("fill: volume %d is not filled from a base, or further already", o.Number)
	}
	f := *v.Filling
	f.DoneBytes = o.DoneBytes
	if err := f.verify(); err != nil {
		return fmt.Errorf("fill volume %d: %w", o.Number, err)
	}
	return c.changeVolume(o.Number, func(v *Volume) { v.Filling = &f })
}

// releaseBase lets an internal volume go that was filled for volumes of which the last is gone.
func (c *Catalogue) releaseBase(number uint64) {
	b := c.volumes[number]
	if b == nil || b.Filling == nil {
		return
	}
	for _, v := range c.volumes {
		if v.Base == number {
			return
		}
	}
	c.remove(b.Head)
	c.forgetVolume(b)
}

// isBased tells whether a number is 0, or that of a volume from which others may read blocks.
func (c *Catalogue) isBased(number uint64) bool {
	of := c.volumes[number]
	return number == 0 || of != nil && (of.Place != nil || of.Filling != nil)
}

// verifyBase checks that what a volume reads blocks from is there, and that what is filled is filled for somebody.
func (c *Catalogue) verifyBase(v *Volume) error {
	if !c.isBased(v.Base) {
		return fmt.Errorf("volume %d, from which it reads blocks, is not there", v.Base)
	}
	if v.Filling == nil {
		return nil
	}
	if v.Place != nil || v.Base != 0 || v.KeptOf != 0 || v.ContentOf != 0 || v.RegionsOf != 0 {
		return fmt.Errorf("it is filled from a base, and something else as well")
	}
	for _, o := range c.volumes {
		if o.Base == v.Number {
			return v.Filling.verify()
		}
	}
	return fmt.Errorf("it is filled for no volume")
}
