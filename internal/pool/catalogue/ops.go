package catalogue

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
)

// Op is a catalogue operation: exactly one of its fields is set. It is stored in
// the log as CBOR (RFC 8949, core deterministic) with integer keys; docs/format.md lists them.
// Everything that is chosen (numbers, UUIDs, times) is in the operation, so that
// replaying it gives the same catalogue.
type Op struct {
	CreateVolume    *CreateVolume    `cbor:"1,keyasint,omitempty"`
	SetVolume       *SetVolume       `cbor:"2,keyasint,omitempty"`
	ResizeVolume    *ResizeVolume    `cbor:"3,keyasint,omitempty"`
	DeleteVolume    *DeleteVolume    `cbor:"4,keyasint,omitempty"`
	CreateSnapshots *CreateSnapshots `cbor:"5,keyasint,omitempty"`
	DeleteSnapshots *DeleteSnapshots `cbor:"6,keyasint,omitempty"`
	Protect         *Protect         `cbor:"7,keyasint,omitempty"`
	Rollback        *Rollback        `cbor:"8,keyasint,omitempty"`
	CreateBookmark  *CreateBookmark  `cbor:"9,keyasint,omitempty"`
	DeleteBookmark  *DeleteBookmark  `cbor:"10,keyasint,omitempty"`
	SetPool         *SetPool         `cbor:"11,keyasint,omitempty"`
	SetPlace        *SetPlace        `cbor:"12,keyasint,omitempty"`
	Complete        *Complete        `cbor:"13,keyasint,omitempty"`
	Settled         *Settled         `cbor:"14,keyasint,omitempty"`
	PutBack         *PutBack         `cbor:"15,keyasint,omitempty"`
	CopyProgress    *CopyProgress    `cbor:"16,keyasint,omitempty"`
	FinishCopy      *FinishCopy      `cbor:"17,keyasint,omitempty"`
	CancelCopy      *CancelCopy      `cbor:"18,keyasint,omitempty"`
	AttachMirror    *AttachMirror    `cbor:"20,keyasint,omitempty"`
	SetMirror       *SetMirror       `cbor:"21,keyasint,omitempty"`
	DetachMirror    *DetachMirror    `cbor:"22,keyasint,omitempty"`
	SplitMirror     *SplitMirror     `cbor:"23,keyasint,omitempty"`
	JoinMirror      *JoinMirror      `cbor:"24,keyasint,omitempty"`
	FillProgress    *FillProgress    `cbor:"25,keyasint,omitempty"`
}

// CreateVolume makes an empty volume, or, with From, a clone of that state.
type CreateVolume struct {
	Number     uint64            `cbor:"1,keyasint"`
	UUID       uuid.UUID         `cbor:"2,keyasint"`
	Name       string            `cbor:"3,keyasint"`
	SizeBytes  int64             `cbor:"4,keyasint"`
	Labels     map[string]string `cbor:"5,keyasint,omitempty"`
	CreatedAt  int64             `cbor:"6,keyasint"` // Unix nanoseconds, here and below
	HeadID     uint64            `cbor:"7,keyasint"`
	From       uint64            `cbor:"8,keyasint,omitempty"` // a state's ID
	Origin     string            `cbor:"9,keyasint,omitempty"`
	Incomplete bool              `cbor:"10,keyasint,omitempty"`
	Place      *NewPlace         `cbor:"11,keyasint,omitempty"` // of an inplace volume
	Base       uint64            `cbor:"12,keyasint,omitempty"` // as in Volume
	Filling    *NewFilling       `cbor:"13,keyasint,omitempty"` // of a volume over a base
}

// NewPlace is the file of a new inplace volume, and the internal volume that comes with it.
type NewPlace struct {
	Path     string `cbor:"1,keyasint"`
	ReadOnly bool   `cbor:"2,keyasint,omitempty"`
	Kept     uint64 `cbor:"3,keyasint"` // number
	KeptHead uint64 `cbor:"4,keyasint"` // state
}

// SetPlace tells what is known about the file of an inplace volume.
type SetPlace struct {
	Number  uint64 `cbor:"1,keyasint"`
	Seal    Seal   `cbor:"2,keyasint"`
	Changed bool   `cbor:"3,keyasint,omitempty"` // somebody else has changed the file
	Whole   uint64 `cbor:"4,keyasint,omitempty"` // as in Place; less than what is known: nothing new
}

// Complete says that snapshots are whole: what they have in place is durable.
type Complete struct {
	IDs []uint64 `cbor:"1,keyasint"`
}

// Settled says that a rollback has been copied back.
type Settled struct {
	Number uint64 `cbor:"1,keyasint"`
}

// FirstVersion is the first number that is given to a version; lower ones are LBAs.
const FirstVersion = uint64(block.MaxDeviceBytes / block.Size)

// KeptBlocks is how many versions there are numbers for.
const KeptBlocks = blockmap.MaxBlocks

// keptName is the name of the internal volume of another one, which no user can give.
func keptName(number uint64) string { return fmt.Sprintf("(kept of %d)", number) }

// SetVolume replaces a volume's name and labels, and marks it complete.
type SetVolume struct {
	Number uint64            `cbor:"1,keyasint"`
	Name   string            `cbor:"2,keyasint"`
	Labels map[string]string `cbor:"3,keyasint,omitempty"`
}

// ResizeVolume changes the head's size. What lies beyond is cleared by entries of the same batch.
type ResizeVolume struct {
	Number    uint64 `cbor:"1,keyasint"`
	SizeBytes int64  `cbor:"2,keyasint"`
}

// DeleteVolume removes a volume, its head and its bookmarks.
type DeleteVolume struct {
	Number uint64 `cbor:"1,keyasint"`
}

// CreateSnapshots freezes the heads of several volumes at one instant.
type CreateSnapshots struct {
	Name      string            `cbor:"1,keyasint"`
	CreatedAt int64             `cbor:"2,keyasint"`
	ExpiresAt int64             `cbor:"3,keyasint,omitempty"` // 0: never
	Labels    map[string]string `cbor:"4,keyasint,omitempty"`
	Group     uuid.UUID         `cbor:"5,keyasint"`
	Of        []NewSnapshot     `cbor:"6,keyasint"`
	// DropWhenFull: they may be given up where there is no room for what they need kept.
	DropWhenFull bool `cbor:"7,keyasint,omitempty"`
}

// NewSnapshot is one volume's part of CreateSnapshots.
type NewSnapshot struct {
	Volume uint64    `cbor:"1,keyasint"`
	ID     uint64    `cbor:"2,keyasint"`
	UUID   uuid.UUID `cbor:"3,keyasint"`
	// Pending: it counts once a Complete or a PutBack names it.
	Pending bool `cbor:"4,keyasint,omitempty"`
	// Copying, of one that is to become a copy. Its numbers follow the snapshot's.
	Copying *NewCopying `cbor:"5,keyasint,omitempty"`
}

// DeleteSnapshots deletes several snapshots, all or none.
type DeleteSnapshots struct {
	IDs []uint64 `cbor:"1,keyasint"`
}

// Protect guards a snapshot from deletion, or no longer.
type Protect struct {
	ID        uint64 `cbor:"1,keyasint"`
	Protected bool   `cbor:"2,keyasint"`
}

// Rollback keeps a volume's head as the snapshot Kept and begins a new head from state To.
type Rollback struct {
	Volume    uint64    `cbor:"1,keyasint"`
	To        uint64    `cbor:"2,keyasint"`
	KeptID    uint64    `cbor:"3,keyasint"`
	KeptUUID  uuid.UUID `cbor:"4,keyasint"`
	KeptName  string    `cbor:"5,keyasint"`
	CreatedAt int64     `cbor:"6,keyasint"`
}

// SetPool bounds the size of the pool's log.
type SetPool struct {
	QuotaBytes   int64 `cbor:"1,keyasint"` // 0: no bound
	ReserveBytes int64 `cbor:"2,keyasint"`
}

var (
	encoding, _ = cbor.CoreDetEncOptions().EncMode()
	decoding, _ = cbor.DecOptions{MaxArrayElements: 1 << 24, MaxMapPairs: 1 << 20, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField}.DecMode()
)

// Encode returns the operation's bytes.
func (op *Op) Encode() ([]byte, error) { return encoding.Marshal(op) }

// DecodeOp reads an operation from its bytes.
func DecodeOp(p []byte) (*Op, error) {
	op := new(Op)
	if err := decoding.Unmarshal(p, op); err != nil {
		return nil, fmt.Errorf("catalogue operation: %w", err)
	}
	return op, nil
}

func unix(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// Apply performs an operation. Whether it is allowed was decided before it was
// logged; one that names what does not exist or is a part of something else, or takes what is taken, is an error and means damage.
// The maps of new snapshots are the caller's to set, with SetRoot.
func (c *Catalogue) Apply(op *Op) error {
	if c.namesInternal(op) {
		return fmt.Errorf("catalogue operation on an internal volume, or a snapshot of one")
	}
	switch {
	case op.CreateVolume != nil:
		return c.createVolume(op.CreateVolume)
	case op.SetVolume != nil:
		o := op.SetVolume
		return c.changeVolume(o.Number, func(v *Volume) {
			v.Name, v.Labels, v.Incomplete = o.Name, maps.Clone(o.Labels), false
		})
	case op.ResizeVolume != nil:
		if err := checkSize(op.ResizeVolume.SizeBytes); err != nil {
			return fmt.Errorf("resize volume %d: %w", op.ResizeVolume.Number, err)
		}
		return c.changeVolume(op.ResizeVolume.Number, func(v *Volume) {
			c.replace(v.Head, func(s *State) { s.SizeBytes = op.ResizeVolume.SizeBytes })
		})
	case op.DeleteVolume != nil:
		return c.deleteVolume(op.DeleteVolume.Number)
	case op.CreateSnapshots != nil:
		return c.createSnapshots(op.CreateSnapshots)
	case op.DeleteSnapshots != nil:
		return c.deleteSnapshots(op.DeleteSnapshots.IDs)
	case op.Protect != nil:
		if c.snapshotOrCopy(op.Protect.ID) == nil {
			return fmt.Errorf("protect: no snapshot %d", op.Protect.ID)
		}
		c.replace(op.Protect.ID, func(s *State) { s.Protected = op.Protect.Protected })
		return nil
	case op.Rollback != nil:
		return c.rollback(op.Rollback)
	case op.CreateBookmark != nil:
		return c.createBookmark(op.CreateBookmark)
	case op.DeleteBookmark != nil:
		return c.deleteBookmark(op.DeleteBookmark.ID)
	case op.SetPool != nil:
		if op.SetPool.ReserveBytes < 0 || op.SetPool.QuotaBytes < op.SetPool.ReserveBytes {
			return fmt.Errorf("set pool: a quota of %d bytes with a reserve of %d", op.SetPool.QuotaBytes, op.SetPool.ReserveBytes)
		}
		c.QuotaBytes, c.ReserveBytes = op.SetPool.QuotaBytes, op.SetPool.ReserveBytes
		return nil
	case op.SetPlace != nil:
		return c.setPlace(op.SetPlace)
	case op.Complete != nil:
		for _, id := range op.Complete.IDs {
			if c.snapshot(id) == nil {
				return fmt.Errorf("complete: no snapshot %d", id)
			}
			c.replace(id, func(s *State) { s.Pending = false })
		}
		return nil
	case op.Settled != nil:
		return c.settled(op.Settled.Number)
	case op.PutBack != nil:
		return c.putBack(op.PutBack)
	case op.CopyProgress != nil:
		return c.copyProgress(op.CopyProgress)
	case op.FinishCopy != nil:
		return c.finishCopy(op.FinishCopy)
	case op.CancelCopy != nil:
		return c.cancelCopy(op.CancelCopy.ID)
	case op.AttachMirror != nil:
		return c.attachMirror(op.AttachMirror)
	case op.SetMirror != nil:
		return c.setMirror(op.SetMirror)
	case op.DetachMirror != nil:
		return c.detachMirror(op.DetachMirror.Volume)
	case op.SplitMirror != nil:
		return c.splitMirror(op.SplitMirror)
	case op.JoinMirror != nil:
		return c.joinMirror(op.JoinMirror)
	case op.FillProgress != nil:
		return c.fillProgress(op.FillProgress)
	}
	return fmt.Errorf("catalogue operation of an unknown kind")
}

// checkSize refuses sizes that no map can hold.
func checkSize(sizeBytes int64) error {
	if sizeBytes <= 0 || sizeBytes > block.MaxDeviceBytes {
		return fmt.Errorf("a size of %d bytes", sizeBytes)
	}
	return nil
}

// snapshot returns the state if it is a snapshot that has its content itself, else nil.
func (c *Catalogue) snapshot(id uint64) *State {
	if s := c.states[id]; s != nil && s.Kind == Snapshot {
		return s
	}
	return nil
}

// snapshotOrCopy returns the state if it is what users call a snapshot, wherever its content is, else nil.
func (c *Catalogue) snapshotOrCopy(id uint64) *State {
	if s := c.states[id]; s != nil && (s.Kind == Snapshot || s.Kind == Copy) {
		return s
	}
	return nil
}

func (c *Catalogue) createVolume(o *CreateVolume) error {
	if o.Number <= c.LastVolume || o.HeadID <= c.LastState || c.VolumeByName(o.Name) != nil {
		return fmt.Errorf("create volume %q: its name or number is taken", o.Name)
	}
	if o.From != 0 && c.snapshot(o.From) == nil {
		return fmt.Errorf("create volume %q: no snapshot %d", o.Name, o.From)
	}
	if err := checkSize(o.SizeBytes); err != nil {
		return fmt.Errorf("create volume %q: %w", o.Name, err)
	}
	if o.Place == nil && o.Filling == nil && !c.isBased(o.Base) {
		return fmt.Errorf("create volume %q: no volume %d from which it could read blocks", o.Name, o.Base)
	}
	parent := uint64(0)
	if o.From != 0 {
		parent = c.tip(o.From)
	}
	c.volumes[o.Number] = &Volume{
		Number: o.Number, UUID: o.UUID, Name: o.Name, Labels: maps.Clone(o.Labels), CreatedAt: unix(o.CreatedAt),
		Origin: o.Origin, Incomplete: o.Incomplete, Head: o.HeadID, Base: o.Base,
	}
	c.byName[o.Name] = o.Number
	c.LastVolume = max(c.LastVolume, o.Number)
	c.LastEpoch++
	c.addState(&State{
		ID: o.HeadID, Kind: Head, Volume: o.Number, Parent: parent, Epoch: c.LastEpoch,
		SizeBytes: o.SizeBytes, CreatedAt: unix(o.CreatedAt),
	})
	switch {
	case o.Filling != nil:
		return c.createFilling(o)
	case o.Place != nil:
		return c.createPlace(o)
	}
	return nil
}

// createPlace makes a new volume an inplace one, and the internal volume that keeps its versions.
func (c *Catalogue) createPlace(o *CreateVolume) error {
	p := o.Place
	if p.Kept <= c.LastVolume || p.KeptHead <= c.LastState || o.From != 0 {
		return fmt.Errorf("create volume %q: the number of what it keeps is taken", o.Name)
	}
	v := c.volumes[o.Number]
	v.Place = &Place{Path: p.Path, Kept: p.Kept, Next: FirstVersion, ReadOnly: p.ReadOnly}
	kept := &Volume{Number: p.Kept, UUID: o.UUID, Name: keptName(o.Number), CreatedAt: unix(o.CreatedAt), Head: p.KeptHead, KeptOf: o.Number}
	c.volumes[p.Kept] = kept
	c.byName[kept.Name] = p.Kept
	c.LastVolume = p.Kept
	c.LastEpoch++
	c.addState(&State{
		ID: p.KeptHead, Kind: Head, Volume: p.Kept, Epoch: c.LastEpoch, SizeBytes: KeptBlocks * block.Size, CreatedAt: unix(o.CreatedAt),
	})
	return nil
}

func (c *Catalogue) changePlace(number uint64, change func(*Place)) error {
	v := c.volumes[number]
	if v == nil || v.Place == nil {
		return fmt.Errorf("no inplace volume %d", number)
	}
	return c.changeVolume(number, func(v *Volume) {
		p := *v.Place
		change(&p)
		v.Place = &p
	})
}

func (c *Catalogue) setPlace(o *SetPlace) error {
	if o.Whole > c.LastEpoch {
		return fmt.Errorf("set place: epoch %d of %d", o.Whole, c.LastEpoch)
	}
	if o.Changed {
		c.unsync(o.Number)
	}
	return c.changePlace(o.Number, func(p *Place) {
		p.Whole = max(p.Whole, o.Whole)
		if p.Seal = o.Seal; o.Changed {
			c.LastEpoch++
			p.Suspect, p.SuspectEpoch = c.LastState, c.LastEpoch
			c.replace(c.volumes[p.Kept].Head, func(s *State) { s.Epoch = c.LastEpoch })
		}
	})
}

// settled lets the bases of a volume go.
func (c *Catalogue) settled(number uint64) error {
	var bases []uint64
	err := c.changePlace(number, func(p *Place) { bases, p.Bases = p.Bases, nil })
	for _, id := range bases {
		c.dissolve(id)
	}
	return err
}

// isBase tells whether a state must stay until a rollback has been copied back.
func (c *Catalogue) isBase(s *State) bool {
	v := c.volumes[s.Volume]
	return v != nil && v.Place != nil && slices.Contains(v.Place.Bases, s.ID)
}

func (c *Catalogue) changeVolume(number uint64, change func(*Volume)) error {
	old := c.volumes[number]
	if old == nil {
		return fmt.Errorf("no volume %d", number)
	}
	v := *old
	change(&v)
	if other := c.VolumeByName(v.Name); other != nil && other != old {
		return fmt.Errorf("volume name %q is taken", v.Name)
	}
	delete(c.byName, old.Name)
	c.byName[v.Name] = number
	c.volumes[number] = &v
	return nil
}

func (c *Catalogue) deleteVolume(number uint64) error {
	v := c.volumes[number]
	if v == nil {
		return fmt.Errorf("delete volume: no volume %d", number)
	}
	if c.SnapshotCount(v) > c.Count(v).Copies {
		return fmt.Errorf("delete volume %q: it has snapshots", v.Name)
	}
	if v.Mirror != nil {
		return fmt.Errorf("delete volume %q: it is mirrored", v.Name)
	}
	parent, base := c.states[v.Head].Parent, v.Base
	copies := c.SnapshotCount(v) > 0
	if !copies {
		c.remove(v.Head)
	}
	if v.Place != nil {
		if err := c.settled(number); err != nil {
			return err
		}
		if err := c.deleteVolume(v.Place.Kept); err != nil {
			return err
		}
	}
	if copies {
		c.outlive(v)
	} else {
		c.dissolve(parent)
	}
	for _, b := range c.Bookmarks(v) {
		if err := c.deleteBookmark(b.ID); err != nil {
			return err
		}
	}
	if !copies {
		c.forgetVolume(v)
	}
	c.releaseBase(base)
	return nil
}

func (c *Catalogue) createSnapshots(o *CreateSnapshots) error {
	for _, n := range o.Of {
		v := c.volumes[n.Volume]
		if v == nil || n.ID <= c.LastState || c.Taken(v, o.Name) {
			return fmt.Errorf("snapshot %q: no volume %d, or name or number is taken", o.Name, n.Volume)
		}
		c.freeze(v, &State{
			ID: n.ID, UUID: n.UUID, Name: o.Name, CreatedAt: unix(o.CreatedAt), ExpiresAt: unix(o.ExpiresAt),
			Labels: maps.Clone(o.Labels), Group: o.Group, GroupSize: len(o.Of), Pending: n.Pending, DropWhenFull: o.DropWhenFull,
		})
		c.LastEpoch++
		c.replace(v.Head, func(s *State) { s.Epoch = c.LastEpoch })
		if n.Copying != nil {
			if err := c.startCopying(n.ID, n.Copying); err != nil {
				return err
			}
		}
	}
	return nil
}

// freeze puts a snapshot between a volume's head and the head's parent.
func (c *Catalogue) freeze(v *Volume, s *State) {
	head := c.states[v.Head]
	s.Kind, s.Volume, s.Parent, s.Epoch, s.SizeBytes = Snapshot, v.Number, head.Parent, head.Epoch, head.SizeBytes
	c.addState(s)
	c.reparent(v.Head, s.ID)
}

func (c *Catalogue) deleteSnapshots(ids []uint64) error {
	for _, id := range ids {
		if s := c.states[id]; s != nil && s.Kind == Copy {
			if err := c.deleteCopy(s); err != nil {
				return err
			}
			continue
		}
		s := c.snapshot(id)
		if s == nil {
			return fmt.Errorf("delete snapshot: no snapshot %d", id)
		}
		if s.Copying != nil {
			if err := c.stopCopying(s); err != nil {
				return err
			}
		}
		delete(c.named[s.Volume], s.Name)
		c.replace(id, func(s *State) { s.Kind = Hidden })
		c.dissolve(id)
	}
	return nil
}

func (c *Catalogue) rollback(o *Rollback) error {
	v, to := c.volumes[o.Volume], c.snapshot(o.To)
	if v == nil || to == nil || to.Volume != o.Volume || o.KeptID <= c.LastState || c.Taken(v, o.KeptName) {
		return fmt.Errorf("roll back volume %d to snapshot %d: not there, or name or number is taken", o.Volume, o.To)
	}
	c.freeze(v, &State{
		ID: o.KeptID, UUID: o.KeptUUID, Name: o.KeptName, CreatedAt: unix(o.CreatedAt),
		Automatic: true, Group: o.KeptUUID, GroupSize: 1,
	})
	c.LastEpoch++
	c.replace(v.Head, func(s *State) { s.Epoch, s.SizeBytes = c.LastEpoch, to.SizeBytes })
	c.reparent(v.Head, c.tip(o.To))
	c.unsync(o.Volume)
	if v.Place == nil {
		return nil
	}
	return c.changePlace(o.Volume, func(p *Place) { p.Bases = append(slices.Clone(p.Bases), o.KeptID) })
}
