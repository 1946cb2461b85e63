package catalogue

import (
	"fmt"

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
	of := c.snapshotOrCopy(o.Of)
	if of == nil || o.ID <= c.LastState || c.Taken(c.volumes[of.Volume], o.Name) {
		return fmt.Errorf("bookmark %q: no snapshot %d, or name or number is taken", o.Name, o.Of)
	}
	c.insert(&State{
		ID: o.ID, Kind: Bookmark, Volume: of.Volume, Parent: of.ID, Epoch: of.Epoch, SizeBytes: of.SizeBytes, Root: of.Root,
		UUID: o.UUID, Name: o.Name, CreatedAt: unix(o.CreatedAt),
		Of: of.Name, OfUUID: of.UUID, OfCreatedAt: of.CreatedAt,
	})
	return nil
}

func (c *Catalogue) deleteBookmark(id uint64) error {
	s := c.states[id]
	if s == nil || s.Kind != Bookmark {
		return fmt.Errorf("delete bookmark: no bookmark %d", id)
	}
	delete(c.marks[s.Volume], s.Name)
	c.leave(id)
	return nil
}
