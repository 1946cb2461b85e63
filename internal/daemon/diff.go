package daemon

import (
	"context"

	"varve/internal/contract"
	"varve/internal/pool"
)

const (
	listPoints    = "list snapshots and bookmarks: varve snapshot list; varve bookmark list"
	listBookmarks = "list bookmarks: varve bookmark list"
)

// parseBookmark reads VOLUME#NAME.
func parseBookmark(s string) (pool.BookmarkRef, error) {
	volume, name, ok := contract.ParseBookmark(s)
	if !ok {
		return pool.BookmarkRef{}, contract.Errorf(contract.CodeUsage, "%q is no bookmark", s).WithHint("a bookmark is VOLUME#NAME")
	}
	return pool.BookmarkRef{Volume: volume, Name: name}, nil
}

// parsePoint reads VOLUME@SNAPSHOT, VOLUME#BOOKMARK or VOLUME.
func parsePoint(s string) pool.PointRef {
	if volume, name, ok := contract.ParseRef(s); ok {
		return pool.PointRef{Volume: volume, Name: name}
	}
	if volume, name, ok := contract.ParseBookmark(s); ok {
		return pool.PointRef{Volume: volume, Name: name, Bookmark: true}
	}
	return pool.PointRef{Volume: s}
}

// Bookmarks lists the bookmarks of a volume, of all volumes if its name is empty.
func (d *Daemon) Bookmarks(volume string) ([]contract.Bookmark, error) {
	infos, err := d.pool.Bookmarks(volume)
	if err != nil {
		return nil, hinted(err, pool.ErrNotFound, "list volumes: varve volume list")
	}
	out := make([]contract.Bookmark, 0, len(infos))
	for _, info := range infos {
		out = append(out, bookmark(info))
	}
	return out, nil
}

func bookmark(info pool.BookmarkInfo) contract.Bookmark {
	return contract.Bookmark{
		ID: info.ID.String(), Volume: info.Volume, VolumeID: info.VolumeID.String(), Name: info.Name, Size: info.SizeBytes,
		CreatedAt: contract.Time{Time: info.CreatedAt}, Snapshot: info.Snapshot.String(), SnapshotID: info.SnapshotID.String(),
		SnapshotCreatedAt: contract.Time{Time: info.SnapshotCreatedAt},
	}
}

// CreateBookmark makes a bookmark of a snapshot.
func (d *Daemon) CreateBookmark(ctx context.Context, r contract.CreateBookmark) (contract.Bookmark, error) {
	of, err := parseRef(r.Snapshot)
	if err != nil {
		return contract.Bookmark{}, err
	}
	info, err := d.pool.CreateBookmark(ctx, of, r.Name)
	if err != nil {
		return contract.Bookmark{}, hinted(err, pool.ErrNotFound, "list snapshots: varve snapshot list")
	}
	return bookmark(info), nil
}

// DeleteBookmark deletes a bookmark, VOLUME#NAME. pool.ErrNotFound; pool.ErrInUse while a client compares with it.
func (d *Daemon) DeleteBookmark(ctx context.Context, name string) error {
	ref, err := parseBookmark(name)
	if err != nil {
		return err
	}
	err = d.sessions.unlessInUse(ctx, func() error { return d.pool.DeleteBookmark(ctx, ref) }, ref.Volume)
	return hinted(hinted(err, pool.ErrNotFound, listBookmarks), pool.ErrInUse, seeReaders)
}

// OpenDiff begins to tell what changed from VOLUME@SNAPSHOT or VOLUME#BOOKMARK to VOLUME@SNAPSHOT or VOLUME; if that is empty, to
// the volume of from. pool.ErrNotFound, pool.ErrInvalid.
func (d *Daemon) OpenDiff(from, to string) (*pool.Diff, error) {
	a := parsePoint(from)
	if a.Name == "" {
		return nil, contract.Errorf(contract.CodeUsage, "diff: %q is no snapshot or bookmark", from).WithHint("compare from VOLUME@SNAPSHOT or VOLUME#BOOKMARK")
	}
	b := pool.PointRef{Volume: a.Volume}
	if to != "" {
		b = parsePoint(to)
	}
	diff, err := d.pool.OpenDiff(a, b)
	return diff, hinted(err, pool.ErrNotFound, listPoints)
}
