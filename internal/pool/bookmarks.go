package pool

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"varve/internal/pool/catalogue"
)

// CreateBookmark keeps what a snapshot's map says and none of its data, under a name
// of the same volume: enough to tell what changed since, also when the snapshot is gone.
func (p *Pool) CreateBookmark(_ context.Context, of SnapshotRef, name string) (BookmarkInfo, error) {
	if err := checkName("bookmark", name); err != nil {
		return BookmarkInfo{}, err
	}
	ref := BookmarkRef{of.Volume, name}
	var info BookmarkInfo
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		v, s, err := findSnapshot(c, of)
		if err != nil {
			return proposal{}, err
		}
		if c.Taken(v, name) {
			return proposal{}, ErrExists
		}
		now := p.opts.Clock().UTC()
		op := &catalogue.CreateBookmark{Of: s.ID, ID: c.LastState + 1, UUID: uuid.New(), Name: name, CreatedAt: now.UnixNano()}
		info = BookmarkInfo{
			ID: op.UUID, Volume: v.Name, VolumeID: v.UUID, Name: name, SizeBytes: s.SizeBytes, CreatedAt: now,
			Snapshot: of, SnapshotID: s.UUID, SnapshotCreatedAt: s.CreatedAt,
		}
		return proposal{op: &catalogue.Op{CreateBookmark: op}}, nil
	})
	if err != nil {
		return BookmarkInfo{}, fmt.Errorf("create bookmark %q of %q: %w", ref, of, err)
	}
	return info, nil
}

// DeleteBookmark deletes a bookmark. ErrInUse while somebody compares with it.
func (p *Pool) DeleteBookmark(_ context.Context, ref BookmarkRef) error {
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		_, s, err := findBookmark(c, ref)
		if err != nil {
			return proposal{}, err
		}
		return proposal{op: &catalogue.Op{DeleteBookmark: &catalogue.DeleteBookmark{ID: s.ID}}, urgent: true, deletes: []uint64{s.ID}}, nil
	})
	if err != nil {
		return fmt.Errorf("delete bookmark: %w", err)
	}
	return nil
}

// Bookmarks lists the bookmarks of a volume, or of all if volume is empty, oldest first.
func (p *Pool) Bookmarks(volume string) ([]BookmarkInfo, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	of := p.cat.Volumes()
	if volume != "" {
		v, err := findVolume(p.cat, volume)
		if err != nil {
			return nil, err
		}
		of = []*catalogue.Volume{v}
	}
	var out []BookmarkInfo
	for _, v := range of {
		for _, s := range p.cat.Bookmarks(v) {
			out = append(out, bookmarkInfo(v, s))
		}
	}
	return out, nil
}

// Bookmark describes a bookmark.
func (p *Pool) Bookmark(ref BookmarkRef) (BookmarkInfo, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, s, err := findBookmark(p.cat, ref)
	if err != nil {
		return BookmarkInfo{}, err
	}
	return bookmarkInfo(v, s), nil
}

func bookmarkInfo(v *catalogue.Volume, s *catalogue.State) BookmarkInfo {
	return BookmarkInfo{
		ID: s.UUID, Volume: v.Name, VolumeID: v.UUID, Name: s.Name, SizeBytes: s.SizeBytes, CreatedAt: s.CreatedAt,
		Snapshot: SnapshotRef{v.Name, s.Of}, SnapshotID: s.OfUUID, SnapshotCreatedAt: s.OfCreatedAt,
	}
}

func findBookmark(c *catalogue.Catalogue, ref BookmarkRef) (*catalogue.Volume, *catalogue.State, error) {
	v, err := findVolume(c, ref.Volume)
	if err != nil {
		return nil, nil, err
	}
	s := c.BookmarkByName(v, ref.Name)
	if s == nil {
		return nil, nil, fmt.Errorf("bookmark %q: %w", ref, ErrNotFound)
	}
	return v, s, nil
}
