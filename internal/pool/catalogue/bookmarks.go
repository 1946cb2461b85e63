package catalogue

import (
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// CreateBookmark keeps the map of a snapshot, and none of its data.
type CreateBookmark struct {
	Of        uint64    `cbor:"1,keyasint"` // a snapshot's ID
	ID        uint64    `cbor:"2,keyasint"`
	UUID      uuid.UUID `cbor:"3,keyasint"`
	Name      string    `cbor:"4,keyasint"`
	CreatedAt int64     `cbor:"5,keyasint"`
}

// DeleteBookmark deletes a bookmark.
type DeleteBookmark struct {
	ID uint64 `cbor:"1,keyasint"`
}

// createBookmark puts the bookmark directly behind its snapshot, before all that descends from that.
func (c *Catalogue) createBookmark(o *CreateBookmark) error {
	of := c.snapshot(o.Of)
	if of == nil || o.ID <= c.LastState || c.Taken(c.volumes[of.Volume], o.Name) {
		return fmt.Errorf("bookmark %q: no snapshot %d, or name or number is taken", o.Name, o.Of)
	}
	kids := slices.Clone(c.children[of.ID])
	c.addState(&State{
		ID: o.ID, Kind: Bookmark, Volume: of.Volume, Parent: of.ID, Epoch: of.Epoch, SizeBytes: of.SizeBytes, Root: of.Root,
		UUID: o.UUID, Name: o.Name, CreatedAt: unix(o.CreatedAt),
		Of: of.Name, OfUUID: of.UUID, OfCreatedAt: of.CreatedAt,
	})
	for _, k := range kids {
		c.reparent(k, o.ID)
	}
	return nil
}

func (c *Catalogue) deleteBookmark(id uint64) error {
	s := c.states[id]
	if s == nil || s.Kind != Bookmark {
		return fmt.Errorf("delete bookmark: no bookmark %d", id)
	}
	delete(c.marks[s.Volume], s.Name)
	// What its parent has as well needs no other owner.
	if p := c.states[s.Parent]; p != nil && p.Epoch == s.Epoch || len(c.children[id]) <= 1 {
		c.remove(id)
		c.dissolve(s.Parent)
	} else {
		c.replace(id, func(s *State) { s.Kind = Fork })
	}
	return nil
}
