package catalogue

import (
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// Technique says how a snapshot was asked for, where that is not what its volume's layout gives of itself.
type Technique uint8

// The techniques that make copies.
const (
	CowCopy Technique = 1 // seen at once, and copied in the background
	Clone   Technique = 2 // seen when it is whole
	Mirror  Technique = 3 // copied before, by writing in step
)

// Copying is of a snapshot that is to become a copy. Copyings in a Catalogue are never changed, but replaced.
type Copying struct {
	Technique Technique `cbor:"1,keyasint"`
	Path      string    `cbor:"2,keyasint,omitempty"` // of the file; empty: into the pool
	Replace   bool      `cbor:"3,keyasint,omitempty"` // a file of that name
	Volume    uint64    `cbor:"4,keyasint,omitempty"` // number of the internal volume that takes the content; 0: a file does
	DoneBytes int64     `cbor:"5,keyasint,omitempty"` // are copied, and durable if into a file
	Seal      Seal      `cbor:"6,keyasint"`           // of a file that is whole, and may not have its name yet
	Device    bool      `cbor:"7,keyasint,omitempty"` // Path is a block device
}

// Content is where a copy's content is. Contents in a Catalogue are never changed, but replaced.
type Content struct {
	Technique Technique `cbor:"1,keyasint"`
	State     uint64    `cbor:"2,keyasint,omitempty"` // a snapshot of an internal volume; 0: in a file
	Path      string    `cbor:"3,keyasint,omitempty"`
	Seal      Seal      `cbor:"4,keyasint"` // of the file
}

// NewCopying is what CreateSnapshots says of one that is to become a copy.
type NewCopying struct {
	Technique Technique `cbor:"1,keyasint"`
	Path      string    `cbor:"2,keyasint,omitempty"`
	Replace   bool      `cbor:"3,keyasint,omitempty"`
	Volume    uint64    `cbor:"4,keyasint,omitempty"` // the number of the internal volume, 0: none
	HeadID    uint64    `cbor:"5,keyasint,omitempty"` // its head's
	UUID      uuid.UUID `cbor:"6,keyasint"`
	Device    bool      `cbor:"7,keyasint,omitempty"`
}

// CopyProgress says how far a copy is.
type CopyProgress struct {
	ID        uint64 `cbor:"1,keyasint"`
	DoneBytes int64  `cbor:"2,keyasint"`
	Seal      Seal   `cbor:"3,keyasint"`
}

// FinishCopy makes a copy of a snapshot: the copy takes its place.
type FinishCopy struct {
	Of   uint64 `cbor:"1,keyasint"`           // the snapshot
	ID   uint64 `cbor:"2,keyasint"`           // of the copy
	Kept uint64 `cbor:"3,keyasint,omitempty"` // ID of the snapshot of the internal volume, 0: the content is in a file
	Seal Seal   `cbor:"4,keyasint"`           // of the file
}

// CancelCopy says that a snapshot is no more to become a copy; a clone goes.
type CancelCopy struct {
	ID uint64 `cbor:"1,keyasint"`
}

// contentName is the name of the internal volume with the content of a copy, and of its one snapshot, which no user can give.
func contentName(number uint64) string { return fmt.Sprintf("(copy %d)", number) }

// Listed tells whether a state is a snapshot that can be seen: not one of an internal volume, nor one that is not whole yet.
func (c *Catalogue) Listed(s *State) bool {
	if s.Kind != Snapshot && s.Kind != Copy || s.Pending || s.Copying != nil && s.Copying.Technique != CowCopy {
		return false
	}
	v := c.volumes[s.Volume]
	return v != nil && !v.Internal()
}

// startCopying makes the internal volume that a snapshot is to be copied into, if it is.
func (c *Catalogue) startCopying(id uint64, o *NewCopying) error {
	s := c.states[id]
	if o.Volume != 0 {
		if o.Volume <= c.LastVolume || o.HeadID <= c.LastState || o.Path != "" {
			return fmt.Errorf("copy snapshot %q: the number of what it is copied into is taken", s.Name)
		}
		name := contentName(o.Volume)
		c.volumes[o.Volume] = &Volume{Number: o.Volume, UUID: o.UUID, Name: name, CreatedAt: s.CreatedAt, Head: o.HeadID, ContentOf: id}
		c.byName[name] = o.Volume
		c.LastVolume = o.Volume
		c.LastEpoch++
		c.addState(&State{ID: o.HeadID, Kind: Head, Volume: o.Volume, Epoch: c.LastEpoch, SizeBytes: s.SizeBytes, CreatedAt: s.CreatedAt})
	} else if o.Path == "" {
		return fmt.Errorf("copy snapshot %q: into nothing", s.Name)
	}
	c.replace(id, func(s *State) {
		s.Copying = &Copying{Technique: o.Technique, Path: o.Path, Replace: o.Replace, Volume: o.Volume, Device: o.Device}
	})
	return nil
}

// copying returns a snapshot that is to become a copy, or nil.
func (c *Catalogue) copying(id uint64) *State {
	if s := c.snapshot(id); s != nil && s.Copying != nil {
		return s
	}
	return nil
}

func (c *Catalogue) copyProgress(o *CopyProgress) error {
	if s := c.copying(o.ID); s == nil || o.DoneBytes < 0 || o.DoneBytes > s.SizeBytes {
		return fmt.Errorf("copy: no snapshot %d that is copied, or %d bytes are not in it", o.ID, o.DoneBytes)
	}
	c.replace(o.ID, func(s *State) {
		k := *s.Copying
		k.DoneBytes, k.Seal = o.DoneBytes, o.Seal
		s.Copying = &k
	})
	return nil
}

// finishCopy puts the copy where a bookmark of the snapshot would be, and lets the snapshot go.
func (c *Catalogue) finishCopy(o *FinishCopy) error {
	s := c.copying(o.Of)
	if s == nil || o.ID <= c.LastState || (o.Kept != 0) != (s.Copying.Volume != 0) || o.Kept != 0 && o.Kept <= o.ID {
		return fmt.Errorf("finish copy: no snapshot %d that is copied, or number %d is taken", o.Of, o.ID)
	}
	copied := s.Copying
	delete(c.named[s.Volume], s.Name)
	c.replace(s.ID, func(s *State) { s.Kind, s.Copying, s.Pending = Hidden, nil, false })
	k := *s
	k.ID, k.Kind, k.Parent, k.Pending, k.Copying, k.DropWhenFull = o.ID, Copy, s.ID, false, nil, false
	k.Copy = &Content{Technique: copied.Technique, State: o.Kept, Path: copied.Path, Seal: o.Seal}
	c.insert(&k)
	if o.Kept != 0 {
		content := *c.volumes[copied.Volume]
		content.ContentOf = k.ID
		c.volumes[content.Number] = &content
		c.freeze(&content, &State{ID: o.Kept, Name: contentName(content.Number), CreatedAt: k.CreatedAt})
		c.emptyHead(&content)
	}
	c.dissolve(s.ID)
	return nil
}

// insert puts a state between its parent and all that descends from that.
func (c *Catalogue) insert(s *State) {
	kids := slices.Clone(c.children[s.Parent])
	c.addState(s)
	for _, k := range kids {
		c.reparent(k, s.ID)
	}
}

func (c *Catalogue) cancelCopy(id uint64) error {
	s := c.copying(id)
	if s == nil {
		return fmt.Errorf("cancel copy: no snapshot %d that is copied", id)
	}
	if s.Copying.Technique != CowCopy {
		return c.deleteSnapshots([]uint64{id})
	}
	return c.stopCopying(s)
}

// stopCopying makes a snapshot one that is not to become a copy.
func (c *Catalogue) stopCopying(s *State) error {
	number := s.Copying.Volume
	c.replace(s.ID, func(s *State) { s.Copying = nil })
	if number == 0 {
		return nil
	}
	return c.deleteVolume(number)
}

// deleteCopy deletes a copy with its content in the pool, and its volume, if that was deleted before and this was the last.
func (c *Catalogue) deleteCopy(s *State) error {
	delete(c.named[s.Volume], s.Name)
	if kept := c.states[s.Copy.State]; kept != nil {
		if err := c.deleteSnapshots([]uint64{kept.ID}); err != nil {
			return err
		}
		if err := c.deleteVolume(kept.Volume); err != nil {
			return err
		}
	}
	c.leave(s.ID)
	if v := c.volumes[s.Volume]; v.Deleted && c.SnapshotCount(v) == 0 {
		return c.deleteVolume(v.Number)
	}
	return nil
}

// leave removes a node without data, which stays as a fork where others need it.
func (c *Catalogue) leave(id uint64) {
	s := c.states[id]
	// What its parent has as well needs no other owner.
	if p := c.states[s.Parent]; p != nil && p.Epoch == s.Epoch || len(c.children[id]) <= 1 {
		c.remove(id)
		c.dissolve(s.Parent)
	} else {
		c.replace(id, func(s *State) { s.Kind, s.Copy = Fork, nil })
	}
}

// outlive keeps a volume for its copies: with an empty head that nobody can open.
func (c *Catalogue) outlive(v *Volume) {
	parent := c.states[v.Head].Parent
	c.emptyHead(v)
	c.dissolve(parent)
	left := *v
	left.Place, left.Base, left.Deleted = nil, 0, true
	c.volumes[v.Number] = &left
}

// emptyHead has a volume begin anew, with nothing. The map is the caller's to empty.
func (c *Catalogue) emptyHead(v *Volume) {
	c.LastEpoch++
	c.reparent(v.Head, 0)
	c.replace(v.Head, func(s *State) { s.Epoch = c.LastEpoch })
}

// verifyContent checks that a copy, or what is to become one, and where its content is name each other.
func (c *Catalogue) verifyContent(s *State) error {
	number := uint64(0)
	switch {
	case s.Kind == Copy && s.Copy == nil || s.Kind != Copy && s.Copy != nil || s.Copying != nil && s.Kind != Snapshot:
		return fmt.Errorf("it is a copy without content, or has one and is none")
	case s.Copying != nil:
		if number = s.Copying.Volume; s.Copying.DoneBytes < 0 || s.Copying.DoneBytes > s.SizeBytes {
			return fmt.Errorf("%d of %d bytes of it are copied", s.Copying.DoneBytes, s.SizeBytes)
		}
	case s.Copy != nil && s.Copy.State != 0:
		kept := c.snapshot(s.Copy.State)
		if kept == nil {
			return fmt.Errorf("its content, snapshot %d, is not there", s.Copy.State)
		}
		number = kept.Volume
	}
	if number == 0 && (s.Copying != nil && s.Copying.Path == "" || s.Copy != nil && s.Copy.Path == "") {
		return fmt.Errorf("its content is nowhere")
	}
	if v := c.volumes[number]; number != 0 && (v == nil || v.ContentOf != s.ID) {
		return fmt.Errorf("the volume %d of its content is not there", number)
	}
	return nil
}

// verifyOfCopies checks that a volume has the content of what names it, and, if it was deleted, nothing but copies.
func (c *Catalogue) verifyOfCopies(v *Volume) error {
	if v.Deleted && (v.Place != nil || v.Internal() || c.SnapshotCount(v) > c.Count(v).Copies) {
		return fmt.Errorf("it was deleted, and has more than copies")
	}
	if v.ContentOf == 0 {
		return nil
	}
	s := c.states[v.ContentOf]
	filled := s != nil && s.Copying != nil && s.Copying.Volume == v.Number
	if !filled && s != nil && s.Copy != nil {
		kept := c.states[s.Copy.State]
		filled = kept != nil && kept.Volume == v.Number
	}
	if !filled || v.Place != nil || v.KeptOf != 0 {
		return fmt.Errorf("it has the content of state %d, which says nothing of that", v.ContentOf)
	}
	return nil
}
