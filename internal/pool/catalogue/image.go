package catalogue

import (
	"fmt"

	"github.com/google/uuid"

	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
)

// image is the whole catalogue as a checkpoint stores it, CBOR with integer keys.
type image struct {
	LastEpoch  uint64        `cbor:"1,keyasint"`
	LastVolume uint64        `cbor:"2,keyasint"`
	LastState  uint64        `cbor:"3,keyasint"`
	Volumes    []volumeImage `cbor:"4,keyasint"`
	States     []stateImage  `cbor:"5,keyasint"`
	LiveBytes  int64         `cbor:"6,keyasint,omitempty"`
	Quota      int64         `cbor:"7,keyasint,omitempty"`
	Reserve    int64         `cbor:"8,keyasint,omitempty"`
}

type volumeImage struct {
	Number     uint64            `cbor:"1,keyasint"`
	UUID       uuid.UUID         `cbor:"2,keyasint"`
	Name       string            `cbor:"3,keyasint"`
	Labels     map[string]string `cbor:"4,keyasint,omitempty"`
	CreatedAt  int64             `cbor:"5,keyasint"`
	Origin     string            `cbor:"6,keyasint,omitempty"`
	Incomplete bool              `cbor:"7,keyasint,omitempty"`
	Head       uint64            `cbor:"8,keyasint"`
	Place      *placeImage       `cbor:"9,keyasint,omitempty"`
	KeptOf     uint64            `cbor:"10,keyasint,omitempty"`
	Base       uint64            `cbor:"11,keyasint,omitempty"`
	ContentOf  uint64            `cbor:"12,keyasint,omitempty"`
	Deleted    bool              `cbor:"13,keyasint,omitempty"`
	Mirror     *mirrorImage      `cbor:"20,keyasint,omitempty"`
	RegionsOf  uint64            `cbor:"21,keyasint,omitempty"`
	Filling    *fillingImage     `cbor:"22,keyasint,omitempty"`
}

type fillingImage struct {
	Ref       []byte `cbor:"1,keyasint"`
	SizeBytes int64  `cbor:"2,keyasint"`
	DoneBytes int64  `cbor:"3,keyasint,omitempty"`
}

type placeImage struct {
	Path     string   `cbor:"1,keyasint"`
	Kept     uint64   `cbor:"2,keyasint"`
	Next     uint64   `cbor:"3,keyasint"`
	ReadOnly bool     `cbor:"4,keyasint,omitempty"`
	Bases    []uint64 `cbor:"5,keyasint,omitempty"`
	Seal     Seal     `cbor:"6,keyasint"`

	Suspect      uint64 `cbor:"7,keyasint,omitempty"`
	SuspectEpoch uint64 `cbor:"8,keyasint,omitempty"`
	Whole        uint64 `cbor:"9,keyasint,omitempty"`
}

type mirrorImage struct {
	Path    string `cbor:"1,keyasint"`
	Regions uint64 `cbor:"2,keyasint"`
	Synced  uint64 `cbor:"3,keyasint,omitempty"`
	Failed  string `cbor:"4,keyasint,omitempty"`
	Seal    Seal   `cbor:"5,keyasint"`
	Joining bool   `cbor:"6,keyasint,omitempty"`
}

type stateImage struct {
	ID        uint64            `cbor:"1,keyasint"`
	Kind      Kind              `cbor:"2,keyasint"`
	Volume    uint64            `cbor:"3,keyasint"`
	Parent    uint64            `cbor:"4,keyasint,omitempty"`
	Epoch     uint64            `cbor:"5,keyasint"`
	SizeBytes int64             `cbor:"6,keyasint"`
	Root      *rootImage        `cbor:"7,keyasint,omitempty"` // absent: maps nothing
	UUID      *uuid.UUID        `cbor:"8,keyasint,omitempty"` // not of heads, here and below
	Name      string            `cbor:"9,keyasint,omitempty"`
	CreatedAt int64             `cbor:"10,keyasint,omitempty"`
	ExpiresAt int64             `cbor:"11,keyasint,omitempty"`
	Labels    map[string]string `cbor:"12,keyasint,omitempty"`
	Protected bool              `cbor:"13,keyasint,omitempty"`
	Automatic bool              `cbor:"14,keyasint,omitempty"`
	Group     *uuid.UUID        `cbor:"15,keyasint,omitempty"`
	GroupSize int               `cbor:"16,keyasint,omitempty"`
	Pending   bool              `cbor:"20,keyasint,omitempty"`
	Drop      bool              `cbor:"21,keyasint,omitempty"`
	Copying   *Copying          `cbor:"22,keyasint,omitempty"`
	Copy      *Content          `cbor:"23,keyasint,omitempty"`

	Of          string     `cbor:"17,keyasint,omitempty"` // of bookmarks, here and below
	OfUUID      *uuid.UUID `cbor:"18,keyasint,omitempty"`
	OfCreatedAt int64      `cbor:"19,keyasint,omitempty"`
}

type rootImage struct {
	Addr   uint64 `cbor:"1,keyasint,omitempty"`
	Length uint32 `cbor:"2,keyasint,omitempty"`
	CRC    uint32 `cbor:"3,keyasint,omitempty"`
	Epoch  uint64 `cbor:"4,keyasint"`
	Mapped uint64 `cbor:"5,keyasint,omitempty"`
	Tomb   bool   `cbor:"6,keyasint,omitempty"`
	Lost   bool   `cbor:"7,keyasint,omitempty"`
}

// Encode returns the catalogue's bytes. heads gives the maps of the live heads
// as they were at the same point of the log. Every root must lie in the log.
func (c *View) Encode(heads map[uint64]blockmap.Root) ([]byte, error) {
	im := image{LastEpoch: c.LastEpoch, LastVolume: c.LastVolume, LastState: c.LastState, LiveBytes: c.LiveBytes,
		Quota: c.QuotaBytes, Reserve: c.ReserveBytes,
	}
	for _, v := range c.Volumes() {
		vi := volumeImage{
			Number: v.Number, UUID: v.UUID, Name: v.Name, Labels: v.Labels, CreatedAt: nanos(v.CreatedAt),
			Origin: v.Origin, Incomplete: v.Incomplete, Head: v.Head, KeptOf: v.KeptOf, Base: v.Base,
			ContentOf: v.ContentOf, Deleted: v.Deleted,
			RegionsOf: v.RegionsOf,
		}
		if v.Place != nil {
			p := placeImage(*v.Place)
			vi.Place = &p
		}
		if v.Mirror != nil {
			m := mirrorImage(*v.Mirror)
			vi.Mirror = &m
		}
		if v.Filling != nil {
			f := fillingImage(*v.Filling)
			vi.Filling = &f
		}
		im.Volumes = append(im.Volumes, vi)
	}
	for _, s := range c.States() {
		root := s.Root
		if s.Kind == Head {
			root = heads[s.ID]
		}
		slot, ok := root.Slot()
		if !ok {
			return nil, fmt.Errorf("encode catalogue: the map of state %d is not in the log", s.ID)
		}
		si := stateImage{
			ID: s.ID, Kind: s.Kind, Volume: s.Volume, Parent: s.Parent, Epoch: s.Epoch, SizeBytes: s.SizeBytes,
			Name: s.Name, CreatedAt: nanos(s.CreatedAt), ExpiresAt: nanos(s.ExpiresAt), Labels: s.Labels,
			Protected: s.Protected, Automatic: s.Automatic, GroupSize: s.GroupSize,
			Of: s.Of, OfCreatedAt: nanos(s.OfCreatedAt), Pending: s.Pending, Drop: s.DropWhenFull,
			Copying: s.Copying, Copy: s.Copy,
		}
		if s.Kind != Head {
			si.UUID = &s.UUID
		}
		if s.Group != uuid.Nil {
			si.Group = &s.Group
		}
		if s.Kind == Bookmark {
			si.OfUUID = &s.OfUUID
		}
		if slot != (blockmap.Slot{}) {
			si.Root = &rootImage{
				Addr: uint64(slot.Ptr.Addr), Length: slot.Ptr.Length, CRC: slot.Ptr.CRC,
				Epoch: slot.Epoch, Mapped: slot.Mapped, Tomb: slot.Tomb, Lost: slot.Lost,
			}
		}
		im.States = append(im.States, si)
	}
	return encoding.Marshal(&im)
}

// Decode reads a catalogue from its bytes. The heads' maps are in their states' Root.
func Decode(p []byte) (*Catalogue, error) {
	var im image
	if err := decoding.Unmarshal(p, &im); err != nil {
		return nil, fmt.Errorf("catalogue image: %w", err)
	}
	c := New()
	c.LastEpoch, c.LastVolume, c.LastState, c.LiveBytes = im.LastEpoch, im.LastVolume, im.LastState, max(im.LiveBytes, 0)
	c.QuotaBytes, c.ReserveBytes = im.Quota, im.Reserve
	if im.Reserve < 0 || im.Quota < im.Reserve {
		return nil, fmt.Errorf("catalogue image: a quota of %d bytes with a reserve of %d", im.Quota, im.Reserve)
	}
	for _, v := range im.Volumes {
		if v.Number == 0 || v.Number > c.LastVolume || c.volumes[v.Number] != nil || c.VolumeByName(v.Name) != nil {
			return nil, fmt.Errorf("catalogue image: name or number of volume %d (%q) cannot be", v.Number, v.Name)
		}
		c.volumes[v.Number] = &Volume{
			Number: v.Number, UUID: v.UUID, Name: v.Name, Labels: v.Labels, CreatedAt: unix(v.CreatedAt),
			Origin: v.Origin, Incomplete: v.Incomplete, Head: v.Head, KeptOf: v.KeptOf, Base: v.Base,
			ContentOf: v.ContentOf, Deleted: v.Deleted,
			RegionsOf: v.RegionsOf,
		}
		if v.Place != nil {
			p := Place(*v.Place)
			c.volumes[v.Number].Place = &p
		}
		if v.Mirror != nil {
			m := Mirroring(*v.Mirror)
			c.volumes[v.Number].Mirror = &m
		}
		if v.Filling != nil {
			f := Filling(*v.Filling)
			c.volumes[v.Number].Filling = &f
		}
		c.byName[v.Name] = v.Number
	}
	var before uint64
	for _, si := range im.States {
		if si.ID <= before || si.ID > c.LastState {
			return nil, fmt.Errorf("catalogue image: state %d follows state %d of %d", si.ID, before, c.LastState)
		}
		before = si.ID
		s := &State{
			ID: si.ID, Kind: si.Kind, Volume: si.Volume, Parent: si.Parent, Epoch: si.Epoch, SizeBytes: si.SizeBytes,
			Name: si.Name, CreatedAt: unix(si.CreatedAt), ExpiresAt: unix(si.ExpiresAt), Labels: si.Labels,
			Protected: si.Protected, Automatic: si.Automatic, GroupSize: si.GroupSize,
			Of: si.Of, OfCreatedAt: unix(si.OfCreatedAt), Pending: si.Pending, DropWhenFull: si.Drop,
			Copying: si.Copying, Copy: si.Copy,
		}
		if si.UUID != nil {
			s.UUID = *si.UUID
		}
		if si.Group != nil {
			s.Group = *si.Group
		}
		if si.OfUUID != nil {
			s.OfUUID = *si.OfUUID
		}
		if r := si.Root; r != nil {
			s.Root = blockmap.RootAt(blockmap.Slot{
				Ptr:   blockmap.Ptr{Addr: seglog.Addr(r.Addr), Length: r.Length, CRC: r.CRC},
				Epoch: r.Epoch, Mapped: r.Mapped, Tomb: r.Tomb, Lost: r.Lost,
			})
		}
		c.addState(s)
	}
	if err := c.Verify(); err != nil {
		return nil, fmt.Errorf("catalogue image: %w", err)
	}
	return c, nil
}

// Verify checks what Apply and the readers rely on.
func (c *Catalogue) Verify() error {
	for _, v := range c.volumes {
		if h := c.states[v.Head]; h == nil || h.Kind != Head || h.Volume != v.Number {
			return fmt.Errorf("volume %q has no head", v.Name)
		}
		if err := c.verifyPlace(v); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		if err := c.verifyMirror(v); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		if err := c.verifyBase(v); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		if err := c.verifyOfCopies(v); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	epochs := map[uint64]bool{}
	for _, s := range c.states {
		if err := c.verifyState(s); err != nil {
			return fmt.Errorf("state %d: %w", s.ID, err)
		}
		if p := c.states[s.Parent]; p != nil && p.Epoch == s.Epoch {
			continue
		}
		if epochs[s.Epoch] {
			return fmt.Errorf("two states wrote in epoch %d", s.Epoch)
		}
		epochs[s.Epoch] = true
	}
	return nil
}

// verifyPlace checks that an inplace volume and what keeps its versions name each other.
func (c *Catalogue) verifyPlace(v *Volume) error {
	if p := v.Place; p != nil {
		kept := c.volumes[p.Kept]
		if kept == nil || kept.KeptOf != v.Number || v.KeptOf != 0 || p.Next < FirstVersion {
			return fmt.Errorf("volume %d, which should keep its versions, is not there", p.Kept)
		}
		if p.Whole > c.LastEpoch {
			return fmt.Errorf("its file is whole up to epoch %d of %d", p.Whole, c.LastEpoch)
		}
		for _, id := range p.Bases {
			if s := c.states[id]; s == nil || s.Volume != v.Number {
				return fmt.Errorf("its base %d is not there", id)
			}
		}
	}
	if of := c.volumes[v.KeptOf]; v.KeptOf != 0 && (of == nil || of.Place == nil || of.Place.Kept != v.Number) {
		return fmt.Errorf("the volume %d that it keeps versions of is not there", v.KeptOf)
	}
	return nil
}

func (c *Catalogue) verifyState(s *State) error {
	p, v := c.states[s.Parent], c.volumes[s.Volume]
	switch {
	case s.Parent != 0 && !c.canDescend(s, p):
		return fmt.Errorf("it descends from state %d, which cannot be", s.Parent)
	case s.Epoch == 0 || s.Epoch > c.LastEpoch:
		return fmt.Errorf("its epoch is %d of %d", s.Epoch, c.LastEpoch)
	case s.Kind == Hidden || s.Kind == Fork:
	case s.Kind < Head || s.Kind > Copy:
		return fmt.Errorf("it is of the unknown kind %d", s.Kind)
	case v == nil:
		return fmt.Errorf("it is of volume %d, which is not there", s.Volume)
	case s.Kind == Head && v.Head != s.ID:
		return fmt.Errorf("it is a second head of volume %q", v.Name)
	case (s.Kind == Snapshot || s.Kind == Copy) && (c.SnapshotByName(v, s.Name) != s || c.BookmarkByName(v, s.Name) != nil):
		return fmt.Errorf("it is the second snapshot %q of volume %q", s.Name, v.Name)
	case s.Kind == Bookmark && c.BookmarkByName(v, s.Name) != s:
		return fmt.Errorf("it is the second bookmark %q of volume %q", s.Name, v.Name)
	}
	if err := c.verifyContent(s); err != nil {
		return err
	}
	if v != nil && v.KeptOf != 0 {
		return nil
	}
	return checkSize(s.SizeBytes)
}

// canDescend tells whether s may have the parent p. Only a bookmark is of its parent's epoch: that
// of the same snapshot, directly behind it or behind a younger bookmark of it, as its only child.
func (c *Catalogue) canDescend(s, p *State) bool {
	switch {
	case p == nil || p.Kind == Head:
		return false
	case p.Epoch < s.Epoch:
		return true
	}
	return p.Epoch == s.Epoch && (s.Kind == Bookmark || s.Kind == Copy) && p.Kind != Fork && (p.Kind != Bookmark || p.ID > s.ID) &&
		len(c.children[p.ID]) == 1 && p.SizeBytes == s.SizeBytes && p.Root.Settled() == s.Root.Settled()
}
